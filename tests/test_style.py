"""Style: the distances are the ones of the papers, and the result is nearer to the reference than plain colour transfer."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images
from torch.nn import functional as F

from nonesuch import cli
from nonesuch.applications import Event
from nonesuch.applications._style_features import maps, read_vgg
from nonesuch.applications.provenance import read_origin
from nonesuch.applications.style import (
    Options,
    _apart,
    _colours,
    _directions,
    _opponent,
    colour_transfer,
    content_error,
    gram_error,
    style,
)
from nonesuch.core.seeds import Seeds

FEW = Options(steps=20, directions=18, patch=5)


def photos(side: int = 48) -> tuple[torch.Tensor, torch.Tensor]:
    """china.jpg and flower.jpg, the middle of each."""
    found = [
        torch.from_numpy(np.asarray(i).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1 for i in load_sample_images().images
    ]
    china, flower = (F.interpolate(x[..., 20:420, 100:500], (side, side), mode="bilinear", antialias=True) for x in found)
    return china, flower


def test_the_sliced_distance_is_wassersteins():
    """The mean squared difference of sorted values, whatever their order and number; 0 for the same set."""
    x = Seeds((0,), (0,)).normal("x", 2, 400)[0]
    y = 3 * Seeds((0,), (1,)).normal("x", 2, 400)[0] + 1
    wanted = ((x.sort(1).values - y.sort(1).values) ** 2).mean() / y.var(1).mean()
    assert float(_apart(x, y[:, torch.randperm(400, generator=torch.Generator().manual_seed(0))])) == pytest.approx(float(wanted))
    assert float(_apart(x, x.flip(1))) == 0
    assert float(_apart(x, x.repeat_interleave(2, 1))) < 1e-3
    # for two Gaussians, (difference of the means)^2 + (difference of the deviations)^2, over the variance
    many = [Seeds((0,), (i,)).normal("x", 1, 20_000)[0] for i in (0, 1)]
    assert float(_apart(many[0], 3 * many[1] + 1)) == pytest.approx((1 + 4) / 9, rel=0.02)
    moved = x.clone().requires_grad_(True)
    _apart(moved, y).backward()  # transports each value to that of its rank
    step = (moved.detach() - moved.grad * x.numel() * y.var(1).mean() / 2).sort(1).values
    torch.testing.assert_close(step, y.sort(1).values, atol=1e-4, rtol=1e-4)


def test_hues_and_brightness_are_told_apart():
    filters = _directions(Seeds((0,), (0,)), 30, 3, 5)
    torch.testing.assert_close(filters.flatten(1).norm(dim=1), torch.ones(30))
    grey = torch.rand(1, 1, 5, 5, generator=torch.Generator().manual_seed(0)).expand(1, 3, 5, 5)
    seen = F.conv2d(grey, filters)[0, :, 0, 0]
    assert seen[1::3].abs().max() < 1e-5  # hues do not see a grey patch
    assert seen[0::3].abs().min() > 1e-3


def test_colour_transfer_has_the_references_moments():
    china, flower = photos()
    torch.testing.assert_close(_colours(_opponent(china)), china, atol=2e-3, rtol=0)
    dull = flower * 0.3  # so that nothing is cut off at black or white
    moved, wanted = _opponent(colour_transfer(china * 0.3, dull)), _opponent(dull)
    torch.testing.assert_close(moved.mean((2, 3)), wanted.mean((2, 3)), atol=5e-3, rtol=0)
    torch.testing.assert_close(moved.std((2, 3)), wanted.std((2, 3)), atol=5e-3, rtol=0)


def test_the_errors_measure_what_they_say():
    china, flower = photos()
    assert content_error(china, china) == pytest.approx(0, abs=1e-4)
    assert (
        content_error(china * 0.6 + 0.2, china) < 0.05 < 0.5 < content_error(flower, china)
    )  # contrast and brightness are style
    assert gram_error(flower, flower) == 0
    assert gram_error(flower.flip(3).roll(9, 2), flower) < 0.3 < gram_error(china, flower)  # where things are is not
    wide = torch.cat([flower, flower], 3)
    assert gram_error(wide, flower) < 0.1


def test_it_is_nearer_to_the_reference_than_colour_transfer_and_keeps_the_content():
    china, flower = photos()
    seen: list[Event] = []
    state = torch.random.get_rng_state()
    found = style(china, flower, FEW, seen.append)
    assert torch.equal(state, torch.random.get_rng_state())
    assert found.x.shape == china.shape
    assert found.x.abs().max() <= 1
    assert found.errors["gram"] < 0.6 * found.errors["colour gram"]
    assert found.errors["content"] < 0.15
    assert found.errors["content"] == pytest.approx(content_error(found.x, china))
    assert [e.done for e in seen] == sorted(e.done for e in seen)
    assert seen[-1].done == seen[-1].total
    close = style(china, flower, replace(FEW, keep=3.0))
    assert close.errors["content"] < found.errors["content"]
    small = [F.avg_pool2d(x, 2) for x in (china, flower)]
    assert torch.equal(style(*small, replace(FEW, steps=3)).x, style(*small, replace(FEW, steps=3)).x)


def test_a_grey_reference_makes_a_grey_picture():
    china, flower = photos(32)
    grey = flower.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    x = style(china, grey, replace(FEW, steps=40)).x
    hues = x - x.mean(1, keepdim=True)
    assert hues.square().mean().sqrt() < 0.15 * (china - china.mean(1, keepdim=True)).square().mean().sqrt()
    one = style(china[:, :1, :20, :31], grey[:, :1, :25, :17], replace(FEW, steps=3)).x
    assert one.shape == (1, 1, 20, 31)


def vgg(path: Path, channels: tuple[int, ...] = (4, 4, 6, 6, 8, 8, 8)) -> Path:
    """A small network in torchvision's names: two convolutions, a pooling, two, a pooling, two, a pooling, one."""
    places, before, tensors = (0, 2, 5, 7, 10, 12, 15), 3, {}
    for place, n in zip(places, channels, strict=True):
        tensors[f"features.{place}.weight"] = Seeds((0,), (place,)).normal("w", n, before, 3, 3)[0] / 5
        tensors[f"features.{place}.bias"] = torch.zeros(n)
        before = n
    save_file({**tensors, "classifier.0.weight": torch.zeros(2, 2)}, path)
    return path


def test_a_local_network_is_read_and_used(tmp_path: Path):
    import hashlib

    china, flower = photos(32)
    path = vgg(tmp_path / "vgg.safetensors")
    layers, digest = read_vgg(path)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [pooled for _, _, pooled in layers] == [False, False, True, False, True, False, True]
    network, before = torch.nn.Sequential(), 3
    for weight, bias, pooled in layers:  # as torch builds it
        if pooled:
            network.append(torch.nn.AvgPool2d(2))
        network.append(torch.nn.Conv2d(before, len(weight), 3, padding=1)).append(torch.nn.ReLU())
        network[-2].load_state_dict({"weight": weight, "bias": bias})
        before = len(weight)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(maps(layers, china)[-1], network(((china + 1) / 2 - mean) / deviation).detach())
    assert [m.shape[2] for m in maps(layers, china)] == [32, 16, 8, 4]
    found = style(china, flower, replace(FEW, steps=3, features=path))
    assert found.features == digest
    assert not torch.equal(found.x, style(china, flower, replace(FEW, steps=3)).x)


def test_other_files_are_no_networks(tmp_path: Path):
    save_file({"layer.weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    (tmp_path / "text.safetensors").write_text("none")
    for name, said in (("other", "does not hold the weights"), ("text", "cannot be read"), ("absent", "there is no file")):
        with pytest.raises(ValueError, match=said):
            read_vgg(tmp_path / f"{name}.safetensors")


def test_bad_input_is_one_sentence():
    china, flower = photos(32)
    for content, reference, said in (
        (china[..., :15], flower, "16 pixels or more"), (china[0], flower, "one picture"), (china, flower[:, :1], "both be grey"),
        (china * 2, flower, r"on \[-1, 1\]"), (china, flower * torch.nan, r"on \[-1, 1\]"), (china[:, :2], flower, "1 or 3"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            style(content, reference)
    for changed in ({"keep": -1}, {"steps": 0}, {"patch": 2}, {"lr": 1.0}):
        with pytest.raises(ValueError, match="takes"):
            replace(FEW, **changed)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name, image in zip(("china.png", "flower.png"), photos(32), strict=True):
        pixels = ((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
        Pillow.fromarray(pixels).save(tmp_path / name)
    return tmp_path / "china.png", tmp_path / "flower.png"


def test_the_command(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    out = pair[0].parent / "styled.png"
    assert cli.main(["style", *map(str, pair), "--out", str(out), "--steps", "5", "--side", "24", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert {"content", "gram", "colour_content", "colour_gram"} <= set(said)
    origin = read_origin(out)
    assert (origin.job, origin.source, origin.options) == ("style", "algorithmicallyEnhanced", {"keep": 0.15, "steps": 5})
    assert origin.mark == "none: smaller than 256x256"
    assert read_origin(Path(said["sheet"])).job == "style"
    with Pillow.open(out) as image:
        assert image.size == (24, 24)
    assert cli.main(["style", *map(str, pair), "--out", str(out), "--steps", "5", "--no-provenance"]) == 0
    assert read_origin(out) is None
    assert b"china" not in out.read_bytes()


def test_the_command_refuses(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]):
    for arguments, said in (
        ([pair[0], pair[0].parent / "none.png"], "there is no file"), ([*pair, "--out", "x.jpg"], "takes a .png"),
        ([*pair, "--side", "8"], "at least 16"), ([*pair, "--vgg", "none.safetensors"], "there is no file none.safetensors"),
    ):  # fmt: skip
        assert cli.main(["style", *map(str, arguments)]) == 2
        assert said in capsys.readouterr().err
