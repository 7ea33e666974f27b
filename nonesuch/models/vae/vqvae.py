"""VQ-VAE: an autoencoder whose latents are codes, a map of numbers below K, with a prior learned over the codes.

The encoder makes a map of vectors z_e(x), each is replaced by the nearest of K vectors e_k of a codebook (`_codebook`), and the
decoder makes p(x | z_q) of the result. The gradient of z_q is handed to z_e as if nothing had been replaced, and

    L = -log p(x | z_q) + |sg[z_e] - e|^2 + beta |z_e - sg[e]|^2,                                         Eq. 3 of the paper

each term a mean over its numbers here; sg stops gradients. The second term is left out where the codebook is a running mean of
what is encoded. A prior p(k | given) over the codes is trained beside it, on codes that it cannot move.

The model is p(x | given) = sum_k p(k | given) p(x | e_k), over all maps of codes k. Any one term of that sum is below it, and the
encoder's is the largest it can find: for a posterior that is certain of k(x), the evidence lower bound is

    log p(x | given) >= log p(x | e_k(x)) + log p(k(x) | given),                                                            (1)

an honest bound where p(x | z_q) is a probability on the grid of levels, as here. Latents are the codes, categories that any model
of tokens may learn. Only the prior sees what is given.

References:
    Neural Discrete Representation Learning (van den Oord, Vinyals, Kavukcuoglu, 2017) arXiv:1711.00937
    Generating Diverse High-Fidelity Images with VQ-VAE-2 (Razavi, van den Oord, Vinyals, 2019) arXiv:1906.00446
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
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
from nonesuch.models.vae._codebook import Codebook, distance, perplexity, straight_through
from nonesuch.models.vae._ladder import pyramid
from nonesuch.models.vae._normal import Normal
from nonesuch.models.vae._pixels import CATEGORICAL_LEVELS, Categorical, LogisticMixture
from nonesuch.models.vae._prior import Causal, Uniform
from nonesuch.models.vae._resnet import Down, Up

_PREPARE = 1024  # pictures whose encodings the codebook starts at, at most


@dataclass(frozen=True)
class Config:
    """Sizes of the autoencoder, its codebook and its prior."""

    widths: tuple[int, ...] = (64, 128)  # channels after each halving
    residual: int = 2  # residual blocks of the encoder, and of the decoder
    residual_width: int = 32  # channels inside them
    active: bool = True  # ReLU after each halving
    early: bool = False  # whether the decoder's residual blocks come after its first doubling
    codes: int = 512  # K
    code_width: int = 64  # numbers of a code's vector
    codebook: Literal["averages", "gradient"] = "averages"  # how it is learned: running k-means, or by descent
    decay: float = 0.99  # of the running k-means, a step
    restart: float = 0.1  # a code used less than this share of evenly is put elsewhere; 0: never. Of running k-means only
    commitment: float = 0.25  # beta
    prior: Literal["causal", "uniform"] = "causal"
    prior_width: int = 128
    prior_depth: int = 4
    prior_heads: int = 4
    prior_dropout: float = 0.1
    likelihood: Literal["auto", "categorical", "logistics", "normal"] = "auto"  # auto: categorical for few levels
    components: int = 5  # logistics in the mixture


# fmt: off
PRESETS = {
    "tiny":  Preset({"widths": (32,), "residual": 1, "residual_width": 16, "codes": 24, "code_width": 16, "decay": 0.9,
                     "prior_width": 32, "prior_depth": 1, "prior_heads": 2, "prior_dropout": 0.0}, {"batch": 64, "lr": 3e-3}),
    "small": Preset({"widths": (128,), "codes": 64, "code_width": 32, "prior_depth": 2, "prior_dropout": 0.2},
                    {"batch": 64, "lr": 2e-3, "weight_decay": 0.1}, up_to_px=16,
                    reached="not tuned; digits given label, test: 2.42 bits/dim after 11k images"),
    "32px":  Preset({"widths": (64, 128)}, {"batch": 64, "lr": 1e-3}, up_to_px=32, reached="not tuned"),
    # The network that pythae has for MNIST, trained by its loss; no prior but the uniform one, as that trains none beside it.
    "mnist": Preset({"widths": (64, 128, 128), "active": False, "early": True, "code_width": 16, "codebook": "gradient",
                     "prior": "uniform", "likelihood": "normal"}, {"batch": 64, "lr": 1e-3}),
}
# fmt: on


class VQVAE(Model, Likelihood, Encoder):
    """An autoencoder of codes, and a prior over them. Ordinal and categorical pictures of up to three axes.

    Raises ValueError for continuous pictures, and for conditions on images, which the prior cannot be given.
    """

    card = Card(
        "Neural Discrete Representation Learning",
        "van den Oord, Aaron and Vinyals, Oriol and Kavukcuoglu, Koray",
        2017, "1711.00937", summary="an autoencoder of discrete codes, and a prior over the codes",
    )  # fmt: skip
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.levels is None:
            raise ValueError("this model needs pictures on a grid of levels; quantize the values, or fit a flow or a diffusion.")
        if not config.widths or config.codes < 2:
            raise ValueError("widths must name the channels after at least one halving, and codes be at least 2.")
        self.size = spec.size or (1,)  # a vector is a row of one pixel
        sizes = pyramid(self.size, len(config.widths) + 1)
        self.grid, self.places = sizes[-1], math.prod(sizes[-1])
        self.pixels = self._likelihood()
        shape = (config.widths, sizes, config.residual, config.residual_width)
        early = config.early and len(config.widths) > 1
        self.encoder = Down(self._seen_channels(), config.code_width, *shape, config.active)
        self.decoder = Up(config.code_width, self.pixels.width, *shape, early)
        decay = config.decay if config.codebook == "averages" else None
        self.codebook = Codebook(config.codes, config.code_width, decay, config.restart)
        self.prior_over_codes: Causal | Uniform = Uniform(config.codes, self.places)
        if config.prior == "causal":
            sizes_of_prior = (config.prior_width, config.prior_depth, config.prior_heads, config.prior_dropout)
            self.prior_over_codes = Causal(config.codes, self.places, schema, *sizes_of_prior)
        self.latent_spec = ImageSpec(1, self.grid, spec.axes or "l", "categorical", config.codes, dtype="int64")
        self._tallied: tuple[Tensor, Tensor] | None = None  # of the batch that the codebook is to follow

    def prepare(self, data: Tensor, given: Given) -> None:
        """Put the codes where pictures are encoded."""
        with torch.no_grad():
            self.codebook.start(self._z(data[:_PREPARE].to(self.device)))

    def objectives(self) -> list[Objective]:
        later = list(self.prior_over_codes.parameters())
        prior = {id(p) for p in later}
        first = [p for p in self.parameters() if id(p) not in prior]
        follow = self._follow if self.codebook.decay is not None else None
        players = [Objective("autoencoder", first, self._autoencode, after_step=follow)]
        return [*players, Objective("prior", later, self._learn_prior)] if later else players

    # -- training ----------------------------------------------------------------------------------------------------------------

    def _autoencode(self, batch: Batch) -> Terms:
        z = self._z(batch.x)
        k = self.codebook.nearest(z.detach())
        q = F.embedding(k, self.codebook.vectors)
        features = self._features(straight_through(z, q))
        x = batch.x.view(len(batch.x), -1, *self.size)
        if isinstance(self.pixels, Normal):
            reconstruction = self.pixels.loss(features, x)
        else:
            reconstruction = -self.pixels.log_prob(features, x).mean() / self.spec.numel
        loss = {"reconstruction": reconstruction}
        if self.codebook.decay is None:
            used = torch.bincount(k, minlength=self.config.codes).to(z.dtype)
            loss["codebook"] = distance(q, z.detach())  # Eq. 3, its second term
        else:
            tally = self.codebook.tally(z.detach(), k)
            self._tallied, used = (tally, z.detach()), tally[:, 0]
        loss["commitment"] = self.config.commitment * distance(z, q.detach())  # and its third
        watch = {"perplexity": perplexity(batch.whole(used / len(k))), "bits_per_dim": reconstruction.detach() / math.log(2)}
        return Terms(loss, watch)

    def _follow(self, batch: Batch) -> None:
        """The codebook's own step, by what the encoder made of the batch before its step."""
        assert self._tallied is not None
        self.codebook.follow(*self._tallied, batch)
        self._tallied = None

    def _learn_prior(self, batch: Batch) -> Terms:
        with torch.no_grad():
            k = self._codes(batch.x)
        nats = -self.prior_over_codes.log_prob(k, batch.given, self.compute_dtype, batch.keys).mean() / self.spec.numel
        return Terms({"prior": nats}, {"bits_per_code": nats.detach() * self.spec.numel / self.places / math.log(2)})

    # -- sampling, codes and the bound ------------------------------------------------------------------------------------------

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, temperature: float = 1.0, pixels: str = "draw", **options: Any
    ) -> Iterator[Step]:
        """temperature: of the prior's logits; pixels: "draw" from p(x | z), the model itself, or its "mean"."""
        if options or pixels not in ("draw", "mean") or temperature < 0:
            asked = {"temperature": temperature, "pixels": pixels, **options}
            raise ValueError(f'sampling takes temperature >= 0 and pixels "draw" or "mean", not {asked}.')
        k = self.prior_over_codes.draw(given, seeds, self.compute_dtype, self.device, temperature)
        features = self._features(self._vectors(k))
        x = self.pixels.draw(features, seeds) if pixels == "draw" else self.spec.snap(self.pixels.mean(features))
        yield Step(1, 1, x.view(len(seeds), self.spec.channels, *size))

    def _prior(self, given: Given, seeds: Seeds) -> Tensor:
        k = self.prior_over_codes.draw(given, seeds, self.compute_dtype, self.device)
        return k.view(len(seeds), *self.latent_spec.shape)

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        with torch.no_grad():  # codes have no gradient
            return self._codes(x).view(len(x), *self.latent_spec.shape)

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        """E[x | z], which is not on the grid."""
        return self.pixels.mean(self._features(self._vectors(z))).view(len(z), *self.spec.shape)

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        """Eq. 1, which has nothing to draw."""
        if method not in (None, "elbo"):
            raise ValueError(f'the bound of a VQ-VAE is "elbo", not {method!r}.')
        k = self._codes(x)
        log_p = self.pixels.log_prob(self._features(self._vectors(k)), x.view(len(x), -1, *self.size)).double()
        return LogProb(log_p + self.prior_over_codes.log_prob(k, given, self.compute_dtype).double(), "bound")

    # -- the networks ------------------------------------------------------------------------------------------------------------

    def _likelihood(self) -> Categorical | LogisticMixture | Normal:
        kind, levels = self.config.likelihood, self.spec.levels or 0
        if self.spec.kind == "categorical" and kind in ("logistics", "normal"):
            raise ValueError(f"likelihood={kind!r} needs ordered levels; choose likelihood='categorical'.")
        if kind == "normal":
            return Normal(self.spec)
        if kind == "categorical" or (kind == "auto" and (levels <= CATEGORICAL_LEVELS or self.spec.kind == "categorical")):
            return Categorical(self.spec)
        return LogisticMixture(self.spec, self.config.components)

    def _seen_channels(self) -> int:
        """Channels of what the encoder reads: values, or one indicator a category."""
        return self.spec.channels * (self.spec.levels or 1 if self.spec.kind == "categorical" else 1)

    def _z(self, x: Tensor) -> Tensor:
        """Pictures -> what the encoder makes of them, (B * places, code_width) in float32, in reading order."""
        x = x.view(len(x), self.spec.channels, *self.size)
        if self.spec.kind == "categorical":
            x = F.one_hot(x, self.spec.levels or 1).movedim(-1, 2).flatten(1, 2)
        else:
            x = x * 0.5 + 0.5  # on [0, 1], so that what surrounds a picture is its lowest level
        z: Tensor = self.encoder(x.to(self.compute_dtype))
        return z.movedim(1, -1).reshape(-1, self.config.code_width).float()

    def _codes(self, x: Tensor) -> Tensor:
        """Pictures -> codes (B, places)."""
        return self.codebook.nearest(self._z(x)).view(len(x), self.places)

    def _vectors(self, k: Tensor) -> Tensor:
        """Codes (B, ...) -> their vectors (B * places, code_width)."""
        return F.embedding(k.flatten(), self.codebook.vectors)

    def _features(self, q: Tensor) -> Tensor:
        """Vectors (B * places, code_width) -> float32 features (B, pixels.width, *size) of p(x | z)."""
        z = q.view(-1, *self.grid, self.config.code_width).movedim(-1, 1)
        features: Tensor = self.decoder(z.to(self.compute_dtype))
        return features.float()
