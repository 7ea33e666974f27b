"""Audit: copies planted in five ways are found and few others, membership is told where a model remembers, and not elsewhere."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import beta
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn import functional as F

import nonesuch as ns
import nonesuch.evaluate.features as features
from nonesuch.applications._copies import Detector, Frame, Index, rank_of, threshold
from nonesuch.applications._membership import auc, difficulty, inferred, tpr, without_difficulty
from nonesuch.applications.audit import Audit, audit, blocker, excess_p, read_samples
from nonesuch.cli import main
from nonesuch.core.card import Card
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data import Data
from nonesuch.data.pictures import save_images
from nonesuch.evaluate.score import keyed

SIDE = 16


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """The feature network's recipe is not what is tested here, and one detector serves all tests of the same images."""
    made: dict[str, Detector] = {}

    def once(data: Data, **options: Any) -> Detector:
        key = f"{data.fingerprint} {len(data.train)} {len(data.test)} {int(data.test.levels[:9].sum())}"
        if key not in made:
            made[key] = Detector(data, **options)
        return made[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 192)
        patch.setattr("nonesuch.applications.audit.Detector", once)
        yield


def enlarged() -> tuple[np.ndarray, np.ndarray]:
    """Digits of 16 x 16 pixels and 256 levels, some turned to look less alike, in a mixed order; and their classes."""
    found = ns.data.open("digits")
    x, y = torch.cat([found.train.x, found.test.x]), torch.cat([found.train.labels(), found.test.labels()])
    big = F.interpolate(x, (SIDE, SIDE), mode="bicubic").clamp(-1, 1)
    grain = torch.from_numpy(keyed("grain").standard_normal(big.shape)).float()
    order = keyed("order").permutation(len(x))
    return (((big + 0.05 * grain).clamp(-1, 1) + 1) * 127.5).round().byte().numpy()[order, 0], y.numpy()[order]


@pytest.fixture(scope="module")
def pictures() -> tuple[Data, Tensor]:
    """Data of 560 training and 240 held-out digits, and 200 further real ones that stand for an honest model's samples."""
    x, y = enlarged()
    spec_of = ns.data.open({"x": x, "y": y})
    split = ns.data.open({"x": x[:1200], "y": y[:1200]})
    return replace(split, train=split.train[:560]), spec_of.spec.from_levels(torch.from_numpy(x[1400:1600])[:, None])


@pytest.fixture(scope="module")
def detector(pictures: tuple[Data, Tensor]) -> Detector:
    import nonesuch.applications.audit as module

    return module.Detector(pictures[0])


def planted(data: Data) -> tuple[Tensor, np.ndarray]:
    """Twenty training images: four as they are, four mirrored, moved by 2 pixels, through JPEG, and lit otherwise."""
    index = keyed("planted").permutation(len(data.train))[:20]
    x = data.train.inside(torch.from_numpy(index))
    moved = [shifted(x[8 + i], *by) for i, by in enumerate(((2, 0), (0, -2), (-2, 2), (2, 2)))]
    gain, offset = (torch.tensor(v).view(4, 1, 1, 1) for v in ((0.7, 0.8, 1.15, 0.6), (0.1, -0.1, 0.1, 0.3)))
    parts = [x[:4], x[4:8].flip(-1), torch.stack(moved), torch.stack([jpeg(one) for one in x[12:16]]), x[16:] * gain + offset]
    return data.spec.snap(torch.cat(parts).clamp(-1, 1)), index


def shifted(x: Tensor, down: int, right: int) -> Tensor:
    """What comes in is black."""
    out = torch.full_like(x, -1)
    height, width = x.shape[1:]
    rows, columns = slice(max(0, down), height + min(0, down)), slice(max(0, right), width + min(0, right))
    out[:, rows, columns] = x[:, max(0, -down) : height + min(0, -down), max(0, -right) : width + min(0, -right)]
    return out


def jpeg(x: Tensor) -> Tensor:
    file = io.BytesIO()
    Image.fromarray(((x[0] + 1) * 127.5).round().byte().numpy()).save(file, "JPEG", quality=75)
    return torch.from_numpy(np.array(Image.open(file))).float()[None] / 127.5 - 1


# -- copies


def test_light_mirror_and_moves_are_explained_entirely_and_a_negative_is_not(pictures: tuple[Data, Tensor]):
    train = pictures[0].train
    index = Index(train, Frame.of(train.spec))
    x = train.x[:12]
    blank = torch.full_like(x[:1], -1)
    for y, most in ((x, 1e-3), (x.flip(-1), 1e-3), (0.5 * x + 0.2, 1e-3), (F.pad(x, (1, 0, 0, 0))[..., :SIDE], 1e-3),
                    (F.pad(x, (0, 2, 2, 0))[..., :SIDE, 2:], 0.06)):  # fmt: skip
        rest, which = index.nearest(y)
        assert (which == np.arange(12)).all()
        assert rest.max() < most  # half precision keeps 11 bits; what comes in is softened into the window
    rest, which = index.nearest(-x)
    assert rest.min() > 0.05
    assert index.nearest(blank)[0] == 1.0  # a plain picture is no copy of a plain picture
    rest, which = index.nearest(x, itself=torch.arange(12))
    assert (which != np.arange(12)).all()
    assert rest.min() > 1e-3


def test_all_planted_copies_are_found_and_honest_samples_pass(pictures: tuple[Data, Tensor], detector: Detector):
    data, honest = pictures
    copies, index = planted(data)
    found = detector.judge(torch.cat([copies, honest]))
    flagged = detector.flagged(found)
    assert flagged[:20].all()
    assert (found.train[0, :20] == index).all()
    assert detector.by(found)[0][:20].all()  # in pixels, without the network's help
    assert flagged[20:].mean() <= 0.03
    assert found.exact[:4].all()
    assert not found.exact[4:].any()
    assert detector.flagged(detector.check).mean() <= 0.03  # of 120 images
    assert detector.flagged(detector.calibration).mean() <= 0.02


def test_thresholds_keep_their_promise():
    """95 times in a hundred at most the share lies below; also from a small sample of a law with the tail of Eq. 3."""
    assert rank_of(500, 0.005) == 0
    for m, share in ((5000, 0.005), (2000, 0.01)):
        rank = rank_of(m, share)
        assert beta.cdf(share, rank, m + 1 - rank) >= 0.95 > beta.cdf(share, rank + 1, m - rank)
    rng = keyed("rank")
    cut = np.array([threshold(one, 0.05) for one in rng.random((2000, 300))])  # = the share of further draws below it
    assert (cut <= 0.05).mean() >= 0.94
    few = np.array([threshold(one**0.3, 0.005) ** (1 / 0.3) for one in rng.random((1000, 120))])
    assert np.median(few) == pytest.approx(0.005, rel=0.5)


def test_an_audit_of_planted_samples_says_do_not_release(pictures: tuple[Data, Tensor], tmp_path: Path):
    data, honest = pictures
    copies, index = planted(data)
    found = audit(None, data, samples=torch.cat([honest[:100], copies, honest[100:]]), members=100)
    assert found.verdict == "do not release"
    assert set(range(100, 120)) <= set(found.flagged)
    assert found.scores["exact"].value == 4 / 220
    assert len(found.pairs) == len(found.marks) <= 24
    assert {m["sample"] for m in found.marks} >= set(range(100, 120))
    by = {m["sample"]: m for m in found.marks}
    assert [by[100 + i]["train"] for i in range(20)] == index.tolist()
    assert torch.equal(
        found.pairs[[m["sample"] for m in found.marks].index(100), 0],
        found.pairs[[m["sample"] for m in found.marks].index(100), 1],
    )
    page = found.save(tmp_path / "a.html").read_text()
    assert "Do not release" in page
    assert "does not prove privacy" in page
    assert "<script" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert json.loads((tmp_path / "a.json").read_text())["release"] is False


def test_an_audit_of_real_images_finds_nothing(pictures: tuple[Data, Tensor]):
    data, honest = pictures
    found = audit(None, data, samples=honest, members=120)
    assert found.verdict == "no sign found"
    assert found.released
    assert found.scores["flagged"].value <= 0.03
    assert abs(found.membership[0].auc.value - 0.5) < 0.1
    assert found.duplicates["train"] == found.duplicates["both"] == 0


def test_duplicates_on_both_sides_are_told_and_do_not_blunt_the_threshold(pictures: tuple[Data, Tensor]):
    data, honest = pictures
    leaked = replace(data, test=replace(data.test, levels=torch.cat([data.train.levels[:30], data.test.levels[30:]])))
    twice = replace(leaked, train=data.train[torch.tensor([*range(len(data.train)), 0, 1, 1])])
    found = audit(None, twice, samples=honest[:60], members=60)
    assert found.duplicates["both"] == 30
    assert (found.duplicates["train"], found.duplicates["groups"]) == (5, 2)
    assert found.thresholds["pixels"] is not None
    assert found.thresholds["pixels"] > 0.01


def test_the_blocker_stops_what_an_audit_flags(pictures: tuple[Data, Tensor], detector: Detector):
    data, honest = pictures
    copies, _ = planted(data)
    blocked = blocker(None, data)
    x = torch.cat([honest[:40], copies])
    found = blocked(x, None)
    assert found.dtype == torch.bool
    assert found[40:].all()
    assert found.tolist() == detector.flagged(detector.judge(x)).tolist()
    assert torch.cat([blocked(x[i : i + 7], None) for i in range(0, 60, 7)]).tolist() == found.tolist()


def test_volumes_are_moved_along_all_axes():
    x = torch.from_numpy(keyed("volumes").standard_normal((260, 1, 8, 8, 8))).float()
    x = (F.avg_pool3d(x, 3, 1, 1) * 2).clamp(-1, 1)
    data = ns.data.open({"x": x.numpy()[:, 0]}, axes="dhw")
    detector = Detector(data)
    copies = torch.roll(data.train.x[:5], (1, -1, 1), (2, 3, 4))
    found = detector.judge(torch.cat([copies, data.train.x[5:9].flip(-1) * 0.5]))
    assert detector.flagged(found).all()
    assert (found.train[0] == np.arange(9)).all()


# -- membership


def test_auc_and_tpr_are_those_of_the_curve():
    rng = keyed("auc")
    members, others = rng.integers(0, 30, 200).astype(float), rng.integers(3, 33, 150).astype(float)
    truth, scores = np.r_[np.ones(200), np.zeros(150)], -np.r_[members, others]
    assert auc(members, others) == pytest.approx(roc_auc_score(truth, scores))
    members, others = rng.normal(0, 1, 20000), rng.normal(2, 1, 20000)
    assert tpr(members, others) == pytest.approx(0.372, abs=0.02)  # Phi(2 - 2.326)


def test_calibration_takes_difficulty_out_and_puts_no_membership_in():
    rng = keyed("difficulty")
    members, d = 300, 400
    contrast = rng.uniform(0.1, 1, 600)
    x = contrast[:, None] * rng.uniform(-1, 1, (600, d))
    noise = 0.05 * rng.standard_normal(600)
    known = np.where(np.arange(600) < members, -0.15, 0.0)
    hard = difficulty(x, members)
    remembered, forgotten = 3 * contrast + noise + known, 3 * contrast + noise
    assert auc(remembered[:members], remembered[members:]) < 0.65
    assert auc(*without_difficulty(remembered, hard, members)) > 0.8
    assert auc(*without_difficulty(forgotten, hard, members)) == pytest.approx(0.5, abs=0.08)


@dataclass(frozen=True)
class Width:
    sigma: float = 0.1


class Kernels(Model, Likelihood):
    """A mixture of Gaussians at the training images: the narrower, the more of them it remembers."""

    card = Card("Kernel density", "Parzen, Emanuel", 1962)
    Config = Width

    def __init__(self, config: Width, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.points = torch.zeros(0)

    def objectives(self) -> list[Objective]:
        return []

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        picked = self.points[seeds.integers("pick", len(self.points))]
        yield Step(1, 1, self.spec.snap((picked + self.config.sigma * seeds.normal("noise", *self.spec.shape)).clamp(-1, 1)))

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        far = torch.cdist(x.flatten(1), self.points.flatten(1)).square() / (2 * self.config.sigma**2)
        return LogProb(torch.logsumexp(-far, 1), "estimate")


def kernels(data: Data, sigma: float) -> Kernels:
    model = Kernels(Width(sigma), data.spec, Schema({}))
    model.points = data.train.x
    model.images_seen.fill_(1)
    return model


def test_a_model_that_remembers_its_images_is_told(pictures: tuple[Data, Tensor]):
    data, _ = pictures
    seen = []
    found = audit(kernels(data, 0.02), data, n=60, members=100, progress=seen.append)
    scores = {(m.attack, m.calibrated): m for m in found.membership}
    assert scores["log-likelihood", False].auc.value >= 0.9
    assert found.verdict == "do not release"
    assert found.scores["flagged"].value > 0.9
    assert seen[-1].result is found
    assert all(e.done <= e.total for e in seen)


def test_a_model_that_smooths_is_not_called_a_copier(pictures: tuple[Data, Tensor]):
    data, honest = pictures
    smooth = kernels(replace(data, train=replace(data.train, levels=data.spec.to_levels(honest).byte())), 0.3)
    found = audit(smooth, data, n=100, members=100)
    assert {m.attack for m in found.membership} == {"log-likelihood", "distance"}
    assert max(m.auc.value for m in found.membership) < 0.65
    assert found.scores["flagged"].value <= 0.03
    assert found.verdict != "do not release"


def test_members_and_others_have_the_same_classes(pictures: tuple[Data, Tensor]):
    data, honest = pictures
    few = data.test[(data.test.labels() < 2).nonzero()[:, 0]]
    for _, pair in inferred(None, data.train, few, honest, n=40):
        assert pair[0].auc.n == pair[0].auc.counts["held_out"] <= 40


def test_excess_is_fishers():
    from scipy.stats import fisher_exact

    assert excess_p(7, 50, 3, 80) == pytest.approx(fisher_exact([[7, 43], [3, 77]], "greater").pvalue)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["diffusion", "vae"])
def test_an_overfit_network_must_not_be_released_and_a_normal_one_may(name: str):
    data = ns.data.open("digits")
    few = replace(data, train=data.train[:60])
    config = {"dropout": 0.0} if name == "diffusion" else {}
    over = audit(ns.fit(name, few, preset="tiny", config=config, budget=60_000), few, n=200, members=60)
    assert max(m.auc.value for m in over.membership) >= 0.9
    assert over.verdict == "do not release"
    normal = audit(ns.fit(name, data, preset="tiny", budget=30_000), data, n=400, members=300)
    assert normal.scores["flagged"].value <= 0.03
    assert normal.verdict != "do not release"


# -- the command, and refusals


def test_the_command_answers_no_with_1(pictures: tuple[Data, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    x, y = enlarged()
    np.savez(tmp_path / "some.npz", x_train=x[:400], y_train=y[:400], x_test=x[400:700], y_test=y[400:700])
    data = ns.data.open(tmp_path / "some.npz")
    model = ns.fit("gan", data, given="label", preset="tiny", budget=64, out=tmp_path / "run")
    assert int(model.images_seen) > 0
    np.save(tmp_path / "copied.npy", np.concatenate([x[:30], x[1600:1680]]))
    np.save(tmp_path / "fresh.npy", x[1600:1700])
    arguments = ["audit", str(tmp_path / "run"), str(tmp_path / "some.npz"), "--json", "--out", str(tmp_path / "a.json")]
    assert main([*arguments, "--samples", str(tmp_path / "copied.npy")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "do not release"
    assert told["scores"]["exact"]["value"] == pytest.approx(30 / 110)
    assert main([*arguments, "--samples", str(tmp_path / "fresh.npy")]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == 100
    assert main(["audit", str(tmp_path / "run"), "digits"]) == 2
    assert "give the data it was trained on" in capsys.readouterr().err
    assert main([*arguments, "-n", "0"]) == 2


def test_samples_are_read_back_from_a_folder_as_they_were_drawn(tmp_path: Path):
    train = ns.data.open("digits").train[:20]
    save_images(train.x, train.spec, train.schema, train.given, tmp_path, 0)
    found = read_samples(tmp_path, train.spec)
    assert len(found) == 20
    assert {one.numpy().tobytes() for one in found} == {one.numpy().tobytes() for one in train.x}


def test_refusals(pictures: tuple[Data, Tensor]):
    data, honest = pictures
    with pytest.raises(ValueError, match="needs samples"):
        audit(None, data)
    with pytest.raises(ValueError, match="20 held-out images"):
        audit(None, replace(data, test=data.test[:10]), samples=honest)
    with pytest.raises(ValueError, match="samples has shape"):
        audit(None, data, samples=honest[..., :10])
    with pytest.raises(ValueError, match="n >= 1"):
        audit(None, data, samples=honest, n=0)
    with pytest.raises(ValueError, match="tokens or vectors"):
        Frame.of(ImageSpec(1, (9, 9), kind="categorical", levels=5))
    with pytest.raises(ValueError, match="6 pixels"):
        Frame.of(ImageSpec(1, (4, 4)))
    assert isinstance(audit(None, data, samples=honest[:20], members=40), Audit)
