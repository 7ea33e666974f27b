"""Which run a checkpoint is of: the model's description, the recipe and the data; what differs, and what was allowed to."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nonesuch.core import artifact
from nonesuch.core.given import did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.train.recipe import Recipe

if TYPE_CHECKING:
    from nonesuch.core.model import Model
    from nonesuch.train.run import Run

DATA = "data"


def identity(run: Run) -> dict[str, Any]:
    """What must be the same for a run to go on."""
    return {"model": artifact.describe(run.model), "recipe": dataclasses.asdict(run.recipe), DATA: run.fingerprint}


def permitted(names: Collection[str]) -> tuple[str, ...]:
    """What may change at a resume: fields of Recipe, or "data". Raises ValueError for another name."""
    known = [*(f.name for f in dataclasses.fields(Recipe)), DATA]
    given = [names] if isinstance(names, str) else list(names)
    for name in given:
        if name not in known:
            raise ValueError(f"no change of {name!r} can be allowed; {did_you_mean(name, known)}")
    return tuple(given)


def changes(saved: Mapping[str, Any], run: Run, allowed: Sequence[str], where: str) -> list[str]:
    """What differs and is allowed to. Raises ValueError, with all that differs, if anything else does."""
    try:
        found = differences(_completed(saved, run.model), identity(run))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the record of the run in {where} is damaged: {type(error).__name__} {error}.") from None
    refused = [d for d in found if not any(_is(d, name) for name in allowed)]
    if not refused:
        return found
    names = sorted({d.split(":")[0].removeprefix("recipe.").split("[")[0] for d in refused if d.startswith(("recipe.", "data:"))})
    hint = f"allow it with --allow-change {' --allow-change '.join(names)} (allow_change={names!r}), or " if names else ""
    if any(d.startswith("model.") for d in refused):
        hint = ""
    raise ValueError(f"{where} holds another run ({'; '.join(refused[:12])}); {hint}choose another folder, or remove that one.")


def require_state(run: Run, tensors: Mapping[str, Tensor], what: str) -> None:
    """Raise ValueError if the tensors are not, by name, shape and type, a state of such a run."""
    wanted = {k: v for k, v in run.state().items() if not k.startswith("optim/")}
    shapes = {f"optim/{a.objective.name}/{i}": p.shape for a in run.optimizers for i, p in enumerate(a.objective.parameters)}
    odd = sorted(wanted.keys() ^ {k for k in tensors if not k.startswith("optim/")})
    for key, value in tensors.items():
        if key.startswith("optim/"):  # a moment has its parameter's shape; the count of steps is a single number
            shape = shapes.get(key.rpartition("/")[0])
            odd += [key] if shape is None or value.shape not in (shape, ()) or not value.is_floating_point() else []
        elif key in wanted and (value.shape, value.dtype) != (wanted[key].shape, wanted[key].dtype):
            odd.append(key)
    if odd:
        listed = f"{len(odd)} tensors are missing, unknown or of another shape or type, such as {odd[0]!r}"
        raise ValueError(f"{what} is not the state of this run: {listed}.")


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """ "path: old -> new" for every leaf at which two JSON values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    plain_old, plain_new = (list(v) if isinstance(v, tuple) else v for v in (old, new))
    if isinstance(plain_old, list) and isinstance(plain_new, list) and len(plain_old) == len(plain_new):
        return [d for i, (a, b) in enumerate(zip(plain_old, plain_new, strict=True)) for d in differences(a, b, f"{path}[{i}]")]
    return [] if plain_old == plain_new else [f"{path}: {plain_old} -> {plain_new}"]


def _is(difference: str, name: str) -> bool:
    path = difference.split(":")[0]
    return path == DATA if name == DATA else path.split("[")[0] == f"recipe.{name}"


def _completed(saved: Mapping[str, Any], model: Model) -> dict[str, Any]:
    """What was recorded, with the fields that a later release added at the values that mean what the earlier one did."""
    recipe = {**_defaults(Recipe), **saved["recipe"]}
    return {**saved, "recipe": recipe, "model": _completed_model(saved["model"], model)}


def _completed_model(saved: Mapping[str, Any], model: Model) -> dict[str, Any]:
    parts = {k: _completed_model(v, model.parts[k]) if k in model.parts else v for k, v in saved.get("parts", {}).items()}  # type: ignore[arg-type]
    config = {**_defaults(type(model).Config), **saved["config"]}
    return {**saved, "config": config, "spec": {**_defaults(ImageSpec), **saved["spec"]}, "parts": parts}


def _defaults(cls: type) -> dict[str, Any]:
    if not dataclasses.is_dataclass(cls):
        return {}
    return {f.name: f.default for f in dataclasses.fields(cls) if f.default is not dataclasses.MISSING}
