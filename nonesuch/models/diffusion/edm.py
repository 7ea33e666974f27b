"""EDM: diffusion with a preconditioned denoiser, noise levels and samplers of its design space, and an honest likelihood.

    x_t = x + sigma(t) eps,        D(x_t; sigma) = E[x | x_t],        dx / d sigma = (x - D(x; sigma)) / sigma      (1)

D is a regression, E[lambda(sigma) ||x - D||^2] over a mixture of two draws of noise levels: EDM's log-normal, which favours what
the eye sees, and uniform information, which makes the loss the likelihood (_schedule.py, Eq. 1). Where a pixel has few levels
the network votes for them and D is the posterior mean (_network.py); there the loss adds the votes' cross-entropy, whose minimum
is the same posterior. Images start from a normal of the data's mean and variance plus sigma_max^2, and end at sigma_min in a
decoder P(x | z): the votes themselves, or the nearest level.

References:
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364
    Variational Diffusion Models (Kingma et al., 2021) arXiv:2107.00630
    Understanding Diffusion Objectives as the ELBO with Simple Data Augmentation (Kingma, Gao, 2023) arXiv:2303.00848
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598
    Applying Guidance in a Limited Interval Improves Sample and Distribution Quality (Kynkäänniemi et al., 2024) arXiv:2404.07724
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import AnySize, Denoiser, Guidable, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion import _likelihood as likelihood
from nonesuch.models.diffusion._network import Network
from nonesuch.models.diffusion._samplers import Denoise, guided, solve
from nonesuch.models.diffusion._schedule import NoiseLevels
from nonesuch.nn.moves import move


@dataclass(frozen=True)
class Config:
    """The network, the noise, and the defaults of sampling and scoring."""

    patch: int = 0  # 0: a U-Net; above: a transformer over patches of so many pixels a side, `blocks` deep and `width` wide
    fold: int = 1  # U-Net: pixels a side that are made channels at its door; 2 is a quarter of the work at one width
    base: int = 64  # U-Net: channels at full resolution
    mults: tuple[int, ...] = (1, 2)  # U-Net: channels of each resolution, in multiples of base
    attention: tuple[bool, ...] = (False, True)  # U-Net: whether a resolution has attention
    blocks: int = 2  # U-Net: residual blocks a resolution, each way; transformer: all of them
    num_heads: int = 4
    width: int = 128  # of the vector of noise level and condition, and of a transformer
    dropout: float = 0.1
    augment: float = 0.0  # share of training pictures that are moved, and the network told; none where images are given
    sigma_min: float = 0.2  # in steps between levels; for continuous images in 1/50 of their deviation
    sigma_max: float = 160.0  # in deviations of the data
    rho: float = 7.0  # curvature of the walk from sigma_max to sigma_min
    log_normal: float = 0.5  # share of noise levels drawn from EDM's log-normal; the rest is uniform in information
    log_normal_mean: float = -0.5  # of log(sigma / sigma_data)
    log_normal_std: float = 1.2
    vote_weight: float = 1.0  # of the votes' cross-entropy beside the squared error
    steps: int = 18  # of the sampler
    sampler: str = "dpmpp_2m"
    churn: float = 0.0
    strata: int = 32  # noise levels an image that the bound is estimated from
    flow_steps: int = 24  # Runge-Kutta steps of the probability flow's density


PRESETS = {
    "tiny":   Preset({"base": 16, "mults": (1,), "blocks": 1, "attention": (False,), "width": 32, "dropout": 0.0, "steps": 12}),
    "digits": Preset({"patch": 8, "width": 256, "blocks": 6, "dropout": 0.3, "augment": 0.6, "sigma_max": 20.0,
                      "log_normal": 0.8, "log_normal_mean": 0.0, "steps": 8, "sampler": "unipc_2"},
                     {"batch": 512, "lr": 2e-3, "weight_decay": 0.3}, up_to_px=16,
                     reached="digits given label, test: CAS 0.985, 1.83 bits/dim at 500k images, 90 s of one core"),
    "32px":   Preset({"base": 96, "mults": (1, 2, 2), "blocks": 3, "attention": (False, True, True), "width": 256,
                      "log_normal": 0.8, "log_normal_mean": 0.0},
                     {"batch": 64, "lr": 5e-4}, up_to_px=32),
    "64px":   Preset({"base": 96, "mults": (1, 2, 3, 4), "blocks": 2, "attention": (False, False, True, True), "width": 384,
                      "log_normal": 0.8, "log_normal_mean": 0.0},
                     {"batch": 32, "lr": 3e-4}, up_to_px=64),
}  # fmt: skip


class EDM(Model, Denoiser, Likelihood, Guidable, AnySize):
    """Diffusion with EDM's preconditioning. Options of sampling: steps, sampler (a name in _samplers.py), rho (of the walk;
    math.inf: uniform in log sigma), churn (S_churn, heun only), guidance (scale; 1 is none) and interval (t, t), where guidance
    acts. `log_prob` methods: "bound", "ode" (one Hutchinson probe a draw) and "ode-exact" (a backward pass a dimension).
    """

    card = Card(
        title="Elucidating the Design Space of Diffusion-Based Generative Models",
        authors="Karras, Tero and Aittala, Miika and Aila, Timo and Laine, Samuli",
        year=2022, arxiv="2206.00364", venue="Advances in Neural Information Processing Systems",
        summary="a denoiser learnt at all noise levels, walked from noise to data",
    )  # fmt: skip
    Config = Config
    presets = PRESETS
    config: Config

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError("EDM adds Gaussian noise, which categorical images do not take; use an autoregressive model.")
        if len(config.mults) != len(config.attention):
            raise ValueError(f"mults and attention need one entry a resolution; got {config.mults} and {config.attention}.")
        if config.fold < 1:
            raise ValueError(f"fold is a whole number of pixels, at least 1, not {config.fold}.")
        if spec.sizes and config.patch:
            able = ", ".join(name for name, p in PRESETS.items() if not p.config.get("patch"))
            raise ValueError(f"EDM over patches takes pictures of one size, and these are of several; choose a preset of {able}.")
        pictured = any(isinstance(column, Image) for column in schema.columns.values())  # they would be left behind
        c, self.moves = config, config.augment > 0 and len(spec.size) > 0 and not pictured
        self.network = Network(
            spec, schema, c.base, c.mults, c.blocks, c.attention, c.width, c.dropout, c.num_heads, c.patch, self.moves,
            c.fold,
        )  # fmt: skip

    @property
    def levels(self) -> NoiseLevels:
        """The noise this model is trained on."""
        data = float(self.network.sigma_data)
        step = self.spec.step if self.spec.levels else data / 50
        return NoiseLevels(self.config.sigma_min * step, self.config.sigma_max * data, data, self.config.rho)

    def prepare(self, data: Tensor, given: Given) -> None:
        self.network.prepare(data)

    @property
    def multiple(self) -> int:
        return int(self.config.fold * 2 ** (len(self.config.mults) - 1))

    def prepare_sizes(self, data: Sequence[Tensor]) -> None:
        pixels = torch.cat([x.transpose(0, 1).flatten(1) for x in data], 1)  # (C, pixels): a place in a picture is nothing here
        self.network.prepare(pixels.T.view(-1, len(pixels), *[1] * len(self.spec.size)))

    # -- learning ----------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        return [Objective("denoiser", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        x, levels, moved = batch.x, self.levels, None
        if self.moves:
            x, moved = move(x, self.spec, batch.keys, self.config.augment)
        sigma, by_information = self._draw_levels(batch, levels)
        sigma = sigma.to(x.device, torch.float32)
        eps = batch.keys.normal("noise", *x.shape[1:], device=x.device)
        x_t = x + sigma.view(-1, *[1] * (x.dim() - 1)) * eps
        d, logits = self.network(x_t, sigma, batch.given, self.compute_dtype, batch.keys, moved)
        error = levels.weight(sigma) * ((x - d) ** 2).flatten(1).mean(1)
        loss = {"squared_error": error.mean()}
        if logits is not None and self.config.vote_weight:
            loss["votes"] = self.config.vote_weight * F.cross_entropy(logits.movedim(2, 1), self.spec.to_levels(x))
        if self.config.log_normal >= 1:  # no draw that the bound could be estimated from
            return Terms(loss)
        share = by_information.to(x.device).float()
        both = batch.whole(torch.stack([error.detach() * share, share], 1).mean(0)) * batch.size
        bits = both[0] / both[1].clamp_min(1) * levels.information_range / math.log(2)
        return Terms(loss, {"diffusion_bits": bits})

    def _draw_levels(self, batch: Batch, levels: NoiseLevels) -> tuple[Tensor, Tensor]:
        """A noise level an image, stratified over the whole batch, and which of them are uniform in information."""
        share, mean, std = self.config.log_normal, self.config.log_normal_mean, self.config.log_normal_std
        u = (batch.first.uniform("level").double() + torch.tensor(batch.rows) / batch.size) % 1
        normal = levels.log_normal((u / max(share, 1e-9)).clamp(1e-6, 1 - 1e-6), mean, std)
        uniform = levels.by_information(((u - share) / max(1 - share, 1e-9)).clamp(0, 1))
        return torch.where(u < share, normal, uniform), u >= share

    # -- denoising and sampling --------------------------------------------------------------------------------------------------

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), self.levels.sigma(t)

    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        """E[x | x_t] (B, C, *size) for x_t = x + sigma(t) eps; t (B,) in [0, 1], where t = 0 is sigma_min."""
        return self._denoise(x_t, self.levels.sigma(t), given or self.schema.missing(len(x_t)).to(x_t.device))

    def _denoise(self, x_t: Tensor, sigma: Tensor, given: Given) -> Tensor:
        d: Tensor = self.network(x_t, sigma, given, self.compute_dtype)[0]
        return d

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, steps: int | None = None, sampler: str | None = None,
        rho: float | None = None, churn: float | None = None, guidance: float = 1.0, interval: tuple[float, float] = (0.0, 1.0),
    ) -> Iterator[Step]:  # fmt: skip
        levels, steps = self.levels, self.config.steps if steps is None else steps
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise ValueError(f"steps must be a whole number, at least 1, not {steps!r}.")
        walk_of = levels if rho is None else replace(levels, rho=rho)
        if not walk_of.rho > 0:
            raise ValueError(f"rho must be above 0, and math.inf for noise levels uniform in log sigma, not {rho!r}.")

        def noise(i: int) -> Tensor:
            return seeds.normal("churn", self.spec.channels, *size, step=i, device=self.device)

        std = (self.network.variance + levels.sigma_max**2).sqrt()
        x = self.network.mean + std * seeds.normal("x", self.spec.channels, *size, device=self.device)
        denoise = self._guided(given, guidance, interval)
        churn = self.config.churn if churn is None else churn
        walk = solve(sampler or self.config.sampler, denoise, x, walk_of.steps(steps), churn, noise)
        for i, x in enumerate(walk, 1):
            shown = x if self.spec.kind == "continuous" else x.clamp(-1, 1)
            yield Step(i, steps, self.spec.snap(x) if i == steps else shown)

    def _guided(self, given: Given, scale: float, interval: tuple[float, float]) -> Denoise:
        """The denoiser at one noise level for all, leaning on the condition within the interval of t."""
        low, high = self.levels.sigma(torch.tensor(interval, dtype=torch.float64)).tolist()
        hidden = self.schema.hide(given, torch.ones(len(given), dtype=torch.bool))
        return guided(
            lambda x, sigma, given: self._denoise(x, x.new_full((len(x),), sigma), given), given, hidden, scale, low, high
        )

    # -- likelihood --------------------------------------------------------------------------------------------------------------

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        if method in (None, "bound"):
            return LogProb(self._bound(x, given, samples, seeds), "bound")
        if method in ("ode", "ode-exact"):
            return LogProb(self._flow(x, given, samples, seeds, method == "ode-exact"), "estimate")
        raise ValueError(f"EDM has no likelihood {method!r}; choose bound, ode or ode-exact.")

    def _bound(self, x: Tensor, given: Given, samples: int, seeds: Seeds) -> Tensor:
        levels, mean = self.levels, self.network.mean
        kl = likelihood.prior_kl(x, levels.sigma_max, mean, self.network.variance + levels.sigma_max**2)
        loss = likelihood.diffusion_term(
            lambda z, sigma: self._denoise(z, sigma, given), x, levels, self.config.strata * samples, seeds
        )
        last = torch.stack([self._decoder(x, self._spoiled(x, seeds, i), given) for i in range(samples)]).mean(0)
        return last - loss - kl

    def _flow(self, x: Tensor, given: Given, samples: int, seeds: Seeds, exact: bool) -> Tensor:
        levels, found = self.levels, []

        def denoise(z: Tensor, sigma: float) -> Tensor:
            return self._denoise(z, z.new_full((len(z),), sigma), given)

        for i in range(samples):
            probe = seeds.integers("ode/probe", 2, *x.shape[1:], step=i, device=x.device).float() * 2 - 1
            divergence = likelihood.exact_divergence(denoise) if exact else likelihood.hutchinson(denoise, probe)
            z = self._spoiled(x, seeds, i) if self.spec.levels else x
            var = self.network.variance + levels.sigma_max**2
            log_p = likelihood.flow_log_prob(divergence, z, levels, self.config.flow_steps, self.network.mean, var)
            if self.spec.levels:
                log_p = log_p + self._decoder(x, z, given) - likelihood.normal_log_prob(z, x, levels.sigma_min**2)
            found.append(log_p)
        return torch.stack(found).logsumexp(0) - math.log(samples)

    def _spoiled(self, x: Tensor, seeds: Seeds, draw: int) -> Tensor:
        """z ~ q(z | x) at sigma_min."""
        return x + self.levels.sigma_min * seeds.normal("decoder/noise", *x.shape[1:], step=draw, device=x.device)

    def _decoder(self, x: Tensor, z: Tensor, given: Given) -> Tensor:
        """log P(x | z) (B,) at sigma_min: the votes, the nearest levels, or a density."""
        sigma = self.levels.sigma_min
        if self.spec.levels is None:
            return likelihood.normal_log_prob(x, z, sigma**2)
        if self.network.votes:
            logits = self.network(z, z.new_full((len(z),), sigma), given, self.compute_dtype)[1].log_softmax(2)
            return likelihood.per_image(logits.gather(2, self.spec.to_levels(x)[:, :, None]))
        grid = self.spec.from_levels(torch.arange(self.spec.levels, device=x.device))
        total = torch.logsumexp(-((z[..., None] - grid) ** 2) / (2 * sigma**2), -1)
        return likelihood.per_image(-((z - x) ** 2) / (2 * sigma**2) - total)
