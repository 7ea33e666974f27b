"""Energies: the dynamics against closed forms, the objectives against enumeration, and the model's promises."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

import nonesuch.core.artifact as artifact
from nonesuch import catalog
from nonesuch.core.given import Category, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Energy, Likelihood
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data import open as open_data
from nonesuch.evaluate.likelihood import bits_per_dim
from nonesuch.models.energy._langevin import gradient, langevin
from nonesuch.models.energy.recovery import PRESETS, Config, RecoveryLikelihood, recover
from nonesuch.train.device import place
from nonesuch.train.fit import fit

N = 20_000
LABELS = Schema({"label": Category(tuple("abc"))})


def normal(name: str, n: int = N, d: int = 1) -> Tensor:
    return Seeds((5,), (0,)).normal(name, n, d)[0]


def draws(d: int = 1, n: int = N):
    return lambda k: Seeds((7,), (0,)).normal("chain", n, d, step=k)[0]


def build(spec: ImageSpec, schema: Schema = LABELS, lively: bool = False, **changes: object) -> RecoveryLikelihood:
    """A tiny model marked as fitted; `lively` gives the layers that start at zero weights of their own."""
    model = catalog.build("energy", spec, schema, "tiny", **changes)
    model.images_seen.fill_(1)
    if lively:
        with torch.no_grad():
            for i, p in enumerate(model.parameters()):
                p.add_(0.1 / math.sqrt(p[0].numel() or 1) * Seeds((1,), (i,)).normal("lively", *p.shape)[0])
    return model


# -- Langevin dynamics -----------------------------------------------------------------------------------------------------


def test_langevin_reaches_the_mean_and_variance_of_a_gaussian_at_a_large_step():
    mean, var = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 2.0])
    eps = math.sqrt(0.8)  # plain Euler would end at 0.5 / (1 - 0.8 / 2) = 0.83 in the first coordinate

    def energy(k: int, x: Tensor) -> Tensor:
        return ((x - mean) ** 2 / (2 * var)).sum(1)

    *_, x = langevin(energy, torch.full((N, 2), 4.0), [eps] * 60, draws(2))
    assert torch.allclose(x.mean(0), mean, atol=4 * math.sqrt(2 / N))
    assert torch.allclose(x.var(0), var, rtol=4 * math.sqrt(2 / N))


def test_langevin_after_k_steps_has_the_law_of_its_recursion():
    a, eps, x0 = 1 - 0.3**2 / 2, 0.3, 3.0
    x = list(langevin(lambda k, x: 0.5 * (x**2).sum(1), torch.full((N, 1), x0), [eps] * 5, draws()))
    weights = [sum(a ** (4 - j) * (0.5 if i in (j, j + 1) else 0) for j in range(5)) for i in range(6)]  # of each of six draws
    assert x[-1].mean().item() == pytest.approx(a**5 * x0, abs=4 * eps * 3 / math.sqrt(N))
    assert x[-1].var().item() == pytest.approx(eps**2 * sum(w * w for w in weights), rel=0.05)


def test_annealed_langevin_is_one_chain_and_leaves_no_graph():
    weight = torch.ones(1, requires_grad=True)
    states = list(langevin(lambda k, x: weight * (x**2).sum(1), torch.zeros(3, 2), [0.3, 0.2, 0.1], draws(2, 3)))
    assert len(states) == 3
    assert not states[-1].requires_grad
    assert weight.grad is None
    assert torch.equal(gradient(lambda x: (x**2).sum(1), torch.ones(2, 2)), torch.full((2, 2), 2.0))


# -- the objectives --------------------------------------------------------------------------------------------------------


def double_well(y: Tensor, theta: Tensor) -> Tensor:
    return (theta[0] * y**2 / 2 + theta[1] * torch.cos(2 * y))[..., 0]


def test_recovery_gradient_equals_the_exact_one_of_an_enumerated_partition_function():
    theta = torch.tensor([1.0, 1.5], requires_grad=True)
    spread, noisy, plus = 1.0, torch.tensor(0.6), torch.tensor([[2.0]])
    grid = torch.linspace(-6, 6, 4001)[:, None]
    log_z = torch.logsumexp(-double_well(grid, theta) - (grid[:, 0] - noisy) ** 2 / (2 * spread**2), 0)
    (exact,) = torch.autograd.grad(double_well(plus, theta)[0] + log_z, theta)  # of -log p(plus | noisy), up to constants

    start, t, eps = noisy.expand(N, 1), torch.tensor(spread), torch.tensor(0.4)
    minus = recover(lambda y: gradient(lambda at: double_well(at, theta), y), start, t, eps, 100, draws())
    (found,) = torch.autograd.grad(double_well(plus, theta)[0] - double_well(minus, theta).mean(), theta)
    assert torch.allclose(found, exact, atol=0.02)
    assert exact.abs().min() > 0.1


@pytest.mark.parametrize("shape", [{}, {"patch": 2, "depth": 1}, {"channels_at": (8, 12)}])
@pytest.mark.parametrize("size", [(6, 5), (4,), ()])
def test_the_slope_that_chains_follow_is_the_gradient_of_the_energy(shape: dict[str, object], size: tuple[int, ...]):
    spec = ImageSpec(2, size, axes={0: "", 1: "l", 2: "hw"}[len(size)], kind="continuous", levels=None)
    model = build(spec, lively=True, **shape).double()
    model.compute_dtype = torch.float64
    keys = Seeds.of(3, 5)
    y, sigma = keys.normal("y", 2, *size).double(), keys.uniform("sigma").double() + 0.2
    given = model.schema.given(5, {"label": ["a", "b", "c", None, "a"]})
    c = model._told(sigma, model.condition(given, 5, y.device)).detach()
    weights = model.network.frozen(torch.float64)
    exact = gradient(lambda at: model.energy_at(at, sigma, given), y)
    found = model._slope(y, sigma, c, weights)
    # The readout, and so the last step forward and the first one back, are in float32.
    assert torch.allclose(found, exact, rtol=1e-5, atol=1e-6)
    assert (exact - y / (1 + sigma.view(-1, *[1] * (y.dim() - 1)) ** 2)).abs().max() > 1e-3  # the network has its say


@pytest.mark.parametrize("loss", ["match", "recovery"])
def test_both_objectives_have_no_gradient_at_the_true_energy(loss: str):
    spec = ImageSpec(1, (2, 2), kind="continuous", levels=None)
    both = {"match": 0.0, "recovery": 0.0, loss: 1.0}
    model = build(spec, Schema(), share=1.0, chain=12, step_size=1.2, **both)  # g = 0: exact for standard normal images
    (readout,) = [p for n, p in model.named_parameters() if n.endswith("readout.weight")]
    (objective,) = model.objectives()

    def slope(variance: float, i: int) -> Tensor:
        keys = Seeds.of(i, 256)
        batch = Batch(math.sqrt(variance) * keys.normal("data", 1, 2, 2), model.schema.missing(256), keys)
        return torch.autograd.grad(objective.terms(batch).loss[loss], readout)[0].flatten()

    def significance(variance: float) -> float:
        rows = torch.stack([slope(variance, i) for i in range(24)])
        return float((rows.mean(0) / (rows.std(0) / math.sqrt(24) + 1e-12)).square().mean().sqrt())

    assert significance(1.0) < 2  # the root mean square of Student's statistics is near 1
    assert significance(0.2) > 4  # and it is seen when the images are of another law


def test_match_gradient_in_bf16_is_near_that_in_fp32():
    keys, slopes = Seeds.of(0, 64), []
    model = build(ImageSpec(1, (8, 8), levels=17), lively=True, channels_at=(16, 32), recovery=0.0)
    batch = Batch(keys.uniform("data", 1, 8, 8) * 2 - 1, LABELS.missing(64), keys)
    for precision in ("fp32", "bf16"):
        place(model, "cpu", precision)
        (objective,) = model.objectives()
        loss = objective.terms(batch).loss["match"]
        assert loss.dtype == torch.float32
        slopes.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, objective.parameters)]))
    assert torch.cosine_similarity(*slopes, dim=0) > 0.99


# -- the model ---------------------------------------------------------------------------------------------------------------


def test_energy_of_a_gaussian_is_exact_before_training_and_so_are_its_samples():
    spec = ImageSpec(1, (4, 4), kind="continuous", levels=None)
    model = build(spec, Schema())
    model.prepare(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1).expand(2, 1, 4, 4), model.schema.missing(2))  # mean 3, deviation 2
    x = normal("x", 5, 16).view(5, 1, 4, 4)
    assert torch.allclose(model.energy(x), ((x - 3) / 2).flatten(1).square().sum(1) / (2 * (1 + 0.08**2)))
    drawn = model.sample(2000, seeds=0, steps=200)
    assert drawn.mean().item() == pytest.approx(3, abs=4 * 2 / math.sqrt(32000))
    assert drawn.std().item() == pytest.approx(2, rel=0.03)


def test_a_short_fit_puts_data_below_noise():
    data = open_data("digits")
    model = fit("energy", data, given="label", budget=8_000, preset="tiny", recipe={"batch": 100, "lr": 3e-3})
    given = data.test.select(["label"]).given
    real = model.energy(data.test.x, given)
    seeds = Seeds.of(0, len(real))
    uniform = data.spec.snap(seeds.uniform("noise", 1, 8, 8) * 2 - 1)
    shuffled = data.test.x.flatten(1).gather(1, seeds.uniform("order", 64).argsort(1)).view_as(data.test.x)
    noisy = data.spec.snap(data.test.x + 0.3 * seeds.normal("near", 1, 8, 8))
    with torch.no_grad():
        for noise, share in ((uniform, 0.99), (shuffled, 0.99), (noisy, 0.9)):
            assert (real < model.energy(noise, given)).float().mean() > share
    assert real.dtype == torch.float32
    assert isinstance(model, Energy)
    assert not isinstance(model, Likelihood)
    with pytest.raises(ValueError, match="bits per dimension"):
        bits_per_dim(model, data.test)


def test_energy_is_differentiable_in_x_and_given_matters():
    model = build(ImageSpec(3, (5, 7)), lively=True)
    x = (normal("x", 2, 105).view(2, 3, 5, 7) / 4).clamp(-1, 1).requires_grad_()
    (grad,) = torch.autograd.grad(model.energy(x, LABELS.given(2, {"label": "a"})).sum(), x)
    step = 1e-2 * grad / grad.norm()
    with torch.no_grad():
        change = model.energy(x + step) - model.energy(x - step)
        a, b = (model.energy(x, LABELS.given(2, {"label": name})) for name in "ab")
        assert not torch.allclose(a, b)
    (plain,) = torch.autograd.grad(model.energy(x).sum(), x)
    assert change.sum().item() == pytest.approx(2 * float((plain * step).sum()), rel=1e-2)


def test_an_image_does_not_depend_on_its_batch_and_sampling_is_pure():
    model = build(ImageSpec(1, (8, 8), levels=17), lively=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    torch.manual_seed(3)
    state = torch.get_rng_state()
    together = [s.x for s in model.sample_steps(6, {"label": "b"}, seeds=4, steps=20)]
    for i in range(6):
        alone = [s.x for s in model.sample_steps(1, {"label": "b"}, seeds=Seeds((4,), (i,)), steps=20)]
        assert max(float((a - t[i : i + 1]).abs().max()) for a, t in zip(alone, together, strict=True)) < 1e-4
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_nothing_but_weights_is_needed_to_resume_and_a_loaded_model_draws_the_same(tmp_path: Path):
    model = build(ImageSpec(1, (6, 6), levels=9), lively=True)
    assert model.transient == ()  # chains start anew from each batch: there is no replay buffer
    artifact.save(model, tmp_path / "energy", {})
    again = catalog.load(tmp_path / "energy")
    assert torch.equal(again.sample(3, {"label": "c"}, seeds=1, steps=8), model.sample(3, {"label": "c"}, seeds=1, steps=8))


@pytest.mark.parametrize(
    ("axes", "size", "channels_at"), [("hw", (5, 8), (8, 16)), ("l", (9,), (8,)), ("dhw", (4, 4, 3), (8, 16)), ("", (), ())]
)
def test_every_axes_trains_and_samples(axes: str, size: tuple[int, ...], channels_at: tuple[int, ...]):
    spec = ImageSpec(2, size, axes, levels=5)
    model, keys = build(spec, lively=True, channels_at=channels_at, dropout=0.2), Seeds.of(0, 8)
    batch = Batch(spec.snap(keys.uniform("x", *spec.shape) * 2 - 1), LABELS.missing(8), keys)
    (objective,) = model.objectives()
    grads = torch.autograd.grad(sum(objective.terms(batch).loss.values()), objective.parameters)
    assert all(torch.isfinite(g).all() for g in grads)
    x = model.sample(3, {"label": ["a", "b", None]}, steps=4)
    assert torch.equal(x, spec.snap(x))


def test_presets_build_at_their_sizes():
    for side, params in ((8, 3e6), (32, 12e6), (64, 20e6)):
        model = catalog.build("energy", ImageSpec(3, (side, side)), Schema())
        assert sum(p.numel() for p in model.parameters()) < params
    assert set(PRESETS) == {"tiny", "px16", "px32", "px64"}


def test_refusals_say_what_to_do():
    with pytest.raises(ValueError, match="autoregressive"):
        RecoveryLikelihood(Config(), ImageSpec(1, (4,), "l", kind="categorical", levels=8), Schema())
    with pytest.raises(ValueError, match="sigma_min"):
        RecoveryLikelihood(Config(sigma_min=6.0), ImageSpec(1, (4, 4)), Schema())
    with pytest.raises(ValueError, match="nothing would be learned"):
        RecoveryLikelihood(Config(match=0, recovery=0), ImageSpec(1, (4, 4)), Schema())
    with pytest.raises(ValueError, match="steps >= 2"):
        build(ImageSpec(1, (4, 4))).sample(1, steps=1)
