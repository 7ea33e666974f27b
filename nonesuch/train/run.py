"""A run under way: raw weights, averages, optimizers and the clock. Everything random is a function of (seed, clock)."""

from __future__ import annotations

import copy
import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from nonesuch.core.model import Model
from nonesuch.core.objective import Batch, Objective
from nonesuch.core.seeds import permutation
from nonesuch.data.dataset import Images, batch_keys
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.recipe import Recipe

_MEASURE_S, _ROUNDS = 3.0, 8  # how long a time budget's warm-up measures, and how many rounds at a time


@dataclass
class Run:
    """A run under way: the model with its raw weights, the averages, an optimizer an objective, and the clock."""

    model: Model
    data: Images
    recipe: Recipe
    fingerprint: str = ""
    budget: str = ""
    source: str = ""
    images: int = 0
    rounds: int = 0
    objectives: list[Objective] = field(init=False)

    def __post_init__(self) -> None:
        self.objectives = self.model.objectives()
        owned = [p for o in self.objectives for p in o.parameters]
        assert len({id(p) for p in owned}) == len(owned), "a parameter has two owners"
        self.optimizers = [Adam(o, self.recipe) for o in self.objectives]
        self.averages = Averages(self.model, self.objectives)
        self.x = self.data.x

    def batch(self) -> Batch:
        """The images the clock points at: a keyed permutation an epoch, so the order is a function of the clock alone."""
        n, size = len(self.data), self.recipe.batch
        index, at = [], self.images
        while at < self.images + size:
            epoch, within = divmod(at, n)
            index.append(permutation(self.recipe.seed, "order", n, epoch)[within : within + self.images + size - at])
            at += len(index[-1])
        which, keys = torch.cat(index), batch_keys(self.recipe.seed, self.images, size)
        given = self.data.given[which]
        if self.data.schema:
            given = self.data.schema.hide(given, keys.uniform("hide") < self.recipe.hide)
        device = self.model.device
        return Batch(self.x[which].to(device), given.to(device), keys, self.images, self.recipe.images)

    def step(self) -> dict[str, torch.Tensor]:
        """One round: every objective in turn, each seeing the earlier updates; then the averages and the clock."""
        batch, logged = self.batch(), {}
        for objective, optimizer in zip(self.objectives, self.optimizers, strict=True):
            if self.rounds % objective.every:
                continue
            terms = objective.terms(batch)
            for name, value in terms.loss.items():
                if not torch.isfinite(value):
                    raise self._stopped(f"the term {name!r} of {objective.name!r} is {float(value.detach())}")
            grads = torch.autograd.grad(sum(terms.loss.values()), objective.parameters)  # type: ignore[arg-type]
            norm = optimizer.step(grads, self.images)
            if not torch.isfinite(norm):
                raise self._stopped(f"the gradient of {objective.name!r} is not finite")
            if objective.after_step:
                objective.after_step(batch)
            logged |= {**terms.loss, **terms.watch, f"{objective.name}_gradient": norm}
        self.images += self.recipe.batch
        self.rounds += 1
        self.averages.update(self.recipe.average_decay(self.images))
        self.model.images_seen.fill_(self.images)
        return {k: v.detach() for k, v in logged.items()}

    def _stopped(self, what: str) -> ValueError:
        batch = f"images {self.images} to {self.images + self.recipe.batch - 1} of the run"
        return ValueError(f"{what} at {batch}; stopped before that update. Lower the learning rate, or clean the data.")

    def about(self) -> dict[str, Any]:
        """What the model card says of this run."""
        return {
            "data": self.source,
            "fingerprint": self.fingerprint,
            "budget": self.budget,
            "images": self.images,
            "batch": self.recipe.batch,
            "learning rate": self.recipe.lr,
            "seed": self.recipe.seed,
        }


@contextmanager
def whole_rounds() -> Iterator[None]:
    """Ctrl-C waits for the end of the round, so that what is then saved resumes exactly; a second one does not wait."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    came: list[int] = []

    def note(number: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if came:
        raise KeyboardInterrupt


def images_for(run: Run, seconds: float) -> int:
    """The length, in images, of a run of so many seconds: measured on a copy that is thrown away.

    The rate is that of the quickest few rounds: the first ones allocate and choose kernels, others wait for the machine. The
    measurement comes out of the budget.
    """
    trial = Run(copy.deepcopy(run.model), run.data, replace(run.recipe, images=1 << 40))
    begin, quickest = time.perf_counter(), math.inf
    while quickest == math.inf or time.perf_counter() - begin < min(_MEASURE_S, 0.1 * seconds):
        start = time.perf_counter()
        for _ in range(_ROUNDS):
            trial.step()
        quickest = min(quickest, (time.perf_counter() - start) / _ROUNDS)
    left = max(seconds - (time.perf_counter() - begin), 0.5 * seconds)
    return max(1, round(left / quickest)) * run.recipe.batch
