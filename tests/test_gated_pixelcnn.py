"""The gated PixelCNN: sums over all pictures, no blind spot and no look ahead by gradient, a walk that equals recomputation."""

from __future__ import annotations

import itertools
import math

import of_chains
import pytest
import torch
from of_chains import BIG, EMPTY, LABEL, every_picture
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._stacks import Stacks, Walk, gate
from nonesuch.models.autoregressive.gated_pixelcnn import GatedPixelCNN

NAME = "autoregressive/gated_pixelcnn"


def random_weights(spec: ImageSpec, schema: Schema = EMPTY, scale: float = 0.1, **config: object) -> GatedPixelCNN:
    model = of_chains.with_random_weights(NAME, spec, schema, scale, **config)
    assert isinstance(model, GatedPixelCNN)
    return model


def stacks(layers: int, given: bool = False, lag: int = 0, kernel: int = 3) -> Stacks:
    """A network in float64 whose every weight and bias counts."""
    net = Stacks(2, 6, layers, kernel, given, 0.0, lag).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(0.2 * Seeds((3,), (0,)).normal(name, *p.shape)[0])
    return net


SPECS = {
    "binary 3x3": ImageSpec(1, (3, 3), levels=2),
    "4 levels 2x2": ImageSpec(1, (2, 2), levels=4),
    "3 levels, 2 channels, 1x2": ImageSpec(2, (1, 2), levels=3),
    "tokens in a line": ImageSpec(1, (5,), "l", "categorical", 3),
    "many levels, 2 channels": ImageSpec(2, (1, 1), levels=65),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("lag", [0, 1])
def test_probabilities_of_all_pictures_sum_to_one(name: str, lag: int):
    model = random_weights(SPECS[name], LABEL, lag=lag)
    x = every_picture(model.spec)
    for given in (None, {"label": "a"}):
        p = model.log_prob(x, given)
        assert p.kind == "exact"
        assert p.nats.double().exp().sum().item() == pytest.approx(1, abs=1e-5)
    assert p.nats.std() > 0.02  # and it is not the uniform distribution that was summed
    assert not torch.allclose(p.nats, model.log_prob(x, {"label": "b"}).nats, atol=1e-3)


def heard(net: Stacks, size: tuple[int, int]) -> Tensor:
    """(H W, H W) bool: whether the features at a pixel, a row, depend on the input at another, a column."""
    x = Seeds.of(0, 4).normal("x", *size, 2).double().requires_grad_()  # four, since a feature that is cut off at 0 hears nothing
    out = net(x, torch.zeros(4, 6).double()).flatten(1, 2)
    rows = []
    for i in range(math.prod(size)):
        (gradient,) = torch.autograd.grad(out[:, i].square().sum(), x, retain_graph=True)
        rows.append(gradient.abs().sum((0, -1)).flatten() > 0)
    return torch.stack(rows)


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 6), (6, 1), (3, 9)])
def test_a_pixel_hears_all_that_was_read_before_and_nothing_else(size: tuple[int, int]):
    n = math.prod(size)
    assert torch.equal(heard(stacks(max(size) - 1), size), torch.ones(n, n).tril(-1).bool())


def test_a_stack_that_lags_never_looks_ahead_and_misses_the_upper_right():
    """A row further up widens what is seen to the right by one column, whatever the depth: a reason not to have it so."""
    found = heard(stacks(8, lag=1), (4, 8)).view(4, 8, 4, 8)
    for i, j, y, x in itertools.product(range(4), range(8), range(4), range(8)):
        before = (y, x) < (i, j)
        assert bool(found[i, j, y, x]) == (before and (y == i or x <= j + i - y)), (i, j, y, x)


def test_the_gate_is_that_of_the_paper_and_conditions_enter_it():
    x = Seeds.of(0, 1).normal("x", 5, 8).double()
    assert torch.allclose(gate(x), torch.tanh(x[..., :4]) / (1 + torch.exp(-x[..., 4:])))
    net, c = stacks(2, given=True), torch.zeros(2, 6).double()
    with torch.no_grad():
        x = Seeds.of(0, 2).normal("x", 3, 4, 2).double()
        before = net(x, c)
        for layer in net.layers:  # V c is a bias of each gate: with c = 1, the sum of V's columns (Eq. 4)
            for to, conv in ((layer.to_v, layer.here), (layer.to_h, layer.link)):
                if to is not None and conv is not None:
                    conv.bias += to.weight.sum(1)
        moved = net(x, c)
        for layer in net.layers:
            for to, conv in ((layer.to_v, layer.here), (layer.to_h, layer.link)):
                if to is not None and conv is not None:
                    conv.bias -= to.weight.sum(1)
        assert torch.allclose(net(x, c + 1), moved)
        assert not torch.allclose(moved, before, atol=1e-3)


@pytest.mark.parametrize("size", [(5, 7), (4, 4), (1, 6), (6, 1)])
@pytest.mark.parametrize("lag", [0, 1])
@pytest.mark.parametrize("given", [False, True])
def test_a_walk_equals_one_pass(size: tuple[int, int], lag: int, given: bool):
    net = stacks(3, given, lag, 5)
    x, c = Seeds.of(0, 3).normal("x", *size, 2).double(), Seeds.of(1, 3).normal("c", 6).double()
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


def test_completion_is_exact_after_a_beginning_and_keeps_what_is_known():
    model = random_weights(ImageSpec(1, (2, 2), levels=3), LABEL, scale=0.2)
    of_chains.completion_is_exact_after_a_beginning_and_keeps_what_is_known(model)


def test_untrained_model_is_uniform_and_the_tiny_one_learns():
    of_chains.untrained_is_uniform_and_the_tiny_one_learns(NAME)


def test_the_medium_preset_has_the_published_size():
    model = catalog.build(NAME, ImageSpec(1, (28, 28), levels=2), EMPTY, "medium")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.4e6, rel=0.03)


def test_in_bf16_likelihoods_are_near_those_of_float32_and_samples_are_drawn():
    of_chains.bf16_likelihoods_are_near_and_samples_are_drawn(random_weights(BIG["mixture"], LABEL))


def test_refusals_are_sentences():
    with pytest.raises(ValueError, match="predicts levels"):
        catalog.build(NAME, ImageSpec(1, (2, 2), kind="continuous", levels=None), EMPTY, "tiny")
    with pytest.raises(ValueError, match="positions"):
        catalog.build(NAME, ImageSpec(1, (512, 512)), EMPTY, "tiny")
    with pytest.raises(ValueError, match="image transformer"):
        catalog.build(NAME, ImageSpec(1, (2, 2, 2), "dhw", levels=2), EMPTY, "tiny")
    with pytest.raises(ValueError, match="odd number"):
        random_weights(SPECS["4 levels 2x2"], kernel=4)
    with pytest.raises(ValueError, match="lag is 0"):
        random_weights(SPECS["4 levels 2x2"], lag=2)
