"""Does the condition do what it says? Effects planted in samples are found for what they are."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.open import open as open_data
from nonesuch.evaluate.effect import VERDICTS, Judge, dealt, effect, effects, verdict, weighted_r
from nonesuch.evaluate.panel import Measured, Panel, Subject
from nonesuch.evaluate.report import effect_rows

FLAT = ImageSpec(1, (12, 12))
VOLUME = ImageSpec(1, (10, 9, 8), "dhw")


def world(spec: ImageSpec, n: int, start: int = 0, tied: bool = False) -> Images:
    """Blobs: `age` is their radius, `sex` their side; `tied` makes one go with the other. Age is missing now and then."""
    seeds = Seeds.of(11, n, start)
    sex = seeds.integers("sex", 2, 1)[:, 0]
    age = seeds.normal("age", 1)[:, 0]
    age = torch.where(sex == 1, age.abs(), -age.abs()) if tied else age
    schema = Schema({"age": Number(50.0, 10.0), "sex": Category(("F", "M")), "note": Text(4)})
    given = Given(n, {"age": age, "sex": sex, "note": torch.zeros(n, 4, dtype=torch.int64)})
    images = Images(spec, schema, spec.to_levels(drawn(spec, age, sex, seeds)).to(torch.uint8), given)
    missing = torch.where(torch.arange(n) % 17 == 0, math.nan, age)
    return Images(spec, schema, images.levels, Given(n, {**given.columns, "age": missing}))


def drawn(spec: ImageSpec, age: Tensor, sex: Tensor, seeds: Seeds) -> Tensor:
    """Pictures that show exactly these conditions, and noise; NaN is drawn as the mean."""
    axes = torch.meshgrid(*[torch.linspace(-1, 1, s) for s in spec.size], indexing="ij")
    where = torch.where(sex == 1, 0.4, -0.4)
    distance = sum(
        ((a[None] - (where.view(-1, *[1] * len(axes)) if i == 0 else 0)) ** 2 for i, a in enumerate(axes)), torch.zeros(1)
    )
    radius = (0.5 + 0.12 * age.nan_to_num()).clamp(0.1, 1).view(-1, *[1] * len(axes))
    blob = torch.sigmoid((radius - distance.sqrt()) * 8) * 1.6 - 0.8
    return (blob[:, None] + 0.1 * seeds.normal("noise", 1, *spec.size)).clamp(-1, 1)


Shown = tuple[Tensor, Tensor]


def obeys(age: Tensor, sex: Tensor) -> Shown:
    return age, sex


def ignores(age: Tensor, sex: Tensor) -> Shown:
    return Seeds.of(5, len(age)).normal("x", 1)[:, 0], torch.arange(len(sex)) % 2


def inverts(age: Tensor, sex: Tensor) -> Shown:
    return -age, 1 - sex


def weakens(age: Tensor, sex: Tensor) -> Shown:
    """Half the variance of age is its own; every second sex is a coin's."""
    seeds = Seeds.of(6, len(age))
    coin = seeds.integers("sex", 2, 1)[:, 0]
    return 0.4 * age + 0.9 * seeds.normal("age", 1)[:, 0], torch.where(torch.arange(len(sex)) % 2 == 0, sex, coin)


@pytest.mark.parametrize("spec", [FLAT, VOLUME])
@pytest.mark.parametrize(("model", "word"), [(obeys, "obeyed"), (ignores, "ignored"), (inverts, "inverted"), (weakens, "weak")])
def test_planted_effects_are_found_for_what_they_are(spec: ImageSpec, model: Callable[[Tensor, Tensor], Shown], word: str):
    train, test, asked = world(spec, 400), world(spec, 200, 1000), world(spec, 300, 2000).given
    samples = drawn(spec, *model(asked.columns["age"], asked.columns["sex"]), Seeds.of(12, 300))
    scores, notes = effects(train, test, samples, asked, ["age", "sex", "note"])
    assert {c: verdict(scores, c) for c in ("age", "sex")} == {"age": word, "sex": word}
    assert list(notes) == ["effect of note"]
    age, sex = scores["effect of age"], scores["effect of sex"]
    assert age.n == 300 - 18  # missing values are not asked for
    assert sex.n == 300
    assert age.floor is not None
    assert sex.floor is not None
    assert min(age.floor, sex.floor) > 0.95
    if word in ("obeyed", "inverted"):
        sign = 1 if word == "obeyed" else -1
        assert sign * age.value > 0.95
        assert sex.value == pytest.approx(max(sign, 0), abs=0.05)
    assert abs(scores["effect of age, shuffled"].value) < 0.2
    assert scores["effect of sex, shuffled"].value == pytest.approx(0.5, abs=0.1)


def test_what_real_images_do_not_show_is_not_asked_of_samples():
    train, test, asked = world(FLAT, 400), world(FLAT, 200, 1000), world(FLAT, 300, 2000).given

    def blind(images: Images) -> Images:
        return Images(images.spec, images.schema, images.levels.flip(0), images.given)

    scores = effect(
        blind(train), blind(test), drawn(FLAT, asked.columns["age"], asked.columns["sex"], Seeds.of(12, 300)), asked, "age"
    )
    assert verdict(scores, "age") == "unseen"


def test_r_is_pearsons_and_its_interval_holds_it():
    a, b = (Seeds.of(s, 80).normal("x", 1)[:, 0].double().numpy() for s in (0, 1))
    b = a + b
    assert weighted_r(np.full((1, 80), 1 / 80), a, b)[0] == pytest.approx(np.corrcoef(a, b)[0, 1], rel=1e-9)
    assert weighted_r(np.full((1, 80), 1 / 80), a, b * 0)[0] == 0
    train = world(FLAT, 200)
    score = effect(train, world(FLAT, 100, 500), train.x, train.given, "age")["effect of age"]
    assert score.interval is not None
    assert score.interval[0] <= score.value <= score.interval[1]


def test_a_judge_recovers_in_the_columns_own_units():
    train, test = world(FLAT, 300), world(FLAT, 100, 900)
    there = train.schema["age"].present(train.given.columns["age"])
    values = train.given.columns["age"][there].double().numpy() * 10 + 50
    judge = Judge(train.x[there], values, train.schema["age"])
    truth = test.given.columns["age"].double() * 10 + 50
    error = np.abs(judge.recover(test.x) - truth.numpy())
    assert np.nanmedian(error) < 2


@pytest.mark.parametrize(("column", "rows", "said"), [
    ("note", 60, "is a text"), ("age", 10, r"only 9 training images have a value"), ("one", 60, "one value only"),
])  # fmt: skip
def test_what_cannot_be_judged_is_refused_in_a_sentence(column: str, rows: int, said: str):
    images = world(FLAT, rows)
    schema = Schema({**images.schema.columns, "one": Category(("a",))})
    given = Given(rows, {**images.given.columns, "one": torch.zeros(rows, dtype=torch.int64)})
    images = Images(images.spec, schema, images.levels, given)
    with pytest.raises(ValueError, match=said):
        effect(images, images, images.x, images.given, column)


def test_columns_are_dealt_anew_each_by_itself():
    given = world(FLAT, 500, tied=True).given
    moved = dealt(given, ["age", "sex"])
    for name in ("age", "sex"):
        assert torch.equal(moved.columns[name].nan_to_num(9).sort()[0], given.columns[name].nan_to_num(9).sort()[0])
    there = ~(moved.columns["age"].isnan() | given.columns["age"].isnan())
    tied, free = (np.corrcoef(g.columns["age"][there], g.columns["sex"][there])[0, 1] for g in (given, moved))
    assert tied > 0.75
    assert abs(free) < 0.15


def panel_of(*, tied: bool) -> Panel:
    train, test = world(FLAT, 300, tied=tied), world(FLAT, 150, 1000, tied=tied)
    data = Data("blobs", train, Images(test.spec, test.schema, test.levels, test.given, "test"), fingerprint(train))
    return Panel.of(data.select(["age", "sex"]), ("age", "sex"), limit=300)


def test_an_effect_that_only_goes_with_another_is_not_counted_as_its_own(monkeypatch: pytest.MonkeyPatch):
    from nonesuch.evaluate import features

    monkeypatch.setattr(features, "IMAGES_SEEN", 640)
    panel = panel_of(tied=True)

    def under(given: Given, seed: int) -> Tensor:  # obeys sex, and knows nothing of age
        sex = given.columns["sex"]
        age = Seeds.of(seed, len(sex)).normal("age", 1)[:, 0].abs() * torch.where(sex == 1, 1, -1)
        return drawn(FLAT, age, sex, Seeds.of(seed + 1, len(sex)))

    subject = Subject("sexist", lambda s: under(panel.given, s), "none", None, panel.columns, under)
    out = panel.measure(subject, allowance_s=5, sample_seeds=1, tell=lambda text: None)
    assert verdict(out.scores, "sex") == "obeyed"
    assert verdict(out.scores, "age") == "ignored"
    naive = Measured(seconds={"sample": 9.0})
    panel._effect(subject, subject.sample(0), naive, 1.0)  # no time for a set of its own
    assert "independent in the data" in naive.notes["effect"]
    assert naive.scores["effect of age"].value > 0.5


def test_real_digits_obey_their_labels_and_shifted_labels_do_not():
    found = open_data("digits").select(["label"])
    train, test = found.train[:600], found.test
    held = found.train[600:900]
    asked = effect(train, test, held.x, held.given, "label")
    assert verdict(asked, "label") == "obeyed"
    assert asked["effect of label"].value > 0.95
    wrong = Given(300, {"label": (held.labels() + 1) % 10})
    assert verdict(effect(train, test, held.x, wrong, "label"), "label") == "inverted"
    anew = dealt(held.given, ["label"], 3)
    assert verdict(effect(train, test, held.x, anew, "label"), "label") == "ignored"


def test_a_report_has_a_word_for_every_column():
    from nonesuch.evaluate.comparison import Row

    train, test = world(FLAT, 300), world(FLAT, 150, 1000)
    scores, notes = effects(train, test, test.x, test.given, ["age", "sex"])
    rows = effect_rows(Row("m", "vae", "", scores=scores, notes=notes))
    assert [(r["column"], r["word"], r["percent"]) for r in rows] == [("age", "obeyed", False), ("sex", "obeyed", True)]
    assert {r["word"] for r in rows} <= VERDICTS.keys()
