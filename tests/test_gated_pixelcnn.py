"""The gated PixelCNN: sums over all pictures, no blind spot and no look ahead by gradient, a walk that equals recomputation."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._heads import invert
from nonesuch.models.autoregressive._stacks import Stacks, Walk, gate
from nonesuch.models.autoregressive.gated_pixelcnn import GatedPixelCNN

NAME = "autoregressive/gated_pixelcnn"
LABEL = Schema({"label": Category(("a", "b"))})
EMPTY = Schema({})


def random_weights(spec: ImageSpec, schema: Schema = EMPTY, scale: float = 0.1, **config: object) -> GatedPixelCNN:
    """A tiny model with weights that are nowhere zero, so that every path counts."""
    model = catalog.build(NAME, spec, schema, "tiny", **{"width": 12, **config})
    assert isinstance(model, GatedPixelCNN)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(scale * Seeds((7,), (0,)).normal(name, *p.shape)[0])
    model.images_seen.fill_(1)
    return model


def stacks(layers: int, given: bool = False, lag: int = 0, kernel: int = 3) -> Stacks:
    """A network in float64 whose every weight and bias counts."""
    net = Stacks(2, 6, layers, kernel, given, 0.0, lag).double()
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(0.2 * Seeds((3,), (0,)).normal(name, *p.shape)[0])
    return net


def every_picture(spec: ImageSpec) -> Tensor:
    k = torch.tensor(list(itertools.product(range(spec.levels or 0), repeat=spec.numel)))
    return spec.from_levels(k.view(-1, *spec.shape))


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
    assert (fast != fast[:1]).any()


def test_completion_is_exact_after_a_beginning_and_keeps_what_is_known():
    model = random_weights(ImageSpec(1, (2, 2), levels=3), LABEL, scale=0.2)
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


def test_untrained_model_is_uniform_and_the_tiny_one_learns():
    spec = ImageSpec(1, (4, 4), levels=17)
    model = catalog.build(NAME, spec, EMPTY, "tiny")
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


def test_the_medium_preset_has_the_published_size():
    model = catalog.build(NAME, ImageSpec(1, (28, 28), levels=2), EMPTY, "medium")
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(3.4e6, rel=0.03)


def test_in_bf16_likelihoods_are_near_those_of_float32_and_samples_are_drawn():
    model = random_weights(BIG["mixture"], LABEL)
    x = model.sample(8, {"label": "a"}, seeds=3)
    exact = model.log_prob(x, {"label": "a"}).nats
    model.compute_dtype = torch.bfloat16
    assert torch.allclose(model.log_prob(x, {"label": "a"}).nats, exact, rtol=0.01)
    assert torch.equal(model.sample(2, seeds=1), model.spec.snap(model.sample(2, seeds=1)))


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
