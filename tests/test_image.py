"""What a picture is: levels, the inside and the file's values lead to one another exactly, and what does not fit is refused."""

import math

import pytest
import torch
from torch import Tensor

from nonesuch.core.image import AXES, ImageSpec, Kind

SIZES = {"hw": (3, 5), "dhw": (2, 3, 4), "thw": (4, 3, 2), "l": (7,), "": ()}
KINDS: tuple[Kind, ...] = ("ordinal", "categorical", "continuous")
GREY = ImageSpec(1, (2, 2), levels=5)


def spec_of(axes: str, kind: Kind, channels: int = 2) -> ImageSpec:
    return ImageSpec(channels, SIZES[axes], axes, kind, None if kind == "continuous" else 6)


# -- levels and the inside


@pytest.mark.parametrize("levels", [2, 3, 17, 256, 4096, 65536])
def test_every_level_has_its_place_inside_and_comes_back(levels: int):
    spec, k = ImageSpec(1, (1, levels), levels=levels), torch.arange(levels)
    x = spec.from_levels(k.view(1, 1, 1, -1))
    closed = 2 * k.double() / (levels - 1) - 1
    assert x.dtype == torch.float32
    assert torch.allclose(x.flatten().double(), closed, atol=3e-7, rtol=0)
    assert (x.min(), x.max()) == (-1, 1)
    assert torch.equal(spec.to_levels(x).flatten(), k)
    assert spec.step == pytest.approx(2 / (levels - 1), rel=1e-15)


@pytest.mark.parametrize("levels", [2, 17, 256, 65536])
def test_the_nearest_level_wins(levels: int):
    spec, k = ImageSpec(1, (1, levels - 1), levels=levels), torch.arange(levels - 1)
    x = spec.from_levels(k)
    assert torch.equal(spec.to_levels(x + 0.49 * spec.step), k)
    assert torch.equal(spec.to_levels(x + 0.51 * spec.step), k + 1)


def test_beyond_the_ends_lie_the_ends():
    x = torch.tensor([-9.0, -1.4, 1.4, 9.0])
    assert GREY.to_levels(x).tolist() == [0, 0, 4, 4]
    assert GREY.snap(x).tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_levels_of_any_integer_type_are_read_alike(dtype: torch.dtype):
    k = torch.arange(128).to(dtype)
    assert torch.equal(ImageSpec(1, (8, 16)).from_levels(k), ImageSpec(1, (8, 16)).from_levels(k.double()))


def test_half_precision_is_widened_before_it_is_read():
    spec = ImageSpec(1, (1, 256))
    x = spec.from_levels(torch.arange(256))
    assert (spec.to_levels(x.bfloat16()) - spec.to_levels(x.bfloat16().float())).abs().max() == 0


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_snapping_twice_is_snapping_once(axes: str, kind: Kind):
    spec = spec_of(axes, kind)
    x = torch.randint(6, (4, *spec.shape)) if kind == "categorical" else torch.randn(4, *spec.shape)
    once = spec.snap(x)
    assert torch.equal(spec.snap(once), once)
    assert torch.equal(spec.check(once), once)
    assert once.shape == x.shape
    if kind == "ordinal":
        grid = 2 * torch.arange(6) / 5 - 1
        assert torch.allclose((once[..., None] - grid).abs().amin(-1), torch.zeros(()), atol=1e-6)
        assert ((once - x.clamp(-1, 1)).abs() <= spec.step / 2 + 1e-6).all()
    else:
        assert once is x or torch.equal(once, x)


# -- the file's values


def values_of(spec: ImageSpec) -> Tensor:
    lo, hi = spec.value_range or (0, (spec.levels or 2) - 1)
    return torch.linspace(lo, hi, spec.levels or 9, dtype=torch.float64).view(1, 1, 1, -1)


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(1, (1, 256)),
        ImageSpec(1, (1, 17), levels=17, value_range=(0, 16)),
        ImageSpec(1, (1, 65536), levels=65536, dtype="uint16"),
        ImageSpec(1, (1, 4096), levels=4096, value_range=(-1024, 3071), unit="HU", dtype="int16"),
        ImageSpec(1, (1, 2), levels=2, value_range=(0, 255)),
        ImageSpec(1, (1, 5), levels=5, value_range=(1, 0)),
        ImageSpec(1, (1, 11), levels=11, value_range=(-0.5, 0.5), dtype="float32"),
    ],
    ids=["uint8", "digits", "uint16", "hounsfield", "black and white", "inverted", "fractions"],
)
def test_values_of_the_file_come_back(spec: ImageSpec):
    values = values_of(spec)
    x = spec.from_values(values)
    assert torch.equal(spec.to_levels(x).flatten(), torch.arange(spec.levels or 0))
    assert torch.allclose(spec.to_values(x), values, rtol=0, atol=1e-12)
    assert spec.to_values(x).dtype == torch.float64


def test_uint16_survives_as_itself():
    spec = ImageSpec(1, (256, 256), levels=65536, dtype="uint16")
    values = torch.arange(65536).view(1, 1, 256, 256)
    assert torch.equal(spec.to_values(spec.from_values(values)).long(), values)
    assert torch.equal(spec.to_values(spec.from_values(values.to(torch.uint16))).long(), values)


def test_values_between_levels_are_rounded_and_those_outside_clamped():
    spec = ImageSpec(1, (1, 4), levels=3, value_range=(0, 100))
    values = torch.tensor([-7.0, 24.0, 26.0, 1000.0])
    assert spec.to_values(spec.from_values(values)).tolist() == [0, 0, 50, 100]


@pytest.mark.parametrize("value_range", [None, (0.0, 4.0), (-3.0, 1.5)])
def test_continuous_values_are_scaled_by_their_range(value_range: tuple[float, float] | None):
    spec = ImageSpec(1, (1, 9), kind="continuous", levels=None, value_range=value_range)
    lo, hi = value_range or (-1.0, 1.0)
    values = torch.linspace(lo, hi, 9)
    assert torch.allclose(spec.from_values(values), torch.linspace(-1, 1, 9), atol=1e-6)
    assert torch.allclose(spec.to_values(spec.from_values(values)), values, atol=1e-6)


def test_tokens_are_themselves_on_every_scale():
    spec, tokens = spec_of("l", "categorical", 1), torch.tensor([[[0, 1, 2, 3, 4, 5, 0]]], dtype=torch.int32)
    assert spec.from_values(tokens).dtype == spec.from_levels(tokens).dtype == torch.int64
    assert spec.to_values(spec.to_levels(spec.from_values(tokens))).tolist() == tokens.tolist()


def test_a_continuous_picture_has_no_levels():
    with pytest.raises(ValueError, match="has no levels"):
        spec_of("hw", "continuous").to_levels(torch.zeros(1, 2, 3, 5))


# -- the spec itself


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_dimensions_are_counted(axes: str, kind: Kind):
    spec = spec_of(axes, kind, 3)
    assert spec.shape == (3, *SIZES[axes])
    assert spec.numel == 3 * math.prod(SIZES[axes]) == torch.zeros(spec.shape).numel()


def test_lists_from_json_make_the_same_spec():
    assert ImageSpec(1, [2, 3], value_range=[0, 16]) == ImageSpec(1, (2, 3), value_range=(0.0, 16.0))  # type: ignore[arg-type]
    assert len({ImageSpec(1, [2, 3]), ImageSpec(1, (2, 3))}) == 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"axes": "wh"}, "axes must be one of 'hw', 'dhw', 'thw', 'l', '', not 'wh'"),
        ({"size": (3,)}, "needs 2 sizes"),
        ({"size": (3, 0)}, "needs 2 sizes"),
        ({"channels": 0}, "and a channel"),
        ({"levels": None}, "levels must be None for a continuous image"),
        ({"kind": "continuous"}, "levels must be None for a continuous image"),
        ({"levels": 1}, "at least 2 levels, not 1"),
        ({"value_range": (3, 3)}, "value_range needs two different"),
        ({"value_range": (0, math.nan)}, "value_range needs two different"),
        ({"value_range": (0, math.inf)}, "value_range needs two different"),
    ],
)
def test_what_is_no_picture_is_refused(arguments: dict[str, object], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        ImageSpec(**{"channels": 1, "size": (3, 3), **arguments})  # type: ignore[arg-type]


# -- check


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", KINDS)
def test_fit_pictures_come_back_as_they_are(axes: str, kind: Kind):
    spec = spec_of(axes, kind)
    x = torch.zeros(3, *spec.shape, dtype=torch.int64 if kind == "categorical" else torch.float32)
    assert spec.check(x) is x
    assert spec.check(x[:0]).shape == (0, *spec.shape)
    for wrong in (x[..., None], x[:, :1], x.new_zeros(spec.shape)):
        with pytest.raises(ValueError, match=r"has shape .*; this model takes \(batch, 2"):
            spec.check(wrong)


def picture(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full((2, 1, 2, 2), value).to(dtype)


@pytest.mark.parametrize(
    ("x", "sentence"),
    [
        (picture(3, torch.uint8), r"float in \[-1, 1\], not torch.uint8; ImageSpec.from_values"),
        (picture(math.nan), "NaN or infinite"),
        (picture(-math.inf), "NaN or infinite"),
        (picture(1.01), r"must lie in \[-1, 1\]; its largest magnitude is 1.01"),
        (picture(-200), "its largest magnitude is 200"),
    ],
)
def test_unfit_values_are_refused(x: Tensor, sentence: str):
    with pytest.raises(ValueError, match=f"photos .*{sentence}|photos must be {sentence}"):
        GREY.check(x, "photos")


def test_continuous_pictures_may_leave_the_unit_range_but_not_be_nan():
    spec = ImageSpec(1, (2, 2), kind="continuous", levels=None)
    assert spec.check(picture(1e6)).max() == 1e6
    with pytest.raises(ValueError, match="NaN"):
        spec.check(picture(math.nan))


@pytest.mark.parametrize("token", [-1, 6])
def test_tokens_beyond_the_levels_are_refused(token: int):
    spec = spec_of("l", "categorical", 1)
    with pytest.raises(ValueError, match=r"integers in \[0, 6\)"):
        spec.check(torch.full((1, 1, 7), token))
    with pytest.raises(ValueError, match=r"integers in \[0, 6\)"):
        spec.check(torch.zeros(1, 1, 7))
