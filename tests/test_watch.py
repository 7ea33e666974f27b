"""Is it training? Verdicts on made-up histories and on real runs, the measures behind them, and that looking moves nothing."""

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Config, Sound
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds, initialise
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.open import open as open_data
from nonesuch.evaluate.frechet import frechet_sets
from nonesuch.testing import SCHEMA, SPEC, schema_of, stripes
from nonesuch.train.fit import fit
from nonesuch.train.likeness import Classes, Eye, frechet, variety
from nonesuch.train.log import Event
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run
from nonesuch.train.verdicts import Kind, Look, best, count, verdicts
from nonesuch.train.watch import FAILED, LAST, SHARE, Watch, held_share, hold_out, kept_looks

# -- verdicts on made-up histories -------------------------------------------------------------------------------------


def told(kind: Kind = "loss", step: int = 100, **courses: list[float]) -> list[Look]:
    """Looks at 100, 200, ... images with these values; names as in Look, __ for /."""
    n = len(next(iter(courses.values())))
    at = [{k.replace("__", "/"): v[i] for k, v in courses.items()} for i in range(n)]
    return [Look(step * (i + 1), values, kind) for i, values in enumerate(at)]


FALLING = [3.0, 2.5, 2.2, 2.0, 1.9, 1.8, 1.7, 1.6]
STILL = [3.0, 2.0, 1.5, 1.301, 1.3, 1.302, 1.3, 1.3]
RISING = [3.0, 2.0, 1.8, 1.9, 2.0, 2.2, 2.5, 2.9]


@pytest.mark.parametrize(
    ("history", "begins"),
    [
        (told(training=FALLING, validation=FALLING), "still improving: validation loss fell 11 % over the last quarter, to 1.6"),
        (told(training=FALLING, validation=STILL), "flat since 400 images: validation loss at 1.3"),
        (told(training=FALLING, validation=RISING),
         "overfitting since 300 images: validation loss rose from 1.8 to 2.9 while training loss fell from 2.2 to 1.6"),
        (told(training=FALLING), "still improving: training loss fell 11 %"),
        (told(training=RISING), "diverging since 300 images: training loss rose from 1.8 to 2.9"),
        (told(training=[*FALLING[:-1], math.nan]), "diverging: the training loss is not finite"),
        (told("distance", distance=[9.0, 5.0, 3.0, 2.0, 1.4, 1.0], training=RISING[:6]), "still improving: distance of samples"),
        (told("distance", distance=[9.0, 2.0, 1.0, 1.05, 0.96, 1.0], distance_floor=[0.1] * 6), "flat since 300 images"),
        (told("distance", distance=[9.0, 2.0, 0.3, 0.9, 3.0], distance_floor=[0.1] * 5), "diverging since 300 images: distance"),
        (told(training=[-1.0, -2.0, -2.5, -2.8, -3.0, -3.2]), "still improving: training loss fell"),  # nats may be negative
    ],
)  # fmt: skip
def test_a_course_has_one_name(history: list[Look], begins: str):
    said = verdicts(history)
    assert said[0].startswith(begins)
    assert len(said) == 1


@pytest.mark.parametrize(
    "history",
    [
        [],
        told(training=[3.0, 2.0, 1.0], validation=[3.0, 2.0, 1.0]),  # too few looks
        told("distance", training=[1.0] * 8),  # the players' losses say nothing alone
        told(training=[2.0, 2.1, 2.0, 1.9, 2.05, 2.1, 1.93, 1.95]),  # unsteady, within a tenth
    ],
)
def test_nothing_is_said_without_reason(history: list[Look]):
    assert verdicts(history) == ()


def test_both_losses_rising_is_not_overfitting_but_diverging():
    assert verdicts(told(training=RISING, validation=RISING))[0].startswith("diverging")


def test_one_bad_look_at_the_end_is_not_overfitting():
    history = told(training=FALLING, validation=[*FALLING[:-1], 2.1])
    assert not any(v.startswith("overfitting") for v in verdicts(history))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"class__7": [0.1, 0.0], "class__3": [1.1, 0.9]}, "one class collapsed: 7 (hardly any sample looks like 7)"),
        ({"class__7": [1.0, 1.0], "variety__7": [0.1, 0.2]}, "one class collapsed: 7 (samples of 7 are all alike)"),
        ({"class__a": [0.0, 0.0], "class__b": [0.1, 0.1]}, "2 classes collapsed: a, b (hardly any sample looks like a, b)"),
        ({"variety": [0.05, 0.1]}, "samples are all alike: they vary 0.1 times as much as the images do"),
        ({"training_critic": [1.0, 0.5], "validation_critic": [2.0, 1.5]},
         "the critic overfits: its loss is 0.5 on training images and 1.5 on held-out ones"),
        ({"distance": [0.5, 0.11], "distance_floor": [0.4, 0.1]}, "samples are as near to the images as real ones are"),
    ],
)  # fmt: skip
def test_what_stands_at_the_last_two_looks_is_said(values: dict[str, list[float]], said: str):
    assert said in verdicts(told("distance", **values))
    once = {k: [1.0 if k != "distance" else 9.0, v[-1]] for k, v in values.items()}
    assert said not in verdicts(told("distance", **once)) or "critic" in said


def test_averages_that_lag_are_named():
    history = told(training=FALLING, training_raw=[v - 0.2 for v in FALLING])
    assert any(v.startswith("averages lag behind raw weights: training loss 1.6 against 1.4") for v in verdicts(history))
    assert not any("lag" in v for v in verdicts(told(training=FALLING, training_raw=FALLING)))


def test_the_best_look_is_the_first_of_the_lowest_scores():
    history = told(training=FALLING, validation=[3.0, 2.0, 1.0, 1.0, 2.0, math.nan, 3.0, 3.0])
    assert best(history) is history[2]
    assert best([]) is None


@pytest.mark.parametrize(("images", "said"), [(640, "640"), (1024, "1Ki"), (1536, "1.5Ki"), (1258291, "1.2Mi"), (3 << 30, "3Gi")])
def test_the_clock_is_written_as_budgets_are(images: int, said: str):
    assert count(images) == said


def test_looks_are_read_back():
    look = Look(100, {"training": 1.5, "distance": math.nan}, "distance", ("flat",))
    line = json.dumps(look.to_json(), allow_nan=False)
    back = Look.from_json(json.loads(line))
    assert (back.images, back.kind, back.verdicts, back.values["training"]) == (100, "distance", ("flat",), 1.5)
    assert math.isnan(back.values["distance"])


# -- what is measured --------------------------------------------------------------------------------------------------


def test_the_distance_is_that_of_the_report():
    a = Seeds.of(0, 60).normal("a", 5).double()
    b = Seeds.of(1, 40).normal("b", 5).double() * 1.5 + 0.3
    assert frechet(a, b) == pytest.approx(frechet_sets(a.numpy(), b.numpy()), rel=1e-9)
    assert frechet(a, a) == pytest.approx(0, abs=1e-9)


def test_variety_is_the_mean_distance_of_different_rows():
    assert variety(torch.tensor([[0.0], [1.0], [3.0]]).double()) == pytest.approx((1 + 3 + 2) / 3)


@pytest.mark.parametrize("spec", [
    ImageSpec(2, (20, 12)), ImageSpec(1, (10, 9, 8), "dhw"), ImageSpec(1, (40,), "l", "categorical", 6, dtype="int64"),
    ImageSpec(5, (), "", "continuous", None, dtype="float32"),
])  # fmt: skip
@pytest.mark.parametrize("n", [24, 300])
def test_the_eye_sees_every_kind_of_image(spec: ImageSpec, n: int):
    seeds = Seeds.of(0, 2 * n)
    if spec.kind == "categorical":
        x = seeds.integers("x", 6, *spec.shape)
        other = x.clamp(max=1)
    else:
        x = seeds.uniform("x", *spec.shape) * 2 - 1
        other = x.flip(0) * 0.5
    eye = Eye.of(x[:n], spec)
    seen = eye.see(x[:n])
    parts = min(32, n // 4)
    assert seen[:, :parts].var(0, correction=0).sum() == pytest.approx(1.0, rel=0.05) or spec.numel < parts
    assert frechet(eye.see(x[n:]), seen) < frechet(eye.see(other[n:]), seen)


def test_fine_noise_is_seen_though_averaging_hides_it():
    spec = ImageSpec(1, (64, 64))
    smooth = Seeds.of(0, 80).uniform("x", 1, 4, 4).repeat_interleave(16, 2).repeat_interleave(16, 3) - 0.5
    checks = (torch.arange(64)[:, None] + torch.arange(64)) % 2 * 0.2 - 0.1
    eye = Eye.of(smooth, spec)
    assert frechet(eye.see(smooth + checks), eye.see(smooth)) > 10


def digits(n: int | None = None) -> Images:
    return open_data("digits").select(["label"]).train[slice(n)]


def test_classes_are_recognised_and_a_missing_one_is_noticed():
    images = digits()
    eye = Eye.of(images.x[:600], images.spec)
    column = images.schema["label"]
    assert isinstance(column, Category)
    judge = Classes.of(eye.see(images.x[:600]), images.labels()[:600], column.names)
    rest, truth = eye.see(images.x[600:]), images.labels()[600:]
    assert (judge.recognise(rest) == truth).double().mean() > 0.9
    fair = judge.balance(rest, truth, rest, truth)
    assert all(v == 1 for v in fair.values())
    assert len(fair) == 20
    sevens = (truth == 7).nonzero()[:, 0]
    planted = rest.clone()
    planted[sevens] = rest[(truth == 1).nonzero()[:1, 0]]  # whoever asks for a 7 gets the same 1
    found = judge.balance(planted, truth, rest, truth)
    assert found["class/7"] < 0.1
    assert found["variety/7"] == pytest.approx(0, abs=1e-6)  # of differences of squares
    look = Look(1, found, "distance")
    assert any("one class collapsed: 7" in v for v in verdicts([look, replace(look, images=2)]))


# -- looking -----------------------------------------------------------------------------------------------------------


class Restless(Sound):
    """A replay buffer that every look at the terms moves, and a penalty of a slope that needs gradients."""

    memory: Tensor
    transient = ("memory",)

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.register_buffer("memory", torch.zeros(3))

    def terms(self, batch: Batch) -> Terms:
        self.memory = self.memory + 1
        x = batch.x.clone().requires_grad_()
        (slope,) = torch.autograd.grad((x**2 * self.out.weight.sum()).sum(), x, create_graph=True)
        return Terms({**super().terms(batch).loss, "slope": 1e-3 * slope.square().mean()})


def states(run: Run) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in run.state().items()}


@pytest.mark.parametrize("build", [
    lambda: Restless(Config(), SPEC, SCHEMA),
    *(lambda n=n: catalog.build(n, SPEC, schema_of(n), "tiny") for n in catalog.names()),
])  # fmt: skip
def test_a_watched_run_is_the_unwatched_one_bit_for_bit(build: Callable[[], Any]):
    schema, ends = build().schema, []
    images, held = stripes(60, schema=schema), stripes(90, schema=schema)[60:]
    for watched in (False, True):
        model = build()
        initialise(model, 0)
        model.prepare(images.x, images.given)
        run = Run(model, images, Recipe(images=120, batch=12))
        watch = Watch.of(run, held)
        torch.manual_seed(3)
        while run.images < 120:
            run.step()
            if watched and run.images in (24, 72):
                before, generator = states(run), torch.get_rng_state()
                asks = [p.requires_grad for p in model.parameters()]
                look = watch.look(run)
                assert FAILED not in look.text
                assert {"training", "validation", "training_raw", "distance", "variety"} <= look.values.keys()
                assert [p.requires_grad for p in model.parameters()] == asks
                assert all(torch.equal(v, before[k]) for k, v in states(run).items())
                assert torch.equal(generator, torch.get_rng_state())
        ends.append(states(run))
    assert ends[0].keys() == ends[1].keys()
    assert all(torch.equal(v, ends[1][k]) for k, v in ends[0].items())


def test_a_loss_is_that_of_the_model_with_keys_that_never_change():
    images = stripes(40)
    run = Run(Sound(Config(), SPEC, SCHEMA), images, Recipe(images=400, batch=40, hide=0.0))
    run.step()
    watch = Watch.of(run, stripes(60)[40:])
    first = watch.look(run)
    assert watch.look(run).values == first.values
    with run.averaged() as model:
        exact = -model.log_prob(watch.held_out.x, watch.held_out.given).nats.mean() / SPEC.numel  # type: ignore[union-attr]
    assert first.values["validation"] == pytest.approx(float(exact), rel=1e-5)
    assert first.values["bits"] == pytest.approx(float(exact) / math.log(2), rel=1e-5)
    assert first.values["validation/nll"] == first.values["validation"]


def test_the_score_is_a_distance_where_losses_are_of_several_players():
    for name, kind in (("gan", "distance"), ("energy", "distance"), ("vae/vdvae", "loss"), ("flow", "loss")):
        run = Run(catalog.build(name, SPEC, SCHEMA, "tiny"), stripes(40), Recipe(images=400, batch=8))
        assert Watch.of(run).kind == kind


def test_without_held_out_images_no_look_is_the_best_and_the_card_says_what_was_not_looked_for():
    run = Run(Sound(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=400, batch=8))
    run.step()
    watch = Watch.of(run)
    assert watch.about() == {}
    watch.look(run)
    assert not watch.better
    assert "not looked for" in watch.about()["overfitting"]


class Weary(Sound):
    def terms(self, batch: Batch) -> Terms:
        if not self.out.weight.requires_grad:
            raise RuntimeError("out of memory\nat length")
        return super().terms(batch)


def test_a_look_that_fails_says_so_and_training_goes_on():
    run = Run(Weary(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=400, batch=8))
    run.step()
    assert Watch.of(run).look(run).verdicts == (f"{FAILED} out of memory",)
    run.step()


# -- when --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", [0.01, 1.0, 30.0])
def test_all_looks_together_take_their_share_of_the_time(cost: float):
    run = Run(Sound(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=100_000, batch=10))
    watch, seconds, looks = Watch.of(run), 0.0, []
    for images in range(10, 100_001, 10):
        seconds += 0.01
        if watch.due(images, 100_000, seconds):
            seconds += cost
            watch.spent_s += cost
            watch.terms_s = cost
            watch.history.append(Look(images))
            looks.append(images)
    trained = 100.0
    first = cost if cost > SHARE * trained else 0.0  # what a look costs is not known before the first
    assert watch.spent_s <= max(SHARE, LAST) * seconds + first
    assert len(looks) == {0.01: 20, 1.0: 4, 30.0: 1}[cost] or (cost == 1.0 and 3 <= len(looks) <= 11)
    if cost == 0.01:
        assert watch.spent_s <= SHARE * seconds
        assert looks[-1] == 100_000
        assert not watch.due(100_000, 100_000, 1e9)  # never twice at one reading


def test_sampling_that_is_too_slow_is_broken_off():
    run = Run(Sound(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=400, batch=8))
    run.step()
    watch = Watch.of(run)
    watch.allowed_s = 0.0
    assert "distance" not in watch.look(run).values
    assert watch.shown is None
    watch.allowed_s = math.inf
    assert "distance" in watch.look(run).values
    assert watch.shown is not None
    assert watch.shown.shape == (16, *SPEC.shape)


# -- held-out images ---------------------------------------------------------------------------------------------------


def data_of(images: Images) -> Data:
    return Data("stripes", images, stripes(8, name="test"), fingerprint(images))


def noise(n: int) -> Images:
    return Images(SPEC, Schema(), Seeds.of(5, n).integers("n", 5, *SPEC.shape).to(torch.uint8), Given(n))


def test_small_sets_lose_no_image_and_large_ones_two_percent_by_content():
    assert hold_out(data_of(noise(1999)))[1] is None
    train, held = hold_out(data_of(noise(2000)))
    assert held is not None
    assert (len(train), len(held)) == (1960, 40)
    flipped = noise(2000)[torch.arange(1999, -1, -1)]
    again = hold_out(data_of(flipped))[1]
    assert again is not None
    assert {row.numpy().tobytes() for row in again.levels} == {row.numpy().tobytes() for row in held.levels}
    assert held_share(data_of(noise(60)), 0.5) == 0.5
    with pytest.raises(ValueError, match=r"at least 0 and below 1"):
        hold_out(data_of(noise(60)), 1.0)


def test_a_source_with_its_own_validation_split_is_trained_on_whole():
    data = replace(data_of(noise(2100)), own_validation=noise(30))
    train, held = hold_out(data)
    assert len(train) == 2100
    assert held is data.own_validation
    assert len(hold_out(data, 0.1)[0]) == 1890


# -- real runs ---------------------------------------------------------------------------------------------------------


def watched(name: str, train: Images, held: Images, images: int, **recipe: Any) -> Watch:
    model = catalog.build(name, train.spec, train.schema, "tiny")
    initialise(model, 0)
    model.prepare(train.x, train.given)
    run = Run(model, train, Recipe(images=images, batch=32, lr=3e-3, **recipe))
    watch = Watch.of(run, held)
    while run.images < images:
        run.step()
        if run.images * 10 // images > (run.images - 32) * 10 // images:
            watch.look(run)
    return watch


def test_sixty_digits_are_overfitted_and_that_is_said():
    images = digits()
    watch = watched("autoregressive", images[:60], images[60:188], 8000)
    last, top = watch.history[-1], best(watch.history)
    assert last.verdicts[0].startswith("overfitting since")
    assert top is not None
    assert top.images < 6000
    assert last.values["validation"] > 1.1 * top.values["validation"] > 1.1 * last.values["training"]
    assert not watch.better
    assert watch.about()["best look"].startswith("validation ")


def test_many_digits_are_not_and_training_is_still_improving():
    images = digits()
    watch = watched("autoregressive", images[128:], images[:128], 8000)
    assert not any(v.startswith(("overfitting", "diverging")) for look in watch.history for v in look.verdicts)
    assert watch.history[-1].verdicts[0].startswith(("still improving", "flat"))
    top = best(watch.history)
    assert top is not None
    assert top.images > 0.75 * 8000


# -- in fit ------------------------------------------------------------------------------------------------------------


def test_looks_are_events_lines_of_the_log_and_words_of_the_card(tmp_path: Path):
    events: list[Event] = []
    asked: dict[str, Any] = {"budget": 12_800, "recipe": {"batch": 16, "held_out": 0.2}, "given": "label", "precision": "fp32"}
    data = data_of(stripes(60))
    fit(Sound(Config(), SPEC, SCHEMA), data, **asked, out=tmp_path, on_event=events.append)
    looks = [e.look for e in events if e.kind == "watch" and e.look]
    assert looks
    assert [look.images for look in kept_looks(tmp_path, 12_800)] == [look.images for look in looks]
    assert all(e.text == e.look.text for e in events if e.look)
    assert "verdict" in (tmp_path / "README.md").read_text()
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def test_a_run_taken_up_again_keeps_the_looks_it_had_and_drops_those_of_lost_steps(tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    lines = [{"kind": "watch", "look": look.to_json()} for look in told(training=[3.0, 2.0, 1.0, 0.5])]
    file.write_text("\n".join(map(json.dumps, [{"kind": "progress"}, *lines])) + '\n{"kind": "watch", "look": {"imag')
    assert [look.images for look in kept_looks(tmp_path, 300)] == [100, 200, 300]
    assert kept_looks(tmp_path / "nowhere", 300) == []
    assert kept_looks(None, 300) == []
    run = Run(Sound(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=400, batch=8))
    run.images = 304
    watch = Watch.of(run, None, kept_looks(tmp_path, 304))
    run.step()
    watch.look(run)
    assert [look.images for look in watch.history] == [100, 200, 300, 312]


def test_players_are_told_apart_by_whether_they_are_averaged():
    class Two(Sound):
        def objectives(self) -> list[Objective]:
            mine = list(self.embed.parameters())
            return [
                Objective("critic", list(self.out.parameters()), self.terms, average=False),
                Objective("generator", mine, lambda b: Terms({"g": sum(p.square().sum() for p in mine)})),  # type: ignore[dict-item]
            ]

    run = Run(Two(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=400, batch=8))
    run.step()
    values = Watch.of(run, stripes(60)[40:]).look(run).values
    assert values["training_critic"] == values["training/nll"]
    assert values["training"] == values["training/g"]
