"""The one training loop. It knows objectives and a clock that counts images, and nothing about any family."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.train import checkpoint, lock
from nonesuch.train.guard import Guard, NonFinite
from nonesuch.train.log import Event
from nonesuch.train.run import Run
from nonesuch.train.stopping import Impatience, Terminated, stops, whole_rounds
from nonesuch.train.watch import Watch

_LOG_S, _PREVIEW_S, _SAVE_S = 1.0, 60.0, 60.0  # how often a run logs, shows samples, and saves


def train(
    run: Run,
    out: Path | None = None,
    *,
    preview: bool = False,
    watch: Watch | None = None,
    keep: int = checkpoint.KEEP,
    remarks: Sequence[str] = (),
) -> Generator[Event, None, None]:
    """Step the run to its end, yielding events. With `out` it saves as it goes, at the end, and when it is stopped.

    A save that fails is told, and tried again when the next is due; raises SaveFailed if the last one does. What is not finite
    sends the run back to its last good step; raises NonFinite when that is used up. Raises Terminated after SIGTERM.
    """
    start, first, saved_at = time.perf_counter(), run.images, -1
    last_log = last_preview = last_save = start
    terms: dict[str, Tensor] = {}
    guard, ranks = Guard(run), run.ranks

    def event(kind: Any, **more: Any) -> Event:
        seconds = time.perf_counter() - start
        rate = max(0, run.images - first) / max(seconds, 1e-9)
        return Event(kind, run.images, run.recipe.images, seconds, rate, {k: float(v) for k, v in terms.items()}, **more)

    def save(best: bool = False) -> None:
        nonlocal saved_at, last_save
        if out:
            last_save = time.perf_counter()
            with whole_rounds():
                checkpoint.save(run, out, keep, best, watch.about() if watch else None)
            saved_at, last_save = run.images, time.perf_counter()

    plan = f"{run.recipe.images:,} images in batches of {run.recipe.batch}"
    yield event("start", text=plan + (f", resumed at {first:,}" if first else ""))
    for remark in remarks:
        yield event("warning", text=remark)
    try:
        with stops(together=ranks.world > 1) as stopped:
            while run.images < run.recipe.images:
                try:
                    with whole_rounds():
                        terms = run.step()
                        guard.after_round()
                except NonFinite as failed:
                    with whole_rounds():
                        said, saved_at = guard.go_back(failed), -1
                    if watch:
                        watch.history[:] = [look for look in watch.history if look.images <= run.images]
                    yield event("rollback", text=said)
                    continue
                now = time.perf_counter()
                if now - last_log > _LOG_S:
                    last_log = now
                    if out:
                        lock.touch(out)
                    yield event("progress")
                save_now = bool(out) and ranks.first and now - last_save > _SAVE_S
                terminated, interrupted, save_now = ranks.any(*stopped(), save_now)
                if terminated or interrupted:
                    raise Terminated if terminated else KeyboardInterrupt
                best = False
                if watch and watch.due(run.images, run.recipe.images, now - start):
                    look = watch.look(run)
                    best = out is not None and watch.better
                    yield event("watch", text=look.text, look=look, x=watch.shown)
                if preview and time.perf_counter() - last_preview > _PREVIEW_S:
                    x = _preview(run)
                    last_preview = time.perf_counter()
                    yield event("preview", x=x)
                if save_now or best:
                    try:
                        save(best)
                        yield event("saved")
                    except checkpoint.SaveFailed as error:
                        yield event("warning", text=f"{error} Training goes on, and it is tried again in {_SAVE_S:.0f} s.")
    except (KeyboardInterrupt, GeneratorExit, Terminated) as stop:  # here, or anything at all in who takes the events
        whole = not isinstance(stop, Impatience) and (run.sharded is None or isinstance(stop, Terminated))
        if whole and saved_at != run.images:
            save()
        raise
    except NonFinite:  # for good; the run is back at its last good step
        if out and run.images > checkpoint.latest(out):
            save()
        raise
    if saved_at != run.images:
        save()
    yield event("done")


def _preview(run: Run) -> Tensor:
    """16 pictures of the averaged weights, under the conditions of the first training images unless these are private."""
    given = None if run.recipe.private else run.data.given[torch.arange(16) % len(run.data)]
    with whole_rounds(), run.averaged() as model:
        return model.sample(16, given)
