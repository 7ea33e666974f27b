"""Neural spline flow on image grids: multi-scale coupling with rational-quadratic splines and variational dequantization.

    p(z_0) = N(f(z_0); 0, I) |det df/dz_0|                                                                        (1)

f is a chain of couplings (`_coupling`) whose one-dimensional maps are splines (`_spline`), so its inverse is analytic. A picture
on a grid of levels is first taken apart by each pixel's own distribution function (`_marginal`) and placed inside its cell by a
learned density (`_dequantize`); what is reported for it is the bound of that file. A continuous picture is z_0 itself, and its
density exact. At the start all networks are silent: the model is the product of the pixels' histograms given the class, and it
learns how pixels hang together.

Sampling and encoding compute in float32 whatever the model's compute dtype, since a rounding of bf16 that falls the other way in
the inverse would be carried through every later coupling.

References:
    Neural Spline Flows (Durkan, Bekasov, Murray, Papamakarios, 2019) arXiv:1906.04032
    Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture Design (Ho et al., 2019)
    arXiv:1902.00275
    Density Estimation using Real NVP (Dinh, Sohl-Dickstein, Bengio, 2016) arXiv:1605.08803, section 3.6 (multi-scale)
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
from nonesuch.models.flow._coupling import Conditioner, DenseConditioner, MultiScale, Networks
from nonesuch.models.flow._dequantize import Dequantizer
from nonesuch.models.flow._marginal import Histogram
from nonesuch.models.flow._pixels import into_cells, out_of_cells
from nonesuch.models.flow._spline import Spline
from nonesuch.nn.embed import GivenEmbedding

_PREPARE = 1024  # pictures that ActNorm's statistics are taken from


@dataclass(frozen=True)
class Config:
    """Sizes of the flow, its networks and its dequantizer."""

    pairs: tuple[int, ...] = (4, 2)  # pairs of couplings at each scale; fewer scales where the size cannot be halved
    bins: int = 8  # of each spline
    bound: float = 5.0  # the splines move [-bound, bound]
    hidden: int = 64  # channels of convolutional conditioners
    blocks: int = 1  # residual blocks of each conditioner
    dense: int = 256  # units of dense conditioners
    dense_values: int = 256  # largest number of values of a scale whose conditioners are dense
    width: int = 64  # of the condition's vector
    heads: int = 0  # of attention in the convolutional conditioners; 0: convolutions alone
    attention_px: int = 16  # largest side, after squeezing, at which attention is used
    dequantize: int = 1  # pairs of couplings of the dequantizer
    dropout: float = 0.1  # of the conditioners' channels
    table: int = 2**18  # largest number of entries of the pixels' histograms; beyond, pixels share one


# fmt: off
PRESETS = {
    "tiny":   Preset({"pairs": (1, 1), "bins": 4, "hidden": 16, "dense": 32, "width": 16, "dropout": 0.0},
                     {"batch": 64, "lr": 2e-3}),
    "digits": Preset({"dense": 192, "dropout": 0.5}, {"batch": 256, "lr": 1e-3, "weight_decay": 1.0}, up_to_px=16,
                     reached="digits given label, test: CAS 0.97, 1.89 bits/dim (bound, 1 draw) at 190k images, 90 s of a core"),
    "32px":   Preset({"pairs": (4, 4, 4), "bins": 16, "hidden": 96, "blocks": 3, "width": 128, "heads": 4, "dequantize": 2,
                      "dropout": 0.05}, {"batch": 64, "lr": 1e-3, "warmup": 0.05}, up_to_px=32),
    "64px":   Preset({"pairs": (4, 4, 4, 4), "bins": 16, "hidden": 128, "blocks": 4, "width": 128, "heads": 4, "dequantize": 2,
                      "dropout": 0.05}, {"batch": 32, "lr": 1e-3, "warmup": 0.05}, up_to_px=64),
}
# fmt: on


class NSF(Model, Likelihood, Encoder):
    """A flow of images: likelihood (a bound on a grid of levels, the exact density of continuous images), latents, samples.

    Raises ValueError for images of categories, whose numbers have no order to be dequantized along, and for conditions on images.
    """

    card = Card(
        "Neural Spline Flows",
        "Durkan, Conor and Bekasov, Artur and Murray, Iain and Papamakarios, George",
        2019,
        arxiv="1906.04032",
        venue="Advances in Neural Information Processing Systems",
        summary="A multi-scale coupling flow with rational-quadratic splines and variational dequantization.",
    )
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError("a flow needs values with an order: use it for ordinal or continuous images, not categorical ones.")
        if not config.pairs or min(config.pairs) < 1 or config.dequantize < 1:
            raise ValueError("pairs needs at least one scale and one pair of couplings at each, and so does dequantize.")
        size = spec.size or (1,)  # a vector is a line of one position
        spline = Spline(config.bins, config.bound)
        nets = Networks(
            config.hidden, config.blocks, config.dense, config.dense_values, config.width, config.heads, config.attention_px
        )
        self.embed = GivenEmbedding(schema, config.width)
        self.flow = MultiScale(spec.channels, size, config.pairs, spline, nets)
        self.latent_spec = ImageSpec(spec.numel, (), "", "continuous", None)
        self.whole = (spec.channels, *size)
        if spec.levels is not None:
            self.histogram = Histogram(spec, schema, config.table)
            self.dequantizer = Dequantizer(spec.channels, size, config.dequantize, spline, nets)
        self.dropped = 0  # dropout masks of all networks lie side by side
        for m in self.modules():
            if isinstance(m, (Conditioner, DenseConditioner)):
                m.first = self.dropped
                self.dropped += m.dropped

    def objectives(self) -> list[Objective]:
        return [Objective("flow", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        p = self.config.dropout
        masks = batch.keys.keep("dropout", p, self.dropped, device=self.device) if p else None
        c = self.embed(batch.given, len(batch.x), self.device)
        nats = self._draw_bound(batch.x, batch.given, c, batch.keys, 0, self.compute_dtype, masks, own=True)
        return Terms({"bits_per_dim": -nats.mean() / (self.spec.numel * math.log(2))})

    @torch.no_grad()
    def prepare(self, data: Tensor, given: Given) -> None:
        """Count the pixels' histograms, and set every ActNorm to the statistics of the pictures that reach it."""
        if int(self.images_seen):
            return  # a trained model keeps its own
        if self.spec.levels is not None:
            self.histogram.count(self.spec.to_levels(data), given)
        x, given = data[:_PREPARE], given[:_PREPARE]
        c = self.embed(given, len(x), x.device)
        z = self._place(x, given, c, Seeds.of(0, len(x)), 0, torch.float32, None)[0]
        self.flow.adapt(z, c, torch.float32)

    # -- the bound and the density ----------------------------------------------------------------------------------------------

    def _place(
        self, x: Tensor, given: Given, c: Tensor, keys: Seeds, step: int, dtype: torch.dtype,
        masks: Tensor | None = None, own: bool = False,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """A point z_0 (B, C, *size) in the picture's cell and log 1/q(z_0 | x) (B,); a continuous picture is its own point."""
        n = len(x)
        if self.spec.levels is None:
            return x.reshape(n, *self.whole).float(), torch.zeros(n, device=x.device)
        return into_cells(x, self.whole, self.spec, self.histogram, self.dequantizer, given, c, keys, step, dtype, masks, own)

    def _density(self, z: Tensor, c: Tensor, dtype: torch.dtype, masks: Tensor | None = None) -> Tensor:
        """log p(z_0) (B,), without the constant of the normal when it cancels (Eq. 1)."""
        latent, log_det = self.flow(z, c, dtype, masks)
        return log_det.double() - latent.double().square().sum(1) / 2

    def _draw_bound(
        self, x: Tensor, given: Given, c: Tensor, keys: Seeds, step: int, dtype: torch.dtype,
        masks: Tensor | None = None, own: bool = False,
    ) -> Tensor:  # fmt: skip
        """One draw of the bound, or the density (B,), in nats; `own`: of counted pictures, as training sees them."""
        z, volume = self._place(x, given, c, keys, step, dtype, masks, own)
        constant = 0.0 if self.spec.levels else self.spec.numel * math.log(2 * math.pi) / 2
        return (self._density(z, c, dtype, masks) + volume - constant).float()

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        known = "bound" if self.spec.levels else "density"
        if method not in (None, known):
            raise ValueError(f"this flow has one method here, {known!r}, not {method!r}.")
        c = self.embed(given, len(x), self.device)
        draws = range(samples if self.spec.levels else 1)
        found = torch.stack([self._draw_bound(x, given, c, seeds, i, self.compute_dtype) for i in draws])
        return LogProb(found.logsumexp(0) - math.log(len(found)), "bound" if self.spec.levels else "density")

    # -- latents and samples ----------------------------------------------------------------------------------------------------

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        c = self.embed(given, len(x), self.device)
        z, _ = self._place(x, given, c, seeds, 0, torch.float32, None)
        return self.flow(z, c, torch.float32)[0]

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        n = len(z)
        x = self.flow.inverse(z, self.embed(given, n, self.device), torch.float32)
        if self.spec.levels is None:
            return x.view(n, *self.spec.shape)
        return out_of_cells(x, self.spec, self.histogram, given)

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], *, temperature: float = 1.0, **options: Any
    ) -> Iterator[Step]:
        z = self._prior(given, seeds) * temperature
        yield Step(1, 1, self.spec.snap(self._decode(z, given)))
