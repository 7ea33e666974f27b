"""Solvers of the probability-flow equation dx / d sigma = (x - D(x; sigma)) / sigma, from noise to data.

Each walks a decreasing list of noise levels and yields x after each; the last step, to sigma = 0, gives the denoised image
itself. D is a function of (x, sigma as a float), so an exact denoiser tests them. In lambda = -log sigma the equation is linear
but for D, and a step of length h is, exactly,

    x(lambda + h) = e^-h x(lambda) + int_0^h e^(tau - h) D(lambda + tau) d tau,                                       (1)

so a method is a polynomial through known values of D: through the latest it is DDIM, through two or three DPM-Solver++(2M) and
(3M). The (3M) in circulation gives the second difference half of its weight in Eq. 1, and measures as order 2; ours has all of
it. UniPC redoes a step once D is known at its end, with that value too, which raises the order by one and costs nothing. Of two
values the weights may be those of Eq. 1 or UniPC's B(h) / 2, with B_1 = h or B_2 = 1 - e^-h, whose predictor is (2M). B_2 erred
least.

Pixels' error (root mean square; median of the images) after 8, 10 and 12 evaluations (heun: 7, 9 and 11), against 1,000 steps of
unipc_3: four mixtures of four normals of 16 pixels, deviation 0.35, sigma from 10 to 0.02, levels uniform in log sigma (below it:
rho = 7).

                 evaluations of n steps   order   8                 10                12
    euler, ddim  n                        1       0.081   0.035     0.068   0.027     0.059   0.022     (50: 0.0145  0.0048)
    heun         2 n - 1                  2       0.26    0.21      0.13    0.10      0.073   0.050
    dpmpp_2m     n                        2       0.042   0.013     0.030   0.0071    0.019   0.0043
      rho = 7                                     0.042   0.024     0.026   0.0126    0.018   0.0074
    dpmpp_3m     n                        3       0.037   0.019     0.019   0.0082    0.016   0.0055
    unipc_1      n                        2       0.062   0.019     0.049   0.012     0.039   0.0085
    unipc_2      n                        3       0.034   0.0083    0.020   0.0027    0.0135  0.0016
      rho = 7                                     0.033   0.017     0.019   0.0079    0.014   0.0034
    unipc_3      n                        4       0.031   0.013     0.020   0.0075    0.015   0.0033
    ddpm         n, with noise            of the stochastic equation

References:
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality (Kynkäänniemi et al., 2024) arXiv:2404.07724
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364, Algorithms 1 and 2
    Denoising Diffusion Probabilistic Models (Ho et al., 2020) arXiv:2006.11239, Eq. 6 and 7
    Denoising Diffusion Implicit Models (Song, Meng, Ermon, 2020) arXiv:2010.02502
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022) arXiv:2211.01095, Alg. 2
    UniPC: A Unified Predictor-Corrector Framework for Fast Sampling of Diffusion Models (Zhao et al., 2023) arXiv:2302.04867
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from nonesuch.core.given import Given

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]  # step -> standard normals of x's shape and dtype

CHURN_NOISE = 1.003  # S_noise of EDM's table 5: a little more noise than is removed
FEW_STEPS = 15  # below, the last steps are of lower order: their polynomials would reach far beyond what they know


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """First order, one evaluation a step: x + (next - sigma) (x - D) / sigma, which is DDIM, and Eq. 1 for a constant D."""
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        x = denoise(x, sigma).lerp(x, after / sigma)
        yield x


def heun(
    denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, noise: Noise | None = None
) -> Iterator[Tensor]:
    """Second order, two evaluations a step but the last. churn is S_churn: 0 is Algorithm 1, above it Algorithm 2."""
    for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        if churn > 0 and noise is not None:
            raised = sigma * (1 + min(churn / len(sigmas), math.sqrt(2) - 1))
            x = x + math.sqrt(raised**2 - sigma**2) * CHURN_NOISE * noise(i)  # Algorithm 2, lines 5 and 6
            sigma = raised
        slope = (x - denoise(x, sigma)) / sigma
        ahead = x + (after - sigma) * slope
        if after > 0:
            slope = (slope + (ahead - denoise(ahead, after)) / after) / 2  # Algorithm 1, line 8
            ahead = x + (after - sigma) * slope
        x = ahead
        yield x


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """Second order, one evaluation a step: extrapolates D linearly in log sigma from the step before (Lu et al., Eq. 17)."""
    previous, h_before = None, 0.0
    for sigma, after in zip(sigmas, [*sigmas[1:], 0.0], strict=True):
        now = denoise(x, sigma)
        if after == 0:
            yield now
            return
        h = math.log(sigma / after)
        ahead = now if previous is None else now + (now - previous) * (h / (2 * h_before))
        x = ahead.lerp(x, after / sigma)
        previous, h_before = now, h
        yield x


def ddpm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Iterator[Tensor]:
    """Ancestral sampling: each x is drawn from q(x_next | x, x_0 = D), the posterior of Gaussian noise; one evaluation a step."""
    for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        x = denoise(x, sigma).lerp(x, (after / sigma) ** 2)  # DDPM, Eq. 7
        if after > 0:
            x = x + after * math.sqrt(1 - (after / sigma) ** 2) * noise(i)
        yield x


def multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], order: int, correct: bool = False) -> Iterator[Tensor]:
    """Eq. 1 through the latest `order` values of D, one evaluation a step; `correct` makes it UniPC.

    The first steps know less and are of lower order; so are the last ones of few.
    """
    known: list[tuple[float, Tensor]] = []  # lambda and D, the latest first
    start, used = x, 0  # of the step that led here
    for i, (sigma, after) in enumerate(zip(sigmas, [*sigmas[1:], 0.0], strict=True)):
        here = (-math.log(sigma), denoise(x, sigma))
        if after == 0:
            yield here[1]
            return
        if correct and i:
            x = _advance(start, known[0][0], here[0], [here, *known[:used]])
        known = [here, *known[: order - 1]]
        used = min(order, len(known), len(sigmas) - 1 - i if len(sigmas) < FEW_STEPS else order)
        start, x = x, _advance(x, here[0], -math.log(after), known[:used])
        yield x


def _advance(x: Tensor, begin: float, end: float, known: Sequence[tuple[float, Tensor]]) -> Tensor:
    """x after the step from lambda `begin` to `end`, D being the polynomial through what is known (lambda, D)."""
    h = end - begin
    x = math.exp(-h) * x
    for weight, (_, d) in zip(weights([(where - begin) / h for where, _ in known], h), known, strict=True):
        x = x + weight * d
    return x


def weights(nodes: Sequence[float], h: float) -> list[float]:
    """Weights of the values at `nodes` (in units of h from the step's start) in the integral of Eq. 1.

    They are exact for polynomials below the number of nodes, but for two nodes, where B(h) / 2 stands for the integral of u.
    """
    moments = [_moment(k, h) for k in range(len(nodes))]
    if len(nodes) == 2:
        moments[1] = moments[0] / 2  # UniPC, B_2(h) = e^h - 1
    powers = torch.tensor(nodes, dtype=torch.float64) ** torch.arange(len(nodes))[:, None]
    return torch.linalg.solve(powers, torch.tensor(moments, dtype=torch.float64)).tolist()


def _moment(k: int, h: float) -> float:
    """int_0^1 h e^(h (u - 1)) u^k du, summed over the powers of e^(h u), which are positive: no digits are lost at small h."""
    term, total, j = h, 0.0, 0
    while total == 0 or j < h or term > 1e-17 * total:
        total += term / (j + k + 1)
        j += 1
        term *= h / j
    return math.exp(-h) * total


SAMPLERS: dict[str, Callable[[Denoise, Tensor, Sequence[float]], Iterator[Tensor]]] = {
    "heun": heun,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_3m": partial(multistep, order=3),
    "unipc_1": partial(multistep, order=1, correct=True),
    "unipc_2": partial(multistep, order=2, correct=True),
    "unipc_3": partial(multistep, order=3, correct=True),
    "euler": euler,
    "ddim": euler,
}  # those of the probability flow


def solve(
    sampler: str, denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, noise: Noise | None = None
) -> Iterator[Tensor]:
    """The steps of the sampler of that name. Raises ValueError for an unknown one, or for churn where it has no meaning."""
    if sampler not in SAMPLERS and sampler != "ddpm":
        raise ValueError(f"there is no sampler {sampler!r}; choose one of {', '.join([*SAMPLERS, 'ddpm'])}.")
    if churn < 0 or (churn and sampler != "heun"):
        raise ValueError(f"churn must be at least 0, and only heun has it (sampler='heun'); got {churn} with {sampler}.")
    if sampler == "ddpm":
        if noise is None:
            raise ValueError("ddpm draws noise at every step; give it some.")
        return ddpm(denoise, x, sigmas, noise)
    return heun(denoise, x, sigmas, churn, noise) if sampler == "heun" else SAMPLERS[sampler](denoise, x, sigmas)


def guided(
    denoise: Callable[[Tensor, float, Given], Tensor], given: Given, hidden: Given, scale: float, low: float, high: float
) -> Denoise:
    """D given the condition, leaning on it by `scale` (1: not) at noise levels in (low, high]: uncond + scale (cond - uncond).

    hidden: the condition with every value missing. Both are evaluated as one batch of twice the rows, and only there.
    """
    both = given + hidden

    def at(x: Tensor, sigma: float) -> Tensor:
        if scale == 1 or not given.columns or not low < sigma / (1 + 1e-9) <= high:  # a walk's ends are rounded
            return denoise(x, sigma, given)
        conditional, unconditional = denoise(torch.cat([x, x]), sigma, both).chunk(2)
        return unconditional + scale * (conditional - unconditional)

    return at
