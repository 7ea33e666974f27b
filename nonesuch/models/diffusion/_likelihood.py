"""The likelihood of a diffusion model whose latent is z = x + sigma_min eps: a variational bound, and an equation of flow.

With q(z_sigma | x) = N(x, sigma^2), a prior p(z_max) and a decoder P(x | z_min), continuous time gives (VDM, Eq. 11 and 17)

    -log P(x) <= KL(q(z_max | x) || p(z_max)) + E[-log P(x | z_min)] + int sigma^-2 E||x - D(z_sigma; sigma)||^2 d log sigma   (1)

between sigma_min and sigma_max, the paper's 1/2 int SNR'(t) ... with SNR = sigma^-2. Any function D makes it a bound; it is
exact when D is the posterior mean and nothing is lost at the two ends. The integral is drawn at noise levels stratified over
equal shares of information (_schedule.py), so a Monte Carlo estimate is unbiased and its variance small.

The probability flow dz / d sigma = (z - D) / sigma carries densities too (Song et al., Eq. 39):

    log p(z_min) = log p(z_max) + int_{sigma_min}^{sigma_max} div((z - D) / sigma) d sigma                               (2)

and log P(x) >= E_q [log p(z_min) + log P(x | z_min) - log q(z_min | x)], importance-weighted over several draws. Steps and
divergence of (2) are numerical, so it is an estimate.

References:
    Variational Diffusion Models (Kingma et al., 2021) arXiv:2107.00630
    Score-Based Generative Modeling through Stochastic Differential Equations (Song et al., 2020) arXiv:2011.13456, appendix D.2
    A Stochastic Estimator of the Trace of the Influence Matrix (Hutchinson, 1989)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion._schedule import NoiseLevels

Denoise = Callable[[Tensor, Tensor], Tensor]  # (z (B, ...), sigma (B,)) -> D
_LOG_2PI = math.log(2 * math.pi)


def per_image(values: Tensor) -> Tensor:
    """(B, ...) -> (B,): the sum of all but the first axis."""
    return values.flatten(1).sum(1)


def normal_log_prob(x: Tensor, mean: Tensor | float, var: Tensor | float) -> Tensor:
    """log N(x; mean, var) (B,) with independent components."""
    var = torch.as_tensor(var, dtype=x.dtype, device=x.device)
    return -0.5 * per_image((x - mean) ** 2 / var + var.log() + _LOG_2PI)


def prior_kl(x: Tensor, sigma_max: float, mean: Tensor, var: Tensor) -> Tensor:
    """KL(N(x, sigma_max^2) || N(mean, var)) (B,): the first term of Eq. 1."""
    ratio = sigma_max**2 / var
    return 0.5 * per_image((x - mean) ** 2 / var + ratio - 1 - ratio.log())


def diffusion_term(denoise: Denoise, x: Tensor, levels: NoiseLevels, strata: int, seeds: Seeds) -> Tensor:
    """An unbiased estimate (B,) of the integral of Eq. 1, from `strata` noise levels an image."""
    shift = seeds.uniform("bound/level", device=x.device)
    total = x.new_zeros(len(x))
    for k in range(strata):
        sigma = levels.by_information((k + shift) / strata).to(x.dtype)
        eps = seeds.normal("bound/noise", *x.shape[1:], step=k, device=x.device).to(x.dtype)
        z = x + sigma.view(-1, *[1] * (x.dim() - 1)) * eps
        total += levels.weight(sigma) * per_image((x - denoise(z, sigma)) ** 2)
    return total * (levels.information_range / strata)


Divergence = Callable[[Tensor, float], tuple[Tensor, Tensor]]  # (z, sigma) -> slope z - D, and its divergence (B,)


def hutchinson(denoise: Callable[[Tensor, float], Tensor], probe: Tensor) -> Divergence:
    """Slope z - D and v^T J v for one probe v of signs: unbiased for the divergence, one backward pass."""

    def slope_and_divergence(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            slope = z - denoise(z, sigma)
            (pulled,) = torch.autograd.grad(slope, z, probe)
        return slope.detach(), per_image(pulled * probe)

    return slope_and_divergence


def exact_divergence(denoise: Callable[[Tensor, float], Tensor]) -> Divergence:
    """Slope z - D and the trace of its Jacobian: a backward pass a dimension."""

    def slope_and_divergence(z: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            slope = z - denoise(z, sigma)
            flat = slope.flatten(1).sum(0)
            trace = torch.zeros(len(z), dtype=z.dtype, device=z.device)
            for i in range(flat.numel()):
                (pulled,) = torch.autograd.grad(flat[i], z, retain_graph=i + 1 < flat.numel())
                trace += pulled.flatten(1)[:, i]
        return slope.detach(), trace

    return slope_and_divergence


def flow_log_prob(divergence: Divergence, z: Tensor, levels: NoiseLevels, steps: int, mean: Tensor, var: Tensor) -> Tensor:
    """log p(z_min) (B,) by Eq. 2, up to sigma_max, where z is normal with that mean and variance.

    Runge-Kutta steps of order 4 in log sigma: dz / d log sigma = z - D.
    """
    total = z.new_zeros(len(z))
    sigmas = levels.steps(steps + 1)[::-1]
    for sigma, after in pairwise(sigmas):
        h, middle = math.log(after / sigma), math.sqrt(sigma * after)
        k1, d1 = divergence(z, sigma)
        k2, d2 = divergence(z + h / 2 * k1, middle)
        k3, d3 = divergence(z + h / 2 * k2, middle)
        k4, d4 = divergence(z + h * k3, after)
        z = z + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        total += h / 6 * (d1 + 2 * d2 + 2 * d3 + d4)
    return total + normal_log_prob(z, mean, var)
