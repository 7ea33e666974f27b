"""Distances between sets of features against closed forms and reference libraries, in float64."""

import importlib
import json
import math

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.neighbors import NearestNeighbors
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import KernelInceptionDistance

from nonesuch.evaluate import Features, Score, _pairs, frechet, frechet_distance, kernel_distance, prdc
from nonesuch.evaluate.features import floor_features
from nonesuch.evaluate.frechet import Side, frechet_gaussians, frechet_sets
from nonesuch.evaluate.kernel import kernel_sets
from nonesuch.evaluate.prdc import prdc_sets
from nonesuch.evaluate.score import bootstrap_counts, bootstrap_mean, keyed

Array = np.ndarray


def draw(n: int, d: int, key: str, shift: float = 0.0) -> Array:
    rng = keyed("test", key)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) / math.sqrt(d) + shift


def seen(array: Array, split: str = "") -> Features:
    return Features(array, "toy", "0" * 64, split)


class AsGiven(nn.Module):
    """The feature module of the reference metrics: images (n, 1, 1, d) are their own features."""

    def __init__(self, d: int) -> None:
        super().__init__()
        self.num_features = d

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).double()


# -- Frechet ------------------------------------------------------------


def test_frechet_of_commuting_gaussians_is_the_closed_form():
    a, b, m = np.array([4.0, 1.0, 0.25]), np.array([1.0, 9.0, 0.25]), np.array([1.0, 2.0, 0.0])
    turn = np.linalg.qr(draw(3, 3, "turn"))[0]
    expected = (m**2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    found = frechet_gaussians(np.zeros(3), turn @ np.diag(a) @ turn.T, turn @ m, turn @ np.diag(b) @ turn.T)
    assert found == pytest.approx(expected, rel=1e-12)
    assert frechet_gaussians(m, np.diag(a), m, np.diag(a)) == pytest.approx(0, abs=1e-12)


def test_frechet_equals_scipy_sqrtm():
    x, y = draw(500, 12, "x"), draw(300, 12, "y", 0.3)
    s1, s2 = np.cov(x.T), np.cov(y.T)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * scipy.linalg.sqrtm(s1 @ s2).real)
    assert frechet_sets(x, y) == pytest.approx(expected, rel=1e-9)
    assert frechet_gaussians(x.mean(0), s1, y.mean(0), s2) == pytest.approx(expected, rel=1e-9)


def test_frechet_with_fewer_images_than_features_is_that_of_the_subspace():
    x, y = draw(20, 4, "x"), draw(9, 4, "y", 0.5)
    wide = np.linalg.qr(draw(50, 50, "wide"))[0][:4]
    assert frechet_sets(x @ wide, y @ wide) == pytest.approx(frechet_sets(x, y), rel=1e-9)


def careful(x: Array, y: Array) -> float:
    """The distance by singular values of the triangular factors, which squares nothing."""
    means = [z.mean(0, dtype=np.float64) for z in (x, y)]
    roots = [np.linalg.qr(z - m, mode="r") / math.sqrt(len(z) - 1) for z, m in zip((x, y), means, strict=True)]
    cross = scipy.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return np.square(means[0] - means[1]).sum() + sum(np.square(r).sum() for r in roots) - 2 * cross


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("decades", [0, 2, 4, 7, 12])
def test_frechet_keeps_eight_digits_however_ill_conditioned(decades: int, dtype: type, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(frechet, "BLOCK", 4000)
    scale = np.logspace(0, -decades, 60)
    turn, other = (np.linalg.qr(keyed("turn", i).standard_normal((60, 60)))[0] for i in range(2))
    x, y = (keyed("ill", i).standard_normal((400 + 50 * i, 60)) * scale for i in range(2))
    pairs = [(x, y), (x @ turn, y @ turn), (x @ turn, y @ other), (x, y[:, ::-1]), (x, 1.01 * x), (x[:30], y), (x[:30], y[:40])]
    pairs += [(np.c_[x, x[:, :9]], np.c_[y, y[:, :9]]), (np.c_[x, 0 * x], np.c_[y, x[:1] + 0 * y])]
    for a, b in pairs:
        a, b = a.astype(dtype), b.astype(dtype)
        assert frechet_sets(a, b) == pytest.approx(careful(a, b), rel=1e-8)


def test_frechet_of_the_same_images_is_zero_to_rounding():
    x = draw(200, 30, "x")
    assert frechet_sets(x, x) == pytest.approx(0, abs=1e-11)


def test_a_side_of_a_frechet_distance_can_be_kept():
    x, y, few = draw(300, 12, "x").astype(np.float32), draw(200, 12, "y", 0.3).astype(np.float32), draw(9, 12, "few")
    side = Side(y)
    for other in (x, few, Side(x), side.x):
        assert frechet_sets(other, side) == frechet_sets(other.x if isinstance(other, Side) else other, y)
    assert side.covariance == pytest.approx(np.cov(y.T.astype(np.float64)), rel=1e-12)
    assert side.careful.T @ side.careful == pytest.approx(side.covariance, rel=1e-10, abs=1e-12)


def test_frechet_equals_torchmetrics():
    x, y = draw(400, 16, "x"), draw(250, 16, "y", 0.2)
    metric = FrechetInceptionDistance(feature=AsGiven(16), normalize=True, input_img_size=(1, 1, 16)).set_dtype(torch.float64)
    metric.update(torch.from_numpy(y)[:, None, None], real=True)
    metric.update(torch.from_numpy(x)[:, None, None], real=False)
    assert frechet_sets(x, y) == pytest.approx(float(metric.compute()), rel=1e-6)


def test_frechet_score_knows_its_floor_and_interval():
    train, test = draw(600, 6, "x"), draw(300, 6, "x")
    far = frechet_distance(seen(train + 1), seen(test, "test"), real=seen(train))
    assert far.value == pytest.approx(frechet_sets(train + 1, test))
    assert far.floor == pytest.approx(frechet_sets(train, test))
    assert far.interval[0] < far.value < far.interval[1] < far.value + 3
    assert far.title == "FD[toy, n=600]"
    assert far.counts == {"test": 300}
    assert frechet_distance(seen(train + 1), seen(test, "train")).title == "FD[toy, against train, n=600]"


# -- kernel ------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_kernel_distance_equals_the_double_loop_and_torchmetrics():
    x, y = draw(60, 8, "x"), draw(60, 8, "y", 0.2)

    def k(a: Array, b: Array) -> float:
        return float((a @ b / 8 + 1) ** 3)

    within = [sum(k(z[i], z[j]) for i in range(60) for j in range(60) if i != j) / (60 * 59) for z in (x, y)]
    between = sum(k(a, b) for a in x for b in y) / 3600
    assert kernel_sets(x, y) == pytest.approx(sum(within) - 2 * between, rel=1e-10)
    metric = KernelInceptionDistance(feature=AsGiven(8), subsets=1, subset_size=60, normalize=True).set_dtype(torch.float64)
    with torch.random.fork_rng(devices=[]):
        metric.update(torch.from_numpy(y)[:, None, None], real=True)
        metric.update(torch.from_numpy(x)[:, None, None], real=False)
        assert kernel_sets(x, y) == pytest.approx(float(metric.compute()[0]), rel=1e-6)


def test_a_kernel_distance_of_few_images_is_refused_and_of_enough_is_finite():
    """Of four images a replicate is one image four times in one draw of 64, and then divides by zero pairs."""
    x = np.random.default_rng(0).normal(size=(10, 3))
    with pytest.raises(ValueError, match="at least ten images on each side, not 4"):
        kernel_distance(seen(x), seen(x[:4]))
    found = kernel_distance(seen(x), seen(x[::-1].copy()))
    assert found.interval is not None
    assert np.isfinite([found.value, *found.interval]).all()


def test_kernel_distance_is_unbiased():
    pairs = ((keyed("a", i).standard_normal((20, 3)), keyed("b", i).standard_normal((12, 3))) for i in range(400))
    values = np.array([kernel_sets(x, y) for x, y in pairs])
    assert abs(values.mean()) < 3 * values.std() / 20


def test_kernel_score():
    x, y = draw(200, 5, "x"), draw(150, 5, "x", 1.0)
    score = kernel_distance(seen(x), seen(y), real=seen(y))
    assert score.value == pytest.approx(kernel_sets(x, y), rel=1e-12)
    assert score.interval[0] < score.value < score.interval[1]
    assert score.floor < 0.05 * score.value


# -- precision, recall, density, coverage ------------------------------------------------------------


def naive_prdc(fake: Array, real: Array, k: int) -> dict[str, float]:
    def reach(z: Array) -> list[float]:
        return [sorted(float(np.linalg.norm(a - b)) for j, b in enumerate(z) if j != i)[k - 1] for i, a in enumerate(z)]

    r, s = reach(real), reach(fake)
    distance = [[float(np.linalg.norm(y - x)) for x in real] for y in fake]
    return {
        "precision": np.mean([any(distance[j][i] <= r[i] for i in range(len(real))) for j in range(len(fake))]),
        "recall": np.mean([any(distance[j][i] <= s[j] for j in range(len(fake))) for i in range(len(real))]),
        "density": np.mean([sum(distance[j][i] <= r[i] for i in range(len(real))) / k for j in range(len(fake))]),
        "coverage": np.mean([any(distance[j][i] <= r[i] for j in range(len(fake))) for i in range(len(real))]),
    }


@pytest.mark.parametrize("tile", [64 * 2**20, 1000])
def test_prdc_equals_the_naive_loops_in_tiles_of_any_size(tile: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_pairs, "TILE_BYTES", tile)
    fake, real = draw(50, 4, "x"), draw(40, 4, "x", 0.3)
    for k in (1, 3, 5):
        assert prdc_sets(fake, real, k=k).means() == pytest.approx(naive_prdc(fake, real, k), rel=1e-12)


def by_definition(fake: Array, real: Array, k: int) -> list[Array]:
    """The four decisions from float64 sums of squared differences, pair by pair."""

    def between(a: Array, b: Array) -> Array:
        return np.stack([np.square(b.astype(np.float64) - row).sum(1) for row in a.astype(np.float64)])

    r, s = (np.partition(between(z, z) + np.diag([np.inf] * len(z)), k - 1, axis=1)[:, k - 1] for z in (real, fake))
    d2 = between(fake, real)
    inside = d2 <= r[None]
    return [inside.any(1), (d2 <= s[:, None]).any(0), inside.sum(1) / k, inside.any(0)]


@pytest.mark.parametrize("case", ["plain", "float32", "copies", "collapsed", "far", "one picture", "clusters", "tiny"])
@pytest.mark.parametrize("bf16", [False, True])
def test_prdc_decides_as_the_definition_does_where_tiles_cannot(case: str, bf16: bool, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_pairs, "has_bf16", lambda device: bf16)
    fake, real = draw(230, 9, "fake", 0.2), draw(210, 9, "real")
    if case == "float32":
        fake, real = fake.astype(np.float32), real.astype(np.float32)
    elif case == "copies":  # ties: a sample is at the very distance of the neighbour that it copies
        fake[:150] = real[:150]
        real[100:120] = real[100]
    elif case == "collapsed":
        fake = real[3] + 1e-7 * fake
    elif case == "far":
        fake, real = fake + 1e7, real + 1e7
    elif case == "one picture":
        fake[:] = real[3]
    elif case == "clusters":  # neighbours far nearer than a float32 tile can tell
        fake, real = (1e-6 * z + 1000 * (np.arange(len(z)) % 3)[:, None] for z in (fake, real))
    elif case == "tiny":
        fake, real = 1e-25 * fake, 1e-25 * real
    for k in (1, 5):
        found, wanted = prdc_sets(fake, real, k=k), by_definition(fake, real, k)
        for mine, theirs in zip((found.precise, found.recalled, found.dense, found.covered), wanted, strict=True):
            assert np.array_equal(mine, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("d", [3, 700])
def test_tiles_are_off_by_no_more_than_their_slack(d: int, dtype: torch.dtype):
    fake, real = draw(130, d, "fake", 0.2).astype(np.float32), draw(140, d, "real")
    real[:20] = fake[:20] * 1.0001  # near each other and far from the centre, where most is lost
    a, b = _pairs.vectors(fake, real, dtype=dtype)
    i, j = (index.ravel() for index in np.indices((130, 140)))
    tile = _pairs.tile(a, slice(None), b, slice(None)).double().numpy() * a.scale**2
    off, slack = abs(tile.ravel() - a.between(i, b, j)), a.slack(b, i, j)
    assert (off <= slack).all()
    assert (slack <= a.slack(b)[i]).all()
    assert off.max() > slack.max() * (0.1 if dtype == torch.bfloat16 else 1e-3)  # nor is it idle


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_prdc_in_small_tiles_is_the_same(dtype: torch.dtype):
    fake, real = draw(230, 9, "fake", 0.2), draw(210, 9, "real")
    (x,) = _pairs.vectors(real, dtype=dtype)
    reach = _pairs.reaches(x, 5)
    assert np.array_equal(_pairs.reaches(x, 5, side=17, spare=0), reach)
    y, z = _pairs.vectors(fake, real, dtype=dtype)
    whole, parts = (
        {pair for ((i, j),) in _pairs.within(y, z, reach[None], side=side) for pair in zip(i.tolist(), j.tolist(), strict=True)}
        for side in (2048, 23)
    )
    assert whole == parts


@pytest.mark.parametrize(("name", "size"), [("frechet", (60, 8)), ("prdc", (60, 8)), ("optimizer", (2,))])
def test_benchmarks_measure(name: str, size: tuple[int, ...]):
    found = importlib.import_module(f"benchmarks.{name}").measure(1, *size)
    for line in found if isinstance(found, list) else [found]:
        assert next(iter(line.rates)) == "ours"
        assert len(line.rates) > 1
        assert line.ours_is_times["ours"] == 1


def test_dropped_modes_lower_recall_and_noise_lowers_precision():
    modes = np.array([[0.0, 0], [9, 0], [0, 9], [9, 9]])
    rng = keyed("modes")
    real, honest = (modes[rng.integers(0, 4, 400)] + rng.standard_normal((400, 2)) for _ in range(2))
    dropping = modes[rng.integers(0, 2, 400)] + rng.standard_normal((400, 2))
    noisy = rng.uniform(-20, 30, (400, 2))
    good, few, noise = (prdc(seen(z), seen(real)) for z in (honest, dropping, noisy))
    assert min(good["precision"].value, good["recall"].value, good["coverage"].value) > 0.9
    assert few["recall"].value < 0.6
    assert few["coverage"].value < 0.6
    assert few["precision"].value > 0.9
    assert noise["precision"].value < 0.3
    assert noise["density"].value < 0.3
    assert good["recall"].title == "recall[toy, k=5, n=400]"


def test_nearest_equals_scikit_learn_and_sees_exact_copies(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_pairs, "TILE_BYTES", 4000)
    x, y = draw(70, 6, "x", 1e3), draw(90, 6, "y", 1e3)
    y[17] = x[5]
    distance, index = _pairs.nearest(x, y)
    _, where = NearestNeighbors(n_neighbors=3, algorithm="brute").fit(y).kneighbors(x)
    assert (index == where[:, 0]).all()
    assert distance == pytest.approx(np.sqrt(np.square(x - y[index]).sum(1)))
    assert distance[5] == 0
    assert _pairs.nearest(x, y, k=3)[0] == pytest.approx(np.linalg.norm(x - y[where[:, 2]], axis=1))


# -- scores and intervals ------------------------------------------------------------


def test_a_score_is_no_bare_float_and_survives_json():
    score = Score(3.21, "FD", 1400, extractor="digits-cnn", interval=(2.94, 3.49), floor=1.1, better="lower", kind="")
    assert str(score) == "FD[digits-cnn, n=1400] = 3.210 (95 % 2.940 to 3.490, floor 1.100, lower is better)"
    assert repr(score) == "Score(3.210, name='FD[digits-cnn, n=1400]', n=1400, interval=(2.940, 3.490), floor=1.100)"
    with pytest.raises(TypeError):
        float(score)
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score
    assert json.loads(json.dumps(Score(math.inf, "bits/dim", 3).to_json(), allow_nan=False))["value"] is None
    assert str(Score(2.5e-7, "p", 5, kind="one-sided", unit="bits")) == "p[n=5] = 2.500e-07 bits (one-sided)"
    with pytest.raises(ValueError, match="at least one image"):
        Score(1.0, "FD", 0)
    with pytest.raises(ValueError, match="better is"):
        Score(1.0, "FD", 1, better="higher?")


def test_the_bootstrap_of_a_mean_covers_in_95_of_100_cases():
    rng = keyed("coverage")
    hits = 0
    for i in range(300):
        low, high = bootstrap_mean(rng.exponential(1.0, 80), i, replicates=300)
        hits += low <= 1.0 <= high
    assert 0.89 <= hits / 300 <= 0.985


def test_the_interval_of_a_frechet_distance_covers_its_expected_value_at_this_n():
    def once(i: int) -> Score:
        rng = keyed("frechet coverage", i)
        return frechet_distance(seen(rng.standard_normal((80, 3)) + 0.5), seen(rng.standard_normal((80, 3))))

    scores = [once(i) for i in range(150)]
    expected = np.mean([s.value for s in scores])
    assert 0.88 <= np.mean([s.interval[0] <= expected <= s.interval[1] for s in scores]) <= 0.995


def test_replicates_are_keyed_and_move_no_global_generator():
    before, torch_before = np.random.get_state()[1].copy(), torch.get_rng_state()
    a, b = bootstrap_counts(10, 5, 1, "a"), bootstrap_counts(10, 5, 1, "b")
    assert (a.sum(1) == 10).all()
    assert (a != b).any()
    assert (a == bootstrap_counts(10, 5, 1, "a")).all()
    assert (np.random.get_state()[1] == before).all()
    assert torch.equal(torch.get_rng_state(), torch_before)


def test_the_floor_takes_as_many_real_images_as_there_are_samples():
    real = seen(draw(50, 2, "x"))
    assert floor_features(seen(draw(20, 2, "y")), real).n == 20
    assert floor_features(seen(draw(80, 2, "y")), real).n == 50


def test_refusals_say_what_to_do():
    x = draw(4, 3, "x")
    with pytest.raises(ValueError, match="use one extractor"):
        frechet_distance(seen(x), Features(x, "other"))
    with pytest.raises(ValueError, match="lower k or give more images"):
        prdc_sets(x, x, k=5)
    with pytest.raises(ValueError, match="lower k or give more images"):
        _pairs.nearest(x, x, k=4, same=True)
    with pytest.raises(ValueError, match="at least two images"):
        frechet_sets(x[:1], x)
    with pytest.raises(ValueError, match="at least two images"):
        kernel_sets(x[:1], x)
    with pytest.raises(ValueError, match="NaN"):
        seen(np.full((2, 2), np.nan), "test")
    with pytest.raises(ValueError, match=r"\(n, d\)"):
        seen(np.zeros((2, 2, 2)))
