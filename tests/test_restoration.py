"""PSNR, SSIM and the conditional distance: closed forms, reference libraries, and the customs that papers share."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nonesuch.core.seeds import Seeds
from nonesuch.evaluate.conditional import conditional_frechet, conditional_frechet_sets
from nonesuch.evaluate.features import Features
from nonesuch.evaluate.frechet import frechet_gaussians, frechet_sets
from nonesuch.evaluate.restoration import luma, psnr, ssim


def pictures(*shape: int, n: int = 3) -> list[Tensor]:
    levels = Seeds.of(0, n).integers("x", 256, *shape)
    return list(levels.float() / 127.5 - 1)


def test_psnr_of_a_known_error_is_its_closed_form():
    truth = [torch.full((1, 20, 30), -0.2) for _ in range(3)]
    off = [x + k * 2 / 255 for x, k in zip(truth, (1, 5, 10), strict=True)]  # by so many levels, everywhere
    found = psnr(off, truth)
    assert found.value == pytest.approx(sum(20 * math.log10(255 / k) for k in (1, 5, 10)) / 3, abs=1e-9)
    assert (found.name, found.unit, found.n, found.better) == ("PSNR", "dB", 3, "higher")
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1]
    assert psnr(truth, truth).value == math.inf
    assert ssim(truth, truth).value == 1


def test_ssim_of_constant_pictures_is_its_closed_form():
    a, b = (torch.full((1, 16, 16), k / 127.5 - 1) for k in (100, 140))
    c = (0.01 * 255) ** 2
    assert ssim([a], [b]).value == pytest.approx((2 * 100 * 140 + c) / (100**2 + 140**2 + c), abs=1e-9)


def test_luma_is_that_of_bt_601():
    colours = torch.tensor([[-1.0, -1, -1], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]).T[:, None]  # (3, 1, 5)
    assert luma(colours)[0, 0].tolist() == pytest.approx([16, 235, 81.481, 144.553, 40.966])
    assert torch.equal(luma(colours.expand(2, 3, 1, 5))[1], luma(colours))


def test_colour_is_measured_on_luma_and_the_border_is_left_out():
    (truth,) = pictures(3, 24, 24, n=1)
    framed = truth.clone()
    framed[:, :4] = -framed[:, :4]
    framed[..., -4:] = -framed[..., -4:]
    assert psnr([framed], [truth], border_px=4).value == math.inf
    assert psnr([framed], [truth], border_px=3).value < 30
    assert psnr([framed], [truth]).name == "PSNR-Y"
    assert psnr([framed], [truth], luma_only=False).name == "PSNR"
    tinted = truth.clone()  # by a change that luma hardly sees: red up, green down
    tinted[0] = (tinted[0] + 0.2).clamp(max=1)
    tinted[1] = (tinted[1] - 0.2 * 65.481 / 128.553).clamp(min=-1)
    assert psnr([tinted], [truth]).value > psnr([tinted], [truth], luma_only=False).value + 6


@pytest.mark.parametrize("shape", [(1, 40, 33), (3, 32, 48)])
def test_ssim_agrees_with_a_reference_library(shape: tuple[int, ...]):
    functional = pytest.importorskip("torchmetrics.functional.image")
    truth = pictures(*shape)
    made = [(x * 0.7 + 0.3 * y).clamp(-1, 1) for x, y in zip(truth, truth[1:] + truth[:1], strict=True)]
    a, b = ((torch.stack([luma(x) if len(x) == 3 else ((x.double() + 1) * 127.5).round() for x in v])) for v in (made, truth))
    _, theirs = functional.structural_similarity_index_measure(a, b, data_range=255.0, sigma=1.5, return_full_image=True)
    assert ssim(made, truth).value == pytest.approx(float(theirs[..., 5:-5, 5:-5].mean()), abs=1e-5)  # theirs goes over the edge
    peak = functional.peak_signal_noise_ratio(a[:1], b[:1], data_range=255.0)
    assert psnr(made[:1], truth[:1]).value == pytest.approx(float(peak), abs=1e-4)


def test_ssim_agrees_with_scikit_image():
    metrics = pytest.importorskip("skimage.metrics")
    (truth, other) = pictures(1, 30, 40, n=2)
    made = (truth * 0.8 + 0.2 * other).clamp(-1, 1)
    a, b = (((x[0].double() + 1) * 127.5).round().numpy() for x in (made, truth))
    _, whole = metrics.structural_similarity(
        a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11, full=True
    )
    assert ssim([made], [truth]).value == pytest.approx(float(whole[5:-5, 5:-5].mean()), abs=1e-9)


def test_volumes_are_measured_too():
    truth = pictures(1, 12, 13, 14)
    noisy = [(x + 0.1 * y).clamp(-1, 1) for x, y in zip(truth, truth[::-1], strict=True)]
    assert 0 < ssim(noisy, truth).value < ssim(truth, truth).value == 1
    assert psnr(noisy, truth).name == "PSNR"


def test_what_cannot_be_compared_is_refused():
    a, b = pictures(1, 12, 12, n=2)
    for measure in (psnr, ssim):
        with pytest.raises(ValueError, match="here are 2 and 1"):
            measure([a, b], [a])
        with pytest.raises(ValueError, match="here are 0 and 0"):
            measure([], [])
        with pytest.raises(ValueError, match="pictures of one shape"):
            measure([a], [b[:, :6]])
        with pytest.raises(ValueError, match="a border of 6 pixels leaves nothing"):
            measure([a], [b], border_px=6)
    with pytest.raises(ValueError, match="windows of 11 pixels"):
        ssim([a], [b], border_px=1)


# -- the conditional distance


def gaussian_pairs(n: int, slope: np.ndarray, spread: float, mean: float = 0.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Conditions y (n, 2) and pictures x = slope y + mean + spread r (n, 3)."""
    rng = np.random.default_rng(seed)
    y, r = rng.standard_normal((n, 2)), rng.standard_normal((n, 3))
    return y, y @ slope.T + mean + spread * r


def test_the_conditional_distance_is_its_closed_form_on_gaussians():
    slopes = np.array([[1.0, 0], [0, 1], [1, 1]]), np.array([[0.5, 0], [0, -1], [1, 0]])
    n = 40_000
    y, real = gaussian_pairs(n, slopes[0], 0.5)
    rng = np.random.default_rng(1)
    made = y @ slopes[1].T + 0.3 + 0.2 * rng.standard_normal((n, 3))
    expected = (
        3 * 0.3**2
        + np.square(slopes[0] - slopes[1]).sum()
        + float(frechet_gaussians(np.zeros(3), 0.25 * np.eye(3), np.zeros(3), 0.04 * np.eye(3)))
    )
    assert conditional_frechet_sets(made, real, y) == pytest.approx(expected, rel=0.02)


def test_pictures_of_the_wrong_conditions_are_found_where_the_plain_distance_sees_nothing():
    slope = np.array([[1.0, 0], [0, 1], [1, 1]])
    y, real = gaussian_pairs(4000, slope, 0.3)
    mixed = real[np.random.default_rng(2).permutation(4000)]
    assert frechet_sets(mixed, real) == pytest.approx(0, abs=1e-6)
    assert conditional_frechet_sets(mixed, real, y) > 1
    assert conditional_frechet_sets(real, real, y) == pytest.approx(0, abs=1e-6)
    regression = y @ slope.T  # right in the mean, without any spread
    assert conditional_frechet_sets(regression, real, y) == pytest.approx(3 * 0.3**2, rel=0.1)


def test_the_conditional_score_says_what_it_is_of():
    slope = np.array([[1.0, 0], [0, 1], [1, 1]])
    y, real = gaussian_pairs(300, slope, 0.3)
    _, other = gaussian_pairs(300, slope, 0.3, mean=0.2, seed=5)
    score = conditional_frechet(*(Features(v, "eye", "h", "test") for v in (other, real, y)))
    assert score.title == "conditional FD[eye, n=300]"
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]
    with pytest.raises(ValueError, match="of the very conditions"):
        conditional_frechet_sets(real[:5], real, y)
