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

from dataclasses import dataclass

from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._pixelwise import Leave, Pixelwise
from nonesuch.models.autoregressive._shifted import concat_elu
from nonesuch.models.autoregressive._streams import Streams, Walk


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


class PixelCNNpp(Pixelwise, Model):
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
        seen = self._lay_out(config.width, config.mixtures)
        self.streams = Streams(seen, config.width, config.blocks, config.resolutions, bool(schema), config.dropout)
        hidden = config.width if self.tokens > 1 else 0
        self.leave = Leave(2 * config.width, hidden, self.head.size, self.tokens, self.sight.size, concat_elu)

    def features(self, seen: Tensor, c: Tensor, keys: Seeds | None) -> Tensor:
        features: Tensor = self.streams(seen, c, keys)
        return features

    def _walk(self, c: Tensor) -> Walk:
        return Walk(self.streams, c, (self.rows, self.columns), self.compute_dtype)
