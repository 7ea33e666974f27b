"""PixelCNN++: two streams of shifted convolutions, gated, as a U with skips; exact likelihoods, sampling that recomputes nothing.

    p(x | y) = prod_i p(x_i | x_1, ..., x_{i-1}, y)                                                        (chain rule)

One stream reads the rows before a pixel's, the other also the pixels before it in its row; every convolution is shifted so that
no layer looks ahead, halving and doubling included (`_shifted`, `_streams`). All factors come of one pass, each normalised over
the levels, so the sum of p over all pictures is one. A pixel of many levels is a discretized mixture of logistics whose means
lean on the channels before; of few levels, a categorical distribution a channel, read from the pixel's features and the channels
before. Sampling keeps the activations: a row of the first stream at once, the second pixel by pixel, so that drawing a picture
is the work of one pass.

Weights are plain, not weight-normalised with a data-dependent start as in the paper.

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017) arXiv:1701.05517
    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016) arXiv:1606.05328 (section 2.3, conditioning)
    Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017) arXiv:1704.06001
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Completer, Guidable, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._heads import Categorical, Logistics, invert
from nonesuch.models.autoregressive._raster import ONE_HOT_LEVELS, Raster, Sight
from nonesuch.models.autoregressive._shifted import concat_elu
from nonesuch.models.autoregressive._streams import Streams, Walk
from nonesuch.nn.conv import Linear, zero
from nonesuch.nn.embed import GivenEmbedding

_MOST_TOKENS = 1 << 16


@dataclass(frozen=True)
class Config:
    """width: features a pixel of each stream; blocks: pairs of gated blocks at a resolution; resolutions: how many, each half the
    one before; mixtures: logistics a pixel of many levels; dropout: probability, of each unit at all pixels of a picture."""

    width: int = 64
    blocks: int = 2
    resolutions: int = 3
    mixtures: int = 10
    dropout: float = 0.2


PRESETS = {
    "tiny": Preset({"width": 16, "blocks": 1, "resolutions": 2, "dropout": 0.0}, {"batch": 64, "lr": 3e-3}),
    "small": Preset({"width": 48, "blocks": 1, "resolutions": 2, "dropout": 0.2}, {"batch": 64, "lr": 2e-3}, 16),
    "medium": Preset({"width": 64, "blocks": 2, "resolutions": 3}, {"batch": 64, "lr": 1e-3}, 32),
    "large": Preset({"width": 160, "blocks": 5, "resolutions": 3, "dropout": 0.5}, {"batch": 32, "lr": 1e-3}, 64),
}


class Leave(nn.Module):
    """Features of a pixel -> a head's inputs for each of its tokens, those of a channel reading the channels before it."""

    def __init__(self, width: int, size: int, channels: int, sight: int) -> None:
        super().__init__()
        self.channels, self.sight = channels, sight
        if channels > 1:
            self.enter = Linear(2 * width, width)
            self.earlier = nn.ModuleList(Linear(c * sight, width) for c in range(1, channels))
        self.leave = nn.ModuleList(zero(Linear(2 * width, size)) for _ in range(channels))

    def forward(self, e: Tensor, seen: Tensor) -> Tensor:
        """e (..., 2 width), seen (..., channels * sight) -> (..., channels, size) float32."""
        return torch.stack([self.channel(c, e, seen[..., : c * self.sight]) for c in range(self.channels)], -2)

    def channel(self, c: int, e: Tensor, seen: Tensor) -> Tensor:
        """The inputs (..., size) for channel c, given what is seen of the channels before it (..., c * sight)."""
        e = e.float()  # logits in float32: bf16 would round one of 10 to 0.04
        if self.channels > 1:
            h = self.enter(e)
            e = concat_elu(h + self.earlier[c - 1](seen.float()) if c else h)
        out: Tensor = self.leave[c](e)
        return out


class PixelCNNpp(Model, Likelihood, Completer, Guidable):
    """The chain rule over pixels by shifted convolutions. Raises ValueError for continuous pictures, vectors and volumes."""

    card = Card(
        "PixelCNN++",
        "Salimans, Tim and Karpathy, Andrej and Chen, Xi and Kingma, Diederik P.",
        2017,
        "1701.05517",
        summary="Pixels one after another by shifted convolutions: exact likelihoods, completion; a sample costs one pass.",
    )
    Config, presets = Config, PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.levels is None:
            raise ValueError("PixelCNN++ predicts levels; a continuous picture needs a flow or a diffusion model.")
        if len(spec.size) not in (1, 2):
            raise ValueError(f"PixelCNN++ reads pictures and lines, not axes {spec.axes!r}; the image transformer reads those.")
        many = spec.kind == "ordinal" and spec.levels > ONE_HOT_LEVELS
        self.raster = Raster(spec, joint=many)
        if self.raster.length > _MOST_TOKENS:
            raise ValueError(
                f"{spec.shape} is {self.raster.length} positions to draw one by one; at most {_MOST_TOKENS} are sane."
            )
        self.rows, self.columns = (1, *spec.size)[-2:]
        self.tokens = 1 if many else spec.channels  # a pixel
        self.head = Logistics(spec, config.mixtures) if many else Categorical(spec)
        self.sight = Sight(spec, self.raster.values)
        self.embed = GivenEmbedding(schema, config.width)
        seen = self.sight.size * self.tokens
        self.streams = Streams(seen, config.width, config.blocks, config.resolutions, bool(schema), config.dropout)
        self.leave = Leave(config.width, self.head.size, self.tokens, self.sight.size)

    # -- the network -------------------------------------------------------------------------------------------------------------

    def _condition(self, given: Given) -> Tensor:
        return self.embed(given, len(given), self.device)

    def _see(self, k: Tensor) -> Tensor:
        """Tokens (B, T, values) -> what the network sees of each pixel (B, pixels, channels), in its dtype."""
        seen: Tensor = self.sight(k).to(self.compute_dtype)
        return seen.unflatten(1, (-1, self.tokens)).flatten(2)

    def outputs(self, k: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        """The head's inputs (B, T, size) float32 for tokens k (B, T, values), all at once; those at i use k_<i only."""
        seen = self._see(k)
        e = self.streams(seen.unflatten(1, (self.rows, self.columns)), c, keys)
        return self.leave(e.flatten(1, 2), seen).flatten(1, 2)

    # -- learning and scoring ----------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        return [Objective("model", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        k = self.raster.tokens(batch.x)
        nats = -self.head.log_prob(self.outputs(k, self._condition(batch.given), batch.keys), k).sum(1)
        return Terms({"nats_per_dim": nats.mean() / self.spec.numel})

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        if method not in (None, "exact"):
            raise ValueError(f"the likelihood of an autoregressive model is exact; there is no method {method!r}.")
        k = self.raster.tokens(x)
        return LogProb(self.head.log_prob(self.outputs(k, self._condition(given)), k).sum(1), "exact")

    # -- drawing -----------------------------------------------------------------------------------------------------------------

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        k = torch.zeros(len(seeds), self.raster.length, self.raster.values, dtype=torch.int64, device=self.device)
        yield from self._fill(k, torch.zeros_like(k, dtype=torch.bool), given, seeds, **options)

    def _complete(self, x: Tensor, known: Tensor, given: Given, seeds: Seeds) -> Tensor:
        """Draw each unknown value given all earlier ones, known or drawn.

        That is a draw from p(unknown | known) when the known values come first in reading order. Known values further on are
        kept but do not speak for what is drawn before them.
        """
        for step in self._fill(self.raster.tokens(x), self.raster.flatten(known), given, seeds):
            last = step.x
        return torch.where(known, x, last)

    def _fill(self, k: Tensor, known: Tensor, given: Given, seeds: Seeds, guidance: float = 1.0) -> Iterator[Step]:
        """Go through the pixels, drawing what is not known of k (B, T, values); a step is a row of pixels."""
        c = self._condition(given)
        steered = guidance != 1.0 and bool(self.schema)
        if steered:  # the second half of the batch goes without the condition
            c = torch.cat([c, self._condition(self.schema.missing(len(given)).to(self.device))])
        u = seeds.uniform("value", self.raster.length, self.raster.values, self.head.draws, device=k.device)
        walk = Walk(self.streams, c, (self.rows, self.columns), self.compute_dtype)
        k, pixel = torch.where(known, k, 0), 0
        for row in range(self.rows):
            walk.row()
            for column in range(self.columns):
                part = slice(pixel * self.tokens, (pixel + 1) * self.tokens)
                seen = self._draw(k[:, part], known[:, part], u[:, part], walk.pixel(column), guidance if steered else None)
                walk.tell(column, seen)
                pixel += 1
            yield Step(row + 1, self.rows, self.raster.picture(k))

    def _draw(self, k: Tensor, known: Tensor, u: Tensor, e: Tensor, guidance: float | None) -> Tensor:
        """Draw the tokens k (B, tokens, values) of one pixel in place, from its features e; returns what is seen of them."""
        for t in range(self.tokens):
            # `_see` of a token that is not drawn yet is cut away
            seen = self._see(k)[:, 0, : t * self.sight.size].repeat(len(e) // len(k), 1) if t else e[:, :0]
            out = self.leave.channel(t, e, seen)
            for j in range(self.raster.values):
                if guidance is None:
                    drawn = self.head.draw(out, k[:, t], j, u[:, t, j])
                else:
                    with_, without = (self.head.logits(o, k[:, t], j) for o in out.chunk(2))
                    drawn = invert(torch.lerp(without, with_, guidance), u[:, t, j, 0])
                k[:, t, j] = torch.where(known[:, t, j], k[:, t, j], drawn)
        return self._see(k)[:, 0].repeat(len(e) // len(k), 1)
