"""Every family on the same images, with the same budget, measured by the same `Panel`: which one is for this data?

Each model is trained by `fit` with its own preset and the one budget, under the same seed and the same conditions; the classical
baselines are fitted to the same training split. A family that fails has a row that says why. With `out` every model is a
checkpoint in a folder below it, and what is finished there is not done again by the same call.

`at_once` networks can be trained at the same time, each in a process of its own (`_together.py`). A time budget is of the whole
machine: with n at once, each has an n-th of the cores for n times as long.

References:
| Deep Generative Modelling: A Comparative Review (Bond-Taylor et al., 2021) arXiv:2103.04922
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shlex
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.card import choose_preset
from nonesuch.core.given import Category, did_you_mean
from nonesuch.core.model import Model
from nonesuch.data.dataset import Data
from nonesuch.data.open import open as open_data
from nonesuch.evaluate import _together
from nonesuch.evaluate.baselines import BASELINES
from nonesuch.evaluate.comparison import CLASSICAL, Comparison, Row
from nonesuch.evaluate.panel import Measured, Panel, Subject, flat, subject_of_baseline, subject_of_model
from nonesuch.train.fit import fit
from nonesuch.train.log import Event
from nonesuch.train.recipe import Budget
from nonesuch.train.watch import Look, held_share, kept_looks

__all__ = ["Comparison", "Progress", "Row", "compare", "digest_of_code", "subjects"]

_ROW, _COLUMNS, _PAIRS = "row.safetensors", 10, 10  # a row's results; images a class in a grid; neighbours shown


@dataclass(frozen=True)
class Progress:
    """What a comparison tells while it runs: the row's name, its place among `total`, and the stage; `event` is training's."""

    row: str
    place: int
    total: int
    stage: Literal["prepare", "train", "measure", "kept", "done", "failed"]
    text: str = ""
    event: Event | None = None


def subjects(families: Sequence[str] | None, baselines: bool = True) -> list[str]:
    """Full names of what is to be compared; families: names of families, models or baselines (None: one of every family)."""
    classical = {b.replace(" ", "-").lower(): b for b in BASELINES}
    if families is None:
        there = {n.split("/")[0]: None for n in catalog.names()}
        names = [catalog.resolve_name(f) for f in there]
    else:
        names = []
        for asked in (f.strip() for f in families if f.strip()):
            key = asked.replace(" ", "-").lower()
            if key in classical:
                names.append(classical[key])
                continue
            try:
                names.append(catalog.resolve_name(asked))
            except ValueError:
                known = [*catalog.names(), *catalog.FAMILIES, *classical]
                raise ValueError(f"there is no family or model {asked!r}; {did_you_mean(asked, known)}") from None
    names += [b for b in BASELINES if baselines and b not in names]
    if not names:
        raise ValueError("there is nothing to compare; name a family, or leave the baselines in.")
    return list(dict.fromkeys(names))


def compare(
    data: Any, *, budget: str | int | Budget = "5m", families: Sequence[str] | None = None,
    given: str | Sequence[str] | None = "auto", fit: str | None = None, size: int | Sequence[int] | None = None, seeds: int = 0,
    out: str | Path | None = None, on_event: Callable[[Progress], None] | None = None, baselines: bool = True,
    limit: int = 2000, sample_seeds: int = 5, at_once: int | None = 1,
) -> Comparison:  # fmt: skip
    """Train every family on the same images with the same budget, and measure all of them alike.

    data, fit, size: Data, or what `nonesuch.data.open` takes. budget: a time ("5m") or a number of images ("200k") for each.
    families: as in `subjects`. given: the condition's columns; "auto" is the first one of categories, if there is one.
    seeds: of training and of the first set of samples. out: a folder for the checkpoints, taken up again by the same call.
    limit: the most images of a split, and samples, that are measured. at_once: networks trained at the same time (None: one a
    core, where data is a name or a folder); above 1 a script needs its `if __name__ == "__main__":`, as multiprocessing wants.
    Raises ValueError for bad names, budgets and data.
    """
    length = Budget.parse(budget)
    names = subjects(families, baselines)
    networks = [n for n in names if n not in BASELINES]
    if at_once is None:
        at_once = _together.at_once(len(networks)) if isinstance(data, (str, Path)) else 1
    elif at_once < 1 or (at_once > 1 and not isinstance(data, (str, Path))):
        raise ValueError("at_once must be at least 1, and above it the data must be a name or a folder, to be opened again.")
    opened = open_data(data, fit=fit, size=size)
    columns = _columns(opened, given)
    sides = [size] if isinstance(size, int) else [] if size is None else list(size)
    source = [str(data) if isinstance(data, (str, Path)) else opened.name]
    source += [*(["--fit", fit] if fit else []), *(["--size", "x".join(map(str, sides))] if sides else [])]
    text = (str(length.images) if length.images else f"{length.seconds:g}s") if isinstance(budget, Budget) else str(budget)
    plan = _Plan(opened, columns, tuple(source), text, length, seeds, Path(out) if out else None, limit, sample_seeds, at_once)
    tell = on_event or (lambda progress: None)
    kept = {name: plan.kept(name) for name in names}  # before anything long: another comparison's folder is refused
    tell(Progress("", 0, len(names), "prepare", "training the feature network on the real images"))
    start = time.perf_counter()
    panel = Panel.of(opened, columns, limit=limit, seed=seeds)
    prepare_s = time.perf_counter() - start
    places = {name: partial(Progress, name, place, len(names)) for place, name in enumerate(names, 1)}
    apart = [n for n in networks if not kept[n]] if at_once > 1 else []
    found = _apart(plan, panel, apart, partial(open_data, data, fit=fit, size=size), places, tell) if apart else {}
    rows = []
    for name, told in places.items():
        rows.append(kept[name] or found.get(name) or _Run(plan, panel, partial(_told, tell, told)).row(name))
        if kept[name]:
            tell(told("kept", "finished before, and read again"))
    protocol = {**_protocol(panel, plan), "prepare_s": prepare_s, "seconds": time.perf_counter() - start}
    return Comparison(_data_summary(opened, columns), protocol, rows, _grid(panel, panel.train.x))


def _told(tell: Callable[[Progress], None], told: Callable[..., Progress], *args: Any, **more: Any) -> None:
    tell(told(*args, **more))


def _apart(
    plan: _Plan, panel: Panel, names: Sequence[str], opened: Callable[[], Data], places: Mapping[str, Callable[..., Progress]],
    tell: Callable[[Progress], None],
) -> dict[str, Row]:  # fmt: skip
    """Rows of networks made by processes of their own, which open the data again."""
    work = partial(_made, replace(plan, data=None), replace(panel, data=None), opened)  # type: ignore[arg-type]
    rows = {}
    for name, value, ended in _together.made(names, work, plan.at_once):
        if not ended:
            args, more = value
            tell(places[name](*args, **more))
        elif value is None:
            rows[name] = Row(name, name.split("/")[0], plan.command(name), failed="its process ended early; is there memory?")
            tell(places[name]("failed", rows[name].failed))
        else:
            rows[name] = Row.from_json(value[0], **{k: torch.from_numpy(v) for k, v in value[1].items()})
    return rows


def _made(plan: _Plan, panel: Panel, opened: Callable[[], Data], name: str, tell: Callable[..., None]) -> tuple[Any, Any]:
    """A row as plain values and arrays, in a process of its own."""
    data = opened()
    row = _Run(replace(plan, data=data), replace(panel, data=data), tell).row(name)
    return row.to_json(), {"grid": row.grid.numpy(), "pairs": row.pairs.numpy()}


def digest_of_code(also: str = "") -> str:
    """Eight hex digits that change with any file of this package: finished rows of other code are not taken for new ones."""
    package = Path(__file__).parents[1]
    digest = hashlib.blake2b(also.encode(), digest_size=4)
    for file in sorted(package.rglob("*.py")):
        digest.update(file.relative_to(package).as_posix().encode() + file.read_bytes())
    return digest.hexdigest()


def _columns(data: Data, given: str | Sequence[str] | None) -> tuple[str, ...]:
    if given == "auto":
        return tuple(n for n, c in data.schema.columns.items() if isinstance(c, Category))[:1]
    columns = (given,) if isinstance(given, str) else tuple(given or ())
    data.schema.select(columns)
    return columns


@dataclass(frozen=True)
class _Plan:
    """What a comparison was asked for."""

    data: Data
    columns: tuple[str, ...]
    source: tuple[str, ...]
    text: str
    budget: Budget
    seed: int
    out: Path | None
    limit: int
    sample_seeds: int
    at_once: int = 1

    @property
    def length(self) -> str:
        """The budget of a process that has its share of the cores: the same seconds of the whole machine."""
        return f"{self.budget.seconds * self.at_once:g}s" if self.budget.seconds and self.at_once > 1 else self.text

    @property
    def allowance_s(self) -> float:
        """What may be spent on more sampling seeds than one: three tenths of the training time."""
        return max(5.0, 0.3 * self.budget.seconds) if self.budget.seconds else 20.0

    def folder(self, name: str) -> Path | None:
        """Where a row's checkpoint and results are kept."""
        return self.out / name.replace(" ", "-") if self.out else None

    def identity(self, name: str) -> dict[str, Any]:
        """What must be the same for finished results to be used again."""
        preset = {}
        if name not in BASELINES:
            presets = catalog.get(name).presets
            preset = dataclasses.asdict(presets[choose_preset(presets, self.data.spec)])
        asked = {"budget": self.text, "seed": self.seed, "limit": self.limit, "sample_seeds": self.sample_seeds}
        named = {"name": name, "data": self.data.fingerprint, "given": list(self.columns), **asked, "preset": preset}
        return dict(json.loads(json.dumps(named)))

    def kept(self, name: str) -> Row | None:
        """The row finished before under the same identity. Raises ValueError if the folder holds another comparison's."""
        folder = self.folder(name)
        if folder is None or not (folder / _ROW).is_file():
            return None
        pictures, about = artifact.load_tensors(folder / _ROW)
        if about.get("identity") != self.identity(name):
            raise ValueError(f"{folder} holds the results of other arguments; choose another folder, or remove that one.")
        return Row.from_json(about["row"], **pictures)

    def keep(self, row: Row) -> None:
        """Write a finished row beside its checkpoint."""
        folder = self.folder(row.name)
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            pictures = {"grid": row.grid, "pairs": row.pairs}
            artifact.save_tensors(folder / _ROW, pictures, {"identity": self.identity(row.name), "row": row.to_json()})
        except OSError as error:
            raise ValueError(f"the results cannot be written to {folder}: {error.strerror or error}.") from None

    def command(self, name: str, images: int = 0) -> str:
        """The command that makes this row's model again, or the row itself."""
        given = [word for c in self.columns for word in ("--given", c)]
        if name in BASELINES:
            only = ["--families", name.replace(" ", "-").lower(), "--no-baselines"]
            return shlex.join(["nonesuch", "compare", *self.source, *(given or ["--given", "none"]), *only])
        budget = ["--budget", str(images or self.text), "--seed", str(self.seed)]
        return shlex.join(["nonesuch", "fit", name, *self.source, *given, *budget])


@dataclass(frozen=True)
class _Run:
    """The making of one row."""

    plan: _Plan
    panel: Panel
    tell: Callable[..., None]

    def row(self, name: str) -> Row:
        """Train and measure one subject; a failure becomes a row that says why."""
        row = Row(name, CLASSICAL if name in BASELINES else name.split("/")[0], self.plan.command(name))
        try:
            subject = self.baseline(row) if name in BASELINES else self.network(row)
            allowed = {"allowance_s": self.plan.allowance_s, "sample_seeds": self.plan.sample_seeds}
            measured = self.panel.measure(subject, **allowed, tell=lambda text: self.tell("measure", text))
        except Exception as error:  # one family's failure, whatever it is, must not lose the others' hours
            row.failed = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            self.tell("failed", row.failed if isinstance(error, ValueError) else traceback.format_exc())
            return row
        _fill(row, measured, self.panel)
        self.plan.keep(row)
        self.tell("done", _line(row))
        return row

    def network(self, row: Row) -> Subject:
        """Train a model of the catalogue."""
        cls = catalog.get(row.name)
        row.card, row.citation = dataclasses.asdict(cls.card), cls.card.bibtex()
        start, last = time.perf_counter(), []
        looks: list[Look] = []

        def draw(event: Event) -> None:
            last[:] = [event]
            looks.extend([event.look] if event.look else [])
            self.tell("train", event=event)

        plan, columns, folder = self.plan, list(self.plan.columns), self.plan.folder(row.name)
        model = fit(row.name, plan.data, given=columns, budget=plan.length, seed=plan.seed, out=folder, on_event=draw)
        row.looks = [look.to_json() for look in kept_looks(folder, int(model.images_seen)) or looks]
        rate = last[0].images_per_s or _recorded_rate(folder)
        row.costs |= {"wall_s": time.perf_counter() - start, **_costs(model, rate)}
        row.command = plan.command(row.name, int(model.images_seen))
        return subject_of_model(model, self.panel, row.name)

    def baseline(self, row: Row) -> Subject:
        """Fit a classical model to the whole training split, or to the part of it that carries labels."""
        self.tell("train", "fitting")
        panel, split, labels = self.panel, self.panel.data.train, None
        if panel.label:
            split = split[(panel.labels(split) >= 0).nonzero()[:, 0]]
            labels = panel.labels(split).numpy()
        classes = len(panel.data.schema.select([panel.label]).category()[1].names) if panel.label else 1
        start = time.perf_counter()
        if split.spec.levels is None:
            raise ValueError(f"a {row.name} is fitted to levels, and these images are continuous.")
        fitted = BASELINES[row.name](split.spec.levels, classes).fit(flat(split.levels), labels, seed=self.plan.seed)
        row.costs["train_s"] = row.costs["wall_s"] = time.perf_counter() - start
        row.notes["setting"] = str(fitted.setting)
        return subject_of_baseline(fitted, panel)


def _costs(model: Model, rate: float) -> dict[str, float]:
    images = int(model.images_seen)
    costs = {"images": images, "parameters": sum(p.numel() for p in model.parameters())}
    return costs | ({"images_per_s": rate, "train_s": images / rate} if rate else {})


def _recorded_rate(folder: Path | None) -> float:
    """Images a second of a run that was finished before, from its metrics.jsonl."""
    file = folder / "metrics.jsonl" if folder else None
    lines = file.read_text().splitlines() if file and file.is_file() else []
    return next((rate for line in reversed(lines) if (rate := json.loads(line).get("images_per_s", 0)) > 0), 0.0)


def _fill(row: Row, measured: Measured, panel: Panel) -> None:
    """A row's scores, costs and pictures from what was measured."""
    row.scores, row.verdict = measured.scores, measured.verdict
    row.notes |= measured.notes
    row.costs |= {f"{k}_s": v for k, v in measured.seconds.items()}
    row.costs["sample_s_per_image"] = measured.seconds["sample"] / len(measured.images)
    row.grid = _grid(panel, measured.images)
    if measured.found is None:
        return
    closest = torch.from_numpy(measured.found.distance).argsort(stable=True)[:_PAIRS]
    first = [i for i in _grid_index(panel)[:, 0].tolist() if i >= 0 and i not in closest.tolist()][:_PAIRS]
    index = torch.cat([closest, torch.tensor(first, dtype=torch.int64)])
    near = panel.data.train.inside(torch.from_numpy(measured.found.nearest)[index]).float()
    row.pairs = torch.stack([measured.images[index].float(), near], 1)
    row.distances = [float(d) for d in measured.found.distance[index.numpy()]]
    row.copied = [bool(c) for c in measured.found.copied[index.numpy()]]


def _grid_index(panel: Panel) -> Tensor:
    """(R, 10) which of the panel's images stand where, -1 where there is none: a row a class, for the first ten classes."""
    n = len(panel.train)
    if panel.label is None:
        return torch.cat([torch.arange(n)[:100], torch.full((max(0, 100 - n),), -1)]).view(10, 10)
    labels = panel.labels(panel.train)
    rows = []
    for c in labels.unique()[:10]:
        found = (labels == c).nonzero()[:_COLUMNS, 0]
        rows.append(torch.cat([found, torch.full((_COLUMNS - len(found),), -1)]))
    return torch.stack(rows)


def _grid(panel: Panel, x: Tensor) -> Tensor:
    index = _grid_index(panel)
    grid = x.float()[index.clamp(min=0)]
    grid[index < 0] = torch.nan
    return grid


def _line(row: Row) -> str:
    """A row in one line of text."""
    shown = [
        f"{row.scores[k].value:.4g} {unit}" for k, unit in (("bits", "bits/dim"), ("FD", "FD"), ("CAS", "CAS")) if k in row.scores
    ]
    return ", ".join([*shown, row.verdict])


def _data_summary(data: Data, columns: tuple[str, ...]) -> dict[str, Any]:
    classes = {c: list(data.schema[c].names) for c in columns if isinstance(data.schema[c], Category)}  # type: ignore[union-attr]
    spec = dataclasses.asdict(data.spec)
    return {
        "name": data.name, "fingerprint": data.fingerprint, "train": len(data.train), "test": len(data.test), "spec": spec,
        "given": list(columns), "classes": classes, "remarks": list(data.remarks),
    }  # fmt: skip


def _protocol(panel: Panel, plan: _Plan) -> dict[str, Any]:
    extractor = panel.extractor
    return {
        "budget": plan.text, "seed": plan.seed, "n": len(panel.train), "test": len(panel.test), "label": panel.label,
        "sample_seeds": plan.sample_seeds, "watched": round(held_share(plan.data) * len(plan.data.train)),
        "extractor": extractor.name if extractor else "pixels", "extractor_sha256": extractor.sha256 if extractor else "",
        "note": panel.note, "threads": torch.get_num_threads(), "at_once": plan.at_once,
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "torch": str(torch.__version__), "distances": panel.distances["train"].extractor,
    }  # fmt: skip
