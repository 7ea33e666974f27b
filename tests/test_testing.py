"""The conformance suite itself: a sound model passes, every broken one is caught by the check meant for it."""

import math

import pytest
import torch
from broken import CAUGHT_BY, Config, Sound, Uniform

from nonesuch import catalog
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.testing import CHECKS, SCHEMA, SPEC, check_model


def test_there_are_checks_enough_and_their_names_differ():
    assert len({c.__name__ for c, _ in CHECKS}) == len(CHECKS) >= 25
    assert len(CAUGHT_BY) >= 12


def test_a_sound_model_passes():
    assert [o.error for o in check_model(Sound(Config(), SPEC, SCHEMA))] == [""] * len(check_model(Sound(Config(), SPEC, SCHEMA)))


@pytest.mark.parametrize("levels", [2, 5, 17, 256, 65536])
def test_a_uniform_model_costs_log2_levels_on_any_image(levels: int):
    spec = ImageSpec(2, (3, 5), levels=levels)
    model = Uniform(Config(), spec, SCHEMA)
    model.images_seen.fill_(1)
    x = spec.from_levels(Seeds.of(0, 9).integers("x", levels, *spec.shape))
    nats = model.log_prob(x).nats.double()
    assert torch.allclose(-nats / spec.numel / math.log(2), torch.full((9,), math.log2(levels), dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize(("cls", "check"), CAUGHT_BY.items(), ids=lambda v: getattr(v, "__name__", v))
def test_a_broken_model_is_caught(cls: type[Model], check: str):
    with pytest.raises(AssertionError, match=check):
        check_model(cls(Config(), SPEC, SCHEMA), only=[check])


@pytest.mark.parametrize("name", catalog.names())
def test_every_model_of_the_catalogue_passes(name: str):
    check_model(name)
