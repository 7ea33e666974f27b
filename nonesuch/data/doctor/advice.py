"""What the doctor would choose for each family: preset, batch and budget, with the reason in a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonesuch.core.image import ImageSpec
    from nonesuch.core.model import Model

_BUDGETS = ((16, 200_000), (32, 2 << 20), (1 << 30, 8 << 20))  # the longest side up to which, images
_VIEWS = 400  # of each picture; beyond that a small set is learned by heart before it is learned
_LEAST = 20_000  # images; with fewer steps than that gives nothing comes out


@dataclass(frozen=True)
class Advice:
    """What to choose for a family, or why it cannot be used: then preset is "" and batch and images are 0."""

    family: str
    model: str
    preset: str
    batch: int
    images: int
    why: str

    def to_json(self) -> dict[str, Any]:
        return {
            "family": self.family, "model": self.model, "preset": self.preset, "batch": self.batch,
            "budget": budget(self.images) if self.images else "", "images": self.images, "why": self.why,
        }  # fmt: skip

    def __str__(self) -> str:
        if not self.preset:
            return f"{self.model}: {self.why}"
        return f"{self.model}: preset {self.preset}, batch {self.batch}, budget {budget(self.images)}. {self.why}"


def advice(models: Mapping[str, type[Model]], spec: ImageSpec, train: int) -> tuple[Advice, ...]:
    """One for each model, by its name "family/file"; `train` is how many pictures there are to learn from."""
    return tuple(_of(name, cls, spec, train) for name, cls in models.items())


def budget(images: int) -> str:
    """A number of images as --budget takes it."""
    return f"{images >> 20}Mi" if images % (1 << 20) == 0 and images else f"{images // 1000}k"


def _of(name: str, cls: type[Model], spec: ImageSpec, train: int) -> Advice:
    from nonesuch.core.card import choose_preset

    family, side = name.split("/")[0], max(spec.size, default=1)
    preset = choose_preset(cls.presets, spec)
    chosen = cls.presets[preset]
    refused = _refused(cls, chosen.config, spec)
    if refused:
        return Advice(family, name, "", 0, 0, f"cannot learn these: {refused}")
    usual = next(images for px, images in _BUDGETS if side <= px)
    images = max(_LEAST, min(usual, _VIEWS * train))
    images -= images % 1000 if images % (1 << 20) else 0
    batch = int(chosen.recipe.get("batch", 128))
    if train < batch:
        batch = max(2, 1 << (train.bit_length() - 1))
    return Advice(family, name, preset, batch, images, f"{_fits(chosen.up_to_px, side)}; {_often(images, usual, train)}.")


def _fits(up_to: int, side: int) -> str:
    """How the preset goes with the longest side of these images, px."""
    if side <= up_to:
        return f"The preset is made for sides up to {up_to} px, and the longest here is {side}"
    if not up_to:
        return "The preset is its only size"
    much = f"though the longest here is {side}: expect long runs, or open with size={up_to}"
    return f"The preset is made for sides up to {up_to} px, the largest there is, {much}"


def _often(images: int, usual: int, train: int) -> str:
    """How often each image is seen, and whether there are too few to go on for as long as is usual."""
    views = images / max(1, train)
    if views < 2:
        return f"{images:,} images are seen of {train:,}"
    limit = ", and more would learn so few by heart" if images < usual and views > _VIEWS / 2 else ""
    return f"each of {train:,} images is then seen {views:,.0f} times{limit}"


def _refused(cls: type[Model], config: Any, spec: ImageSpec) -> str:
    """Why a model takes no such pictures, in its own words; "" if it does. Nothing is allocated for its weights."""
    import torch

    from nonesuch.core.artifact import read_dataclass
    from nonesuch.core.given import Schema

    try:
        with torch.device("meta"):
            cls(read_dataclass(cls.Config, config, "the preset"), spec, Schema())  # type: ignore[attr-defined]
    except ValueError as error:
        return str(error).rstrip(".")
    except (RuntimeError, NotImplementedError, TypeError):  # of a constructor that computes: the meta device has no values
        return ""
    return ""
