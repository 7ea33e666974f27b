"""Pairs of pictures: a folder of inputs beside a folder of targets, file by file of the same name.

    inputs/a.jpg          targets/a.png             inputs/cat/b.png      targets/cat/b.png
    inputs/train/c.tif    targets/train/c.tif       inputs/d.png          targets/dog/d.png

A target is the picture that a model makes, its input the condition, a column of images. Names are those below the folders,
without suffix; where one is flat and the other has class folders, the names of the files alone. Inputs may be of another size,
depth or number of channels. Where targets are cropped or padded to one size, inputs are to the same share of them, so that both
show the same still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from nonesuch.core.given import Given, Image, Schema
from nonesuch.data.arrays import plain_images, split
from nonesuch.data.dataset import Data, Images
from nonesuch.data.decode import Asked, Decoded, decoded
from nonesuch.data.folder import find_splits, list_items, read_part
from nonesuch.data.formats import printable as shown
from nonesuch.data.hashes import in_threads
from nonesuch.data.items import Item, Left, head_of, suffix_of, walk
from nonesuch.data.made import Made
from nonesuch.data.policies import check_fit
from nonesuch.data.source import Columns, Part, Source, named, opened
from nonesuch.data.tables import Table

SOURCE = "source"  # the column of the inputs
_ASPECT = 0.02  # how far the shapes of an input and its target may differ where they are cropped


def pair(
    inputs: Any,
    targets: Any,
    *,
    column: str = SOURCE,
    fit: str | None = None,
    size: int | Sequence[int] | None = None,
    axes: str | None = None,
    columns: Columns = None,
) -> Data:
    """Data whose pictures are the targets and whose column `column` holds the input of each; fit(..., given="source").

    inputs, targets: folders whose files go together by name, or arrays (N, ...) row by row. fit, size, axes, columns: of the
    targets, as of `nonesuch.data.open`. Raises ValueError with a sentence for pictures without a partner, two of one name, files
    that cannot be read, and pairs that cropping would tear apart.
    """
    check_fit(fit)
    if fit == "bucket":
        raise ValueError("pairs are of one size: open them with fit 'crop', 'pad' or 'resize', not 'bucket'.")
    folders = [isinstance(one, (str, Path)) for one in (inputs, targets)]
    if not all(folders):
        if any(folders):
            raise ValueError("a pair is of two folders, or of two arrays; one of each does not go together.")
        return _arrays(inputs, targets, column)
    places = Path(inputs), Path(targets)
    for place in places:
        if not place.is_dir():
            raise ValueError(f"there is no folder {shown(place)}; a pair is a folder of inputs and one of targets.")
    wanted = size if size is None or isinstance(size, int) else tuple(int(s) for s in size)
    return _folders(*places, column, Asked(fit, wanted, axes), columns)


def _arrays(inputs: Any, targets: Any, column: str) -> Data:
    """Two arrays, row by row, divided by the hash of the targets."""
    if not all(isinstance(one, (np.ndarray, Tensor)) for one in (inputs, targets)):
        raise ValueError(f"cannot pair {type(inputs).__name__} and {type(targets).__name__}; give two folders or two arrays.")
    if len(inputs) != len(targets):
        raise ValueError(f"there are {len(inputs)} inputs and {len(targets)} targets; each target needs one input.")
    first, second = plain_images(inputs), plain_images(targets)
    _same_axes(len(first.spec.size), len(second.spec.size))
    return split(beside(second, first, column), "pairs")


def _folders(inputs: Path, targets: Path, column: str, asked: Asked, columns: Columns) -> Data:
    left = Left()
    parts = {kind: read_part(place, asked, left) for kind, place in find_splits(targets, left).items()}
    source = Source(f"{inputs.name} and {targets.name}", targets, parts, left.remarks())
    own = find_splits(inputs, left)
    if own.keys() != parts.keys():
        said = [", ".join(filter(None, of)) or "none" for of in (own, parts)]
        raise ValueError(f"{shown(inputs)} has the splits {said[0]} and {shown(targets)} {said[1]}; give both the same.")
    found = {kind: list_items(list(walk(place, left)), place, asked.axes) for kind, place in own.items()}
    blank = named({kind: Part(items, Table(len(items))) for kind, items in found.items()})
    splits = named(parts)
    mine = [i for kind, part in splits.items() for i in matched(blank[kind].items, part.items, inputs, targets)]
    whole = [i for part in splits.values() for i in part.items]
    data = opened(source, asked, columns)
    there = decoded(whole, [k for k, part in splits.items() for _ in part.items], asked, targets, source.name)  # as `opened` did
    found_there = decoded(mine, list(there.split), _same_share(mine, whole, data, asked), inputs, f"the inputs of {source.name}")
    return _joined(data, found_there, column)


def matched(inputs: Sequence[Item], targets: Sequence[Item], here: Path, there: Path) -> list[Item]:
    """The input of each target. Raises ValueError with a sentence where one has none, or several, or is left over."""
    ways = [_names(inputs, here), _names(targets, there)]
    if ways[0].keys() != ways[1].keys():
        ends = [Counter(key[-1] for key in way) for way in ways]
        if all(n == 1 for end in ends for n in end.values()):  # by the names of the files alone
            ways = [{(key[-1],): item for key, item in way.items()} for way in ways]
    lone = [key for key in ways[1] if key not in ways[0]]
    over = [key for key in ways[0] if key not in ways[1]]
    if lone or over:
        said = []
        if lone:
            said.append(f"{_listed(lone)} of {shown(there)} ha{'ve' if len(lone) > 1 else 's'} no input in {shown(here)}")
        if over:
            said.append(f"{_listed(over)} of {shown(here)} ha{'ve' if len(over) > 1 else 's'} no target in {shown(there)}")
        raise ValueError(
            f"{' and '.join(said)}; files of the same name are a pair ({len(inputs)} inputs, {len(targets)} targets)."
        )
    places = {item.place: key for key, item in ways[1].items()}
    return [ways[0][places[item.place]] for item in targets]


def _names(items: Sequence[Item], root: Path) -> dict[tuple[str, ...], Item]:
    found: dict[tuple[str, ...], Item] = {}
    for item in items:
        last = item.place[-1]
        key = (*item.place[:-1], last[: len(last) - len(suffix_of(last))] if item.kind == "file" else last)
        if key in found and found[key].place != item.place:
            raise ValueError(
                f"{shown(root)} holds {found[key].place[-1]} and {last}, two pictures of one name; keep one of them."
            )
        found[key] = item
    return found


def _listed(keys: Sequence[tuple[str, ...]]) -> str:
    names = ", ".join("/".join(key) for key in keys[:3])
    return f"{names} and {len(keys) - 3} more" if len(keys) > 3 else names


def _same_share(inputs: Sequence[Item], targets: Sequence[Item], data: Data, asked: Asked) -> Asked:
    """What is asked of the inputs so that they show what the targets show: nothing, where no target was cut."""
    heads = [list(in_threads(lambda i: head_of(i, asked.axes), items)) for items in (inputs, targets)]
    _same_axes(len(heads[0][0].size), len(heads[1][0].size))
    if any(len(h.size) != len(heads[0][0].size) for part in heads for h in part):
        return Asked(asked.fit, None, asked.axes)  # decoding says which
    sizes = [np.array([h.size for h in part]) for part in heads]
    alike, own = (bool((s == s[0]).all()) for s in sizes)
    if alike and own and tuple(sizes[1][0]) == data.spec.size:
        return Asked(None, None, asked.axes)
    ratio = sizes[0] / sizes[1]
    size = tuple(max(1, round(float(n))) for n in np.median(ratio, axis=0) * np.array(data.spec.size))
    policy = asked.fit or "crop"
    torn = np.abs(ratio / ratio[:, :1] - 1).max(1) > _ASPECT
    if policy != "resize" and torn.any():
        i = int(torn.argmax())
        said = [" x ".join(map(str, s[i])) for s in sizes]
        raise ValueError(
            f"{inputs[i].name} is {said[0]} and its target {said[1]}: cut to one size, they would not show the same; "
            "bring them to one shape, or open them with fit 'resize'."
        )
    return Asked(policy, size, asked.axes)


def _same_axes(inputs: int, targets: int) -> None:
    if inputs != targets:
        raise ValueError(f"the inputs have {inputs} axes and the targets {targets}; the pictures of a pair share them.")


def _joined(data: Data, found: Decoded, column: str) -> Data:
    """The data with these pictures, row by row, as a column of images."""

    def whole(images: Images) -> Images:
        n = sum(s == images.name for s in found.split)
        return beside(images, found.images(images.name, Schema(), Given(n)), column)

    own = data.own_validation and whole(data.own_validation)
    digest = blake2b("".join((data.fingerprint, *found.hashes)).encode(), digest_size=16).hexdigest()
    remarks = (*data.remarks, *(f"Inputs: {said}" for said in found.remarks))
    return Data(data.name, whole(data.train), whole(data.test), digest, remarks, own)


def beside(images: Images, inputs: Images, column: str) -> Images:
    """The pictures with an input each, row by row, as a column of images."""
    if column in images.schema.columns:
        raise ValueError(f"the targets have a condition {column!r} already; call the inputs' column otherwise (column=...).")
    schema = Schema({**images.schema.columns, column: Image(inputs.spec)})
    return replace(images, schema=schema, given=replace(Made.of(images), paired={column: inputs}).given())
