"""What a call of `fit` means: which model, on what, for how many images, and from where."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.card import choose_preset
from nonesuch.core.given import Category, did_you_mean
from nonesuch.core.model import AnySize, Model
from nonesuch.core.seeds import initialise
from nonesuch.data.dataset import Data, Images
from nonesuch.train import checkpoint, private
from nonesuch.train.guard import set_rate
from nonesuch.train.identity import DATA
from nonesuch.train.private import PrivateRun
from nonesuch.train.recipe import Budget, Recipe
from nonesuch.train.run import Run, images_for

_PREPARED = 1 << 28  # values of the pictures that a model sees before it is trained: a gigabyte


def choose_model(
    model: str | Path | Model, data: Data, preset: str | None, config: Mapping[str, Any], seed: int
) -> tuple[Model, dict[str, Any]]:
    """A fresh model of that name with its preset's recipe, or a copy of one that is there."""
    if isinstance(model, Model):
        built = copy.deepcopy(model)
    elif isinstance(model, Path) or model.endswith(".safetensors") or (Path(model) / artifact.WEIGHTS).is_file():
        built = catalog.load(model)
    else:
        built = catalog.build(str(model), data.spec, data.schema, preset, **config)
        initialise(built, seed)
        name = preset or choose_preset(type(built).presets, data.spec)
        return built, dict(type(built).presets[name].recipe)
    if preset or config:
        raise ValueError("a model that is already built keeps its config; preset and config go with a catalogue name.")
    if built.spec != data.spec or built.schema.columns.keys() != data.schema.columns.keys():
        if built.spec.sizes != data.spec.sizes:
            ours, theirs = (", ".join(" x ".join(map(str, s)) for s in (x.sizes or (x.size,))) for x in (built.spec, data.spec))
            raise ValueError(f"the model takes images of {ours}, the data has {theirs}; open the data as the model's was.")
        raise ValueError(
            f"the model takes {built.spec.shape} given {list(built.schema.columns)}, "
            f"the data has {data.spec.shape} given {list(data.schema.columns)}."
        )
    for name, column in data.schema.columns.items():
        known = built.schema[name]
        if type(column) is not type(known):
            raise ValueError(f"the column {name!r} is of another kind in the data than in the model.")
        for word in column.names if isinstance(column, Category) and isinstance(known, Category) else ():
            if word not in known.names:
                raise ValueError(f"the model does not know the {name} {word!r} of the data; {did_you_mean(word, known.names)}")
    return built, {}


def coded_as_recorded(data: Data, folder: Path | None, allowed: Sequence[str]) -> Data:
    """The data with its conditions coded as the run in the folder does, if its data may change; otherwise as it is."""
    saved = checkpoint.find(folder) if folder and DATA in allowed else None
    return data.recoded(artifact.read_schema(saved.record.identity["model"]["schema"])) if saved else data


def _some(images: Images, values: int) -> Images:
    """All pictures, or of more than so many values as many as have them, evenly spread, and the first of each class."""
    most = max(1, values // images.spec.numel)
    if len(images) <= most:
        return images
    classes = [name for name, column in images.schema.columns.items() if isinstance(column, Category)]
    first = [torch.from_numpy(np.unique(images.labels(name).cpu().numpy(), return_index=True)[1]) for name in classes]
    return images[torch.cat([torch.arange(most) * len(images) // most, *first]).unique()]


def plan(
    model: Model,
    data: Data,
    recipe: Recipe,
    budget: Budget,
    text: str,
    saved: checkpoint.Saved | None = None,
    out: Path | None = None,
    allowed: Sequence[str] = (),
    shard: bool = False,
    workers: int = 0,
) -> Run:
    """The run, from what was saved of it or from its start; a time budget becomes a number of images here, once."""
    if saved is None and int(model.images_seen) == 0 and not recipe.private:
        if data.spec.sizes:
            if not isinstance(model, AnySize):
                raise ValueError(f"{type(model).__name__} takes images of one size; open them with fit 'crop'.")
            for size in data.spec.sizes:
                model.require_size(size)
            parts = data.train.by_size()
            model.prepare_sizes([_some(part, _PREPARED // len(parts)).x.to(model.device) for part in parts])
        else:
            some = _some(data.train, _PREPARED)
            model.prepare(some.x.to(model.device), some.given.to(model.device))
    kind, measured = (PrivateRun, private.images_for) if recipe.private else (Run, images_for)
    run = kind(model, data.train, recipe, data.fingerprint, text, data.name, shard=shard, workers=workers)
    if saved and saved.record.budget == text and "images" in saved.record.identity["recipe"]:
        run.recipe = replace(recipe, images=saved.record.identity["recipe"]["images"])
    elif budget.seconds:
        run.recipe = replace(recipe, images=measured(run, budget.seconds))
    set_rate(run)
    if saved and out:
        checkpoint.take_up(run, saved, out, allowed)
    return run
