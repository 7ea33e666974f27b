"""A chain whose network is convolutional: features of all pixels in one pass, or walked pixel by pixel, and a head upon them.

The network's feature at pixel (i, j) is a function of the pixels before it. Where a token is one channel of a pixel, the inputs
of a channel's head also read the channels before it, so that a pixel costs one walk whatever its channels.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from nonesuch.core.card import Card
from nonesuch.core.given import Given, Schema
from nonesuch.core.model import Step
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._chain import Chain
from nonesuch.models.autoregressive._heads import Categorical, Logistics, invert
from nonesuch.models.autoregressive._raster import ONE_HOT_LEVELS, Raster, Sight
from nonesuch.nn.conv import Linear, zero
from nonesuch.nn.embed import GivenEmbedding

_MOST_TOKENS = 1 << 16


class Leave(nn.Module):
    """Features of a pixel -> a head's inputs for each of its tokens, those of a channel reading the channels before it.

    hidden: units of the layer between, after whose `activation` the inputs are linear; 0: none, for pixels of one token only.
    """

    def __init__(
        self, features: int, hidden: int, size: int, channels: int, sight: int, activation: Callable[[Tensor], Tensor]
    ) -> None:
        super().__init__()
        assert hidden or channels == 1
        self.channels, self.sight, self.activation = channels, sight, activation
        self.enter = Linear(features, hidden) if hidden else None
        self.earlier = nn.ModuleList(Linear(c * sight, hidden) for c in range(1, channels))
        read = activation(torch.zeros(hidden)).numel() if hidden else features
        self.leave = nn.ModuleList(zero(Linear(read, size)) for _ in range(channels))

    def forward(self, e: Tensor, seen: Tensor) -> Tensor:
        """e (..., features), seen (..., channels * sight) -> (..., channels, size) float32."""
        return torch.stack([self.channel(c, e, seen[..., : c * self.sight]) for c in range(self.channels)], -2)

    def channel(self, c: int, e: Tensor, seen: Tensor) -> Tensor:
        """The inputs (..., size) for channel c, given what is seen of the channels before it (..., c * sight)."""
        e = e.float()  # logits in float32: bf16 would round one of 10 to 0.04
        if self.enter is not None:
            h = self.enter(e)
            e = self.activation(h + self.earlier[c - 1](seen.float()) if c else h)
        out: Tensor = self.leave[c](e)
        return out


class Walks(Protocol):
    """Goes through a picture: `row` begins the next row, `pixel` gives the features at a column, `tell` says what it became."""

    def row(self) -> None: ...

    def pixel(self, j: int) -> Tensor: ...

    def tell(self, j: int, x: Tensor) -> None: ...


class Pixelwise(Chain):
    """A chain over the pixels of pictures and lines. Raises ValueError for continuous pictures, vectors and volumes."""

    card: Card
    schema: Schema
    compute_dtype: torch.dtype
    leave: Leave

    def _lay_out(self, width: int, mixtures: int) -> int:
        """The tokens, the head and the condition's vector of `width`; returns how many numbers are seen of a pixel."""
        spec, title = self.spec, self.card.title
        if spec.levels is None:
            raise ValueError(f"{title} predicts levels; a continuous picture needs a flow or a diffusion model.")
        if len(spec.size) not in (1, 2):
            raise ValueError(f"{title} reads pictures and lines, not axes {spec.axes!r}; the image transformer reads those.")
        many = spec.kind == "ordinal" and spec.levels > ONE_HOT_LEVELS
        self.raster = Raster(spec, joint=many)
        if self.raster.length > _MOST_TOKENS:
            raise ValueError(
                f"{spec.shape} is {self.raster.length} positions to draw one by one; at most {_MOST_TOKENS} are sane."
            )
        self.rows, self.columns = (1, *spec.size)[-2:]
        self.tokens = 1 if many else spec.channels  # a pixel
        self.head = Logistics(spec, mixtures) if many else Categorical(spec)
        self.sight = Sight(spec, self.raster.values)
        self.embed = GivenEmbedding(self.schema, width)
        return self.sight.size * self.tokens

    @abstractmethod
    def features(self, seen: Tensor, c: Tensor, keys: Seeds | None) -> Tensor:
        """What `leave` reads (B, H, W, features) of what is seen of each pixel (B, H, W, channels); at (i, j) of those before."""

    @abstractmethod
    def _walk(self, c: Tensor) -> Walks:
        """The same, pixel by pixel, in the network's dtype."""

    def _condition(self, given: Given) -> Tensor:
        return self.embed(given, len(given), self.device)

    def _see(self, k: Tensor) -> Tensor:
        """Tokens (B, T, values) -> what the network sees of each pixel (B, pixels, channels), in its dtype."""
        seen: Tensor = self.sight(k).to(self.compute_dtype)
        return seen.unflatten(1, (-1, self.tokens)).flatten(2)

    def outputs(self, k: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        seen = self._see(k)
        e = self.features(seen.unflatten(1, (self.rows, self.columns)), c, keys)
        return self.leave(e.flatten(1, 2), seen).flatten(1, 2)

    def _fill(self, k: Tensor, known: Tensor, given: Given, seeds: Seeds, guidance: float = 1.0) -> Iterator[Step]:
        c = self._condition(given)
        steered = guidance != 1.0 and bool(self.schema)
        if steered:  # the second half of the batch goes without the condition
            c = torch.cat([c, self._condition(self.schema.missing(len(given)).to(self.device))])
        u = seeds.uniform("value", self.raster.length, self.raster.values, self.head.draws, device=k.device)
        walk = self._walk(c)
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
