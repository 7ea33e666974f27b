"""What needs real images or models: the extractor, utility, the classical baselines, and the ledger of likelihood."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.neighbors import KernelDensity
from torch import Tensor

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Energy, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images
from nonesuch.data.open import open as open_data
from nonesuch.evaluate import (
    BASELINES,
    Extractor,
    Score,
    accuracy,
    bits_per_dim,
    classify,
    features,
    fit_extractor,
    frechet_distance,
    labelled_sampler,
    memorization,
    pixel_features,
    synthetic_sets,
    utility,
)  # fmt: skip
from nonesuch.evaluate.baselines import Baseline, CategoricalMixture, GaussianMixtures, KernelDensities
from nonesuch.evaluate.likelihood import bits_from_nats
from nonesuch.evaluate.score import keyed
from nonesuch.evaluate.utility import predict_labels


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


@pytest.fixture(scope="module")
def extractor(digits: Data) -> Extractor:
    return fit_extractor(digits.train.x, digits.train.labels(), name="digits")


def flat(images: Images) -> np.ndarray:
    return images.levels.flatten(1).long().numpy()


# -- the extractor ------------------------------------------------------------


def test_the_extractor_knows_digits_and_orders_spoiled_images(digits: Data, extractor: Extractor):
    test = digits.test
    assert (extractor.predict(test.x).argmax(1) == test.labels()).double().mean() >= 0.975
    train, real = extractor.features(digits.train.x, "train"), extractor.features(test.x, "test")
    assert train.array.shape == (1400, 64)
    assert np.square(train.array).mean() == pytest.approx(1, rel=1e-3)
    noise = torch.from_numpy(keyed("noise").standard_normal(tuple(digits.train.x.shape))).float()
    distances = [frechet_distance(extractor.features(digits.train.x + s * noise), real).value for s in (0.0, 0.3, 0.6, 1.0)]
    assert distances == sorted(distances)
    assert frechet_distance(train, real).title == "FD[digits-cnn, n=1400]"


def test_the_recipe_is_keyed(digits: Data, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 256)
    x, y = digits.train.x[:100], digits.train.labels()[:100]
    before = torch.get_rng_state()
    one, same, other = (fit_extractor(x, y, name="digits", seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.sha256 == same.sha256 != other.sha256
    assert len(one.sha256) == 64


@pytest.mark.parametrize("shape", [(1, 16), (3, 8, 8), (2, 9, 14), (1, 40, 48), (1, 8, 9, 10)])
def test_the_extractor_takes_any_image(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 64)
    x = torch.from_numpy(keyed("any", *shape).uniform(-1, 1, (20, *shape))).float()
    found = fit_extractor(x, name="noise")
    assert found.name == "noise-mirror-cnn"
    assert found.features(x).array.shape == (20, 64 if max(shape[1:]) <= 32 else 128)
    assert found.predict(x).sum(1) == pytest.approx(np.ones(20), abs=1e-5)
    assert found.predict(x).shape[1] == features.mirror_count(shape[1:])


def test_mirror_images_are_told_apart(digits: Data, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 12_800)
    one_class = torch.zeros(1400, dtype=torch.int64)  # nothing to tell apart
    found = fit_extractor(digits.train.x, one_class, name="digits")
    right = [(found.predict(features.mirrored(digits.test.x, c)).argmax(1) == c).double().mean() for c in range(8)]
    assert np.mean(right) > 0.6  # 0.125 by chance
    codes = [features.mirrored(torch.arange(4.0).reshape(1, 1, 2, 2), c).flatten().tolist() for c in range(8)]
    assert len({tuple(c) for c in codes}) == 8


def test_the_extractor_refuses_in_a_sentence():
    with pytest.raises(ValueError, match="at least 8 pixels"):
        fit_extractor(torch.zeros(10, 1, 4, 4))
    with pytest.raises(ValueError, match="at least two training images"):
        fit_extractor(torch.zeros(3, 1, 8, 8), torch.tensor([-1, -1, 0]))


# -- utility ------------------------------------------------------------


def test_utility_of_real_halves_of_noise_and_of_one_class(digits: Data, monkeypatch: pytest.MonkeyPatch):
    train, test = (digits.train.x, digits.train.labels()), (digits.test.x, digits.test.labels())
    halves = [(train[0][i::2], train[1][i::2]) for i in (0, 1)]
    found = utility(halves, train, test)
    assert found["real"].value >= 0.98
    assert found["CAS"].floor == found["real"].value
    assert 0.96 <= found["CAS"].value <= found["real"].value + 0.005
    assert found["CAS"].interval[0] <= found["CAS"].value <= found["CAS"].interval[1]
    assert found["CAS"].title == "CAS[svm-rbf, n=700]"
    shuffled = utility([(train[0], train[1][torch.from_numpy(keyed("shuffle").permutation(1400))])], train, test)
    assert shuffled["CAS"].value < 0.3
    assert shuffled["CAS"].resampled == "test images"
    assert (predict_labels((train[0][:5], torch.full((5,), 7)), test[0]) == 7).all()
    with pytest.raises(ValueError, match="sample the model first"):
        utility([], train, test)


def test_larger_images_are_judged_by_the_network(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 1280)
    y = torch.arange(40) % 2
    x = torch.from_numpy(keyed("large").normal(0, 0.1, (40, 1, 20, 20))).float() + y[:, None, None, None] - 0.5
    found = utility([(x, y)], (x, y), (x, y))
    assert found["CAS"].title == "CAS[cnn, n=40]"
    assert found["CAS"].value == 1


# -- classical baselines ------------------------------------------------------------

ANCHORS = {"kernel density": (3.15, 3.45), "Gaussian mixture": (2.50, 2.68), "independent categoricals": (2.08, 2.22)}


@pytest.mark.parametrize("name", list(BASELINES))
def test_baselines_reach_the_measured_anchors(name: str, digits: Data):
    y_train, y_test = digits.train.labels().numpy(), digits.test.labels().numpy()
    model = BASELINES[name](17, 10).fit(flat(digits.train), y_train)
    low, high = ANCHORS[name]
    for labels in (None, y_test):
        score = bits_from_nats(torch.from_numpy(model.log_prob(flat(digits.test), labels)), model.kind, 64)
        assert low <= score.value <= high
        assert score.kind == ("exact" if name == "independent categoricals" else "bound")
    assert (model.classify(flat(digits.test)).argmax(1) == y_test).mean() >= 0.9
    drawn = model.sample(y_train, seed=3)
    assert drawn.shape == (1400, 64)
    assert 0 <= drawn.min() <= drawn.max() <= 16
    assert (drawn == model.sample(y_train, seed=3)).all()
    assert (drawn != model.sample(y_train, seed=4)).any()
    samples = pixel_features(digits.spec.from_levels(torch.from_numpy(drawn)[:, None]))
    real = [pixel_features(split.x, split.name) for split in (digits.train, digits.test)]
    found = memorization(samples, *real, labels=y_train, train_labels=y_train, held_out_labels=y_test).scores
    assert (found["nearer_p"].value < 0.01) == (name == "kernel density")


@pytest.mark.parametrize("name", list(BASELINES))
def test_gibbs_no_baseline_beats_uniform_noise(name: str):
    train, test = (keyed("noise", s).integers(0, 4, (300, 6)) for s in ("train", "test"))
    bits = -BASELINES[name](4).fit(train).log_prob(test) / (6 * math.log(2))
    assert bits.mean() >= 2 - 3 * bits.std() / math.sqrt(300)
    assert bits.mean() < 3.2


def test_independent_categoricals_sum_to_one():
    grid = np.array(np.meshgrid(*[range(3)] * 4)).reshape(4, -1).T
    x = keyed("grid").integers(0, 3, (100, 4)) // 2 * 2
    model = CategoricalMixture(3, 2).fit(x, np.arange(100) % 2)
    assert np.exp(model.log_prob(grid)).sum() == pytest.approx(1, abs=1e-12)
    assert np.exp(model.log_prob(grid, np.ones(81, dtype=int))).sum() == pytest.approx(1, abs=1e-12)


def test_a_mixture_beats_one_component_where_there_are_two():
    truth = np.where(keyed("two").random((400, 1)) < 0.5, 0, 3) * np.ones((1, 8), dtype=int)
    model = CategoricalMixture(4).fit(truth)
    assert model.setting[0] > 1
    assert -model.log_prob(truth).mean() < 1.5  # log 2 is the entropy; one component has 8 log 2 = 5.5
    drawn = model.sample(np.zeros(200, dtype=int))
    assert 0.35 < (np.abs(drawn.mean(1) - drawn[:, 0]) < 0.8).mean()


def test_kernel_density_is_scikit_learns_where_that_is_right():
    model = KernelDensities(17)
    points, queries = keyed("kde").integers(0, 17, (60, 2)), keyed("q").integers(0, 17, (40, 2))
    part = model.fit_one(points, 1.2, keyed("fit"))
    expected = KernelDensity(bandwidth=1.2).fit(points + 0.5).score_samples(queries + keyed("u").random((40, 2)))
    assert model.log_prob_one(part, queries, keyed("u")) == pytest.approx(expected, rel=1e-6)


def test_baselines_refuse_in_a_sentence():
    with pytest.raises(ValueError, match="at least five images"):
        GaussianMixtures(4, 2).fit(np.zeros((20, 4), dtype=int), np.arange(20) // 18)
    with pytest.raises(ValueError, match="small images"):
        CategoricalMixture(256).fit(np.zeros((20, 64 * 64 * 8), dtype=int))


# -- the ledger of likelihood ------------------------------------------------------------


@dataclass(frozen=True)
class NoConfig:
    pass


class Classes(Model, Likelihood):
    """Independent pixels, 0 or 1, that are 1 with probability `on[label]`; a missing label is the first class."""

    on = torch.tensor([0.5, 0.9])

    def objectives(self) -> list[Objective]:
        return []

    def chance(self, given: Given) -> Tensor:
        label = given.columns["label"] if "label" in given.columns else torch.zeros(given.n, dtype=torch.int64)
        return self.on[label.clamp_min(0)].view(-1, 1, 1, 1)

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(1, 1, (seeds.uniform("x", *self.spec.shape) < self.chance(given)).float() * 2 - 1)

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        p = self.chance(given)
        return LogProb(torch.where(x > 0, p, 1 - p).log().flatten(1).sum(1), "exact")


class Sampler(Model):
    """Only samples."""

    def objectives(self) -> list[Objective]:
        return []

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(1, 1, torch.zeros(given.n, *self.spec.shape))


class Unnormalised(Sampler, Energy):
    def energy(self, x: Tensor, given: Given | None = None) -> Tensor:
        return x.flatten(1).sum(1)


SPEC = ImageSpec(1, (2, 2), levels=2)
SCHEMA = Schema({"label": Category(("off", "on"), (0.75, 0.25))})


def fitted(kind: type[Model], spec: ImageSpec = SPEC, schema: Schema = SCHEMA) -> Any:
    model = kind(NoConfig(), spec, schema)
    model.images_seen.fill_(1)
    return model


def split(n: int = 200) -> Images:
    labels = torch.arange(n) % 2
    levels = fitted(Classes).sample(n, {"label": ["off", "on"] * (n // 2)}).gt(0).to(torch.uint8)
    return Images(SPEC, SCHEMA, levels, Given(n, {"label": labels}), "test")


def test_a_uniform_model_scores_log2_of_the_levels():
    score = bits_per_dim(fitted(Classes), split())
    assert score.value == pytest.approx(1, abs=1e-6)
    assert (score.kind, score.name, score.n) == ("exact", "bits/dim", 200)
    assert score.interval == pytest.approx((1, 1), abs=1e-6)


def test_the_condition_is_a_column_its_values_or_a_given():
    model, data = fitted(Classes), split()
    by_name = bits_per_dim(model, data, "label")
    k, label = data.levels.double().flatten(1), data.given.columns["label"]
    p = Classes.on.double()[label][:, None]
    expected = -(k * p.log2() + (1 - k) * (1 - p).log2()).mean()
    assert by_name.value == pytest.approx(float(expected), rel=1e-6)
    assert by_name.title == "bits/dim given label[n=200]"
    names = [SCHEMA["label"].names[i] for i in label]
    for given in ({"label": names}, data.given, ["label"]):
        assert bits_per_dim(model, data, given) == by_name
    assert bits_per_dim(model, data.x, {"label": names}) == by_name


def test_bayes_rule():
    x, model = split(20).x, fitted(Classes)
    on = x.gt(0).double().flatten(1).sum(1)
    joint = torch.stack([0.75 * 0.5 ** torch.full_like(on, 4), 0.25 * 0.9**on * 0.1 ** (4 - on)], 1)
    assert classify(model, x).numpy() == pytest.approx((joint / joint.sum(1, keepdim=True)).numpy(), rel=1e-5)
    assert torch.equal(classify(model, x, column="label"), classify(model, x))
    assert accuracy(classify(model, x), on.gt(3).long(), "Bayes' rule").value == 1


def test_models_without_a_likelihood_are_refused_in_a_sentence():
    x = split(4).x
    with pytest.raises(ValueError, match="Sampler has no likelihood"):
        bits_per_dim(fitted(Sampler), x)
    with pytest.raises(ValueError, match="Unnormalised is unnormalised"):
        classify(fitted(Unnormalised), x)
    with pytest.raises(ValueError, match="no grid of levels"):
        bits_per_dim(fitted(Classes, ImageSpec(1, (2, 2), kind="continuous", levels=None)), x)
    with pytest.raises(ValueError, match="pass a split"):
        bits_per_dim(fitted(Classes), x, "label")
    with pytest.raises(ValueError, match="did you mean 'label'"):
        bits_per_dim(fitted(Classes), split(), "labels")
    with pytest.raises(ValueError, match="not a drawn one"):
        bits_per_dim(fitted(Classes), split(), "as trained")
    with pytest.raises(ValueError, match="empty"):
        bits_per_dim(fitted(Classes), x[:0])
    bare = Images(SPEC, Schema(), split().levels, Given(200))
    with pytest.raises(ValueError, match="no column 'label'"):
        bits_per_dim(fitted(Classes), bare, "label")


def test_a_model_is_sampled_with_the_real_labels():
    labels = torch.tensor([0, 1] * 300)
    (first, same), (second, _) = synthetic_sets(labelled_sampler(fitted(Classes)), labels, seeds=(0, 1))
    assert torch.equal(same, labels)
    assert not torch.equal(first, second)
    share = first.gt(0).double().flatten(1).mean(1)
    assert share[labels == 0].mean() == pytest.approx(0.5, abs=0.06)
    assert share[labels == 1].mean() == pytest.approx(0.9, abs=0.04)


def test_an_infinite_likelihood_is_shown_as_it_is():
    score = bits_from_nats(torch.tensor([-1.0, -math.inf]), "exact", 4)
    assert score.value == math.inf
    assert score.interval is None
    assert isinstance(score, Score)
    assert issubclass(BASELINES["kernel density"], Baseline)
