"""Folders of written images: the values, depth, channels and range that were learned from, in a layout that others read."""

import csv
import gc
from pathlib import Path

import numpy as np
import pytest
import torch

from nonesuch.core.given import Category, Given, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.data.formats import read
from nonesuch.data.pictures import save_images, stored

IMAGE_FOLDER = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's


@pytest.mark.parametrize(
    ("spec", "suffix"),
    [
        (ImageSpec(1, (256, 256), levels=65536, dtype="uint16"), ".png"),
        (ImageSpec(3, (256, 256), levels=65536, dtype="uint16"), ".png"),
        (ImageSpec(5, (256, 256), levels=65536, dtype="uint16"), ".tif"),
        (ImageSpec(4, (16, 16)), ".png"),
        (ImageSpec(2, (16, 16)), ".png"),
        (ImageSpec(1, (16, 16), levels=256, value_range=(-1024, 3056), dtype="int16"), ".tif"),
        (ImageSpec(1, (16, 16), levels=256, value_range=(1000, 1255), dtype="int64"), ".png"),
        (ImageSpec(1, (16, 16), levels=256, spacing=(0.5, 0.25)), ".tif"),
        (ImageSpec(2, (4, 4, 16), "thw", levels=256, spacing=(0.04, 1, 1)), ".tif"),
        (ImageSpec(3, (256,), "l", levels=256), ".npz"),
    ],
)
def test_every_level_is_written_as_its_own_value(spec: ImageSpec, suffix: str, tmp_path: Path):
    levels = (torch.arange(spec.numel) % spec.levels).view(1, *spec.shape)
    (file,) = save_images(spec.from_levels(levels), spec, Schema(), Given(1), tmp_path, 0)
    found = read(file)
    lo, hi = spec.value_range or (0, spec.levels - 1)
    expected = (levels[0].double() / (spec.levels - 1) * (hi - lo) + lo).round().numpy()
    np.testing.assert_array_equal(found.values, expected)
    assert file.name == f"0-000000{suffix}"
    assert (found.axes, found.spacing) == (spec.axes, spec.spacing)
    assert str(found.values.dtype) == ("uint16" if spec.dtype == "int64" else spec.dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_floats_stay_floats_on_their_range(dtype: str, tmp_path: Path):
    values = torch.linspace(-1000, 3000, 65536).view(1, 1, 256, 256)
    spec = ImageSpec(1, (256, 256), kind="continuous", levels=None, value_range=(-1000, 3000), dtype=dtype)
    (file,) = save_images(spec.from_values(values), spec, Schema(), Given(1), tmp_path, 0)
    found = read(file).values
    assert str(found.dtype) == dtype
    assert np.abs(found - values[0].numpy()).max() < (2 if dtype == "float16" else 1e-3)
    if dtype != "float16":
        assert len(np.unique(found)) == 65536


def test_one_bit_and_few_levels():
    bits = ImageSpec(1, (1, 2), levels=2, dtype="bool")
    assert stored(torch.tensor([[[-1.0, 1.0]]]), bits).values.tolist() == [[[0, 255]]]
    masks = ImageSpec(1, (1, 3), levels=3)
    assert stored(torch.tensor([[[-1.0, 0.0, 1.0]]]), masks).values.tolist() == [[[0, 1, 2]]]
    tokens = ImageSpec(1, (3,), "l", "categorical", 512, dtype="int64")
    assert stored(torch.tensor([[5, 511, 0]]), tokens).values.tolist() == [[5, 511, 0]]
    odd = ImageSpec(1, (1, 2), kind="continuous", levels=None, dtype="bfloat16")
    assert stored(torch.tensor([[[0.5, -7.0]]]), odd).values.dtype == np.float32


def planted() -> tuple[torch.Tensor, ImageSpec, Schema, Given]:
    spec = ImageSpec(3, (4, 5))
    schema = Schema({"age": Number(50.0, 12.0), "sex": Category(("F", "M")), "note": Text(16), "site": Category(("a/b", "a_b"))})
    told = {"age": [70, 41.5, None], "sex": ["F", None, "M"], "note": ['a "b", c', "naïve", None], "site": ["a/b", "a_b", None]}
    return spec.from_levels(torch.arange(3 * spec.numel).view(3, *spec.shape)), spec, schema, schema.given(3, told)


def test_several_conditions_stand_in_a_table(tmp_path: Path):
    x, spec, schema, given = planted()
    files = save_images(x, spec, schema, given, tmp_path, 7)
    assert [f.relative_to(tmp_path).as_posix() for f in files] == ["F/7-000000.png", "unlabelled/7-000001.png", "M/7-000002.png"]
    save_images(x[:1], spec, schema, given[:1], tmp_path, 8)  # adds to it
    save_images(x[:1], spec, schema, given[:1], tmp_path, 8)  # twice the same is once
    with (tmp_path / "metadata.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"file_name": "F/7-000000.png", "age": "70", "sex": "F", "note": 'a "b", c', "site": "a/b"}
    assert rows[1] == {"file_name": "unlabelled/7-000001.png", "age": "41.5", "sex": "", "note": "naïve", "site": "a_b"}
    assert rows[2] == {"file_name": "M/7-000002.png", "age": "", "sex": "M", "note": "", "site": ""}
    assert [r["file_name"] for r in rows[3:]] == ["F/8-000000.png"]


def test_two_classes_never_share_a_folder(tmp_path: Path):
    schema = Schema({"site": Category(("a/b", "a_b", "unlabelled"))})
    spec = ImageSpec(1, (2, 2))
    x = torch.zeros(4, 1, 2, 2)
    files = save_images(x, spec, schema, schema.given(4, {"site": ["a/b", "a_b", "unlabelled", None]}), tmp_path, 0)
    assert [f.parent.name for f in files] == ["a_b", "a_b 2", "unlabelled", "unlabelled 2"]
    assert not (tmp_path / "metadata.csv").exists()


def test_a_number_alone_needs_no_folders(tmp_path: Path):
    schema = Schema({"age": Number(50.0, 12.0)})
    save_images(torch.zeros(2, 1, 2, 2), ImageSpec(1, (2, 2)), schema, schema.given(2, {"age": [70, None]}), tmp_path, 0)
    assert (tmp_path / "metadata.csv").read_text() == "file_name,age\n0-000000.png,70\n0-000001.png,\n"


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # datasets leaves metadata.csv open
def test_others_read_what_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    x, spec, schema, given = planted()
    one = Schema({"sex": schema["sex"]})
    both = [0, 2]
    for deep in (spec, ImageSpec(1, (4, 5), levels=65536, dtype="uint16"), ImageSpec(1, (4, 5), levels=256, dtype="int16")):
        folder = tmp_path / f"{deep.dtype}{deep.channels}"
        shown = deep.from_levels(torch.arange(3 * deep.numel).view(3, *deep.shape))
        files = save_images(shown[both], deep, one, Given(2, {"sex": given.columns["sex"][both]}), folder, 0)
        assert {f.suffix for f in files} <= set(IMAGE_FOLDER)
        assert sorted(p.name for p in folder.iterdir()) == ["F", "M"]  # and nothing else: classes of torchvision's ImageFolder
        found = datasets.load_dataset("imagefolder", data_dir=str(folder), cache_dir=str(tmp_path / "cache"), split="train")
        assert found.features["label"].names == ["F", "M"]
        assert found["label"] == [0, 1]
        for row, file in zip(found, files, strict=True):
            values = np.asarray(row["image"])
            np.testing.assert_array_equal(values if values.ndim == 2 else np.moveaxis(values, -1, 0), read(file).values.squeeze())
    table = tmp_path / "table"
    save_images(x, spec, schema, given, table, 0)
    found = datasets.load_dataset("imagefolder", data_dir=str(table), cache_dir=str(tmp_path / "cache"), split="train")
    assert set(found.column_names) >= {"image", "age", "sex", "note", "site"}
    assert sorted(v for v in found["age"] if v is not None) == [41.5, 70.0]
    del found
    gc.collect()  # while that is ignored
