"""A folder of pictures in the ImageFolder convention: flat, one folder a class, its own splits, or a table with `file_name`.

    photos/a.png                    no labels            photos/cat/a.png                      class folders
    photos/train/cat/a.png          its own splits       photos/metadata.csv: file_name,age    columns of a table
    photos/cat/clip7/0001.png       frames (axes="thw")  photos/sick/case3/*.dcm               slices of one volume

`train` (training), `test` (testing) and `val` (valid, validation, dev) are splits where they are all that holds pictures, or
where train stands beside one of the others; otherwise they are classes like any other (a folder of cars, buses and trains).
With train and test, val is `Data.own_validation`; with train alone beside it, val is the test split; a split alone is divided.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from nonesuch.data import formats
from nonesuch.data.dataset import Data
from nonesuch.data.decode import Asked
from nonesuch.data.formats import printable as shown
from nonesuch.data.items import Item, Left, clips, files, head_of, series_of, suffix_of, volumes, walk
from nonesuch.data.items import Part as FilePart
from nonesuch.data.source import SPLITS, Columns, Part, Source, opened
from nonesuch.data.tables import Table, find_table, read_table


def open_folder(root: Path, asked: Asked | None = None, columns: Columns = None) -> Data:
    """Read a folder of pictures. Raises ValueError with the file's name for anything that cannot be learned from as it is."""
    asked, left = asked or Asked(), Left()
    splits = find_splits(root, left)
    parts = {kind: read_part(place, asked, left) for kind, place in splits.items()}
    return opened(Source(root.name or str(root), root, parts, left.remarks()), asked, columns)


def find_splits(root: Path, left: Left | None = None) -> dict[str, Path]:
    """The folders of a root's splits, by kind; {"": root} for one that has none."""
    left = left or Left()
    held = {p: _holds_pictures(p) for p in sorted(root.iterdir()) if not p.name.startswith(".") and not p.is_symlink()}
    found: dict[str, Path] = {}
    for place in held:
        kind = SPLITS.get(place.name.lower()) if place.is_dir() else None
        if kind in found and held[place]:
            raise ValueError(f"{shown(root)} holds both {found[kind].name} and {place.name}; keep one of them.")
        if kind is not None and held[place]:
            found[kind] = place
    beside = [p for p, holds in held.items() if holds and p not in found.values()]
    if not found or find_table(root) is not None or (beside and ("train" not in found or len(found) == 1)):
        return {"": root}
    for place in beside:
        n = sum(1 for _ in walk(place, Left())) if place.is_dir() else 1
        left.counts["images beside the folders of the splits"] += n
    return found


def _holds_pictures(place: Path) -> bool:
    if place.is_dir():
        return find_table(place) is not None or next(walk(place, Left()), None) is not None
    return bool(suffix_of(place.name)) and place.is_file()


def read_part(root: Path, asked: Asked, left: Left) -> Part:
    """The items of a folder, with the conditions of its table or of its class folders."""
    table = find_table(root)
    paths = list(walk(root, left))
    items = list_items(paths, root, asked.axes)
    if table is not None:
        return _by_table(root, table, items, left)
    if not items:
        known = ", ".join(sorted(formats.suffixes()))
        raise ValueError(f"{shown(root)} holds no images ({known}); give the folder that does.")
    return Part(items, _classes(items))


def list_items(paths: Sequence[Path], root: Path, axes: str | None) -> list[Item]:
    """The items that these files are: slices of a volume and frames of a clip go together."""
    if axes == "thw":
        return clips(paths, root, _moves)
    if axes == "hw":
        return files(paths, root)
    return volumes(paths, root, [series_of(p) for p in paths])


def _moves(path: Path) -> bool:
    """Whether a file is a clip by itself."""
    said = head_of(Item((), (FilePart(shown(path), path),)), "thw")
    return said.axes == "thw"


def _classes(items: Sequence[Item]) -> Table:
    """Labels from class folders; none for a flat folder."""
    names = {i.place[0]: shown(Path(i.place[0])) for i in items if len(i.place) > 1}
    if not names:
        return Table(len(items))
    if 2 * len(names) > len(items) and all(i.kind == "series" for i in items):  # a folder a patient: a name, and no class
        said = f"The names of {len(names)} folders of {len(items)} volumes were not taken as labels; a table can say them."
        return Table(len(items), remarks=(said,))
    return Table(len(items), {"label": [names[i.place[0]] if len(i.place) > 1 else None for i in items]}, {"label": "category"})


def _by_table(root: Path, path: Path, items: Sequence[Item], left: Left) -> Part:
    """The items that a table's rows name, in its order."""
    names, table = read_table(path)
    known = {i.place: i for i in items}
    for item in items:
        for part in item.parts if item.kind != "file" else ():
            assert part.path is not None
            known.setdefault(part.path.relative_to(root).parts, item)
    found = [_named(root, name, path.name, known) for name in names]
    rest = len(items) - len(set(map(id, found)) & set(map(id, items)))
    if rest:
        left.counts[f"images that {path.name} does not name"] += rest
    twice = sum(n - 1 for n in Counter(i.place for i in found).values())
    if twice:
        left.counts[f"rows of {path.name} that name an image again, which were read as further images"] += twice
    return Part(found, table)


def _named(root: Path, name: str, table: str, known: dict[tuple[str, ...], Item]) -> Item:
    """The item of a row. Raises ValueError for a name that leads outside, or to nothing."""
    relative = Path(name.replace("\\", "/"))
    if relative.is_absolute() or ".." in relative.parts or "\0" in name:
        raise ValueError(f"{name!r} in {table} leads out of its folder; file_name is a path below {shown(root)}.")
    if relative.parts in known:
        return known[relative.parts]
    place = root / relative
    if not place.is_file():
        raise ValueError(f"{shown(place)} is named in {table} and is not there.")
    if place.is_symlink() or not place.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{shown(place)} is named in {table} and is a link; put the file itself there.")
    return Item(relative.parts, (FilePart(shown(place), place),))
