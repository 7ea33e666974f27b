"""The autoencoder of latent diffusion: a picture as a small map of continuous latents, held near a normal distribution.

    q(z | x) = N(m(x), s(x)^2),       p(z | given) = N(b(given), 1),       p(x | z) = N(D(z), v)

v is one learned number, and b is zero where nothing is given. Trained is a mean over pixels of

    L = -log p(x | z) + w KL(q(z | x) | p(z | given)),                                                    section 3.1 of the paper

whose w is a millionth in the paper: the latents are then a compressed picture whose distribution another model learns, and
drawing them from p(z) is a poor sample. With w = 1 it is the evidence lower bound, which is what is scored, whatever w was:

    log p(x | given) >= E_q log p(x | z) - KL(q(z | x) | p(z | given)).                                                       (1)

The paper's perceptual and adversarial terms need networks learned elsewhere and are left out. `scaling` multiplies the latents
that others see, so that their deviation is about one; the prior is that of scaled latents.

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021) arXiv:2112.10752
    Auto-Encoding Variational Bayes (Kingma, Welling, 2013) arXiv:1312.6114
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Encoder, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.vae._kl import Down, Up
from nonesuch.models.vae._normal import Normal
from nonesuch.nn.conv import Linear, zero
from nonesuch.nn.embed import GivenEmbedding

_LOG_VARIANCE = (-30.0, 20.0)  # the posterior's stays here


@dataclass(frozen=True)
class Config:
    """Sizes of the two networks, and what the latents are held to."""

    base: int = 64  # channels at full resolution
    mults: tuple[int, ...] = (1, 2, 4)  # channels of each resolution, in multiples of base; each is half the one before
    blocks: int = 2  # residual blocks a resolution downwards; upwards one more
    latents: int = 4  # channels of the latent map
    groups: int = 32  # of the normalisation; divides every number of channels
    eps: float = 1e-6  # of the normalisation
    attention: bool = True  # in the middle
    kl_weight: float = 1e-6  # w
    scaling: float = 1.0  # of the latents that others see


PRESETS = {
    "tiny":  Preset({"base": 16, "mults": (1, 2), "blocks": 1, "groups": 4, "kl_weight": 0.01}, {"batch": 64, "lr": 3e-3}),
    "small": Preset({"base": 64, "mults": (1, 2), "groups": 16, "kl_weight": 1e-3}, {"batch": 64, "lr": 1e-3}, up_to_px=16),
    "32px":  Preset({}, {"batch": 64, "lr": 5e-4}, up_to_px=32),
    "64px":  Preset({"base": 64, "mults": (1, 2, 4, 4)}, {"batch": 32, "lr": 3e-4}, up_to_px=64),
}  # fmt: skip


class AutoencoderKL(Model, Likelihood, Encoder):
    """Latents with the layout of a picture. Flat ordinal and continuous pictures whose sides the resolutions can halve.

    Raises ValueError for others, and for conditions on images, which the prior cannot be given.
    """

    card = Card(
        "High-Resolution Image Synthesis with Latent Diffusion Models",
        "Rombach, Robin and Blattmann, Andreas and Lorenz, Dominik and Esser, Patrick and Ommer, Bjorn",
        2021, "2112.10752", summary="the autoencoder of latent diffusion: a picture as a small continuous map",
    )  # fmt: skip
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        c, cell = config, 2 ** (len(config.mults) - 1)
        if spec.axes != "hw" or spec.kind == "categorical":
            raise ValueError(
                f"this autoencoder is for flat images of numbers, not {spec.kind} ones of axes {spec.axes!r}: fit vae/vdvae."
            )
        if any(s % cell for s in spec.size):
            raise ValueError(
                f"{len(c.mults)} resolutions need sides that are multiples of {cell}, not {spec.size}; "
                "resize or pad the images, or take fewer mults."
            )
        widths = [c.base * m for m in c.mults]
        if any(w % c.groups for w in widths) or min(c.blocks, c.latents) < 1 or c.scaling <= 0:
            raise ValueError(
                f"base * mults must be multiples of groups, blocks and latents at least 1, scaling above 0; got {c}."
            )
        shape = (widths, c.blocks, c.groups, c.eps, c.attention)
        self.encoder = Down(spec.channels, 2 * c.latents, *shape)
        self.decoder = Up(c.latents, spec.channels, widths, c.blocks + 1, *shape[2:])
        self.after, self.before = Linear(2 * c.latents, 2 * c.latents), Linear(c.latents, c.latents)  # of each position
        self.pixels = Normal(spec, squashed=False)
        self.embed, self.told = GivenEmbedding(schema, 64), zero(Linear(64, c.latents, bias=False))
        size = tuple(s // cell for s in spec.size)
        self.latent_spec = ImageSpec(c.latents, size, "hw", "continuous", None)

    def objectives(self) -> list[Objective]:
        return [Objective("model", list(self.parameters()), self._terms)]

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _terms(self, batch: Batch) -> Terms:
        mean, log_variance = self._posterior(batch.x)
        z = mean + (log_variance / 2).exp() * batch.keys.normal("posterior", *self.latent_spec.shape, device=batch.x.device)
        d = self.spec.numel
        reconstruction = self.pixels.loss(self._features(z), batch.x)
        kl = self._kl(mean, log_variance, self._centre(batch.given, len(z))).mean() / d
        return Terms(
            {"reconstruction": reconstruction, "kl": self.config.kl_weight * kl},
            {"bits_per_dim": (reconstruction + kl).detach() / math.log(2), "kl_bits_per_dim": kl.detach() / math.log(2)},
        )

    @staticmethod
    def _kl(mean: Tensor, log_variance: Tensor, centre: Tensor) -> Tensor:
        """KL(N(mean, variance) | N(centre, 1)) (B,) in nats."""
        return 0.5 * ((mean - centre).square() + log_variance.exp() - 1 - log_variance).flatten(1).sum(1)

    # -- sampling, latents and the bound ---------------------------------------------------------------------------------------

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, temperature: float = 1.0, pixels: str = "draw", **options: Any
    ) -> Iterator[Step]:
        """temperature: deviation of the latents' noise; pixels: "draw" from p(x | z), the model itself, or its "mean"."""
        if options or pixels not in ("draw", "mean") or temperature < 0:
            asked = {"temperature": temperature, "pixels": pixels, **options}
            raise ValueError(f'sampling takes temperature >= 0 and pixels "draw" or "mean", not {asked}.')
        centre = self._centre(given, len(seeds))
        features = self._features(centre + temperature * (self._prior(given, seeds) - centre))
        yield Step(1, 1, self.pixels.draw(features, seeds) if pixels == "draw" else self.spec.snap(self.pixels.mean(features)))

    def _prior(self, given: Given, seeds: Seeds) -> Tensor:
        return self._centre(given, len(seeds)) + seeds.normal("z", *self.latent_spec.shape, device=self.device)

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        """E[x | z], which is not on the grid."""
        return self.pixels.mean(self._features(z.float()))

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        mean, log_variance = self._posterior(x)
        return mean + (log_variance / 2).exp() * seeds.normal("posterior", *self.latent_spec.shape, device=x.device)

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        """Eq. 1, its expectation by the mean of `samples` draws."""
        if method not in (None, "elbo"):
            raise ValueError(f'the bound of this autoencoder is "elbo", not {method!r}.')
        mean, log_variance = self._posterior(x)
        draws = []
        for i in range(samples):
            z = mean + (log_variance / 2).exp() * seeds.normal("posterior", *self.latent_spec.shape, step=i, device=x.device)
            draws.append(self.pixels.log_prob(self._features(z), x))
        kl = self._kl(mean.double(), log_variance.double(), self._centre(given, len(x)).double())
        return LogProb(torch.stack(draws).mean(0) - kl, "bound")

    # -- the networks ------------------------------------------------------------------------------------------------------------

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the scaled latents, each (B, *latent_spec.shape) in float32."""
        h = self.encoder(x, self.compute_dtype)
        mean, log_variance = self.after(h.movedim(1, -1)).movedim(-1, 1).chunk(2, 1)
        scaling = self.config.scaling
        return mean * scaling, log_variance.clamp(*_LOG_VARIANCE) + 2 * math.log(scaling)

    def _features(self, z: Tensor) -> Tensor:
        """What p(x | z) is made of, of scaled latents, in float32."""
        h = self.before((z / self.config.scaling).movedim(1, -1)).movedim(-1, 1)
        out: Tensor = self.decoder(h, self.compute_dtype)
        return out

    def _centre(self, given: Given, n: int) -> Tensor:
        """b(given), (B, latents, 1, 1)."""
        out: Tensor = self.told(self.embed(given, n, self.device))
        return out[:, :, None, None]
