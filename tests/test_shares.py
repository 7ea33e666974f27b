"""Utility at shares of the data: parts are nested and stratified, the classifier learns, the table is Student's."""

import itertools
import json

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nonesuch.core.seeds import Seeds
from nonesuch.evaluate.score import keyed
from nonesuch.evaluate.shares import SHARES, Trial, class_table, fit_judge, part, rows_of, table, text_table, trial_of


def stripes(n: int, key: int) -> tuple[Tensor, Tensor]:
    """Pictures of 18 x 18 pixels whose class is the direction and width of their stripes, noisy and anywhere."""
    y = torch.arange(n) % 4
    place = torch.arange(18.0)
    phase = Seeds.of(key, n).uniform("phase")[:, None] * 6.3
    wave = ((place[None] * torch.tensor([0.6, 1.5])[y // 2][:, None]) + phase).sin()
    x = torch.where((y % 2 == 0)[:, None, None], wave[:, None, :], wave[:, :, None]) + torch.zeros(n, 18, 18)
    return (0.5 * x + 0.4 * Seeds.of(key, n).normal("noise", 18, 18))[:, None].clamp(-1, 1), y


def test_parts_are_stratified_nested_and_keyed():
    labels = torch.from_numpy(keyed("labels").choice(5, 1000, p=[0.4, 0.3, 0.2, 0.09, 0.01]))
    parts = [set(part(labels, s, 1).tolist()) for s in SHARES]
    assert all(small < large for small, large in itertools.pairwise(parts))
    assert parts[-1] == set(range(1000))
    for share, found in zip(SHARES, parts, strict=True):
        for one in range(5):
            own = set((labels == one).nonzero()[:, 0].tolist())
            assert len(own & found) == max(1, round(share * len(own)))
    assert set(part(labels, 0.25, 2).tolist()) != parts[2]
    with pytest.raises(ValueError, match="above 0"):
        part(labels, 0, 0)


def test_rows_see_every_image_once_an_epoch():
    feed = rows_of(10, 4, 0, 0)
    seen = torch.cat([next(feed) for _ in range(5)])
    assert sorted(seen[:10].tolist()) == sorted(seen[10:].tolist()) == list(range(10))


def test_the_classifier_learns_alike_each_time_and_moves_no_global_generator():
    train, test = stripes(320, 0), stripes(120, 1)
    state = torch.get_rng_state()
    judge = fit_judge([train], 4, 0, images=1792)
    assert torch.equal(state, torch.get_rng_state())
    assert (judge.classes(test[0]) == test[1].numpy()).mean() > 0.95
    again = fit_judge([train], 4, 0, images=128), fit_judge([train], 4, 0, images=128)
    torch.testing.assert_close(*(dict(one.state_dict()) for one in again))


def test_wrong_synthetic_labels_cost_and_real_ones_beside_them_help(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("nonesuch.evaluate.shares.IMAGES_SEEN", (2304, 2304))
    real, test = stripes(320, 0), stripes(120, 1)
    wrong = (real[0], (real[1] + 1) % 4)
    found = [trial_of(w, 1.0, 0, s, test, 4) for w, s in (("real", [real]), ("synthetic", [wrong]))]
    assert found[0].accuracy > 0.8
    assert found[1].accuracy < 0.15
    assert found[0].of == (30, 30, 30, 30)
    assert Trial.from_json(json.loads(json.dumps(found[0].to_json()))) == found[0]


def test_small_pictures_keep_their_classifier():
    x, y = stripes(120, 0)
    small = (torch.nn.functional.avg_pool2d(x, 2)[..., :8, :8], y)
    assert trial_of("real", 1.0, 0, [small], small, 4).accuracy > 0.9  # a support vector machine on the pixels


def trials(what: str, generator: str, share: float, values: list[float]) -> list[Trial]:
    return [Trial(what, share, k, generator, (round(100 * v), 50), (100, 100), 7) for k, v in enumerate(values)]


def test_the_table_is_students_over_paired_trials():
    real, both = [0.50, 0.60, 0.70], [0.58, 0.66, 0.80]
    rows = table(
        [*trials("real", "none", 0.01, real), *trials("both", "own", 0.01, both), *trials("synthetic", "own", 0.01, real),
         *trials("synthetic", "own", 1.0, both), *trials("both", "released", 0.01, real)]
    )  # fmt: skip
    own = next(r for r in rows if (r["generator"], r["share"]) == ("own", 0.01))
    released = next(r for r in rows if r["generator"] == "released")
    difference = (np.array(both) - np.array(real)) / 2  # of 200 images, half are of the class that moved
    reference = stats.t.interval(0.95, 2, difference.mean(), stats.sem(difference))
    assert own["margin"].value == pytest.approx(difference.mean())
    assert own["margin"].interval == pytest.approx(reference)
    assert own["by_class"] == [pytest.approx(0.08, abs=1e-3), 0]
    assert own["real"].value == pytest.approx(0.55)
    assert released["synthetic"].value == pytest.approx(table(trials("synthetic", "own", 1.0, both))[0]["synthetic"].value)
    assert released["margin"].value == 0
    text = text_table(rows)
    assert text.count("\n") == 1 + len(rows)
    assert "100 %, released" in text
    assert "+0.040" in text
    assert "| +0.080 | +0.000 |" in class_table(rows, ["a", "b"])
