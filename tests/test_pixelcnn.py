"""Shifted convolutions: sums over all pictures, causality by gradient, and a walk that equals recomputation."""

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
from nonesuch.models.autoregressive._heads import invert
from nonesuch.models.autoregressive._streams import Streams, Walk
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp

LABEL = Schema({"label": Category(("a", "b"))})
EMPTY = Schema({})


def random_weights(spec: ImageSpec, schema: Schema = EMPTY, scale: float = 0.1, **config: object) -> PixelCNNpp:
    """A tiny model with weights that are nowhere zero, so that every path counts."""
    model = catalog.build("autoregressive/pixelcnnpp", spec, schema, "tiny", **{"width": 12, **config})
    assert isinstance(model, PixelCNNpp)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(scale * Seeds((7,), (0,)).normal(name, *p.shape)[0])
    model.images_seen.fill_(1)
    return model


def every_picture(spec: ImageSpec) -> Tensor:
    k = torch.tensor(list(itertools.product(range(spec.levels or 0), repeat=spec.numel)))
    return spec.from_levels(k.view(-1, *spec.shape))


SPECS = {
    "binary 3x3": ImageSpec(1, (3, 3), levels=2),
    "4 levels 2x2": ImageSpec(1, (2, 2), levels=4),
    "3 levels, 2 channels, 1x2": ImageSpec(2, (1, 2), levels=3),
    "tokens in a line": ImageSpec(1, (5,), "l", "categorical", 3),
    "token pairs": ImageSpec(2, (2, 1), "hw", "categorical", 4),
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


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 6), (6, 1), (9, 5)])
@pytest.mark.parametrize("resolutions", [1, 2, 3, 4])
def test_streams_see_all_that_was_read_before_and_nothing_else(size: tuple[int, int], resolutions: int):
    net = Streams(2, 6, 2, resolutions, False, 0.0).double()
    x = Seeds.of(0, 1).normal("x", *size, 2).double().requires_grad_()
    out = net(x, torch.zeros(1, 6).double())
    for i, j in itertools.product(*map(range, size)):
        (gradient,) = torch.autograd.grad(out[0, i, j].square().sum(), x, retain_graph=True)
        touched = gradient[0].abs().sum(-1).flatten() > 0
        assert not touched[i * size[1] + j :].any(), "no pixel speaks for itself or an earlier one"
        if j:
            assert touched[i * size[1] + j - 1], "the pixel before speaks"
        if i:
            assert touched[(i - 1) * size[1] + j], "the pixel above speaks"


def test_the_last_pixel_hears_all_others():
    net = Streams(1, 6, 2, 3, False, 0.0).double()
    x = Seeds.of(0, 1).normal("x", 7, 6, 1).double().requires_grad_()
    (gradient,) = torch.autograd.grad(net(x, torch.zeros(1, 6).double())[0, -1, -1].square().sum(), x)
    assert (gradient.flatten()[:-1] != 0).all()


@pytest.mark.parametrize("size", [(5, 7), (8, 8), (1, 6), (6, 1), (9, 5), (2, 3)])
@pytest.mark.parametrize("resolutions", [1, 2, 3, 4])
@pytest.mark.parametrize("given", [False, True])
def test_a_walk_equals_one_pass(size: tuple[int, int], resolutions: int, given: bool):
    net = Streams(3, 6, 2, resolutions, given, 0.0).double()
    x, c = Seeds.of(0, 3).normal("x", *size, 3).double(), Seeds.of(1, 3).normal("c", 6).double()
    with torch.no_grad():
        whole, walk = net(x, c), Walk(net, c, size, torch.float64)
        for i in range(size[0]):
            walk.row()
            for j in range(size[1]):
                assert torch.allclose(walk.pixel(j), whole[:, i, j], atol=1e-12, rtol=1e-12), (i, j)
                walk.tell(j, x[:, i, j])


BIG = {
    "levels": ImageSpec(1, (5, 3), levels=9),
    "sub-pixels": ImageSpec(3, (2, 3), levels=5),
    "mixture": ImageSpec(3, (3, 4), levels=256),
    "tokens": ImageSpec(2, (7,), "l", "categorical", 11),
}


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_recomputing_everything(name: str, guidance: float):
    model = random_weights(BIG[name], LABEL)
    seeds, n = Seeds.of(5, 4), 4
    given = model.schema.given(n, {"label": ["a", "b", None, "b"]})
    with torch.no_grad():
        fast = model.raster.tokens(list(model._sample_steps(given, seeds, model.spec.size, guidance=guidance))[-1].x)
        u = seeds.uniform("value", model.raster.length, model.raster.values, model.head.draws)
        k = torch.zeros_like(fast)
        for i, j in itertools.product(range(model.raster.length), range(model.raster.values)):
            out = model.outputs(k, model._condition(given))[:, i]
            if guidance == 1:
                k[:, i, j] = model.head.draw(out, k[:, i], j, u[:, i, j])
            else:
                plain = model.outputs(k, model._condition(model.schema.missing(n)))[:, i]
                with_, without = (model.head.logits(o, k[:, i], j) for o in (out, plain))
                k[:, i, j] = invert(without + guidance * (with_ - without), u[:, i, j, 0])
    assert torch.equal(fast, k)


def test_samples_have_the_probabilities_of_the_likelihood():
    model = random_weights(ImageSpec(2, (1, 2), levels=2), LABEL, scale=0.1)
    n = 20_000
    k = model.raster.tokens(model.sample(n, {"label": "a"}))[..., 0]
    x = every_picture(model.spec)
    code = torch.tensor([8, 4, 2, 1])
    p = torch.zeros(16)
    p[(model.raster.tokens(x)[..., 0] * code).sum(1)] = model.log_prob(x, {"label": "a"}).nats.exp()
    found = torch.bincount((k * code).sum(1), minlength=16)
    assert ((found - n * p).square() / (n * p)).sum() < 40  # chi-square, 15 degrees


def test_completion_is_exact_after_a_beginning_and_keeps_what_is_known():
    model = random_weights(ImageSpec(1, (2, 2), levels=3), LABEL, scale=0.1)
    every, n = every_picture(model.spec), 10_000
    x = model.spec.from_levels(torch.tensor([[[[2, 0], [0, 0]]]]))
    known = torch.tensor([[[[True, True], [False, False]]]])
    filled = model.complete(x.expand(n, -1, -1, -1), known.expand(n, -1, -1, -1), {"label": "b"}, seeds=1)
    assert (filled[:, :, 0] == x[0, :, 0]).all()
    fits = (every[:, 0, 0] == x[0, 0, 0]).all(1)
    p = model.log_prob(every[fits], {"label": "b"}).nats.softmax(0)  # p(unknown | known) by enumeration
    k = model.raster.tokens(filled)[..., 0]
    found = torch.bincount(k[:, 2] * 3 + k[:, 3], minlength=9)
    assert ((found - n * p).square() / (n * p)).sum() < 28  # chi-square, 8 degrees
    nothing = torch.zeros(5, 1, 2, 2, dtype=torch.bool)
    assert torch.equal(model.complete(every[:5], nothing, seeds=2), model.sample(5, seeds=2))


def test_guidance_moves_towards_the_condition_and_scale_one_is_none():
    model = random_weights(BIG["levels"], LABEL, scale=0.3)
    given = {"label": "a"}
    plain = model.sample(200, given)
    assert torch.equal(guided(model, 1.0).sample(200, given), plain)
    steered = guided(model, 4.0).sample(200, given)

    def lean(x: Tensor) -> float:
        return float((model.log_prob(x, given).nats - model.log_prob(x).nats).mean())

    assert lean(steered) > lean(plain) + 0.2


def test_untrained_model_is_uniform_and_the_tiny_one_learns():
    spec = ImageSpec(1, (4, 4), levels=17)
    model = catalog.build("autoregressive/pixelcnnpp", spec, EMPTY, "tiny")
    model.images_seen.fill_(1)
    x = spec.from_levels(Seeds.of(0, 8).integers("x", 17, 1, 4, 4))
    assert torch.allclose(model.log_prob(x).nats, torch.full((8,), -16 * math.log(17)), atol=1e-3)
    (objective,) = model.objectives()
    optimizer = torch.optim.Adam(objective.parameters, 1e-2)
    batch = Batch(x, Given(8), Seeds.of(0, 8))
    for _ in range(60):
        loss = sum(objective.terms(batch).loss.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5 * math.log(17)


def test_in_bf16_likelihoods_are_near_those_of_float32_and_samples_are_drawn():
    model = random_weights(BIG["mixture"], LABEL)
    x = model.sample(8, {"label": "a"}, seeds=3)
    exact = model.log_prob(x, {"label": "a"}).nats
    model.compute_dtype = torch.bfloat16
    assert torch.allclose(model.log_prob(x, {"label": "a"}).nats, exact, rtol=0.01)
    assert torch.equal(model.sample(2, seeds=1), model.spec.snap(model.sample(2, seeds=1)))


def test_refusals_are_sentences():
    name = "autoregressive/pixelcnnpp"
    with pytest.raises(ValueError, match="predicts levels"):
        catalog.build(name, ImageSpec(1, (2, 2), kind="continuous", levels=None), EMPTY, "tiny")
    with pytest.raises(ValueError, match="positions"):
        catalog.build(name, ImageSpec(1, (512, 512)), EMPTY, "tiny")
    with pytest.raises(ValueError, match="image transformer"):
        catalog.build(name, ImageSpec(1, (2, 2, 2), "dhw", levels=2), EMPTY, "tiny")
    with pytest.raises(ValueError, match="no method"):
        random_weights(SPECS["4 levels 2x2"]).log_prob(torch.zeros(1, 1, 2, 2), method="elbo")
