"""Conditions that are pictures: made of the pictures themselves by a degradation, or lying beside them in a file of their own.

A spoiled picture takes as much memory as the picture did and is worth keeping for a batch only, so a split holds how its column
is made. Training makes it anew at each sight of a picture, under that sight's key (loader.py). All else (watching, scoring,
previews) sees one fixed draw: that of (0, the picture's place in its source). Paired pictures stay as levels, in the few bytes
they have, perhaps in a file larger than the memory, until some rows of them are asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from nonesuch.core.degradation import Degradation, describe, name_of
from nonesuch.core.given import Given, Image, Rows
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

if TYPE_CHECKING:
    from nonesuch.data.dataset import Images

_VALUES = 1 << 22  # values of pictures that are spoiled at a time


@dataclass(frozen=True)
class Made(Rows):
    """The conditions of n pictures, those with index (n,) in `source`.

    stored: columns in memory (n, ...); paired: a picture for each of the source's; makers: what makes columns of its pictures.
    """

    source: Images
    index: Tensor
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    paired: Mapping[str, Images] = field(default_factory=dict)
    makers: Mapping[str, Degradation] = field(default_factory=dict)

    @classmethod
    def of(cls, images: Images) -> Made:
        """The conditions of a split, whatever they are."""
        columns = images.given.columns
        return columns if isinstance(columns, Made) else cls(images, torch.arange(len(images)), columns)

    def given(self) -> Given:
        """As a condition; where all is stored, a plain one."""
        return Given(len(self.index), self if self.paired or self.makers else self.stored)

    def only(self, names: Collection[str]) -> Made:
        """These columns."""
        stored, paired, makers = ({k: v for k, v in of.items() if k in names} for of in (self.stored, self.paired, self.makers))
        return Made(self.source, self.index, stored, paired, makers)  # type: ignore[arg-type]

    def kept(self, which: Tensor) -> dict[str, Tensor]:
        """The rows `which` of all columns that are not made."""
        paired = {k: v.inside(self.index[which]) for k, v in self.paired.items()}
        return {k: v.index_select(0, which) for k, v in self.stored.items()} | paired

    def __getitem__(self, name: str) -> Tensor:
        if name in self.paired:
            return self.paired[name].inside(self.index)
        if name not in self.makers:
            return self.stored[name]
        maker, rows, pieces = self.makers[name], max(1, _VALUES // max(1, self.source.spec.numel)), []
        for part in self.index.split(rows):
            pieces.append(maker(self.source.inside(part), Seeds((0,) * len(part), tuple(part.tolist()))))
        return torch.cat(pieces)

    def __iter__(self) -> Iterator[str]:
        return iter((*self.stored, *self.paired, *self.makers))

    def __len__(self) -> int:
        return len(self.stored) + len(self.paired) + len(self.makers)

    def rows(self, which: Tensor) -> Made:
        stored = {k: v[which] for k, v in self.stored.items()}
        return Made(self.source, self.index[which], stored, self.paired, self.makers)


def column_of(degradation: Degradation, spec: ImageSpec) -> Image:
    """The column that it makes of pictures of `spec`. Raises ValueError with a sentence if it does not fit them."""
    return Image(degradation.output(spec), describe(degradation))


def named(degradations: Sequence[Degradation], known: Collection[str] = ()) -> dict[str, Degradation]:
    """Degradations by the names of their columns. Raises ValueError where two have the same, or one that is `known`."""
    found: dict[str, Degradation] = {}
    for one in degradations:
        if (name := name_of(one)) in found or name in known:
            raise ValueError(f"the condition has two columns {name!r} (a degradation's column has its name); give one.")
        found[name] = one
    return found
