"""What every model of the family does alike: it learns and scores all positions in one pass, and draws and completes in order.

    log p(x | y) = sum_i log p(x_i | x_1, ..., x_{i-1}, y)                                                 (chain rule)

A model says three things: the vector of a condition, the head's inputs at all positions at once (those at i from tokens before i
alone), and how positions are filled one after another, computing each activation once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Completer, Guidable, Likelihood, LogProb, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._heads import Categorical, Logistics
from nonesuch.models.autoregressive._raster import Raster


class Chain(nn.Module, Likelihood, Completer, Guidable):
    """The chain rule over the tokens of `raster`, each predicted by `head`: what a model of the family is beside a `Model`."""

    spec: ImageSpec
    raster: Raster
    head: Categorical | Logistics
    device: torch.device

    @abstractmethod
    def _condition(self, given: Given) -> Tensor:
        """A vector (B, width) for each row of a condition."""

    @abstractmethod
    def outputs(self, k: Tensor, c: Tensor, keys: Seeds | None = None) -> Tensor:
        """The head's inputs (B, T, size) float32 for tokens k (B, T, values), all at once; those at i use k_<i only."""

    @abstractmethod
    def _fill(self, k: Tensor, known: Tensor, given: Given, seeds: Seeds, guidance: float = 1.0) -> Iterator[Step]:
        """Go through the positions, drawing what is not known of k (B, T, values); a step is a row of pixels."""

    def objectives(self) -> list[Objective]:
        return [Objective("model", list(self.parameters()), self._terms)]

    def _terms(self, batch: Batch) -> Terms:
        k = self.raster.tokens(batch.x)
        nats = -self.head.log_prob(self.outputs(k, self._condition(batch.given), batch.keys), k).sum(1)
        return Terms({"nats_per_dim": nats.mean() / self.spec.numel})

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        if method not in (None, "exact"):
            raise ValueError(f"the likelihood of an autoregressive model is exact; there is no method {method!r}.")
        k = self.raster.tokens(x)
        return LogProb(self.head.log_prob(self.outputs(k, self._condition(given)), k).sum(1), "exact")

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        k = torch.zeros(len(seeds), self.raster.length, self.raster.values, dtype=torch.int64, device=self.device)
        yield from self._fill(k, torch.zeros_like(k, dtype=torch.bool), given, seeds, **options)

    def _complete(self, x: Tensor, known: Tensor, given: Given, seeds: Seeds) -> Tensor:
        """Draw each unknown value given all earlier ones, known or drawn.

        That is a draw from p(unknown | known) when the known values come first in reading order. Known values further on are
        kept but do not speak for what is drawn before them.
        """
        for step in self._fill(self.raster.tokens(x), self.raster.flatten(known), given, seeds):
            last = step.x
        return torch.where(known, x, last)
