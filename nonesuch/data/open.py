"""`open(source)`: a name ("digits"), a folder, shards, arrays or a data set of Hugging Face as `Data`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonesuch.core.given import Category, Given, Schema, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.data.arrays import from_array, open_npz
from nonesuch.data.dataset import Data, Images, counted, fingerprint, split_by_content
from nonesuch.data.decode import Asked
from nonesuch.data.folder import open_folder
from nonesuch.data.hub import is_hub, open_hub
from nonesuch.data.policies import check_fit
from nonesuch.data.shards import open_shards, shards_in
from nonesuch.data.source import Columns
from nonesuch.data.transforms import asked_size

NAMES = ("digits",)


def open(
    source: Any,
    *,
    fit: str | None = None,
    size: int | Sequence[int] | None = None,
    axes: str | None = None,
    columns: Sequence[str] | Mapping[str, str] | None = None,
) -> Data:
    """Open a source of pictures: splits are made once, by hash of the content, unless the source has its own.

    source: "digits"; a folder of pictures or of WebDataset shards; an .npy, .npz or .tar file; a numpy array or tensor (N, ...);
    {"x": ..., "y": ...}; a Dataset or DatasetDict of Hugging Face; or Data.
    fit: "crop", "pad" or "resize", how files of other sizes are brought to `size` (one number, or one an axis), or "bucket", to
    the nearest in aspect of a few sizes of that area; by default nothing is done where all agree, and otherwise they are cropped
    to a size that docs/data.md states.
    axes: "hw", "dhw" or "thw"; the files' own by default. columns: the conditions to keep, or {name: "number", "category" or
    "text"} for those whose kind should not be guessed.
    Raises ValueError with a sentence for anything that holds no pictures, or pictures that do not go together.
    """
    check_fit(fit)
    asked = Asked(fit, size if size is None or isinstance(size, int) else tuple(int(s) for s in size), axes)
    if isinstance(source, Mapping) and not is_hub(source):
        if "x" not in source:
            held = ", ".join(map(str, source)) or "nothing"
            raise ValueError(f"a dictionary of arrays needs x, and may have y; this one has {held}.")
        return _plain(from_array(source["x"], source.get("y"), axes=axes), asked, columns)
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return _plain(from_array(source, axes=axes), asked, columns)
    if is_hub(source):
        return open_hub(source, asked, columns)
    if isinstance(source, Data):
        return _plain(source, asked, columns)
    if not isinstance(source, (str, Path)):
        raise ValueError(f"cannot open {type(source).__name__}; give a name, a folder, an .npz file or an array.")
    if str(source) in NAMES:
        return _plain(_digits(), asked, columns)
    return _open_path(source, asked, columns)


def _open_path(source: str | Path, asked: Asked, columns: Columns) -> Data:
    path = Path(source)
    if path.is_dir():
        return open_shards(path, asked, columns) if shards_in(path) else open_folder(path, asked, columns)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return _plain(open_npz(path), asked, columns)
    if path.suffix == ".tar" and path.is_file():
        return open_shards(path, asked, columns)
    if path.exists():
        raise ValueError(f"{source} is a single file; give a folder of images, or an .npz file of arrays.")
    raise ValueError(
        f"there is no data {str(source)!r}: no such folder or file, and no such name; {did_you_mean(str(source), NAMES)}"
    )


def _plain(data: Data, asked: Asked, columns: Columns) -> Data:
    """Arrays as they are. Raises ValueError where they are asked to be otherwise."""
    size = asked.size if asked.size is None else asked_size(asked.size, data.spec.axes, [data.spec.size])
    if size not in (None, data.spec.size) or asked.axes not in (None, data.spec.axes):
        have = f"{' x '.join(map(str, data.spec.size))} along {data.spec.axes!r}"
        raise ValueError(f"{data.name} holds arrays of {have}, which are taken as they are; fit, size and axes are for folders.")
    if columns is None or isinstance(columns, Mapping):
        return data
    return data.select([columns] if isinstance(columns, str) else columns)


def _digits() -> Data:
    """1,797 scans of handwritten digits, 8 x 8 with 17 levels, from scikit-learn; 1,400 to train on and 397 to test.

    References: Optical Recognition of Handwritten Digits (Alpaydin, Kaynak, 1998), UCI repository
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = torch.from_numpy(np.asarray(found.target)).long()
    schema = Schema({"label": Category(tuple(map(str, range(10))))})
    levels = torch.from_numpy(np.asarray(found.images)).to(torch.uint8)[:, None]
    spec = ImageSpec(1, (8, 8), levels=17, value_range=(0, 255))  # as a file of 8 bits shows them
    everything = Images(spec, schema, levels, Given(len(levels), {"label": labels}))
    train, test = split_by_content(everything, 397)
    schema = counted(train)  # of training alone: no draw of "as trained" may know the test split
    return Data("digits", replace(train, schema=schema), replace(test, schema=schema), fingerprint(everything))
