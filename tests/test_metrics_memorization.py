"""Memorization: planted copies are found, fresh draws are not, and smoothness is told from copying."""

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from nonesuch.evaluate import Features, Memorization, memorization
from nonesuch.evaluate.memorization import order_statistic_p, stratified_mann_whitney
from nonesuch.evaluate.score import keyed

D = 10


def population(n: int, *key: int | str) -> tuple[np.ndarray, np.ndarray]:
    """Images of two classes of different spread, and their labels."""
    rng = keyed("population", *key)
    y = (rng.random(n) < 0.3).astype(int)
    return rng.standard_normal((n, D)) * (1 + 2 * y)[:, None] + 8 * y[:, None], y


def judged(samples: np.ndarray, labels: np.ndarray, key: int = 0) -> Memorization:
    (train, y_train), (held, y_held) = population(500, "train", key), population(300, "held", key)
    features = (Features(z, "pixels") for z in (samples, train, held))
    return memorization(*features, labels=labels, train_labels=y_train, held_out_labels=y_held)


def test_mann_whitney_equals_scipy():
    rng = keyed("mw")
    a, b = rng.integers(0, 20, 60).astype(float), rng.integers(3, 25, 45).astype(float)
    share, p, wins = stratified_mann_whitney(a, b, np.zeros(60), np.zeros(45))
    expected = mannwhitneyu(a, b, alternative="less", method="asymptotic", use_continuity=False)
    assert p == pytest.approx(expected.pvalue, rel=1e-9)
    assert share == pytest.approx(1 - expected.statistic / (60 * 45))
    assert wins.mean() == pytest.approx(share)


def test_strata_keep_class_balance_out():
    (a, y_a), (b, y_b) = population(400, "a"), population(400, "b")
    keep = (y_a == 0) | (np.arange(400) < 40)  # fewer of the wide class among the samples
    norm_a, norm_b = np.linalg.norm(a[keep], axis=1), np.linalg.norm(b, axis=1)
    assert stratified_mann_whitney(norm_a, norm_b, np.zeros(len(norm_a)), np.zeros(400))[1] < 1e-3
    assert stratified_mann_whitney(norm_a, norm_b, y_a[keep], y_b)[1] > 0.01


def test_order_statistic_p_is_exact():
    assert order_statistic_p(1, 7, 1, 5) == pytest.approx(7 / 12)
    rng = keyed("order")
    below = (rng.random((20000, 30)) < np.sort(rng.random((20000, 50)), axis=1)[:, 1:2]).sum(1)
    for k in (1, 2, 4):
        assert order_statistic_p(k, 30, 2, 50) == pytest.approx((below >= k).mean(), abs=0.012)


def test_planted_copies_are_found_and_only_they():
    fresh, y = population(400, "fresh")
    train, y_train = population(500, "train", 0)
    copies = np.arange(0, 400, 20)
    fresh[copies], y[copies] = train[copies], y_train[copies]
    fresh[copies[10:]] += 1e-3  # near copies
    found = judged(fresh, y)
    assert set(copies) <= set(np.flatnonzero(found.copied))
    assert found.copied.sum() <= len(copies) + 0.04 * 400  # about 1 % is expected, 4 % in one case of a hundred
    assert (found.nearest[copies] == copies).all()
    assert found.scores["exact_copies"].value == 10 / 400
    assert found.scores["copies_p"].value < 1e-6
    assert found.scores["copies"].title == "copies[pixels, n=400]"


def test_fresh_draws_are_called_copies_no_more_often_than_chance():
    runs = [judged(*population(400, "fresh", i), key=i).scores for i in range(80)]
    for name in ("nearer_p", "membership_p", "copies_p"):
        p = np.array([scores[name].value for scores in runs])
        assert (p < 0.05).mean() <= 0.13, name
        assert (p < 0.5).mean() <= 0.68, name
    assert np.mean([scores["nearer"].value for scores in runs]) == pytest.approx(0.5, abs=0.02)
    assert np.mean([scores["membership"].value - scores["membership"].floor for scores in runs]) == pytest.approx(0, abs=0.01)


def test_noisy_copies_are_nearer_and_smoothness_alone_is_no_membership():
    train, y = population(500, "train", 0)
    rng = keyed("noise")
    kernel = judged(train + 0.5 * rng.standard_normal(train.shape), y).scores
    assert kernel["nearer_p"].value < 1e-6
    assert kernel["membership_p"].value < 1e-6
    fresh, labels = population(500, "fresh")
    smooth = judged(8 * labels[:, None] + 0.5 * (fresh - 8 * labels[:, None]), labels).scores
    assert smooth["nearer_p"].value < 1e-6
    assert smooth["membership_p"].value > 0.01


def test_refusals():
    x, y = population(20, "x")
    f = Features(x, "pixels")
    with pytest.raises(ValueError, match="or of none"):
        memorization(f, f, f, labels=y)
    with pytest.raises(ValueError, match="No class has both"):
        memorization(f, f, f, labels=y + 2, train_labels=y, held_out_labels=y)
    with pytest.raises(ValueError, match="use one extractor"):
        memorization(f, f, Features(x, "other"))
