"""Pictures in: what is read is what was written, the split is made once by content, and what would mislead is refused."""

import math
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from sklearn.datasets import load_digits

from nonesuch import data
from nonesuch.core.given import Category, Number
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.arrays import from_array
from nonesuch.data.dataset import Data, content_hashes
from nonesuch.data.toy import GaussianMixture, TableOfImages, as_data, uniform_noise

Array = np.ndarray


def scene(n: int, *shape: int, high: int = 256, name: str = "scene", dtype: type = np.uint8) -> Array:
    """n pictures of keyed noise."""
    return Seeds.of(0, n).integers(name, high, *shape).numpy().astype(dtype)


def write(path: Path, array: Array, mode: str | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(array).convert(mode).save(path) if mode else Pillow.fromarray(array).save(path)
    return path


def png16(path: Path, array: Array) -> Path:
    """A 16-bit PNG, of colour or grey, which Pillow itself cannot always write."""
    height, width, *channels = array.shape
    colour = {(): 0, (2,): 4, (3,): 2, (4,): 6}[tuple(channels)]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)
    path.parent.mkdir(parents=True, exist_ok=True)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    return path


def photos(root: Path, n: int = 10, size: tuple[int, ...] = (5, 7)) -> Path:
    for i, array in enumerate(scene(n, *size)):
        write(root / f"{i:02}.png", array)
    return root


def everything(found: Data) -> Array:
    """All pictures of both splits, in the order of their bytes."""
    both = torch.cat([found.train.levels, found.test.levels]).numpy()
    return both[np.lexsort(both.reshape(len(both), -1).T)]


def as_read(arrays: Array) -> Array:
    """The same of pictures (n, h, w) or (n, h, w, c)."""
    both = arrays[:, None] if arrays.ndim == 3 else np.moveaxis(arrays, -1, 1)
    return both[np.lexsort(both.reshape(len(both), -1).T)]


def refused(source: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each test looks at the sentence)
        data.open(source)
    said = str(caught.value)
    assert len(said) > 20
    assert said[-1] in ".?", said
    return said


# -- digits

DIGITS_OF_THE_TEST = [34, 37, 47, 34, 37, 51, 50, 38, 30, 39]  # recorded once: another split is another benchmark
DIGITS_FINGERPRINT = "e06ce8ba75b67970d35c5e7a53af7b80"


def test_digits_are_scikit_learns_and_their_split_is_fixed():
    digits, truth = data.open("digits"), load_digits()
    assert (len(digits.train), len(digits.test)) == (1400, 397)
    assert np.array_equal(everything(digits), as_read(truth.images.astype(np.uint8)))
    pairs: set[tuple[str, int]] = set()
    for part in (digits.train, digits.test):
        pairs |= {*zip(content_hashes(part.levels), part.labels().tolist(), strict=True)}
    wanted = zip(content_hashes(torch.from_numpy(truth.images).byte()[:, None]), truth.target.tolist(), strict=True)
    assert pairs == set(wanted)
    assert torch.bincount(digits.test.labels()).tolist() == DIGITS_OF_THE_TEST
    assert digits.fingerprint == DIGITS_FINGERPRINT
    assert digits.spec.levels == 17
    assert digits.spec.to_values(digits.train.x).max() == 255  # so that a file of 8 bits can be looked at


def test_digits_know_their_frequencies():
    label = data.open("digits").schema["label"]
    assert isinstance(label, Category)
    assert label.names == tuple("0123456789")
    train = data.open("digits").train
    assert np.allclose(label.frequencies, np.bincount(train.labels().numpy()) / 1400)  # and of the test split nothing


# -- splits


def test_identical_pictures_share_a_side():
    once = scene(40, 4, 4)
    found = from_array(np.concatenate([once, once, once[:7]]))
    train, test = ({*content_hashes(part.levels)} for part in (found.train, found.test))
    assert not train & test
    assert len(train | test) == 40
    assert len(found.train) + len(found.test) == 87


def test_a_picture_keeps_its_side_in_any_order():
    x = scene(50, 4, 4)
    a, b = from_array(x), from_array(x[::-1].copy())
    assert {*content_hashes(a.test.levels)} == {*content_hashes(b.test.levels)}
    assert len(a.test) == 10


def test_more_pictures_move_few_sides():
    """The cut is a quantile of hashes: of the pictures that stay, only those near it change sides."""
    x = scene(400, 4, 4)
    few, many = ({*content_hashes(from_array(x[:n]).test.levels)} for n in (360, 400))
    stayed = {*content_hashes(torch.from_numpy(x[:360])[:, None])}
    assert len(few ^ (many & stayed)) <= 20


def test_the_type_that_holds_the_levels_does_not_matter():
    x = scene(30, 4, 4)
    assert content_hashes(torch.from_numpy(x)) == content_hashes(torch.from_numpy(x.astype(np.int64)))


def test_validation_comes_from_the_training_split_alone():
    digits = data.open("digits")
    part = digits.validation(0.15)
    assert len(part.train) + len(part.test) == 1400
    assert abs(len(part.test) - 210) <= 2
    assert not {*content_hashes(part.test.levels)} & {*content_hashes(digits.test.levels)}
    assert part.test.name == "validation"


def test_a_fingerprint_changes_with_a_pixel_a_label_or_the_order():
    x, y = scene(10, 4, 4), np.arange(10) % 2
    changed, relabelled = x.copy(), y.copy()
    changed[3, 0, 0] ^= 1
    relabelled[4] ^= 1
    assert from_array(x, y).fingerprint == from_array(x.copy(), y.copy()).fingerprint
    found = {from_array(a, b).fingerprint for a, b in ((x, y), (changed, y), (x, relabelled), (x[::-1].copy(), y[::-1].copy()))}
    assert len(found) == 4


# -- images of a split


def test_pictures_are_picked_with_their_conditions():
    found = data.open("digits").train
    some = found[torch.tensor([5, 2])]
    assert torch.equal(some.levels, found.levels[[5, 2]])
    assert torch.equal(some.labels(), found.labels()[[5, 2]])
    assert len(found[:7]) == len(found[[0, 3, 4, 5, 6, 9, 1]]) == 7
    assert torch.equal(found.x[:7], found.inside(slice(0, 7)))
    assert torch.equal(found.spec.to_levels(found.x), found.levels.long())


def test_columns_are_selected_or_answered_by_the_nearest():
    digits = data.open("digits")
    assert not digits.select([]).schema
    assert list(digits.select(["label"]).train.given.columns) == ["label"]
    with pytest.raises(ValueError, match="no column 'lable'; did you mean 'label'"):
        digits.select(["lable"])


# -- folders


def test_a_flat_folder_comes_back_pixel_by_pixel(tmp_path: Path):
    found = data.open(photos(tmp_path / "photos"))
    assert found.name == "photos"
    assert not found.schema
    assert (found.spec.shape, found.spec.levels, found.spec.dtype) == ((1, 5, 7), 256, "uint8")
    assert np.array_equal(everything(found), as_read(scene(10, 5, 7)))
    assert (len(found.train), len(found.test)) == (8, 2)
    assert data.open(str(tmp_path / "photos")).fingerprint == found.fingerprint


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".TIFF", ".webp"])
def test_colour_comes_back_pixel_by_pixel(suffix: str, tmp_path: Path):
    for i, array in enumerate(scene(6, 5, 7, 3)):
        Pillow.fromarray(array).save(tmp_path / f"{i}{suffix}", **({"lossless": True} if suffix == ".webp" else {}))
    found = data.open(tmp_path)
    assert found.spec.shape == (3, 5, 7)
    assert np.array_equal(everything(found), as_read(scene(6, 5, 7, 3)))
    assert not found.remarks  # WebP says by itself that it is lossless


@pytest.mark.parametrize(("mode", "channels"), [("1", 1), ("L", 1), ("LA", 2), ("P", 3), ("RGB", 3), ("RGBA", 4)])
def test_every_mode_has_its_channels(mode: str, channels: int, tmp_path: Path):
    pictures = [Pillow.fromarray(a).convert("RGB" if mode == "P" else "RGBA").convert(mode) for a in scene(5, 6, 6, 4)]
    for i, picture in enumerate(pictures):
        picture.save(tmp_path / f"{i}.png")
    found = data.open(tmp_path)
    assert found.spec.channels == channels
    wide = [np.asarray(p.convert({"1": "L", "P": "RGB"}.get(mode, mode))) for p in pictures]
    assert np.array_equal(everything(found), as_read(np.stack(wide)))


def test_jpeg_is_remarked_upon(tmp_path: Path):
    for i, array in enumerate(scene(5, 8, 8)):
        write(tmp_path / f"{i}.jpg", array)
    assert data.open(tmp_path).remarks[0].startswith("5 of 5 images came through JPEG")


def test_class_folders_are_labels(tmp_path: Path):
    x = scene(12, 4, 4)
    for i, name in enumerate(["dog", "cat", "cat", "ape"] * 3):
        write(tmp_path / name / "deeper" / f"{i}.png", x[i]) if i % 2 else write(tmp_path / name / f"{i}.png", x[i])
    found = data.open(tmp_path)
    label = found.schema["label"]
    assert isinstance(label, Category)
    assert label.names == ("ape", "cat", "dog")
    assert label.frequencies == pytest.approx(np.bincount(found.train.labels(), minlength=3) / len(found.train))
    place = dict(zip(content_hashes(torch.from_numpy(x)[:, None]), ["dog", "cat", "cat", "ape"] * 3, strict=True))
    for part in (found.train, found.test):
        assert [label.names[int(i)] for i in part.labels()] == [place[h] for h in content_hashes(part.levels)]


def test_pictures_beside_class_folders_have_no_label(tmp_path: Path):
    photos(tmp_path, 3)
    for i, array in enumerate(scene(4, 5, 7, name="more")):
        write(tmp_path / "cat" / f"{i}.png", array)
    found = data.open(tmp_path)
    labels = torch.cat([found.train.labels(), found.test.labels()])
    assert sorted(labels.tolist()) == [-1, -1, -1, 0, 0, 0, 0]


@pytest.mark.parametrize(("train", "test"), [("train", "test"), ("training", "val"), ("Train", "validation")])
def test_splits_of_ones_own_are_kept(train: str, test: str, tmp_path: Path):
    x = scene(9, 4, 4)
    for i in range(6):
        write(tmp_path / train / "abc"[i % 3] / f"{i}.png", x[i])
    for i in range(6, 9):
        write(tmp_path / test / "bcc"[i - 6] / f"{i}.png", x[i])
    (tmp_path / test / "abc").mkdir()
    found = data.open(tmp_path)
    assert np.array_equal(np.sort(found.train.levels.numpy(), 0), np.sort(x[:6, None], 0))
    assert len(found.test) == 3
    names = found.schema["label"].names  # type: ignore[union-attr]
    assert [names[int(i)] for i in found.test.labels()] == ["b", "c", "c"]
    assert found.test.name == "test"


def test_hidden_files_links_and_other_files_are_left_out(tmp_path: Path):
    folder = photos(tmp_path / "photos", 4)
    write(folder / ".thumbs" / "a.png", scene(1, 9, 9)[0])
    write(folder / ".b.png", scene(1, 9, 9)[0])
    write(tmp_path / "outside.png", scene(1, 5, 7, name="outside")[0])
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    (folder / "notes.txt").write_text("not a picture")
    found = data.open(folder)
    assert len(found.train) + len(found.test) == 4


# -- 16 bits


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_sixteen_bits_of_grey_are_kept(suffix: str, tmp_path: Path):
    x = scene(6, 4, 5, high=65536, dtype=np.uint16)
    x[0, 0, :2] = 0, 65535
    for i, array in enumerate(x):
        png16(tmp_path / f"{i}.png", array) if suffix == ".png" else write(tmp_path / f"{i}.tif", array)
    found = data.open(tmp_path)
    assert (found.spec.levels, found.spec.dtype) == (65536, "uint16")
    assert np.array_equal(everything(found), as_read(x.astype(np.int32)))
    assert torch.equal(found.spec.to_values(found.train.x).long(), found.train.levels.long())


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_sixteen_bits_of_colour_are_kept(channels: int, tmp_path: Path):
    x = scene(4, 4, 5, channels, high=65536, dtype=np.uint16)
    for i, array in enumerate(x):
        png16(tmp_path / f"{i}.png", array)
    found = data.open(tmp_path)
    assert (found.spec.channels, found.spec.levels, found.spec.dtype) == (channels, 65536, "uint16")
    assert np.array_equal(everything(found), as_read(x.astype(np.int32)))


def test_eight_bits_among_sixteen_are_stretched_and_that_is_said(tmp_path: Path):
    photos(tmp_path, 3, (4, 5))
    png16(tmp_path / "deep.png", scene(1, 4, 5, high=65536, dtype=np.uint16)[0])
    found = data.open(tmp_path)
    wide = np.concatenate([scene(3, 4, 5).astype(np.int32) * 257, scene(1, 4, 5, high=65536, dtype=np.int32)])
    assert np.array_equal(everything(found), as_read(wide))
    assert "3 of 4 images have 8 bits among 16 and were multiplied by 257." in found.remarks


def test_floats_of_a_folder_are_continuous(tmp_path: Path):
    x = scene(5, 4, 5, dtype=np.float32) / 100 - 1
    for i, array in enumerate(x):
        write(tmp_path / f"{i}.tif", array)
    found = data.open(tmp_path)
    assert (found.spec.kind, found.spec.dtype) == ("continuous", "float32")
    values = found.spec.to_values(torch.cat([found.train.x, found.test.x])).numpy()
    assert np.allclose(np.sort(values.ravel()), np.sort(x.ravel()), atol=1e-6)
    assert (float(found.train.x.min()), float(found.train.x.max())) == pytest.approx((-1, 1), abs=1e-6)
    png16(tmp_path / "whole.png", scene(1, 4, 5, high=65536, dtype=np.uint16)[0])
    assert "5 of 6 images are of real numbers" in refused(tmp_path)


# -- tables


def table(root: Path, text: str, n: int = 12) -> Path:
    photos(root, n)
    (root / "metadata.csv").write_text(text, encoding="utf-8")
    return root


def test_columns_of_a_table_are_numbers_or_categories(tmp_path: Path):
    rows = "".join(f"{i:02}.png,{20.5 + i},{'ab'[i % 2]},{i % 3},{i * 1000},{'' if i == 4 else 'x'}\n" for i in range(12))
    found = data.open(table(tmp_path, "file_name,age,kind,grade,price,note\n" + rows))
    kinds = {k: type(c) for k, c in found.schema.columns.items()}
    assert kinds == {"age": Number, "kind": Category, "grade": Category, "price": Number, "note": Category}
    age = found.schema["age"]
    assert isinstance(age, Number)
    place = {h: i for i, h in enumerate(content_hashes(torch.from_numpy(scene(12, 5, 7))[:, None]))}
    trained = np.array([20.5 + place[h] for h in content_hashes(found.train.levels)])  # the test split is not counted
    assert (age.mean, age.std) == pytest.approx((trained.mean(), trained.std()))
    assert (age.quantiles[0], age.quantiles[-1]) == (trained.min(), trained.max())
    for part in (found.train, found.test):
        index = torch.tensor([place[h] for h in content_hashes(part.levels)])
        assert torch.allclose(part.given.columns["age"] * age.std + age.mean, 20.5 + index, atol=1e-4)
        assert torch.equal(part.given.columns["kind"], index % 2)
        assert torch.equal(part.given.columns["grade"], index % 3)
        assert torch.equal(part.given.columns["note"], torch.where(index == 4, -1, 0))


def test_a_label_of_many_whole_numbers_is_a_category(tmp_path: Path):
    rows = "".join(f"{i:02}.png,{i},{i}\n" for i in range(12))
    columns = data.open(table(tmp_path, "file_name,label,weight\n" + rows)).schema.columns
    assert (type(columns["label"]), type(columns["weight"])) == (Category, Number)


def test_a_missing_number_is_missing(tmp_path: Path):
    rows = "".join(f"{i:02}.png,{'' if i == 3 else i / 7}\n" for i in range(12))
    found = data.open(table(tmp_path, "file_name,age\n" + rows))
    ages = torch.cat([found.train.given.columns["age"], found.test.given.columns["age"]])
    assert int(ages.isnan().sum()) == 1
    assert float(found.train.given.columns["age"].nanmean()) == pytest.approx(0, abs=1e-6)
    assert float((found.train.given.columns["age"] ** 2).nanmean()) == pytest.approx(1, abs=1e-5)


def test_only_the_rows_of_the_table_are_read(tmp_path: Path):
    found = data.open(table(tmp_path, "\ufefffile_name\n03.png\n05.png\n07.png\n"))
    assert np.array_equal(everything(found), as_read(scene(12, 5, 7)[[3, 5, 7]]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file_name,age\n00.png,3\nnone.png,4\n", "none.png is named in metadata.csv and is not there."),
        ("name,age\n00.png,3\n", "needs a header with file_name"),
        ("file_name,age\n", "needs a header with file_name"),
        ("", "needs a header with file_name"),
        ("age,file_name\n3,00.png\n4\n", "and a row for each image"),
        ("age,file_name\n3,00.png\n4,\n", "and a row for each image"),
        ("file_name,age\n00.png,3,4\n", "row 2 has more cells than the header"),
        ("file_name,age\n../00.png,3\n", "leads out of its folder"),
        ("file_name,age\n/etc/passwd,3\n", "leads out of its folder"),
    ],
)
def test_tables_that_do_not_fit(text: str, said: str, tmp_path: Path):
    assert said in refused(table(tmp_path, text, 3))


def test_a_table_that_is_no_text(tmp_path: Path):
    photos(tmp_path, 3)
    (tmp_path / "metadata.csv").write_bytes(b"file_name\n\xff\xfe\x00.png")
    assert "cannot be read as a table" in refused(tmp_path)


def test_columns_of_two_splits_are_coded_alike(tmp_path: Path):
    for split, ages, kinds in (("train", [10, 30, 50.5], "aab"), ("test", [70, 20.5, 0], "bca")):
        folder = photos(tmp_path / split, 3)
        rows = "".join(f"{i:02}.png,{a},{k}\n" for i, (a, k) in enumerate(zip(ages, kinds, strict=True)))
        (folder / "metadata.csv").write_text("file_name,age,kind\n" + rows)
    found = data.open(tmp_path)
    age = found.schema["age"]
    assert isinstance(age, Number)
    assert torch.allclose(found.test.given.columns["age"] * age.std + age.mean, torch.tensor([70, 20.5, 0]), atol=1e-4)
    assert found.test.given.columns["kind"].tolist() == [1, -1, 0]  # "c" was never trained on


# -- what cannot be learned from


def test_no_pictures(tmp_path: Path):
    assert "holds no images" in refused(tmp_path)
    (tmp_path / "a.txt").write_text("")
    assert "holds no images" in refused(tmp_path)


def test_one_picture(tmp_path: Path):
    assert "holds 1 image; at least 2 are needed" in refused(photos(tmp_path, 1))


def test_pictures_all_the_same(tmp_path: Path):
    for i in range(4):
        write(tmp_path / f"{i}.png", np.zeros((3, 3), np.uint8))
    assert "all 4 images" in refused(tmp_path)


def test_modes_that_do_not_go_together_name_the_odd_one(tmp_path: Path):
    for i, array in enumerate(scene(4, 4, 6, 7)):
        np.save(tmp_path / f"{i}.npy", array)
    write(tmp_path / "odd.png", scene(1, 6, 7, 3)[0])
    assert "4 of 5 images have channels: 4" in refused(tmp_path)
    assert "odd.png have channels: 3" in refused(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"GIF" + b[3:], lambda b: b"text" * 9])
def test_a_corrupt_file_is_named(damage: Callable[[bytes], bytes], tmp_path: Path):
    photos(tmp_path, 3, (20, 20))
    (tmp_path / "01.png").write_bytes(damage((tmp_path / "01.png").read_bytes()))
    said = refused(tmp_path)
    assert "01.png" in said
    assert any(why in said for why in ("is empty", "cannot be read", "is of no known format"))


@pytest.mark.parametrize("suffix", [".png", ".gif", ".bmp", ".tif", ".jpg", ".webp"])
@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow warns of damaged metadata
def test_flipped_bits_are_read_or_refused_in_a_sentence(suffix: str, tmp_path: Path):
    for i, array in enumerate(scene(3, 6, 6)):
        write(tmp_path / f"{i}{suffix}", array)
    whole = (tmp_path / f"1{suffix}").read_bytes()
    places = Seeds.of(1, 1).integers(suffix, 8 * min(len(whole), 200), 60)[0].tolist()
    for place in places:
        damaged = bytearray(whole)
        damaged[place // 8] ^= 1 << place % 8
        (tmp_path / f"1{suffix}").write_bytes(damaged)
        try:
            data.open(tmp_path)
        except ValueError as error:
            assert f"1{suffix}" in str(error), f"bit {place}: {error}"  # noqa: PT017 (most damage is refused, some is harmless)


def test_a_name_that_is_nothing(tmp_path: Path):
    assert "did you mean 'digits'?" in refused("digit")
    assert "is a single file" in refused(write(tmp_path / "a.png", scene(1, 3, 3)[0]))
    assert "cannot open int" in refused(3)
    assert "needs x, and may have y; this one has images" in refused({"images": scene(3, 4, 4)})


# -- arrays


@pytest.mark.parametrize(
    ("shape", "axes", "spec_axes", "spec_shape"),
    [
        ((9, 5, 6), None, "hw", (1, 5, 6)),
        ((9, 5, 6, 3), None, "hw", (3, 5, 6)),
        ((9, 3, 5, 6), None, "hw", (3, 5, 6)),
        ((9, 5, 6, 7), None, "dhw", (1, 5, 6, 7)),
        ((9, 5, 6, 7, 2), None, "dhw", (2, 5, 6, 7)),
        ((9, 2, 5, 6, 7), None, "dhw", (2, 5, 6, 7)),
        ((9, 5, 6, 7), "thw", "thw", (1, 5, 6, 7)),
        ((9, 12, 5, 6), "hw", "hw", (12, 5, 6)),
        ((9, 8), None, "", (8,)),
        ((9, 3), None, "", (3,)),
        ((9, 8), "l", "l", (1, 8)),
        ((9, 2, 8), "l", "l", (2, 8)),
    ],
)
def test_axes_are_guessed_or_told(shape: tuple[int, ...], axes: str | None, spec_axes: str, spec_shape: tuple[int, ...]):
    x = scene(*shape)
    found = from_array(x, axes=axes)
    assert (found.spec.axes, found.spec.shape) == (spec_axes, spec_shape)
    at = {h: i for i, h in enumerate(content_hashes(torch.cat([found.train.levels, found.test.levels])))}
    moved = x if x.shape[1:] == spec_shape else x.reshape(9, *spec_shape) if spec_shape[0] == 1 else np.moveaxis(x, -1, 1)
    assert {*at} == {*content_hashes(torch.from_numpy(np.ascontiguousarray(moved)))}


@pytest.mark.parametrize(
    ("dtype", "high", "levels"),
    [(np.uint8, 256, 256), (np.uint8, 3, 256), (np.int64, 5, 5), (np.uint16, 9, 65536), (np.int16, 1000, 1000), (bool, 2, 2)],
)
def test_integers_are_ordinal(dtype: type, high: int, levels: int):
    x = scene(40, 6, 6, high=high).astype(dtype) if high <= 256 else scene(40, 6, 6, high=high, dtype=dtype)
    x.flat[0] = high - 1
    found = from_array(x)
    assert (found.spec.kind, found.spec.levels, found.spec.dtype) == ("ordinal", levels, np.dtype(dtype).name)
    assert np.array_equal(everything(found), as_read(x.astype(found.train.levels.numpy().dtype)))


def test_levels_can_be_told_but_must_hold_the_values():
    assert from_array(scene(9, 4, 4, high=3), levels=4).spec.levels == 4
    with pytest.raises(ValueError, match="the value 9, beyond the last of its 4 levels"):
        from_array(np.full((9, 4, 4), 9, np.uint8), levels=4)
    with pytest.raises(ValueError, match="beyond the last"):
        from_array(np.full((9, 4, 4), 2**40))


def test_signed_integers_lie_on_a_grid_of_their_own():
    x = scene(20, 5, 5, high=3000, dtype=np.int16) - 1000
    x.flat[:2] = -1000, 1999
    found = from_array(x)
    assert (found.spec.levels, found.spec.value_range, found.train.levels.dtype) == (3000, (-1000, 1999), torch.int16)
    back = found.spec.to_values(torch.cat([found.train.x, found.test.x])).numpy()
    assert np.array_equal(np.sort(np.rint(back).ravel()), np.sort(x.ravel()))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_are_continuous_on_their_own_range(dtype: type):
    x = (scene(20, 5, 5) / 7 - 3).astype(dtype)
    found = from_array(x)
    assert (found.spec.kind, found.spec.levels) == ("continuous", None)
    inside = torch.cat([found.train.x, found.test.x])
    assert (float(inside.min()), float(inside.max())) == pytest.approx((-1, 1), abs=1e-6)
    back = found.spec.to_values(inside).numpy()
    assert np.allclose(np.sort(back.ravel()), np.sort(x.ravel()), atol=1e-4)


def test_a_tensor_and_a_dictionary_are_arrays_too():
    x, y = scene(12, 4, 4), np.arange(12) % 3
    whole = from_array(x, y)
    assert data.open({"x": x, "y": y}).fingerprint == whole.fingerprint
    assert data.open(torch.from_numpy(x)).fingerprint == from_array(x).fingerprint == data.open(x).fingerprint
    assert data.open(whole) is whole


@pytest.mark.parametrize(
    ("x", "said"),
    [
        (np.zeros(5), "holds no images"),
        (np.zeros((0, 4, 4)), "holds no images"),
        (np.zeros((3, 0, 4)), "holds no images"),
        (np.array([["a", "b"]]), "holds no images"),
        (np.array([[None]], dtype=object), "holds no images"),
        (np.zeros((2, 2, 2, 2, 2, 2)), "does not hold images of axes"),
        (np.full((3, 4, 4), np.nan), "NaN or infinite"),
        (np.full((3, 4, 4), -1), "all 3 images"),
        (np.zeros((4, 3, 3), np.uint8), "all 4 images"),
        (np.zeros((1, 3, 3), np.uint8), "holds 1 image"),
    ],
)
def test_arrays_that_hold_no_pictures(x: Array, said: str):
    assert said in refused(x)


def test_labels_are_their_own_names():
    x = scene(6, 4, 4)
    found = from_array(x, ["b", "a", "b", "c", "a", "b"])
    label = found.schema["label"]
    assert isinstance(label, Category)
    assert label.names == ("a", "b", "c")
    assert label.frequencies == pytest.approx(np.bincount(found.train.labels(), minlength=3) / len(found.train))
    with pytest.raises(ValueError, match="6 images and 5 labels"):
        from_array(x, [1] * 5)


# -- files of arrays


def save_npz(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_the_splits_of_an_npz_are_kept(tmp_path: Path):
    x, y = scene(10, 4, 4, 3), np.array([0, 1, 1, 0, 1, 1, 0, 1, 0, 1])
    file = save_npz(tmp_path / "a.npz", x_train=x[:7], y_train=y[:7], x_test=x[7:], y_test=y[7:], class_names=["cat", "dog"])
    found = data.open(file)
    assert found.name == "a"
    assert np.array_equal(found.train.levels.numpy(), np.moveaxis(x[:7], -1, 1))
    assert np.array_equal(found.test.levels.numpy(), np.moveaxis(x[7:], -1, 1))
    assert found.test.labels().tolist() == [1, 0, 1]
    assert found.schema["label"].names == ("cat", "dog")  # type: ignore[union-attr]


def test_floats_of_the_test_split_are_scaled_by_those_of_training(tmp_path: Path):
    x = np.linspace(0, 1, 10 * 16).reshape(10, 4, 4)
    found = data.open(save_npz(tmp_path / "a.npz", x_train=x, x_test=x[:4] / 2))
    values = found.spec.to_values(found.test.x)[:, 0].double().numpy()
    assert np.allclose(values, x[:4] / 2, atol=1e-6)


def test_labels_the_training_split_has_not_are_missing(tmp_path: Path):
    x = scene(5, 4, 4)
    file = save_npz(tmp_path / "a.npz", x_train=x[:3], y_train=["a", "b", "a"], x_test=x[3:], y_test=["b", "z"])
    assert data.open(file).test.labels().tolist() == [1, -1]


@pytest.mark.parametrize("name", ["x", "images", "arr_0", "x_train"])
def test_an_npz_without_a_test_split_is_split(name: str, tmp_path: Path):
    found = data.open(save_npz(tmp_path / "a.npz", **{name: scene(10, 4, 4), **({"y": np.arange(10)} if name == "x" else {})}))
    assert (len(found.train), len(found.test)) == (8, 2)
    assert bool(found.schema) == (name == "x")


def test_an_npy_is_an_array(tmp_path: Path):
    np.save(tmp_path / "a.npy", scene(10, 4, 4))
    assert np.array_equal(everything(data.open(tmp_path / "a.npy")), as_read(scene(10, 4, 4)))


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"y": np.zeros(3)}, "has no array x_train, x or images; it holds y."),
        ({"x_train": scene(5, 4, 4), "x_test": scene(5, 4, 5)}, "x_test ordinal ones of (1, 4, 5)"),
        ({"x_train": scene(5, 4, 4), "x_test": scene(5, 4, 4) / 2}, "x_test continuous ones"),
        ({"x_train": scene(5, 4, 4), "y_train": [0, 1, 2, 1, 0], "class_names": ["a", "b"]}, "class_names has 2"),
        ({"x": np.array([None, 3], dtype=object)}, ""),
    ],
)
def test_arrays_that_do_not_fit(arrays: dict[str, Any], said: str, tmp_path: Path):
    assert said in refused(save_npz(tmp_path / "a.npz", **arrays))


@pytest.mark.parametrize("suffix", [".npz", ".npy"])
def test_a_damaged_file_of_arrays(suffix: str, tmp_path: Path):
    file = tmp_path / f"a{suffix}"
    save_npz(file, x=scene(10, 4, 4)) if suffix == ".npz" else np.save(file, scene(10, 4, 4))
    whole = file.read_bytes()
    for damaged in (b"", b"text", whole[: len(whole) // 2], whole[:100] + b"\0" * 30 + whole[130:]):
        file.write_bytes(damaged)
        refused(file)


# -- densities known exactly


def test_a_mixtures_score_is_the_gradient_of_its_density():
    mixture = GaussianMixture.images(3, (1, 2, 3))
    x = (mixture.sample(5)[0] + 0.1).requires_grad_()
    for sigma in (0.0, 0.3, torch.linspace(0.1, 2, 5)):
        gradient = torch.autograd.grad(mixture.log_prob(x, sigma).sum(), x)[0]
        assert torch.allclose(mixture.score(x, sigma), gradient, atol=1e-8)


@pytest.mark.parametrize("sigma", [0.05, 0.5])
def test_a_ring_integrates_to_one_and_is_denoised_by_quadrature(sigma: float):
    ring = GaussianMixture.ring(5, 0.6, 0.15)
    line = torch.linspace(-1.8, 1.8, 361, dtype=torch.float64)
    grid = torch.cartesian_prod(line, line)
    density = ring.log_prob(grid).exp() * 0.01**2
    assert float(density.sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(density @ grid, ring.mean, atol=1e-6)
    assert torch.allclose((grid - ring.mean).T @ ((grid - ring.mean) * density[:, None]), ring.covariance, atol=1e-6)
    y = torch.tensor([[0.3, -0.2], [0.7, 0.1]]).double()
    weight = density * torch.exp(-((y[:, None] - grid) ** 2).sum(-1) / (2 * sigma**2))
    assert torch.allclose(ring.denoise(y, sigma), weight @ grid / weight.sum(1, keepdim=True), atol=1e-5)


def test_a_mixture_is_drawn_as_it_says():
    mixture = GaussianMixture.normal(torch.tensor([0.5, -1.0]), torch.tensor([[0.5, 0.3], [0.3, 0.4]]))
    x, _ = mixture.sample(8000)
    assert torch.allclose(x.mean(0), mixture.mean, atol=4 * math.sqrt(0.5 / 8000))
    assert torch.allclose(x.T.cov(), mixture.covariance, atol=0.04)
    mode = GaussianMixture.images().sample(4000)[1]
    wanted = GaussianMixture.images().weights * 4000
    assert ((torch.bincount(mode, minlength=3) - wanted).abs() < 4 * wanted.sqrt()).all()


def test_a_table_sums_to_one_and_its_posterior_is_bayes_rule():
    spec = ImageSpec(1, (2, 2), levels=3)
    table = TableOfImages.random(spec, 5)
    assert table.images.shape == (81, 1, 2, 2)
    assert torch.allclose(table.log_prob(table.images).exp(), table.probabilities)
    assert float(table.probabilities.sum()) == pytest.approx(1)
    assert table.entropy == pytest.approx(float(-(table.probabilities * table.log_prob(table.images)).sum()))
    assert TableOfImages.uniform(spec).entropy == pytest.approx(4 * math.log(3))
    y = torch.randn(3, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    joint = torch.tensor([[p * math.exp(-float(((a - b) ** 2).sum()) / (2 * 0.7**2)) for a, p in
                           zip(table.images, table.probabilities.tolist(), strict=True)] for b in y])  # fmt: skip
    posterior = joint / joint.sum(1, keepdim=True)
    assert torch.allclose(table.posterior(y, 0.7).float(), posterior, atol=1e-5)
    assert torch.allclose(table.denoise(y, 0.7).float(), torch.einsum("bk,k...->b...", posterior, table.images), atol=1e-5)
    found = table.log_prob(table.sample(9000))
    assert float(-found.mean()) == pytest.approx(table.entropy, abs=4 * float(found.std()) / math.sqrt(9000))


def test_densities_become_data_and_noise_is_uniform():
    spec = ImageSpec(1, (2, 2), levels=4)
    found = as_data(TableOfImages.uniform(spec), 200, 50)
    assert len(found.train) + len(found.test) == 200
    assert not found.schema
    moded = as_data(GaussianMixture.ring(4), 100, 20)
    assert (len(moded.train), len(moded.test), moded.schema.category()[0]) == (80, 20, "mode")
    counts = torch.bincount(spec.to_levels(uniform_noise(spec, 1000)).flatten(), minlength=4)
    assert ((counts - 1000).abs() < 4 * math.sqrt(750)).all()
