"""What a picture is conditioned on: a `Schema` of named columns, and `Given`, a batch of their values.

A value may be missing, and then says so in band: -1 in a Category, NaN in a Number or an Image, no bytes in a Text. So a
model of P(x | given) is one of P(x) too: all columns missing. Training hides a row now and then, and guidance needs that.

    schema = Schema({"label": Category(("cat", "dog")), "age": Number(mean=50.0, std=12.0)})
    schema.given(3, {"label": "cat", "age": [31, None, 70]})
"""

from __future__ import annotations

import difflib
import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

AS_TRAINED = "as trained"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error's sentence: the nearest known name, or the list of them."""
    names = [str(k) for k in known]
    near = difflib.get_close_matches(str(name), names, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(names) or 'none'}."


@dataclass(frozen=True)
class Category:
    """One of several named classes; int64 (n,), -1 when missing. `frequencies` are those of training."""

    names: tuple[str, ...]
    frequencies: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(n) for n in self.names))
        object.__setattr__(self, "frequencies", tuple(self.frequencies) or (1 / max(1, len(self.names)),) * len(self.names))
        if len(set(self.names)) != len(self.names) or len(self.frequencies) != len(self.names):
            raise ValueError("a Category needs distinct names and as many frequencies.")

    def encode(self, values: Sequence[Any], column: str) -> Tensor:
        index = {n: i for i, n in enumerate(self.names)}
        out = []
        for v in values:
            key = str(int(v)) if isinstance(v, float) and v.is_integer() else str(v)
            if v is not None and key not in index:
                raise ValueError(f"{column}={v} is not one of its categories; {did_you_mean(key, self.names)}")
            out.append(-1 if v is None else index[key])
        return torch.tensor(out, dtype=torch.int64)

    def missing(self, n: int) -> Tensor:
        return torch.full((n,), -1, dtype=torch.int64)

    def draw(self, seeds: Seeds, column: str) -> Tensor:
        logits = torch.tensor(self.frequencies).clamp_min(1e-30).log()
        return seeds.categorical(logits.expand(len(seeds), -1), f"given/{column}")

    def present(self, value: Tensor) -> Tensor:
        return value >= 0


@dataclass(frozen=True)
class Number:
    """A real number, standardised inside by `mean` and `std`; float32 (n,), NaN when missing. `quantiles` are training's."""

    mean: float = 0.0
    std: float = 1.0
    quantiles: tuple[float, ...] = ()

    def encode(self, values: Sequence[Any], column: str) -> Tensor:
        try:
            raw = [math.nan if v is None else float(v) for v in values]
        except (TypeError, ValueError):
            raise ValueError(f"{column} takes numbers, not {list(values)[:3]!r}.") from None
        if any(map(math.isinf, raw)):
            raise ValueError(f"{column} takes finite numbers; None is a missing one.")
        return (torch.tensor(raw, dtype=torch.float32) - self.mean) / self.std

    def missing(self, n: int) -> Tensor:
        return torch.full((n,), math.nan)

    def draw(self, seeds: Seeds, column: str) -> Tensor:
        if len(self.quantiles) < 2:
            return seeds.normal(f"given/{column}")
        q = torch.tensor(self.quantiles, dtype=torch.float32)
        place = seeds.uniform(f"given/{column}") * (len(q) - 1)
        low = place.floor().long()
        return (torch.lerp(q[low], q[low + 1], place - low) - self.mean) / self.std

    def present(self, value: Tensor) -> Tensor:
        return ~torch.isnan(value)


@dataclass(frozen=True)
class Text:
    """A text as UTF-8 bytes plus one, cut at `max_bytes`; int64 (n, max_bytes), zeros after its end, all zeros when missing."""

    max_bytes: int = 64

    def encode(self, values: Sequence[Any], column: str) -> Tensor:
        out = torch.zeros(len(values), self.max_bytes, dtype=torch.int64)
        for row, v in zip(out, values, strict=True):
            if v is not None:
                data = list(str(v).encode("utf-8", "surrogateescape")[: self.max_bytes]) or [32]
                row[: len(data)] = torch.tensor(data) + 1
        return out

    def missing(self, n: int) -> Tensor:
        return torch.zeros(n, self.max_bytes, dtype=torch.int64)

    def draw(self, seeds: Seeds, column: str) -> Tensor:
        raise ValueError(f"the column {column!r} is text, which cannot be drawn as trained; give the texts.")

    def present(self, value: Tensor) -> Tensor:
        return value[:, 0] > 0


@dataclass(frozen=True)
class Image:
    """A picture of `spec`; float32 (n, C, *size) on [-1, 1], NaN throughout when missing. `made_by` names its degradation."""

    spec: ImageSpec
    made_by: str | None = None

    def encode(self, values: Sequence[Any], column: str) -> Tensor:
        blank = self.missing(1)[0]
        return torch.stack([blank if v is None else self.spec.check(torch.as_tensor(v)[None], column)[0] for v in values])

    def missing(self, n: int) -> Tensor:
        return torch.full((n, *self.spec.shape), math.nan)

    def draw(self, seeds: Seeds, column: str) -> Tensor:
        raise ValueError(f"the column {column!r} is an image, which cannot be drawn as trained; give the images.")

    def present(self, value: Tensor) -> Tensor:
        return ~torch.isnan(value.flatten(1)).any(1)


Column = Category | Number | Text | Image


class Rows(Mapping[str, Tensor]):
    """Columns of which some are made when they are asked for: of fewer rows, fewer are made."""

    @abstractmethod
    def rows(self, which: Tensor) -> Mapping[str, Tensor]:
        """The same columns of these rows only."""


@dataclass(frozen=True)
class Given:
    """A batch of conditions: column name -> tensor whose first axis is the batch, coded by the schema that made it."""

    n: int
    columns: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, which: Any) -> Given:
        picked = torch.arange(self.n)[which]
        if isinstance(self.columns, Rows):
            return Given(len(picked), self.columns.rows(picked))
        same = {k: v[:1] for k, v in self.columns.items() if v.dim() > 1 and len(v) > 1 and v.stride(0) == 0}  # held once
        return Given(
            len(picked),
            {k: same[k].expand(len(picked), *v.shape[1:]) if k in same else v[which] for k, v in self.columns.items()},
        )

    def to(self, device: torch.device | str) -> Given:
        return Given(self.n, {k: v.to(device) for k, v in self.columns.items()})

    def repeat(self, times: int) -> Given:
        """Each row `times` times, neighbours together."""
        return Given(self.n * times, {k: v.repeat_interleave(times, 0) for k, v in self.columns.items()})

    def __add__(self, other: Given) -> Given:
        return Given(self.n + other.n, {k: torch.cat([v, other.columns[k]]) for k, v in self.columns.items()})


@dataclass(frozen=True)
class Schema:
    """The columns a model is conditioned on, in order; empty for an unconditional one."""

    columns: Mapping[str, Column] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.columns)

    def __getitem__(self, name: str) -> Column:
        if name not in self.columns:
            raise ValueError(f"there is no column {name!r}; {did_you_mean(name, self.columns)}")
        return self.columns[name]

    def select(self, names: Sequence[str]) -> Schema:
        """The schema of these columns only; an unknown name is answered by the nearest one."""
        return Schema({n: self[n] for n in names})

    def category(self) -> tuple[str, Category]:
        """The first Category column and its name."""
        for name, column in self.columns.items():
            if isinstance(column, Category):
                return name, column
        raise ValueError("there is no column of categories; open the data with class folders or a table, and fit(given=...).")

    def missing(self, n: int) -> Given:
        """n rows that say nothing."""
        return Given(n, {k: c.missing(n) for k, c in self.columns.items()})

    def given(self, n: int, given: Any = None, seeds: Seeds | int = 0) -> Given:
        """Read a caller's condition for n pictures.

        given: None (all missing), a Given of n rows, "as trained" (drawn from training's own frequencies, keyed by seeds), or
        {column: value, or list of n values}; columns left out are missing, and None within a list is a missing value.
        Raises ValueError for unknown columns or categories, and for lists of another length.
        """
        if given is None:
            return self.missing(n)
        if isinstance(given, Given):
            if given.n != n or set(given.columns) != set(self.columns):
                raise ValueError(
                    f"the condition has {given.n} rows of {sorted(given.columns)}; {n} of {sorted(self.columns)} wanted."
                )
            return given
        if isinstance(given, str) and given == AS_TRAINED:
            drawn = Seeds.of(seeds, n)
            return Given(n, {k: c.draw(drawn, k) for k, c in self.columns.items()})
        if not isinstance(given, Mapping):
            raise ValueError(f"given takes a dictionary such as {{'label': 3}}, not {given!r}.")
        if given and not self.columns:
            raise ValueError(
                f"this model is unconditional and cannot be given {', '.join(map(str, given))}; fit it with given=..."
            )
        columns = dict(self.missing(n).columns)
        for name, value in given.items():
            column = self[str(name)]
            values = _rows(value, n, len(column.spec.shape) if isinstance(column, Image) else None, str(name))
            columns[str(name)] = column.encode(values, str(name))
        return Given(n, columns)

    def hide(self, given: Given, rows: Tensor) -> Given:
        """The same conditions with every column missing in the rows where `rows` (n,) is true."""
        out = {}
        for k, v in given.columns.items():
            mask, column = rows.to(v.device).view(-1, *[1] * (v.dim() - 1)), self.columns[k]
            missing = torch.full_like(v, math.nan) if isinstance(column, Image) else column.missing(given.n).to(v.device)
            out[k] = torch.where(mask, missing, v)  # (images may be of another size than the usual one)
        return Given(given.n, out)


def _rows(value: Any, n: int, image_dims: int | None, column: str) -> list[Any]:
    """A scalar for all rows, or one value a row; `image_dims` are those of one picture, in a column of pictures."""
    if image_dims is None:
        value = _plain(value)
    elif isinstance(value, Tensor) or type(value).__module__ == "numpy":
        value = value if value.ndim == image_dims else list(value)
    if isinstance(value, (list, tuple)):
        if len(value) != n:
            raise ValueError(f"{column} has {len(value)} values for {n} images; give one value, or one an image.")
        return [_plain(v) if image_dims is None else v for v in value]
    return [value] * n


def _plain(value: Any) -> Any:
    """A tensor's or numpy's values as Python's."""
    return value.tolist() if isinstance(value, Tensor) or type(value).__module__ == "numpy" else value
