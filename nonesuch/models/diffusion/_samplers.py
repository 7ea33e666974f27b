"""Solvers of the probability-flow equation dx / d sigma = (x - D(x; sigma)) / sigma, from noise to data.

Each walks a decreasing list of noise levels and yields x after each; the last step, to sigma = 0, gives the denoised image
itself. D is a function of (x, sigma as a float), so an exact denoiser tests them. Global order in the step: Euler 1 (it is
DDIM), Heun 2, DPM-Solver++(2M) 2 with one evaluation a step. Churn adds fresh noise before each step of Heun and removes it.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364, Algorithms 1 and 2
    Denoising Diffusion Implicit Models (Song, Meng, Ermon, 2020) arXiv:2010.02502
    DPM-Solver++: Fast Solver for Guided Sampling of Diffusion Probabilistic Models (Lu et al., 2022) arXiv:2211.01095, Alg. 2
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

Denoise = Callable[[Tensor, float], Tensor]
Noise = Callable[[int], Tensor]  # step -> standard normals of x's shape and dtype

CHURN_NOISE = 1.003  # S_noise of EDM's table 5: a little more noise than is removed


def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float]) -> Iterator[Tensor]:
    """First order: x + (next - sigma) (x - D) / sigma, one evaluation a step."""
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


SAMPLERS = ("heun", "dpmpp_2m", "euler")


def solve(
    sampler: str, denoise: Denoise, x: Tensor, sigmas: Sequence[float], churn: float = 0.0, noise: Noise | None = None
) -> Iterator[Tensor]:
    """The steps of the sampler of that name. Raises ValueError for an unknown one, or for churn where it has no meaning."""
    if sampler not in SAMPLERS:
        raise ValueError(f"there is no sampler {sampler!r}; choose one of {', '.join(SAMPLERS)}.")
    if churn < 0 or (churn and sampler != "heun"):
        raise ValueError(f"churn must be at least 0, and only heun has it (sampler='heun'); got {churn} with {sampler}.")
    if sampler == "heun":
        return heun(denoise, x, sigmas, churn, noise)
    return euler(denoise, x, sigmas) if sampler == "euler" else dpmpp_2m(denoise, x, sigmas)
