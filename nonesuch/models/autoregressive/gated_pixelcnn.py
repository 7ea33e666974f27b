"""The gated PixelCNN: a vertical and a horizontal stack of convolutions with gates and no blind spot; exact likelihoods.

    p(x | y) = prod_i p(x_i | x_1, ..., x_{i-1}, y)                                                        (chain rule)
    gate     = tanh(W_f * x + V_f c) sigmoid(W_g * x + V_g c)                                              (Eq. 4)

The vertical stack reads the rows above a pixel, the horizontal one the pixels before it in its row and, at each layer, what the
vertical one has made (`_stacks`); masked convolutions of one stack would never see the pixels to the upper right. All factors
come of one pass, each normalised over the levels, so the sum of p over all pictures is one. A pixel of few levels is a softmax a
channel that reads the channels before it; one of many levels a discretized mixture of logistics (`_heads`). c is a learned vector
of the condition. Sampling keeps the activations, a row of the vertical stack at once and the horizontal one pixel by pixel, so
that drawing a picture is the work of one pass.

References:
    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016) arXiv:1606.05328
    Pixel Recurrent Neural Networks (van den Oord, Kalchbrenner, Kavukcuoglu, 2016) arXiv:1601.06759
    Fast Generation for Convolutional Autoregressive Models (Ramachandran et al., 2017) arXiv:1704.06001
"""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._pixelwise import Leave, Pixelwise
from nonesuch.models.autoregressive._stacks import Stacks, Walk


@dataclass(frozen=True)
class Config:
    """width: features a pixel of each stack; layers: after the first; kernel: columns of the first layer's window, odd; hidden:
    units between the features and the levels; mixtures: logistics a pixel of many levels; dropout: probability, of each unit at
    all pixels of a picture; lag: 1 for the vertical stack of networks that move each layer down instead of the input."""

    width: int = 128
    layers: int = 10
    kernel: int = 7
    hidden: int = 32
    mixtures: int = 10
    dropout: float = 0.0
    lag: int = 0


_SMALL = Preset(
    {"width": 48, "layers": 4, "kernel": 5, "dropout": 0.2},
    {"batch": 64, "lr": 2e-3},
    16,
    "digits given label, test: 1.71 bits/dim (1 seed) after 37k images",
)
PRESETS = {
    "tiny": Preset({"width": 16, "layers": 2, "kernel": 5}, {"batch": 64, "lr": 3e-3}),
    "small": _SMALL,
    "medium": Preset({"width": 128, "layers": 10}, {"batch": 64, "lr": 1e-3}, 32),
    "large": Preset({"width": 192, "layers": 16, "hidden": 256}, {"batch": 32, "lr": 5e-4}, 64),
}


class GatedPixelCNN(Pixelwise, Model):
    """The chain rule over pixels by two stacks. Raises ValueError for continuous pictures, vectors, volumes and even kernels."""

    card = Card(
        "Conditional Image Generation with PixelCNN Decoders",
        "van den Oord, Aaron and Kalchbrenner, Nal and Vinyals, Oriol and Espeholt, Lasse and Graves, Alex and "
        "Kavukcuoglu, Koray",
        2016,
        "1606.05328",
        summary="Pixels one after another by two gated stacks: exact likelihoods, completion; a sample costs one pass.",
    )
    Config, presets = Config, PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if config.kernel < 3 or config.kernel % 2 == 0:
            raise ValueError(f"the first layer's window has an odd number of columns, at least 3, not {config.kernel}.")
        if config.lag not in (0, 1):
            raise ValueError(f"lag is 0, as published, or 1, not {config.lag}.")
        seen = self._lay_out(config.width, config.mixtures) + 1  # the one says: inside the picture
        self.stacks = Stacks(seen, config.width, config.layers, config.kernel, bool(schema), config.dropout, config.lag)
        self.leave = Leave(config.width, config.hidden, self.head.size, self.tokens, self.sight.size, F.relu)

    def _see(self, k: Tensor) -> Tensor:
        return F.pad(super()._see(k), (0, 1), value=1.0)

    def features(self, seen: Tensor, c: Tensor, keys: Seeds | None) -> Tensor:
        features: Tensor = self.stacks(seen, c, keys)
        return features

    def _walk(self, c: Tensor) -> Walk:
        return Walk(self.stacks, c, (self.rows, self.columns), self.compute_dtype)
