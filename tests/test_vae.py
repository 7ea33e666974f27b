"""The variational autoencoder's truths: bounds below exact values, closed forms, codes that lead back, refusals."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.vae._ladder import Descent
from nonesuch.models.vae._pixels import Categorical, LogisticMixture
from nonesuch.models.vae.vdvae import VDVAE, Config

SCHEMA = Schema({"label": Category(("a", "b"))})


def disturbed(config: Config, spec: ImageSpec, schema: Schema = SCHEMA, amount: float = 0.3) -> VDVAE:
    """A model off its start, where prior and posterior are the same and nothing depends on the latents: every weight moved."""
    model = VDVAE(config, spec, schema)
    model.images_seen.fill_(1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(amount * Seeds.of(0, 1).normal(f"disturb/{name}", *p.shape)[0])
    return model


def all_images(spec: ImageSpec) -> Tensor:
    assert spec.levels is not None
    return spec.from_levels(torch.tensor(list(itertools.product(range(spec.levels), repeat=spec.numel)))).view(-1, *spec.shape)


def quadrature(model: VDVAE, x: Tensor, given: dict[str, str]) -> Tensor:
    """log p(x | given) (B,) by Gauss and Hermite's rule over every latent: for models of one or two."""
    import numpy as np

    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    total = model.latent_spec.channels
    grid = torch.tensor(list(itertools.product(nodes, repeat=total)), dtype=torch.float32)
    weight = torch.tensor(list(itertools.product(weights / math.sqrt(2 * math.pi), repeat=total))).prod(1).log()
    condition = model.schema.given(len(grid), given)
    with torch.no_grad():
        features = model._descend(grid, model._condition(condition, len(grid))).features
        rows = [model.pixels.log_prob(features, one.expand(len(grid), *one.shape)).double() + weight for one in x]
    return torch.stack(rows).logsumexp(1)


@pytest.mark.parametrize("blocks", [(0, 1), (0, 2)])
def test_the_bounds_stand_in_order_below_quadrature(blocks: tuple[int, ...]):
    spec = ImageSpec(1, (2, 2), levels=2)
    model = disturbed(Config(width=8, latents=1, blocks=blocks, dropout=0.0), spec, amount=0.12)
    x, given = all_images(spec), {"label": "b"}
    exact = quadrature(model, x, given)
    assert abs(float(exact.exp().sum()) - 1) < 1e-5  # quadrature sums to one over all images: it is exact

    def repeated(k: int, n: int, method: str = "iwae") -> tuple[Tensor, Tensor]:
        """Mean and standard error of n independent bounds of k draws."""
        nats = model.log_prob(x.repeat(n, 1, 1, 1), given, samples=k, method=method, seeds=k).nats.view(n, -1)
        return nats.mean(0), nats.std(0) / n**0.5

    (elbo, _), (one, error1), (many, error8) = repeated(1, 1000, "elbo"), repeated(1, 1000), repeated(8, 200)
    assert (elbo < exact - 1e-3).all()  # a posterior that is not the true one loses something
    assert (many <= exact + 3.5 * error8).all()
    assert (many >= elbo - 3.5 * error8).all()  # more draws never lose
    assert (many - one >= -3.5 * (error1 + error8)).all()
    assert ((elbo - one).abs() < 4 * error1 + 0.01).all()  # Eq. 1 in closed form is Eq. 2 with one draw, in the mean
    nearly = model.log_prob(x, given, samples=1000, seeds=1).nats
    torch.testing.assert_close(nearly, exact, atol=0.1, rtol=0)
    assert model.log_prob(x, given).kind == "bound"


def test_probabilities_under_the_bound_sum_to_at_most_one():
    spec = ImageSpec(1, (2, 2), levels=2)
    for blocks in [(1, 1), (0, 3)]:
        model = disturbed(Config(width=8, latents=2, blocks=blocks, dropout=0.0), spec, amount=0.1)
        for label in "ab":
            nats = model.log_prob(all_images(spec), {"label": label}, method="elbo", samples=64).nats
            assert 0.3 < float(nats.exp().sum()) <= 1.0


def test_an_untrained_model_is_uniform_to_the_last_digit():
    spec = ImageSpec(2, (3, 5), levels=7)
    model = VDVAE(Config(width=8, latents=2, blocks=(1, 1)), spec, Schema())
    model.images_seen.fill_(1)
    x = spec.from_levels(Seeds.of(0, 4).integers("x", 7, *spec.shape))
    for method in ("elbo", "iwae"):
        nats = model.log_prob(x, method=method, samples=3).nats
        torch.testing.assert_close(nats, torch.full((4,), -spec.numel * math.log(7), dtype=torch.float64), rtol=1e-6, atol=0)


def test_the_closed_kl_is_the_mean_of_the_drawn_ratio():
    m, log_s = torch.tensor([[0.7, -1.2, 0.0]]), torch.tensor([[-0.5, 0.3, 0.0]])
    noise = Seeds.of(0, 40_000).normal("e", 3)
    m, log_s = m.expand_as(noise), log_s.expand_as(noise)
    found = Descent(noise, m + log_s.exp() * noise, m, log_s)
    drawn = -found.log_ratio()
    assert abs(float(drawn.mean() - found.kl()[0].sum())) < 4 * float(drawn.std()) / 200
    q, p = torch.distributions.Normal(m[0], log_s[0].exp()), torch.distributions.Normal(0.0, 1.0)
    torch.testing.assert_close(found.kl()[0], torch.distributions.kl_divergence(q, p))
    assert float(found.kl()[0, 2]) == 0


@pytest.mark.parametrize("channels", [1, 2])
def test_a_mixture_of_logistics_sums_to_one_and_draws_what_it_says(channels: int):
    spec = ImageSpec(channels, (1, 1), levels=9)
    pixels = LogisticMixture(spec, 3)
    features = 2 * Seeds.of(3, 1).normal("features", pixels.width, 1, 1)
    x = all_images(spec)
    p = pixels.log_prob(features.expand(len(x), -1, -1, -1), x).double().exp()
    assert abs(float(p.sum()) - 1) < 1e-5
    n = 20_000
    drawn = pixels.draw(features.expand(n, -1, -1, -1), Seeds.of(0, n))
    index = (spec.to_levels(drawn).flatten(1) * 9 ** torch.arange(channels - 1, -1, -1)).sum(1)
    frequency = torch.bincount(index, minlength=len(x)) / n
    assert (frequency - p).abs().max() < 5 * 0.5 / n**0.5
    narrow = features * 0 - 60.0  # the smallest scale: no level's probability is zero, nothing overflows
    assert torch.isfinite(pixels.log_prob(narrow.expand(len(x), -1, -1, -1), x)).all()


def test_categorical_pixels_are_a_softmax():
    spec = ImageSpec(2, (2, 3), levels=5)
    pixels = Categorical(spec)
    features = Seeds.of(0, 6).normal("features", pixels.width, 2, 3)
    x = spec.from_levels(Seeds.of(1, 6).integers("x", 5, 2, 2, 3))
    reference = torch.distributions.Categorical(logits=features.view(6, 2, 5, 2, 3).movedim(2, -1))
    torch.testing.assert_close(pixels.log_prob(features, x), reference.log_prob(spec.to_levels(x)).flatten(1).sum(1))
    torch.testing.assert_close(pixels.mean(features), (reference.probs * spec.from_levels(torch.arange(5))).sum(-1))


def overfit(spec: ImageSpec, x: Tensor, steps: int = 100, **config: object) -> VDVAE:
    config = {"width": 32, "latents": 4, "blocks": (1, 1), "dropout": 0.0, "kl_warmup": 0.0, **config}
    model = VDVAE(Config(**config), spec, Schema())
    objective, optimizer = model.objectives()[0], torch.optim.Adam(model.parameters(), 4e-3)
    for i in range(steps):
        terms = objective.terms(Batch(x, Given(len(x)), Seeds.of(7, len(x), i * len(x)), i * len(x), steps * len(x)))
        optimizer.zero_grad()
        (terms.loss["reconstruction"] + 0.1 * terms.loss["kl"]).backward()
        optimizer.step()
    model.images_seen.fill_(steps * len(x))
    return model


def test_codes_lead_back_to_their_images():
    spec = ImageSpec(1, (5, 3), levels=17)  # odd sizes, patches that do not fit
    x = spec.from_levels(Seeds.of(0, 16).integers("x", 17, 1, 5, 3))
    model = overfit(spec, x, patch=2)
    z = model.encode(x, seeds=3)
    assert z.shape == (16, *model.latent_spec.shape)
    assert (model.decode(z) - x).abs().mean() < 0.15 * (x[:, None] - x[None]).abs().mean()
    torch.testing.assert_close(model.prior(5, seeds=2), Seeds.of(2, 5).normal("prior", model.top.total))
    mean = model.sample(5, seeds=2, pixels="mean")
    torch.testing.assert_close(mean, spec.snap(model.decode(model.prior(5, seeds=2))))  # a sample is a decoded prior
    z = z.clone().requires_grad_()
    assert float(torch.autograd.grad(model.decode(z).sum(), z)[0].abs().max()) > 0


def test_samples_have_the_model_s_own_frequencies():
    spec = ImageSpec(1, (2, 2), levels=2)
    model = disturbed(Config(width=8, latents=1, blocks=(0, 1), dropout=0.0), spec)
    p = quadrature(model, all_images(spec), {"label": "a"}).exp()
    n = 20_000
    index = (spec.to_levels(model.sample(n, {"label": "a"})).flatten(1) * torch.tensor([8, 4, 2, 1])).sum(1)
    assert (torch.bincount(index, minlength=16) / n - p).abs().max() < 5 * 0.5 / n**0.5


@pytest.mark.parametrize("spec", [
    ImageSpec(3, (6, 9), levels=256),
    ImageSpec(1, (4, 4, 4), "dhw", levels=4),
    ImageSpec(2, (7,), "l", "categorical", levels=11),
    ImageSpec(5, (), "", levels=4),
])  # fmt: skip
def test_pictures_of_every_shape(spec: ImageSpec):
    model = disturbed(Config(width=8, latents=2, blocks=(1, 1), patch=2, augment=0.9), spec, amount=0.05)
    levels = Seeds.of(0, 3).integers("x", spec.levels or 2, *spec.shape)
    x = spec.from_levels(levels)
    given = model.schema.given(3, {"label": ["a", None, "b"]})
    terms = model.objectives()[0].terms(Batch(x, given, Seeds.of(0, 3)))
    gradients = torch.autograd.grad(sum(terms.loss.values()), list(model.parameters()))
    assert all(torch.isfinite(g).all() for g in gradients)
    drawn = model.sample(3, {"label": "a"})
    assert torch.equal(spec.snap(spec.check(drawn)), drawn)
    assert model.decode(model.encode(x, given), given).shape == x.shape
    assert torch.isfinite(model.log_prob(x, given, samples=2).nats).all()


def test_what_cannot_be_done_is_refused_in_a_sentence():
    with pytest.raises(ValueError, match="grid of levels"):
        VDVAE(Config(), ImageSpec(4, (), "", "continuous", None), Schema())
    with pytest.raises(ValueError, match="a stochastic layer at the coarsest"):
        VDVAE(Config(blocks=(1, 0)), ImageSpec(1, (4, 4)), Schema())
    with pytest.raises(ValueError, match="ordered levels"):
        VDVAE(Config(likelihood="logistics"), ImageSpec(1, (4,), "l", "categorical", 9), Schema())
    model = disturbed(Config(width=8, blocks=(1,)), ImageSpec(1, (4, 4), levels=3))
    with pytest.raises(ValueError, match="elbo"):
        model.log_prob(torch.zeros(1, 1, 4, 4), method="exact")
    with pytest.raises(ValueError, match="temperature"):
        model.sample(1, pixels="sharp")
