"""One player's share of learning: its parameters and its named loss terms.

A model lists its objectives and the loop steps them in order: a variational autoencoder has one, a generator and its critic
are two. The loop knows nothing else about a family, so there is one loop.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from nonesuch.core.given import Given
from nonesuch.core.seeds import Seeds


@dataclass(frozen=True)
class Batch:
    """What an objective sees.

    x: (B, C, *size) inside values; given: B conditions, some hidden; keys: a seed an image, new at every sight of it, for
    noise and dropout; images: the clock, in images seen before this batch; total: images of the whole run.
    """

    x: Tensor
    given: Given
    keys: Seeds
    images: int = 0
    total: int = 1

    @property
    def progress(self) -> float:
        """Share of the run behind this batch, in [0, 1]."""
        return min(1.0, self.images / max(1, self.total))


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
    lr_scale: learning rate relative to the recipe's.
    """

    name: str
    parameters: list[nn.Parameter]
    terms: Callable[[Batch], Terms]
    every: int = 1
    after_step: Callable[[Batch], None] | None = None
    average: bool = True
    lr_scale: float = 1.0
