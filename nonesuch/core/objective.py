"""One player's share of learning: its parameters and its named loss terms.

A model lists its objectives and the loop steps them in order: a variational autoencoder has one, a generator and its critic
are two. The loop knows nothing else about a family, so there is one loop.

Where several processes train together, each sees some rows of the whole batch, and the loop averages gradients and terms over the
processes by their shares of the rows. Terms that are means over rows need nothing more. What else couples the rows of a batch
says so through `Batch`: its `size`, the places of its `rows`, its `first` key, `mean` over some rows, and `whole`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from nonesuch.core.given import Given
from nonesuch.core.seeds import Seeds


@dataclass(frozen=True)
class Batch:
    """What an objective sees: those rows of the whole batch that this process has, which is usually all of them.

    x: (B, C, *size) inside values; given: B conditions, some hidden; keys: a seed an image, new at every sight of it, for
    noise and dropout; images: the clock, in images seen before this batch; total: images of the whole run; rows: the places
    of the B rows in the whole batch; size: how many rows that has; sum: adds a tensor up over the processes.
    """

    x: Tensor
    given: Given
    keys: Seeds
    images: int = 0
    total: int = 1
    rows: range = range(0)
    size: int = 0
    sum: Callable[[Tensor], Tensor] | None = None

    def __post_init__(self) -> None:
        if self.size == 0:
            object.__setattr__(self, "rows", range(len(self.x)))
            object.__setattr__(self, "size", len(self.x))

    @property
    def progress(self) -> float:
        """Share of the run behind this batch, in [0, 1]."""
        return min(1.0, self.images / max(1, self.total))

    @property
    def first(self) -> Seeds:
        """The key of the whole batch's first image, for what is drawn once a batch."""
        return Seeds(self.keys.seed[:1], (self.keys.index[0] - self.rows.start,))

    def before(self, place: int) -> int:
        """How many of these rows stand before `place` in the whole batch; they come first."""
        return len(range(self.rows.start, min(place, self.rows.stop), self.rows.step))

    def mean(self, values: Tensor, of: int) -> Tensor:
        """A term: the mean over `of` rows of the whole batch, of which `values` (b,) are those that are here.

        What is returned is so weighted that the loop's average over the processes is that mean.
        """
        return values.mean(0) if len(self.rows) == self.size else values.sum(0) * (self.size / (of * len(self.rows)))

    def whole(self, mean: Tensor) -> Tensor:
        """A mean over these rows -> its value over the whole batch; for terms that bend it, such as a clamp.

        Its gradient is that of these rows alone: by the chain rule, the loop's average over the processes is then the gradient
        of the term of the whole batch.
        """
        if self.sum is None:
            return mean
        own = mean.detach()
        return mean + (self.sum(own * (len(self.rows) / self.size)) - own)


@dataclass(frozen=True)
class Terms:
    """`loss`: named scalars, weights applied, whose sum is minimised; `watch`: scalars that are only logged."""

    loss: dict[str, Tensor]
    watch: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Objective:
    """One optimizer's parameters and terms.

    name: such as "model", "generator", "critic"; parameters: each parameter has at most one owner; terms: batch -> Terms in
    float32; every: stepped at each `every`-th round; after_step: called with the batch when the parameters have moved;
    average: whether an exponential average is kept of these parameters (those that sample, not critics);
    lr_scale: learning rate relative to the recipe's; second_derivatives: whether terms differentiate through gradients.
    """

    name: str
    parameters: list[nn.Parameter]
    terms: Callable[[Batch], Terms]
    every: int = 1
    after_step: Callable[[Batch], None] | None = None
    average: bool = True
    lr_scale: float = 1.0
    second_derivatives: bool = False
