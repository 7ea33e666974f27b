"""DDPM: diffusion in discrete steps by the paper's U-Net, with the settings it has for CIFAR-10.

The law is in `_discrete.py`, the network in `_ddpm_unet.py`.

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239
    Denoising Diffusion Implicit Models (Song, Meng, Ermon, 2020) arXiv:2010.02502
    Classifier-Free Diffusion Guidance (Ho, Salimans, 2022) arXiv:2207.12598
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion._ddpm_unet import Form, PublishedUNet
from nonesuch.models.diffusion._discrete import Discrete, Noise


@dataclass(frozen=True)
class Config(Noise):
    """The network, the noise, and the defaults of sampling and scoring; as they stand here, the paper's for CIFAR-10."""

    base: int = 128  # channels at full resolution
    mults: tuple[int, ...] = (1, 2, 2, 2)  # channels of each resolution, in multiples of base
    attention: tuple[bool, ...] = (False, True, False, False)  # whether a resolution has attention; the middle always does
    blocks: int = 2  # residual blocks a resolution downwards; upwards one more
    groups: int = 32  # of the normalisation; divides every number of channels
    head_dim: int = 0  # channels of an attention head; 0: one head
    eps: float = 1e-6  # of the normalisation
    pad_both: bool = False  # strided convolutions pad both sides, not the far one alone
    frequency_shift: int = 1  # of the embedding of time: 1 reaches the lowest frequency, 0 stops before it
    dropout: float = 0.1


PRESETS = {
    "tiny":    Preset({"base": 8, "mults": (1, 2), "attention": (False, False), "blocks": 1, "groups": 4, "dropout": 0.0,
                       "steps": 12, "strata": 4}),
    "small":   Preset({"base": 64, "mults": (1, 2), "attention": (False, True), "blocks": 2},
                      {"batch": 128, "lr": 5e-4}, up_to_px=16),
    "cifar10": Preset({}, {"batch": 128, "lr": 2e-4}, up_to_px=32),
}  # fmt: skip


class DDPM(Discrete):
    """Diffusion in discrete steps by the published U-Net; options of sampling are those of `Discrete`.

    Raises ValueError for images that are not flat pictures of numbers, or whose sides the resolutions cannot halve.
    """

    card = Card(
        title="Denoising Diffusion Probabilistic Models",
        authors="Ho, Jonathan and Jain, Ajay and Abbeel, Pieter",
        year=2020, arxiv="2006.11239", venue="Advances in Neural Information Processing Systems",
        summary="a network that says what noise was added, over a thousand small steps",
    )  # fmt: skip
    Config = Config
    presets = PRESETS
    config: Config

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        c, cell = config, 2 ** (len(config.mults) - 1)
        if any(s % cell for s in spec.size):
            raise ValueError(
                f"{len(c.mults)} resolutions need sides that are multiples of {cell}, not {spec.size}; "
                "resize or pad the images, take fewer mults, or use diffusion/edm."
            )
        if len(c.mults) != len(c.attention):
            raise ValueError(f"mults and attention need one entry a resolution; got {c.mults} and {c.attention}.")
        if any(c.base * m % (unit or 1) for m in c.mults for unit in (c.groups, c.head_dim)) or c.base < 4:
            raise ValueError(f"base * mults must be multiples of groups and head_dim; got {c}.")
        form = Form(c.groups, c.eps, c.head_dim, c.pad_both, c.frequency_shift, c.dropout)
        self.unet = PublishedUNet(spec, c.base, c.mults, c.blocks, c.attention, schema, form)

    def noise_of(self, x_k: Tensor, k: Tensor, given: Given, keys: Seeds | None = None) -> Tensor:
        timestep = (k.float() - 1).clamp_min(0).to(x_k.device)
        return self.unet(x_k, timestep, given, keys, self.compute_dtype)
