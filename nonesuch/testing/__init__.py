"""`check_model(model)`: the contract as named checks, for the models here and for models written elsewhere.

    from nonesuch.testing import check_model
    check_model("diffusion/edm")                       # the preset "tiny" of the catalogue
    check_model(MyModel(config, spec, schema))         # any model; it is built again on small images

A check is chosen by capability: a model that claims no `Likelihood` is not asked for one. Each states a truth (probabilities sum
to one, a seed is an image, resuming changes nothing), and fails with a sentence that says which.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.model import Model
from nonesuch.testing import _capabilities, _every  # noqa: F401 (they fill CHECKS)
from nonesuch.testing._subject import CHECKS, SCHEMA, SPEC, Subject, schema_for, stripes

__all__ = ["CHECKS", "SCHEMA", "SPEC", "Outcome", "check_model", "schema_of", "stripes"]


@dataclass(frozen=True)
class Outcome:
    """One check's name, and what is wrong ("" when it holds)."""

    check: str
    error: str = ""


def schema_of(name: str) -> Schema:
    """The schema that the preset "tiny" of a catalogue name is tried on: `SCHEMA`, with a column of pictures if it needs one."""
    return schema_for(lambda spec, schema: catalog.build(name, spec, schema, "tiny"))


def check_model(model: str | Model, only: Sequence[str] = (), rounds: int = 60, raising: bool = True) -> list[Outcome]:
    """Run every check that applies to a model, by catalogue name or as an instance; returns the outcomes.

    only: names of checks to run; rounds: training steps of the fitted copy. Raises AssertionError naming every check that
    failed, unless `raising` is false.
    """
    if isinstance(model, str):
        subject = Subject(lambda spec, schema: catalog.build(model, spec, schema, "tiny"), rounds, model)
        kind: type = catalog.get(model)
    else:
        parts = dict(model.parts.items())
        subject = Subject(
            lambda spec, schema: type(model)(model.config, spec, schema, **copy.deepcopy(parts)), rounds, type(model).__name__
        )
        kind = type(model)
    outcomes = []
    for check, capability in CHECKS:
        if (not only or check.__name__ in only) and (capability is None or issubclass(kind, capability)):
            try:
                check(subject)
                outcomes.append(Outcome(check.__name__))
            except Exception as error:
                outcomes.append(
                    Outcome(
                        check.__name__,
                        f"{type(error).__name__}: {error}" if not isinstance(error, AssertionError) else str(error),
                    )
                )
    failed = [o for o in outcomes if o.error]
    if failed and raising:
        raise AssertionError("\n".join(f"{subject.name}: {o.check}: {o.error}" for o in failed))
    return outcomes
