"""VDVAE: a variational autoencoder whose latents form a ladder, from one vector for the picture to maps as fine as its pixels.

With standard normal noise e = (e_1, ..., e_L) and a decoder that is a deterministic function of it, p(x) = E_{e ~ N(0, 1)}
p(x | e), and for any q(e | x) = prod_l q(e_l | e_<l, x)

    log p(x) >= E_q log p(x | e) - sum_l E_q KL(q(e_l | e_<l, x) || N(0, 1))                       "elbo"            (1)
    log p(x) >= E_q log 1/k sum_{j=1..k} p(x | e^j) p(e^j) / q(e^j | x)                            "iwae"            (2)

by Jensen's inequality; (2) is (1) at k = 1, never falls with k, and tends to log p(x). (1) is trained, the KL's weight rising to
one over the first part of the run, and `free_bits` of it costing nothing, lest the latents fall asleep. x is the picture on its
grid of levels, so both bound a probability, not a density.

A sample is e ~ N(0, 1), then x ~ p(x | e), pixel by pixel: that is the model whose likelihood is bounded, and what `sample` does
unless asked for `pixels="mean"`, which is E[x | e] and smoother than the data are. `decode` gives E[x | e], differentiable in e.
The latents of `encode` and `prior` are the noise e of all layers in one vector, coarsest first.

Against overfitting: dropout, and training pictures that are moved, with the model told how (distribution augmentation). What is
sampled and scored is the unmoved picture, so no likelihood is bent.

References:
    Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images (Child, 2020) arXiv:2011.10650
    Ladder Variational Autoencoders (Sonderby et al., 2016) arXiv:1602.02282
    Importance Weighted Autoencoders (Burda, Grosse, Salakhutdinov, 2015) arXiv:1509.00519, Eq. 8
    Improving Variational Inference with Inverse Autoregressive Flow (Kingma et al., 2016) arXiv:1606.04934 (free bits)
    Distribution Augmentation for Generative Modeling (Jun et al., 2020) ICML
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Encoder, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.vae._ladder import Bottom, Descent, TopDown, pyramid
from nonesuch.models.vae._pixels import CATEGORICAL_LEVELS, Categorical, LogisticMixture
from nonesuch.nn.conv import Linear, depth_to_space, space_to_depth
from nonesuch.nn.embed import GivenEmbedding
from nonesuch.nn.moves import move, told

_DRAWS = 32  # draws of the importance-weighted bound that are held at a time


@dataclass(frozen=True)
class Config:
    """A size of the model."""

    width: int = 64  # channels of every feature map
    latents: int = 8  # channels of a stochastic layer
    patch: int = 1  # so many pixels along each axis are one position of the finest feature map
    blocks: tuple[int, ...] = (1, 1, 1, 1)  # stochastic layers at each resolution, finest first; each is half the one before
    up_blocks: int = 1  # residual blocks a resolution on the way up
    dropout: float = 0.1  # probability that a value is dropped within a residual block, in training
    kl_warmup: float = 0.2  # share of the run over which the KL's weight rises to one
    free_bits: float = 0.0  # a KL below so many bits a dimension, in the mean over a batch, costs nothing
    augment: float = 0.0  # share of training pictures that are moved, and the model told
    likelihood: Literal["auto", "categorical", "logistics"] = "auto"  # auto: categorical for few levels
    components: int = 5  # logistics in the mixture


# At 8 x 8 pixels one stochastic layer of 16 latents for the whole picture does it: a second one carried 0.001 bits/dim.
_SMALL = {"width": 128, "latents": 16, "blocks": (2, 2, 2, 1, 1), "augment": 0.3}
PRESETS = {
    "tiny":   Preset({"patch": 8, "width": 48, "latents": 4, "blocks": (2,), "dropout": 0.0, "kl_warmup": 0.5}, {"lr": 3e-3}),
    "digits": Preset({"patch": 8, "width": 256, "latents": 16, "blocks": (1,), "dropout": 0.35, "augment": 0.5, "free_bits": 0.06,
                      "likelihood": "logistics"}, {"batch": 256, "lr": 2e-3, "weight_decay": 0.3}, up_to_px=16,
                     reached="digits given label, test: CAS 0.99, 1.86 bits/dim (100 draws) at 640k images, 90 s of one core"),
    "small":  Preset({**_SMALL, "patch": 2}, {"batch": 64, "lr": 1e-3}, up_to_px=32, reached="not tuned"),
    "medium": Preset({**_SMALL, "patch": 4, "width": 192}, {"batch": 64, "lr": 7e-4}, up_to_px=64, reached="not tuned"),
}  # fmt: skip


class VDVAE(Model, Likelihood, Encoder):
    """A hierarchical variational autoencoder with a discretized likelihood. Ordinal and categorical pictures of any axes."""

    card = Card(
        "Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images", "Child, Rewon", 2020, "2011.10650",
        summary="a ladder of stochastic layers from coarse to fine, trained on the evidence lower bound",
    )  # fmt: skip
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.levels is None:
            raise ValueError("this model needs pictures on a grid of levels; quantize the values, or fit a flow or a diffusion.")
        if not config.blocks or min(config.blocks) < 0 or config.blocks[-1] < 1 or config.latents < 1:
            raise ValueError("blocks must name a stochastic layer at the coarsest resolution, and latents must be at least 1.")
        self.grid = spec.size or (1,)  # a vector is a row of one pixel
        self.pixels = self._likelihood()
        width, cell = config.width, config.patch ** len(self.grid)
        sizes = pyramid([math.ceil(s / config.patch) for s in self.grid], len(config.blocks))
        self.embed, self.mix = GivenEmbedding(schema, width), Linear(width, width)
        if config.augment > 0 and spec.size:
            self.told = Linear(told(len(self.grid)), width, bias=False)
        self.bottom = Bottom(self._seen_channels() * cell, width, config.up_blocks, sizes, config.dropout)
        self.top = TopDown(self.pixels.width * cell, width, config.latents, config.blocks, sizes, config.dropout)
        self.latent_spec = ImageSpec(self.top.total, (), "", "continuous", None)

    def objectives(self) -> list[Objective]:
        return [Objective("model", list(self.parameters()), self._terms)]

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _terms(self, batch: Batch) -> Terms:
        x, how = self._moved(batch.x, batch.keys)
        noise = batch.keys.normal("posterior", self.top.total, device=x.device)
        c = self._condition(batch.given, len(x), how)
        found = self._descend(noise, c, self._ascend(x, c, batch.keys), batch.keys)
        d = self.spec.numel
        reconstruction = -self.pixels.log_prob(found.features, self._on_grid(x)).mean() / d
        kl = found.kl().sum(1).mean() / d
        weight = min(1.0, batch.progress / self.config.kl_warmup) if self.config.kl_warmup > 0 else 1.0
        bits = {"reconstruction_bits_per_dim": reconstruction / math.log(2), "kl_bits_per_dim": kl / math.log(2)}
        priced = batch.whole(kl).clamp_min(self.config.free_bits * math.log(2))
        return Terms({"reconstruction": reconstruction, "kl": weight * priced}, {**bits, "kl_weight": kl.new_tensor(weight)})

    def _moved(self, x: Tensor, keys: Seeds) -> tuple[Tensor, Tensor | None]:
        """Some pictures moved, and the numbers that say how."""
        if self.config.augment == 0 or not self.spec.size:  # a vector has no places to move to
            return x, None
        return move(x, self.spec, keys, self.config.augment)

    # -- sampling, codes and the bound ------------------------------------------------------------------------------------------

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, temperature: float = 1.0, pixels: str = "draw", **options: Any
    ) -> Iterator[Step]:
        """temperature: deviation of the latents' noise; pixels: "draw" from p(x | z), the model itself, or its "mean"."""
        if options or pixels not in ("draw", "mean") or temperature < 0:
            asked = {"temperature": temperature, "pixels": pixels, **options}
            raise ValueError(f'sampling takes temperature >= 0 and pixels "draw" or "mean", not {asked}.')
        found = self._descend(temperature * self._prior(given, seeds), self._condition(given, len(seeds)))
        x = self.pixels.draw(found.features, seeds) if pixels == "draw" else self.spec.snap(self.pixels.mean(found.features))
        yield Step(1, 1, x.view(len(seeds), self.spec.channels, *size))

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        """E[x | z], which is not on the grid."""
        found = self._descend(z.float(), self._condition(given, len(z)))
        return self.pixels.mean(found.features).view(len(z), *self.spec.shape)

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        c = self._condition(given, len(x))
        noise = seeds.normal("posterior", self.top.total, device=x.device)
        return self._descend(noise, c, self._ascend(x, c)).e

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        """The "elbo": the mean of Eq. 1 over `samples` draws; "iwae", the default: Eq. 2 with k = samples."""
        if method not in (None, "elbo", "iwae"):
            raise ValueError(f'the bounds are "elbo" and "iwae", not {method!r}.')
        c = self._condition(given, len(x))
        seen, grid, found = self._ascend(x, c), self._on_grid(x), []
        for first in range(0, samples, _DRAWS):
            n = min(_DRAWS, samples - first)
            noise = torch.stack([seeds.normal("posterior", self.top.total, step=first + j, device=x.device) for j in range(n)], 1)
            down = self._descend(noise.flatten(0, 1), c.repeat_interleave(n, 0), [h.repeat_interleave(n, 0) for h in seen])
            log_p = self.pixels.log_prob(down.features, grid.repeat_interleave(n, 0))
            found.append((log_p + (-down.kl().sum(1) if method == "elbo" else down.log_ratio())).view(len(x), n))
        bounds = torch.cat(found, 1).double()
        nats = bounds.mean(1) if method == "elbo" else bounds.logsumexp(1) - math.log(samples)
        return LogProb(nats, "bound")

    # -- the networks ------------------------------------------------------------------------------------------------------------

    def _likelihood(self) -> Categorical | LogisticMixture:
        kind, levels = self.config.likelihood, self.spec.levels or 0
        if self.spec.kind == "categorical" and kind == "logistics":
            raise ValueError("a mixture of logistics needs ordered levels; choose likelihood='categorical'.")
        if kind == "categorical" or (kind == "auto" and (levels <= CATEGORICAL_LEVELS or self.spec.kind == "categorical")):
            return Categorical(self.spec)
        return LogisticMixture(self.spec, self.config.components)

    def _seen_channels(self) -> int:
        """Channels of what the way up reads: values, or one indicator a category."""
        return self.spec.channels * (self.spec.levels or 1 if self.spec.kind == "categorical" else 1)

    def _on_grid(self, x: Tensor) -> Tensor:
        return x.view(len(x), self.spec.channels, *self.grid)

    def _condition(self, given: Given, n: int, how: Tensor | None = None) -> Tensor:
        """(n, width) float32 of the condition and of how far the pictures were moved."""
        c = self.embed(given, n, self.device)
        if how is not None:
            c = c + self.told(how)
        mixed: Tensor = c + F.silu(self.mix(c))
        return mixed

    def _ascend(self, x: Tensor, c: Tensor, keys: Seeds | None = None) -> list[Tensor]:
        """Activations of pictures, finest first."""
        x = self._on_grid(x)
        if self.spec.kind == "categorical":
            x = F.one_hot(x, self.spec.levels or 1).movedim(-1, 2).flatten(1, 2)
        patch = self.config.patch
        x = F.pad(x.to(self.compute_dtype), [p for s in reversed(self.grid) for p in (0, -s % patch)])
        seen: list[Tensor] = self.bottom(space_to_depth(x, patch), c, keys)
        return seen

    def _descend(self, noise: Tensor, c: Tensor, seen: list[Tensor] | None = None, keys: Seeds | None = None) -> Descent:
        found: Descent = self.top(noise, c, self.compute_dtype, seen, keys)
        features = depth_to_space(found.features, self.config.patch)
        return replace(found, features=features[(..., *[slice(s) for s in self.grid])])
