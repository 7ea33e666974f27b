"""Training: schedules, averages and optimizers against closed forms, and a run that resumes bit for bit, however stopped."""

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Config, Sound, TwoOwners
from torch import Tensor, nn

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.given import Category, Given, Number, Schema, Text
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.testing import SCHEMA, SPEC, stripes
from nonesuch.train import checkpoint, guard, log, loop, plan, stopping
from nonesuch.train.fit import fit as train_model
from nonesuch.train.guard import NonFinite
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.recipe import Budget, Recipe
from nonesuch.train.run import Run, images_for


def pictures(n: int = 40) -> Data:
    train, test = stripes(n), stripes(8, name="test")
    return Data("stripes", train, test, fingerprint(train))


def sound() -> Sound:
    return Sound(Config(), SPEC, SCHEMA)


def quick(model: Any = None, **options: Any) -> Any:
    defaults = {"budget": 160, "recipe": {"batch": 16}, "precision": "fp32", "given": "label"}
    return train_model(sound() if model is None else model, pictures(), **{**defaults, **options})


def started(model: Any = None, data: Images | None = None, **recipe: Any) -> Run:
    return Run(model or sound(), data or stripes(40), Recipe(**{"images": 160, "batch": 16, **recipe}))


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def saved(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of the step that counts, and what its record says without the versions that made it."""
    found = checkpoint.find(folder)
    assert found
    return found.tensors, {**dataclasses.asdict(found.record), "made_with": None}


# -- budgets


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("5m", Budget(seconds=300)), ("90s", Budget(seconds=90)), ("1h", Budget(seconds=3600)), ("0.5 min", Budget(seconds=30)),
        (".5s", Budget(seconds=0.5)), ("8Mi", Budget(images=8 * 2**20)), ("200k", Budget(200_000)), (50_000, Budget(50_000)),
        ("5M", Budget(5_000_000)), ("1.5Ki", Budget(1536)), (" 12 ", Budget(12)), ("0.2", Budget(1)), (Budget(7), Budget(7)),
    ],
)  # fmt: skip
def test_budgets_are_times_or_images(text: Any, budget: Budget):
    assert Budget.parse(text) == budget


@pytest.mark.parametrize("text", ["-5m", -3, "0", 0, "0s", "-0.1h"])
def test_budgets_must_be_positive(text: Any):
    with pytest.raises(ValueError, match=r"must be positive, not .*\."):
        Budget.parse(text)


@pytest.mark.parametrize("text", ["", "m", "5 minutes", "5mi", "5e3", "1h30m", "inf", "nan", "5m; 6m", True, None, "٣m"])
def test_budgets_that_say_nothing(text: Any):
    with pytest.raises(ValueError, match=r"neither a time .* nor a number of images"):
        Budget.parse(text)


# -- the recipe


@pytest.mark.parametrize(
    ("decay", "shape"),
    [("cosine", lambda u: (1 + math.cos(math.pi * u)) / 2), ("linear", lambda u: 1 - u), ("constant", lambda u: 1.0)],
)
def test_the_learning_rate_rises_and_falls_by_its_closed_form(decay: Any, shape: Callable[[float], float]):
    recipe = Recipe(images=10_000, batch=100, lr=3e-3, warmup=0.1, decay=decay)
    for images in range(0, 1000, 100):  # a straight line that leaves zero one batch before the start
        assert recipe.lr_at(images) == pytest.approx(3e-3 * (images + 100) / 1100)
    for images in range(1000, 10_000, 100):
        assert recipe.lr_at(images) == pytest.approx(3e-3 * max(shape((images - 1000) / 9000), 1e-3))
    assert recipe.lr_at(1000) == pytest.approx(3e-3)
    assert recipe.lr_at(10_000) == recipe.lr_at(20_000) == pytest.approx(3e-6 if decay != "constant" else 3e-3)


def test_without_warmup_the_first_step_has_the_peak():
    assert Recipe(images=1000, warmup=0, lr=1e-2).lr_at(0) == 1e-2
    assert Recipe(images=1000, warmup=1.0, lr=1e-2).lr_at(1000) == pytest.approx(1e-2)


def test_half_of_an_average_is_gone_after_its_half_life():
    recipe = Recipe(images=1 << 30, batch=64, average_half_life=640, average_share=0.5)
    late = [recipe.average_decay(1 << 20) for _ in range(10)]
    assert math.prod(late) == pytest.approx(0.5)
    assert recipe.average_decay(64) == pytest.approx(0.5 ** (64 / (0.5 * 128)))  # early: a share of what was seen
    assert Recipe(average_share=0.0).average_decay(10) == 0


@pytest.mark.parametrize("fields", [{"batch": 0}, {"images": -1}, {"lr": 0}, {"lr": -1e-3}, {"hide": 1.0}, {"hide": -0.1}])
def test_recipes_that_train_nothing(fields: dict[str, Any]):
    with pytest.raises(ValueError, match="a recipe needs"):
        Recipe(**fields)


# -- optimizer and averages


def objective(*parameters: nn.Parameter) -> Objective:
    return Objective("model", list(parameters), lambda batch: Terms({}))


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.0, 0.1), (0.3, 0.0), (1e9, 0.05)])
def test_adam_is_torchs_with_its_gradient_clipped(clip: float, decay: float):
    recipe = Recipe(images=800, batch=16, clip=clip, weight_decay=decay, warmup=0.2, betas=(0.8, 0.95), eps=1e-6)
    mine, theirs = ([nn.Parameter(torch.linspace(-1, 1, n)) for n in (5, 3)] for _ in range(2))
    adam, reference = Adam(objective(*mine), recipe), torch.optim.AdamW(theirs, betas=(0.8, 0.95), eps=1e-6, weight_decay=decay)
    for step in range(12):
        grads = tuple(torch.sin(p.detach() * (step + 1)) for p in mine)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.clone()
        norm = torch.nn.utils.clip_grad_norm_(theirs, clip if clip > 0 else math.inf)
        reference.param_groups[0]["lr"] = recipe.lr_at(16 * step)
        reference.step()
        assert float(adam.step(grads, 16 * step)) == pytest.approx(float(norm))
        for a, b in zip(mine, theirs, strict=True):
            assert torch.allclose(a, b, atol=1e-6)


def test_an_objective_has_its_own_learning_rate():
    p, q = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(3))
    recipe, g = Recipe(images=100, batch=10, lr=1e-2, warmup=0, decay="constant"), torch.tensor([1.0, -2.0, 0.5])
    Adam(objective(p), recipe).step((g,), 0)
    Adam(dataclasses.replace(objective(q), lr_scale=0.1), recipe).step((g,), 0)
    assert torch.allclose(q, 0.1 * p, rtol=1e-5)
    assert torch.allclose(p, -1e-2 * g.sign(), rtol=1e-4)  # Adam's first step is the sign


def test_gradients_that_share_memory_are_clipped_once():
    """d/da and d/db of a loss of a + b are one tensor, and that of a sum is one number spread out."""
    a, b, c = (nn.Parameter(torch.zeros(4)) for _ in range(3))
    grads = torch.autograd.grad(((a + b) * torch.arange(4.0)).sum() * 10 + c.sum(), [a, b, c])
    whole = [g.clone() for g in grads]
    adam = Adam(objective(a, b, c), Recipe(images=100, clip=0.1))
    norm = adam.step(grads, 0)
    moments = [adam.inner.state[p]["exp_avg"] for p in (a, b, c)]
    for m, g in zip(moments, whole, strict=True):
        assert torch.allclose(m, 0.1 * g * 0.1 / norm, rtol=1e-5)  # beta_1 = 0.9: a tenth of the clipped gradient


def test_a_gradient_that_is_not_finite_moves_nothing():
    p = nn.Parameter(torch.ones(3))
    adam = Adam(objective(p), Recipe(images=100))
    norm = adam.step((torch.tensor([1.0, math.inf, 0.0]),), 0)
    assert not torch.isfinite(norm)
    assert torch.equal(p, torch.ones(3))
    assert adam.state() == {}


def test_averages_are_their_closed_form():
    model = nn.Linear(2, 2)
    averages = Averages(model, [objective(*model.parameters())])
    first, decay = model.weight.detach().clone(), 0.7
    with torch.no_grad():
        model.weight.fill_(3.0)
    for _ in range(5):
        averages.update(decay)
    assert torch.allclose(averages.mean["weight"], decay**5 * first + (1 - decay**5) * 3, atol=1e-6)
    averages.swap()
    assert torch.allclose(model.weight, decay**5 * first + (1 - decay**5) * 3, atol=1e-6)
    averages.swap()
    assert (model.weight == 3).all()


def test_a_run_averages_its_own_weights_and_not_those_of_a_critic():
    run = started(average_share=0.2)
    mean = {k: v.detach().double().clone() for k, v in run.model.named_parameters()}
    for _ in range(6):
        run.step()
        decay = run.recipe.average_decay(run.images)
        mean = {k: decay * mean[k] + (1 - decay) * v.detach().double() for k, v in run.model.named_parameters()}
    assert all(torch.allclose(run.averages.mean[k].double(), mean[k], atol=1e-6) for k in mean)
    critic = dataclasses.replace(run.objectives[0], average=False)
    assert Averages(run.model, [critic]).mean == {}


# -- the order of the images, and what is hidden


@pytest.mark.parametrize(("n", "batch"), [(40, 16), (7, 16), (16, 16), (5, 1)])
def test_each_epoch_is_a_permutation(n: int, batch: int):
    data = dataclasses.replace(stripes(n), levels=(torch.arange(n) % 5).view(n, 1, 1, 1).expand(n, 1, 8, 8).to(torch.uint8))
    data = dataclasses.replace(data, schema=Schema({"n": Number()}), given=Given(n, {"n": torch.arange(n).float()}))
    run = Run(Sound(Config(), SPEC, data.schema), data, Recipe(images=10**6, batch=batch, hide=0.0))
    seen, keys = [], []
    while len(seen) < 3 * n:
        drawn = run.batch()
        assert torch.equal(data.spec.to_levels(drawn.x)[:, 0, 0, 0], drawn.given.columns["n"].long() % 5)
        seen += drawn.given.columns["n"].tolist()
        keys += list(zip(drawn.keys.seed, drawn.keys.index, strict=True))
        run.images += batch
    epochs = [seen[i : i + n] for i in range(0, 3 * n, n)]
    assert all(sorted(e) == list(range(n)) for e in epochs)
    assert n < 6 or epochs[0] != epochs[1]
    assert len({*keys}) == len(keys)  # no noise is used twice


def test_a_batch_is_a_function_of_the_clock():
    one, other = started(), started()
    for _ in range(4):
        one.step()
    other.images = one.images
    a, b = one.batch(), other.batch()
    assert torch.equal(a.x, b.x)
    assert same(dict(a.given.columns), dict(b.given.columns))
    assert (a.keys, a.images, a.progress) == (b.keys, 64, 0.4)
    assert not torch.equal(started(seed=1).batch().x, started(seed=0).batch().x)


def test_very_many_pictures_are_prepared_from_by_a_part_of_them_with_every_class(monkeypatch: pytest.MonkeyPatch):
    data, seen = pictures(40), []
    labels = torch.zeros(40, dtype=torch.int64)
    labels[37] = 1
    train = dataclasses.replace(data.train[:40], given=Given(40, {"label": labels}))

    class Noting(Sound):
        def prepare(self, data: Tensor, given: Given) -> None:
            seen.append((data, given.columns["label"]))

    for most in (8, 1000):
        monkeypatch.setattr(plan, "_PREPARED", most * SPEC.numel)
        plan.plan(Noting(Config(), SPEC, SCHEMA), dataclasses.replace(data, train=train), Recipe(), Budget(images=64), "64")
    (part, classes), (whole, _) = seen
    assert part.equal(train.x[[0, 5, 10, 15, 20, 25, 30, 35, 37]])
    assert classes.tolist() == [0] * 8 + [1]
    assert whole.equal(train.x)


@pytest.mark.parametrize("hide", [0.0, 0.1, 0.5])
def test_rows_are_hidden_at_the_recipes_rate(hide: float):
    run = started(hide=hide, batch=1000, images=10**6)
    hidden = 0
    for _ in range(8):
        hidden += int((run.batch().given.columns["label"] < 0).sum())
        run.images += 1000
    assert abs(hidden - 8000 * hide) <= 4 * math.sqrt(8000 * hide * (1 - hide))


# -- objectives


def test_two_owners_are_an_error():
    with pytest.raises(AssertionError, match="two owners"):
        started(TwoOwners(Config(), SPEC, SCHEMA))


class Players(Sound):
    """Two objectives: the second sees the first's update, and steps every other round."""

    def objectives(self) -> list[Objective]:
        self.log: list[tuple[str, float, int]] = []
        second = Objective("second", [self.out.bias], self.named("second"), every=2, average=False, after_step=self.after)
        return [Objective("first", [p for p in self.parameters() if p is not self.out.bias], self.named("first")), second]

    def named(self, name: str) -> Callable[[Batch], Terms]:
        def terms(batch: Batch) -> Terms:
            self.log.append((name, float(self.out.weight.detach().sum()), batch.images))
            return Terms({f"{name}_nll": self.terms(batch).loss["nll"]}, {f"{name}_watched": torch.tensor(3.0)})

        return terms

    def after(self, batch: Batch) -> None:
        self.log.append(("after", float(self.out.weight.detach().sum()), batch.images))


def test_players_step_in_order_and_the_clock_once_a_round():
    run = started(Players(Config(), SPEC, SCHEMA))
    logged = [run.step() for _ in range(3)]
    model = run.model
    assert isinstance(model, Players)
    assert [(name, images) for name, _, images in model.log] == [
        ("first", 0), ("second", 0), ("after", 0), ("first", 16), ("first", 32), ("second", 32), ("after", 32),
    ]  # fmt: skip
    assert model.log[0][1] != model.log[1][1]  # the second sees weights the first has moved
    assert (run.images, run.rounds, int(model.images_seen)) == (48, 3, 48)
    assert logged[0].keys() == {"first_nll", "first_watched", "first_gradient", "second_nll", "second_watched", "second_gradient"}
    assert logged[1].keys() == {"first_nll", "first_watched", "first_gradient"}
    assert "out.bias" not in run.averages.mean


# -- what is not finite


class Explodes(Sound):
    """Loses its mind at image 48: in the loss, or in the gradient alone."""

    in_gradient = False

    def terms(self, batch: Batch) -> Terms:
        found = super().terms(batch).loss["nll"]
        if batch.images < 48:
            return Terms({"nll": found})
        if self.in_gradient:
            return Terms({"nll": found + (self.out.weight - self.out.weight.detach()).abs().sum().sqrt()})
        return Terms({"nll": found, "penalty": found * math.nan})


class ExplodesInGradient(Explodes):
    in_gradient = True


@pytest.mark.parametrize(
    ("cls", "term", "said"),
    [
        (Explodes, "penalty", "the term 'penalty' of 'model' is nan at images 48 to 63"),
        (ExplodesInGradient, None, "gradient of 'model' is not finite at images 48 to 63"),
    ],
)
def test_what_is_not_finite_is_named_and_changes_nothing(cls: type[Sound], term: str | None, said: str):
    run = started(cls(Config(), SPEC, SCHEMA))
    for _ in range(3):
        run.step()
    states = (run.model.state_dict(), run.averages.mean, run.optimizers[0].state())
    before = [{k: v.clone() for k, v in state.items()} for state in states]
    with pytest.raises(NonFinite, match=said) as caught:
        run.step()
    assert (caught.value.term, caught.value.objective, caught.value.images, caught.value.batch) == (term, "model", 48, 16)
    assert "stopped before that update. Lower the learning rate, or clean the data." in str(caught.value)
    after = [run.model.state_dict(), run.averages.mean, run.optimizers[0].state()]
    assert all(same(a, b) for a, b in zip(before, after, strict=True))
    assert run.images == 48


def test_a_run_that_explodes_leaves_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    events: list[log.Event] = []
    for _ in range(2):  # the same call again stops at once, and changes nothing
        with pytest.raises(NonFinite, match="the term 'penalty'"):
            quick(Explodes(Config(), SPEC, SCHEMA), out=tmp_path, on_event=events.append)
        assert saved(tmp_path)[1]["images"] == 48
    assert catalog.load(tmp_path, Explodes).sample(2).shape == (2, *SPEC.shape)
    said = [e.text for e in events if e.kind == "rollback"]
    assert len(said) == 3
    what = "the term 'penalty' of 'model' is nan at images 48 to 63 of the run"
    assert said == [f"{what}: back to image 0, learning rate {rate:g}, other noise." for rate in (5e-4, 2.5e-4, 1.25e-4)]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines if line["kind"] == "rollback"] == said
    assert [r["failed"] for r in saved(tmp_path)[1]["rollbacks"]] == [what] * 3


class Stumbles(Sound):
    """Not finite whenever the clock reads one of `at`, until it has been so `times` times."""

    at, times = (48,), 1

    def terms(self, batch: Batch) -> Terms:
        found = super().terms(batch).loss["nll"]
        self.keys = getattr(self, "keys", [])
        self.keys.append((batch.images, batch.keys.seed[0]))
        self.left = getattr(self, "left", self.times)
        if batch.images in self.at and self.left:
            self.left -= 1
            return Terms({"nll": found * math.inf})
        return Terms({"nll": found})


def test_a_run_that_stumbles_goes_back_halves_its_rate_and_finishes(monkeypatch: pytest.MonkeyPatch):
    """By hand: four rounds, back to the copy made after the second, then the rest at half the rate under other keys."""
    monkeypatch.setattr(guard, "_EVERY", 2)
    monkeypatch.setattr(Stumbles, "at", (64,))
    run = started(Stumbles(Config(), SPEC, SCHEMA), pictures().train)
    kinds = [(e.kind, e.images) for e in loop.train(run) if e.kind != "progress"]
    assert kinds == [("start", 0), ("rollback", 64), ("done", 160)]
    model = run.model
    assert isinstance(model, Stumbles)
    assert [images for images, _ in model.keys] == [*range(0, 80, 16), *range(64, 160, 16)]
    assert {seed for _, seed in model.keys[:5]} == {0}
    assert {seed for _, seed in model.keys[5:]} == {1 << 64}
    by_hand = started(None, pictures().train)
    for _ in range(4):
        by_hand.step()
    by_hand.rollbacks.append({"lr": 1e-3})
    by_hand.optimizers[0].recipe = dataclasses.replace(by_hand.recipe, lr=5e-4)
    for _ in range(6):
        by_hand.step()
    assert same(run.model.state_dict(), by_hand.model.state_dict())
    assert same(run.averages.mean, by_hand.averages.mean)
    assert run.recipe.lr == 1e-3  # the recipe stays what was asked for, so that the same call resumes


def test_going_back_undoes_the_first_steps_of_the_optimizer():
    run = started(Stumbles(Config(), SPEC, SCHEMA), pictures().train)
    before = {k: v.clone() for k, v in run.state().items()}
    watch = guard.Guard(run)
    for _ in range(3):
        run.step()
    with pytest.raises(NonFinite) as caught:
        run.step()
    watch.go_back(caught.value)
    assert same(before, run.state())
    assert (run.images, run.rounds) == (0, 0)


def test_a_run_that_went_back_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The halved rate and the other noise are part of the state: a fresh process takes up the same course."""
    whole = started(Stumbles(Config(), SPEC, SCHEMA), pictures().train)
    for _ in loop.train(whole):
        pass
    half = started(Stumbles(Config(), SPEC, SCHEMA), pictures().train)
    monkeypatch.setattr(loop, "_LOG_S", 0.0)
    events = loop.train(half, tmp_path)
    for event in events:
        if event.kind == "progress" and half.rollbacks and event.images >= 80:
            events.close()
    again = started(Stumbles(Config(), SPEC, SCHEMA), pictures().train)
    checkpoint.load(again, tmp_path)
    assert (again.images, len(again.rollbacks)) == (80, 1)
    assert again.optimizers[0].recipe.lr == 5e-4
    while again.images < 160:
        again.step()
    assert same(whole.state(), again.state())


def test_a_changed_rate_is_not_halved_for_what_went_before(tmp_path: Path):
    with pytest.raises(NonFinite):
        quick(Explodes(Config(), SPEC, SCHEMA), out=tmp_path)
    options: Any = {"recipe": {"batch": 16, "lr": 1e-4}, "out": tmp_path}
    with pytest.raises(ValueError, match=r"recipe.lr: 0.001 -> 0.0001.* --allow-change lr"):
        quick(Explodes(Config(), SPEC, SCHEMA), **options)
    events: list[log.Event] = []
    with pytest.raises(NonFinite):
        quick(Explodes(Config(), SPEC, SCHEMA), **options, allow_change=["lr"], on_event=events.append)
    assert [e.text.split("learning rate ")[1] for e in events if e.kind == "rollback"] == [
        f"{rate:g}, other noise." for rate in (5e-5, 2.5e-5, 1.25e-5)
    ]


def test_a_copy_of_the_state_costs_less_than_a_step():
    """So that one in 256 rounds costs below half a percent: the bytes it moves against those of Adam and the averages."""
    run = started()
    run.step()
    state = run.state()
    copied = 2 * sum(v.nbytes for v in state.values())  # read and written
    weights = sum(p.nbytes for p in run.model.parameters())
    assert copied <= 8.2 * weights
    assert guard._EVERY >= 256


# -- fit


def test_fit_learns_and_changes_neither_the_data_nor_the_model_it_was_given():
    model, data = sound(), pictures()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    levels = data.train.levels.clone()
    done = train_model(model, data, given="label", budget="4k", recipe={"batch": 32, "lr": 1e-2}, precision="fp32")
    assert same(before, model.state_dict())
    assert torch.equal(levels, data.train.levels)
    assert data.train.given.columns["label"].tolist() == [i % 3 for i in range(40)]
    assert int(done.images_seen) == 4000
    assert isinstance(done, Sound)
    given = {"label": data.train.labels().tolist()}
    names = {"label": [SCHEMA.category()[1].names[i] for i in given["label"]]}
    bits = -done.log_prob(data.train.x, names).nats.mean() / 64 / math.log(2)
    assert bits < 0.75 * math.log2(5)


def test_fit_returns_the_averaged_weights(tmp_path: Path):
    done = quick(out=tmp_path)
    tensors, _ = saved(tmp_path)
    mean = {k.removeprefix("mean/"): v for k, v in tensors.items() if k.startswith("mean/")}
    assert same(mean, {k: v.detach() for k, v in done.named_parameters()})
    assert not same(mean, {k: tensors[f"raw/{k}"] for k in mean})
    assert same(artifact.export_state(done), artifact.export_state(catalog.load(tmp_path, Sound)))


def test_the_same_call_trains_the_same_model():
    assert same(quick().state_dict(), quick().state_dict())
    assert not same(quick().state_dict(), quick(seed=1).state_dict())
    before = torch.get_rng_state()
    quick()
    assert torch.equal(before, torch.get_rng_state())


def test_a_seed_draws_a_fresh_model_anew():
    a, b = (plan.choose_model("vae", pictures(), "tiny", {}, seed)[0] for seed in (0, 1))
    assert not same(a.state_dict(), b.state_dict())
    assert same(a.state_dict(), catalog.build("vae", SPEC, SCHEMA, "tiny").state_dict())


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_weights_stay_float32_in_either_precision(precision: Any, dtype: torch.dtype):
    done = quick(precision=precision)
    assert done.compute_dtype == dtype
    assert all(p.dtype == torch.float32 for p in done.parameters())
    with pytest.raises(ValueError, match="precision must be auto, fp32 or bf16, not 'fp64'"):
        quick(precision="fp64")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "difusion"}, "there is no model 'difusion'; did you mean 'diffusion'?"),
        ({"given": "lable"}, "no column 'lable'; did you mean 'label'?"),
        ({"budget": "-5m"}, "the budget must be positive"),
        ({"recipe": {"bach": 3}}, "the recipe has no field 'bach'; did you mean 'batch'?"),
        ({"recipe": {"batch": "many"}}, "the recipe: batch input should be a valid integer"),
        ({"preset": "tiny"}, "a model that is already built keeps its config"),
        ({"model": "vae", "preset": "tinny"}, "has no preset 'tinny'; did you mean 'tiny'?"),
        ({"model": "vae", "config": {"widht": 3}}, "did you mean 'width'?"),
        ({"given": None}, "the data has (1, 8, 8) given []"),
    ],
)
def test_wrong_words_are_answered(options: dict[str, Any], said: str):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the sentence is compared below, with its brackets)
        quick(**options)
    assert said in str(caught.value)


def test_events_tell_the_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(loop, "_LOG_S", 0.0)
    monkeypatch.setattr(loop, "_PREVIEW_S", 0.0)
    events: list[log.Event] = []
    quick(budget=48, out=tmp_path, on_event=events.append, progress=True)
    kinds = [e.kind for e in events if e.kind not in ("watch", "saved")]
    assert kinds == ["start", *["progress", "preview"] * 3, "done"]
    assert [e.images for e in events if e.kind == "progress"] == [16, 32, 48]
    assert all(e.x is not None and e.x.shape == (16, *SPEC.shape) for e in events if e.kind == "preview")
    assert events[0].text == "48 images in batches of 16"
    assert events[-1].terms.keys() == {"nll", "model_gradient"}
    assert events[1].seconds_left == pytest.approx(32 / events[1].images_per_s)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["images"]) for line in lines] == [(e.kind, e.images) for e in events]
    assert lines[1]["nll"] == pytest.approx(events[1].terms["nll"])


def test_previews_change_nothing(monkeypatch: pytest.MonkeyPatch):
    plain = quick()
    monkeypatch.setattr(loop, "_PREVIEW_S", 0.0)
    assert same(plain.state_dict(), quick(on_event=lambda event: None).state_dict())


def test_previews_serve_conditions_that_cannot_be_drawn(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_PREVIEW_S", 0.0)
    schema, some = Schema({"title": Text(4)}), stripes(6)
    told = dataclasses.replace(some, schema=schema, given=schema.given(6, {"title": list("abcdef")}))
    data = Data("told", told, told, "")
    kinds: list[str] = []
    model = Sound(Config(), SPEC, schema)
    train_model(model, data, given="title", budget=6, recipe={"batch": 3}, on_event=lambda e: kinds.append(e.kind))
    assert "preview" in kinds


# -- further training


def test_a_model_is_trained_further_by_its_own_names(tmp_path: Path):
    """The categories and the scale of the data at hand are read as the model's."""
    schema = Schema({"label": SCHEMA["label"], "age": Number(10.0, 2.0)})
    model = Sound(Config(), SPEC, schema)
    model.images_seen.fill_(1)
    some = stripes(6)
    own = Schema({"label": Category(("dots", "rows")), "age": Number(50.0, 4.0)})
    given = own.given(6, {"label": ["dots", "rows", None, "dots", "rows", "dots"], "age": [10, 12, 14, 16, None, 20]})
    told = dataclasses.replace(some, schema=own, given=given)
    seen: list[Given] = []

    class Watches(Sound):
        def terms(self, batch: Batch) -> Terms:
            seen.append(batch.given)
            return super().terms(batch)

    watching = Watches(Config(), SPEC, schema)
    train_model(watching, Data("few", told, told, ""), given=["label", "age"], budget=6, recipe={"batch": 6, "hide": 0.0})
    columns = seen[0].columns
    pairs = {(int(a), "none" if b.isnan() else round(float(b), 4)) for a, b in zip(columns["label"], columns["age"], strict=True)}
    assert pairs == {(2, 0.0), (0, 1.0), (-1, 2.0), (2, 3.0), (0, "none"), (2, 5.0)}
    odd = dataclasses.replace(told, schema=Schema({**own.columns, "label": Category(("dots", "row"))}))
    with pytest.raises(ValueError, match="the model does not know the label 'row' of the data; did you mean 'rows'"):
        train_model(model, Data("few", odd, odd, ""), given=["label", "age"], budget=6)


def test_a_folder_named_like_a_model_is_not_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("vae").mkdir()
    assert plan.choose_model("vae", pictures(), "tiny", {}, 0)[0].card == catalog.get("vae").card
    with pytest.raises(ValueError, match="there is no file"):
        quick(Path("vae"))


def test_a_checkpoint_is_trained_further_as_a_copy(tmp_path: Path):
    first = quick("vae", preset="tiny", budget=32)
    artifact.save(first, tmp_path / "a")
    before = (tmp_path / "a" / artifact.WEIGHTS).read_bytes()
    again = quick(tmp_path / "a", budget=32)
    assert type(again) is type(first)
    assert not same(first.state_dict(), again.state_dict())
    assert (tmp_path / "a" / artifact.WEIGHTS).read_bytes() == before
    assert same(again.state_dict(), quick(str(tmp_path / "a" / artifact.WEIGHTS), budget=32).state_dict())


# -- budgets of time


class Sleepy(Sound):
    def terms(self, batch: Batch) -> Terms:
        time.sleep(0.01)
        return super().terms(batch)


def test_a_time_budget_becomes_a_number_of_images():
    """Ten milliseconds a step at the least: one second is at most 100 steps, and not far below."""
    run = started(Sleepy(Config(), SPEC, SCHEMA), images=0)
    before = {k: v.clone() for k, v in run.model.state_dict().items()}
    steps = images_for(run, 1.0) / 16
    assert steps == int(steps)
    assert 10 <= steps <= 100
    assert same(before, run.model.state_dict())
    assert run.images == 0


def test_a_time_budget_is_kept_recorded_and_repeated(tmp_path: Path):
    begin = time.perf_counter()
    done = quick(Sleepy(Config(), SPEC, SCHEMA), budget="1s", out=tmp_path / "a")
    assert 0.4 < time.perf_counter() - begin < 10  # the machine may be busy
    images = int(done.images_seen)
    about = saved(tmp_path / "a")[1]
    assert (about["budget"], about["identity"]["recipe"]["images"], about["images"]) == ("1s", images, images)
    assert f"| budget | 1s |\n| images | {images} |" in (tmp_path / "a" / artifact.CARD).read_text()
    again = quick(Sleepy(Config(), SPEC, SCHEMA), budget="1s", out=tmp_path / "a")  # done: nothing is measured or trained anew
    assert same(done.state_dict(), again.state_dict())
    assert same(done.state_dict(), quick(Sleepy(Config(), SPEC, SCHEMA), budget=images).state_dict())


# -- resuming


def stop_at(images: int, how: Callable[[], None]) -> Callable[[log.Event], None]:
    def on_event(event: log.Event) -> None:
        if event.kind == "progress" and event.images >= images:
            how()

    return on_event


def interrupt() -> None:
    raise KeyboardInterrupt


def crash() -> None:
    raise RuntimeError("the drawing failed")


@pytest.mark.parametrize(("how", "error"), [(interrupt, KeyboardInterrupt), (crash, RuntimeError)])
def test_what_stops_in_a_callback_is_saved_and_resumes_exactly(
    how: Callable[[], None], error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole = quick(out=tmp_path / "whole")
    monkeypatch.setattr(loop, "_LOG_S", 0.0)
    with pytest.raises(error):
        quick(out=tmp_path / "half", on_event=stop_at(80, how))
    assert saved(tmp_path / "half")[1]["images"] == 80
    events: list[log.Event] = []
    resumed = quick(out=tmp_path / "half", on_event=events.append)
    assert events[0].text == "160 images in batches of 16, resumed at 80"
    assert same(whole.state_dict(), resumed.state_dict())
    (a, about_a), (b, about_b) = saved(tmp_path / "whole"), saved(tmp_path / "half")
    assert same(a, b)
    assert about_a == about_b
    done = quick(out=tmp_path / "half")  # once more: it is finished and stays so
    assert same(whole.state_dict(), done.state_dict())


class Interrupted(Players):
    """Ctrl-C comes in the middle of a round, between the two players, or in the first one's terms as an exception."""

    signals = True

    def named(self, name: str) -> Callable[[Batch], Terms]:
        inner = super().named(name)

        def terms(batch: Batch) -> Terms:
            if batch.images == 64 and not getattr(self, "came", False):
                if self.signals and name == "second":
                    self.came = True
                    os.kill(os.getpid(), signal.SIGINT)
                elif not self.signals:
                    raise KeyboardInterrupt
            return inner(batch)

        return terms


class InterruptedByTerm(Interrupted):
    signals = False


@pytest.mark.parametrize(("cls", "images"), [(Interrupted, 80), (InterruptedByTerm, 64)])
def test_ctrl_c_within_a_round_is_saved_as_whole_rounds(cls: type[Interrupted], images: int, tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        quick(cls(Config(), SPEC, SCHEMA), out=tmp_path)
    assert saved(tmp_path)[1]["images"] == images
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    uninterrupted = started(Players(Config(), SPEC, SCHEMA), pictures().train)
    for _ in range(images // 16):
        uninterrupted.step()
    raw = {k.removeprefix("raw/"): v for k, v in saved(tmp_path)[0].items() if k.startswith("raw/")}
    assert same(raw, uninterrupted.model.state_dict())


def test_a_second_ctrl_c_does_not_wait():
    reached = []

    def steps() -> None:
        with stopping.whole_rounds():
            for i in range(3):
                os.kill(os.getpid(), signal.SIGINT)
                reached.append(i)

    with pytest.raises(KeyboardInterrupt):
        steps()
    assert reached == [0]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_thread_trains_as_the_main_one_does():
    found: list[Any] = []
    thread = threading.Thread(target=lambda: found.append(quick()))
    thread.start()
    thread.join()
    assert same(found[0].state_dict(), quick().state_dict())


def test_a_folder_that_cannot_be_written_is_found_out_before_training(tmp_path: Path):
    (tmp_path / "file").write_text("")
    begin = time.perf_counter()
    with pytest.raises(ValueError, match=r"nothing can be written to .*; choose another folder"):
        quick(Sleepy(Config(), SPEC, SCHEMA), budget="1h", out=tmp_path / "file" / "run")
    assert time.perf_counter() - begin < 1


STEPS, HALF = 200, 100
CHILD = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from nonesuch.core.degradation import Downsample
from test_train import HALF, loop, Sound, Config, SPEC, SCHEMA, STEPS, pictures, train_model
name, kill, *folders = sys.argv[2:]
loop._LOG_S, loop._SAVE_S = 0.0, 1e9

def on_event(event):
    if event.kind == "progress" and event.images == HALF * 16:
        loop._SAVE_S = 0.0
    if event.kind == "saved":
        os.kill(os.getpid(), signal.SIGKILL)

for out in folders:
    model, preset = (Sound(Config(), SPEC, SCHEMA), None) if name == "sound" else (name, "tiny")
    given = ["label", Downsample(2)] if name == "gan/pix2pix" else "label"
    train_model(model, pictures(), given=given, budget=STEPS * 16, preset=preset, recipe={"batch": 16}, out=out,
                on_event=on_event if kill == "kill" else None)
"""


def child(name: str, kill: str, *folders: Path) -> int:
    """Train in a process of its own, into each folder in turn; its exit status."""
    tests = Path(__file__).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}
    command = [sys.executable, "-c", CHILD, str(tests), name, kill, *map(str, folders)]
    done = subprocess.run(command, env=env, cwd=tests.parent, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def resumes_bit_for_bit(name: str, folder: Path) -> None:
    """200 steps equal 100, a SIGKILL, and a fresh process: weights, averages, optimizers, clock and the model that samples."""
    assert child(name, "kill", folder / "half") == -signal.SIGKILL
    assert saved(folder / "half")[1]["images"] == HALF * 16
    assert child(name, "", folder / "half", folder / "whole") == 0
    (whole, about), (half, about_half) = saved(folder / "whole"), saved(folder / "half")
    assert about == about_half
    assert about["images"] == STEPS * 16
    assert {k.split("/")[0] for k in whole} == {"raw", "mean", "optim"}
    assert whole.keys() == half.keys()
    assert [k for k in whole if not torch.equal(whole[k], half[k])] == []
    assert (folder / "whole" / artifact.WEIGHTS).read_bytes() == (folder / "half" / artifact.WEIGHTS).read_bytes()


def test_200_steps_equal_100_a_kill_and_100(tmp_path: Path):
    resumes_bit_for_bit("sound", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", catalog.names())
def test_every_model_of_the_catalogue_resumes_bit_for_bit(name: str, tmp_path: Path):
    resumes_bit_for_bit(name, tmp_path)
