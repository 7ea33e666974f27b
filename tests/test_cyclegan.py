"""CycleGAN: its terms by hand, and that it finds a map between two heaps of pictures without a pair."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given, Image, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.models.gan._adversarial import squared_gradient
from nonesuch.models.gan.cyclegan import PRESETS, Config, CycleGAN
from nonesuch.train.fit import fit

SPEC = ImageSpec(1, (8, 8), levels=17)
KINDS = Schema({"kind": Category(("a", "b"))})
TINY = Config(**PRESETS["tiny"].config)


def model(config: Config = TINY, schema: Schema = KINDS, spec: ImageSpec = SPEC) -> CycleGAN:
    built = CycleGAN(config, spec, schema)
    built.images_seen.fill_(1)
    with torch.no_grad():
        for name, p in built.named_parameters():
            if p.abs().max() == 0:
                p.copy_(Seeds.of(0, 1).normal(name, *p.shape)[0] * 0.1)
    return built


def batch(kinds: list[int], images: int = 0) -> Batch:
    n = len(kinds)
    keys = Seeds.of(5, n, images)
    x = SPEC.snap(keys.uniform("x", *SPEC.shape) * 2 - 1)
    return Batch(x, Given(n, {"kind": torch.tensor(kinds), "source": torch.full_like(x, torch.nan)}), keys, images, 100 * n)


def shift(keys: Seeds, name: str) -> Tensor:
    return (keys.uniform(name, *SPEC.shape) - 0.5) * SPEC.step


@torch.no_grad()
def test_the_generators_terms_are_the_papers():
    """Row by row with two kinds: Eqs. 1 and 2 of the paper, and the identity term of its section 5.2."""
    built, given = model(), batch([0, 1, 1, -1])
    loss = built._generator_terms(given).loss
    adversarial = cycle = identity = 0.0
    for i, own in enumerate([0, 1, 1]):  # the fourth is of no known kind
        x, other = given.x[i : i + 1], 1 - own
        made = built.generate(x, other)
        seen = made + shift(given.keys, f"generator/{other}")[i : i + 1]
        adversarial += float((built.criticise(seen, other) - 1).square().mean()) / 4
        cycle += float((built.generate(made, own) - x).abs().mean()) / 4
        identity += float((built.generate(x, own) - x).abs().mean()) / 4
    assert float(loss["adversarial"]) == pytest.approx(TINY.adversarial * adversarial, rel=1e-4)
    assert float(loss["cycle"]) == pytest.approx(TINY.cycle * cycle, rel=1e-4)
    assert float(loss["identity"]) == pytest.approx(TINY.identity * identity, rel=1e-4)


def test_the_critics_terms_are_least_squares_with_penalties():
    built, given = model(replace(TINY, penalty_every=2, gamma=0.6, last_gamma=0.15)), batch([0, 1, 1])
    loss = built._critic_terms(given).loss
    score = slope = 0.0
    for k in range(2):
        for i, own in enumerate([0, 1, 1]):
            x = given.x[i : i + 1] if own == k else built.generate(given.x[i : i + 1], k).detach()
            x = (x + shift(given.keys, f"critic/{k}")[i : i + 1]).requires_grad_()
            logits = built.criticise(x, k)
            score += float((logits - float(own == k)).detach().square().mean()) / 3
            slope += float(squared_gradient(logits.sum(1) / logits.shape[1] ** 0.5, x).detach()) / 3
    assert float(loss["critic"].detach()) == pytest.approx(score, rel=1e-4)
    assert float(loss["penalty"].detach()) == pytest.approx(2 * 0.6 / 2 * slope, rel=1e-3)
    assert "penalty" not in built._critic_terms(batch([0, 1, 1], images=3)).loss
    assert [built._gamma(batch([0, 1], images=i)) for i in (0, 100, 200, 300)] == pytest.approx([0.6, 0.3, 0.15, 0.15])


def test_players_step_apart():
    """A generator's turn leaves critics without gradients, and theirs leaves it without."""
    built = model()
    assert [o.name for o in built.objectives()] == ["critic", "generator"]
    sum(built._generator_terms(batch([0, 1])).loss.values()).backward()
    assert all(p.grad is None for p in built.critics.parameters())
    assert all(p.grad is not None for p in built.generators.parameters())


def test_a_translation_goes_to_the_kind_that_is_asked_for():
    built = model()
    y = batch([0] * 6).x
    told = built.translate(y, {"kind": ["a", "b", "a", "b", "b", "a"]})
    for k, rows in ((0, [0, 2, 5]), (1, [1, 3, 4])):
        torch.testing.assert_close(told[rows], built.generate(y[rows], k).clamp(-1, 1))
    drawn = built.translate(y.repeat(20, 1, 1, 1), seeds=3)
    kinds = KINDS.columns["kind"].draw(Seeds.of(3, 120), "kind")
    torch.testing.assert_close(drawn[kinds == 1], built.translate(y.repeat(20, 1, 1, 1), {"kind": "b"})[kinds == 1])
    assert 30 < int(kinds.sum()) < 90, "a missing kind is drawn by frequency"


@pytest.mark.parametrize("skips", [True, False])
@torch.no_grad()
def test_without_skips_nothing_goes_past_the_coarsest_grid(skips: bool):
    built, x = model(replace(TINY, skips=skips)), batch([0, 0]).x
    made = built.generate(x, 1)
    assert float((made[0] - made[1]).abs().max()) > 1e-3
    for way in built.generators[1].coarser:
        way.weight.zero_()
    made = built.generate(x, 1)
    assert made[0].equal(made[1]) == (not skips)


def test_what_it_cannot_be_built_on_is_refused():
    for schema, said in [
        (Schema(), "two or more categories"),
        (Schema({"kind": Category(("a",))}), "two or more categories"),
        (Schema({**KINDS.columns, "age": Number()}), "no use for other columns"),
        (Schema({**KINDS.columns, "y": Image(ImageSpec(1, (4, 4)))}), "one kind and size on both sides"),
        (Schema({**KINDS.columns, "y": Image(ImageSpec(3, (8, 8)))}), "one kind and size on both sides"),
    ]:
        with pytest.raises(ValueError, match=said):
            CycleGAN(TINY, SPEC, schema)
    with pytest.raises(ValueError, match="cannot do without"):
        model(replace(TINY, last_gamma=0.0))
    built = model()
    with pytest.raises(ValueError, match="no picture of 'b' to learn from"):
        built.prepare(batch([0, 0]).x, Given(2, {"kind": torch.tensor([0, 0])}))


def test_only_the_run_that_trains_it_has_sources_at_hand():
    built, given = model(), batch([0, 1, 1, 0])
    with pytest.raises(ValueError, match="turns pictures of one kind into another; give it one for each"):
        built.sample(2)
    built.prepare(given.x, given.given)
    made = built.sample(8, {"kind": "b"}, seeds=1)
    possible = SPEC.snap(built.translate(given.x[[0, 3]], {"kind": "b"}))
    assert all(any(torch.equal(x, p) for p in possible) for x in made), "of pictures of the other kind"


def heaps(n: int) -> Data:
    """Bars at one of 8 places, dark ones on black and light ones on grey: no pairs, and one map that changes little."""
    keys = Seeds.of(1, n)
    kind, place = torch.arange(n) % 2, keys.integers("place", 8)
    bars = -1 + 0.8 * torch.nn.functional.one_hot(place, 8).float()[:, None, None, :].expand(-1, 1, 8, 8)
    x = bars + 0.9 * kind.view(-1, 1, 1, 1)
    images = Images(SPEC, KINDS, SPEC.to_levels(x).to(torch.uint8), Given(n, {"kind": kind}))
    return Data("bars", images, images[:8], fingerprint(images))


@pytest.mark.slow
def test_it_finds_the_map_between_two_heaps():
    data = heaps(256)
    built = fit("gan/cyclegan", data, given="kind", preset="tiny", budget="10k", recipe={"lr": 2e-3}, precision="fp32")
    for own, other, by in ((0, "b", 0.9), (1, "a", -0.9)):
        x = data.train.x[data.train.labels() == own][:64]
        off = (built.translate(x, {"kind": other}) - (x + by)).abs().mean()
        assert float(off) < 0.2 * 0.9, f"to {other}: off by {float(off):.3f}, where nothing done is off by 0.9"
