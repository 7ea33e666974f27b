"""A transformer over pixels in reading order: exact likelihoods, any picture or sequence of tokens, completion.

    p(x | y) = prod_i p(x_i | x_1, ..., x_{i-1}, y)                                                        (chain rule)

Position i sees its causal neighbours side by side (pixels before it in reading order, a few rows up and a few columns to
either side) and, by causal attention, what every earlier position made of its own; so its output is a function of
x_1, ..., x_{i-1} alone and all factors are computed in one pass. Each factor is normalised over the levels, hence so is the
product: the sum of p over all pictures is one. Sampling goes through the positions in turn, keeping keys and values, so that a
new position costs one position; the number drawn for a position is a function of the picture's seed alone.

Small data is stretched by showing the model moved pictures and telling it so; likelihoods and samples are those of "not moved".

References:
    Image Transformer (Parmar et al., 2018) arXiv:1802.05751
    Generative Pretraining from Pixels (Chen et al., 2020), ICML
    Distribution Augmentation for Generative Modeling (Jun et al., 2020), ICML
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598 (here on the logits of the next value)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model, Step
from nonesuch.core.objective import Batch, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._chain import Chain
from nonesuch.models.autoregressive._heads import Categorical, Logistics, invert
from nonesuch.models.autoregressive._raster import ONE_HOT_LEVELS, Raster, Sight, gather
from nonesuch.nn.conv import Dropout, Linear, zero
from nonesuch.nn.decoding import Decoding, Product
from nonesuch.nn.embed import GivenEmbedding
from nonesuch.nn.moves import move, told
from nonesuch.nn.norm import LayerNorm, layer_norm
from nonesuch.nn.transformer import Block

_MOST_TOKENS = 1 << 14
_KEPT_BYTES = 1 << 30  # of keys and values at a time


@dataclass(frozen=True)
class Config:
    """width: of the residual stream; depth: blocks; num_heads: of attention; ratio: width of a block's inner layer over `width`;
    reach: how far the causal neighbours go, in pixels; mixtures: logistics a pixel of many levels; dropout: probability, of each
    unit at all positions of a picture; augment: share of the training pictures that are moved."""

    width: int = 96
    depth: int = 2
    num_heads: int = 4
    ratio: int = 3
    reach: int = 2
    mixtures: int = 10
    dropout: float = 0.1
    augment: float = 0.25


_TINY = Preset(
    {"width": 32, "depth": 1, "num_heads": 2, "ratio": 2, "dropout": 0.0, "augment": 0.0},
    {"batch": 64, "lr": 3e-3},
)
_SMALL = Preset(
    {"width": 96, "depth": 2, "num_heads": 4, "dropout": 0.2, "augment": 0.3},
    {"batch": 64, "lr": 4e-3, "weight_decay": 0.3},
    16,
    "digits given label, test: CAS 0.976 (5 seeds) after 44k images; 1.748 bits/dim (3 seeds) after 220k",
)
_LARGE = {"num_heads": 8, "ratio": 4, "reach": 3, "augment": 0.25}
PRESETS = {
    "tiny": _TINY,
    "small": _SMALL,
    "medium": Preset({"width": 256, "depth": 8, **_LARGE}, {"batch": 64, "lr": 6e-4, "weight_decay": 0.05}, 32),
    "large": Preset({"width": 384, "depth": 12, **_LARGE}, {"batch": 32, "lr": 4e-4, "weight_decay": 0.05}, 64),
}


class ImageTransformer(Chain, Model):
    """The chain rule over pixels by a causal transformer. Raises ValueError for continuous pictures and very long sequences."""

    card = Card(
        "Image Transformer",
        "Parmar, Niki and Vaswani, Ashish and Uszkoreit, Jakob and Kaiser, Lukasz and Shazeer, Noam and Ku, Alexander "
        "and Tran, Dustin",
        2018,
        "1802.05751",
        summary="Pixels one after another by causal attention: exact likelihoods, completion; slow to sample when large.",
    )
    Config, presets = Config, PRESETS
    neighbours: Tensor

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.levels is None:
            raise ValueError("the image transformer predicts levels; a continuous picture needs a flow or a diffusion model.")
        many = spec.kind == "ordinal" and spec.levels > ONE_HOT_LEVELS
        self.raster = Raster(spec, joint=many)
        if self.raster.length > _MOST_TOKENS:
            raise ValueError(
                f"{spec.shape} is {self.raster.length} positions to draw one by one; at most {_MOST_TOKENS} are sane."
            )
        self.head = Logistics(spec, config.mixtures) if many else Categorical(spec)
        self.sight = Sight(spec, self.raster.values)
        self.register_buffer("neighbours", self.raster.neighbours(config.reach), persistent=False)
        width, length = config.width, self.raster.length
        self.enter = Linear(self.neighbours.shape[1] * self.sight.size, width)
        self.position = nn.Embedding(length, width)
        self.embed = GivenEmbedding(schema, width)
        self.moves = spec.kind == "ordinal" and len(spec.size) > 0 and config.augment > 0
        self.told = Linear(told(len(spec.size)), width, bias=False) if self.moves else None
        self.blocks = nn.ModuleList(
            Block(width, config.num_heads, True, config.dropout, f"block{i}", config.ratio, F.silu, True, layer_norm)
            for i in range(config.depth)
        )
        self.drop = Dropout(config.dropout, "enter", shared=True)
        self.norm, self.leave = LayerNorm(width), zero(Linear(width, self.head.size))

    # -- the network -------------------------------------------------------------------------------------------------------------

    def _condition(self, given: Given, how: Tensor | None = None) -> Tensor:
        c = self.embed(given, len(given), self.device)
        return c if how is None or self.told is None else c + self.told(how)

    def outputs(self, k: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        """The head's inputs (B, T, size) float32 for tokens k (B, T, values), all positions at once; those at i use k_<i only."""
        near = gather(self.sight(k).to(self.compute_dtype), self.neighbours)
        h = self.drop(self._enter(near, c, self.position.weight), keys)
        for block in self.blocks:
            h = block(h, c, keys)
        return self.leave(self.norm(h).float())  # logits in float32: bf16 would round one of 10 to 0.04

    def _enter(self, near: Tensor, c: Tensor, position: Tensor) -> Tensor:
        dtype = self.compute_dtype
        return self.enter(near.to(dtype)) + (position + c[:, None]).to(dtype)

    # -- learning ----------------------------------------------------------------------------------------------------------------

    def _terms(self, batch: Batch) -> Terms:
        x, how = batch.x, None
        if self.moves:
            x, how = move(x, self.spec, batch.keys, self.config.augment)
        k = self.raster.tokens(x)
        nats = -self.head.log_prob(self.outputs(k, self._condition(batch.given, how), batch.keys), k).sum(1)
        return Terms({"nats_per_dim": nats.mean() / self.spec.numel})

    # -- drawing -----------------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _fill(self, k: Tensor, known: Tensor, given: Given, seeds: Seeds, guidance: float = 1.0) -> Iterator[Step]:
        """Go through the positions, drawing what is not known of k (B, T, values); a step is a row of pixels."""
        raster, k = self.raster, torch.where(known, k, 0)
        steered = guidance != 1.0 and bool(self.schema)
        u = seeds.uniform("value", raster.length, raster.values, self.head.draws, device=k.device)
        kept = 2 * len(self.blocks) * raster.length * self.config.width * self.compute_dtype.itemsize * (1 + steered)
        at_once, rows = max(1, _KEPT_BYTES // kept), raster.length // raster.row
        starts = range(0, len(k), at_once)
        for n, start in enumerate(starts):
            part = slice(start, min(start + at_once, len(k)))
            drawing, mine = Drawing(self, given[part], guidance if steered else None), (k[part], known[part], u[part])
            for row in range(rows):
                for i in range(row * raster.row, (row + 1) * raster.row):
                    drawing.draw(*mine, i)
                yield Step(n * rows + row + 1, len(starts) * rows, raster.picture(k))


class Drawing:
    """Pictures being drawn position by position; `guidance` is the scale, or None for a plain draw."""

    def __init__(self, model: ImageTransformer, given: Given, guidance: float | None = None) -> None:
        self.model, self.guidance, dtype = model, guidance, model.compute_dtype
        self.c = model._condition(given)
        if guidance is not None:  # the second half of the batch goes without the condition
            self.c = torch.cat([self.c, model._condition(model.schema.missing(len(given)).to(model.device))])
        self.enter = Product(model.enter, dtype, len(self.c))
        self.decoding = Decoding(model.blocks, self.c, model.raster.length, dtype)
        levels = torch.arange(model.spec.levels or 0, device=model.device)
        self.looks = model.sight(levels[None, :, None])[0].to(dtype)  # what is seen of each level
        self.seen = torch.zeros(len(given), model.raster.length + 1, model.sight.size, dtype=dtype, device=model.device)

    def draw(self, k: Tensor, known: Tensor, u: Tensor, i: int) -> None:
        """Write position i of tokens k (B, T, values) where it is not known, by uniforms u (B, T, values, draws)."""
        out, head = self.outputs(i), self.model.head
        for j in range(k.shape[2]):
            if self.guidance is None:
                drawn = head.draw(out, k[:, i], j, u[:, i, j])
            else:
                with_, without = (head.logits(o, k[:, i], j) for o in out.chunk(2))
                drawn = invert(torch.lerp(without, with_, self.guidance), u[:, i, j, 0])
            k[:, i, j] = torch.where(known[:, i, j], k[:, i, j], drawn)
        self.see(k, i)

    def outputs(self, i: int) -> Tensor:
        """The head's inputs (B, size) float32 at position i, the one after those seen."""
        model = self.model
        near = self.seen.index_select(1, model.neighbours[i]).flatten(1)
        h = (model.position.weight[i] + self.c).to(near.dtype)
        h = self.enter.plus(near if self.guidance is None else near.repeat(2, 1), h)
        return model.leave(model.norm(self.decoding(h)).float())

    def see(self, k: Tensor, i: int) -> None:
        """Take in position i of tokens k (B, T, values)."""
        self.seen[:, i] = self.looks[k[:, i]].flatten(1)
