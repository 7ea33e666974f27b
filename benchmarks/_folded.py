"""Pictures for the benchmarks of sampling: a model may be one of folded pictures, whose 2 x 2 pixels are four channels of one.

Folding loses nothing, so bits/dim and samples mean the same; it quarters the work of a network's first resolution. Samples are
unfolded before anything looks at them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import nonesuch as ns
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.data import Data
from nonesuch.evaluate import Extractor, Features, fit_extractor

SMALL = {"base": 32, "mults": (1, 2), "attention": (False, True), "blocks": 1, "groups": 8, "dropout": 0.0}


def folded(path: str) -> Data:
    """The data of an .npz file (x_train, y_train, x_test, y_test; pictures of one channel), folded by 2."""
    with np.load(path, allow_pickle=False) as found, tempfile.TemporaryDirectory() as folder:
        arrays = {k: found[k] for k in ("x_train", "y_train", "x_test", "y_test")}
        for name in ("x_train", "x_test"):
            n, h, w = arrays[name].shape
            cells = arrays[name].reshape(n, h // 2, 2, w // 2, 2).transpose(0, 1, 3, 2, 4)
            arrays[name] = cells.reshape(n, h // 2, w // 2, 4)
        np.savez(Path(folder) / "folded.npz", **arrays)
        return ns.data.open(Path(folder) / "folded.npz")


def factor(model: Model, spec: ImageSpec) -> int:
    """By how much the model's pictures are folded: a side of `spec` over one of the model's."""
    by = spec.size[0] // model.spec.size[0]
    if model.spec.shape != (spec.channels * by**2, *(s // by for s in spec.size)):
        raise ValueError(f"a model of {model.spec.shape} is not one of pictures of {spec.shape}, folded or not.")
    return by


def fold(x: Tensor, model: Model, spec: ImageSpec) -> Tensor:
    """Pictures as the model takes them."""
    by = factor(model, spec)
    return F.pixel_unshuffle(x, by) if by > 1 else x


def unfold(x: Tensor, model: Model, spec: ImageSpec) -> Tensor:
    """Pictures as the data has them."""
    by = factor(model, spec)
    return F.pixel_shuffle(x, by) if by > 1 else x


def seen(data: Data, name: str) -> tuple[Extractor, Features]:
    """The extractor trained on the training pictures, and the test pictures through it."""
    labels = data.train.labels() if data.schema else None
    extractor = fit_extractor(data.train.x, labels, name=name)
    return extractor, extractor.features(data.test.x, "test")


def conditions(model: Model, labels: Tensor, n: int) -> dict[str, Any] | None:
    """n values of the model's category, as `labels` have them from the first on and again; None for one without conditions."""
    if not model.schema:
        return None
    name, category = model.schema.category()
    return {name: [category.names[int(labels[i % len(labels)])] for i in range(n)]}


def train(source: str, budget: str, out: Path, config: Mapping[str, Any] = SMALL) -> Model:
    """A small unconditional DDPM of "digits", or of an .npz file's pictures, folded."""
    data = ns.data.open("digits") if source == "digits" else folded(source)
    recipe = {"batch": 128, "lr": 1e-3}
    return ns.fit("diffusion/ddpm", data, budget=budget, preset="small", config=config, recipe=recipe, out=out)
