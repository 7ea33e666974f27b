"""Private training: gradients picture by picture, what one picture can move, sampling, noise, accounting, and what is refused."""

import dataclasses
import json
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken import Config, Sound
from torch import Tensor, nn
from torch.func import functional_call
from typer.testing import CliRunner

from nonesuch import catalog
from nonesuch.catalog import load
from nonesuch.core.artifact import save
from nonesuch.core.given import Category, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.data.arrays import from_array
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.data.poisson import PoissonBatches
from nonesuch.testing import SCHEMA, SPEC, stripes
from nonesuch.train import accounting, checkpoint, private
from nonesuch.train.fit import fit
from nonesuch.train.private import PrivateRun
from nonesuch.train.private_gradients import Pictures, Row, Single
from nonesuch.train.private_limits import require
from nonesuch.train.recipe import Private, Recipe
from nonesuch.train.run import Run

SECRET, ASKED = 0x5EC2E7, Private(8.0, 1e-3)


class Small(Sound):
    """A network of two layers that takes noise away; its loss is a mean over rows, its noise keyed."""

    scale = 1.0

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(3 * 64, 64))

    def terms(self, batch: Batch) -> Terms:
        noise = batch.keys.normal("noise", *batch.x.shape[1:]).to(batch.x.dtype)
        guess = self.net(batch.x + 0.1 * noise).view_as(batch.x) + self.out(self.embed(batch.given, len(batch.x), self.device))[
            :, : batch.x[0].numel()
        ].view_as(batch.x)
        error = (guess - batch.x).square().flatten(1).mean(1)
        return Terms({"error": self.scale * error.mean(), "size": 1e-3 * guess.square().mean()})


class Players(Small):
    """Two players, of whom neither learns anything."""

    def objectives(self) -> list[Objective]:
        first, second = list(self.net.parameters()), [*self.embed.parameters(), *self.out.parameters()]
        return [Objective("first", first, self.nothing), Objective("second", second, self.nothing)]

    def nothing(self, batch: Batch) -> Terms:
        return Terms({"nothing": sum(p.sum() for p in self.parameters()) * 0.0})


def small(cls: type[Small] = Small, **attributes: Any) -> Small:
    model = cls(Config(), SPEC, SCHEMA)
    for name, value in attributes.items():
        setattr(model, name, value)
    return model


def pictures(n: int = 40) -> Data:
    train = stripes(n)
    return Data("stripes", train, stripes(8, name="test"), fingerprint(train))


def started(model: Any = None, data: Images | None = None, noise: float = 1.0, **recipe: Any) -> PrivateRun:
    run = PrivateRun(model or small(), data or stripes(40), Recipe(**{"images": 160, "batch": 16, "private": ASKED, **recipe}))
    run.multiplier = noise
    run.seal(SECRET)
    return run


def batch_of(n: int, dtype: torch.dtype = torch.float64, images: Images | None = None) -> Batch:
    some = (images or stripes(max(1, n)))[:n]
    return Batch(some.x.to(dtype), some.given, Seeds((SECRET,) * n, tuple(range(5, 5 + n))), 3, 10)


def flat(grads: list[Tensor], start: int = 0) -> Tensor:
    return torch.cat([g.flatten(start) for g in grads], start)


def near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).norm() <= tolerance * b.norm())


# -- gradients of single pictures


def test_gradients_are_those_of_single_pictures():
    model, batch = small().double(), batch_of(9)
    (objective,) = model.objectives()
    found = flat(Pictures(model, objective).gradients(batch), 1)
    for i in range(9):
        one = Batch(batch.x[i : i + 1], batch.given[i : i + 1], batch.keys[i : i + 1])
        alone = torch.autograd.grad(sum(objective.terms(one).loss.values()), objective.parameters)
        assert (found[i] - flat(list(alone))).abs().max() < 1e-10
    assert near(
        found.mean(0), flat(list(torch.autograd.grad(sum(objective.terms(batch).loss.values()), objective.parameters))), 1e-10
    )


def test_gradients_are_those_of_opacus():
    pytest.importorskip("opacus")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on hooks
        from opacus import GradSampleModule

        model, batch = small().double(), batch_of(7)
        clean = dataclasses.replace(batch, keys=Seeds((0,) * 7, tuple(range(7))))
        theirs = GradSampleModule(nn.Sequential(*[type(m)(*a) if a else type(m)() for m, a in _layers(model)]).double())
        theirs._module.load_state_dict(model.net.state_dict())
        x = clean.x + 0.1 * clean.keys.normal("noise", *SPEC.shape).double()
        base = model.out(model.embed(clean.given, 7, model.device))[:, :64].view_as(x).detach()
        guess = theirs(x).view_as(x) + base
        ((guess - clean.x).square().flatten(1).mean(1).mean() + 1e-3 * guess.square().mean()).backward()
    (objective,) = model.objectives()
    ours = dict(zip(Pictures(model, objective).names, Pictures(model, objective).gradients(clean), strict=True))
    for name, p in theirs._module.named_parameters():
        assert near(ours[f"model.net.{name}"], p.grad_sample, 1e-10)


def _layers(model: Small) -> Iterator[tuple[nn.Module, tuple[Any, ...]]]:
    conv, tanh, flatten, line = model.net
    yield from ((conv, (1, 3, 3, 1, 1)), (tanh, ()), (flatten, ()), (line, (192, 64)))


@pytest.mark.parametrize(
    ("name", "config", "together"),
    [
        ("vae/vdvae", {}, True), ("vae/vqvae", {"codebook": "gradient"}, True), ("diffusion/edm", {}, True),
        ("flow/nsf", {}, True), ("autoregressive", {}, True),
        ("diffusion/dit", {}, True), ("flow/glow", {}, False), ("energy", {}, False),
        ("gan/r3gan", {}, False),
    ],
)  # fmt: skip
def test_every_family_is_taken_picture_by_picture(name: str, config: dict[str, Any], together: bool):
    model = catalog.build(name, SPEC, SCHEMA, "tiny", **config)
    with torch.no_grad():
        for p in model.parameters():  # none at its zero, from where no gradient passes
            p.add_(0.02 * Seeds((1,), (0,)).normal("move", *p.shape)[0])
    batch = batch_of(4, torch.float32)
    for objective in model.objectives():
        ways = Pictures(model, objective)
        found = flat(ways.gradients(batch), 1)
        one = Single(batch.x[2:3], batch.given[2:3], batch.keys[2:3], batch.images, batch.total)
        alone = torch.autograd.grad(sum(objective.terms(one).loss.values()), objective.parameters, allow_unused=True)
        alone = [torch.zeros_like(p) if g is None else g for p, g in zip(objective.parameters, alone, strict=True)]
        assert ways.together is together
        assert near(found[2], flat(alone), 1e-3)
        assert not near(found[1], found[2], 0.05)


def test_each_picture_draws_under_its_own_key_within_a_transformation():
    keys = Seeds((3, 4, 5), (7, 8, 9))
    for draw in (
        lambda k: k.normal("a", 2, 3), lambda k: k.uniform("b", 4, step=2), lambda k: k.integers("c", 9, 5),
        lambda k: k.keep("d", 0.3, 6), lambda k: k.bits("e", 3), lambda k: k.categorical(torch.zeros(1, 4, 7), "f"),
    ):  # fmt: skip
        found = torch.func.vmap(lambda i, draw=draw: draw(Row(keys, i)))(torch.arange(3))[:, 0]
        wanted = torch.cat([draw(keys[[i]]) for i in range(3)])
        assert torch.equal(found, wanted)


# -- what one picture can move


@contextmanager
def outlier(images: Images, which: int, by: float) -> Iterator[Images]:
    """The pictures, one of which is `by` times as bright as can be."""
    spec = dataclasses.replace(images.spec, kind="continuous", levels=None)
    x = images.x.clone()
    x[which] *= by
    yield dataclasses.replace(images, spec=spec, levels=x)


@pytest.mark.parametrize("by", [1.0, 1e3, 1e12])
@pytest.mark.parametrize("clip", [0.05, 1.0])
def test_no_picture_moves_the_sum_by_more_than_the_clip(by: float, clip: float):
    with outlier(stripes(10), 4, by) as images:
        model, batch = small().double(), batch_of(10, images=images)
    ways = Pictures(model, model.objectives()[0])
    whole = flat(ways.clipped_sum(batch, clip))
    rest = [i for i in range(10) if i != 4]
    without = flat(ways.clipped_sum(Batch(batch.x[rest], batch.given[rest], batch.keys[rest], 3, 10), clip))
    norms = flat(ways.gradients(batch), 1).norm(dim=1)
    assert float((whole - without).norm()) <= clip
    assert float((whole - without).norm()) == pytest.approx(min(clip, float(norms[4])), rel=1e-5)
    assert by == 1 or norms[4] > 10 * clip  # without the clip it would be moved by so much


def test_a_picture_that_is_not_finite_counts_as_nothing():
    model, batch = small().double(), batch_of(6)
    ways = Pictures(model, model.objectives()[0])
    wanted = flat(ways.clipped_sum(Batch(batch.x[1:], batch.given[1:], batch.keys[1:], 3, 10), 1.0))
    batch.x[0] = math.nan
    assert near(flat(ways.clipped_sum(batch, 1.0)), wanted, 1e-12)


def test_an_empty_batch_is_a_sum_of_zero():
    model = small()
    assert not flat(Pictures(model, model.objectives()[0]).clipped_sum(batch_of(0, torch.float32), 1.0)).any()


def test_a_run_is_moved_by_one_picture_within_the_clip_in_every_round():
    """Two runs on neighbours, of the same secret: their noisy gradients differ by the clip over the batch, and no more."""
    with outlier(stripes(40), 39, 1e6) as images:
        runs = [started(data=images, noise=0.5), started(data=images[:39], noise=0.5)]
    for run in runs:
        run.batches.rate = 0.5  # of the mechanism, not of its input
        run.optimizers[0].step = lambda grads, *rest, run=run: run.__dict__.setdefault("seen", []).append(flat(grads)) or grads[0]
        for _ in range(8):
            run.step()
    taken = [39 in runs[0].batches.sampled(t) for t in range(8)]
    moved = [float((a - b).norm()) for a, b in zip(runs[0].seen, runs[1].seen, strict=True)]
    assert any(taken)
    assert not all(taken)
    for there, by in zip(taken, moved, strict=True):
        assert by == pytest.approx(1 / 16 if there else 0.0, abs=1e-5)


# -- sampling


def test_sampling_is_poissons():
    """Every picture is in by a coin of its own: the right mean and variance of sizes, and pairs as often as chance has it."""
    batches, rounds = PoissonBatches(stripes(400), 40, SECRET), 500
    taken = torch.zeros(rounds, 400)
    for t in range(rounds):
        taken[t, batches.sampled(t)] = 1
    sizes = taken.sum(1)
    assert abs(float(sizes.mean()) - 40) < 4 * math.sqrt(36 / rounds)
    assert float(sizes.var()) == pytest.approx(36, rel=4 * math.sqrt(2 / rounds))
    assert float(taken.mean(0).sub(0.1).square().mean()) == pytest.approx(0.09 / rounds, rel=0.3)  # no picture is favoured
    together = (taken.T @ taken / rounds)[torch.triu(torch.ones(400, 400), 1) == 1]
    assert float(together.mean()) == pytest.approx(0.01, rel=0.02)


def test_sampling_is_a_function_of_the_secret_and_the_round_and_of_no_other_picture():
    images, changed = stripes(60), stripes(60)
    changed.levels[7] = 0
    a, b = PoissonBatches(images, 20, SECRET, 0.3), PoissonBatches(changed, 20, SECRET, 0.3)
    other = PoissonBatches(images, 20, SECRET + 1, 0.3)
    assert [a.sampled(t).tolist() for t in (3, 1, 3)] == [b.sampled(t).tolist() for t in (3, 1, 3)]
    assert a.sampled(3).tolist() != a.sampled(4).tolist()
    assert a.sampled(3).tolist() != other.sampled(3).tolist()
    for t in range(5):
        one, two = a.at(t), b.at(t)
        keep = torch.tensor([i & 0xFFFFFFFF != 7 for i in one.keys.index])
        assert torch.equal(one.x[keep], two.x[keep])
        assert torch.equal(one.given.columns["label"], two.given.columns["label"])
        assert one.keys == two.keys
        assert torch.equal(one.x, images.x[a.sampled(t)])


def test_all_pictures_are_in_a_batch_as_large_as_they_are_many():
    assert PoissonBatches(stripes(30), 30, SECRET).sampled(9).tolist() == list(range(30))


def test_conditions_are_hidden_and_pictures_moved_at_random():
    batches = PoissonBatches(stripes(200), 200, SECRET, hide=0.25, augment=("flip",))
    seen = [batches.at(t) for t in range(10)]
    hidden = torch.cat([b.given.columns["label"] for b in seen]) < 0
    assert float(hidden.float().mean()) == pytest.approx(0.25, abs=0.04)
    moved = torch.stack([(b.x != batches.images.x).flatten(1).any(1) for b in seen]).float()
    assert float(moved.mean()) == pytest.approx(0.5, abs=0.06)


def test_a_condition_made_of_the_picture_is_made_under_its_key():
    from nonesuch.core.degradation import Noise

    images = stripes(40).select(["label", Noise(0.3)])
    batches = PoissonBatches(images, 16, SECRET, hide=0.5)
    batch = batches.at(2)
    made, label = batch.given.columns["noise"], batch.given.columns["label"]
    assert list(batch.given.columns) == ["label", "noise"]
    assert torch.equal(made[label >= 0], Noise(0.3)(batch.x, batch.keys)[label >= 0])
    assert made[label < 0].isnan().all()
    assert 0 < int((label < 0).sum()) < len(label)


def test_a_run_goes_on_through_empty_batches():
    run = started(batch=1, images=12)
    sizes = [len(run.batches.sampled(t)) for t in range(8)]
    before = run.state()["raw/out.weight"].clone()
    for _ in range(8):
        run.step()
    assert 0 in sizes
    assert max(sizes) > 1
    assert (run.images, run.rounds) == (8, 8)
    assert not torch.equal(run.state()["raw/out.weight"], before)  # noise is added to nothing, too


# -- noise


def test_the_noise_is_normal():
    z = started()._normal("a", torch.zeros(300, 200, dtype=torch.float64)).flatten()
    n = len(z)
    assert abs(float(z.mean())) < 4 / math.sqrt(n)
    assert float(z.var()) == pytest.approx(1, abs=4 * math.sqrt(2 / n))
    assert float((z**4).mean()) == pytest.approx(3, abs=4 * math.sqrt(96 / n))
    for at, share in ((1, 0.158655), (2, 0.022750), (3, 0.0013499)):
        assert float((z > at).double().mean()) == pytest.approx(share, abs=4 * math.sqrt(share / n))


@pytest.mark.parametrize(("cls", "players"), [(Small, 1), (Players, 2)])
def test_the_noise_has_its_deviation_for_every_player_and_is_new_in_every_round(cls: type[Small], players: int):
    run = started(small(cls, scale=0.0), noise=1.5, private=Private(8.0, 1e-3, clip=0.2))
    seen: list[Tensor] = []
    for optimizer in run.optimizers:
        optimizer.step = lambda grads, *rest: seen.append(flat(grads)) or grads[0]
    for _ in range(2):
        run.step()
    z = torch.cat(seen)
    assert float(z.std()) == pytest.approx(math.sqrt(players) * 1.5 * 0.2 / 16, rel=0.05)
    first, second = seen[0], seen[players]
    assert abs(float(torch.corrcoef(torch.stack([first, second]))[0, 1])) < 0.05


def test_without_noise_and_clip_it_is_ordinary_training():
    recipe = {"batch": 40, "hide": 0.0, "images": 400, "decay": "constant"}
    ours, theirs = started(noise=0.0, private=Private(8.0, 1e-3, clip=1e6), **recipe), Run(small(), stripes(40), Recipe(**recipe))
    theirs.batch = lambda: dataclasses.replace(ours.batches.at(theirs.rounds), total=400)  # the same pictures, the same keys
    for _ in range(6):
        ours.step()
        theirs.step()
    for name, p in theirs.model.named_parameters():
        assert torch.allclose(dict(ours.model.named_parameters())[name], p, atol=2e-5), name
    assert ours.images == theirs.images == int(ours.model.images_seen)


# -- the secret, and resuming


def test_a_run_that_goes_on_is_the_run_that_did_not_stop(tmp_path: Path):
    whole, half = started(), started()
    for _ in range(6):
        whole.step()
    for _ in range(3):
        half.step()
    checkpoint.save(half, tmp_path)
    again = PrivateRun(small(), stripes(40), half.recipe)  # with another secret, until it takes that of the first
    again.multiplier = 1.0
    checkpoint.load(again, tmp_path)
    for _ in range(3):
        again.step()
    assert again.secret == SECRET
    ours, theirs = again.state(), whole.state()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_the_secret_is_new_in_every_run_and_stays_out_of_the_published_files(tmp_path: Path):
    runs = [PrivateRun(small(), stripes(40), started().recipe) for _ in range(2)]
    assert runs[0].secret != runs[1].secret
    run = started()
    run.seal((1 << 119) + 987654321987654321)
    run.step()
    checkpoint.save(run, tmp_path)
    found = checkpoint.find(tmp_path)
    assert found
    assert found.tensors["private/secret"].numel() == 2
    again = started()
    again.restore(found.tensors)
    assert again.secret == run.secret
    words = [str(w) for w in (run.secret, run.secret >> 60, run.secret & ((1 << 60) - 1))]
    published = b"".join((tmp_path / name).read_bytes() for name in ("config.json", "README.md", "model.safetensors"))
    assert not any(word.encode() in published or int(word).to_bytes(16, "little").rstrip(b"\0") in published for word in words)


# -- accounting


@pytest.fixture
def opacus() -> None:
    pytest.importorskip("opacus")


def gaussian(noise: float, rounds: int, delta: float) -> float:
    """epsilon of the Gaussian mechanism without sampling: mu = sqrt(T) / s (Dong, Roth, Su, 2019, corollary 1)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    mu = math.sqrt(rounds) / noise
    return float(brentq(lambda e: norm.cdf(-e / mu + mu / 2) - math.exp(e) * norm.cdf(-e / mu - mu / 2) - delta, 0, 500))


@pytest.mark.usefixtures("opacus")
@pytest.mark.parametrize(("noise", "rounds", "delta"), [(8.0, 50, 1e-4), (30.0, 400, 1e-5), (2.0, 1, 1e-3)])
def test_without_sampling_epsilon_is_its_closed_form(noise: float, rounds: int, delta: float):
    wanted = gaussian(noise, rounds, delta)
    assert wanted <= accounting.spent(noise, 1.0, rounds, delta).epsilon <= 1.006 * wanted


@pytest.mark.slow
@pytest.mark.usefixtures("opacus")
def test_epsilon_of_published_settings():
    """The moments accountant's 1.26 (Abadi et al., 2016, section 3.2), and the 3.01 of TensorFlow Privacy's tutorial."""
    from opacus.accountants.analysis.rdp import compute_rdp

    orders = np.arange(2, 64)
    for noise, rate, rounds, published in ((4.0, 0.01, 10_000, 1.26), (1.1, 256 / 60_000, 14_063, 3.01)):
        moments = compute_rdp(q=rate, noise_multiplier=noise, steps=rounds, orders=orders) + math.log(1e5) / (orders - 1)
        assert float(moments.min()) == pytest.approx(published, abs=0.02)
        assert 0.7 * published < accounting.spent(noise, rate, rounds, 1e-5).epsilon < published


SETTINGS = [(0.7, 0.01, 3000, 1e-5), (1.0, 128 / 1400, 1000, 1400**-1.1), (0.5, 0.001, 1000, 1e-6), (3.0, 0.2, 200, 1e-4)]
MORE = [(4.0, 0.01, 10_000, 1e-5), (0.6, 256 / 60_000, 2000, 5e-6), (50.0, 0.5, 1000, 1e-5), (0.8, 0.001, 20_000, 1e-6)]


def transformed(noise: float, rate: float, rounds: int, delta: float, span: float = 40.0, n: int = 1 << 19) -> float:
    """epsilon by the law of the privacy loss on a grid, composed by its Fourier transform: the worse of added and removed."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    t = np.linspace(-12 * noise, 12 * noise + 1, 400_001)
    middle = (t[1:] + t[:-1]) / 2
    loss = np.log1p(rate * np.expm1((2 * middle - 1) / (2 * noise**2)))
    without, there = (np.diff(norm.cdf(t, at, noise)) for at in (0, 1))
    grid, found = (np.arange(n) - n // 2) * (2 * span / n), []
    for value, mass in ((loss, (1 - rate) * without + rate * there), (-loss, without)):
        place = np.clip(value / (2 * span / n) + n // 2, 0, n - 2)
        low = place.astype(int)  # shared between neighbours so that the mean stays
        law = np.bincount(low, mass * (1 - place + low), n) + np.bincount(low + 1, mass * (place - low), n)
        total = np.fft.fftshift(np.fft.irfft(np.fft.rfft(np.fft.ifftshift(law)) ** rounds, n))

        def over(epsilon: float, total: np.ndarray = total) -> float:
            return float((total * np.clip(-np.expm1(epsilon - grid), 0, None))[grid > epsilon].sum()) - delta

        found.append(brentq(over, 0, span / 2, xtol=1e-6))
    return float(max(found))


@pytest.mark.usefixtures("opacus")
@pytest.mark.parametrize("setting", [SETTINGS[0], *[pytest.param(s, marks=pytest.mark.slow) for s in [SETTINGS[3], *MORE[:3]]]])
def test_an_accountant_of_our_own_agrees(setting: tuple[float, float, int, float]):
    wanted = transformed(*setting)
    assert 0.999 * wanted <= accounting.spent(*setting).epsilon <= 1.005 * wanted
    assert transformed(0.97 * setting[0], *setting[1:]) > 1.01 * wanted  # it would see noise that is 3 % too little


@pytest.mark.usefixtures("opacus")
@pytest.mark.parametrize("setting", [SETTINGS[0], *[pytest.param(s, marks=pytest.mark.slow) for s in [*SETTINGS[1:], *MORE]]])
def test_a_second_accountant_agrees(setting: tuple[float, float, int, float]):
    second = pytest.importorskip("dp_accounting")
    from dp_accounting import pld

    noise, rate, rounds, delta = setting
    event = second.SelfComposedDpEvent(second.PoissonSampledDpEvent(rate, second.GaussianDpEvent(noise)), rounds)
    theirs = pld.PLDAccountant(value_discretization_interval=1e-4).compose(event).get_epsilon(delta)
    assert accounting.spent(*setting).epsilon == pytest.approx(theirs, rel=0.01)


@pytest.mark.usefixtures("opacus")
@pytest.mark.parametrize(
    "asked", [(8.0, 1e-3, 1.0, 4), pytest.param((8.0, 1e-3, 0.4, 10), marks=pytest.mark.slow),
              pytest.param((0.1, 1e-5, 0.01, 1000), marks=pytest.mark.slow),
              pytest.param((200.0, 1e-4, 0.1, 1000), marks=pytest.mark.slow)]
)  # fmt: skip
def test_the_noise_is_the_least_that_keeps_within_epsilon(asked: tuple[float, float, float, int]):
    epsilon, delta, rate, rounds = asked
    noise = accounting.noise_multiplier(epsilon, delta, rate, rounds)
    assert accounting.spent(noise, rate, rounds, delta).epsilon <= epsilon
    assert accounting.spent(noise / 1.01, rate, rounds, delta).epsilon > epsilon
    assert accounting.spent(noise, rate, rounds + 5, delta).epsilon > epsilon
    assert accounting.spent(noise, rate, 0, delta).epsilon == 0


def test_no_noise_keeps_nothing():
    assert accounting.spent(0.0, 0.1, 1, 1e-5).epsilon == math.inf


def test_without_opacus_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import sys

    monkeypatch.setitem(sys.modules, "opacus", None)
    with pytest.raises(ValueError, match=r"nonesuch\[private\]"):
        accounting.noise_multiplier(3.0, 1e-4, 0.3, 7)


# -- a whole run


@pytest.mark.usefixtures("opacus")
def test_what_is_published_says_what_was_spent_and_nothing_else_of_the_pictures(tmp_path: Path):
    events: list[Any] = []

    class Prepares(Small):
        def prepare(self, data: Tensor, given: Given) -> None:
            raise AssertionError("the pictures were looked at")

    train = stripes(40)
    schema = Schema({"label": Category(SCHEMA["label"].names, (0.5, 0.25, 0.25))})
    data = Data("stripes", dataclasses.replace(train, schema=schema), stripes(8, name="test"), fingerprint(train))
    recipe = {"batch": 40, "private": {"epsilon": 8.0, "delta": 1e-3}}
    model = fit(small(Prepares), data, given="label", budget=160, recipe=recipe, out=tmp_path, on_event=events.append)
    said = json.loads((tmp_path / "config.json").read_text())
    about = said["about"]
    assert 7.8 < about["epsilon"] <= 8
    assert about["epsilon"] == accounting.spent(about["noise multiplier"], about["sampling rate"], 4, about["delta"]).epsilon
    assert (about["sampling rate"], about["clip"]) == (1.0, 1.0)
    assert said["schema"]["label"]["frequencies"] == [1 / 3] * 3
    assert int(model.images_seen) == 160
    published = "".join((tmp_path / name).read_text() for name in ("config.json", "README.md"))
    assert data.fingerprint not in published
    for word in ("epsilon 7.9", "delta 0.001", "PRV", "added or removed", "Poisson", "not covered"):
        assert word in published, word
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert {k for line in logged for k in line} <= {
        "kind", "images", "total", "seconds", "images_per_s", "model_gradient", "text"
    }  # fmt: skip
    assert not any(e.look for e in events)


@pytest.mark.usefixtures("opacus")
def test_a_run_that_was_stopped_ends_as_the_one_that_was_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def run(name: str, stop: int, entropy: bytes) -> bytes:
        step, rounds = PrivateRun.step, []

        def counted(self: PrivateRun) -> dict[str, Tensor]:
            if len(rounds) == stop:
                raise KeyboardInterrupt
            rounds.append(self.rounds)
            return step(self)

        with monkeypatch.context() as patch:
            patch.setattr(private.os, "urandom", lambda n: entropy * n)
            patch.setattr(PrivateRun, "step", counted)
            recipe = {"batch": 40, "private": {"epsilon": 8.0, "delta": 1e-3}}
            fit(small(), pictures(), given="label", budget=160, recipe=recipe, out=tmp_path / name)
        return (tmp_path / name / "model.safetensors").read_bytes()

    whole = run("whole", 9, b"\1")
    with pytest.raises(KeyboardInterrupt):
        run("stopped", 2, b"\1")
    about = json.loads((tmp_path / "stopped/config.json").read_text())["about"]
    assert "2 of 4 rounds" in about["privacy"]
    assert about["epsilon"] == accounting.spent(about["noise multiplier"], 1.0, 2, 1e-3).epsilon
    assert run("stopped", 9, b"\2") == whole  # the entropy of the second process is not used
    assert run("other", 9, b"\2") != whole


@pytest.mark.usefixtures("opacus")
def test_epsilon_is_that_of_the_rounds_that_were_done():
    run = PrivateRun(small(), stripes(40), Recipe(images=160, batch=40, private=ASKED))
    assert run.spent().epsilon == 0
    for _ in range(2):
        run.step()
    assert 0 < run.spent().epsilon < 8
    assert run.spent() == accounting.spent(run.noise(), run.batches.rate, 2, 1e-3)


@pytest.mark.usefixtures("opacus")
def test_the_command_line_asks_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nonesuch.cli import app
    from nonesuch.train import fit as module

    asked: list[Any] = []

    def stop(*_: Any, **options: Any) -> None:
        asked.append(options["recipe"])
        raise ValueError("enough.")

    monkeypatch.setattr(module, "fit", stop)
    CliRunner().invoke(app, ["fit", "vae", "digits", "--private", "epsilon=8, clip=0.5", "--out", str(tmp_path / "run")])
    assert asked == [{"private": {"epsilon": 8.0, "delta": None, "clip": 0.5}}]


def test_a_time_budget_is_measured_on_blank_pictures():
    seen: list[Tensor] = []

    class Looks(Small):
        def terms(self, batch: Batch) -> Terms:
            if not torch._C._functorch.is_functorch_wrapped_tensor(batch.x):
                seen.append(batch.x)
                assert (batch.given.columns["label"] < 0).all()
            return super().terms(batch)

    run = started(small(Looks))
    monkey = Pictures._at_once
    try:
        Pictures._at_once = lambda self, batch: (_ for _ in ()).throw(RuntimeError("one by one"))  # type: ignore[method-assign]
        images = private.images_for(run, 0.5)
    finally:
        Pictures._at_once = monkey  # type: ignore[method-assign]
    assert images % 16 == 0
    assert images >= 16
    assert seen
    assert all((x == -1).all() for x in seen)
    assert run.rounds == 0


# -- what is refused


class Batched(Small):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.norm = nn.BatchNorm2d(1)


class Remembers(Small):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.register_buffer("brightness", torch.zeros(()))

    def terms(self, batch: Batch) -> Terms:
        self.brightness.lerp_(batch.x.mean(), 0.1)
        return super().terms(batch)


class Replays(Small):
    transient = ("chain",)


def numbered() -> Data:
    train = stripes(40)
    schema = Schema({"age": Number(50.0, 12.0, (20.0, 50.0, 80.0))})
    images = dataclasses.replace(train, schema=schema, given=Given(40, {"age": torch.linspace(-2, 2, 40)}))
    return Data("ages", images, images, "print")


def arrays(dtype: Any) -> Data:
    x = np.random.default_rng(0).normal(size=(60, 8, 8)) * 100
    return from_array(x.astype(dtype))


PLAIN = {"given": "label", "budget": 160}
REFUSED: dict[str, tuple[Callable[[], tuple[Any, Data, dict[str, Any]]], str]] = {
    "batch normalisation": (lambda: (small(Batched), pictures(), PLAIN), "BatchNorm2d"),
    "a buffer that pictures change": (lambda: (small(Remembers), pictures(), PLAIN), "'brightness'"),
    "replay": (lambda: (small(Replays), pictures(), PLAIN), "chain"),
    "a codebook of running means": (lambda: ("vae/vqvae", pictures(), PLAIN), "config.codebook='gradient'"),
    "numbers scaled by their mean": (lambda: ("vae", numbered(), {"given": "age", "budget": 160}), "'age'"),
    "floats on their own range": (lambda: ("diffusion", arrays("float32"), {"budget": 160}), "smallest and largest"),
    "signed integers": (lambda: ("vae", arrays("int16"), {"budget": 160}), "smallest and largest"),
    "pictures held out": (lambda: (small(), pictures(), {**PLAIN, "recipe": {"held_out": 0.2}}), "held_out"),
    "several processes": (lambda: (small(), pictures(), {**PLAIN, "shard": True}), "several processes"),
    "another batch on the way": (lambda: (small(), pictures(), {**PLAIN, "allow_change": ("batch",)}), "'batch'"),
    "privacy that begins on the way": (lambda: (small(), pictures(), {**PLAIN, "allow_change": ("private",)}), "'private'"),
    "too large a delta": (lambda: (small(), pictures(), {**PLAIN, "recipe": {"private": {"epsilon": 8, "delta": 0.03}}}), "0.03"),
    "too large a batch": (lambda: (small(), pictures(), {**PLAIN, "recipe": {"batch": 41}}), "41"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_would_void_the_guarantee_is_refused_by_name(what: str):
    (model, data, options), said = REFUSED[what][0](), REFUSED[what][1]
    recipe = {"batch": 16, "private": {"epsilon": 8.0, "delta": 1e-3}, **options.get("recipe", {})}
    with pytest.raises(ValueError, match=r"^not private: ") as refused:
        fit(model, data, **{**options, "recipe": recipe})
    assert said in str(refused.value)
    assert str(refused.value).endswith(".")


def test_several_sizes_and_several_processes_are_refused():
    data, recipe = pictures(), Recipe(images=160, batch=16, private=ASKED)
    sizes = dataclasses.replace(data.train.spec, sizes=((8, 8), (8, 16)))
    bucketed = dataclasses.replace(data, train=dataclasses.replace(data.train, spec=sizes))
    with pytest.raises(ValueError, match="bucket"):
        require(small(), bucketed, recipe)
    with pytest.raises(ValueError, match="torchrun"):
        require(small(), data, recipe, world=2)
    require(small(), data, recipe)


def test_weights_that_come_from_the_same_pictures_are_refused(tmp_path: Path):
    fit("vae", pictures(), given="label", preset="tiny", budget=16, recipe={"batch": 16}, out=tmp_path)
    private_ = {"batch": 16, "private": {"epsilon": 8.0, "delta": 1e-3}}
    with pytest.raises(ValueError, match="same pictures"):
        fit(tmp_path, pictures(), given="label", budget=160, recipe=private_)
    require(small(), pictures(36), Recipe(images=160, batch=16, private=ASKED), source=tmp_path)  # of other pictures
    about = json.loads((tmp_path / "config.json").read_text())["about"]
    model = load(tmp_path)
    save(model, tmp_path / "alone", {k: v for k, v in about.items() if k != "fingerprint"})  # as a private run leaves it
    require(small(), pictures(), Recipe(images=160, batch=16, private=ASKED), source=tmp_path / "alone")
    (tmp_path / "steps").rename(tmp_path / "alone/steps")
    with pytest.raises(ValueError, match="same pictures"):
        require(small(), pictures(), Recipe(images=160, batch=16, private=ASKED), source=tmp_path / "alone")


def test_a_run_that_was_not_private_does_not_become_so(tmp_path: Path):
    fit(small(), pictures(), **PLAIN, recipe={"batch": 16}, out=tmp_path)
    with pytest.raises(ValueError, match=r"another run .*private"):
        fit(small(), pictures(), **PLAIN, recipe={"batch": 16, "private": {"epsilon": 8.0, "delta": 1e-3}}, out=tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("8", "epsilon=8"), ("delta=1e-5", "epsilon"), ("epsilom=8", "did you mean 'epsilon'"), ("epsilon=0", "epsilon > 0"),
        ("epsilon=8,delta=2", "delta < 1"), ("epsilon=nan", "epsilon > 0"), ("epsilon=8,clip=-1", "clip > 0"),
    ],
)  # fmt: skip
def test_what_is_no_privacy_is_refused(text: str, said: str):
    with pytest.raises(ValueError, match=said):
        Private.parse(text)


def test_asking_reads_what_is_written():
    assert Private.parse("epsilon=8, delta=1e-5,clip=0.5") == Private(8.0, 1e-5, 0.5)
    assert started(private=Private(8.0)).private.delta == pytest.approx(40**-1.1)


def test_the_terms_are_the_models_own():
    """The weights that stand in for the model's are taken by its code: a player's output moves with them."""
    model = small()
    ways = Pictures(model, model.objectives()[0])
    batch = batch_of(3, torch.float32)
    same = functional_call(ways.player, {}, (batch,))
    zeros = {name: torch.zeros_like(p) for name, p in zip(ways.names, model.parameters(), strict=False)}
    assert float(same.detach()) == pytest.approx(float(sum(model.terms(batch).loss.values()).detach()))
    assert float(functional_call(ways.player, zeros, (batch,))) != pytest.approx(float(same.detach()))
