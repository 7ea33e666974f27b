"""Shards and data sets of Hugging Face: what was written comes back, and a tar file cannot reach out of itself."""

import io
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from nonesuch import data
from nonesuch.core.given import Category, Given, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images, content_hashes
from nonesuch.data.shards import write_shards

SCHEMA = Schema({"label": Category(("cat", "dog")), "age": Number(50.0, 10.0), "text": Text(32)})


def images(n: int = 12, name: str = "train", spec: ImageSpec | None = None) -> Images:
    spec = spec or ImageSpec(3, (5, 7))
    assert spec.levels is not None
    levels = Seeds.of(0, n).integers(name, spec.levels, *spec.shape)
    given = SCHEMA.given(
        n,
        {
            "label": [None if i == 5 else ("cat", "dog")[i % 2] for i in range(n)],
            "age": [None if i == 2 else 20.0 + i for i in range(n)],
            "text": [f"picture {i} of caf\u00e9" for i in range(n)],
        },
    )
    return Images(spec, SCHEMA, levels.to(torch.uint8 if spec.levels <= 256 else torch.int32), given, name)


def by_hash(split: Images) -> dict[str, tuple[Any, ...]]:
    """Content -> decoded conditions."""
    label, age = split.schema["label"], split.schema["age"]
    assert isinstance(label, Category)
    assert isinstance(age, Number)
    rows = {}
    for i, h in enumerate(content_hashes(split.levels)):
        k = int(split.given.columns["label"][i])
        years = float(split.given.columns["age"][i]) * age.std + age.mean
        words = bytes(int(b) - 1 for b in split.given.columns["text"][i] if b).decode()
        rows[h] = (label.names[k] if k >= 0 else None, None if np.isnan(years) else round(years, 3), words)
    return rows


@pytest.mark.parametrize("spec", [ImageSpec(3, (5, 7)), ImageSpec(1, (6, 6), levels=65536, dtype="uint16")])
def test_shards_come_back_with_their_splits_and_conditions(spec: ImageSpec, tmp_path: Path):
    train, test = images(12, "train", spec), images(5, "test", spec)
    paths = write_shards(train, tmp_path, per_shard=5) + write_shards(test, tmp_path)
    assert [p.name for p in paths] == ["train-000000.tar", "train-000001.tar", "train-000002.tar", "test-000000.tar"]
    found = data.open(tmp_path)
    assert (found.spec.shape, found.spec.levels, found.spec.dtype) == (spec.shape, spec.levels, spec.dtype)
    assert torch.equal(found.train.levels, train.levels)
    assert torch.equal(found.test.levels, test.levels)
    assert by_hash(found.train) == by_hash(train)
    assert by_hash(found.test) == by_hash(test)
    before = [p.read_bytes() for p in paths]
    write_shards(train, tmp_path, per_shard=5)
    assert [p.read_bytes() for p in paths] == before  # the same bytes at every time


def png(i: int) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(Seeds.of(0, 20).integers("png", 256, 4, 5).numpy()[i].astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def shard(path: Path, members: list[tuple[str, bytes] | tarfile.TarInfo]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as file:
        for one in members:
            if isinstance(one, tarfile.TarInfo):
                file.addfile(one)
            else:
                info = tarfile.TarInfo(one[0])
                info.size = len(one[1])
                file.addfile(info, io.BytesIO(one[1]))
    return path


def test_shards_that_others_wrote(tmp_path: Path):
    members: list[Any] = []
    for i in range(6):
        members += [
            (f"a/{i}.png", png(i)),
            (f"a/{i}.cls", str(i % 2).encode()),
            (f"a/{i}.seg.png", png(i)),
            (f"a/{i}.txt", b"one word more"),
        ]
    members.append(("lonely.txt", b"no picture"))
    found = data.open(shard(tmp_path / "things.tar", members))
    assert found.name == "things"
    assert len(found.train) + len(found.test) == 6
    assert {n: type(c) for n, c in found.schema.columns.items()} == {"label": Category, "text": Text}
    assert found.schema["label"].names == ("0", "1")  # type: ignore[union-attr]
    assert any("6 .seg.png members, 1 keys without an image" in r for r in found.remarks)


def test_folders_of_splits_hold_shards_too(tmp_path: Path):
    shard(tmp_path / "train" / "00.tar", [(f"{i}.png", png(i)) for i in range(6)])
    shard(tmp_path / "val" / "00.tar", [(f"{i}.png", png(i)) for i in range(6, 9)])
    found = data.open(tmp_path)
    assert (len(found.train), len(found.test), found.own_validation) == (6, 3, None)


def link(name: str, kind: bytes, target: str = "/etc/passwd") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize(
    ("member", "said"),
    [
        (link("1.png", tarfile.SYMTYPE), "is a link, a device or sparse"),
        (link("1.png", tarfile.LNKTYPE, "0.png"), "is a link, a device or sparse"),
        (link("1.png", tarfile.CHRTYPE), "is a link, a device or sparse"),
        (link("1.png", tarfile.FIFOTYPE), "is a link, a device or sparse"),
        (("/1.png", b""), "leads out of its shard"),
        (("../1.png", b""), "leads out of its shard"),
        (("a/../../1.png", b""), "leads out of its shard"),
        (("a\\..\\1.png", b""), "leads out of its shard"),
        (("C:/1.png", b""), "leads out of its shard"),
        (("1.json", b" " * (1 << 20) + b"{}"), "too many for a condition"),
        (("0.json", b"[1]"), "it is no JSON object"),
        (("0.json", b"[" * 100_000), "0.json cannot be read"),
        (("0.txt", b"\xff\xfe"), "0.txt cannot be read"),
        (("1.png", b"no picture"), "1.png is of no known format"),
    ],
)
def test_members_that_are_refused(member: Any, said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=r"things\.tar: ") as caught:
        data.open(shard(tmp_path / "things.tar", [("0.png", png(0)), member]))
    assert said in str(caught.value)
    assert str(caught.value).endswith(".")


def test_shards_that_are_damaged_or_compressed(tmp_path: Path):
    whole = shard(tmp_path / "a.tar", [(f"{i}.png", png(i)) for i in range(6)]).read_bytes()
    for damage in (b"", b"text" * 300, whole[:1000], b"\0" * 1024):
        (tmp_path / "a.tar").write_bytes(damage)
        with pytest.raises(ValueError, match=r"a\.tar"):
            data.open(tmp_path / "a.tar")
    with tarfile.open(tmp_path / "a.tar", "w:gz") as file:
        file.addfile(tarfile.TarInfo("0.png"), io.BytesIO())
    with pytest.raises(ValueError, match="as an uncompressed tar file"):
        data.open(tmp_path / "a.tar")
    for place in range(0, 1024, 7):
        damaged = bytearray(whole)
        damaged[place] ^= 255
        (tmp_path / "a.tar").write_bytes(damaged)
        try:
            data.open(tmp_path / "a.tar")
        except ValueError as error:
            assert "a.tar" in str(error)  # noqa: PT017 (some damage does no harm)


def test_shards_of_splits_and_of_none_do_not_mix(tmp_path: Path):
    for name in ("train-0.tar", "other.tar"):
        shard(tmp_path / name, [(f"{i}.png", png(i)) for i in range(3)])
    with pytest.raises(ValueError, match="name all of them"):
        data.open(tmp_path)


# -- Hugging Face


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return pytest.importorskip("datasets")


def rows(datasets: Any, n: int, start: int = 0) -> Any:
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["cat", "dog", "never"]),
            "age": datasets.Value("float32"),
            "box": datasets.Sequence(datasets.Value("int32")),
        }
    )
    held = {
        "image": [{"bytes": png(start + i), "path": None} for i in range(n)],
        "label": [-1 if i == 1 else i % 2 for i in range(n)],
        "age": [None if i == 2 else i / 4 for i in range(n)],
        "box": [[1, 2]] * n,
    }
    return datasets.Dataset.from_dict(held, features=features)


def test_a_dataset_of_hugging_face(datasets: Any):
    found = data.open(rows(datasets, 10))
    assert len(found.train) + len(found.test) == 10
    assert found.schema["label"].names == ("cat", "dog", "never")  # type: ignore[union-attr]
    assert isinstance(found.schema["age"], Number)
    assert any("left out: box" in r for r in found.remarks)
    labels = torch.cat([found.train.labels(), found.test.labels()])
    assert sorted(labels.tolist()) == [-1, 0, 0, 0, 0, 0, 1, 1, 1, 1]
    wanted = {
        *content_hashes(torch.stack([torch.from_numpy(np.array(Pillow.open(io.BytesIO(png(i)))))[None] for i in range(10)]))
    }
    assert {*content_hashes(torch.cat([found.train.levels, found.test.levels]))} == wanted


def test_a_dictionary_of_datasets_keeps_its_splits(datasets: Any):
    splits = datasets.DatasetDict(
        {
            "train": rows(datasets, 8),
            "test": rows(datasets, 4, 8),
            "validation": rows(datasets, 3, 12),
            "extra": rows(datasets, 2),
        }
    )
    found = data.open(splits)
    assert found.own_validation is not None
    assert (len(found.train), len(found.test), len(found.own_validation)) == (8, 4, 3)
    assert any("Splits left out of the data set: extra" in r for r in found.remarks)
    with pytest.raises(ValueError, match="no column of images; it has label"):
        data.open(rows(datasets, 3).remove_columns("image"))
    with pytest.raises(ValueError, match="streaming=False"):
        data.open(rows(datasets, 3).to_iterable_dataset())


def test_given_of_no_columns_is_written_bare(tmp_path: Path):
    bare = images().select([])
    assert isinstance(bare.given, Given)
    write_shards(bare, tmp_path)
    with tarfile.open(tmp_path / "train-000000.tar") as file:
        assert [m.name for m in file][:2] == ["000000000.png", "000000001.png"]
