"""Degradations against naive formulas: adjoints, pseudo-inverses, MATLAB's imresize, keys, and what a person types."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from nonesuch.core.degradation import (
    Blur,
    Compose,
    Degradation,
    Downsample,
    Grayscale,
    Jpeg,
    Linear,
    LowContrast,
    LowLight,
    Mask,
    Noise,
    SecondOrder,
    describe,
    name_of,
    parse,
    read,
)
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

LINEAR = (
    Downsample(2),
    Downsample(3),
    Downsample(2, "area"),
    Downsample(3, "area"),
    Blur(0.7),
    Blur(2.0),
    Grayscale(),
    Noise(0.1),
    Mask("random"),
    Mask("half"),
    Mask("center"),
    Compose(Blur(0.8), Downsample(2), Noise(0.1)),
    Compose(Grayscale(), Blur(1.0)),
    Compose(Downsample(2), Mask("pixels")),
    Compose(Grayscale(), Downsample(2), Mask("strokes", noise=0.1)),
    Compose(Blur(2.0), Mask("random")),
)
RANDOM = (Mask(), Noise(0.2), Jpeg((20, 90)), SecondOrder(2), LowLight(), LowContrast(), Compose(Blur(1.0), Noise(0.1), Jpeg(30)))


def pictures(n: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * Seeds.of(3, n).uniform("test", *shape) - 1).to(dtype)


def fits(degradation: Degradation, channels: int) -> bool:
    return channels > 1 or "Grayscale" not in repr(degradation)


@pytest.mark.parametrize(("size", "axes"), [((12, 11), "hw"), ((6, 7, 8), "dhw")])
@pytest.mark.parametrize("degradation", LINEAR, ids=str)
def test_adjoint_and_pseudo_inverse(degradation: Linear, size: tuple[int, ...], axes: str):
    for channels in (1, 2, 3, 4):
        if not fits(degradation, channels):
            continue
        spec = ImageSpec(channels, size, axes)
        x = pictures(3, *spec.shape)
        y = degradation(x)
        assert tuple(y.shape[1:]) == degradation.output(spec).shape
        a = degradation.operator(spec, y)
        u = pictures(3, *a.y.shape[1:])
        assert torch.allclose((a(x) * u).flatten(1).sum(1), (x * a.adjoint(u)).flatten(1).sum(1), atol=1e-4)
        ax = a(x)
        back = a.pinv(ax)
        assert (a(back) - ax).abs().max() < 1e-5
        # the smallest solution: it lies in the row space, so that A+ A is a projection that leaves it as it is
        assert back.square().sum() < x.square().sum() * (1 + 1e-6)
        assert torch.allclose(a.pinv(a(back)), back, atol=3e-3)


@pytest.mark.parametrize("degradation", LINEAR, ids=str)
def test_the_operator_is_what_the_degradation_does(degradation: Linear):
    spec = ImageSpec(3, (10, 9))
    x = pictures(2, *spec.shape, dtype=torch.float64)
    y = degradation(x)
    a = degradation.operator(spec, y)
    assert a.noise == degradation.noise
    apart = a.y - a(x)
    if a.noise == 0:
        assert torch.equal(a.y, a(x))
    else:
        assert 0.6 * a.noise < apart[apart != 0].std() < 1.4 * a.noise
    leaf = x.clone().requires_grad_()
    slope = torch.autograd.grad((a(leaf) * a.y).sum(), leaf)[0]
    assert torch.allclose(slope, a.adjoint(a.y), atol=1e-10)


def imresize(values: np.ndarray, factor: int) -> np.ndarray:
    """MATLAB's imresize(values, 1 / factor), written down pixel by pixel: rows, then columns."""

    def cubic(t: float) -> float:
        t = abs(t)
        if t <= 1:
            return 1.5 * t**3 - 2.5 * t**2 + 1
        return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t <= 2 else 0.0

    for axis in (0, 1):
        n = values.shape[axis]
        rows = []
        for i in range(math.ceil(n / factor)):
            centre = (i + 1) * factor + 0.5 * (1 - factor)  # counted from 1, as MATLAB does
            first = math.floor(centre - 2 * factor)
            taps = range(first, first + 4 * factor + 2)
            weights = [cubic((centre - t) / factor) / factor for t in taps]
            picked = [np.take(values, min(max(t, 1), n) - 1, axis) for t in taps]
            rows.append(sum(w * p for w, p in zip(weights, picked, strict=True)) / sum(weights))
        values = np.stack(rows, axis)
    return values


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("size", [(16, 12), (13, 7)])
def test_bicubic_is_matlabs(factor: int, size: tuple[int, int]):
    x = pictures(1, 1, *size, dtype=torch.float64)
    assert np.abs(Downsample(factor)(x)[0, 0].numpy() - imresize(x[0, 0].numpy(), factor)).max() < 1e-12


def test_area_is_the_mean_of_what_is_there():
    x = pictures(2, 3, 8, 12, dtype=torch.float64)
    assert torch.allclose(Downsample(4, "area")(x), F.avg_pool2d(x, 4))
    odd = Downsample(2, "area")(x[..., :7, :5])
    assert odd.shape[2:] == (4, 3)
    assert torch.allclose(odd[..., 3, 2], x[..., 6, 4])
    assert torch.allclose(odd[..., 3, 0], x[..., 6, :2].mean(-1))


def test_grayscale_and_blur_by_their_formulas():
    x = pictures(2, 3, 9, 9, dtype=torch.float64)
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert torch.allclose(Grayscale()(x)[:, 0], luma)
    assert torch.allclose(Grayscale()(x[:, :2])[:, 0], x[:, :2].mean(1))
    offset = torch.arange(-6, 7, dtype=torch.float64)
    kernel = torch.exp(-0.5 * (offset / 1.5) ** 2)
    kernel = kernel / kernel.sum()
    wide = F.pad(x, (6, 6, 6, 6), mode="replicate").flatten(0, 1)[:, None]
    found = F.conv2d(F.conv2d(wide, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    assert torch.allclose(Blur(1.5)(x), found.view_as(x))
    volume = pictures(1, 1, 4, 6, 5)
    assert torch.equal(Blur((0, 1.0, 1.0))(volume)[:, :, 2], Blur(1.0)(volume[:, :, 2]))  # an axis left alone


@pytest.mark.parametrize("degradation", RANDOM, ids=str)
def test_a_picture_depends_on_its_own_key_alone(degradation: Degradation):
    x, keys = pictures(4, 3, 16, 16), Seeds.of(5, 4)
    before = torch.get_rng_state()
    y = degradation(x, keys)
    assert torch.equal(before, torch.get_rng_state())
    assert torch.allclose(degradation(x[2:3], keys[[2]]), y[2:3], atol=1e-6)
    assert torch.equal(degradation(x, 5), y)
    assert not torch.equal(degradation(x[:1].expand(4, -1, -1, -1), keys)[0], degradation(x[:1], Seeds.of(6, 1))[0])


@pytest.mark.parametrize("kind", ["rectangles", "strokes", "pixels", "random"])
@pytest.mark.parametrize("size", [(16, 20), (8, 8, 8)])
def test_masks_hide_their_share(kind: str, size: tuple[int, ...]):
    known = Mask(kind, 0.4).draw(64, size)
    hidden = 1 - known.flatten(1).float().mean(1)
    assert known.shape == (64, 1, *size)
    assert (hidden > 0).all()
    assert hidden.max() < 0.75  # the last mark may reach beyond
    assert len({row.numpy().tobytes() for row in known}) == 64


def test_masks_that_are_not_drawn():
    x = pictures(2, 3, 8, 8)
    y = Mask("half")(x)
    assert torch.equal(y[:, :3, :4], x[:, :, :4])
    assert (y[:, :3, 4:] == 0).all()
    assert (y[:, 3, :4] == 1).all()
    assert (y[:, 3, 4:] == -1).all()
    assert (Mask("center")(x)[0, 3] == -1).sum() == 16
    known = torch.rand(8, 8, generator=torch.Generator().manual_seed(0)) > 0.3
    mine = Mask(known)
    assert mine == Mask(known) == read(describe(mine))
    assert torch.equal(mine(x)[1, 3] > 0, known)
    with pytest.raises(ValueError, match="pictures of 8 x 8, not 9 x 8"):
        mine.output(ImageSpec(1, (9, 8)))


def test_jpeg_is_pillows():
    import io

    from PIL import Image

    x = pictures(1, 3, 24, 16)
    levels = ((x[0] + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0).numpy()
    file = io.BytesIO()
    Image.fromarray(levels).save(file, "JPEG", quality=40)
    found = np.array(Image.open(file))
    assert np.array_equal(((Jpeg(40)(x)[0] + 1) * 127.5).round().permute(1, 2, 0).numpy(), found)
    apart = [(Jpeg(q)(x) - x).square().mean() for q in (10, 50, 95)]
    assert apart[0] > apart[1] > apart[2] > 0


def test_second_order_spoils_and_stays_in_range():
    ramp = torch.linspace(-1, 1, 32).expand(1, 3, 32, 32).contiguous()
    y = SecondOrder(4)(ramp.expand(24, -1, -1, -1), 1)
    assert y.shape == (24, 3, 8, 8)
    assert y.abs().max() <= 1
    small = Downsample(4, "area")(ramp)
    errors = (y - small).square().mean((1, 2, 3)).sqrt()
    assert len(errors.unique()) == 24  # each in its own way
    assert errors.median() < 0.3  # and still a ramp
    assert torch.allclose((y + 1) * 127.5, ((y + 1) * 127.5).round(), atol=1e-4)  # as a file holds it
    assert SecondOrder(3)(pictures(1, 1, 10, 11)).shape == (1, 1, 4, 4)


def ranks_agree(a: Tensor, b: Tensor) -> float:
    """Spearman's correlation."""
    return float(torch.corrcoef(torch.stack([a.argsort().argsort(), b.argsort().argsort()]).double())[0, 1])


def test_light_follows_its_strength():
    x = pictures(64, 3, 16, 16)
    light = LowLight((0.0, 1.0))
    strength = light.strengths(64)
    assert ranks_agree(strength, (x - light(x)).mean((1, 2, 3))) > 0.99
    flat = LowContrast((0.0, 1.0))
    assert ranks_agree(flat.strengths(64), flat(x).flatten(1).std(1)) < -0.99
    assert torch.allclose(LowLight(0.0)(x), x, atol=1e-6)
    assert torch.allclose(LowContrast(0.0)(x), x, atol=1e-6)


def test_noises_of_two_degradations_are_independent():
    x = torch.zeros(1, 1, 64, 64)
    one, other = Noise(1.0)(x), Downsample(1, "area", noise=1.0)(x)
    assert torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1].abs() < 0.1
    twice = Compose(Noise(1.0), Noise(1.0))
    assert isinstance(twice, Linear)
    assert twice.noise == pytest.approx(math.sqrt(2))
    assert twice(x).std() == pytest.approx(math.sqrt(2), rel=0.05)


def test_compose_is_linear_where_it_is():
    assert isinstance(Compose(Blur(1.0), Downsample(2), Noise(0.1), Mask("half")), Linear)
    assert not isinstance(Compose(Noise(0.1), Blur(1.0)), Linear)  # its noise is not white
    assert not isinstance(Compose(Blur(1.0), Jpeg(50)), Linear)
    x = pictures(2, 3, 12, 12)
    nested = Compose(Blur(1.0), Compose(Downsample(2), Grayscale()))
    assert nested == Compose(Blur(1.0), Downsample(2), Grayscale())
    assert torch.allclose(nested(x), Grayscale()(Downsample(2)(Blur(1.0)(x))), atol=1e-6)


def test_what_comes_out_is_described():
    spec = ImageSpec(3, (30, 20), spacing=(1.0, 2.0))
    small = Downsample(4).output(spec)
    assert (small.size, small.spacing, small.kind, small.value_range) == ((8, 5), (4.0, 8.0), "continuous", (0.0, 255.0))
    assert Downsample(4, "area").output(spec).kind == "ordinal"
    assert Mask("half").output(spec).channels == 4
    assert Grayscale().output(spec).channels == 1
    several = ImageSpec(3, (8, 12), sizes=((8, 12), (12, 8)))
    assert Downsample(4).output(several).sizes == ((2, 3), (3, 2))
    for degradation in (*LINEAR, *RANDOM):
        y = degradation(pictures(2, 3, 12, 12))
        degradation.output(ImageSpec(3, (12, 12))).check(y)


@pytest.mark.parametrize("degradation", [*LINEAR, *RANDOM, Downsample((1, 2)), Blur((0, 1.5))], ids=str)
def test_json_there_and_back(degradation: Degradation):
    assert read(describe(degradation)) == degradation
    assert read(json.loads(describe(degradation))) == degradation
    assert parse(repr(degradation)) == degradation
    assert type(read(describe(degradation))) is type(degradation)
    assert name_of(degradation) in ("compose", type(degradation).__name__.lower())


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("Downsample(4)", Downsample(4)),
        ("downsample:4", Downsample(4)),
        ("downsample:4, area", Downsample(4, "area")),
        ("Downsample((1, 2, 2), kernel='area')", Downsample((1, 2, 2), "area")),
        ("grayscale", Grayscale()),
        ("mask:random,share=0.3", Mask("random", 0.3)),
        ("Compose(Blur(1.0), Mask('half'))", Compose(Blur(1.0), Mask("half"))),
        ("Compose([Blur(1.0), Noise(0.1)])", Compose(Blur(1.0), Noise(0.1))),
    ],
)
def test_what_a_person_types(text: str, meant: Degradation):
    assert parse(text) == meant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Downsampel(4)", "did you mean 'Downsample'"),
        ("Downsample(factr=4)", "did you mean 'factor'"),
        ("Downsample(2, factor=4)", "twice"),
        ("Downsample(4, 'bicubc')", "did you mean 'bicubic'"),
        ("Downsample(0)", "whole factor"),
        ("Downsample(4", "write one as"),
        ("Downsample(__import__('os'))", "plain values"),
        ("Downsample(open('x'))", "plain values"),
        ("os.system('true')", "write one as"),
        ("4", "write one as"),
        ("Mask('radom')", "did you mean 'random'"),
        ("Mask(share=2)", "between 0 and 1"),
        ("Grayscale(noise='a')", "cannot be made of"),
        ("Jpeg(10, 20)", "1 values at most"),
        ("Jpeg((90, 20))", "the lower first"),
        ("Compose()", "takes degradations"),
        ("Compose(Mask('half'), Blur(1.0))", "comes last"),
        ("Blur(-1)", "0 or more"),
        ("Noise(-1)", "0 or more"),
        ("LowLight(3)", "between 0 and 1"),
    ],
)
def test_what_cannot_be_meant(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"factor": 2}',
        '{"degradation": "wrong"}',
        '{"degradation": "mask", "kind": "given", "known": "8x8:!!"}',
        '{"degradation": "mask", "kind": "given", "known": "8x8:eJw="}',
        '{"degradation": "mask", "kind": "given", "known": "99999999x99999999:eJw="}',
        '{"degradation": "compose", "parts": 3}',
        "[" * 4000,
    ],
)
def test_damaged_descriptions_are_sentences(text: str):
    with pytest.raises(ValueError, match=r"\.$"):
        read(text)


@pytest.mark.parametrize(
    ("degradation", "spec", "said"),
    [
        (Grayscale(), ImageSpec(1, (8, 8)), "several channels"),
        (Downsample(9), ImageSpec(1, (8, 12)), "leaves nothing"),
        (Downsample(2), ImageSpec(1, (4, 8, 8), "thw"), "time first"),
        (Downsample((2, 2, 2)), ImageSpec(1, (8, 8)), "2 axes"),
        (Jpeg(50), ImageSpec(4, (8, 8)), "1 or 3 channels"),
        (Jpeg(50), ImageSpec(1, (8, 8), levels=17), "8-bit"),
        (Jpeg(50), ImageSpec(1, (8, 8, 8), "dhw"), "flat"),
        (SecondOrder(4), ImageSpec(3, (3, 8)), "leaves nothing"),
        (Noise(0.1), ImageSpec(1, (8, 8), kind="categorical", levels=4), "categories"),
        (Compose(Grayscale(), Grayscale()), ImageSpec(3, (8, 8)), "several channels"),
    ],
)
def test_what_does_not_fit_is_one_sentence(degradation: Degradation, spec: ImageSpec, said: str):
    with pytest.raises(ValueError, match=said):
        degradation.output(spec)


def test_wrong_pictures_and_measurements_are_sentences():
    with pytest.raises(ValueError, match="float pictures"):
        Blur(1.0)(torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
    with pytest.raises(ValueError, match=r"measures \(batch, 1, 4, 4\)"):
        Downsample(2).operator(ImageSpec(1, (8, 8)), torch.zeros(1, 1, 8, 8))


def test_a_broken_adjoint_would_be_found(monkeypatch: pytest.MonkeyPatch):
    import nonesuch.core._degradations_linear as linear

    spec, x = ImageSpec(1, (12, 11)), pictures(1, 1, 12, 11)
    good = linear.Blur(1.0).operator(spec, x)

    def inner(a: Any) -> float:
        return float(((good(x) * x).sum() - (x * a(x)).sum()).abs())

    assert inner(good.adjoint) < 1e-4
    assert inner(lambda y: good(y.flip(-1))) > 1e-2
