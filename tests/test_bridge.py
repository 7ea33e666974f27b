"""Bridges between diffusions: the closed form between normals, its order, the way back, and what is refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from of_toys import HIGH, LOW, ToyDecoder, ToyDenoiser, ToyPreserving, toy
from torch import Tensor

from nonesuch import catalog, cli
from nonesuch.applications.bridge import SOURCE, bridge
from nonesuch.applications.provenance import read_origin
from nonesuch.applications.translate import translate
from nonesuch.core import artifact
from nonesuch.core.given import Category, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.formats import Picture
from nonesuch.data.toy import GaussianMixture

SHAPE = (1, 2, 3)


def normal(seed: int, scale: float) -> GaussianMixture:
    """A normal of six correlated pixels."""
    draw = Seeds.of(seed, 1)
    root = torch.eye(6) + 0.3 * draw.normal("root", 6, 6)[0]
    return GaussianMixture.normal(draw.normal("mean", *SHAPE)[0] * 0.3, scale**2 * root @ root.T)


def power(matrix: Tensor, exponent: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**exponent) @ vectors.T


def closed_form(a: GaussianMixture, b: GaussianMixture, x: Tensor) -> Tensor:
    """Eq. 1 between normals: the deviation from the mean grows and shrinks as (S + s^2)^1/2; the last step is E[x | x_s]."""
    sa, sb, eye = a.covariances[0], b.covariances[0], torch.eye(6).double()
    up = power(sa + HIGH**2 * eye, 0.5) @ power(sa + LOW**2 * eye, -0.5)
    z = a.means[0].flatten() + (x.double().flatten(1) - a.means[0].flatten()) @ up.T
    down = power(sb + LOW**2 * eye, 0.5) @ power(sb + HIGH**2 * eye, -0.5)
    last = sb @ torch.linalg.inv(sb + LOW**2 * eye)
    return (b.means[0].flatten() + (z - b.means[0].flatten()) @ (last @ down).T).view(-1, *SHAPE)


A, B = normal(1, 0.5), normal(2, 0.3)


def translated(kind: Any, a: GaussianMixture, b: GaussianMixture, x: Tensor, steps: int) -> Tensor:
    found: Tensor = bridge(toy(kind, b), toy(kind, a), steps=steps).sample(len(x), {SOURCE: x})
    return found


@pytest.mark.parametrize("kind", [ToyDenoiser, ToyPreserving])
def test_between_normals_it_is_the_closed_form_of_second_order(kind: Any) -> None:
    x = A.sample(16, Seeds.of(0, 16))[0].float()
    truth = closed_form(A, B, x)
    errors = [float((translated(kind, A, B, x, steps) - truth).square().mean().sqrt()) for steps in (13, 25, 49)]
    assert errors[-1] < 2e-3
    assert all(3 < a / b < 5.5 for a, b in itertools.pairwise(errors)), errors


def test_the_way_back_finds_the_picture() -> None:
    """But for the last step, which leaves out the least noise: of standard deviation LOW."""
    x = A.sample(16, Seeds.of(0, 16))[0].float()
    back = translated(ToyDenoiser, B, A, translated(ToyDenoiser, A, B, x, 64), 64)
    assert float((back - x).abs().max()) < LOW
    assert float((translated(ToyDenoiser, A, B, x, 64) - x).abs().mean()) > 0.1  # which would also be found by doing nothing


def test_a_different_picture_on_the_other_side() -> None:
    """Modes go to modes: of two mixtures of two, each mode's pictures stay together."""
    means = torch.tensor([[[[-0.8, 0.8]]], [[[0.8, -0.8]]]]).double()
    a = GaussianMixture(torch.full((2,), 0.5).double(), means, 0.01 * torch.eye(2).double().repeat(2, 1, 1))
    b = GaussianMixture(torch.full((2,), 0.5).double(), means * 0.5, 0.01 * torch.eye(2).double().repeat(2, 1, 1))
    x = a.sample(200, Seeds.of(0, 200))[0].float()
    made = translated(ToyDenoiser, a, b, x, 40)
    assert bool(((made[:, 0, 0, 0] > 0) == (x[:, 0, 0, 0] > 0)).all())
    assert abs(float(made.abs().mean()) - 0.4) < 0.03


def conditional() -> Any:
    schema = Schema({"label": Category(("horse", "zebra"))})
    model = catalog.build("diffusion/edm", ImageSpec(1, (8, 8)), schema, "tiny")
    draw = Seeds.of(0, 1)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(draw.normal(name, *p.shape)[0] * 0.05)
    model.images_seen.fill_(1)
    return model


def test_one_model_given_two_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = conditional()
    x = Seeds.of(3, 2).uniform("x", 1, 8, 8) * 2 - 1
    both = bridge(model, told={"label": "horse"}, steps=4)
    zebra = both.sample(2, {SOURCE: x, "label": "zebra"})
    assert not zebra.equal(both.sample(2, {SOURCE: x, "label": "horse"}))
    assert zebra.equal(both.sample(2, {SOURCE: x, "label": "zebra"}, seeds=9))  # deterministic
    assert translate(both, x, given={"label": "zebra"}).equal(zebra)

    artifact.save(model, tmp_path / "model")
    levels = model.spec.to_levels(x[:1])[0].numpy().astype(np.uint8)
    data, suffix = formats.encode(Picture(levels, "hw"))
    (tmp_path / f"one{suffix}").write_bytes(data)
    asked = ["translate", str(tmp_path / "model"), str(tmp_path / f"one{suffix}"), "--out", str(tmp_path / "out"), "--json"]
    assert cli.main([*asked, "--source", "label=horse", "--given", "label=zebra"]) == 0
    (made,) = json.loads(capsys.readouterr().out)["pictures"]
    origin = read_origin(Path(made["out"]))
    assert origin is not None
    assert origin.given == {"label": "zebra"}
    assert cli.main(asked) == 2
    assert "--source" in capsys.readouterr().err


def test_what_is_refused() -> None:
    a, model = toy(ToyDenoiser, A), conditional()
    with pytest.raises(ValueError, match="Denoiser"):
        bridge(toy(ToyDecoder, A), a)
    with pytest.raises(ValueError, match="say what the pictures are"):
        bridge(model)
    with pytest.raises(ValueError, match="one shape"):
        bridge(a, model, {"label": "horse"})
    with pytest.raises(ValueError, match="at least 2"):
        bridge(a, a, steps=1)
    with pytest.raises(ValueError, match="did you mean 'horse'"):
        bridge(model, told={"label": "hores"})
    with pytest.raises(ValueError, match="give it one for each"):
        bridge(a, a).sample(1)
    with pytest.raises(ValueError, match="by itself"):
        bridge(catalog.build("diffusion/edm", model.spec, Schema({"grey": Image(model.spec)}), "tiny"), model, {"label": "horse"})
