"""Shifted convolutions: sums over all pictures, causality by gradient, and a walk that equals recomputation."""

from __future__ import annotations

import itertools

import of_chains
import pytest
import torch
from of_chains import BIG, EMPTY, LABEL, every_picture
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import guided
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._streams import Streams, Walk
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp


def random_weights(spec: ImageSpec, schema: Schema = EMPTY, scale: float = 0.1, **config: object) -> PixelCNNpp:
    model = of_chains.with_random_weights("autoregressive/pixelcnnpp", spec, schema, scale, **config)
    assert isinstance(model, PixelCNNpp)
    return model


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


@pytest.mark.parametrize("name", BIG)
@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_sampling_equals_recomputing_everything(name: str, guidance: float):
    of_chains.sampling_equals_recomputing_everything(random_weights(BIG[name], LABEL), guidance)


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
    of_chains.completion_is_exact_after_a_beginning_and_keeps_what_is_known(model)


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
    of_chains.untrained_is_uniform_and_the_tiny_one_learns("autoregressive/pixelcnnpp")


def test_in_bf16_likelihoods_are_near_those_of_float32_and_samples_are_drawn():
    of_chains.bf16_likelihoods_are_near_and_samples_are_drawn(random_weights(BIG["mixture"], LABEL))


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
