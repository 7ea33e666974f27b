"""Unpaired translation by diffusion: a picture goes up one model's probability flow, to noise, and down another's.

    dx / ds = (x - D_a(x; s)) / s  from the picture at the lowest level s to z at the highest,                        (1)
    dx / ds = (x - D_b(x; s)) / s  from z back down,     x_s = x + s eps, D = E[x | x_s]

The two flows share nothing but z: each side is trained without the other, and one model given the kind of picture is two (D_a and
D_b its denoiser given a and given b). Going up is the inverse of coming down, so the way back finds the picture again but for the
solver's error, and nothing is learned for it: cycle consistency is exact as `steps` grow. What z keeps of a picture is what both
models put in the same place of their noise: layout and brightness, where kinds share them. Nothing says that it is what a person
would call the same; count it before believing.

Both ways take Heun's second-order steps, two evaluations each.

References:
    Dual Diffusion Implicit Bridges for Image-to-Image Translation (Su et al., 2022) arXiv:2203.08382, Algorithm 1
    Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364, Algorithm 1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Any

from torch import Tensor

from nonesuch.applications import require
from nonesuch.applications._noised import Noised, walk
from nonesuch.core.card import Card
from nonesuch.core.given import Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Denoiser, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds

needs: tuple[type, ...] = (Denoiser,)

SOURCE = "source"  # the column that the picture is


class Bridge(Model):
    """P(x | source, given), deterministic: the picture of `model`'s kind with the noise of the source; made by `bridge`."""

    card = Card(
        title="Dual Diffusion Implicit Bridges for Image-to-Image Translation",
        authors="Su, Xuan and Song, Jiaming and Meng, Chenlin and Ermon, Stefano",
        year=2022, arxiv="2203.08382", venue="International Conference on Learning Representations",
        summary="up one diffusion's flow to noise and down another's",
    )  # fmt: skip

    def __init__(self, config: Mapping[str, Any], spec: ImageSpec, schema: Schema, *, model: Model, source: Model) -> None:
        super().__init__(config, spec, schema, model=model, source=source)
        self.images_seen = model.images_seen

    def objectives(self) -> list[Objective]:
        raise ValueError("a bridge is for translating; fit the models at its ends.")

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        if options:
            raise ValueError(f"a bridge has no option {next(iter(options))!r}; its steps are chosen when it is made.")
        x, steps, column = given.columns[SOURCE], self.config["steps"], self.schema[SOURCE]
        assert isinstance(column, Image)
        if not bool(column.present(x).all()):
            raise ValueError(f"a bridge turns one picture into another; give it one for each: given={{{SOURCE!r}: x}}.")
        model, source = self.parts["model"], self.parts["source"]
        assert isinstance(model, Model)
        assert isinstance(source, Model)
        from_ = Noised(source, source.schema.given(len(x), self.config["told"]).to(x.device))
        to = Noised(model, Given(len(x), {name: given.columns[name] for name in model.schema.columns}))
        down = walk(max(from_.ends[0], to.ends[0]), min(from_.ends[1], to.ends[1]), steps)
        for i, (s, after) in enumerate(pairwise(reversed(down)), 1):
            x = heun(from_, x, s, after)
            yield Step(i, 2 * steps, x.clamp(-1, 1))
        for i, (s, after) in enumerate(pairwise(down), steps):
            x = heun(to, x, s, after)
            yield Step(i, 2 * steps, x.clamp(-1, 1))
        yield Step(2 * steps, 2 * steps, self.spec.snap(to(x, down[-1])))


def heun(denoise: Noised, x: Tensor, s: float, after: float) -> Tensor:
    """x of Eq. 1 at the noise level `after`, from x at s, whichever is higher."""
    slope = (x - denoise(x, s)) / s
    ahead = x + (after - s) * slope
    return x + (after - s) * (slope + (ahead - denoise(ahead, after)) / after) / 2


def bridge(model: Model, source: Model | None = None, told: Mapping[str, Any] | None = None, *, steps: int = 24) -> Bridge:
    """A model that makes pictures of `model`'s kind of pictures of another: sample(n, {"source": x, ...}).

    source: the diffusion model of the other kind (None: `model` itself); told: its condition, as {"label": "horse"}; steps: noise
    levels each way. What is given beside the picture is `model`'s. Raises ValueError for a model that is no denoiser, one that is
    given pictures already, two that make pictures of different shapes, and one model told nothing to tell kinds apart by.
    """
    require(model, needs, "bridging")
    require(source or model, needs, "bridging")
    if source is None and not told:
        raise ValueError("one model bridges between two conditions; say what the pictures are, as told={'label': 'horse'}.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 2:
        raise ValueError(f"steps must be a whole number, at least 2, not {steps!r}.")
    start = source or model
    if start.spec.shape != model.spec.shape:
        raise ValueError(f"a bridge has pictures of one shape at its ends, not {start.spec.shape} and {model.spec.shape}.")
    if any(isinstance(column, Image) for m in (start, model) for column in m.schema.columns.values()):
        raise ValueError("a bridge is between models of pictures alone; one that is given a picture translates by itself.")
    start.schema.given(1, told)
    schema = Schema({SOURCE: Image(model.spec), **model.schema.columns})
    return Bridge({"steps": steps, "told": dict(told or {})}, model.spec, schema, model=model, source=start)
