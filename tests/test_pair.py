"""Pairs: what goes together by name, what does not, and an input that stays beside its target through splits and flips."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import nonesuch as ns
from nonesuch import cli
from nonesuch.core.given import Image
from nonesuch.data import Data, Images, pair
from nonesuch.data.loader import Batches

Put = Callable[..., None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Writes picture i at a place: left to right it grows from 10 i, in all channels alike."""

    def write(place: str, i: int, size: tuple[int, int] = (8, 8), channels: int = 1) -> None:
        path = tmp_path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        values = np.full((*size, channels), 10 * i, np.uint8) + np.arange(size[1], dtype=np.uint8)[None, :, None]
        Pillow.fromarray(values[..., 0] if channels == 1 else values).save(path)

    return write


def numbers(images: Images) -> list[int]:
    return [round(float(v)) for v in (images.x[:, 0, 0, 0] + 1) * 127.5 / 10]


def sources(images: Images) -> list[int]:
    y = images.given[:].columns["source"]
    return [int(v / 10 + 0.2) for v in (y[:, 0, 0, 0] + 1) * 127.5]


def test_files_go_together_by_name(put: Put, tmp_path: Path):
    for i in range(20):
        put(f"in/{i}.png", i, (4, 4))
        put(f"out/{i}.tif", i, (8, 8), 3)
    data = pair(tmp_path / "in", tmp_path / "out")
    column = data.schema["source"]
    assert isinstance(column, Image)
    assert (data.spec.shape, column.spec.shape, column.made_by) == ((3, 8, 8), (1, 4, 4), None)
    for images in (data.train, data.test, data.train[3:9], data.train[torch.tensor([5, 2])], data.validation().test):
        assert numbers(images) == sources(images)
    assert sorted(numbers(data.train) + numbers(data.test)) == list(range(20))
    assert len(data.test) == 4
    put("in/7.png", 8, (4, 4))
    assert pair(tmp_path / "in", tmp_path / "out").fingerprint != data.fingerprint


def test_class_folders_and_splits(put: Put, tmp_path: Path):
    for i in range(12):
        part = "train" if i < 8 else "test"
        put(f"in/{part}/{i}.png", i)
        put(f"out/{part}/{'cat' if i % 2 else 'dog'}/{i}.png", i)
    data = pair(tmp_path / "in", tmp_path / "out")
    assert (len(data.train), len(data.test)) == (8, 4)
    assert numbers(data.test) == sources(data.test)
    assert [data.schema["label"].names[k] for k in data.test.labels()] == [
        "dog" if i % 2 == 0 else "cat" for i in numbers(data.test)
    ]  # type: ignore[union-attr]
    put("in/val/0.png", 0)
    with pytest.raises(ValueError, match=r"has the splits .*val.* give both the same"):
        pair(tmp_path / "in", tmp_path / "out")


def test_crops_show_the_same_share(put: Put, tmp_path: Path):
    """Pictures of several widths, inputs half as large: what is cut from the target is cut from the input."""
    for i, width in enumerate((16, 24, 32, 16, 40, 16)):
        put(f"in/{i}.png", 4 * i, (8, width // 2))
        put(f"out/{i}.png", 4 * i, (16, width))
    data = pair(tmp_path / "in", tmp_path / "out")
    assert data.spec.size == (16, 16)
    assert data.schema["source"].spec.size == (8, 8)  # type: ignore[union-attr]
    for images in (data.train, data.test):
        x, y = ((v[:, 0, 0] + 1) * 127.5 for v in (images.x, images.given[:].columns["source"]))
        first = x[:, :1] // 40 * 40  # what the picture begins with, before its ramp
        assert torch.allclose(x[:, 0] - first[:, 0], 2 * (y[:, 0] - first[:, 0]), atol=0.01)
        assert torch.allclose(y.diff(), torch.ones(()), atol=0.01)
    put("in/5.png", 5, (8, 14))
    with pytest.raises(ValueError, match="would not show the same"):
        pair(tmp_path / "in", tmp_path / "out")
    assert pair(tmp_path / "in", tmp_path / "out", fit="resize").schema["source"].spec.size == (8, 8)  # type: ignore[union-attr]


def test_what_is_no_pair_is_a_sentence(put: Put, tmp_path: Path):
    for i in range(6):
        put(f"in/{i}.png", i)
        put(f"out/{i}.png", i)
    into, out = tmp_path / "in", tmp_path / "out"

    def refused(said: str, *sources: object, **options: object) -> None:
        with pytest.raises(ValueError, match=said):
            pair(*(sources or (into, out)), **options)  # type: ignore[arg-type]

    (into / "3.png").rename(into / "three.png")
    refused("3 of .*out has no input in .*in and three of .*in has no target .*6 inputs, 6 targets")
    (into / "three.png").unlink()
    refused("3 of .*out has no input .*5 inputs, 6 targets")
    put("in/3.png", 3)
    put("in/3.bmp", 3)
    refused("two pictures of one name; keep one")
    (into / "3.bmp").unlink()
    (into / "3.png").write_bytes(b"no picture")
    refused(r"3\.png is of no known format")
    put("in/3.png", 3)
    refused("there is no folder", tmp_path / "nowhere", out)
    refused("not 'bucket'", fit="bucket")
    refused("two folders, or of two arrays", into, np.zeros((6, 8, 8), np.uint8))
    refused("3 inputs and 6 targets", np.zeros((3, 8, 8), np.uint8), np.zeros((6, 8, 8), np.uint8))
    refused("cannot pair list and list", [1], [1])
    refused("2 axes and the targets 3", np.zeros((6, 8, 8), np.uint8), np.zeros((6, 8, 8, 8), np.uint8))
    (out / "metadata.csv").write_text("file_name,source\n" + "".join(f"{i}.png,{i}.5\n" for i in range(6)))
    refused("have a condition 'source' already")
    assert numbers(pair(into, out, column="input").test)


def arrays() -> Data:
    levels = np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8)
    return pair(levels, 255 - levels)


def test_arrays_go_together_row_by_row():
    data = arrays()
    for images in (data.train, data.test):
        assert torch.allclose(images.given[:].columns["source"], -images.x, atol=1e-6)


@pytest.mark.parametrize("augment", [("flip",), ("flip:hw", "rotate90")])
def test_an_input_is_flipped_and_turned_with_its_target(augment: tuple[str, ...]):
    data, moved = arrays(), 0
    for clock in (0, 16, 160):
        batch = Batches(data.train, 16, 3, augment=augment).at(clock)
        assert torch.allclose(batch.given.columns["source"], -batch.x, atol=1e-6)
        moved += int((batch.x != Batches(data.train, 16, 3).at(clock).x).flatten(1).any(1).sum())
    assert moved > 12
    with pytest.raises(ValueError, match="would leave the image condition 'source' behind"):
        Batches(data.train, 16, 3, augment=("shift",))


def test_the_command_line_trains_and_samples(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    for i in range(8):
        put(f"in/{i}.png", i, (4, 4))
        put(f"out/{i}.png", i, (8, 8), 3)
    put("odd/a.png", 1, (5, 4))
    fit = ["fit", "diffusion", "out", "--budget", "32", "--preset", "tiny", "--out", "run", "--set", "config.steps=2"]

    def refused(said: str, *words: str) -> None:
        capsys.readouterr()
        assert cli.main(list(words)) == 2
        assert said in " ".join(capsys.readouterr().err.split())

    refused("there is no folder nowhere", *fit, "--pair", "nowhere")
    refused("did you mean 'Downsample'", *fit, "--given", "Downsampel(2)")
    refused("write one as", *fit, "--given", "Downsample(2")
    refused("leaves nothing", *fit, "--given", "downsample:9")
    assert not (tmp_path / "run").exists()
    assert cli.main([*fit, "--pair", "in", "--given", "Downsample(2)"]) == 0
    model = ns.load("run")
    assert list(model.schema.columns) == ["source", "downsample"]
    assert cli.main(["sample", "run", "--given", "source=in", "--out", "made"]) == 0
    files = sorted((tmp_path / "made").glob("*.png"))
    assert len(files) == 8  # one a picture that is given
    values = torch.stack([torch.from_numpy(np.array(Pillow.open(f"in/{i}.png"))).float() for i in range(8)])
    x = model.sample(8, {"source": values[:, None] / 127.5 - 1})
    drawn = torch.stack([torch.from_numpy(np.array(Pillow.open(f))) for f in files]).movedim(-1, 1)
    assert torch.allclose(drawn.float(), ((x + 1) * 127.5).round(), atol=1)
    refused("is 5 x 4, and this model's 'source' takes pictures of 4 x 4", "sample", "run", "--given", "source=odd")
    refused("there is no nowhere", "sample", "run", "--given", "source=nowhere")


@pytest.mark.slow
def test_a_model_of_pairs_is_scored_on_pairs(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nonesuch.evaluate.features.IMAGES_SEEN", 64)
    for i in range(24):
        put(f"in/{i}.png", i, (4, 4))
        put(f"out/{i}.png", i, (8, 8), 3)
    fit = ["fit", "diffusion", "out", "--pair", "in", "--budget", "32", "--preset", "tiny", "--out", "run"]
    assert cli.main(fit) == 0
    capsys.readouterr()
    assert cli.main(["score", "run", "out", "--pair", "in", "--limit", "12", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["scores"]["bits"]["name"] == "bits/dim given source"
