"""Arrays as pictures: numpy arrays, `.npy`, and `.npz` with x_train, y_train, x_test, y_test and class_names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.data.dataset import Data, Images, counted, fingerprint, smallest_type, split_by_content

TEST_SHARE = 0.2  # of a source that has no test split of its own


def from_array(x: Any, y: Any = None, *, levels: int | None = None, axes: str | None = None, name: str = "array") -> Data:
    """Pictures of an array (N, *size), (N, *size, channels) or (N, channels, *size), with one label a picture if y is given.

    Integers are ordinal: `levels` of them from 0 (or from the smallest, if it is negative), by default 256 for uint8, 65536 for
    uint16, and up to the largest that occurs otherwise. Floats are continuous on their own range. Channels are the last axis if
    it has at most 4 entries, else the first if that has.
    Raises ValueError for an array of another shape, NaN, or labels that do not match.
    """
    spec, values = _read(np.asarray(x), levels, axes)
    schema, given = _conditions(y, len(values), None)
    everything = Images(spec, schema, values, given)
    return split(everything, name)


def plain_images(x: Any) -> Images:
    """All pictures of an array, without conditions, as `from_array` reads them."""
    spec, values = _read(np.asarray(x), None, None)
    return Images(spec, Schema(), values, Given(len(values)))


def split(images: Images, name: str, share: float = TEST_SHARE) -> Data:
    """Data with `share` of the pictures, by hash of their content, as the test split."""
    if len(images) < 2:
        raise ValueError(f"{name} holds {len(images)} image; at least 2 are needed, one to learn from and one to test on.")
    train, test = split_by_content(images, max(1, round(share * len(images))))
    if len(train) == 0:
        raise ValueError(f"all {len(images)} images of {name} are identical; there is nothing to learn and to test.")
    schema = counted(train)
    return Data(name, replace(train, schema=schema), replace(test, schema=schema), fingerprint(images))


def open_npz(path: Path) -> Data:
    """An `.npz` or `.npy` file. x_train and x_test (with y_train, y_test, class_names) keep their split; x alone is split."""
    try:
        with path.open("rb") as file:  # closed here: numpy leaves a damaged file open
            loaded = np.load(file, allow_pickle=False)
            arrays = {"": loaded} if isinstance(loaded, np.ndarray) else {k: loaded[k] for k in loaded.files}
    except Exception as error:  # numpy, zipfile and zlib each raise their own on a damaged file
        raise ValueError(f"{path} cannot be read as numpy arrays: {str(error).rstrip('.')}.") from None
    if isinstance(loaded, np.ndarray):
        return from_array(loaded, name=path.stem)
    names = [str(n) for n in arrays["class_names"]] if "class_names" in arrays else None
    key = next((k for k in ("x_train", "x", "images", "arr_0") if k in arrays), None)
    if key is None:
        raise ValueError(f"{path} has no array x_train, x or images; it holds {', '.join(arrays) or 'nothing'}.")
    spec, values = _read(arrays[key], None, None)
    schema, given = _conditions(arrays.get("y_train" if key == "x_train" else "y"), len(values), names)
    train = Images(spec, schema, values, given)
    if "x_test" not in arrays or key != "x_train":
        return split(train, path.stem)
    test_spec, test_values = _read(arrays["x_test"], spec.levels, spec.axes, spec.value_range)
    if (test_spec.shape, test_spec.kind) != (spec.shape, spec.kind):
        kinds = f"{spec.kind} images of {spec.shape}, x_test {test_spec.kind} ones of {test_spec.shape}"
        raise ValueError(f"{path}: x_train holds {kinds}.")
    _, test_given = _conditions(arrays.get("y_test"), len(test_values), names, schema)
    test = Images(spec, schema, test_values, test_given, "test")
    return Data(path.stem, train, test, fingerprint(train) + fingerprint(test))


def labelled(index: Tensor, names: tuple[str, ...]) -> tuple[Schema, Given]:
    """One column "label" of these indices into names, with their frequencies."""
    counts = torch.bincount(index[index >= 0], minlength=len(names)).double()
    frequencies = tuple((counts / counts.sum().clamp_min(1)).tolist())
    return Schema({"label": Category(names, frequencies)}), Given(len(index), {"label": index})


def _read(
    x: np.ndarray, levels: int | None, axes: str | None, value_range: tuple[float, float] | None = None
) -> tuple[ImageSpec, Tensor]:
    """The spec of an array, and its pictures with channels first; `value_range` is that of floats, their own by default."""
    if x.dtype == object or x.ndim < 2 or x.size == 0 or x.dtype.kind not in "uifb":
        raise ValueError(
            f"an array of shape {x.shape} and type {x.dtype} holds no images; (N, height, width) of numbers is wanted."
        )
    if axes is None:
        axes = {2: "", 3: "hw", 4: "hw", 5: "dhw"}.get(x.ndim, "hw")
        axes = "dhw" if x.ndim == 4 and x.shape[-1] > 4 and x.shape[1] > 4 else axes
    if x.ndim == len(axes) + 1:
        x = x[:, None] if axes else x
    elif x.ndim != len(axes) + 2:
        raise ValueError(f"an array of shape {x.shape} does not hold images of axes {axes!r}.")
    elif axes and x.shape[-1] <= 4:
        x = np.moveaxis(x, -1, 1)
    channels, size = (x.shape[1], x.shape[2:]) if axes else (x.shape[1], ())
    if x.dtype.kind == "f":
        if not np.isfinite(x).all():
            raise ValueError("the array holds NaN or infinite values; clean it first.")
        lo, hi = float(x.min()), float(x.max())
        value_range = value_range or ((lo, hi) if hi > lo else (lo, lo + 1))
        spec = ImageSpec(channels, size, axes, "continuous", None, value_range, dtype=str(x.dtype))
        return spec, spec.from_values(torch.from_numpy(np.ascontiguousarray(x, np.float32)))
    lowest = int(value_range[0]) if value_range else min(0, int(x.min()))  # of signed values, such as those of CT
    last = int(x.max()) - lowest
    levels = levels or (256 if x.dtype == np.uint8 else 65536 if x.dtype == np.uint16 else max(2, last + 1))
    if last >= levels or levels > 2**31 or int(x.min()) < lowest:
        odd = x.max() if int(x.min()) >= lowest else x.min()
        raise ValueError(f"the array holds the value {odd}, beyond the last of its {levels} levels; give other levels=.")
    lie = (lowest, lowest + levels - 1) if lowest else None
    spec = ImageSpec(channels, size, axes, levels=levels, value_range=lie, dtype=str(x.dtype))
    shifted = x.astype(np.int64) - lowest if lowest else x
    return spec, torch.from_numpy(np.ascontiguousarray(shifted.astype(smallest_type(levels))))


def _conditions(y: Any, n: int, names: list[str] | None, schema: Schema | None = None) -> tuple[Schema, Given]:
    """The label column of y (integers index `names`, anything else names itself), or no condition."""
    if y is None:
        return Schema(), Given(n)
    raw = np.asarray(y).reshape(-1)
    if len(raw) != n:
        raise ValueError(f"there are {n} images and {len(raw)} labels; give one label an image.")
    if schema:
        known = schema.category()[1].names
    elif names and raw.dtype.kind in "ui":
        known = tuple(names)
    else:
        known = tuple(str(v) for v in np.unique(raw))
    if names and raw.dtype.kind in "ui":
        if raw.max(initial=0) >= len(names):
            raise ValueError(f"a label is {raw.max()}, but class_names has {len(names)} names.")
        index = torch.from_numpy(raw.astype(np.int64))
    else:
        place = {k: i for i, k in enumerate(known)}
        index = torch.tensor([place.get(str(v), -1) for v in raw], dtype=torch.int64)
    return (schema, Given(n, {"label": index})) if schema else labelled(index, known)
