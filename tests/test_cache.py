"""Decoded once: the second opening reads no picture, a changed byte is noticed, and nothing half written is ever seen."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from nonesuch import data
from nonesuch.core.seeds import Seeds
from nonesuch.data import cache, decode, formats
from nonesuch.data.dataset import take
from nonesuch.data.decode import Asked
from nonesuch.data.folder import open_folder

N = 40


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, used for the smallest of sets."""
    monkeypatch.setenv("NONESUCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("NONESUCH_CACHE_GIB", raising=False)
    monkeypatch.setattr(decode, "_IN_MEMORY_BYTES", 0)
    return tmp_path / "cache"


def photos(root: Path, n: int = N, high: int = 256, dtype: type = np.uint8) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for i, array in enumerate(Seeds.of(0, n).integers("scene", high, 6, 7).numpy().astype(dtype)):
        Pillow.fromarray(array).save(root / f"{i:03}.tif")
    settle(root)
    return root


def settle(root: Path) -> None:
    """Let files look as if they were there for a while: a file changed just now is never trusted by its times."""
    time.sleep(0.15)
    assert root.is_dir()


class Counted:
    """How many files were decoded and how many hashed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.read, self.hashed = 0, 0
        read, hashed = formats.read, data.hashes.hash_of

        def reading(*args: object) -> formats.Picture:
            self.read += 1
            return read(*args)  # type: ignore[arg-type]  # passed on as it came

        def hashing(*args: object) -> str:
            self.hashed += 1
            return hashed(*args)  # type: ignore[arg-type]  # passed on as it came

        monkeypatch.setattr(formats, "read", reading)
        monkeypatch.setattr(data.hashes, "hash_of", hashing)

    def since(self) -> tuple[int, int]:
        found, self.read, self.hashed = (self.read, self.hashed), 0, 0
        return found


def entries(place: Path) -> list[Path]:
    return sorted(p.parent for p in place.glob("*/about.json"))


def same(a: data.Data, b: data.Data) -> bool:
    levels = torch.equal(a.train.levels, b.train.levels) and torch.equal(a.test.levels, b.test.levels)
    return levels and (a.fingerprint, a.spec, a.remarks, a.schema) == (b.fingerprint, b.spec, b.remarks, b.schema)


def test_the_second_opening_neither_hashes_nor_decodes(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    folder, counted = photos(tmp_path / "photos"), Counted(monkeypatch)
    first = data.open(folder)
    assert counted.since() == (N, N)
    again = data.open(folder)
    assert counted.since() == (0, 0)
    assert same(first, again)
    assert len(entries(place)) == 1
    monkeypatch.setattr(decode, "_IN_MEMORY_BYTES", 1 << 30)
    for old in entries(place):
        (old / "about.json").unlink()
    assert same(first, data.open(folder))  # what is decoded into memory is the same


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.float32])
def test_every_type_is_the_same_from_the_cache(dtype: type, tmp_path: Path):
    folder = tmp_path / "photos"
    folder.mkdir()
    import tifffile

    for i, array in enumerate(Seeds.of(0, N).integers("scene", 256 if dtype == np.uint8 else 30_000, 6, 7).numpy()):
        tifffile.imwrite(folder / f"{i:03}.tif", (array - (5000 if np.dtype(dtype).kind in "if" else 0)).astype(dtype))
    first, again = data.open(folder), data.open(folder)
    assert same(first, again)
    values = first.spec.to_values(torch.cat([first.train.x, first.test.x])).numpy()
    wanted = Seeds.of(0, N).integers("scene", 256 if dtype == np.uint8 else 30_000, 6, 7).numpy() - (
        5000 if np.dtype(dtype).kind in "if" else 0
    )
    assert np.abs(np.sort(values.ravel()) - np.sort(wanted.ravel())).max() < (0.01 if dtype == np.float32 else 1e-6)


def test_names_do_not_matter_and_bytes_do(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    folder, counted = photos(tmp_path / "photos"), Counted(monkeypatch)
    first = data.open(folder)
    counted.since()
    for path in sorted(folder.iterdir()):
        path.rename(path.with_name("x" + path.name))
    assert same(first, data.open(folder))
    assert counted.since()[0] == 0
    changed = folder / "x007.tif"
    was = changed.stat()
    body = bytearray(changed.read_bytes())
    body[body.index(np.asarray(Pillow.open(changed)).tobytes()[:7])] ^= 1
    changed.write_bytes(body)
    os.utime(changed, ns=(was.st_atime_ns, was.st_mtime_ns))  # the same size and time: only the bytes differ
    assert data.open(folder).fingerprint != first.fingerprint
    assert len(entries(place)) == 2


def test_what_is_asked_is_part_of_the_key(tmp_path: Path, place: Path):
    folder = photos(tmp_path / "photos")
    sizes = {data.open(folder).spec.size, data.open(folder, size=4).spec.size, data.open(folder, size=4, fit="pad").spec.size}
    assert sizes == {(6, 7), (4, 4)}
    assert len(entries(place)) == 3


@pytest.mark.parametrize("how", ["byte", "cut", "about", "json", "missing", "empty"])
def test_a_damaged_entry_is_noticed_and_made_again(how: str, tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos")
    first, counted = data.open(folder), Counted(monkeypatch)
    array, about = entries(place)[0] / "train.npy", entries(place)[0] / "about.json"
    whole = array.read_bytes()
    if how in ("byte", "cut"):
        array.unlink()  # what is open keeps the old file
    if how == "byte":
        array.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    elif how == "cut":
        array.write_bytes(whole[:-1])
    elif how == "about":
        told = json.loads(about.read_text())
        told["about"]["hashes"] = told["about"]["hashes"][::-1]
        about.write_text(json.dumps(told))
    elif how == "missing":
        array.unlink()
    else:
        about.write_text("" if how == "empty" else "[1, 2]")
    assert same(first, data.open(folder))
    assert counted.since()[0] == N
    assert same(first, data.open(folder))
    assert counted.since()[0] == 0


def test_what_a_kill_left_is_not_seen_and_swept_later(tmp_path: Path, place: Path):
    folder = photos(tmp_path / "photos")
    fresh, old = place / "tmp-fresh", place / "tmp-old"
    for leftover in (fresh, old):
        leftover.mkdir(parents=True)
        (leftover / "raw.npy").write_bytes(b"half")
    for path in (old / "raw.npy", old):
        os.utime(path, (0, 0))
    assert len(data.open(folder).train) == 32
    assert fresh.exists()
    assert not old.exists()
    assert not [p for p in place.glob("tmp-*") if p != fresh]


def test_a_failed_decoding_leaves_nothing(tmp_path: Path, place: Path):
    folder = photos(tmp_path / "photos")
    (folder / "005.tif").write_bytes((folder / "005.tif").read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"005\.tif"):
        data.open(folder)
    assert not list(place.glob("tmp-*"))
    assert not entries(place)


def test_the_cache_is_bounded_and_the_oldest_go_first(tmp_path: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos")
    for i, size in enumerate((4, 5, 6)):
        data.open(folder, size=size)
        os.utime(max(entries(place), key=lambda p: (p / "about.json").stat().st_mtime_ns) / "about.json", (i, i))
    data.open(folder, size=4)  # used again: no longer the oldest
    kept = {json.loads((e / "about.json").read_text())["about"]["spec"]["size"][0]: e for e in entries(place)}
    total = sum(p.stat().st_size for e in entries(place) for p in e.iterdir())
    monkeypatch.setenv("NONESUCH_CACHE_GIB", str((total - 10) / 2**30))
    cache.prune(place, kept[6].name)
    assert set(entries(place)) == {kept[4], kept[6]}
    monkeypatch.setenv("NONESUCH_CACHE_GIB", "0")
    cache.prune(place, kept[6].name)
    assert entries(place) == [kept[6]]


def test_where_nothing_can_be_written_a_temporary_folder_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos")
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NONESUCH_CACHE", str(tmp_path / "file" / "cache"))
    first = data.open(folder)
    assert same(first, data.open(folder))
    assert cache.folder() == cache._temporary()


def test_a_full_disk_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = photos(tmp_path / "photos")

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "write_array", full)
    with pytest.raises(ValueError, match=r"cannot be written to .*No space left on device; set NONESUCH_CACHE"):
        data.open(folder)


def test_levels_are_mapped_and_writing_to_them_changes_no_file(tmp_path: Path, place: Path):
    folder = photos(tmp_path / "photos")
    first = open_folder(folder, Asked())
    before = (entries(place)[0] / "train.npy").read_bytes()
    first.train.levels.zero_()
    assert (entries(place)[0] / "train.npy").read_bytes() == before
    assert first.train.levels.dtype == torch.uint8
    some = data.open(folder).train
    assert some[3:9].levels.untyped_storage().data_ptr() == some.levels.untyped_storage().data_ptr()  # a view


def test_picking_more_than_fits_goes_through_a_file(monkeypatch: pytest.MonkeyPatch):
    x = torch.arange(1000).view(100, 1, 10)
    index = torch.arange(99, -1, -3)
    monkeypatch.setattr(data.dataset, "_MEMORY_BYTES", 100)
    monkeypatch.setattr(data.dataset, "_CHUNK_BYTES", 300)
    assert torch.equal(take(x, index), x[index])
    assert torch.equal(take(x, x[:, 0, 0] > 500), x[x[:, 0, 0] > 500])
