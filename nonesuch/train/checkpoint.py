"""The state a run resumes from: `resume.safetensors`, one file, renamed into place."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nonesuch.core import artifact

if TYPE_CHECKING:
    from nonesuch.train.fit import Run

RESUME = "resume.safetensors"


def identity(run: Run) -> dict[str, Any]:
    """What must be the same for a run to go on: the model's description, the recipe, the data."""
    return {"model": artifact.describe(run.model), "recipe": dataclasses.asdict(run.recipe), "data": run.fingerprint}


def save(run: Run, folder: Path) -> None:
    """Write raw weights, averages, optimizers and the clock, and beside them the averaged model."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        raw = {f"raw/{k}": v for k, v in run.model.state_dict().items()}
        mean = {f"mean/{k}": v for k, v in run.averages.mean.items()}
        optim = {f"optim/{k}": v for adam in run.optimizers for k, v in adam.state().items()}
        about = {**identity(run), "images": run.images, "rounds": run.rounds, "budget": run.budget}
        artifact.save_tensors(folder / RESUME, {**raw, **mean, **optim}, about)
    except OSError as error:
        raise ValueError(f"the run cannot be saved to {folder}: {error.strerror or error}; the last save is unharmed.") from None
    run.averages.swap()
    try:
        artifact.save(run.model, folder, run.about())
    finally:
        run.averages.swap()


def recorded(folder: Path) -> dict[str, Any] | None:
    """The description of the run saved in the folder, or None."""
    return artifact.load_tensors(folder / RESUME)[1] if (folder / RESUME).is_file() else None


def load(run: Run, folder: Path) -> None:
    """Take up the run where the folder has it. Raises ValueError if it is another run, with what differs."""
    tensors, about = artifact.load_tensors(folder / RESUME)
    changed = sorted(differences(about, {**about, **identity(run)}))
    if changed:
        raise ValueError(f"{folder} holds another run ({'; '.join(changed[:4])}); choose another folder, or remove that one.")
    groups: dict[str, dict[str, torch.Tensor]] = {"raw": {}, "mean": {}, "optim": {}}
    for key, value in tensors.items():
        group, name = key.split("/", 1)
        groups[group][name] = value
    run.model.load_state_dict(groups["raw"])
    with torch.no_grad():
        for name, value in groups["mean"].items():
            run.averages.mean[name].copy_(value)
    for adam in run.optimizers:
        adam.load(groups["optim"])
    run.images, run.rounds = about["images"], about["rounds"]


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """ "path: old -> new" for every leaf at which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    plain_old, plain_new = (list(v) if isinstance(v, tuple) else v for v in (old, new))
    if isinstance(plain_old, list) and isinstance(plain_new, list) and len(plain_old) == len(plain_new):
        return [d for i, (a, b) in enumerate(zip(plain_old, plain_new, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    return [] if plain_old == plain_new else [f"{path}: {plain_old} -> {plain_new}"]
