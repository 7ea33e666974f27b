"""DiT: diffusion in discrete steps by a transformer over patches of the picture, or of an autoencoder's latents.

The law is in `_discrete.py`, the network in `_dit.py`. The paper's network predicts variances beside the noise (`variance`),
which a converted one keeps and nothing here uses; the ones trained here predict the noise alone.

References:
    Scalable Diffusion Models with Transformers (Peebles, Xie, 2022) arXiv:2212.09748
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion._discrete import Discrete, Noise
from nonesuch.models.diffusion._dit import DiTNetwork


@dataclass(frozen=True)
class Config(Noise):
    """The network, the noise, and the defaults of sampling and scoring."""

    width: int = 384  # of the residual stream; a multiple of 4 and of num_heads
    depth: int = 12  # blocks
    num_heads: int = 6  # of attention
    ratio: int = 4  # width of a block's inner layer over `width`
    patch: int = 2  # pixels a side of what is one position
    eps: float = 1e-6  # of the normalisation before a block's inner layer
    dropout: float = 0.0  # probability, of each unit at all positions of a picture
    variance: bool = False  # whether the network predicts variances too


PRESETS = {
    "tiny":  Preset({"width": 32, "depth": 2, "num_heads": 2, "ratio": 2, "steps": 12, "strata": 4}, {"batch": 64, "lr": 3e-3}),
    "small": Preset({"width": 192, "depth": 6, "num_heads": 3, "dropout": 0.1}, {"batch": 128, "lr": 1e-3}, up_to_px=16),
    "S/2":   Preset({}, {"batch": 128, "lr": 3e-4}, up_to_px=32),
    "S/4":   Preset({"patch": 4}, {"batch": 128, "lr": 3e-4}, up_to_px=64),
}  # fmt: skip


class DiT(Discrete):
    """Diffusion in discrete steps by a transformer; options of sampling are those of `Discrete`.

    Raises ValueError for images that are not flat pictures of numbers, or whose sides the patches do not divide.
    """

    card = Card(
        title="Scalable Diffusion Models with Transformers",
        authors="Peebles, William and Xie, Saining",
        year=2022, arxiv="2212.09748", venue="IEEE/CVF International Conference on Computer Vision",
        summary="a transformer over patches that says what noise was added",
    )  # fmt: skip
    Config = Config
    presets = PRESETS
    config: Config

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        c = config
        if any(s % c.patch for s in spec.size):
            raise ValueError(
                f"sides must be multiples of the patch {c.patch}, not {spec.size}; resize or pad, or take another patch."
            )
        if c.width % 4 or c.width % c.num_heads:
            raise ValueError(f"width must be a multiple of 4 and of num_heads; got {c}.")
        out = spec.channels * (1 + c.variance)
        shape = (c.patch, c.width, c.depth, c.num_heads, c.ratio)
        self.network = DiTNetwork(spec, out, *shape, c.eps, c.dropout, schema)

    def noise_of(self, x_k: Tensor, k: Tensor, given: Given, keys: Seeds | None = None) -> Tensor:
        timestep = (k.float() - 1).clamp_min(0).to(x_k.device)
        return self.network(x_k, timestep, given, keys, self.compute_dtype)[:, : self.spec.channels]
