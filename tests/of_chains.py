"""Truths of the chain rule by convolutions, asked of every such model by its own file of tests."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._heads import invert

LABEL = Schema({"label": Category(("a", "b"))})
EMPTY = Schema({})
BIG = {
    "levels": ImageSpec(1, (5, 3), levels=9),
    "sub-pixels": ImageSpec(3, (2, 3), levels=5),
    "mixture": ImageSpec(3, (3, 4), levels=256),
    "tokens": ImageSpec(2, (7,), "l", "categorical", 11),
}


def with_random_weights(name: str, spec: ImageSpec, schema: Schema, scale: float, **config: object) -> Any:
    """A tiny model with weights that are nowhere zero, so that every path counts."""
    model = catalog.build(name, spec, schema, "tiny", **{"width": 12, **config})
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.add_(scale * Seeds((7,), (0,)).normal(key, *p.shape)[0])
    model.images_seen.fill_(1)
    return model


def every_picture(spec: ImageSpec) -> Tensor:
    k = torch.tensor(list(itertools.product(range(spec.levels or 0), repeat=spec.numel)))
    return spec.from_levels(k.view(-1, *spec.shape))


def sampling_equals_recomputing_everything(model: Any, guidance: float) -> None:
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


def completion_is_exact_after_a_beginning_and_keeps_what_is_known(model: Any) -> None:
    """Of a model of one channel, 2 x 2 pixels and 3 levels, given LABEL."""
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


def untrained_is_uniform_and_the_tiny_one_learns(name: str) -> None:
    spec = ImageSpec(1, (4, 4), levels=17)
    model = catalog.build(name, spec, EMPTY, "tiny")
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


def bf16_likelihoods_are_near_and_samples_are_drawn(model: Any) -> None:
    x = model.sample(8, {"label": "a"}, seeds=3)
    exact = model.log_prob(x, {"label": "a"}).nats
    model.compute_dtype = torch.bfloat16
    assert torch.allclose(model.log_prob(x, {"label": "a"}).nats, exact, rtol=0.01)
    assert torch.equal(model.sample(2, seeds=1), model.spec.snap(model.sample(2, seeds=1)))
