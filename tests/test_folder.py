"""A person's own folder works as it is: sizes, modes, splits and tables by stated policies, and nothing is lost unsaid."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from nonesuch import data
from nonesuch.core.given import Category, Given, Number, Text
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import content_hashes
from nonesuch.data.pictures import save_images
from nonesuch.data.tables import kind_of
from nonesuch.data.transforms import chosen_size, fitted

Array = np.ndarray


def scene(n: int, *shape: int, high: int = 256, name: str = "scene", dtype: type = np.uint8) -> Array:
    return Seeds.of(0, n).integers(name, high, *shape).numpy().astype(dtype)


def write(path: Path, array: Array, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(array).save(path, **options)
    return path


def everything(found: data.Data) -> Array:
    both = torch.cat([found.train.levels, found.test.levels]).numpy()
    return both[np.lexsort(both.reshape(len(both), -1).T)]


def refused(source: Any, **options: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each test looks at the sentence)
        data.open(source, **options)
    assert str(caught.value)[-1] in ".?"
    return str(caught.value)


def said(found: data.Data, words: str) -> bool:
    return any(words in remark for remark in found.remarks)


# -- sizes


def waves(height: int, width: int, cycles: float) -> Array:
    """A picture of waves along both axes."""
    y, x = np.mgrid[:height, :width]
    wave = np.sin(2 * np.pi * cycles * (x + 0.5) / width) * np.sin(2 * np.pi * cycles * (y + 0.5) / height)
    return (127.5 + 100 * wave).round().astype(np.uint8)[None]


def test_slow_waves_survive_resizing_and_fast_ones_are_averaged_away():
    small = fitted(waves(128, 192, 2), (32, 48), "resize").astype(float)
    assert np.abs(small - waves(32, 48, 2)).max() < 6
    assert np.abs(fitted(waves(128, 128, 60), (32, 32), "resize").astype(float) - 127.5).max() < 4  # not folded back


def test_resizing_agrees_with_pillow():
    x = scene(1, 60, 90)[0]
    theirs = np.asarray(Pillow.fromarray(x).resize((45, 20), Pillow.Resampling.BICUBIC)).astype(int)
    assert np.abs(fitted(x[None], (20, 45), "resize")[0].astype(int) - theirs).max() <= 1
    deep = fitted(x[None].astype(np.uint16) * 257, (20, 45), "resize")[0] / 257  # the path of other types
    assert np.abs(deep - theirs).max() <= 1


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16, np.int32, np.float32, np.float64])
def test_flat_pictures_stay_flat_at_every_depth(dtype: type):
    top = 200 if dtype == np.uint8 else 30000
    for fit in ("crop", "pad", "resize"):
        for old, new in (((5, 9), (8, 8)), ((4, 6, 10), (3, 3, 3)), ((30, 20), (7, 11))):
            found = fitted(np.full((2, *old), top, dtype), new, fit)
            assert found.dtype == dtype
            assert found.shape == (2, *new)
            black = 0 if np.dtype(dtype).kind == "u" else top
            assert set(np.unique(found)) <= {top, black}
            assert fit == "pad" or (found == top).all()


def test_crop_takes_the_middle_and_pad_keeps_everything():
    x = np.zeros((1, 4, 8), np.uint8)
    x[0, :, 2:6] = scene(1, 4, 4)[0]
    assert np.array_equal(fitted(x, (4, 4), "crop"), x[:, :, 2:6])
    padded = fitted(x, (8, 8), "pad")
    assert np.array_equal(padded[:, 2:6], x)
    assert padded.sum() == x.sum()


def test_volumes_are_resized_along_each_axis_alike():
    x = scene(1, 6, 8, 10, high=1000, dtype=np.float32)
    whole = fitted(x, (3, 4, 5), "resize")
    turned = fitted(x.transpose(0, 3, 1, 2), (5, 3, 4), "resize").transpose(0, 2, 3, 1)
    assert np.allclose(whole, turned, atol=1e-3)
    assert abs(float(whole.mean()) - float(x.mean())) < 40


def test_clips_are_cut_or_hold_their_last_frame_and_are_not_blended():
    x = np.arange(5, dtype=np.uint8)[None, :, None, None] * np.ones((1, 1, 4, 4), np.uint8)
    assert np.array_equal(fitted(x, (3, 2, 2), "crop", "thw")[0, :, 0, 0], [0, 1, 2])
    assert np.array_equal(fitted(x, (7, 4, 4), "crop", "thw")[0, :, 0, 0], [0, 1, 2, 3, 4, 4, 4])


def test_the_size_of_mixed_pictures():
    assert chosen_size([(30, 40), (30, 40), (64, 20)], "hw") == (30, 40)  # what most have
    assert chosen_size([(30, 40), (45, 33), (64, 20)], "hw") == (24, 24)  # 30, down to a multiple of 8
    assert chosen_size([(900, 600), (1800, 1200), (450, 300)], "hw") == (384, 256)  # one aspect is kept
    assert chosen_size([(9, 30, 40), (5, 45, 33), (7, 64, 20)], "thw") == (5, 24, 24)


def mixed(root: Path) -> Path:
    for i, size in enumerate([(30, 40), (45, 33), (64, 20), (16, 90), (31, 31)]):
        write(root / f"{i}.png", scene(1, *size, name=f"mixed{i}")[0])
    return root


def test_mixed_sizes_are_cropped_and_that_is_said(tmp_path: Path):
    found = data.open(mixed(tmp_path))
    assert found.spec.size == (24, 24)
    assert said(found, "5 of 5 images were scaled and cropped to 24 x 24 (3 made smaller")
    assert said(found, "2 made larger, up to 1.5 times; up to 82% of an image's area cut off)")


@pytest.mark.parametrize(("fit", "size"), [("crop", 16), ("pad", (12, 20)), ("resize", [9, 7])])
def test_sizes_that_are_asked_for(fit: str, size: Any, tmp_path: Path):
    found = data.open(mixed(tmp_path), fit=fit, size=size)
    wanted = (size, size) if isinstance(size, int) else tuple(size)
    assert found.spec.size == wanted
    originals = [np.asarray(Pillow.open(p))[None] for p in sorted(tmp_path.iterdir())]
    made = np.stack([fitted(o, wanted, fit) for o in originals])
    assert np.array_equal(everything(found), made[np.lexsort(made.reshape(5, -1).T)])


def test_fits_that_there_are_not(tmp_path: Path):
    assert "did you mean 'crop'?" in refused(mixed(tmp_path), fit="corp")
    assert "give one number, or one for each of 2 axes" in refused(tmp_path, size=(3, 4, 5))
    assert "did you mean 'hw'?" in refused(tmp_path, axes="wh")
    assert "have axes 'hw', not 'dhw'" in refused(tmp_path, axes="dhw")
    assert "which are taken as they are" in refused("digits", size=16)
    assert data.open("digits", size=8).spec.size == (8, 8)


# -- colours


def test_transparency_of_some_is_laid_over_white_and_said(tmp_path: Path):
    rgba = scene(2, 4, 5, 4)
    rgba[..., 3] = np.where(rgba[..., 3] > 127, 255, 0)
    for i, array in enumerate(rgba):
        write(tmp_path / f"a{i}.png", array)
    for i, array in enumerate(scene(3, 4, 5, 3, name="rgb")):
        write(tmp_path / f"b{i}.png", array)
    found = data.open(tmp_path)
    over = np.where(rgba[..., 3:] == 255, rgba[..., :3], 255).astype(np.uint8)
    wanted = np.moveaxis(np.concatenate([over, scene(3, 4, 5, 3, name="rgb")]), -1, 1)
    assert np.array_equal(everything(found), wanted[np.lexsort(wanted.reshape(5, -1).T)])
    assert said(found, "2 of 5 images have transparency, which the others lack, and were laid over white.")


def test_transparency_of_all_is_a_channel(tmp_path: Path):
    write(tmp_path / "a.png", scene(1, 4, 5, 2)[0])
    write(tmp_path / "b.png", scene(1, 4, 5, 4)[0])
    found = data.open(tmp_path)
    assert found.spec.channels == 4
    grey, alpha = np.moveaxis(scene(1, 4, 5, 2)[0], -1, 0)
    assert np.stack([grey, grey, grey, alpha]).tolist() in everything(found).tolist()
    assert said(found, "1 of 2 images are grey among colour and became colour.")


def test_grey_among_colour_becomes_colour_and_palettes_are_counted(tmp_path: Path):
    write(tmp_path / "grey.png", scene(1, 4, 5)[0])
    for i, array in enumerate(scene(3, 4, 5, 3)):
        Pillow.fromarray(array).convert("P", palette=Pillow.Palette.ADAPTIVE).save(tmp_path / f"{i}.png")
    found = data.open(tmp_path)
    assert np.repeat(scene(1, 4, 5), 3, 0).tolist() in everything(found).tolist()
    assert said(found, "1 of 4 images are grey among colour")
    assert said(found, "3 of 4 images: palette")


def test_animations_give_their_first_frame_or_all(tmp_path: Path):
    for i in range(4):
        frames = [Pillow.fromarray(a) for a in scene(5 + i, 6, 7, high=2, name=f"film{i}") * 255]
        frames[0].save(tmp_path / f"{i}.gif", save_all=True, append_images=frames[1:], duration=40, loop=0)
    still = data.open(tmp_path)
    assert still.spec.axes == "hw"
    assert said(still, "4 of 4 images: only the first of")
    clip = data.open(tmp_path, axes="thw")
    assert (clip.spec.axes, clip.spec.size) == ("thw", (5, 6, 7))
    assert clip.spec.spacing is not None
    assert clip.spec.spacing[0] == pytest.approx(0.04)
    assert said(clip, "clips of 6 to 8 frames brought to 5") or said(clip, "clips of 5 to 8 frames brought to 5")


# -- layouts


def frames(folder: Path, n: int, name: str) -> Array:
    x = scene(n, 4, 5, name=name)
    for i, array in enumerate(x):
        write(folder / f"frame{i}.png", array)
    return x[None]


def test_folders_of_frames_are_clips_of_their_class(tmp_path: Path):
    x = [frames(tmp_path / c / f"clip{i}", 12, f"{c}{i}") for c in ("cat", "dog") for i in range(2)]
    found = data.open(tmp_path, axes="thw")
    assert found.spec.shape == (1, 12, 4, 5)
    both = np.stack(x)
    assert np.array_equal(everything(found), both[np.lexsort(both.reshape(4, -1).T)])  # frame2 before frame10
    assert found.schema.category()[1].names == ("cat", "dog")
    flat = data.open(tmp_path / "cat", axes="thw")
    assert not flat.schema


def test_a_folder_with_only_train_is_divided(tmp_path: Path):
    for i, array in enumerate(scene(10, 4, 4)):
        write(tmp_path / "train" / "ab"[i % 2] / f"{i}.png", array)
    found = data.open(tmp_path)
    assert found.schema.category()[1].names == ("a", "b")
    assert (len(found.train), len(found.test)) == (8, 2)
    (tmp_path / "test").mkdir()  # an empty one says nothing
    assert data.open(tmp_path).fingerprint == found.fingerprint


def test_trains_among_cars_are_a_class(tmp_path: Path):
    for i, array in enumerate(scene(9, 4, 4)):
        write(tmp_path / ("car", "bus", "train")[i % 3] / f"{i}.png", array)
    assert data.open(tmp_path).schema.category()[1].names == ("bus", "car", "train")


def test_a_validation_folder_beside_a_test_folder_is_kept(tmp_path: Path):
    x = scene(12, 4, 4)
    for i, array in enumerate(x):
        write(tmp_path / ("train", "val", "test")[min(2, i // 4)] / "ab"[i % 2] / f"{i}.png", array)
    found = data.open(tmp_path)
    for split, part in ((found.train, x[:4]), (found.own_validation, x[4:8]), (found.test, x[8:])):
        assert split is not None
        assert {*content_hashes(split.levels)} == {*content_hashes(torch.from_numpy(part)[:, None])}
    assert found.validation().test is found.own_validation
    assert list(found.select(["label"]).own_validation.schema.columns) == ["label"]  # type: ignore[union-attr]


def test_what_is_left_out_is_said(tmp_path: Path):
    for i, array in enumerate(scene(4, 4, 4)):
        write(tmp_path / f"{i}.png", array)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "link.png").symlink_to(tmp_path / "0.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".hidden.png").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.png")
    assert "Left out of the folder: 1 .txt files, 1 hidden files, 2 links, 1 pipes or devices." in data.open(tmp_path).remarks


def test_names_that_are_not_text(tmp_path: Path):
    x = scene(6, 4, 4)
    for i, array in enumerate(x):
        folder = tmp_path / os.fsdecode(b"\xff\xfe") if i % 2 else tmp_path / "\N{SNOWMAN}\nline"
        write(folder / f"{i}.png", array)
    found = data.open(tmp_path)
    names = found.schema.category()[1].names
    assert len(names) == 2
    json.dumps(names).encode("utf-8")
    assert all(n.isprintable() for n in names)


# -- tables


def photos(root: Path, n: int = 12) -> Path:
    for i, array in enumerate(scene(n, 5, 7)):
        write(root / f"{i:02}.png", array)
    return root


ROWS = [
    {"file_name": f"{i:02}.png", "age": 20.5 + i, "sex": "FM"[i % 2], "note": f"a picture of {i} things", "ok": i % 3 == 0}
    for i in range(12)
]


def written(root: Path, kind: str, rows: list[dict[str, Any]]) -> Path:
    if kind == "jsonl":
        (root / "metadata.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    elif kind == "parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), root / "metadata.parquet")
    else:
        lines = [
            ",".join(rows[0]),
            *(",".join("" if v is None else str(v).lower() if v in (True, False) else str(v) for v in r.values()) for r in rows),
        ]
        (root / "metadata.csv").write_text("\n".join(lines))
    return root


def test_the_same_table_in_three_kinds_of_file(tmp_path: Path):
    rows = [*ROWS[:5], {**ROWS[5], "age": None, "sex": None, "note": None}, *ROWS[6:]]
    opened = [data.open(written(photos(tmp_path / k), k, rows)) for k in ("csv", "jsonl", "parquet")]
    kinds = {n: type(c) for n, c in opened[0].schema.columns.items()}
    assert kinds == {"age": Number, "sex": Category, "note": Text, "ok": Category}
    assert len({o.fingerprint for o in opened}) == 1
    assert opened[0].schema == opened[1].schema == opened[2].schema
    missing = {
        n: int((~c.present(torch.cat([s.given.columns[n] for s in (opened[0].train, opened[0].test)]))).sum())
        for n, c in opened[0].schema.columns.items()
    }
    assert missing == {"age": 1, "sex": 1, "note": 1, "ok": 0}


def test_columns_are_chosen_and_their_kinds_told(tmp_path: Path):
    folder = written(photos(tmp_path), "csv", ROWS)
    assert list(data.open(folder, columns=["sex", "age"]).schema.columns) == ["sex", "age"]
    told = data.open(folder, columns={"age": "category", "sex": "text"}).schema.columns
    assert (type(told["age"]), type(told["sex"]), len(told)) == (Category, Text, 4)
    assert "there is no column 'aeg'; did you mean 'age'?" in refused(folder, columns=["aeg"])
    assert "did you mean 'number'?" in refused(folder, columns={"age": "numbr"})
    assert "'F' is none" in refused(folder, columns={"sex": "number"})


@pytest.mark.parametrize(
    ("name", "cells", "kind"),
    [
        ("age", ["1.5", "2"], "number"),
        ("grade", list("12345"), "category"),
        ("count", [str(i) for i in range(11)], "number"),
        ("label", [str(i) for i in range(50)], "category"),
        ("id", [f"p{i}" for i in range(65)], "text"),
        ("id", [f"p{i}" for i in range(64)], "category"),
        ("seen", ["a small cat", "a large dog"], "text"),
        ("caption", ["cat"], "text"),
        ("range", ["1", "inf"], "number"),
        ("version", ["1_0", "2"], "category"),
    ],
)
def test_kinds_of_columns(name: str, cells: list[str], kind: str):
    assert kind_of(name, cells) == kind


def test_nested_names_and_rows_that_lead_nowhere(tmp_path: Path):
    for i, array in enumerate(scene(4, 5, 7)):
        write(tmp_path / "deep" / "er" / f"{i}.png", array)
    rows = [{"file_name": f"deep/er/{i}.png", "age": i / 7} for i in range(3)]
    written(tmp_path, "jsonl", rows)
    found = data.open(tmp_path)
    assert list(found.schema.columns) == ["age"]
    assert "Left out of the folder: 1 images that metadata.jsonl does not name." in found.remarks
    written(tmp_path, "jsonl", [*rows, {"file_name": "deep/none.png", "age": 1}])
    assert "deep/none.png is named in metadata.jsonl and is not there." in refused(tmp_path)
    written(tmp_path, "csv", rows)
    assert "holds metadata.csv and metadata.jsonl; keep one of them." in refused(tmp_path)


@pytest.mark.parametrize("line", ['{"file_name": "00.png"', "[1]", "3", '{"age": 3}', "[" * 100_000])
def test_lines_that_are_no_rows(line: str, tmp_path: Path):
    (photos(tmp_path, 3) / "metadata.jsonl").write_text(line + "\n")
    assert "metadata.jsonl" in refused(tmp_path)


def test_a_damaged_parquet_and_infinite_numbers(tmp_path: Path):
    pytest.importorskip("pyarrow")
    (photos(tmp_path) / "metadata.parquet").write_bytes(b"PAR1 nothing PAR1")
    assert "metadata.parquet cannot be read as a table" in refused(tmp_path)
    (tmp_path / "metadata.parquet").unlink()
    written(tmp_path, "csv", [{"file_name": f"{i:02}.png", "x": "inf" if i == 3 else i / 7} for i in range(12)])
    assert "'x' holds infinite values" in refused(tmp_path)


def test_the_test_split_is_not_counted(tmp_path: Path):
    rows = [{"file_name": f"{i:02}.png", "x": float(i) ** 2 + 0.5, "kind": "abc"[i % 3]} for i in range(12)]
    found = data.open(written(photos(tmp_path), "jsonl", rows))
    x, kind = found.schema["x"], found.schema["kind"]
    assert isinstance(x, Number)
    assert isinstance(kind, Category)
    place = {h: i for i, h in enumerate(content_hashes(torch.from_numpy(scene(12, 5, 7))[:, None]))}
    index = [place[h] for h in content_hashes(found.train.levels)]
    values = np.array([i**2 + 0.5 for i in index])
    assert (x.mean, x.std) == pytest.approx((values.mean(), values.std()))
    assert (x.quantiles[0], x.quantiles[-1]) == (values.min(), values.max())
    assert kind.frequencies == pytest.approx(np.bincount(np.array(index) % 3, minlength=3) / len(index))


# -- others read what we write


def test_a_folder_we_write_is_read_by_datasets_with_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    datasets = pytest.importorskip("datasets")
    digits = data.open("digits").train[:40]
    save_images(digits.x, digits.spec, digits.schema, Given(40, digits.given.columns), tmp_path / "out", 0)
    theirs = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "out"), cache_dir=str(tmp_path / "cache"))["train"]
    ours = data.open(tmp_path / "out")
    assert len(theirs) == len(ours.train) + len(ours.test) == 40
    names = theirs.features["label"].names
    assert tuple(names) == ours.schema.category()[1].names
    mine = {
        (h, ours.schema.category()[1].names[int(k)])
        for s in (ours.train, ours.test)
        for h, k in zip(content_hashes(s.levels), s.labels(), strict=True)
    }
    pixels = [torch.from_numpy(np.array(row["image"].convert("L")))[None] for row in theirs]
    their = {(h, names[row["label"]]) for h, row in zip(content_hashes(torch.stack(pixels)), theirs, strict=True)}
    assert mine == their


# -- volumes


def test_volumes_with_a_table_keep_values_range_and_spacing(tmp_path: Path):
    nibabel = pytest.importorskip("nibabel")
    x = scene(6, 8, 6, 4, high=1500, dtype=np.int16) - 1000
    for i, volume in enumerate(x):
        nibabel.save(nibabel.Nifti1Image(volume, np.diag([2.0, 2.0, 3.0 if i else 5.0, 1.0])), tmp_path / f"{i}.nii.gz")
    rows = "".join(f"{i}.nii.gz,{40.5 + i},{'FM'[i % 2]}\n" for i in range(6))
    (tmp_path / "metadata.csv").write_text("file_name,age,sex\n" + rows)
    found = data.open(tmp_path)
    assert (found.spec.axes, found.spec.dtype) == ("dhw", "int16")
    assert (found.spec.levels, found.spec.value_range) == (int(x.max()) - int(x.min()) + 1, (x.min(), x.max()))
    assert found.spec.spacing is not None
    assert sorted(found.spec.spacing) == pytest.approx([2, 2, 3])
    assert said(found, "1 of 6 images have another spacing than the median")
    values = found.spec.to_values(torch.cat([found.train.x, found.test.x])).numpy()
    assert np.array_equal(np.sort(np.rint(values).ravel()), np.sort(x.ravel()))
    assert list(found.schema.columns) == ["age", "sex"]
    smaller = data.open(tmp_path, size=4).spec
    assert smaller.size == (4, 4, 4)
    assert smaller.spacing is not None
    assert all(s > t for s, t in zip(smaller.spacing, (0.9, 0.9, 0.9), strict=True))


def slices(folder: Path, patient: str, depth: int, values: Array) -> None:
    """A series of DICOM slices, in shuffled files without suffixes."""
    pydicom = pytest.importorskip("pydicom")
    uid = pydicom.uid.generate_uid(entropy_srcs=[patient])
    folder.mkdir(parents=True)
    for i in range(depth):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid(entropy_srcs=[patient, str(i)])
        slice_ = pydicom.dataset.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
        slice_.SOPClassUID, slice_.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        slice_.PatientName, slice_.SeriesInstanceUID, slice_.Modality = patient, uid, "CT"
        slice_.Rows, slice_.Columns, slice_.SamplesPerPixel = 6, 5, 1
        slice_.PhotometricInterpretation, slice_.PixelRepresentation = "MONOCHROME2", 1
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit = 16, 16, 15
        slice_.ImagePositionPatient, slice_.ImageOrientationPatient = [0, 0, 2.5 * i], [1, 0, 0, 0, 1, 0]
        slice_.PixelSpacing, slice_.RescaleSlope, slice_.RescaleIntercept = [1.5, 1.5], 1, -1024
        slice_.PixelData = values[i].astype("<i2").tobytes()
        slice_.save_as(folder / f"IM{(i * 7) % depth:04}", enforce_file_format=True)


def test_slices_of_a_series_are_one_volume_and_no_patient_is_named(tmp_path: Path):
    x = scene(5, 4, 6, 5, high=2000, dtype=np.int16)
    for i, volume in enumerate(x):
        slices(tmp_path / ("sick", "well")[i % 2] / f"DOE^JOHN{i}", f"DOE^JOHN{i}", 4, volume)
    found = data.open(tmp_path)
    assert (found.spec.axes, found.spec.size, found.spec.unit) == ("dhw", (4, 6, 5), "HU")
    assert found.spec.spacing == pytest.approx((2.5, 1.5, 1.5))
    assert found.schema.category()[1].names == ("sick", "well")
    values = found.spec.to_values(torch.cat([found.train.x, found.test.x])).numpy()
    assert np.array_equal(np.sort(np.rint(values).ravel()), np.sort(x.ravel()) - 1024)
    assert "DOE" not in repr((found.name, found.remarks, found.schema))
    flat = data.open(tmp_path / "sick")
    assert len(flat.train) + len(flat.test) == 3
    assert not flat.schema
    for i, volume in enumerate(x):
        slices(tmp_path / "patients" / f"DOE^JANE{i}" / "T1", f"DOE^JANE{i}", 4, volume)
    patients = data.open(tmp_path / "patients")
    assert not patients.schema
    assert said(patients, "The names of 5 folders of 5 volumes were not taken as labels")
    shutil.rmtree(tmp_path / "patients")
    single = data.open(tmp_path, axes="hw")
    assert (single.spec.size, len(single.train) + len(single.test)) == ((6, 5), 20)
