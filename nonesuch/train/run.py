"""A run under way: raw weights, averages, optimizers and the clock. Everything random is a function of (seed, clock)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.model import Model
from nonesuch.core.objective import Batch, Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data.augment import Augment
from nonesuch.data.dataset import Images
from nonesuch.data.loader import Batches
from nonesuch.train.guard import NonFinite
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.ranks import Ranks, join
from nonesuch.train.recipe import Recipe
from nonesuch.train.shard import Sharded, part, piece, whole

_MEASURE_S, _ROUNDS = 3.0, 8  # how long a time budget's warm-up measures, and how many rounds at a time


@dataclass
class Run:
    """A run under way: the model with its raw weights, the averages, an optimizer an objective, and the clock.

    ranks: the processes that share its work, each of which has one such; shard: whether they also share its weights; workers:
    threads that make batches ahead.
    """

    model: Model
    data: Images
    recipe: Recipe
    fingerprint: str = ""
    budget: str = ""
    source: str = ""
    images: int = 0
    rounds: int = 0
    rollbacks: list[dict[str, Any]] = field(default_factory=list)  # what `guard` undid; each changes the noise of what follows
    changes: list[dict[str, Any]] = field(default_factory=list)  # what was allowed to differ when it was resumed
    ranks: Ranks = field(default_factory=join)
    shard: bool = False
    workers: int = 0
    placed: str = ""  # what train/device.py decided, in its words
    objectives: list[Objective] = field(init=False)

    def __post_init__(self) -> None:
        rows = self.ranks.rows(self.recipe.batch)
        self.ranks.spread(self.model.state_dict().values())
        self.sharded: Sharded | None = None
        if self.shard and self.ranks.world > 1:
            self.plain = copy.deepcopy(self.model).cpu()
            self.sharded = Sharded(self.model, self.ranks)
        self.objectives = self.sharded.objectives if self.sharded else self.model.objectives()
        owned = [p for o in self.objectives for p in o.parameters]
        assert len({id(p) for p in owned}) == len(owned), "a parameter has two owners"
        self.optimizers = [Adam(o, self.recipe, self.ranks) for o in self.objectives]
        self.averages = Averages(self.model, self.objectives)
        r = self.recipe
        self.batches = Batches(self.data, r.batch, r.seed, r.hide, r.augment, self.workers, rows, device=self.model.device)
        self.begun = False
        self.ranks.finished(False)

    def batch(self) -> Batch:
        """The images the clock points at, a function of the clock alone; of several processes, this one's rows of them."""
        batch = self.batches.at(self.images)
        keys = batch.keys
        if self.rollbacks:  # other noise than that which failed; the images and their order stay
            keys = Seeds(tuple(s + (len(self.rollbacks) << 64) for s in keys.seed), keys.index)
        total = self.ranks.sum if self.ranks.world > 1 else None
        return replace(batch, keys=keys, total=self.recipe.images, sum=total)

    def step(self) -> dict[str, Tensor]:
        """One round: every objective in turn, each seeing the earlier updates; then the averages and the clock.

        Raises NonFinite, in every process, before an update by what is not finite in any of them.
        """
        self._begin()
        batch, logged = self.batch(), {}
        self.averages.begin(self.recipe.average_decay(self.images + self.recipe.batch))
        for i, (objective, optimizer) in enumerate(zip(self.objectives, self.optimizers, strict=True)):
            if self.rounds % objective.every:
                continue
            grads, loss, watch = self._gradients(i, batch)
            for name, value in loss.items():
                if not torch.isfinite(value):
                    raise NonFinite(objective.name, self.images, self.recipe.batch, name, float(value))
            norm = optimizer.step(grads, self.images, None if objective.after_step else self.averages)
            if not torch.isfinite(norm):
                raise NonFinite(objective.name, self.images, self.recipe.batch)
            if objective.after_step:
                objective.after_step(batch)
            logged |= {**loss, **watch, f"{objective.name}_gradient": norm}
        self.images += self.recipe.batch
        self.rounds += 1
        self.averages.finish()
        self.model.images_seen.fill_(self.images)
        return logged

    def _begin(self) -> None:
        """Before the first round, find out that all processes do the same."""
        if self.begun or self.ranks.world == 1:
            return
        self.begun = True
        self.ranks.alike(self.recipe, self.fingerprint, len(self.data), self.images, self.rounds, self.rollbacks)

    def _gradients(self, which: int, batch: Batch) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The gradient, the loss terms and the watched numbers of the whole batch."""
        objective, weight = self.objectives[which], len(batch.x) / batch.size
        if self.sharded:
            grads, loss, watch = self.sharded.gradients(which, batch, weight)
            numbers = self.ranks.reduce([*loss.values(), *watch.values()], weight)
        else:
            terms = objective.terms(batch)
            loss, watch = terms.loss, terms.watch
            found = torch.autograd.grad(sum(loss.values()), objective.parameters)  # type: ignore[arg-type]
            reduced = self.ranks.reduce([*found, *loss.values(), *watch.values()], weight)
            grads, numbers = reduced[: len(found)], [v.detach() for v in reduced[len(found) :]]
        loss, watch = dict(zip(loss, numbers, strict=False)), dict(zip(watch, numbers[len(loss) :], strict=True))
        return grads, loss, watch

    # -- the state

    def state(self) -> dict[str, Tensor]:
        """All tensors that resuming needs, by name; gathered from all processes where weights are sharded."""
        live = dict(self.model.named_parameters())
        raw = {k: whole(part(v), v, self.ranks) for k, v in self.model.state_dict().items()}
        mean = {k: whole(v, live[k], self.ranks) for k, v in self.averages.mean.items()}
        optim = {k: v for adam in self.optimizers for k, v in adam.state().items()}
        groups = {"raw": raw, "mean": mean, "optim": optim}
        return {f"{group}/{k}": v for group, tensors in groups.items() for k, v in tensors.items()}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave, here or in a run on another number of processes."""
        groups: dict[str, dict[str, Tensor]] = {"raw": {}, "mean": {}, "optim": {}}
        for key, value in tensors.items():
            group, _, name = key.partition("/")
            groups[group][name] = value
        live = dict(self.model.named_parameters())
        targets = {"raw": self.model.state_dict(), "mean": self.averages.mean}
        for group, wanted in targets.items():
            if wanted.keys() != groups[group].keys():
                odd = sorted(wanted.keys() ^ groups[group].keys())
                raise ValueError(f"the saved state is not that of this model: {', '.join(odd[:3])} is in one of them only.")
            for name, target in wanted.items():
                like = live.get(name, target)
                part(target).copy_(piece(groups[group][name], like, self.ranks))
        for adam in self.optimizers:
            adam.load(groups["optim"])

    @contextmanager
    def averaged(self) -> Iterator[Model]:
        """The model with its averaged weights, while it lasts; with sharded weights, a gathered copy of it."""
        if self.sharded is None:
            self.averages.swap()
            try:
                yield self.model
            finally:
                self.averages.swap()
            return
        state = self.state()
        raw = {k.removeprefix("raw/"): v for k, v in state.items() if k.startswith("raw/")}
        mean = {k.removeprefix("mean/"): v for k, v in state.items() if k.startswith("mean/")}
        self.plain.to(self.model.device).load_state_dict({**raw, **mean})
        yield self.plain

    def finish(self) -> Model:
        """The model with its averaged weights, for good."""
        self.batches.close()
        self.ranks.barrier()  # nobody leaves while another still saves
        self.ranks.finished()
        if self.sharded is None:
            self.averages.swap()
            return self.model
        with self.averaged() as model:
            return model

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
            **({"computed on": self.placed} if self.placed else {}),
            **({"augmentation": Augment.of(self.recipe.augment).remark} if self.recipe.augment else {}),
        }


def images_for(run: Run, seconds: float) -> int:
    """The length, in images, of a run of so many seconds: measured on a copy that is thrown away.

    The rate is that of the quickest few rounds: the first ones allocate and choose kernels, others wait for the machine. The
    measurement comes out of the budget. Of several processes the first one's clock decides.
    """
    model = copy.deepcopy(run.plain if run.sharded else run.model).to(run.model.device)
    trial = Run(model, run.data, replace(run.recipe, images=1 << 40), ranks=run.ranks, shard=run.shard)
    begin, quickest = time.perf_counter(), math.inf
    while run.ranks.any(quickest == math.inf or time.perf_counter() - begin < min(_MEASURE_S, 0.1 * seconds))[0]:
        start = time.perf_counter()
        for _ in range(_ROUNDS):
            trial.step()
        quickest = min(quickest, (time.perf_counter() - start) / _ROUNDS)
    left = max(seconds - (time.perf_counter() - begin), 0.5 * seconds)
    return run.ranks.from_first(max(1, round(left / quickest)) * run.recipe.batch)
