"""The invisible mark: its null distribution is the derived one, it survives JPEG, and nothing unmarked is called marked."""

import io
import math

import numpy as np
import pytest
from PIL import Image as Pillow
from sklearn.datasets import load_sample_images

from nonesuch.applications._mark import (
    _TABLE_50,
    FALSE_ALARMS,
    LEAST_PSNR_DB,
    NAME,
    _luma,
    _psnr_db,
    _quantised,
    _statistics,
    _whitened,
    detect,
    false_alarm,
    marked,
    unmarked,
)
from nonesuch.core.image import ImageSpec

PHOTOS = [np.ascontiguousarray(np.moveaxis(image, -1, 0)) for image in load_sample_images().images]  # china.jpg and flower.jpg


def crops(n: int, seed: int = 0) -> list[np.ndarray]:
    """256 x 256 at random places, half of each photo."""
    rng = np.random.default_rng(seed)
    places = [(PHOTOS[i % 2], int(rng.integers(0, 172)), int(rng.integers(0, 385))) for i in range(n)]
    return [photo[:, y : y + 256, x : x + 256] for photo, y, x in places]


def jpeg(values: np.ndarray, quality: int) -> np.ndarray:
    file = io.BytesIO()
    plain = values[0] if len(values) == 1 else np.moveaxis(values, 0, -1)
    Pillow.fromarray(plain).save(file, "JPEG", quality=quality)
    found = np.asarray(Pillow.open(file))
    return found[None] if found.ndim == 2 else np.moveaxis(found, -1, 0)


def rate(pictures: list[np.ndarray]) -> float:
    return sum(detect(p).found for p in pictures) / len(pictures)


def test_the_bound_holds_and_is_close():
    """Against the tail of sums of cosines, drawn; and Gauss's where that is exact enough: n large, s moderate."""
    rng = np.random.default_rng(0)
    n = 50
    sums = np.cos(rng.uniform(0, 2 * np.pi, (100_000, n))).sum(1)
    for s in (5.0, 10.0, 15.0):
        tail = float((sums >= s).mean())
        assert tail <= false_alarm(s, n, 1) <= 8 * tail
        assert false_alarm(s, n, 7) == pytest.approx(min(1, 7 * false_alarm(s, n, 1)))
    z = 3.0  # Chernoff's bound of a Gaussian is exp(-z^2 / 2)
    assert false_alarm(z * math.sqrt(5000 / 2), 5000, 1) == pytest.approx(math.exp(-z * z / 2), rel=0.02)
    assert false_alarm(n, n, 1) < 1e-40
    assert false_alarm(-1.0, n, 1) == 1


def test_the_null_is_that_of_the_derivation():
    """A fixed photo under 200 keys, at shifts 20 apart: mean 0, variance n / 2, and the normal's share beyond each quantile."""
    white, _ = _whitened(_luma(crops(1)[0]))
    z = []
    for key in range(1, 201):
        agreement, n = _statistics(white, key)
        z += list(agreement[::20, ::20].flatten() / math.sqrt(n / 2))
    z = np.array(z)
    assert abs(z.mean()) < 4 / math.sqrt(200)  # shifts of one key are not quite independent
    assert z.var() == pytest.approx(1, abs=0.1)
    for bound, share in ((1.2816, 0.1), (2.3263, 0.01)):
        assert (z > bound).mean() == pytest.approx(share, abs=4 * math.sqrt(share / 800))


def test_photos_keep_the_mark_through_jpeg_and_look_the_same():
    originals = crops(8)
    pairs = [marked(c) for c in originals]
    assert {said for _, said in pairs} == {NAME}
    pictures = [m for m, _ in pairs]
    assert min(_psnr_db(a, b) for a, b in zip(originals, pictures, strict=True)) >= LEAST_PSNR_DB
    assert rate(pictures) == rate([jpeg(m, 75) for m in pictures]) == 1
    np.testing.assert_array_equal(marked(originals[0])[0], pictures[0])
    assert rate([jpeg(m, 50) for m in pictures]) == 1
    assert rate([m[:, 31:201, 57:227] for m in pictures]) == 1  # a crop of 170 x 170
    assert rate([np.clip(m.astype(float) * 0.85 + 12, 0, 255).astype(np.uint8) for m in pictures]) == 1
    assert rate([np.roll(m, 1, 0) for m in pictures]) == 1  # colours exchanged
    assert [detect(m, key=1).found for m in pictures] == [False] * 8  # another's key


def test_what_destroys_it_is_told():
    """Half the size and back, a quarter turn and a mirror: not found. That is a limit, and it is in the docstring."""
    pictures = [marked(c)[0] for c in crops(2)]
    small = [np.asarray(Pillow.fromarray(np.moveaxis(m, 0, -1)).resize((200, 200))).transpose(2, 0, 1) for m in pictures]
    assert rate(small) == rate([m[:, ::-1] for m in pictures]) == rate([np.rot90(m, 1, (1, 2)) for m in pictures]) == 0


def test_nothing_unmarked_is_called_marked():
    assert rate(crops(40, seed=1)) == 0
    assert rate([jpeg(c, 50) for c in crops(10, seed=2)]) == 0


@pytest.mark.slow
def test_500_unmarked_crops_and_200_marked():
    assert rate(crops(500, seed=3)) == 0
    originals = crops(200, seed=4)
    pictures = [marked(c)[0] for c in originals]
    assert rate([jpeg(m, 75) for m in pictures]) >= 0.95
    assert min(_psnr_db(a, b) for a, b in zip(originals, pictures, strict=True)) >= 38


@pytest.mark.parametrize("name", ["flat", "black", "ramp", "noise"])
def test_pictures_that_are_no_photos(name: str):
    plain = np.zeros((1, 256, 256), np.uint8)
    picture = {
        "flat": plain + 128, "black": plain, "ramp": plain + np.arange(256, dtype=np.uint8),
        "noise": np.random.default_rng(0).integers(0, 256, plain.shape).astype(np.uint8),
    }[name].astype(np.uint8)  # fmt: skip
    assert not detect(picture).found
    found, said = marked(picture)
    if said == NAME:
        assert detect(found).p <= FALSE_ALARMS**2
        assert _psnr_db(picture, found) >= LEAST_PSNR_DB
    else:
        np.testing.assert_array_equal(found, picture)


def test_alpha_and_the_callers_array_stay():
    colour = crops(1)[0]
    picture = np.concatenate([colour, np.arange(65536).reshape(1, 256, 256).astype(np.uint8)])
    before = picture.copy()
    found, _ = marked(picture)
    np.testing.assert_array_equal(picture, before)
    np.testing.assert_array_equal(found[3], picture[3])
    assert (found[:3] != picture[:3]).any()
    assert detect(found).found


def test_the_quantisation_is_jpegs():
    """The same table, and half of the blocks to the last bit; libjpeg rounds the other way where a coefficient lies between."""
    grey = np.rint(_luma(crops(1)[0])).astype(np.uint8)
    file = io.BytesIO()
    Pillow.fromarray(grey).save(file, "JPEG", quality=75)
    with Pillow.open(file) as image:
        assert image.quantization[0] == np.maximum(1, (_TABLE_50 + 1) // 2).flatten().tolist()
    theirs = jpeg(grey[None], 75)[0].astype(float)
    apart = np.abs(_quantised(grey.astype(float)) - theirs)
    assert np.median(apart.reshape(32, 8, 32, 8).mean((1, 3))) < 0.05
    assert apart.mean() < 0.1 * np.abs(grey - theirs).mean()


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (ImageSpec(3, (256, 300)), ""),
        (ImageSpec(1, (256, 256)), ""),
        (ImageSpec(3, (256, 255)), "smaller than 256x256"),
        (ImageSpec(1, (256, 256), levels=65536, dtype="uint16"), "8 bits"),
        (ImageSpec(1, (256, 256), kind="continuous", levels=None, dtype="float32"), "8 bits"),
        (ImageSpec(1, (256, 256), levels=3), "8 bits"),  # a mask
        (ImageSpec(1, (256, 256), spacing=(0.5, 0.5)), "medical"),
        (ImageSpec(1, (256, 256), unit="HU"), "medical"),
        (ImageSpec(1, (256, 256, 256), "dhw"), "not a grey or colour picture"),
        (ImageSpec(2, (256, 256)), "not a grey or colour picture"),
    ],
)
def test_only_photos_of_8_bits_are_marked(spec: ImageSpec, why: str):
    said = unmarked(spec)
    assert (why in said and said.startswith("none: ")) if why else said == ""


def test_others_are_refused():
    for shape, dtype in (((3, 255, 256), "uint8"), ((3, 256, 256), "uint16"), ((2, 256, 256), "uint8"), ((256, 256), "uint8")):
        with pytest.raises(ValueError, match="only 8-bit grey or colour pictures from 256x256 up are marked"):
            marked(np.zeros(shape, dtype))
    with pytest.raises(ValueError, match="64x64 up"):
        detect(np.zeros((1, 63, 64), np.uint8))
