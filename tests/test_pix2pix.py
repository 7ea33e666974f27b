"""pix2pix: the terms by hand, who learns from what, where a fresh model begins, and that it learns what can be learned."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.degradation import Downsample, Grayscale, Mask
from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.models.gan._adversarial import pairing_loss, squared_gradient
from nonesuch.models.gan._translation import Glance, Plan, curved, matching, picture_column, primes
from nonesuch.models.gan.pix2pix import PRESETS, Config, Pix2Pix
from nonesuch.nn.bicubic import cubic, enlarge
from nonesuch.testing import schema_of, stripes
from nonesuch.testing._capabilities import translation_looks_no_farther_than_it_says
from nonesuch.testing._subject import Subject
from nonesuch.train.fit import fit

SPEC = ImageSpec(3, (8, 8))
SCHEMA = Schema({"downsample": Image(ImageSpec(3, (4, 4))), "label": Category(("a", "b"))})
TINY = Config(**{**PRESETS["tiny"].config, "widths": (8, 8)})


def model(config: Config = TINY, spec: ImageSpec = SPEC, schema: Schema = SCHEMA) -> Pix2Pix:
    built = Pix2Pix(config, spec, schema)
    built.images_seen.fill_(1)
    return built


def batch(n: int = 4, images: int = 0, spec: ImageSpec = SPEC, schema: Schema = SCHEMA) -> Batch:
    keys = Seeds.of(5, n, images)
    x = spec.snap(keys.uniform("x", *spec.shape) * 2 - 1)
    columns: dict[str, Tensor] = {}
    for name, column in schema.columns.items():
        columns[name] = keys.uniform(name, *column.spec.shape) * 2 - 1 if isinstance(column, Image) else torch.arange(n) % 2
    return Batch(x, Given(n, columns), keys, images, 100 * n)


def stirred(built: Pix2Pix) -> Pix2Pix:
    """The model with no weight at zero."""
    with torch.no_grad():
        for name, p in built.named_parameters():
            if p.abs().max() == 0:
                p.copy_(Seeds.of(0, 1).normal(name, *p.shape)[0] * 0.1)
    return built


# -- enlarging


def test_the_kernel_is_keys_and_its_phases_sum_to_one():
    at = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 2.5, -0.5], dtype=torch.float64)
    assert cubic(at).tolist() == pytest.approx([1, 0.5625, 0, -0.0625, 0, 0, 0.5625])
    for ratio in (2, 3, 4, 5):
        x = torch.full((1, 2, 3, 7), 0.3)
        torch.testing.assert_close(enlarge(x, ratio), torch.full((1, 2, 3 * ratio, 7 * ratio), 0.3))


def test_enlarging_keeps_straight_lines_and_undoes_downsampling_of_smooth_pictures():
    line = torch.linspace(-0.9, 0.9, 30).expand(1, 1, 5, 30)
    wide = enlarge(line, 3)[0, 0, 7, 12:-12]
    torch.testing.assert_close(wide.diff(), torch.full((len(wide) - 1,), float(line[0, 0, 0, :2].diff()) / 3), atol=1e-6, rtol=0)
    place = torch.linspace(0, 6, 48)
    smooth = (place[:, None].sin() * place.cos())[None, None] * 0.5
    assert float((enlarge(Downsample(2)(smooth), 2) - smooth)[..., 4:-4, 4:-4].abs().max()) < 0.003


def test_a_part_is_enlarged_as_in_the_whole():
    x = Seeds.of(0, 1).uniform("x", 2, 20, 30)
    whole, part = enlarge(x, 3), enlarge(x[..., 5:15, 9:25], 3)
    torch.testing.assert_close(whole[..., 21:39, 33:69], part[..., 6:24, 6:42], atol=1e-6, rtol=0)


# -- the networks


def test_primes_multiply_to_the_ratio():
    assert [primes(r) for r in (1, 2, 4, 6, 12, 7)] == [[], [2], [2, 2], [2, 3], [2, 2, 3], [7]]
    assert all(math.prod(primes(r)) == r for r in range(1, 40))


@pytest.mark.parametrize(("ratio", "channels"), [(1, 3), (2, 3), (3, 1), (4, 3)])
def test_a_fresh_model_is_cubic_convolution(ratio: int, channels: int):
    """Branches start at zero: regression begins at the classical answer, grey pictures at grey."""
    spec = ImageSpec(3, (4 * ratio, 5 * ratio))
    built = model(spec=spec, schema=Schema({"y": Image(ImageSpec(channels, (4, 5)))}))
    y = Seeds.of(0, 2).uniform("y", channels, 4, 5) * 2 - 1
    torch.testing.assert_close(built.translate(y), enlarge(y, ratio).expand(-1, 3, -1, -1).clamp(-1, 1))


def test_a_mask_beside_the_picture_is_not_taken_for_colour():
    built = model(spec=SPEC, schema=Schema({"mask": Image(Mask("random").output(SPEC))}))
    y = Seeds.of(0, 1).uniform("y", 4, 8, 8) * 2 - 1
    torch.testing.assert_close(built.translate(y), y[:, :3])


@pytest.mark.parametrize(("widths", "blocks", "ratio"), [((4,), (3,), 4), ((4, 4), (1, 2), 2), ((4, 4, 4), (1, 1, 1), 1)])
def test_reach_is_a_bound_and_not_a_loose_one(widths: tuple[int, ...], blocks: tuple[int, ...], ratio: int):
    spec = ImageSpec(1, (8 * ratio, 8 * ratio))
    config = replace(TINY, widths=widths, blocks=blocks, adversarial=0.0, features=0.0, noise=0)
    built = stirred(model(config, spec, Schema({"y": Image(ImageSpec(1, (8, 8)))}))).double()
    built.compute_dtype = torch.float64
    middle = -(-(built.reach + 2) // built.multiple) * built.multiple
    y = Seeds.of(0, 1).uniform("y", 1, 2 * middle + 1, 2 * middle + 1).double() * 0.2
    found = 0
    for step in range(built.multiple):  # a pixel's place in its cell decides how far it is seen
        other = y.clone()
        other[..., middle + step, middle + step] += 0.5
        given = built.schema.given(1)
        changed = built._translate(y, given, Seeds.of(0, 1)) != built._translate(other, given, Seeds.of(0, 1))
        rows = changed[0, 0].any(1).nonzero()[:, 0] // ratio - (middle + step)
        found = max(found, int(rows.abs().max()))
    assert 0.5 * built.reach <= found <= built.reach


def test_a_model_that_looks_farther_than_it_says_is_caught():
    subject = Subject(lambda spec, schema: catalog.build("gan/pix2pix", spec, schema, "tiny"), rounds=4)
    translation_looks_no_farther_than_it_says(subject)
    subject.fitted.reach = 3
    with pytest.raises(AssertionError, match="a pixel looks farther than the 3 it says"):
        translation_looks_no_farther_than_it_says(subject)


def test_plans_and_columns_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="as many blocks as widths"):
        Plan(2, 1, 1, 1, (8, 8), (1,), 8)
    for schema, said in [
        (Schema(), r"there is none: fit\(given=Downsample\(4\)\)"),
        (Schema({"a": Image(SPEC), "b": Image(SPEC)}), "these are a, b"),
        (Schema({"y": Image(ImageSpec(3, (4, 8)))}), "4 x 8 does not go into 8 x 8"),
        (Schema({"y": Image(ImageSpec(3, (16, 16)))}), "16 x 16 does not go into 8 x 8"),
        (Schema({"y": Image(ImageSpec(3, (3, 3)))}), "3 x 3 does not go into 8 x 8"),
        (Schema({"y": Image(ImageSpec(3, (4, 4, 4), "dhw"))}), "with the same axes"),
    ]:
        with pytest.raises(ValueError, match=said):
            picture_column(schema, SPEC, "pix2pix")


# -- the game


def test_the_generators_terms_are_those_by_hand():
    built, given = stirred(model()), batch()
    terms = built._generator_terms(given)
    fake = built.generate(given.given.columns["downsample"], given.given, given.keys, "generator/noise")
    off = fake - given.x
    torch.testing.assert_close(terms.loss["pixel"], (off**2 + 1e-6).sqrt().mean())
    torch.testing.assert_close(terms.watch["rmse"], off.square().mean().sqrt())
    grid = (given.keys.uniform("generator/grid", *SPEC.shape) - 0.5) * SPEC.step
    below, mine = built.criticise(fake + grid, given.given)
    above, known = built.criticise(given.x + grid, given.given)
    torch.testing.assert_close(terms.loss["adversarial"], TINY.adversarial * pairing_loss(below, above))
    torch.testing.assert_close(terms.loss["features"], TINY.features * matching(mine, known))
    torch.testing.assert_close(matching(known, known), torch.tensor(0.0))
    assert below.shape == (4, 16), "a logit for each patch of the coarsest grid"


def test_the_critics_penalty_is_that_of_the_mean_patch_at_every_kth_round():
    built = stirred(model(replace(TINY, penalty_every=3, gamma=0.5)))
    for turn in range(4):
        given = batch(images=4 * turn)
        terms = built._critic_terms(given)
        assert ("r1" in terms.loss) == (turn % 3 == 0)
    given = batch()
    loss = built._critic_terms(given).loss
    x = (given.x + (given.keys.uniform("critic/grid", *SPEC.shape) - 0.5) * SPEC.step).requires_grad_()
    logits, _ = built.criticise(x, given.given)
    expected = 3 * 0.5 / 2 * squared_gradient(logits.sum(1) / 4, x).mean()
    torch.testing.assert_close(loss["r1"], expected)


def test_the_critic_sees_the_given_picture():
    built, given = stirred(model()), batch()
    other = Given(4, {**given.given.columns, "downsample": -given.given.columns["downsample"]})
    seen, unseen = (built.criticise(given.x, told)[0].detach() for told in (given.given, other))
    assert float((seen - unseen).abs().min()) > 0


def test_a_regression_has_no_critic_and_no_noise():
    preset = PRESETS["regression"].config
    built = model(Config(**{**preset, "widths": (8,), "blocks": (1,)}))
    assert [o.name for o in built.objectives()] == ["generator"]
    assert not any("critic" in name for name, _ in built.named_parameters())
    assert built.deterministic
    assert [o.name for o in model().objectives()] == ["critic", "generator"]
    assert not model().deterministic
    with pytest.raises(ValueError, match="must not be negative"):
        model(replace(TINY, pixel=0.0, adversarial=0.0))


def test_sampling_without_a_picture_is_refused_and_a_hidden_one_is_grey():
    built = stirred(model(replace(TINY, noise=0)))
    with pytest.raises(ValueError, match=r"give it one for each: sample\(n, given=\{'downsample': y\}\)"):
        built.sample(2)
    with pytest.raises(ValueError, match="give it one for each"):
        built.sample(2, {"downsample": [torch.zeros(3, 4, 4), None]})
    hidden, grey = SCHEMA.missing(1), SCHEMA.given(1, {"downsample": torch.zeros(3, 4, 4)})
    torch.testing.assert_close(
        built.generate(built._picture(hidden), hidden, Seeds.of(0, 1)), built.generate(built._picture(grey), grey, Seeds.of(0, 1))
    )


# -- training


def blocks(n: int) -> Data:
    """Pictures of 4 x 4 cells of 2 colours: what is lost by halving twice can be guessed from the neighbours' edges."""
    keys = Seeds.of(9, n)
    place = torch.arange(16)
    edge = 4 + 8 * keys.uniform("edge", 2)
    rows, columns = (place[None] > edge[:, :1]).float(), (place[None] > edge[:, 1:]).float()
    x = (rows[:, :, None] * columns[:, None, :]).sub(0.5).mul(1.6)[:, None]
    spec = ImageSpec(1, (16, 16))
    images = Images(spec, Schema(), spec.to_levels(x).to(torch.uint8), Given(n))
    return Data("edges", images[: n - 40], replace(images[n - 40 :], name="test"), fingerprint(images))


def test_regression_beats_cubic_convolution_where_edges_are_to_be_guessed(tmp_path: Path):
    data = blocks(240)
    config = {"widths": (16,), "blocks": (2,), "tail": 8}
    built = fit(
        "gan/pix2pix",
        data,
        given=Downsample(2),
        preset="regression",
        config=config,
        budget="3k",
        recipe={"lr": 3e-3},
        precision="fp32",
    )
    y = Downsample(2)(data.test.x)
    error = (built.translate(y.clamp(-1, 1)) - data.test.x).square().mean()
    cubic_error = (enlarge(y, 2).clamp(-1, 1) - data.test.x).square().mean()
    assert float(error) < 0.5 * float(cubic_error)


def test_a_number_beside_the_picture_is_read():
    schema = Schema({"y": Image(SPEC), "strength": Number()})
    built = stirred(model(schema=schema))
    y = torch.zeros(1, 3, 8, 8)
    a, b = (built.translate(y, {"strength": value}) for value in (0.0, 1.0))
    assert float((a - b).abs().max()) > 1e-3


# -- the whole picture


def test_curves_are_piecewise_linear_between_their_knots():
    keys = Seeds.of(3, 2)
    y, knots = keys.uniform("y", 3, 5, 7) * 2 - 1, keys.normal("knots", 12)
    expected = y + torch.stack([
        torch.from_numpy(np.interp(y[i, c], np.linspace(-1, 1, 12), knots[i])) for i in range(2) for c in range(3)
    ]).view_as(y)  # fmt: skip
    torch.testing.assert_close(curved(y, knots), expected.float(), atol=1e-5, rtol=0)
    assert curved(y, torch.zeros_like(knots)).equal(y)


def test_a_glance_counts_values_and_knows_no_place():
    glance, y = Glance(2, 1, 8, 4), Seeds.of(1, 2).uniform("y", 1, 16, 16) * 2 - 1
    counted = glance.look(y, torch.float32)[:, 8:]
    edges = torch.linspace(-1, 1, 33)[1:]
    below = (y.flatten(1)[..., None] < edges).float().mean(1)
    torch.testing.assert_close(counted, below - torch.linspace(1 / 32, 1, 32), atol=1e-6, rtol=0)
    moved = y.flatten(2)[..., torch.randperm(256, generator=torch.Generator().manual_seed(0))].view_as(y)
    torch.testing.assert_close(glance.look(moved, torch.float32)[:, 8:], counted)
    flat = glance.look(torch.full((1, 1, 16, 16), 0.3), torch.float32)
    assert not torch.allclose(flat[:, :8], glance.look(y[:1], torch.float32)[:, :8]), "grain shows in the features"


def test_a_fresh_glance_changes_nothing_and_its_parameters_are_trained():
    built = model(replace(TINY, glance=8))
    y = Seeds.of(0, 1).uniform("y", 3, 4, 4) * 2 - 1
    torch.testing.assert_close(built.translate(y), enlarge(y, 2).clamp(-1, 1))
    given = batch()
    sum(stirred(built)._generator_terms(given).loss.values()).backward()
    assert built.looks is not None
    assert all(p.grad is not None and float(p.grad.abs().max()) > 0 for p in built.looks.parameters())


def halves(n: int) -> tuple[Data, Tensor]:
    """A dark and a light half with an edge anywhere, and the same under another light: far from the edge nothing tells which."""
    keys = Seeds.of(7, n)
    edge = 4 + 8 * keys.uniform("edge", 1)
    x = torch.where(torch.arange(16) > edge, 0.6, -0.6)[:, None, None].expand(-1, 1, 16, -1)
    spec = ImageSpec(1, (16, 16))
    y = x + 0.7 * (keys.uniform("light", 1, 1, 1) - 0.5)
    schema = Schema({"dark": Image(replace(spec, kind="continuous", levels=None))})
    images = Images(spec, schema, spec.to_levels(x).to(torch.uint8), Given(n, {"dark": y}))
    return Data("halves", images[: n - 40], replace(images[n - 40 :], name="test"), fingerprint(images)), y[n - 40 :]


def test_light_is_known_to_a_glance_and_not_to_a_neighbourhood():
    data, y = halves(240)
    errors = {}
    for glance in (0, 8):
        config = {"widths": (8,), "blocks": (1,), "glance": glance}
        recipe = {"lr": 5e-3}
        built = fit(
            "gan/pix2pix", data, given="dark", preset="regression", config=config, budget="3k", recipe=recipe, precision="fp32"
        )
        assert isinstance(built, Pix2Pix)
        errors[glance] = float((built.translate(y) - data.test.x).square().mean())
    assert errors[8] < 0.3 * errors[0], errors


def test_presets_are_for_their_pictures():
    assert not schema_of("diffusion").columns.keys() - {"label"}
    assert {*schema_of("gan/pix2pix").columns} == {"label", "picture"}
    assert Grayscale().output(ImageSpec(3, (32, 32))).channels == 1
    images = stripes(schema=schema_of("gan/pix2pix"))
    x, y = images.x, images.given.columns["picture"]
    assert torch.equal(y[..., ::2, ::2], x[..., ::2, ::2])
    assert torch.equal(y[..., 1::2, 1::2], x[..., ::2, ::2])
