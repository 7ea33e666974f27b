"""The conformance suite itself: a sound model passes, every broken one is caught by the check meant for it."""

import pytest
from broken import CAUGHT_BY, Config, Sound

from nonesuch import catalog
from nonesuch.core.model import Model
from nonesuch.testing import CHECKS, SCHEMA, SPEC, check_model


def test_there_are_checks_enough_and_their_names_differ():
    assert len({c.__name__ for c, _ in CHECKS}) == len(CHECKS) >= 25
    assert len(CAUGHT_BY) >= 12


def test_a_sound_model_passes():
    assert [o.error for o in check_model(Sound(Config(), SPEC, SCHEMA))] == [""] * len(check_model(Sound(Config(), SPEC, SCHEMA)))


@pytest.mark.parametrize(("cls", "check"), CAUGHT_BY.items(), ids=lambda v: getattr(v, "__name__", v))
def test_a_broken_model_is_caught(cls: type[Model], check: str):
    with pytest.raises(AssertionError, match=check):
        check_model(cls(Config(), SPEC, SCHEMA), only=[check])


@pytest.mark.parametrize("name", catalog.names())
def test_every_model_of_the_catalogue_passes(name: str):
    check_model(name)
