"""What is not finite: the exception that names it, and the way back to the last good step.

A loss or a gradient that is not finite stops the step before its update. The weights it was computed from are usually lost
already, so the run goes back to a copy made at most `_EVERY` rounds before, with half the learning rate and other noise for all
that follows. Both are functions of `Run.rollbacks`, which is saved with the rest of the state: what resumes is exact. Copying
the state moves fewer bytes than one step of Adam and the averages does, so once in `_EVERY` rounds costs below half a percent.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nonesuch.train.run import Run

_EVERY, _MOST = 256, 3  # rounds between two copies; how often a run goes back before it is given up


class NonFinite(ArithmeticError):
    """A loss term or gradient that is not finite. `term` is None for the gradient; `images` is the clock before the batch."""

    def __init__(self, objective: str, images: int, batch: int, term: str | None = None, value: float = float("nan")) -> None:
        self.objective, self.images, self.batch, self.term, self.value = objective, images, batch, term, value
        what = "the gradient of {1!r} is not finite" if term is None else "the term {0!r} of {1!r} is {2}"
        self.what = f"{what.format(term, objective, value)} at images {images} to {images + batch - 1} of the run"
        super().__init__(f"{self.what}; stopped before that update. Lower the learning rate, or clean the data.")


class Guard:
    """The last good state of a run, in the host's memory, and the way back to it."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.keep()

    def keep(self) -> None:
        """Copy the state as it is."""
        self.state = {k: v.detach().to("cpu", copy=True) for k, v in self.run.state().items()}
        self.clock = self.run.images, self.run.rounds

    def after_round(self) -> None:
        """Copy the state if it is time; a function of the clock, so that two runs alike go back alike."""
        if self.run.rounds % _EVERY == 0:
            self.keep()

    def go_back(self, failed: NonFinite) -> str:
        """Restore the copy, halve the learning rate and change the noise; says so. Raises the failure when that is used up."""
        run = self.run
        exhausted = halvings(run) >= _MOST
        run.restore(self.state)
        run.images, run.rounds = self.clock
        if exhausted:
            raise NonFinite(failed.objective, failed.images, failed.batch, failed.term, failed.value) from failed
        run.rollbacks.append({"failed": failed.what, "to": run.images, "lr": run.recipe.lr})
        set_rate(run)
        rate = run.recipe.lr * 0.5 ** halvings(run)
        return f"{failed.what}: back to image {run.images:,}, learning rate {rate:g}, other noise."


def halvings(run: Run) -> int:
    """How often the recipe's present learning rate has been halved: rollbacks under one that was since changed do not count."""
    return sum(r["lr"] == run.recipe.lr for r in run.rollbacks)


def set_rate(run: Run) -> None:
    """Give the optimizers the run's recipe, with its learning rate halved for every rollback."""
    for optimizer in run.optimizers:
        optimizer.recipe = replace(run.recipe, lr=run.recipe.lr * 0.5 ** halvings(run))
