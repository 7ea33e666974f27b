"""What has a model learned without being told? The latents of real images: probed, clustered, mapped, and walked through.

Every `Encoder` gives latents z of an image x. They are encoded with all conditions missing, for a condition would tell the
answer. What is measured stands in `_representations`, beside the principal components of pixels: a representation that does not
beat those has learned little that a matrix does not know. The walks and the reconstructions are decoded by the model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.applications import Event, finish, require
from nonesuch.applications._representations import View, between, clustered, maps, measured, view
from nonesuch.core import artifact
from nonesuch.core.given import Category
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Encoder, Model
from nonesuch.core.seeds import Seeds, permutation
from nonesuch.data.dataset import Data, Images
from nonesuch.data.open import open as open_data
from nonesuch.evaluate._pairs import squared_distances
from nonesuch.evaluate.score import Score, bootstrap_mean, keyed

needs = (Encoder,)

WALKS, STEPS, QUERIES, NEIGHBOURS = 6, 9, 6, 5


@dataclass(frozen=True)
class Options:
    """n: images of each split that are looked at, at most; label: the column of classes (the first Category); seed."""

    n: int = 2000
    label: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.n < 10:
            raise ValueError(f"an exploration needs at least 10 images of each split, not {self.n}.")


@dataclass
class Exploration:
    """What was found, for "latents" and "PCA of pixels" each: scores by name, maps (m, 2) by name, and pictures.

    classes: their names; colours: (m,) the class, or else the cluster, of the test images mapped. reconstructed: mean squared
    error of decoding what was encoded. walks: (6, 1 + 9 + 1, C, *size), a picture, the way to another, and that one; neighbours:
    (6, 1 + 5, C, *size), a test image and its nearest training images, by view. notes: what could not be measured and why.
    """

    scores: dict[str, dict[str, Score]]
    margins: dict[str, Score]
    maps: dict[str, dict[str, np.ndarray]]
    colours: np.ndarray
    classes: list[str]
    reconstructed: Score
    walks: Tensor
    neighbours: dict[str, Tensor]
    about: dict[str, Any]
    notes: list[str]
    spec: ImageSpec

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {
            "format": 1, **self.about, "classes": self.classes, "notes": self.notes,
            "scores": {k: {name: s.to_json() for name, s in v.items()} for k, v in self.scores.items()},
            "margins": {k: s.to_json() for k, s in self.margins.items()}, "reconstruction": self.reconstructed.to_json(),
            "maps": {k: {name: np.round(m, 4).tolist() for name, m in v.items()} for k, v in self.maps.items()},
            "colours": self.colours.tolist(), "spec": asdict(self.spec),
        }  # fmt: skip

    def text(self) -> str:
        """The scores, a line each."""
        lines = [str(s) for v in self.scores.values() for s in v.values()]
        return "\n".join([*lines, *map(str, self.margins.values()), str(self.reconstructed), *self.notes])

    def save(self, path: str | Path = "explore.html") -> Path:
        """Write one HTML page with the numbers as JSON beside it, or the JSON alone for a name ending in .json."""
        from nonesuch.applications._explore_page import render

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.suffix != ".json":
                artifact.write_atomic(path, render(self).encode())
            artifact.write_atomic(path.with_suffix(".json"), json.dumps(self.to_json(), allow_nan=False).encode())
        except OSError as error:
            raise ValueError(f"the page cannot be written to {path}: {error.strerror or error}; choose another place.") from None
        return path


def explore(
    model: Model, data: Any, *, n: int = 2000, label: str | None = None, seeds: int = 0,
    progress: Callable[[Event], object] | None = None,
) -> Exploration:  # fmt: skip
    """Look at the latents of real images: linear probe, clusters, neighbours, maps and walks, beside PCA of pixels.

    model: any `Encoder`. data: Data, or what `nonesuch.data.open` takes; fitted on its training split, judged on its test split.
    n: images of each split, at most. label: the column of classes; without one there are maps, walks and neighbours only.
    Raises ValueError for a model without an encoder, images that are not the model's, or a column that is not of categories.
    """
    return finish(run(model, data, Options(n, label, seeds)), progress)  # type: ignore[no-any-return]


def run(model: Model, data: Any, options: Options) -> Iterator[Event]:
    """The events of an exploration; the last one's result is the `Exploration`."""
    require(model, needs, "explore")
    assert isinstance(model, Encoder)
    start, opened = time.perf_counter(), open_data(data)
    if (model.spec.shape, model.spec.levels) != (opened.spec.shape, opened.spec.levels):
        raise ValueError(
            f"the model takes {model.spec.shape} with {model.spec.levels} levels, and {opened.name} has {opened.spec.shape} with "
            f"{opened.spec.levels}; give images of its kind."
        )
    label, classes = labels_of(opened, options.label)
    train, test = (picked(split, label, options) for split in (opened.train, opened.test))
    latents = []
    for split in (train, test):
        yield Event(len(latents), 5, f"encoding {len(split):,} images")
        latents.append(encoded(model, split.x.float(), options.seed))
    pixels = ImageSpec(model.spec.numel, (), "", "continuous", None)
    views = [view("latents", *latents, model.latent_spec),
             view("PCA of pixels", *(s.x.float().flatten(1) for s in (train, test)), pixels)]  # fmt: skip
    yield Event(2, 5, "probing")
    scores, margins = judged(views, train, test, label, options.seed)
    yield Event(3, 5, "drawing maps")
    mapped = {v.name: maps(v, options.seed) for v in views}
    count = len(next(iter(mapped["latents"].values())))
    colours = test.labels(label).numpy() if label else clustered(views[0].train, views[0].test, 10, options.seed)
    yield Event(4, 5, "walking through latents")
    notes = [] if label else ["no probe and no agreement: the data has no column of categories."]
    about = {
        "model": artifact.model_name(type(model)), "data": opened.name, "train": len(train), "test": len(test), "label": label,
        "latent": {"shape": list(model.latent_spec.shape), "kind": model.latent_spec.kind, "levels": model.latent_spec.levels},
        "dimensions": {v.name: [v.raw, v.train.shape[1]] for v in views}, "seed": options.seed,
        "largest_class": float(train.labels(label).bincount().max() / len(train)) if label else None,
        "seconds": round(time.perf_counter() - start, 1),
    }  # fmt: skip
    result = Exploration(
        scores, margins, mapped, colours[:count], classes,
        reconstruction(decoded(model, latents[1]), test.x.float()),
        walks(model, test, latents[1], options.seed), {v.name: near(v, train, test) for v in views}, about, notes, model.spec,
    )  # fmt: skip
    yield Event(5, 5, "done", result=result)


def labels_of(data: Data, label: str | None) -> tuple[str | None, list[str]]:
    """The column of classes and their names; (None, []) where there is none."""
    found = label or next((k for k, c in data.schema.columns.items() if isinstance(c, Category)), None)
    if found is None:
        return None, []
    column = data.schema[found]
    if not isinstance(column, Category):
        raise ValueError(f"the column {found!r} is a {type(column).__name__}, not one of categories; choose another label.")
    return found, list(column.names)


def picked(split: Images, label: str | None, options: Options) -> Images:
    """At most n images of a split in a keyed order, those with a class where there are classes."""
    order = keyed("explore", split.name, options.seed).permutation(len(split))
    if label:
        order = order[split.labels(label).numpy()[order] >= 0]
    if len(order) < 10:
        raise ValueError(f"the {split.name} split has {len(order)} images to explore; at least 10 are needed.")
    return split[torch.from_numpy(order[: options.n])]


@torch.no_grad()
def encoded(model: Encoder, x: Tensor, seed: int) -> Tensor:
    """Latents (n, *latent shape) of images with all conditions missing, on the CPU."""
    keys = Seeds.of(seed, len(x))
    return torch.cat([model.encode(x[i : i + 256], None, seeds=keys[i : i + 256]).cpu() for i in range(0, len(x), 256)])


@torch.no_grad()
def decoded(model: Encoder, z: Tensor) -> Tensor:
    """Images of latents with all conditions missing, on the CPU."""
    return torch.cat([model.decode(part, None).float().cpu() for part in z.split(256)])


def reconstruction(back: Tensor, x: Tensor) -> Score:
    """The mean squared error of decoding what was encoded, on the inside scale."""
    error = (back - x).square().flatten(1).mean(1).double().numpy()
    name, interval = "squared error of reconstruction", bootstrap_mean(error, "back")
    return Score(error.mean(), name, len(error), interval=interval, resampled="test images", better="lower")


def judged(
    views: list[View], train: Images, test: Images, label: str | None, seed: int
) -> tuple[dict[str, dict[str, Score]], dict[str, Score]]:
    """Scores by view, and by how much the latents' exceed those of the baseline."""
    if label is None:
        return {}, {}
    labels = [s.labels(label).numpy() for s in (train, test)]
    scores = {v.name: measured(v, *labels, seed) for v in views}
    mine, base = (scores[v.name] for v in views)
    margins = {}
    for key in ("probe", "neighbours", "rand", "nmi"):
        value = mine[key].value - base[key].value
        half = [np.hypot(*(abs(s.interval[i] - s.value) for s in (mine[key], base[key]) if s.interval)) for i in (0, 1)]
        name = f"{mine[key].name}, latents less PCA"
        margins[key] = Score(value, name, mine[key].n, interval=(value - half[0], value + half[1]), better="higher")
    return scores, margins


@torch.no_grad()
def walks(model: Encoder, test: Images, z: Tensor, seed: int) -> Tensor:
    """(w, 1 + STEPS + 1, C, *size): between pairs of test images, each a picture, the decoded way, and the other picture."""
    assert isinstance(model, Model)
    order = permutation(seed, "explore/places", z[0].numel()).argsort()
    rows = []
    for i in range(min(WALKS, len(test) // 2)):
        a, b = 2 * i, 2 * i + 1
        way = decoded(model, between(z[a], z[b], STEPS, model.latent_spec, order))
        ends = test.inside(torch.tensor([a, b])).float()
        rows.append(torch.cat([ends[:1], model.spec.snap(way), ends[1:]]))
    return torch.stack(rows)


def near(v: View, train: Images, test: Images) -> Tensor:
    """(q, 1 + NEIGHBOURS, C, *size): test images beside their nearest training images in a view."""
    some = v.test[:QUERIES]
    index = torch.from_numpy(squared_distances(some, v.train)).argsort(dim=1, stable=True)[:, :NEIGHBOURS]
    rows = [torch.cat([test.inside(torch.tensor([q])).float(), train.inside(row).float()]) for q, row in enumerate(index)]
    return torch.stack(rows)
