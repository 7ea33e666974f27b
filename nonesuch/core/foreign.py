"""Folders that other libraries wrote: a table of settings beside named tensors. Nothing is run, and pickles are never read."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

_MAX_CONFIG_BYTES = 1 << 20


def table(file: Path) -> dict[str, Any]:
    """A JSON file of settings. Raises ValueError for anything else."""
    if not file.is_file() or file.stat().st_size > _MAX_CONFIG_BYTES:
        raise ValueError(f"there is no file {file}, or it is no config; give the folder that diffusers' save_pretrained wrote.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{file} is not JSON: {error}.") from None
    if not isinstance(about, dict):
        raise ValueError(f"{file} is not a table of settings.")
    return about


def known(about: Mapping[str, Any], fixed: Mapping[str, Collection[Any]], taken: Collection[str]) -> dict[str, Any]:
    """The settings, each of which must be in `taken`, or have one of its values in `fixed`. Raises ValueError by name."""
    found = {k: v for k, v in about.items() if not k.startswith("_")}
    for name, value in found.items():
        if name in fixed and value not in fixed[name]:
            raise ValueError(
                f"it has {name} = {value!r}, which this network does not have; it takes {', '.join(map(repr, fixed[name]))}."
            )
        if name not in fixed and name not in taken:
            raise ValueError(f"it has a setting {name!r} that is not known here, so its network cannot be built.")
    return found


def tensors(file: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, in float32. Raises ValueError where there is none, or only a pickle."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        pickles = sorted(f.name for f in file.parent.glob("*.bin"))
        why = f"; {pickles[0]} is a pickle, which is never read: save it again with safetensors" if pickles else ""
        raise ValueError(f"there is no file {file}{why}.")
    try:
        with safe_open(str(file), "pt") as opened:
            return {k: opened.get_tensor(k).float() for k in opened.keys()}
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read as a safetensors file: {error}.") from None


def fill(model: nn.Module, state: Mapping[str, Tensor], but: Collection[str] = ("images_seen",)) -> None:
    """Give the model these weights, all of its own but those named. Raises ValueError if they are another network's."""
    wanted = {k: v for k, v in model.state_dict().items() if k not in but}
    odd = sorted(set(wanted) ^ set(state)) or sorted(k for k in wanted if wanted[k].shape != state[k].shape)
    if odd:
        raise ValueError(f"the file of weights does not hold the network of its config.json: {odd[0]} is missing or differs.")
    model.load_state_dict(dict(state), strict=False)
