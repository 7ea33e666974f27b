"""The checks that every model takes: construction, training, sampling, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from nonesuch.core import artifact
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.core.translator import Translator
from nonesuch.testing._subject import SPEC, Subject, alike, needs, refused, same, schema_for, state_of, stripes
from nonesuch.train import checkpoint
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

# -- how it is built


@needs()
def config_is_plain_and_frozen(s: Subject) -> None:
    model = s.build(SPEC, s.schema)
    assert dataclasses.is_dataclass(model.config), "the config is not a dataclass"
    assert type(model.config).__dataclass_params__.frozen, "the config can be changed"  # type: ignore[attr-defined]
    about = json.loads(json.dumps(artifact.describe(model)))
    again = artifact.read_dataclass(type(model.config), about["config"], "the config")
    assert again == model.config, "the config does not survive JSON"


@needs()
def card_cites_its_paper(s: Subject) -> None:
    card = s.build(SPEC, s.schema).card
    assert card.title and card.authors and 1900 < card.year < 2100, "the card lacks title, authors or year"
    assert not card.arxiv or re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv), f"{card.arxiv!r} is no arXiv id"
    assert card.bibtex().count("{") == card.bibtex().count("}"), "the BibTeX entry is not balanced"


@needs()
def construction_is_keyed(s: Subject) -> None:
    before = torch.get_rng_state()
    first, second = s.build(SPEC, s.schema), s.build(SPEC, s.schema)
    assert torch.equal(before, torch.get_rng_state()), "construction moves the global generator"
    assert same(first.state_dict(), second.state_dict()), "two constructions differ"


@needs()
def one_owner_and_a_gradient_for_each_parameter(s: Subject) -> None:
    run = s.run(rounds=6)
    frozen = {id(p) for part in run.model.parts.values() for p in part.parameters()}
    owners: dict[int, int] = {}
    moved: set[int] = set()
    for objective in run.objectives:
        loss = sum(objective.terms(s.batch()).loss.values())
        grads = torch.autograd.grad(loss, objective.parameters, allow_unused=True)  # type: ignore[arg-type]
        for p, g in zip(objective.parameters, grads, strict=True):
            owners[id(p)] = owners.get(id(p), 0) + 1
            if g is not None and torch.isfinite(g).all() and bool((g != 0).any()):
                moved.add(id(p))
    for name, p in run.model.named_parameters():
        assert owners.get(id(p), 0) <= 1, f"{name} has {owners[id(p)]} owners"
        assert id(p) in frozen or id(p) in owners, f"{name} has no owner"
        assert id(p) in frozen or id(p) in moved, f"{name} gets no gradient"


@needs()
def terms_are_finite_float32_scalars(s: Subject) -> None:
    run = s.run(rounds=1)
    for objective in run.objectives:
        terms = objective.terms(s.batch())
        for name, value in {**terms.loss, **terms.watch}.items():
            assert value.dim() == 0 and value.dtype in (torch.float32, torch.float64), (
                f"{name} is {value.dtype} of shape {tuple(value.shape)}"
            )
            assert torch.isfinite(value), f"{name} is {float(value)}"


@needs()
def terms_are_a_function_of_the_batch(s: Subject) -> None:
    run = s.run(rounds=1)
    before = torch.get_rng_state()
    for objective in run.objectives:
        if run.model.transient:
            continue
        first, second = (sum(objective.terms(s.batch()).loss.values()) for _ in range(2))
        assert torch.equal(torch.as_tensor(first), torch.as_tensor(second)), (
            f"{objective.name} draws from something other than its keys"
        )
    assert torch.equal(before, torch.get_rng_state()), "training moves the global generator"


@needs()
def each_objective_falls_on_one_batch(s: Subject) -> None:
    for k in range(len(s.run().objectives)):
        run, losses = s.run(rounds=2), []
        objective, batch = run.objectives[k], s.batch()
        optimizer = torch.optim.Adam(objective.parameters, lr=2e-3)
        for _ in range(30):
            loss = sum(objective.terms(batch).loss.values())
            for p, g in zip(objective.parameters, torch.autograd.grad(loss, objective.parameters), strict=True):  # type: ignore[arg-type]
                p.grad = g
            optimizer.step()
            if objective.after_step:
                objective.after_step(batch)
            losses.append(float(torch.as_tensor(loss).detach()))
        assert min(losses[-5:]) < losses[0] - 1e-3 * abs(losses[0]), (
            f"{objective.name} does not fall: {losses[0]:.4g} to {losses[-1]:.4g}"
        )


# -- sampling


@needs()
def samples_are_images_of_the_spec(s: Subject) -> None:
    x = s.fitted.sample(5, s.given("dots", 5), **s.options)
    assert x.shape == (5, *SPEC.shape) and x.dtype == torch.float32, f"samples are {x.dtype} of shape {tuple(x.shape)}"
    assert torch.isfinite(x).all() and x.abs().max() <= 1 + 1e-5, "samples are not finite and within [-1, 1]"
    assert torch.allclose(x, SPEC.snap(x), atol=1e-5), "samples are not on the grid of levels"


@needs()
def sampling_is_pure(s: Subject) -> None:
    model = s.fitted
    before, state, mode = state_of(model), torch.get_rng_state(), model.training
    first = model.sample(3, s.given(None, 3))
    assert same(before, model.state_dict()), "sampling changes the weights"
    assert model.training == mode, "sampling changes the mode"
    assert torch.equal(state, torch.get_rng_state()), "sampling moves the global generator"
    torch.manual_seed(1234)
    second = model.train(not mode).sample(3, s.given(None, 3))
    model.train(mode)
    torch.set_rng_state(state)
    assert torch.equal(first, second), "samples depend on the mode or the global generator"


@needs()
def a_seed_is_an_image(s: Subject) -> None:
    labels = ["rows", "columns", "dots", None, "rows", "dots"]
    together = s.fitted.sample(6, s.given(labels, 6), seeds=5)
    parts = [s.fitted.sample(3, s.given(labels[i : i + 3], 3, i), seeds=Seeds.of(5, 3, start=i)) for i in (0, 3)]
    assert alike(together, torch.cat(parts)), "sample(6) differs from 2 x sample(3) of the same seeds"
    alone = s.fitted.sample(1, s.given(labels[4], 1, 4), seeds=Seeds.of(5, 1, start=4))
    assert alike(together[4:5], alone, 0.95), "an image depends on those beside it"


@needs()
def another_seed_is_another_image(s: Subject) -> None:
    x, again = (s.fitted.sample(4, s.given("rows", 4), seeds=seed) for seed in (0, 1))
    if isinstance(s.fitted, Translator) and s.fitted.deterministic:
        assert torch.equal(x, again), "a model that says it is deterministic draws other images under another seed"
        return
    assert not torch.equal(x, again), "seeds 0 and 1 give the same images"
    same_given = {k: v[:1].expand(4, *v.shape[1:]) if isinstance(v, torch.Tensor) else v for k, v in s.given("rows", 4).items()}
    x = s.fitted.sample(4, same_given, seeds=0)
    assert not torch.equal(x[0], x[1]), "images 0 and 1 of a seed are the same"


@needs()
def labels_change_images(s: Subject) -> None:
    a, b = (s.fitted.sample(12, s.given(name, 12), seeds=0) for name in ("rows", "columns"))
    assert (a - b).abs().mean() > 0.01, "the label does not change the images"


@needs()
def conditions_may_be_missing_or_as_trained(s: Subject) -> None:
    if s.picture:  # without one it may refuse, and there is no distribution to draw one from
        assert s.fitted.sample(2, s.given(None, 2)).shape == (2, *SPEC.shape), "a missing label fails"
        refused(lambda: s.fitted.sample(2, "as trained"), "drawing pictures as trained")
        refused(lambda: _read_back(s.fitted).sample(2), "a picture of no picture")
        return
    assert s.fitted.sample(2).shape == s.fitted.sample(2, "as trained").shape == (2, *SPEC.shape), (
        "given=None or 'as trained' fails"
    )


def _read_back(model: Model) -> Model:
    """The model as its checkpoint has it."""
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        return artifact.load(folder, lambda _: type(model))


@needs()
def steps_end_in_the_sample(s: Subject) -> None:
    steps = list(s.fitted.sample_steps(2, s.given("dots", 2), seeds=4))
    assert steps and steps[-1].step == steps[-1].total, "the last step is not numbered as the last"
    assert torch.equal(steps[-1].x, s.fitted.sample(2, s.given("dots", 2), seeds=4)), "sample_steps and sample differ"


@needs()
def steps_can_be_closed_early(s: Subject) -> None:
    before = state_of(s.fitted)
    iterator = s.fitted.sample_steps(2, s.given(None, 2))
    next(iterator)
    assert isinstance(iterator, Iterator)
    iterator.close()  # type: ignore[attr-defined]
    assert same(before, s.fitted.state_dict()) and torch.is_grad_enabled(), "closing sample_steps early leaves something changed"


@needs()
def wrong_requests_are_refused(s: Subject) -> None:
    model = s.fitted
    assert "did you mean 'rows'" in refused(lambda: model.sample(2, {"label": "row"}), "an unknown label")
    assert "did you mean 'label'" in refused(lambda: model.sample(2, {"labels": "rows"}), "an unknown column")
    refused(lambda: model.sample(2, {"label": ["rows"]}), "a list of another length")
    refused(lambda: model.sample(0), "n = 0")
    refused(lambda: model.sample(2, size=(4, 9)), "another size")


@needs()
def unfitted_models_are_refused(s: Subject) -> None:
    fresh = s.build(SPEC, s.schema)
    assert "fitted" in refused(lambda: fresh.sample(1), "sampling an unfitted model")


# -- training


@needs()
def fitting_changes_neither_config_nor_data(s: Subject) -> None:
    model, images = s.build(SPEC, s.schema), stripes(schema=s.schema)
    before = artifact.describe(model)
    levels, label = images.levels.clone(), images.given.columns["label"].clone()
    run = Run(model, images, Recipe(images=72, batch=24))
    model.prepare(images.x, images.given)
    for _ in range(3):
        run.step()
    assert artifact.describe(model) == before, "fitting changes the config"
    assert torch.equal(levels, images.levels) and torch.equal(label, images.given.columns["label"]), "fitting changes the data"


@needs()
def resuming_is_exact(s: Subject) -> None:
    whole = s.run(rounds=4, total=4)
    half = s.run(rounds=2, total=4)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint.save(half, Path(folder))
        again = s.run(total=4, model=s.build(SPEC, s.schema))
        checkpoint.load(again, Path(folder))
    for _ in range(2):
        again.step()
    assert same(whole.model.state_dict(), again.model.state_dict()), "4 steps differ from 2, a save, a load and 2"
    assert same(whole.averages.mean, again.averages.mean), "the averages do not resume"
    assert all(same(a.state(), b.state()) for a, b in zip(whole.optimizers, again.optimizers, strict=True)), (
        "an optimizer does not resume"
    )


@needs()
def unconditional_works_too(s: Subject) -> None:
    if s.picture:
        refused(lambda: s.build(SPEC, Schema()), "a model of pictures from pictures that is given none")
        return
    run = s.run(schema=Schema(), rounds=3)
    assert run.model.sample(2).shape == (2, *SPEC.shape), "an unconditional model does not sample"
    refused(lambda: run.model.sample(2, {"label": "rows"}), "a condition for an unconditional model")


@needs()
def other_shapes_fit_or_are_refused(s: Subject) -> None:
    spec = ImageSpec(3, (6, 5), levels=4)
    try:
        model = s.build(spec, schema_for(s.build, spec))
    except ValueError as error:
        assert str(error).endswith((".", "?")), f"refused with {error}, which is no sentence"
        return
    run = s.run(spec, rounds=2, model=model)
    given = run.data.given[:2] if s.picture else None
    assert run.model.sample(2, given).shape == (2, 3, 6, 5), "3 channels of 6 x 5 do not come back as such"


# -- checkpoints

_FRESH = """
import importlib, sys, torch
from nonesuch import catalog
from nonesuch.core.artifact import load_tensors, save_tensors
module, name = sys.argv[2].split(":")
model = catalog.load(sys.argv[1], getattr(importlib.import_module(module), name))
given = {"label": "rows", **load_tensors(sys.argv[1] + "/given.safetensors")[0]}
save_tensors(sys.argv[1] + "/x.safetensors", {"x": model.sample(3, given, seeds=2)}, {})
"""


@needs()
def a_fresh_process_draws_the_same(s: Subject) -> None:
    kind, given = type(s.fitted), s.given("rows", 3)
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(s.fitted, folder)
        pictures = {k: v for k, v in given.items() if isinstance(v, torch.Tensor)}
        artifact.save_tensors(Path(folder) / "given.safetensors", pictures, {})
        path = os.pathsep.join(p for p in sys.path if p)
        command = [sys.executable, "-c", _FRESH, folder, f"{kind.__module__}:{kind.__qualname__}"]
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": str(torch.get_num_threads())}
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, f"a fresh process cannot load it: {done.stderr.strip().splitlines()[-1:]}"
        x = artifact.load_tensors(Path(folder) / "x.safetensors")[0]["x"]
        assert alike(x, s.fitted.sample(3, given, seeds=2)), "a loaded model draws other images"


@needs()
def checkpoints_hold_all_and_only_the_model(s: Subject) -> None:
    model = s.fitted
    exported = artifact.export_state(model)
    assert not any(k.split(".")[-1] in model.transient for k in exported), "a transient buffer is exported"
    with tempfile.TemporaryDirectory() as folder:
        artifact.save(model, folder)
        again = artifact.load(folder, lambda _: type(model))
        assert same(exported, artifact.export_state(again)), "the weights change on the way"
        assert again.spec == model.spec and again.schema == model.schema and again.config == model.config, (
            "spec, schema or config change on the way"
        )
        weights = Path(folder) / artifact.WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-100])
        refused(lambda: artifact.load(folder, lambda _: type(model)), "a truncated checkpoint")
