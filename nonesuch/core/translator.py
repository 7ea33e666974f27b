"""Models that make a picture of a picture, whatever its size: a capability beside those of `core.model`.

A `Translator` is P(x | y, given) for a picture y, made of operations that know no place: a pixel of x depends on what lies within
`reach` pixels of it in y and, where the model has one, on a `glance` at the whole of y. So a picture may be cut into tiles that
overlap by as much, and the tiles put together are the picture translated as a whole.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.given import Given, Image
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds


class Translator(ABC):
    """Makes a picture of a picture of any size.

    column: the Image column that y is; ratio: sides of x over those of y; reach: how far, in pixels of y, a pixel of x looks;
    multiple: what the corner of a part must be a multiple of, for the part to be computed as it is in the whole;
    deterministic: whether the seed changes nothing.
    """

    column: str
    ratio: int
    reach: int
    multiple: int
    deterministic: bool

    def translate(self, y: Tensor, given: Any = None, *, seeds: Seeds | int = 0, glance: Tensor | None = None) -> Tensor:
        """Pictures x (B, C, *ratio size) of pictures y (B, C', *size) of any one size; on [-1, 1], not rounded to levels.

        given: the other columns, as in `sample`; glance: of the whole pictures, where y are parts of them.
        Raises ValueError for an unfitted model and for pictures of another kind.
        """
        assert isinstance(self, Model)
        self.require_fitted()
        y = self._checked(y)
        condition = self.schema.given(len(y), given).to(self.device)
        with torch.no_grad():
            return self._translate(y, condition, Seeds.of(seeds, len(y)), self._glance(y) if glance is None else glance)

    def glance(self, y: Tensor) -> Tensor | None:
        """What the model asks of whole pictures y (B, C', *size) before it makes any part, (B, ...); None if nothing."""
        with torch.no_grad():
            return self._glance(self._checked(y))

    def _checked(self, y: Tensor) -> Tensor:
        assert isinstance(self, Model)
        column = self.schema[self.column]
        assert isinstance(column, Image)
        same = y.dim() == 2 + len(column.spec.size)
        return (column.spec.of_size(tuple(y.shape[2:])) if same else column.spec).check(y, self.column).to(self.device)

    def _glance(self, y: Tensor) -> Tensor | None:
        """The same of checked pictures."""
        return None

    @abstractmethod
    def _translate(self, y: Tensor, given: Given, seeds: Seeds, glance: Tensor | None = None) -> Tensor:
        """The same of checked pictures; what `given` says of `column` is not looked at."""
