"""Glow: steps of ActNorm, invertible 1x1 convolution and affine coupling, at several scales, with learned priors.

    p(z_0) = N(f(z_0); 0, I) |det df/dz_0|                                                                        (1)

f is the chain of `_affine`; its inverse costs what f costs. A picture on a grid of levels is first taken apart by each pixel's
own distribution function (`_marginal`) and placed inside its cell, evenly as in the paper or by a learned density (`_pixels`);
what is reported for it is the bound of `_dequantize`. A continuous picture is z_0 itself, and its density exact.

Where this differs from the paper: pixels begin as normal scores of their histograms instead of as x / 256; the hidden layers of
couplings have no ActNorm of their own; the log of a coupling's scale is bounded (the paper has a sigmoid); a condition shifts the
hidden layers and moves the priors. `published` takes the form of the paper and its code but for the hidden layers: pixels are
spread evenly over [-1/2, 1/2], and couplings and priors are those of Eq. 4 of `_affine`. `_public` reads such networks.

Encoding and decoding compute in float32 whatever the model's compute dtype, since a rounding of bf16 that falls the other way in
the inverse would be carried through every later coupling. Sampling goes one way only, and keeps the compute dtype.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma, Dhariwal, 2018) arXiv:1807.03039
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
from nonesuch.models.flow._affine import StepsAndPriors
from nonesuch.models.flow._coupling import Networks
from nonesuch.models.flow._dequantize import Dequantizer
from nonesuch.models.flow._marginal import Histogram
from nonesuch.models.flow._pixels import into_cells, into_even_cells, out_of_cells, out_of_even_cells
from nonesuch.models.flow._spline import Spline
from nonesuch.nn.embed import GivenEmbedding

_PREPARE, _PREPARE_VALUES = 1024, 1 << 20  # pictures, and values of them, that ActNorm's statistics are taken from at most


@dataclass(frozen=True)
class Config:
    """Sizes of the flow, its networks and its dequantizer."""

    scales: int = 3  # L; fewer where the size cannot be halved
    steps: int = 16  # K at each scale
    hidden: int = 512  # channels of the couplings' networks
    width: int = 64  # of the condition's vector
    dequantize: int = 0  # pairs of spline couplings of the dequantizer; 0: uniform inside the cell, as in the paper
    dequantize_hidden: int = 32  # channels of its networks
    table: int = 2**18  # largest number of entries of the pixels' histograms; beyond, pixels share one
    published: bool = False  # the form of the paper's code: even cells, sigmoid scales after the shift, edges, free priors


# fmt: off
PRESETS = {
    "tiny":  Preset({"scales": 2, "steps": 2, "hidden": 24, "width": 16, "dequantize": 1, "dequantize_hidden": 16},
                    {"batch": 64, "lr": 2e-3}),
    "small": Preset({"scales": 2, "steps": 8, "hidden": 96, "dequantize": 1}, {"batch": 64, "lr": 1e-3, "weight_decay": 0.1},
                    up_to_px=16),
    "32px":  Preset({"scales": 3, "steps": 16, "hidden": 512}, {"batch": 64, "lr": 1e-3, "warmup": 0.05}, up_to_px=32),
}
# fmt: on


class Glow(Model, Likelihood, Encoder):
    """A flow of images: likelihood (a bound on a grid of levels, the exact density of continuous images), latents, samples.

    Raises ValueError for images of categories, whose numbers have no order to be dequantized along, for conditions on images, and
    for one channel without an even side, which leaves a coupling nothing to split.
    """

    card = Card(
        "Glow: Generative Flow with Invertible 1x1 Convolutions",
        "Kingma, Diederik P. and Dhariwal, Prafulla",
        2018,
        arxiv="1807.03039",
        venue="Advances in Neural Information Processing Systems",
        summary="A multi-scale flow of affine couplings with invertible 1x1 convolutions in LU form and learned priors.",
    )
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError("a flow needs values with an order: use it for ordinal or continuous images, not categorical ones.")
        if min(config.scales, config.steps, config.hidden, config.width) < 1 or config.dequantize < 0:
            raise ValueError("scales, steps, hidden and width must be at least 1, and dequantize at least 0.")
        if config.published and config.dequantize:
            raise ValueError(
                "the published form spreads pixels evenly over their cells: set dequantize to 0, or published to False."
            )
        size = spec.size or (1,)  # a vector is a line of one position
        self.embed = GivenEmbedding(schema, config.width)
        told = config.width if schema else 0
        self.flow = StepsAndPriors(spec.channels, size, config.scales, config.steps, config.hidden, told, config.published)
        self.latent_spec = ImageSpec(spec.numel, (), "", "continuous", None)
        self.whole = (spec.channels, *size)
        self.dequantizer: Dequantizer | None = None
        if spec.levels is not None and not config.published:
            self.histogram = Histogram(spec, schema, config.table)
            if config.dequantize:
                nets = Networks(config.dequantize_hidden, 1, 4 * config.dequantize_hidden, 256, config.width)
                self.dequantizer = Dequantizer(spec.channels, size, config.dequantize, Spline(8, 5.0), nets)

    def objectives(self) -> list[Objective]:
        return [Objective("flow", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        c = self.embed(batch.given, len(batch.x), self.device)
        nats = self._draw_bound(batch.x, batch.given, c, batch.keys, 0, own=True)
        return Terms({"bits_per_dim": -nats.mean() / (self.spec.numel * math.log(2))})

    @torch.no_grad()
    def prepare(self, data: Tensor, given: Given) -> None:
        """Count the pixels' histograms, and set every ActNorm to the statistics of the pictures that reach it."""
        if int(self.images_seen):
            return  # a trained model keeps its own
        if self.spec.levels is not None and not self.config.published:
            self.histogram.count(self.spec.to_levels(data), given)
        n = min(_PREPARE, max(64, _PREPARE_VALUES // self.spec.numel))
        x, given = data[:n], given[:n]
        c = self.embed(given, len(x), x.device)
        z = self._place(x, given, c, Seeds.of(0, len(x)), 0, torch.float32)[0]
        self.flow(z, c, torch.float32, adapt=True)

    # -- the bound and the density ----------------------------------------------------------------------------------------------

    def _place(
        self, x: Tensor, given: Given, c: Tensor, keys: Seeds, step: int, dtype: torch.dtype, own: bool = False
    ) -> tuple[Tensor, Tensor]:
        """A point z_0 (B, C, *size) in the picture's cell and log 1/q(z_0 | x) (B,); a continuous picture is its own point."""
        if self.spec.levels is None:
            return x.reshape(len(x), *self.whole).float(), torch.zeros(len(x), device=x.device)
        if self.config.published:
            return into_even_cells(x, self.whole, self.spec, keys, step)
        at = (self.whole, self.spec, self.histogram, self.dequantizer)
        return into_cells(x, *at, given, c, keys, step, dtype, own=own)

    def _draw_bound(self, x: Tensor, given: Given, c: Tensor, keys: Seeds, step: int, own: bool = False) -> Tensor:
        """One draw of the bound, or the density (B,), in nats; `own`: of counted pictures, as training sees them."""
        z, volume = self._place(x, given, c, keys, step, self.compute_dtype, own)
        eps, log_det = self.flow(z, c, self.compute_dtype)
        constant = 0.0 if self.spec.levels else self.spec.numel * math.log(2 * math.pi) / 2
        return (log_det.double() - eps.double().square().sum(1) / 2 + volume - constant).float()  # Eq. 1

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        known = "bound" if self.spec.levels else "density"
        if method not in (None, known):
            raise ValueError(f"this flow has one method here, {known!r}, not {method!r}.")
        c = self.embed(given, len(x), self.device)
        draws = range(samples if self.spec.levels else 1)
        found = torch.stack([self._draw_bound(x, given, c, seeds, i) for i in draws])
        return LogProb(found.logsumexp(0) - math.log(len(found)), "bound" if self.spec.levels else "density")

    # -- latents and samples ----------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        c = self.embed(given, len(x), self.device)
        return self.flow(self._place(x, given, c, seeds, 0, torch.float32)[0], c, torch.float32)[0]

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        return self._picture(z, given, torch.float32)

    def _picture(self, eps: Tensor, given: Given, dtype: torch.dtype) -> Tensor:
        x = self.flow.inverse(eps, self.embed(given, len(eps), self.device), dtype)
        if self.spec.levels is None:
            return x.reshape(len(eps), *self.spec.shape)
        if self.config.published:
            return out_of_even_cells(x, self.spec)
        return out_of_cells(x, self.spec, self.histogram, given)

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, temperature: float = 1.0, **options: Any
    ) -> Iterator[Step]:
        eps = self._prior(given, seeds) * temperature
        yield Step(1, 1, self.spec.snap(self._picture(eps, given, self.compute_dtype)))
