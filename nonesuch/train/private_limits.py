"""What a private run refuses, and why: whatever else reads the training pictures would publish more than epsilon says.

Every refusal is one sentence that names what it refuses. What is not refused but done otherwise stands in private.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nonesuch.core import artifact
from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data
from nonesuch.train import checkpoint
from nonesuch.train.private_gradients import Single
from nonesuch.train.recipe import Recipe

_FILES = ("uint8", "uint16", "bool")  # types whose levels are those of the type, not of the pictures
FIXED = ("private", "data", "images", "batch")  # what may not differ when a private run goes on


def uncounted(data: Data) -> Data:
    """The data with no frequencies of its categories: in a published schema they are exact counts of the training pictures."""
    columns = {k: Category(c.names) if isinstance(c, Category) else c for k, c in data.schema.columns.items()}
    return data.recoded(Schema(columns))


def require(
    model: Model, data: Data, recipe: Recipe, *, source: Any = None, allowed: Sequence[str] = (), shard: bool = False,
    world: int = 1,
) -> None:  # fmt: skip
    """Raise ValueError with the first reason why this run would not be as private as it says.

    model: as it would be trained; source: what it was made from, a name, a checkpoint or a Model; allowed: what may differ at a
    resume; world: processes.
    """
    for reason in _reasons(model, data, recipe, source, allowed, shard, world):
        raise ValueError(f"not private: {reason}")


def _reasons(
    model: Model, data: Data, recipe: Recipe, source: Any, allowed: Sequence[str], shard: bool, world: int
) -> Iterator[str]:
    assert recipe.private is not None
    n, name, delta = len(data.train), type(model).__name__, recipe.private.delta
    if world > 1 or shard:
        yield "several processes (torchrun, --shard) exchange the gradients of pictures before noise; train in one process."
    if changed := [word for word in allowed if word in FIXED]:
        yield f"a run that goes on with another {changed[0]!r} has no epsilon; begin a new one in another folder."
    if recipe.batch > n:
        yield f"a batch of {recipe.batch} cannot be sampled from {n} pictures; set recipe.batch lower."
    if delta is not None and delta * n >= 1:
        yield f"at delta {delta:g} one of {n} pictures may be published as it is; choose a delta well below {1 / n:.1g}."
    if recipe.held_out:
        yield "pictures held out to watch (recipe.held_out) get into the numbers of every look; leave it at 0."
    if data.spec.sizes:
        yield "batches of several sizes (fit 'bucket') depend on all pictures' sizes; open them with fit 'crop'."
    yield from _of_values(data.spec)
    yield from _of_columns(model)
    yield from _of_model(model, name)
    if _knows(source, data):
        yield "the weights to start from were trained on these same pictures; begin with fresh ones, or with others' weights."


def _of_values(spec: ImageSpec) -> Iterator[str]:
    counted = spec.value_range is not None or spec.kind == "ordinal"
    if counted and spec.dtype not in _FILES:
        yield (
            f"the range of values of {spec.dtype} pictures is their own smallest and largest, and the checkpoint says it; "
            "bring them to 8 or 16 bits."
        )


def _of_columns(model: Model) -> Iterator[str]:
    fresh = int(model.images_seen) == 0  # otherwise its columns are those of the pictures it was trained on before
    for name, column in model.schema.columns.items():
        plain = isinstance(column, Number) and (column.mean, column.std, column.quantiles) == (0.0, 1.0, ())
        if isinstance(column, Number) and fresh and not plain:
            yield (
                f"the column {name!r} is scaled by its own mean and deviation, exact numbers of the training pictures that the "
                "checkpoint says; give it as categories, such as ranges."
            )


def _of_model(model: Model, name: str) -> Iterator[str]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase) and (
            module.track_running_stats or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            yield f"{type(module).__name__} in {name} keeps statistics of the pictures of a batch; choose another model."
        if isinstance(module, Model) and module.transient:
            kept = ", ".join(module.transient)
            yield f"{name} keeps pictures, or what chains made of them, from batch to batch ({kept}); choose another model."
    objectives = model.objectives()
    for objective in objectives:
        if objective.after_step is not None:
            yield (
                f"the player {objective.name!r} of {name} moves by the pictures themselves after each step (after_step), and no "
                "noise covers that; choose another model, or for vae/vqvae config.codebook='gradient'."
            )
    if moved := _moved(model, objectives):
        yield f"{moved!r} of {name} is changed by looking at pictures, which no noise covers; choose another model."


def _moved(model: Model, objectives: Sequence[Objective]) -> str | None:
    """A buffer that computing the terms of a picture of noise changes, by name."""
    given = dict(model.schema.missing(1).columns)
    given |= {k: _noise(c.spec, k) for k, c in model.schema.columns.items() if isinstance(c, Image)}
    one = Single(_noise(model.spec, "x").to(model.device), Given(1, given).to(model.device), Seeds((0,), (0,)))
    before = {k: v.clone() for k, v in model.named_buffers()}
    for objective in objectives:
        objective.terms(one)
    after = dict(model.named_buffers())
    return next((k for k, v in before.items() if not torch.equal(v.nan_to_num(), after[k].nan_to_num())), None)


def _noise(spec: ImageSpec, name: str) -> Tensor:
    """A picture of noise, (1, C, *size)."""
    keys = Seeds((0,), (0,))
    if spec.levels is None:
        return keys.uniform(name, *spec.shape) * 2 - 1
    return spec.from_levels(keys.integers(name, spec.levels, *spec.shape))


def _knows(source: Any, data: Data) -> bool:
    """Whether a checkpoint says, or the steps beside it do, that it was made of these pictures."""
    if source is None or isinstance(source, Model):
        return False
    path = Path(source)
    folder = path if path.is_dir() else path.parent
    weights = folder / artifact.WEIGHTS if path.is_dir() else path
    if not weights.is_file():
        return False
    about = artifact.load_tensors(weights)[1].get("about", {})
    saved = checkpoint.find(folder) if (folder / checkpoint.STEPS).is_dir() else None
    prints = {about.get("fingerprint") if isinstance(about, dict) else None, saved and saved.record.identity["data"]}
    return data.fingerprint in prints
