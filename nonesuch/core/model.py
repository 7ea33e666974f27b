"""The contract: what a model of images is, and what else it may be able to do.

A `Model` is P(x | given): it lists its `objectives` and it samples. Everything else is a capability, and a capability is a
type: ask `isinstance(model, Likelihood)`. The public verbs here check what the caller says, once, for all families; the verb
with an underscore beside each is what a family writes, and may trust its arguments.

    sample, sample_steps -> _sample_steps      log_prob -> _log_prob      complete -> _complete
    encode -> _encode       decode -> _decode                             denoise, energy: differentiable, as they are

Every class is abstract or final: a variation is a preset, a wrapper that is itself a model (`guided`), or another file.
"""

from __future__ import annotations

import math
from abc import ABC, ABCMeta, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds, initialise

LikelihoodKind = Literal["exact", "bound", "estimate", "density"]
_CHUNK_VALUES = 1 << 20  # values of x that `sample` and `log_prob` hold at a time


class Step(NamedTuple):
    """One step of sampling: its number of `total`, and x (n, C, *size), a preview until the last."""

    step: int
    total: int
    x: Tensor


@dataclass(frozen=True)
class LogProb:
    """nats (B,), and what kind of number it is: "exact", a lower "bound", an "estimate"; "density" when there are no levels."""

    nats: Tensor
    kind: LikelihoodKind


class _Construction(ABCMeta):
    """Construction moves no global generator: weights are drawn from keyed seeds, those of the parts left as they are."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        with torch.random.fork_rng(devices=[]):
            model = super().__call__(*args, **kwargs)
        parts = [m for m in kwargs.values() if isinstance(m, nn.Module)]
        initialise(model, 0, {layer for part in parts for layer in part.modules()})
        return model


class Model(nn.Module, ABC, metaclass=_Construction):
    """P(x | given). Built as cls(config, spec, schema, **parts), always.

    card: where it comes from; Config: a frozen dataclass; PRESETS in the module beside it. `transient` names buffers that only
    resuming needs (a replay chain): they are kept in the resume state and not exported. `parts` are other models it is made of.
    """

    card: ClassVar[Card]
    Config: ClassVar[type]
    images_seen: Tensor
    presets: ClassVar[dict[str, Preset]]
    transient: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: Any, spec: ImageSpec, schema: Schema, **parts: nn.Module) -> None:
        super().__init__()
        self.config, self.spec, self.schema = config, spec, schema
        self.parts = nn.ModuleDict(parts)
        self.compute_dtype = torch.float32
        self.register_buffer("images_seen", torch.zeros((), dtype=torch.int64))

    # -- what a family writes

    @abstractmethod
    def objectives(self) -> list[Objective]:
        """The players, in the order they step. Terms are float32 scalars; every parameter has at most one owner."""

    @abstractmethod
    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        """Draw len(seeds) images of `size`, all randomness from seeds; the last step's x is on [-1, 1] and the levels' grid."""

    def prepare(self, data: Tensor, given: Given) -> None:
        """Once before training, data-dependent statistics from images x (N, C, *size); nothing by default.

        They are all training images, or as many of them, from all over, as a gigabyte holds.
        """
        return

    # -- what a caller uses

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    @torch.no_grad()
    def sample_steps(
        self, n: int, given: Any = None, *, seeds: Seeds | int = 0, size: tuple[int, ...] | None = None, **options: Any
    ) -> Iterator[Step]:
        """Draw n images in view: yields a Step at a time, for progress and previews; close the iterator to stop.

        given: None, {column: value or n values}, or "as trained". seeds: an int s for images (s, 0) to (s, n - 1), or Seeds.
        Raises ValueError for an unfitted model, n < 1, unknown conditions, or a size the model cannot draw.
        """
        seeds, condition = self._asked(n, given, seeds)
        yield from self._sample_steps(condition, seeds, self._size(size), **options)

    @torch.no_grad()
    def sample(
        self, n: int, given: Any = None, *, seeds: Seeds | int = 0, size: tuple[int, ...] | None = None, **options: Any
    ) -> Tensor:
        """Draw n images (n, C, *size) in [-1, 1], as the last of `sample_steps` has them; large n in bounded memory."""
        seeds, condition = self._asked(n, given, seeds)
        size = self._size(size)
        chunk = max(16, _CHUNK_VALUES // max(1, self.spec.of_size(size).numel * 8))
        pieces = []
        for i in range(0, n, chunk):
            part = slice(i, min(n, i + chunk))
            for step in self._sample_steps(condition[part], seeds[part], size, **options):
                last = step.x
            pieces.append(last)
        return torch.cat(pieces)

    def require_fitted(self) -> None:
        """Raise ValueError if the model has seen no image."""
        if int(self.images_seen) == 0:
            raise ValueError(
                f"this {type(self).__name__} has not been fitted; call nonesuch.fit(model, data) or load a checkpoint."
            )

    def _asked(self, n: int, given: Any, seeds: Seeds | int) -> tuple[Seeds, Given]:
        self.require_fitted()
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise ValueError(f"n must be a whole number of images, at least 1, not {n!r}.")
        drawn = Seeds.of(seeds, n)
        return drawn, self.schema.given(n, given, drawn).to(self.device)

    def _size(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        if self.spec.sizes and size is not None and isinstance(self, AnySize):
            return self.require_size(tuple(size))
        if size is not None and tuple(size) != self.spec.size:
            raise ValueError(f"this model draws images of {self.spec.size}, not {tuple(size)}; fit one at that size.")
        return self.spec.size

    def _read(self, x: Tensor, given: Any) -> tuple[Tensor, Given]:
        """A caller's images and their conditions, checked."""
        self.require_fitted()
        x = self.spec.check(x).to(self.device)
        self._size(tuple(x.shape[2:]))
        return x, self.schema.given(len(x), given).to(self.device)


# -- capabilities: types, asked for with isinstance


class Likelihood(ABC):
    """Can say how probable an image is."""

    def log_prob(
        self, x: Tensor, given: Any = None, *, method: str | None = None, samples: int = 1, seeds: Seeds | int = 0
    ) -> LogProb:
        """log P(x | given) of images x (B, C, *size) on their grid of levels, in nats (B,), with its kind.

        method: one of the family's (None: its default); samples: draws an image for bounds and estimates; seeds: their keys.
        With `levels=None` it is the log of a density. Raises ValueError for a wrong shape, NaN or unknown method.
        """
        assert isinstance(self, Model)
        x, condition = self._read(x, given)
        keys = Seeds.of(seeds, len(x))
        if samples < 1:
            raise ValueError(f"samples must be at least 1, not {samples}.")
        chunk = max(8, _CHUNK_VALUES // max(1, math.prod(x.shape[1:]) * 8 * samples))
        pieces: list[Tensor] = []
        kind: LikelihoodKind = "exact"
        with torch.no_grad():
            for i in range(0, len(x), chunk):
                part = slice(i, min(len(x), i + chunk))
                found = self._log_prob(x[part], condition[part], method=method, samples=samples, seeds=keys[part])
                pieces, kind = [*pieces, found.nats], found.kind
        return LogProb(torch.cat(pieces) if pieces else x.new_zeros(0), kind if self.spec.levels else "density")

    @abstractmethod
    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        """The same for checked arguments, computed in float32 or float64."""


class Decoder(ABC):
    """Images from latents z: a generator, a decoder, the inverse of a flow."""

    latent_spec: ImageSpec

    def prior(self, n: int, given: Any = None, *, seeds: Seeds | int = 0) -> Tensor:
        """n latents (n, *latent_spec.shape) as the model draws them."""
        assert isinstance(self, Model)
        drawn, condition = self._asked(n, given, seeds)
        with torch.no_grad():
            return self._prior(condition, drawn)

    def decode(self, z: Tensor, given: Any = None) -> Tensor:
        """Images (B, C, *size) in [-1, 1] of latents z (B, *latent_spec.shape); differentiable in z that are not categories."""
        assert isinstance(self, Model)
        self.require_fitted()
        z = self.latent_spec.check(z, "z").to(self.device)
        return self._decode(z, self.schema.given(len(z), given).to(self.device))

    def _prior(self, given: Given, seeds: Seeds) -> Tensor:
        return seeds.normal("prior", *self.latent_spec.shape, device=given_device(given, self))

    @abstractmethod
    def _decode(self, z: Tensor, given: Given) -> Tensor: ...


class Encoder(Decoder):
    """Latents from images, too."""

    def encode(self, x: Tensor, given: Any = None, *, seeds: Seeds | int = 0) -> Tensor:
        """Latents (B, *latent_spec.shape) of images x (B, C, *size); seeds key a stochastic encoder's draw."""
        assert isinstance(self, Model)
        x, condition = self._read(x, given)
        return self._encode(x, condition, Seeds.of(seeds, len(x)))

    @abstractmethod
    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor: ...


class Denoiser(ABC):
    """E[x | x_t], from which every diffusion sampler and posterior guidance is made."""

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        """E[x | x_t] (B, C, *size) for x_t = alpha_t x + sigma_t eps and t (B,) in [0, 1], 0 = data; differentiable in x_t."""

    @abstractmethod
    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha_t and sigma_t at t in [0, 1], of t's shape."""


class Completer(ABC):
    """Can fill in what is not known of an image, from the model's own conditional distribution."""

    def complete(self, x: Tensor, known: Tensor, given: Any = None, *, seeds: Seeds | int = 0) -> Tensor:
        """Images (B, C, *size) equal to x where `known` (same shape or (B, 1, *size), bool) and drawn where it is not."""
        assert isinstance(self, Model)
        x, condition = self._read(torch.where(known.expand_as(x), x, torch.zeros_like(x)), given)
        with torch.no_grad():
            return self._complete(x, known.expand_as(x).to(x.device), condition, Seeds.of(seeds, len(x)))

    @abstractmethod
    def _complete(self, x: Tensor, known: Tensor, given: Given, seeds: Seeds) -> Tensor: ...


class Energy(ABC):
    """-log p up to a constant that nobody knows: it ranks images and has no bits per dimension."""

    @abstractmethod
    def energy(self, x: Tensor, given: Given | None = None) -> Tensor:
        """E(x | given) (B,) in float32; differentiable in x."""


class AnySize(ABC):
    """Made for pictures of several sizes (`spec.sizes`), takes and draws every size whose sides are multiples of `multiple`.

    Nothing in it belongs to a place in the picture. Made for pictures of one size it is a model like any other; a configuration
    that can be made for one size only refuses a spec of several.
    """

    @property
    @abstractmethod
    def multiple(self) -> int:
        """What divides every side of a picture it takes."""

    @abstractmethod
    def prepare_sizes(self, data: Sequence[Tensor]) -> None:
        """`Model.prepare` for pictures of several sizes: images x (N, C, *size) of each."""

    def require_size(self, size: tuple[int, ...]) -> tuple[int, ...]:
        """The size, if it is one this model takes; ValueError if not."""
        assert isinstance(self, Model)
        if len(size) != len(self.spec.size) or any(s < 1 or s % self.multiple for s in size):
            said = " x ".join(map(str, size))
            raise ValueError(f"a size of this model has {len(self.spec.size)} sides, multiples of {self.multiple}, not {said}.")
        return size


class Guidable(ABC):  # noqa: B024 (a capability is a type, even when its verb is another's option)
    """Samplers that can be steered: `_sample_steps` takes `guidance`, the scale w of uncond + w (cond - uncond)."""


def given_device(given: Given, model: Any) -> torch.device:
    """Where a batch's draws belong."""
    return next((v.device for v in given.columns.values()), model.device)


class Guided(Model):
    """A model whose samples lean harder on their condition; made by `guided`."""

    def __init__(self, config: dict[str, float], spec: ImageSpec, schema: Schema, *, model: Model) -> None:
        super().__init__(config, spec, schema, model=model)
        self.images_seen = model.images_seen

    def objectives(self) -> list[Objective]:
        raise ValueError("a guided model is for sampling; fit the model inside it.")

    def _size(self, size: tuple[int, ...] | None) -> tuple[int, ...]:
        inner = self.parts["model"]
        assert isinstance(inner, Model)
        return inner._size(size)

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        inner = self.parts["model"]
        assert isinstance(inner, Model)
        yield from inner._sample_steps(given, seeds, size, guidance=self.config["scale"], **options)


class GuidedDenoiser(Guided, Denoiser):
    """A guided model that is still a denoiser, for samplers and restoration that compose on one."""

    def denoise(self, x_t: Tensor, t: Tensor, given: Given | None = None) -> Tensor:
        inner, scale = self.parts["model"], self.config["scale"]
        assert isinstance(inner, Denoiser)
        conditional = inner.denoise(x_t, t, given)
        return conditional if scale == 1 else torch.lerp(inner.denoise(x_t, t, None), conditional, scale)

    def schedule(self, t: Tensor) -> tuple[Tensor, Tensor]:
        inner = self.parts["model"]
        assert isinstance(inner, Denoiser)
        return inner.schedule(t)


def guided(model: Model, scale: float = 2.0) -> Model:
    """The model with classifier-free guidance: uncond + scale (cond - uncond); scale 1 is no guidance.

    Raises ValueError for a model that is unconditional, or has neither a denoiser nor next-token logits to guide.

    References: Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598, Eq. 6 with scale = 1 + w.
    """
    if not isinstance(model, Guidable):
        raise ValueError(f"{type(model).__name__} cannot be guided: that needs a denoiser or next-token logits.")
    if not model.schema:
        raise ValueError("an unconditional model cannot be guided; fit it with given=...")
    kind = GuidedDenoiser if isinstance(model, Denoiser) else Guided
    return kind({"scale": float(scale)}, model.spec, model.schema, model=model)
