"""What is tested, on what: stripes that any model learns at once, and a model that can be built on any spec.

A model that makes pictures of pictures refuses to be built without a column of them, and is given one: each cell of 2 pixels a
side at the value of its first, which tells the stripes' phase and not their kind, so that picture and label are both needed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC = ImageSpec(1, (8, 8), levels=5)
SCHEMA = Schema({"label": Category(("rows", "columns", "dots"))})
PICTURE = "picture"  # the column of those that need one


def pictured(spec: ImageSpec = SPEC) -> Schema:
    """The labels, and a picture of `spec`."""
    return Schema({**SCHEMA.columns, PICTURE: Image(spec)})


def schema_for(build: Callable[[ImageSpec, Schema], Model], spec: ImageSpec = SPEC) -> Schema:
    """The schema a model is tried on: of labels, and of pictures too if the model is none without (or adds them itself).

    Raises what `build` does if it takes neither.
    """
    try:
        return build(spec, SCHEMA).schema
    except ValueError as error:
        try:
            return build(spec, pictured(spec)).schema
        except ValueError:
            raise error from None


def stripes(n: int = 24, spec: ImageSpec = SPEC, schema: Schema = SCHEMA, name: str = "train") -> Images:
    """Pictures that any model learns at once: rows, columns or dots, with the phase and a little noise drawn by index."""
    seeds = Seeds.of(7, n)
    label = torch.arange(n) % 3
    axes = torch.meshgrid(*[torch.arange(s) for s in spec.size], indexing="ij")
    phase = seeds.integers("phase", 2, 1).view(n, *[1] * len(axes))
    first, last = axes[0][None] + phase, axes[-1][None] + phase
    on = torch.stack([first % 2, last % 2, (first + last) % 2])
    picked = on[label, torch.arange(n)].double()
    noise = seeds.uniform("noise", spec.channels, *spec.size)
    assert spec.levels is not None
    levels = ((0.1 + 0.8 * picked[:, None]) * (spec.levels - 1) + noise - 0.5).round().clamp(0, spec.levels - 1)
    columns = {k: _coarse(spec.from_levels(levels)) if isinstance(c, Image) else label for k, c in schema.columns.items()}
    return Images(spec, schema, levels.to(torch.uint8), Given(n, columns), name)


def _coarse(x: Tensor) -> Tensor:
    """Each cell of 2 pixels a side at the value of its first."""
    for axis in range(2, x.dim()):
        x = x.index_select(axis, torch.arange(x.shape[axis]) // 2 * 2)
    return x


@dataclass
class Subject:
    """The model under test: `build` makes it fresh on any spec and schema; `fitted` has seen the stripes a little."""

    build: Callable[[ImageSpec, Schema], Model]
    rounds: int = 60
    name: str = "model"
    options: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def images(self) -> Images:
        return stripes(schema=self.schema)

    @cached_property
    def schema(self) -> Schema:
        """The schema it is tried on."""
        return schema_for(self.build)

    @property
    def picture(self) -> str:
        """The name of its column of pictures; "" if it takes none."""
        return next((name for name, column in self.schema.columns.items() if isinstance(column, Image)), "")

    def given(self, label: Any, n: int, first: int = 0) -> dict[str, Any]:
        """A condition of n images from image `first` on: the label, or one an image, and the pictures where it takes some."""
        said = {} if label is None else {"label": label}
        return said | ({self.picture: self.images.given.columns[self.picture][first : first + n]} if self.picture else {})

    def run(
        self, spec: ImageSpec = SPEC, schema: Schema | None = None, rounds: int = 0, total: int = 0, model: Model | None = None
    ) -> Run:
        if schema is None:
            schema = self.schema if spec == SPEC else schema_for(self.build, spec)
        images = stripes(spec=spec, schema=schema)
        model = model or self.build(spec, schema)
        if int(model.images_seen) == 0:
            model.prepare(images.x, images.given)
        recipe = Recipe(images=24 * (total or self.rounds), batch=24, lr=3e-3, hide=0.2, warmup=0.1, average_share=0.02)
        run = Run(model, images, recipe)
        for _ in range(rounds):
            run.step()
        return run

    @cached_property
    def fitted(self) -> Model:
        run = self.run(rounds=self.rounds)
        run.averages.swap()
        return run.model

    @cached_property
    def noise(self) -> Tensor:
        assert SPEC.levels is not None
        return SPEC.from_levels(Seeds.of(3, 48).integers("noise", SPEC.levels, *SPEC.shape))

    def batch(self) -> Batch:
        x, given = self.images.x, self.schema.hide(self.images.given, torch.arange(24) % 5 == 0)
        return Batch(x, given, Seeds.of(1, 24), 24, 24 * self.rounds)


Check = Callable[[Subject], None]
CHECKS: list[tuple[Check, type | None]] = []


def needs(capability: type | None = None) -> Callable[[Check], Check]:
    """Mark a function as a check, run for models that have the capability."""

    def mark(check: Check) -> Check:
        CHECKS.append((check, capability))
        return check

    return mark


def refused(call: Callable[[], Any], what: str) -> str:
    """The sentence a call is refused with; anything but a ValueError that ends like a sentence fails."""
    try:
        call()
    except ValueError as error:
        assert len(str(error)) > 20 and str(error).rstrip()[-1] in ".?", (
            f"{what} is refused with {str(error)!r}, which is no sentence"
        )
        return str(error)
    raise AssertionError(f"{what} is not refused")


def state_of(model: Model) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def alike(a: Tensor, b: Tensor, share: float = 0.99) -> bool:
    """Equal within 1e-4, but for rounding ties on the grid in less than 1 - share of the values."""
    return a.shape == b.shape and float(((a - b).abs() <= 1e-4).float().mean()) >= share
