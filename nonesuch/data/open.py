"""`open(source)`: a name ("digits"), a folder, an array or an .npz file as `Data`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nonesuch.core.given import Category, Given, Schema, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.data.arrays import from_array, open_npz
from nonesuch.data.dataset import Data, Images, fingerprint, split_by_content
from nonesuch.data.folder import open_folder

NAMES = ("digits",)


def open(source: Any) -> Data:
    """Open a source of pictures: splits are made once, by hash of the content, unless the source has its own.

    source: "digits"; a folder of pictures; an .npy or .npz file; a numpy array or tensor (N, ...); {"x": ..., "y": ...}; or Data.
    Raises ValueError with a sentence for anything that holds no pictures, or pictures that differ in size or mode.
    """
    if isinstance(source, Data):
        return source
    if isinstance(source, Mapping):
        if "x" not in source:
            held = ", ".join(map(str, source)) or "nothing"
            raise ValueError(f"a dictionary of arrays needs x, and may have y; this one has {held}.")
        return from_array(source["x"], source.get("y"))
    if isinstance(source, (np.ndarray, torch.Tensor)):
        return from_array(source)
    if not isinstance(source, (str, Path)):
        raise ValueError(f"cannot open {type(source).__name__}; give a name, a folder, an .npz file or an array.")
    path = Path(source)
    if str(source) in NAMES:
        return _digits()
    if path.is_dir():
        return open_folder(path)
    if path.suffix in (".npz", ".npy") and path.is_file():
        return open_npz(path)
    if path.exists():
        raise ValueError(f"{source} is a single file; give a folder of images, or an .npz file of arrays.")
    raise ValueError(
        f"there is no data {str(source)!r}: no such folder or file, and no such name; {did_you_mean(str(source), NAMES)}"
    )


def _digits() -> Data:
    """1,797 scans of handwritten digits, 8 x 8 with 17 levels, from scikit-learn; 1,400 to train on and 397 to test.

    References: Optical Recognition of Handwritten Digits (Alpaydin, Kaynak, 1998), UCI repository
    """
    from sklearn.datasets import load_digits

    found = load_digits()
    labels = torch.from_numpy(np.asarray(found.target)).long()
    counts = torch.bincount(labels).double() / len(labels)
    schema = Schema({"label": Category(tuple(map(str, range(10))), tuple(counts.tolist()))})
    levels = torch.from_numpy(np.asarray(found.images)).to(torch.uint8)[:, None]
    spec = ImageSpec(1, (8, 8), levels=17, value_range=(0, 16))
    everything = Images(spec, schema, levels, Given(len(levels), {"label": labels}))
    train, test = split_by_content(everything, 397)
    return Data("digits", train, test, fingerprint(everything))
