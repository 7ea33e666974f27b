"""Restoration from files to files: pictures read as what a degradation makes, and samples, mean, spread and a sheet written.

Under the name of each picture stand its samples (name-0.png, name-1.png, ...), their mean (name-mean.png) and their deviation
(name-spread.png, white where it is half of the range or more); sheet.png shows, a row a picture, the truth if it is known, what
was measured, up to six samples, the mean and the spread.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.applications.provenance import SOURCES, origins, stamping
from nonesuch.applications.restore import Restored
from nonesuch.applications.translate_files import paths_in
from nonesuch.core.artifact import write_atomic
from nonesuch.core.degradation import Degradation, Mask, name_of
from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.data import formats
from nonesuch.data.open import NAMES
from nonesuch.data.open import open as open_data
from nonesuch.data.pictures import Write, file_name, png_bytes, sheet, stored

_DEPTHS = {"uint8": 255, "uint16": 65535}
_SHOWN, _SIDE_PX = 6, 48  # samples in the sheet, and the least side of a picture there


def good(source: str, model: Model, most: int) -> tuple[Tensor, list[str]]:
    """Good pictures (n, C, *size) to be spoiled, at most so many, and their names: files, or the test split of opened data."""
    _positive(most)
    spec = model.spec
    if source in NAMES or Path(source).suffix in (".npz", ".npy"):
        test = open_data(source).test
        x = test.x[:most]
        if not len(x):
            raise ValueError(f"{source} has no test pictures to spoil.")
        if tuple(x.shape[1:]) != spec.shape:
            raise ValueError(f"{source} holds pictures of {tuple(x.shape[1:])}, and this model's are {spec.shape}.")
        return x, [f"{i:04d}" for i in range(len(x))]
    x, names = _files(source, spec, model, most)
    return spec.snap(x.clamp(-1, 1) if spec.kind == "ordinal" else x), names


def measured(source: str, degradation: Degradation, model: Model, most: int) -> tuple[Tensor, list[str]]:
    """Spoiled pictures as the degradation makes them of this model's, and their names."""
    if isinstance(degradation, Mask):
        raise ValueError("pictures with holes are for nonesuch inpaint, where alpha or --mask says where they are.")
    if source in NAMES:
        raise ValueError(f"{source} are good pictures; say --spoil to spoil them first, or give spoiled files.")
    return _files(source, degradation.output(model.spec), model, most)


def with_holes(source: str, mask: Path | None, model: Model, most: int) -> tuple[Tensor, list[str]]:
    """Pictures with one more channel that says what is known, as a `Mask` makes them, by their alpha or the mask's white."""
    spec = model.spec
    if source in NAMES:
        raise ValueError(f"{source} have no holes; say --hide half to make some, or give files.")
    if mask is None:
        y, names = _files(source, replace(spec, channels=spec.channels + 1), model, most, "needs an alpha channel, or --mask")
        known = y[:, -1:] > 0
        return torch.cat([y[:, :-1] * known, known * 2.0 - 1], 1), names
    x, names = _files(source, spec, model, most)
    found = formats.read(mask).values
    if tuple(found.shape[1:]) != spec.size:
        raise ValueError(f"{mask.name} is {_by(found.shape[1:])}, and the model's pictures are {_by(spec.size)}.")
    known = ~torch.from_numpy(found[:1].astype(np.float64) > found.max() / 2)[None]
    return torch.cat([x * known, (known * 2.0 - 1).expand(len(x), 1, *spec.size)], 1).float(), names


def _files(source: str, wanted: ImageSpec, model: Model, most: int, hint: str = "") -> tuple[Tensor, list[str]]:
    """Files as pictures of `wanted`, on [-1, 1] and not rounded."""
    _positive(most)
    found, names = [], []
    for path, place in paths_in(Path(source))[:most]:
        name = formats.printable(path)
        picture = formats.read(path, axes=wanted.axes if wanted.axes in ("dhw", "thw") else None)
        values, dtype = picture.values, str(picture.values.dtype)
        if values.shape[0] == wanted.channels + 1 and not hint and bool((values[-1] == values[-1].max()).all()):
            values = values[:-1]  # an alpha that hides nothing
        if tuple(values.shape) != wanted.shape:
            said = hint or f"{_by(wanted.shape)} is wanted"
            raise ValueError(f"{name} is {_by(values.shape)} (channels first), and {said}.")
        if dtype in (wanted.dtype, model.spec.dtype):
            span = model.spec.value_range or (0.0, float((model.spec.levels or 2) - 1))
            plain = replace(wanted, kind="continuous", levels=None, value_range=span) if model.spec.levels else wanted
            x = plain.from_values(torch.from_numpy(values.astype(np.float64)))
        elif dtype in _DEPTHS:
            x = torch.from_numpy(values.astype(np.float32)) * (2 / _DEPTHS[dtype]) - 1
        else:
            raise ValueError(f"{name} holds {dtype}; the model takes pictures of 8 or 16 bits, or of {model.spec.dtype}.")
        found.append(x.float())
        names.append(file_name("-".join(place.with_suffix("").parts)))
    return torch.stack(found), [n if names.count(n) == 1 else f"{i}-{n}" for i, n in enumerate(names)]


def _positive(most: int) -> None:
    if most < 1:
        raise ValueError(f"-n must be at least 1, not {most}.")


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def report(found: Restored, x: Tensor | None) -> dict[str, Any]:
    """What there is to say in numbers: consistency (rms of y - f(x)), and error (rms of the mean) where the truth x is known."""
    said: dict[str, Any] = {"method": found.method, "honest": found.honest, "seconds": round(found.seconds, 2)}
    said["consistency"] = round(float(found.error.square().mean().sqrt()), 5)
    if x is not None:
        said["error"] = round(float((found.mean.cpu() - x).square().mean().sqrt()), 5)
    return said


def write(
    found: Restored, y: Tensor, x: Tensor | None, names: list[str], model: Model, degradation: Degradation, given: Given,
    out: Path, seed: int, job: str,
) -> None:  # fmt: skip
    """Write every sample, mean and spread, and the sheet; job: what is to stand in the files as what made them, "": nothing."""
    spec, samples = model.spec, found.x.shape[1]
    spread = (found.spread.nan_to_num(0) * 2 - 1).clamp(-1, 1) if spec.kind == "ordinal" else found.spread.nan_to_num(0)
    out.mkdir(parents=True, exist_ok=True)
    save = _writer(model, degradation, given, seed, job, found, samples)
    for i, name in enumerate(names):
        for j, picture in enumerate([*found.x[i], found.mean[i], spread[i]]):
            word = str(j) if j < samples else ("mean", "spread")[j - samples]
            data, suffix = save(stored(picture, spec), i * (samples + 2) + j)
            write_atomic(out / f"{name}-{word}{suffix}", data)
    pixels = sheet(before_and_after(found, y, x, spec), spec)
    if not job:
        write_atomic(out / "sheet.png", png_bytes(_enlarged(pixels, spec)))
        return
    rgba = formats.Picture(_enlarged(pixels, spec).permute(2, 0, 1).contiguous().numpy())
    write_atomic(out / "sheet.png", save(rgba, None)[0])


def before_and_after(found: Restored, y: Tensor, x: Tensor | None, spec: ImageSpec) -> Tensor:
    """Rows of the sheet (B, K, C, *size): the truth x, what was measured, samples, mean, spread."""
    spread = (found.spread.nan_to_num(0) * 2 - 1).clamp(-1, 1)
    parts = [] if x is None else [x]
    parts += [shown(y, spec), *found.x[:, :_SHOWN].unbind(1), found.mean, spread]
    return torch.stack([p.cpu() for p in parts], 1)


def shown(y: Tensor, spec: ImageSpec) -> Tensor:
    """Measurements as pictures of the model's channels and size; hidden pixels are NaN, which is transparent."""
    if y.shape[1] == spec.channels + 1 and y.shape[2:] == torch.Size(spec.size):
        y = torch.where(y[:, -1:] > 0, y[:, :-1], torch.nan)
    if y.shape[1] != spec.channels:
        y = y[:, :1].expand(-1, spec.channels, *y.shape[2:])
    if tuple(y.shape[2:]) != spec.size:
        y = torch.nn.functional.interpolate(y, spec.size, mode="nearest-exact")
    return y


def _enlarged(pixels: Tensor, spec: ImageSpec) -> Tensor:
    scale = max(1, _SIDE_PX // (spec.size[-1] if spec.size else 1))
    return pixels.repeat_interleave(scale, 0).repeat_interleave(scale, 1)


def _writer(
    model: Model, degradation: Degradation, given: Given, seed: int, job: str, found: Restored, samples: int
) -> Callable[..., tuple[bytes, str]]:
    """Makes a picture's file, with what made it where a job is named."""
    if not job:
        return lambda picture, index: formats.encode(picture)
    plain = {"method": found.method, "degradation": name_of(degradation), "samples": samples}
    made = origins(model, job, given, seed, plain, source=SOURCES[1])
    words = [*range(samples), "mean", "spread"]
    every = [replace(one, options={**one.options, "sample": word}) for one in made for word in words]
    save: Write = stamping(every, model.spec)
    return save
