"""Tiles without seams: the tiled picture is the whole one, the weights are a partition of unity, noise belongs to places."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nonesuch import catalog, cli
from nonesuch.applications._tiles import BLOCK, Mosaic, Placed, Tiling
from nonesuch.applications.provenance import read_origin
from nonesuch.applications.translate import Options, run, translate
from nonesuch.core import artifact
from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model, Step
from nonesuch.core.objective import Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.formats import Picture
from nonesuch.nn.bicubic import enlarge

SMALL = {2: ImageSpec(3, (8, 8)), 3: ImageSpec(1, (6, 6, 6), "dhw")}


def upscaler(
    ratio: int = 2, dims: int = 2, noise: int = 0, widths: tuple[int, ...] = (8, 8), glance: int = 0, **more: Any
) -> Any:  # fmt: skip
    """A pix2pix whose weights are drawn, so that a pixel depends on all that it could."""
    small = SMALL[dims]
    big = ImageSpec(small.channels, tuple(ratio * n for n in small.size), small.axes)
    schema = Schema({"downsample": Image(small), **more})
    config = {"widths": widths, "blocks": (1,) * len(widths), "tail": 8, "noise": noise, "adversarial": 0.0, "features": 0.0}
    model = catalog.build("gan/pix2pix", big, schema, "tiny", **config, glance=glance)
    draw = Seeds.of(0, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.abs().max() == 0:
                p.copy_(draw.normal(name, *p.shape)[0] * 0.1)
    model.images_seen.fill_(1)
    return model


def pictures(n: int, *shape: int, seed: int = 1) -> Tensor:
    return Seeds.of(seed, n).uniform("y", *shape) * 1.6 - 0.8


# -- tiles


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "margin", "multiple"),
    [((100,), (40,), 10, 3, 1), ((37, 64), (16, 20), 6, 2, 2), ((33, 9, 20), (12, 12, 12), 4, 0, 4), ((7, 7), (16, 16), 0, 0, 1)],
)
def test_weights_are_a_partition_of_unity_and_vanish_where_they_should(
    size: tuple[int, ...], tile: tuple[int, ...], overlap: int, margin: int, multiple: int
):
    tiling = Tiling(size, tile, overlap, margin, multiple)
    mosaic, total = Mosaic(1, 1, tiling), torch.zeros(size)
    for corner, n in tiling:
        w = tiling.weights(corner, n)
        assert float(w.min()) >= 0
        assert float(w.max()) <= 1
        assert all(a % multiple == 0 and a + k <= s for a, k, s in zip(corner, n, size, strict=True))
        for axis, (a, k, s) in enumerate(zip(corner, n, size, strict=True)):
            if a > 0 and margin:
                assert float(w.narrow(axis, 0, margin).abs().max()) == 0
            if a + k < s and margin:
                assert float(w.narrow(axis, k - margin, margin).abs().max()) == 0
        total[tuple(slice(a, a + k) for a, k in zip(corner, n, strict=True))] += w
        mosaic.add(torch.full((1, 1, *n), 0.7), corner, n)
    assert float(total.min()) > 0
    torch.testing.assert_close(mosaic.whole(), torch.full((1, 1, *size), 0.7))


def test_a_seam_is_found_where_tiles_do_not_overlap_and_not_where_they_do():
    """Tiles of different brightness: the largest step between neighbours is the whole difference, or a small part of it."""
    steps = {}
    for overlap in (0, 16):
        tiling = Tiling((64,), (32,), overlap)
        mosaic = Mosaic(1, 1, tiling)
        for i, (corner, size) in enumerate(tiling):
            mosaic.add(torch.full((1, 1, *size), float(i % 2)), corner, size)
        steps[overlap] = float(mosaic.whole().diff().abs().max())
    assert steps[0] == pytest.approx(1)
    assert steps[16] < 0.2


def test_tiles_that_cannot_go_on_are_refused():
    with pytest.raises(ValueError, match="cannot overlap by 8 pixels"):
        Tiling((64, 64), (8, 8), 8)


@pytest.mark.parametrize(("ratio", "dims", "widths"), [(1, 2, (8, 8)), (2, 2, (8,)), (3, 2, (8, 8)), (4, 2, (8,)), (2, 3, (6,))])
def test_the_tiled_picture_is_the_whole_one(ratio: int, dims: int, widths: tuple[int, ...]):
    model = upscaler(ratio, dims, widths=widths)
    size = (61, 70) if dims == 2 else (25, 13, 22)
    y = pictures(2, SMALL[dims].channels, *size)
    whole = model.translate(y)
    assert float((whole - enlarge(y, ratio)).abs().mean()) > 0.01, "the network does something"
    events = list(run(model, y, options=Options(tile=2 * model.reach + 10, overlap=2 * model.reach + 2)))
    assert events[-1].total >= 4
    assert [e.done for e in events] == list(range(events[-1].total + 1))
    torch.testing.assert_close(events[-1].result, whole, atol=1e-5, rtol=0)
    torch.testing.assert_close(translate(model, y, tile=1000), whole, atol=1e-6, rtol=0)


@pytest.mark.parametrize("dims", [2, 3])
def test_tiles_share_what_the_whole_picture_says(dims: int):
    model = upscaler(2, dims, widths=(6,), glance=8)
    y = pictures(2, SMALL[dims].channels, *((61, 70) if dims == 2 else (25, 13, 22)))
    y = y * torch.linspace(0.2, 1, y.shape[-1])  # no part is like the whole
    options = Options(tile=2 * model.reach + 10, overlap=2 * model.reach + 2)
    *_, last = run(model, y, options=options)
    assert last.total > 1
    torch.testing.assert_close(last.result, model.translate(y), atol=1e-5, rtol=0)
    model.glance = lambda y: None  # each tile then looks at itself
    *_, last = run(model, y, options=options)
    assert float((last.result - model.translate(y)).abs().max()) > 1e-3


def test_an_overlap_below_the_reach_shows():
    """The checker of the test before this one can fail: a margin that is too small leaves a difference."""
    model = upscaler(2)
    y = pictures(1, 3, 40, 40)
    off = (translate(model, y, tile=12, overlap=2) - model.translate(y)).abs().max()
    assert float(off) > 1e-4


@pytest.mark.parametrize("noise", [1, 3])
def test_noise_belongs_to_places(noise: int):
    model = upscaler(2, noise=noise)
    y = pictures(2, 3, 45, 50)
    one = translate(model, y, seeds=3, tile=1000)
    tiled = translate(model, y, seeds=3, tile=2 * model.reach + 8, overlap=2 * model.reach + 2)
    torch.testing.assert_close(one, tiled, atol=1e-5, rtol=0)
    assert float((one - translate(model, y, seeds=4, tile=1000)).abs().max()) > 1e-2
    alone = translate(model, y[1:], seeds=Seeds((3,), (1,)), tile=1000)
    torch.testing.assert_close(one[1:], alone, atol=1e-5, rtol=0)


def test_placed_draws_are_windows_of_one_field_and_standard_normal():
    field = Placed((5,) * 2, (0, 1), (0, 0), (80, 96)).normal("z", 3, 80, 96)
    part = Placed((5,) * 2, (0, 1), (20, 37), (31, 40)).normal("z", 3, 31, 40)
    assert torch.equal(part, field[:, :, 20:51, 37:77])
    assert torch.equal(field[:, :, :BLOCK, :BLOCK], Seeds.of(5, 2).normal("z@0,0", 3, BLOCK, BLOCK))
    assert float(field.mean()) == pytest.approx(0, abs=0.02)
    assert float(field.std()) == pytest.approx(1, abs=0.02)
    finer = Placed((5,), (0,), (4, 4), (8, 8)).normal("z", 1, 16, 16)
    assert torch.equal(finer, Placed((5,), (0,), (0, 0), (16, 16)).normal("z", 1, 32, 32)[..., 8:24, 8:24])
    assert torch.equal(Placed((5,), (0,), (4, 4), (8, 8))[:1].normal("z", 1, 16, 16), finer)
    assert torch.equal(Placed((5,), (0,), (4, 4), (8, 8)).normal("v", 7), Seeds.of(5, 1).normal("v", 7)), "not of a picture"


@dataclass(frozen=True)
class Plain:
    """Nothing to set."""


class Brighter(Model):
    """Not a translator: takes tiles of its own size; draws noise of the picture's size around y enlarged."""

    card: ClassVar[Card] = Card("Brighter", "Nobody, Anna", 2026)
    Config: ClassVar[type] = Plain
    presets: ClassVar[dict[str, Preset]] = {"tiny": Preset()}

    def __init__(self, config: Plain, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.by = nn.Parameter(torch.zeros(()))
        self.images_seen.fill_(1)

    def objectives(self) -> list[Objective]:
        return [Objective("model", [self.by], lambda batch: Terms({"by": self.by.square()}))]

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        y = given.columns["y"]
        assert y.shape[2:] == (8, 8)
        yield Step(1, 1, (enlarge(y, 2) * 0.5 + 0.1 * seeds.normal("x", *self.spec.shape)).clamp(-1, 1))


@pytest.mark.parametrize("size", [(30, 23), (5, 8), (8, 8)])
def test_any_model_that_is_given_a_picture_takes_tiles_of_its_own_size(size: tuple[int, int]):
    model = Brighter(Plain(), ImageSpec(1, (16, 16)), Schema({"y": Image(ImageSpec(1, (8, 8)))}))
    y = pictures(3, 1, *size)
    x = translate(model, y, seeds=2)
    assert x.shape == (3, 1, 2 * size[0], 2 * size[1])
    inner = (slice(None), slice(None), slice(0, 2 * size[0]), slice(0, 2 * size[1]))
    tiles = [-(-max(n, 8) // 8) * 8 for n in size]
    noise = Placed((2,) * 3, (0, 1, 2), (0, 0), tuple(tiles)).normal("x", 1, *[2 * n for n in tiles])[inner]
    away = (slice(None), slice(None), slice(4, -4), slice(4, -4))  # where a tile's own border does not reach
    if size == (8, 8):
        torch.testing.assert_close(x, (enlarge(y, 2) * 0.5 + 0.1 * noise).clamp(-1, 1))
    assert float((x - enlarge(y, 2) * 0.5 - 0.1 * noise)[away].abs().mean()) < 0.02


def test_memory_is_that_of_the_result_and_a_tile():
    tiling = Tiling((600, 600), (64, 64), 16)
    tracemalloc.start()
    mosaic = Mosaic(1, 1, tiling)
    for corner, size in tiling:
        mosaic.add(torch.zeros(1, 1, *size), corner, size)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 << 20, "tiles are not kept"
    assert mosaic.sum.numel() == 360_000


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.zeros(1, 1, 9, 9), "has shape"),
        (torch.zeros(3, 9, 9), "has shape"),
        (torch.zeros(0, 3, 9, 9), "no pictures to translate"),
        (torch.full((1, 3, 9, 9), torch.nan), "NaN"),
        (torch.full((1, 3, 9, 9), 3.0), r"must lie in \[-1, 1\]"),
    ],
)
def test_unfit_pictures_are_refused(y: Tensor, said: str):
    with pytest.raises(ValueError, match=said):
        translate(upscaler(2), y)


def test_unfit_models_and_tiles_are_refused():
    plain = catalog.build("gan/r3gan", ImageSpec(3, (8, 8)), Schema(), "tiny")
    y = torch.zeros(1, 3, 9, 9)
    with pytest.raises(ValueError, match="not been fitted"):
        translate(plain, y)
    plain.images_seen.fill_(1)
    with pytest.raises(ValueError, match="this R3GAN is given nothing"):
        translate(plain, y)
    with pytest.raises(ValueError, match="at least 1 pixel, not 0"):
        translate(upscaler(2), y, tile=0)
    model = Brighter(Plain(), ImageSpec(1, (16, 16)), Schema({"y": Image(ImageSpec(1, (8, 8)))}))
    with pytest.raises(ValueError, match="tiles of 8 x 8 only"):
        translate(model, y[:, :1], tile=9)


# -- the command line


def saved(model: Model, folder: Path) -> Path:
    artifact.save(model, folder)
    return folder


def written(folder: Path, **files: np.ndarray) -> Path:
    folder.mkdir(exist_ok=True)
    for name, values in files.items():
        data, suffix = formats.encode(Picture(values))
        (folder / f"{name}{suffix}").write_bytes(data)
    return folder


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1
    return said.err


def test_upscale_keeps_depth_channels_and_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    folder = written(
        tmp_path / "in",
        eight=rng.integers(0, 256, (3, 12, 17), dtype=np.uint8),
        sixteen=rng.integers(0, 65536, (3, 9, 11), dtype=np.uint16),
        grey=rng.integers(0, 256, (1, 10, 10), dtype=np.uint8),
        clear=rng.integers(0, 256, (4, 10, 8), dtype=np.uint8),
    )
    model = upscaler(2)
    checkpoint = saved(model, tmp_path / "model")
    out = tmp_path / "out"
    assert cli.main(["upscale", str(checkpoint), str(folder), "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [Path(f["out"]).stem for f in told["pictures"]] == ["clear", "eight", "grey", "sixteen"]
    found = {Path(f["out"]).stem: formats.read(Path(f["out"])) for f in told["pictures"]}
    assert {k: (v.values.dtype.name, v.values.shape) for k, v in found.items()} == {
        "eight": ("uint8", (3, 24, 34)), "sixteen": ("uint16", (3, 18, 22)),
        "grey": ("uint8", (3, 20, 20)), "clear": ("uint8", (4, 20, 16)),
    }  # fmt: skip
    y = torch.from_numpy(formats.read(folder / "sixteen.png").values.astype(np.float32)) / 65535 * 2 - 1
    expected = ((model.translate(y[None])[0] + 1) / 2 * 65535).round()
    assert float((torch.from_numpy(found["sixteen"].values.astype(np.float32)) - expected).abs().max()) <= 1000
    assert float((torch.from_numpy(found["sixteen"].values.astype(np.float32)) - expected).abs().mean()) < 64, "bf16 at most"
    assert (out / "sheet.png").is_file()
    origin = read_origin(out / "eight.png")
    assert origin is not None
    assert (origin.job, origin.model, origin.seed, origin.index) == ("upscale", "gan/pix2pix", 0, 1)
    assert origin.source == "compositeWithTrainedAlgorithmicMedia"
    assert cli.main(["upscale", str(checkpoint), str(folder), "--out", str(tmp_path / "plain"), "--no-provenance"]) == 0
    assert read_origin(tmp_path / "plain" / "eight.png") is None


def test_one_picture_may_be_given_and_commands_ask_for_their_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng = np.random.default_rng(0)
    folder = written(tmp_path / "in", a=rng.integers(0, 256, (3, 8, 8), dtype=np.uint8))
    up, same = saved(upscaler(2), tmp_path / "up"), saved(upscaler(1, strength=Number()), tmp_path / "same")
    (tmp_path / "text.txt").write_text("no picture")
    out = ["--out", tmp_path / "out"]
    assert cli.main(["upscale", str(up), str(folder / "a.png"), "--out", str(tmp_path / "out")]) == 0
    assert "upscale takes a model" in refused(capsys, "upscale", same, folder, *out)
    assert "colorize takes a model" in refused(capsys, "colorize", up, folder, *out)
    assert "there is no" in refused(capsys, "upscale", up, tmp_path / "nothing", *out)
    assert "no pictures" in refused(capsys, "upscale", up, tmp_path / "same", *out)
    assert "did you mean 'strength'" in refused(capsys, "translate", same, folder, "--given", "strenght=1", *out)
    assert "no folder to write" in refused(capsys, "upscale", up, folder, "--out", tmp_path / "a.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert "broken.png" in refused(capsys, "upscale", up, folder, "--out", tmp_path / "other")
    assert not (tmp_path / "other").exists(), "nothing is half-written"


def test_colour_is_taken_from_pictures_that_are_to_be_coloured(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    grey, colour = ImageSpec(1, (8, 8)), ImageSpec(3, (8, 8))
    model = catalog.build("gan/pix2pix", colour, Schema({"grayscale": Image(grey)}), "tiny")
    model.images_seen.fill_(1)
    checkpoint = saved(model, tmp_path / "model")
    values = np.random.default_rng(0).integers(0, 256, (3, 10, 12), dtype=np.uint8)
    folder = written(tmp_path / "in", a=values)
    assert cli.main(["colorize", str(checkpoint), str(folder), "--out", str(tmp_path / "out")]) == 0
    found = formats.read(tmp_path / "out" / "a.png").values.astype(float)
    luma = np.tensordot((0.299, 0.587, 0.114), values.astype(float), 1)
    assert np.abs(found - luma).max() <= 1.01, "an untrained network leaves the grey picture as it is, in three channels"


def test_categories_say_what_becomes_of_a_picture(tmp_path: Path):
    spec = ImageSpec(3, (8, 8))
    model = catalog.build("gan/cyclegan", spec, Schema({"kind": Category(("horse", "zebra"))}), "tiny")
    model.images_seen.fill_(1)
    with torch.no_grad():
        model.generators[1].leave.bias.fill_(0.5)
    checkpoint = saved(model, tmp_path / "model")
    folder = written(tmp_path / "in", a=np.full((3, 8, 8), 100, np.uint8))
    for kind, value in (("horse", 100), ("zebra", 164)):
        out = tmp_path / kind
        assert cli.main(["translate", str(checkpoint), str(folder), "--given", f"kind={kind}", "--out", str(out)]) == 0
        assert np.abs(formats.read(out / "a.png").values.astype(int) - value).max() <= 1
