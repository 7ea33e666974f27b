"""The chain rule over pixels: sums over all pictures, causality, caching, completion, guidance, and the two heads."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import guided
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._heads import Categorical, Logistics, invert
from nonesuch.models.autoregressive._raster import Raster
from nonesuch.models.autoregressive.image_transformer import Drawing, ImageTransformer

LABEL = Schema({"label": Category(("a", "b"))})
EMPTY = Schema({})


def random_weights(spec: ImageSpec, schema: Schema = EMPTY, scale: float = 0.3, **config: object) -> ImageTransformer:
    """A tiny model with weights that are nowhere zero, so that every path counts."""
    model = catalog.build("autoregressive", spec, schema, "tiny", **{"depth": 2, **config})
    assert isinstance(model, ImageTransformer)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(scale * Seeds((7,), (0,)).normal(name, *p.shape)[0])
    model.images_seen.fill_(1)
    return model


def every_picture(spec: ImageSpec) -> Tensor:
    """All pictures of a tiny spec."""
    k = torch.tensor(list(itertools.product(range(spec.levels or 0), repeat=spec.numel)))
    return spec.from_levels(k.view(-1, *spec.shape))


SPECS = {
    "binary 2x2": ImageSpec(1, (2, 2), levels=2),
    "4 levels 2x2": ImageSpec(1, (2, 2), levels=4),
    "3 levels, 2 channels, 1x2": ImageSpec(2, (1, 2), levels=3),
    "tokens in a line": ImageSpec(1, (5,), "l", "categorical", 3),
    "token pairs": ImageSpec(2, (2, 1), "hw", "categorical", 4),
    "a vector": ImageSpec(4, (), "", "categorical", 3),
    "a volume": ImageSpec(1, (2, 2, 2), "dhw", levels=2),
    "many levels, 2 channels": ImageSpec(2, (1, 1), levels=65),
}


@pytest.mark.parametrize("name", SPECS)
def test_probabilities_of_all_pictures_sum_to_one(name: str):
    model = random_weights(SPECS[name], LABEL)
    x = every_picture(model.spec)
    for given in (None, {"label": "a"}):
        p = model.log_prob(x, given)
        assert p.kind == "exact"
        assert p.nats.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert p.nats.std() > 0.05  # and it is not the uniform distribution that was summed


def test_many_levels_mixture_sums_to_one_and_channels_depend_on_each_other():
    spec = ImageSpec(3, (1, 1), levels=256)
    head = Logistics(spec, 5)
    out = 2 * Seeds.of(0, 4).normal("out", head.size)
    k = Seeds.of(1, 4).integers("k", 256, 3)
    total = torch.zeros(4)
    for c in range(3):
        logits = head.logits(out, k, c)
        assert torch.allclose(logits.double().exp().sum(-1), torch.ones(4).double(), atol=1e-5)
        total = total + logits.gather(1, k[:, c, None])[:, 0]
    assert torch.allclose(total, head.log_prob(out[:, None], k[:, None])[:, 0], atol=1e-4)
    other = k.clone()
    other[:, 0] = 255 - other[:, 0]
    assert not torch.allclose(head.logits(out, k, 2), head.logits(out, other, 2), atol=1e-3)


def test_mixture_mass_is_the_integral_of_the_logistic_density():
    spec = ImageSpec(1, (1, 1), levels=256)
    head = Logistics(spec, 1)
    out = torch.tensor([[0.0, 0.1, 1.0]])  # weight, mean, log scale + log 4
    scale = math.exp(1.0 - math.log(4))
    edges = (torch.arange(255).double() * spec.step - 1 + spec.step / 2 - 0.1) / scale
    cdf = torch.cat([torch.zeros(1).double(), torch.sigmoid(edges), torch.ones(1).double()])
    found = head.logits(out, torch.zeros(1, 1, dtype=torch.int64), 0)[0].double()
    assert torch.allclose(found, cdf.diff().log(), atol=1e-4)


def test_mixture_gradients_are_finite_far_out():
    head = Logistics(ImageSpec(1, (1, 1), levels=65536), 2)
    out = torch.tensor([[[0.0, 0.0, 40.0, -40.0, -60.0, -60.0]]], requires_grad=True)
    for k in (0, 1, 32768, 65535):
        value = head.log_prob(out, torch.tensor([[[k]]]))
        (gradient,) = torch.autograd.grad(value.sum(), out)
        assert torch.isfinite(value).all()
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("levels", [17, 256])
def test_drawn_levels_have_the_heads_distribution(levels: int):
    spec = ImageSpec(1, (1, 1), levels=levels)
    head = Categorical(spec) if levels == 17 else Logistics(spec, 3)
    n = 40_000
    out = Seeds.of(3, 1).normal("out", head.size).expand(n, -1)
    k = torch.zeros(n, 1, dtype=torch.int64)
    drawn = head.draw(out, k, 0, Seeds.of(0, n).uniform("u", head.draws))
    p = head.logits(out[:1], k[:1], 0)[0].exp()
    cells = torch.arange(levels) * 16 // levels
    expected, found = torch.zeros(16).index_add(0, cells, p) * n, torch.bincount(cells[drawn], minlength=16).float()
    assert ((found - expected).square() / expected.clamp_min(1e-9)).sum() < 40  # chi-square, 15 degrees: p about 5e-4


@pytest.mark.parametrize("name", ["4 levels 2x2", "3 levels, 2 channels, 1x2", "tokens in a line"])
def test_outputs_are_causal_by_autograd(name: str):
    model = random_weights(SPECS[name])
    k = model.raster.tokens(every_picture(model.spec)[37:38])
    seen = model.sight(k).requires_grad_()
    model.sight.forward = lambda _: seen  # type: ignore[method-assign]
    out = model.outputs(k, model._condition(model.schema.missing(1)))
    for i in range(model.raster.length):
        (gradient,) = torch.autograd.grad(out[0, i].square().sum(), seen, retain_graph=True)
        touched = gradient[0].abs().sum(-1) > 0
        assert touched[:i].all(), "every earlier token speaks"
        assert not touched[i:].any(), "no token speaks for itself or an earlier one"


BIG = {
    "levels": ImageSpec(1, (5, 3), levels=9),
    "sub-pixels": ImageSpec(3, (2, 3), levels=5),
    "mixture": ImageSpec(3, (3, 4), levels=256),
    "tokens": ImageSpec(2, (7,), "l", "categorical", 11),
    "volume": ImageSpec(1, (2, 3, 2), "thw", levels=3),
}


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_cached_sampling_equals_recomputation(name: str, guidance: float):
    model = random_weights(BIG[name], LABEL)
    seeds, n = Seeds.of(5, 4), 4
    given = model.schema.given(n, {"label": ["a", "b", None, "b"]})
    fast = model.raster.tokens(list(model._sample_steps(given, seeds, model.spec.size, guidance=guidance))[-1].x)
    u = seeds.uniform("value", model.raster.length, model.raster.values, model.head.draws)
    k = torch.zeros_like(fast)
    with torch.no_grad():
        for i, j in itertools.product(range(model.raster.length), range(model.raster.values)):
            out = model.outputs(k, model._condition(given))[:, i]
            if guidance == 1:
                k[:, i, j] = model.head.draw(out, k[:, i], j, u[:, i, j])
            else:
                plain = model.outputs(k, model._condition(model.schema.missing(n)))[:, i]
                with_, without = (model.head.logits(o, k[:, i], j) for o in (out, plain))
                k[:, i, j] = invert(without + guidance * (with_ - without), u[:, i, j, 0])
    assert torch.equal(fast, k)


@pytest.mark.parametrize("name", ["levels", "mixture"])
def test_samplers_conditionals_are_those_of_the_likelihood(name: str):
    model = random_weights(BIG[name], LABEL)
    x = model.sample(3, {"label": "a"}, seeds=2)
    k, given = model.raster.tokens(x), model.schema.given(3, {"label": "a"})
    drawing, total = Drawing(model, given), torch.zeros(3)
    with torch.no_grad():
        for i in range(model.raster.length):
            out = drawing.outputs(i)
            for j in range(model.raster.values):
                total += model.head.logits(out, k[:, i], j).gather(1, k[:, i, j, None])[:, 0]
            drawing.see(k, i)
    assert torch.allclose(total, model.log_prob(x, given).nats, atol=2e-4)


def test_a_picture_does_not_depend_on_its_batch():
    model = random_weights(BIG["levels"], LABEL)
    together = model.sample(6, {"label": "b"}, seeds=9)
    alone = torch.cat([model.sample(1, {"label": "b"}, seeds=Seeds((9,), (i,))) for i in range(6)])
    assert torch.equal(together, alone)


def test_samples_have_the_probabilities_of_the_likelihood():
    model = random_weights(ImageSpec(1, (2, 2), levels=2), LABEL)
    n = 20_000
    k = model.raster.tokens(model.sample(n, {"label": "a"}))[..., 0]
    found = torch.bincount((k * torch.tensor([8, 4, 2, 1])).sum(1), minlength=16)
    expected = n * model.log_prob(every_picture(model.spec), {"label": "a"}).nats.exp()
    assert ((found - expected).square() / expected).sum() < 40  # chi-square, 15 degrees


def test_completion_of_a_raster_prefix_is_exact():
    model = random_weights(ImageSpec(1, (2, 2), levels=3), LABEL)
    every = every_picture(model.spec)
    x = model.spec.from_levels(torch.tensor([[[[2, 0], [0, 0]]]]))
    known = torch.tensor([[[[True, True], [False, False]]]])
    n = 10_000
    filled = model.complete(x.expand(n, -1, -1, -1), known.expand(n, -1, -1, -1), {"label": "b"}, seeds=1)
    assert (filled[:, :, 0] == x[0, :, 0]).all()
    fits = (every[:, 0, 0] == x[0, 0, 0]).all(1)
    p = model.log_prob(every[fits], {"label": "b"}).nats.softmax(0)  # p(unknown | known) by enumeration
    k = model.raster.tokens(filled)[..., 0]
    found = torch.bincount(k[:, 2] * 3 + k[:, 3], minlength=9)
    assert ((found - n * p).square() / (n * p)).sum() < 28  # chi-square, 8 degrees


def test_completion_keeps_known_values_wherever_they_are():
    model = random_weights(BIG["mixture"])
    x = model.sample(5, seeds=1)
    known = Seeds.of(4, 5).uniform("known", *model.spec.shape) < 0.5
    filled = model.complete(x, known, seeds=2)
    assert torch.equal(filled[known], x[known])
    assert not torch.equal(filled, x)
    assert torch.equal(filled, model.spec.snap(filled))
    nothing = torch.zeros(5, 1, *model.spec.size, dtype=torch.bool)
    assert torch.equal(model.complete(x, nothing, seeds=2), model.sample(5, seeds=2))


def test_guidance_moves_towards_the_condition_and_scale_one_is_none():
    model = random_weights(BIG["levels"], LABEL, scale=0.5)
    given = {"label": "a"}
    plain = model.sample(200, given)
    assert torch.equal(guided(model, 1.0).sample(200, given), plain)
    steered = guided(model, 4.0).sample(200, given)

    def lean(x: Tensor) -> float:
        return float((model.log_prob(x, given).nats - model.log_prob(x).nats).mean())

    assert lean(steered) > lean(plain) + 0.5


def test_untrained_model_is_uniform_and_the_tiny_one_learns():
    spec = ImageSpec(1, (4, 4), levels=17)
    model = catalog.build("autoregressive", spec, EMPTY, "tiny")
    model.images_seen.fill_(1)
    x = spec.from_levels(Seeds.of(0, 8).integers("x", 17, 1, 4, 4))
    assert torch.allclose(model.log_prob(x).nats, torch.full((8,), -16 * math.log(17)), atol=1e-3)
    (objective,) = model.objectives()
    optimizer = torch.optim.Adam(objective.parameters, 1e-2)
    batch = Batch(x, Given(8), Seeds.of(0, 8))
    for _ in range(40):
        loss = sum(objective.terms(batch).loss.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(17)


def test_uniform_noise_costs_at_least_its_entropy():
    spec = ImageSpec(1, (4, 4), levels=256)
    model = random_weights(spec)
    x = spec.from_levels(Seeds.of(0, 200).integers("x", 256, 1, 4, 4))
    bits = -model.log_prob(x).nats / (spec.numel * math.log(2))
    assert bits.mean() >= 8 - 3 * bits.std() / 200**0.5


def test_neighbours_are_the_earlier_ones_nearby():
    table = Raster(ImageSpec(1, (3, 3), levels=4), joint=False).neighbours(1)
    assert sorted(table[4].tolist()) == [0, 1, 2, 3]
    assert sorted(table[0].tolist()) == [9, 9, 9, 9]  # outside
    colour = Raster(ImageSpec(3, (2, 2), levels=4), joint=False).neighbours(1)
    assert set(colour[3 * 3 + 1].tolist()) - {12} == set(range(10))
    assert (colour < torch.arange(12)[:, None])[colour < 12].all()


def test_refusals_are_sentences():
    with pytest.raises(ValueError, match="predicts levels"):
        catalog.build("autoregressive", ImageSpec(1, (2, 2), kind="continuous", levels=None), EMPTY, "tiny")
    with pytest.raises(ValueError, match="positions"):
        catalog.build("autoregressive", ImageSpec(1, (256, 256)), EMPTY, "tiny")
    model = random_weights(SPECS["binary 2x2"])
    with pytest.raises(ValueError, match="no method"):
        model.log_prob(every_picture(model.spec), method="elbo")
