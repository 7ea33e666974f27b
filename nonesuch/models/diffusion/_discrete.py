"""Diffusion in discrete steps: an image drowned in noise over a thousand small steps, and what says what noise was added.


    q(x_k | x_{k-1}) = N(sqrt(1 - beta_k) x_{k-1}, beta_k),        k = 1, ..., T,        x_T ~ N(0, 1)               (Eq. 2)

The network predicts eps of x_k = alpha_k x + sigma_k eps with alpha_k^2 = abar_k = 1 - sigma_k^2, and is trained by plain
regression at uniform k, L_simple = E||eps - eps(x_k, k)||^2 (Eq. 14). From it xhat = (x_k - sigma_k eps) / alpha_k, and

    y = x_k / alpha_k = x + s eps,    s = sigma_k / alpha_k,    D(y; s) = xhat(alpha_k y, k)                             (1)

is the problem that all samplers of _samplers.py solve, from s_T to s_1: "ddim" there is DDIM's deterministic walk (Eq. 12), here
over evenly spaced k, and "ddpm" over all T of them the paper's ancestral sampling (Eq. 11, with the variance of q). The others
walk levels uniform in log s, which lie between two k as a rule, and need fewer. The likelihood is the paper's bound L (Eq. 5):
the prior's term, T - 1 Gaussian terms of which some are drawn (_betas.py, Eq. 1), and a decoder on the grid of levels (Eq. 13).

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239
    Denoising Diffusion Implicit Models (Song, Meng, Ermon, 2020) arXiv:2010.02502
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Denoiser, Guidable, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion import _likelihood as likelihood
from nonesuch.models.diffusion._betas import Betas
from nonesuch.models.diffusion._samplers import Denoise, guided, solve
from nonesuch.models.diffusion._schedule import NoiseLevels

_CALL_VALUES = 1 << 17  # values of x that one evaluation of the bound takes


@dataclass(frozen=True)
class Noise:
    """The steps, and the defaults of sampling and scoring; as they stand here, the paper's."""

    timesteps: int = 1000
    beta_first: float = 1e-4
    beta_last: float = 0.02
    clip: bool = True  # keep xhat of ordinal images within [-1, 1] in sampling and in the bound
    sampler: str = "ddim"  # or another of _samplers.py
    steps: int = 50  # of the sampler; ddpm takes all timesteps unless told otherwise
    strata: int = 32  # terms of the bound drawn an image


class Discrete(Model, Denoiser, Likelihood, Guidable):
    """Diffusion in discrete steps whose network, the subclass's, predicts the noise.

    Options of sampling: steps, sampler (a name in _samplers.py), guidance (scale; 1 is none) and interval (t, t), where guidance
    acts. `log_prob` has one method, "bound". Raises ValueError for images that are not flat pictures of numbers.
    """

    config: Noise

    def __init__(self, config: Noise, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError(
                "this diffusion adds Gaussian noise, which categorical images do not take; use an autoregressive model."
            )
        if spec.axes != "hw":
            raise ValueError(f"this network is for flat images (axes 'hw'), not {spec.axes!r}; diffusion/edm takes any.")
        self.betas = Betas(config.timesteps, config.beta_first, config.beta_last)

    @abstractmethod
    def noise_of(self, x_k: Tensor, k: Tensor, given: Given, keys: Seeds | None = None) -> Tensor:
        """eps(x_k, k) (B, C, H, W) in float32, at steps k (B,) in [0, T]; keys for dropout in training."""

    # -- learning ----------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        return [Objective("denoiser", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        x = batch.x
        u = (batch.first.uniform("timestep").double() + torch.tensor(batch.rows) / batch.size) % 1  # stratified over the batch
        k = 1 + (u * self.config.timesteps).long().clamp(max=self.config.timesteps - 1)
        eps = batch.keys.normal("noise", *x.shape[1:], device=x.device)
        alpha, sigma = self._scales(k, x)
        found = self.noise_of(alpha * x + sigma * eps, k, batch.given, batch.keys)
        return Terms({"squared_error": ((eps - found) ** 2).mean()})  # Eq. 14

    def _scales(self, k: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_k) and sqrt(1 - abar_k), shaped to multiply images like x."""
        alpha, sigma = (v.to(x.device, x.dtype).view(-1, 1, 1, 1) for v in self.betas.scales(k.cpu()))
        return alpha, sigma

    # -- denoising and sampling --------------------------------------------------------------------------------------------------

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        alpha, sigma = self.betas.scales(t * self.config.timesteps)
        return alpha.to(t.dtype), sigma.to(t.dtype)

    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        """E[x | x_t] (B, C, H, W) of x_t = alpha_t x + sigma_t eps; t (B,) in [0, 1], and t T may lie between two steps."""
        k, given = t * self.config.timesteps, given or self.schema.missing(len(x_t)).to(x_t.device)
        alpha, sigma = self._scales(k.detach(), x_t)
        return (x_t - sigma * self.noise_of(x_t, k, given)) / alpha

    def _clipped(self, x: Tensor) -> Tensor:
        return x.clamp(-1, 1) if self.config.clip and self.spec.kind == "ordinal" else x

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, steps: int | None = None, sampler: str | None = None,
        guidance: float = 1.0, interval: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[Step]:  # fmt: skip
        last, sampler = self.config.timesteps, sampler or self.config.sampler
        steps = steps if steps is not None else last if sampler == "ddpm" else min(last, self.config.steps)
        if isinstance(steps, bool) or not isinstance(steps, int) or not 1 <= steps <= last:
            raise ValueError(f"steps must be a whole number from 1 to {last}, not {steps!r}.")
        discrete = sampler in ("ddim", "ddpm")
        walk = [round(last * i / steps) for i in range(steps, 0, -1)]
        ratios = self.betas.ratio(torch.tensor(walk)).tolist() if discrete else self.levels.steps(steps)
        guide, image = self._guided(given, guidance, interval), torch.empty(0)

        def denoise(y: Tensor, ratio: float) -> Tensor:
            nonlocal image
            image = self._clipped(guide(y, ratio))
            return image

        def noise(i: int) -> Tensor:
            return seeds.normal("step", *self.spec.shape, step=walk[i], device=self.device)

        alpha, _ = self.betas.scales(torch.tensor(last))
        y = seeds.normal("x", *self.spec.shape, device=self.device) / float(alpha)
        for i, _ in enumerate(solve(sampler, denoise, y, ratios, noise=noise), 1):
            shown = image if self.spec.kind == "continuous" else image.clamp(-1, 1)
            yield Step(i, steps, self.spec.snap(shown) if i == steps else shown)

    @property
    def levels(self) -> NoiseLevels:
        """From s_T to s_1 of Eq. 1, uniform in log s."""
        least, most = self.betas.ratio(torch.tensor([1, self.config.timesteps])).tolist()
        return NoiseLevels(least, most, rho=math.inf)

    def _guided(self, given: Given, scale: float, interval: tuple[float, float]) -> Denoise:
        """D of Eq. 1 at one level for all, not clipped, leaning on the condition within the interval of t."""

        def denoise(y: Tensor, ratio: float, given: Given) -> Tensor:
            k = torch.full((len(y),), self.betas.step_of(ratio), dtype=torch.float64)
            alpha = 1 / math.hypot(1, ratio)
            return y - ratio * self.noise_of(alpha * y, k, given)  # Eq. 1

        low, high = self.betas.ratio(torch.tensor(interval, dtype=torch.float64) * self.config.timesteps).tolist()
        return guided(denoise, given, self.schema.hide(given, torch.ones(len(given), dtype=torch.bool)), scale, low, high)

    # -- likelihood --------------------------------------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        if method not in (None, "bound"):
            raise ValueError(f"this diffusion has no likelihood {method!r}; its one method is bound.")
        alpha, sigma = self.betas.scales(torch.tensor(self.config.timesteps))
        prior = likelihood.prior_kl(alpha.float() * x, float(sigma), x.new_zeros(()), x.new_ones(()))  # L_T
        decoder = torch.stack([self._decoder(x, given, seeds, i) for i in range(samples)]).mean(0)  # -L_0
        return LogProb(decoder - self._middle(x, given, self.config.strata * samples, seeds) - prior, "bound")

    def _middle(self, x: Tensor, given: Given, draws: int, seeds: Seeds) -> Tensor:
        """An unbiased estimate (B,) of the T - 1 Gaussian terms of the bound, k stratified by what its term may cost."""
        n, shares = len(x), self.betas.shares
        cdf, shift = shares.cumsum(0), seeds.uniform("bound/timestep", device="cpu").double()
        total, together = x.new_zeros(n, dtype=torch.float64), max(1, min(draws, _CALL_VALUES // max(1, x.numel())))
        for start in range(0, draws, together):
            part = range(start, min(draws, start + together))
            u = torch.cat([(i + shift) / draws for i in part])
            place = torch.searchsorted(cdf, u).clamp(max=len(shares) - 1)
            eps = torch.cat([seeds.normal("bound/noise", *x.shape[1:], step=i, device=x.device) for i in part])
            conditions = given[torch.arange(n, device=self.device).repeat(len(part))]
            error = (self._estimate(x.repeat(len(part), 1, 1, 1), place + 2, eps, conditions)[0]).double() ** 2
            factor = (self.betas.weights / shares)[place].to(x.device)  # _betas.py, Eq. 1
            total += (factor * error.flatten(1).sum(1)).view(len(part), n).sum(0)
        return (total / draws).to(x.dtype)

    def _estimate(self, x: Tensor, k: Tensor, eps: Tensor, given: Given) -> tuple[Tensor, Tensor]:
        """x - xhat and xhat, from x spoiled to step k (B,) with noise eps."""
        alpha, sigma = self._scales(k, x)
        x_k = alpha * x + sigma * eps
        found = self._clipped((x_k - sigma * self.noise_of(x_k, k, given)) / alpha)
        return x - found, found

    def _decoder(self, x: Tensor, given: Given, seeds: Seeds, draw: int) -> Tensor:
        """log P(x | x_1) (B,): the normal's mass between the levels, whose outermost are open (Eq. 13); or its density."""
        eps, std = seeds.normal("decoder/noise", *x.shape[1:], step=draw, device=x.device), self.betas.decoder_std
        _, mean = self._estimate(x, torch.ones(len(x), dtype=torch.int64), eps, given)
        if self.spec.levels is None:
            return likelihood.normal_log_prob(x, mean, std**2)
        away, half = (x - mean).double(), self.spec.step / 2
        low, high = (away - half) / std, (away + half) / std
        flip = low > 0  # where both are large, so that neither mass rounds to 1
        low, high = torch.where(flip, -high, low), torch.where(flip, -low, high)
        levels = self.spec.to_levels(x)
        outer = torch.where(flip, levels == self.spec.levels - 1, levels == 0)  # the lower end is open
        upper = torch.where(flip, levels == 0, levels == self.spec.levels - 1)
        high = torch.where(upper, torch.inf, high)
        low = torch.where(outer, -torch.inf, low)
        top, bottom = torch.special.log_ndtr(high), torch.special.log_ndtr(low)
        return likelihood.per_image(top + torch.log1p(-torch.exp(bottom - top))).to(x.dtype)
