"""Told moves: a shift is a shift by the pixels told, a bend is the matrix told, and nothing moved is nothing told."""

from __future__ import annotations

import itertools

import pytest
import torch

from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.nn.moves import BEND, move, told


def noise(spec: ImageSpec, n: int) -> torch.Tensor:
    k = Seeds.of(0, n).integers("x", spec.levels or 2, *spec.shape)
    return k if spec.kind == "categorical" else spec.from_levels(k)


@pytest.mark.parametrize("size", [(8, 6), (16, 8), (12,), (8, 8, 8)])
@pytest.mark.parametrize("kind", ["ordinal", "categorical"])
def test_shifts_are_by_the_pixels_told_with_edges_repeated(size: tuple[int, ...], kind: str):
    axes = {1: "l", 2: "hw", 3: "dhw"}[len(size)]
    spec = ImageSpec(2, size, axes, kind, 5)
    x = noise(spec, 300)
    moved, how = move(x, spec, Seeds.of(1, 300), 1.0)
    assert how.shape == (300, told(len(size)))
    straight = (how[:, len(size) :] == 0).all(1) if kind == "ordinal" and len(size) > 1 else torch.ones(300, dtype=torch.bool)
    assert straight.sum() > 100
    most = [max(1, s // 8) for s in size]
    for a, b, t in zip(x[straight], moved[straight], how[straight], strict=True):
        for axis, side in enumerate(size):
            index = (torch.arange(side) - round(float(t[axis]) * most[axis])).clamp(0, side - 1)
            a = a.index_select(axis + 1, index)
        assert torch.equal(a, b)
    steps = [torch.arange(-m, m + 1) / m for m in most]
    if len(size) < 3:
        seen = {tuple(round(v, 3) for v in t[: len(size)].tolist()) for t in how}
        assert seen == {tuple(round(float(v), 3) for v in p) for p in itertools.product(*steps)}


def test_a_share_is_moved_and_the_rest_untouched():
    spec = ImageSpec(1, (8, 8), levels=17)
    x = noise(spec, 2000)
    moved, how = move(x, spec, Seeds.of(1, 2000), 0.3)
    still = (how == 0).all(1)
    assert torch.equal(moved[still], x[still])
    assert abs(float(still.double().mean()) - (0.7 + 0.15 / 9)) < 0.03  # a shift by nothing is no move
    none, nothing = move(x, spec, Seeds.of(1, 2000), 0.0)
    assert torch.equal(none, x)
    assert not nothing.any()
    again, _ = move(x[5:6], spec, Seeds.of(1, 2000)[5:6], 0.3)
    assert torch.equal(again[0], moved[5])  # whoever is beside it


def test_bends_are_the_matrix_told():
    spec = ImageSpec(1, (32, 32), levels=256)
    rows, columns = torch.meshgrid(*[(torch.arange(32) + 0.5) / 16 - 1] * 2, indexing="ij")
    plane = spec.snap(0.4 * columns + 0.3 * rows).expand(200, 1, 32, 32)  # a plane is resampled without error but the levels'
    moved, how = move(plane, spec, Seeds.of(2, 200), 1.0)
    assert torch.equal(moved, spec.snap(moved))
    bent = ((how[:, 2:] != 0).all(1)) & (how[:, :2] == 0).all(1)
    assert bent.any()
    for picture, t in zip(moved[bent], how[bent], strict=True):
        m = torch.eye(2) + BEND * t[2:].view(2, 2)
        expected = 0.4 * (m[0, 0] * columns + m[0, 1] * rows) + 0.3 * (m[1, 0] * columns + m[1, 1] * rows)
        inner = picture[0, 8:-8, 8:-8] - expected[8:-8, 8:-8]
        assert float(inner.abs().max()) < 1.01 * spec.step
