"""Diffusion against truth: solvers and likelihoods fed with exact denoisers, and the trained object's promises."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import guided
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import batch_keys
from nonesuch.data.toy import GaussianMixture, TableOfImages, as_data, uniform_noise
from nonesuch.models.diffusion import _likelihood as likelihood
from nonesuch.models.diffusion._network import Folded
from nonesuch.models.diffusion._samplers import SAMPLERS, euler, heun, solve
from nonesuch.models.diffusion._schedule import NoiseLevels
from nonesuch.models.diffusion.edm import EDM

LEVELS = NoiseLevels(0.002, 20.0, 0.5)
SIX = ImageSpec(1, (8, 8), levels=17)
LABEL = Schema({"label": Category(("a", "b", "c"))})


def built(spec: ImageSpec = SIX, schema: Schema = LABEL, **config: object) -> EDM:
    """A tiny model that counts as fitted, its last layer moved off zero so that conditions and inputs matter."""
    model = catalog.build("diffusion/edm", spec, schema, "tiny", **config)
    assert isinstance(model, EDM)
    draws = Seeds.of(7, 1)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.1 * draws.normal("test", *p.shape, step=i)[0])
    model.images_seen.fill_(1)
    return model


# -- the toy densities themselves ------------------------------------------------------------------------------------------------


def test_the_mixture_agrees_with_scipy_autograd_and_its_own_samples():
    from scipy.stats import multivariate_normal

    toy = GaussianMixture.images(3, (1, 2, 2))
    x, _ = toy.sample(4000, seeds=1)
    modes = zip(toy.weights.tolist(), toy.means.flatten(1).numpy(), toy.covariances.numpy(), strict=True)
    density = sum(w * multivariate_normal(m, c).pdf(x.flatten(1).numpy()) for w, m, c in modes)
    torch.testing.assert_close(toy.log_prob(x), torch.from_numpy(np.log(density)))
    y = x[:5].clone().requires_grad_()
    (grad,) = torch.autograd.grad(toy.log_prob(y, 0.3).sum(), y)
    torch.testing.assert_close(toy.score(x[:5], 0.3), grad)
    torch.testing.assert_close(x.mean(0), toy.mean, atol=0.03, rtol=0)
    torch.testing.assert_close(torch.cov(x.flatten(1).T), toy.covariance, atol=0.03, rtol=0)


def test_the_mixture_denoises_as_conjugate_normals_do():
    mean, cov, sigma = torch.tensor([0.3, -0.2]).double(), torch.tensor([[0.5, 0.2], [0.2, 0.3]]).double(), 0.7
    y = torch.tensor([[1.0, -1.0], [0.0, 0.4]]).double()
    posterior = torch.linalg.inv(torch.linalg.inv(cov) + torch.eye(2) / sigma**2)
    expected = (torch.linalg.inv(cov) @ mean + y / sigma**2) @ posterior
    torch.testing.assert_close(GaussianMixture.normal(mean, cov).denoise(y, sigma), expected)


def test_the_table_sums_to_one_and_knows_its_images():
    table = TableOfImages.random(ImageSpec(1, (2, 2), levels=3), seed=2)
    assert len(table.images) == 81
    torch.testing.assert_close(table.log_prob(table.images), table.probabilities.log())
    torch.testing.assert_close(table.denoise(table.images[:9], 1e-3), table.images[:9].double())
    x = table.sample(20_000, 0)
    assert float(-table.log_prob(x).mean()) == pytest.approx(table.entropy, abs=0.03)
    uniform = TableOfImages.uniform(table.spec)
    assert uniform.entropy == pytest.approx(4 * math.log(3))
    levels = uniform.spec.to_levels(uniform_noise(ImageSpec(1, (30, 30), levels=3), 10))
    assert torch.bincount(levels.flatten()).tolist() == pytest.approx([3000] * 3, abs=200)


def test_toy_data_opens_as_data():
    data = as_data(GaussianMixture.ring(), 200, 50)
    assert (len(data.train), len(data.test)) == (150, 50)
    assert data.spec.kind == "continuous"
    assert data.schema.category()[0] == "mode"
    assert set(as_data(TableOfImages.uniform(ImageSpec(1, (2, 2), levels=2)), 100, 20).train.levels.unique().tolist()) == {0, 1}


# -- noise levels ----------------------------------------------------------------------------------------------------------------


def test_times_and_noise_levels_are_inverse_and_end_where_they_should():
    t = torch.linspace(0, 1, 11).double()
    torch.testing.assert_close(LEVELS.time(LEVELS.sigma(t)), t)
    steps = LEVELS.steps(5)
    assert (steps[0], steps[-1]) == (pytest.approx(20.0), pytest.approx(0.002))
    expected = (20 ** (1 / 7) + 0.25 * (0.002 ** (1 / 7) - 20 ** (1 / 7))) ** 7
    assert steps[1] == pytest.approx(expected)  # EDM, Eq. 5
    assert LEVELS.by_information(torch.tensor([0.0, 1.0])).tolist() == [pytest.approx(20.0), pytest.approx(0.002)]


def test_edm_loss_uniform_in_information_is_the_integral_of_the_likelihood():
    def error(sigma: Tensor) -> Tensor:
        return sigma**2 / (1 + 3 * sigma**2)

    grid = torch.linspace(math.log(0.002), math.log(20), 200_001).double()
    left = torch.trapezoid(error(grid.exp()) / grid.exp() ** 2, grid)
    sigma = LEVELS.by_information((torch.arange(100_000).double() + 0.5) / 100_000)
    right = LEVELS.information_range * (LEVELS.weight(sigma) * error(sigma)).mean()
    assert float(right) == pytest.approx(float(left), rel=1e-6)


# -- samplers --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_samplers_have_their_order(sampler: str, order: int):
    toy, levels = GaussianMixture.ring(3, deviation=0.3), NoiseLevels(0.2, 10.0)
    x = 10 * Seeds.of(0, 200).normal("x", 2).double()

    def end(name: str, n: int) -> Tensor:
        return list(solve(name, toy.denoise, x, levels.steps(n)))[-2]  # before the step to sigma = 0

    truth = end("heun", 1281)
    coarse, fine = (float((end(sampler, n + 1) - truth).square().mean().sqrt()) for n in (40, 80))
    assert math.log2(coarse / fine) == pytest.approx(order, abs=0.25)


@pytest.mark.parametrize(("sampler", "churn"), [("heun", 0.0), ("heun", 20.0), ("dpmpp_2m", 0.0), ("euler", 0.0)])
def test_samples_of_an_exact_denoiser_have_the_mean_and_covariance(sampler: str, churn: float):
    toy, n = GaussianMixture.images(3, (1, 2, 2)), 3000
    seeds = Seeds.of(3, n)
    x = 20 * seeds.normal("x", 1, 2, 2).double()
    steps = 200 if sampler == "euler" else 40
    *_, x = solve(sampler, toy.denoise, x, LEVELS.steps(steps), churn, lambda i: seeds.normal("churn", 1, 2, 2, step=i).double())
    error = toy.covariance.diagonal().sqrt() * 4 / math.sqrt(n)
    assert ((x.mean(0) - toy.mean).flatten().abs() < error + 0.005).all()
    torch.testing.assert_close(torch.cov(x.flatten(1).T), toy.covariance, atol=0.02, rtol=0)


def test_one_euler_step_is_the_denoised_image_and_no_churn_is_algorithm_1():
    toy, x = GaussianMixture.ring(), Seeds.of(0, 5).normal("x", 2).double()
    torch.testing.assert_close(next(euler(toy.denoise, x, [2.0])), toy.denoise(x, 2.0))
    a, b = (list(heun(toy.denoise, x, LEVELS.steps(6), 0.0, noise))[-1] for noise in (None, lambda i: torch.ones_like(x)))
    torch.testing.assert_close(a, b)


# -- likelihood ------------------------------------------------------------------------------------------------------------------


def gaussian(n: int) -> tuple[GaussianMixture, Tensor, Tensor, Tensor]:
    """A correlated normal of 4 pixels, n images of it, and the mean and variance of its noisiest latents."""
    toy = GaussianMixture.images(1, (1, 2, 2))
    return toy, toy.sample(n, 5)[0], toy.mean, toy.covariance.diagonal().view(1, 2, 2) + LEVELS.sigma_max**2


def test_the_bound_is_the_closed_form_on_a_gaussian():
    toy, x, mean, var = gaussian(4000)
    loss = likelihood.diffusion_term(toy.denoise, x, LEVELS, 32, Seeds.of(0, len(x)))
    z = x + LEVELS.sigma_min * Seeds.of(1, len(x)).normal("z", 1, 2, 2).double()
    decoder = likelihood.normal_log_prob(x, z, LEVELS.sigma_min**2)
    gap = toy.log_prob(x) - (decoder - loss - likelihood.prior_kl(x, LEVELS.sigma_max, mean, var))
    assert abs(float(gap.mean())) / (4 * math.log(2)) < 0.02


def test_the_flow_is_the_closed_form_on_a_gaussian():
    toy, x, mean, var = gaussian(2000)
    probe = Seeds.of(0, len(x)).integers("probe", 2, 1, 2, 2).double() * 2 - 1
    for divergence, some in ((likelihood.exact_divergence(toy.denoise), x[:50]), (likelihood.hutchinson(toy.denoise, probe), x)):
        found = likelihood.flow_log_prob(divergence, some, LEVELS, 32, mean, var)
        gap = (toy.log_prob(some, LEVELS.sigma_min) - found) / (4 * math.log(2))
        assert abs(float(gap.mean())) < 0.02
        assert len(some) > 50 or float(gap.abs().max()) < 0.02


def test_the_bound_of_a_table_is_below_its_probability_and_nearly_tight():
    table = TableOfImages.random(ImageSpec(1, (2, 2), levels=4), seed=1, sharpness=1.0)
    levels = NoiseLevels(0.15 * table.spec.step, 30.0, 0.7)
    x = table.sample(192, 3).double()
    loss = likelihood.diffusion_term(table.denoise, x, levels, 24, Seeds.of(0, len(x)))
    kl = likelihood.prior_kl(x, 30.0, torch.zeros(1, 2, 2), torch.full((1, 2, 2), 900.5).double())
    gap = (table.log_prob(x) + loss + kl) / (4 * math.log(2))  # at this sigma_min the decoder errs in less than 1e-3 of images
    error = float(gap.std()) / math.sqrt(len(x))
    assert float(gap.mean()) == pytest.approx(0, abs=0.02 + 2 * error)
    worse = likelihood.diffusion_term(lambda z, s: 0.9 * table.denoise(z, s), x, levels, 24, Seeds.of(0, len(x)))
    assert float(worse.mean()) > float(loss.mean())


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("method", ["bound", "ode"])
def test_uniform_noise_scores_no_better_than_its_entropy(levels: int, method: str):
    spec = ImageSpec(1, (4, 4), levels=levels)
    model = built(spec, Schema(), sigma_max=20.0)
    found = model.log_prob(uniform_noise(spec, 100), method=method, seeds=1)
    bits = -found.nats / (16 * math.log(2))
    assert found.kind == ("bound" if method == "bound" else "estimate")
    assert float(bits.mean()) >= math.log2(levels) - 3 * float(bits.std()) / 10


def test_an_untrained_model_is_the_exact_denoiser_of_independent_pixels():
    spec = ImageSpec(1, (3, 3), levels=3)
    x = torch.where(Seeds.of(0, 4000).uniform("x", 1, 3, 3) < 0.8, -1.0, 1.0)
    model = catalog.build("diffusion", spec, Schema(), "tiny")
    model.prepare(x, Schema().missing(len(x)))
    model.images_seen.fill_(1)
    bits = -model.log_prob(x[:1000], seeds=2).nats.mean() / (9 * math.log(2))
    entropy = -(0.8 * math.log2(0.8) + 0.2 * math.log2(0.2))
    assert float(bits) == pytest.approx(entropy, abs=0.03)
    assert float((model.sample(400) == -1).float().mean()) == pytest.approx(0.8, abs=0.04)


def test_a_continuous_model_has_a_density():
    model = built(ImageSpec(2, (), "", "continuous", None), Schema())
    model.prepare(torch.tensor([[3.0, 1.0], [5.0, -3.0]]).repeat(50, 1), Schema().missing(100))
    x = Seeds.of(0, 6).normal("x", 2) * 2
    found = [model.log_prob(x, method=m) for m in ("bound", "ode", "ode-exact")]
    assert [f.kind for f in found] == ["density"] * 3
    assert all(torch.isfinite(f.nats).all() for f in found)


# -- the model -------------------------------------------------------------------------------------------------------------------


def test_denoise_is_differentiable_and_takes_no_condition_as_all_missing():
    model = built()
    x = Seeds.of(0, 3).normal("x", 1, 8, 8).requires_grad_()
    t = torch.tensor([0.1, 0.5, 0.9])
    d = model.denoise(x, t)
    (grad,) = torch.autograd.grad(d.sum(), x)
    assert all(torch.isfinite(g).all() and float(g.abs().max()) > 0 for g in grad)
    torch.testing.assert_close(d, model.denoise(x, t, LABEL.missing(3)))
    assert not torch.allclose(d, model.denoise(x, t, LABEL.given(3, {"label": "b"})), atol=1e-3)
    alpha, sigma = model.schedule(t)
    assert alpha.tolist() == [1, 1, 1]
    assert sigma.tolist() == sorted(sigma.tolist())
    torch.testing.assert_close(model.levels.time(sigma), t)


def test_few_steps_of_noise_leave_the_image_as_it_is():
    """At sigma_min the grid is known, whatever the network says: Bayes' rule does the rest."""
    model = built()
    x = SIX.snap(Seeds.of(0, 4).uniform("x", 1, 8, 8) * 2 - 1)
    assert torch.equal(SIX.snap(model.denoise(x, torch.zeros(4))), x)


def test_guidance_of_one_is_none_and_more_moves_samples():
    model = built()
    plain = model.sample(3, {"label": "a"}, seeds=4)
    assert torch.equal(plain, guided(model, 1.0).sample(3, {"label": "a"}, seeds=4))
    assert not torch.equal(plain, guided(model, 4.0).sample(3, {"label": "a"}, seeds=4))
    assert torch.equal(plain, guided(model, 4.0).sample(3, {"label": "a"}, seeds=4, interval=(0.0, 0.0)))
    x, t, given = SIX.snap(plain), torch.full((3,), 0.6), LABEL.given(3, {"label": "a"})
    bare, conditional = model.denoise(x, t), model.denoise(x, t, given)
    torch.testing.assert_close(guided(model, 3.0).denoise(x, t, given), bare + 3 * (conditional - bare))  # type: ignore[attr-defined]


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_an_image_does_not_depend_on_its_batch(sampler: str):
    model, options = built(), {"sampler": sampler, "steps": 6, "churn": 8.0 if sampler == "heun" else 0.0}
    together = model.sample(4, {"label": list("abca")}, seeds=9, **options)
    alone = torch.cat([model.sample(1, {"label": c}, seeds=Seeds((9,), (i,)), **options) for i, c in enumerate("abca")])
    assert float((together == alone).float().mean()) > 0.99  # a rounding may tie
    assert torch.equal(SIX.snap(together), together)


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(3, (5, 7), levels=4), ImageSpec(1, (4, 4, 4), "dhw", levels=2), ImageSpec(2, (6, 4), levels=256),
        ImageSpec(4, (9,), "l", "continuous", None), ImageSpec(5, (), "", "continuous", None), ImageSpec(2, (), "", levels=9),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("patch", "fold"), [(0, 1), (0, 2), (2, 1), (9, 1)])
def test_every_shape_learns_samples_and_scores(spec: ImageSpec, patch: int, fold: int):
    schema = Schema({"age": Number()})
    sizes = {"mults": (1, 2), "attention": (False, False), "patch": patch, "fold": fold, "augment": patch / 10}
    model = catalog.build("diffusion", spec, schema, "tiny", steps=2, **sizes)
    x = Seeds.of(0, 6).normal("x", *spec.shape) if spec.levels is None else uniform_noise(spec, 6)
    given = schema.given(6, {"age": [1, 2, None, 3, 4, 5]})
    model.prepare(x, given)
    (objective,) = model.objectives()
    loss = sum(objective.terms(Batch(x, given, batch_keys(0, 0, 6))).loss.values())
    loss.backward()
    assert torch.isfinite(loss)
    model.images_seen.fill_(6)
    sample = model.sample(2, {"age": 3})
    assert sample.shape == (2, *spec.shape)
    assert torch.isfinite(model.log_prob(x, given).nats).all()


@pytest.mark.parametrize("size", [(7,), (5, 8), (3, 4, 5)])
@pytest.mark.parametrize("fold", [2, 3])
def test_folding_moves_pixels_and_loses_none(size: tuple[int, ...], fold: int):
    """Around a network that doubles what it sees; what is padded never comes back."""

    class Twice(torch.nn.Module):
        def forward(self, x: Tensor, c: Tensor, keys: Seeds | None) -> Tensor:
            assert x.shape == (2, 3 * fold ** len(size), *(-(-s // fold) for s in size))
            return 2 * x

    x = Seeds.of(0, 2).normal("x", 3, *size)
    assert torch.equal(Folded(Twice(), fold)(x, x), 2 * x)  # type: ignore[arg-type]


def test_without_levels_uniform_in_information_there_is_no_bound_to_tell_of():
    x, given = uniform_noise(SIX, 8), LABEL.given(8, {"label": list("abcabcab")})
    told = [built(log_normal=share).objectives()[0].terms(Batch(x, given, batch_keys(0, 0, 8))).watch for share in (0.5, 1.0)]
    assert ["diffusion_bits" in terms for terms in told] == [True, False]


def test_a_step_learns_every_parameter_and_the_same_randomness_gives_the_same_loss():
    model = built(dropout=0.2)
    x, given = uniform_noise(SIX, 8), LABEL.given(8, {"label": list("abcabcab")})
    (objective,) = model.objectives()
    first, second, other = (
        objective.terms(Batch(x, given, batch_keys(0, start, 8))).loss["squared_error"].item() for start in (0, 0, 8)
    )
    assert first == second != other
    hidden = Given(8, {"label": torch.tensor([0, 1, 2, -1] * 2)})
    grads = torch.autograd.grad(sum(objective.terms(Batch(x, hidden, batch_keys(0, 0, 8))).loss.values()), objective.parameters)
    assert all(float(g.abs().max()) > 0 for g in grads)


def test_what_it_cannot_do_it_refuses_in_a_sentence():
    with pytest.raises(ValueError, match="categorical images"):
        catalog.build("diffusion", ImageSpec(1, (4, 4), kind="categorical", levels=5), Schema(), "tiny")
    with pytest.raises(ValueError, match="one entry a resolution"):
        built(mults=(1, 2))
    with pytest.raises(ValueError, match="fold is a whole number"):
        built(fold=0)
    model = built()
    for options, message in [
        ({"sampler": "huen"}, "no sampler"), ({"steps": 0}, "at least 1"), ({"churn": -1.0}, "churn"),
        ({"sampler": "euler", "churn": 3.0}, "only heun"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.sample(1, **options)
    with pytest.raises(ValueError, match="bound, ode"):
        model.log_prob(torch.zeros(1, 1, 8, 8), method="exact")
