"""The GAN family: both penalties and the loss in closed form, who learns from what, and the random window."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Likelihood
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.gan._adversarial import pairing_loss, squared_gradient
from nonesuch.models.gan._augment import _resample, augment, numbers
from nonesuch.models.gan.r3gan import PRESETS, R3GAN, Config
from nonesuch.train.optim import Adam
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC = ImageSpec(1, (8, 8), levels=17)
LABELS = Schema({"label": Category(("a", "b", "c"))})
TINY = Config(**PRESETS["tiny"].config)


def model(config: Config = TINY, spec: ImageSpec = SPEC, schema: Schema = LABELS) -> R3GAN:
    built = R3GAN(config, spec, schema)
    built.images_seen.fill_(1)
    return built


def batch(n: int = 6, images: int = 0, spec: ImageSpec = SPEC, schema: Schema = LABELS) -> Batch:
    keys = Seeds.of(5, n, images)
    x = spec.snap(keys.uniform("x", *spec.shape) * 2 - 1)
    return Batch(x, schema.given(n, "as trained" if schema else None, keys), keys, images, 100 * n)


class Quadratic(nn.Module):
    """D(x) = x A x / 2 + b x, whose gradient is A x + b."""

    def __init__(self, n: int) -> None:
        super().__init__()
        draw = Seeds.of(1, 1).normal("A", n + 1, n)[0]
        self.a, self.b = nn.Parameter(draw[:n] + draw[:n].T), nn.Parameter(draw[n])

    def forward(self, x: Tensor, condition: Tensor | None = None) -> Tensor:
        flat = x.flatten(1)
        return (flat @ self.a * flat).sum(1) / 2 + flat @ self.b

    def slope(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.a + self.b


def test_the_pairing_loss_is_softplus_of_the_difference():
    real, fake = torch.tensor([0.0, 2.0, -1.0]), torch.tensor([0.0, 0.0, 3.0])
    by_hand = (math.log(2) + math.log(1 + math.exp(-2)) + math.log(1 + math.exp(4))) / 3
    assert float(pairing_loss(real, fake)) == pytest.approx(by_hand, rel=1e-6)
    assert float(pairing_loss(real + 7, fake + 7)) == pytest.approx(by_hand, rel=1e-6), "only differences count"


def test_the_penalty_and_its_weight_gradient_are_those_of_a_quadratic_critic():
    critic, x = Quadratic(5), Seeds.of(0, 4).normal("x", 5).requires_grad_()
    norms = squared_gradient(critic(x), x)
    slope = critic.slope(x).detach()
    torch.testing.assert_close(norms, slope.square().sum(1))
    a, b = torch.autograd.grad(norms.sum(), [critic.a, critic.b])
    # With D = x A x / 2 for any A, the slope is (A + A^T) x / 2 + b, hence the symmetric part of 2 s x^T.
    outer = 2 * slope.T @ x.detach()
    torch.testing.assert_close(a, (outer + outer.T) / 2)
    torch.testing.assert_close(b, 2 * slope.sum(0))


def test_both_penalties_are_taken_at_every_kth_round_with_k_times_their_weight():
    built = model(replace(TINY, augment=0.0, noise=0.0, penalty_every=3, gamma=0.5, gamma_end=0.5))
    built.critic = Quadratic(64)
    for turn in range(7):
        seen = batch(images=6 * turn)
        terms = built.objectives()[0].terms(seen)
        assert ("r1" in terms.loss) == ("r2" in terms.loss) == (turn % 3 == 0)
        fake = built.generate(seen.keys.normal("critic/z", TINY.latent), seen.given)
        expected = pairing_loss(built.critic(seen.x), built.critic(fake))
        torch.testing.assert_close(terms.loss["critic"], expected, rtol=1e-4, atol=1e-5)
        if turn % 3 == 0:
            for name, x in (("r1", seen.x), ("r2", fake)):
                torch.testing.assert_close(terms.loss[name], 3 * 0.25 * built.critic.slope(x).square().sum(1).mean())


def test_gamma_falls_in_equal_ratios():
    built = model(replace(TINY, gamma=0.9, gamma_end=0.1))
    assert [built._gamma(t) for t in (0.0, 0.5, 1.0)] == pytest.approx([0.9, 0.3, 0.1])


def test_second_derivatives_in_bf16_point_where_those_in_float32_do():
    built, seen = model(), batch(32)
    for p in built.critic.parameters():
        if p.dim() > 1 and not p.any():  # the layers that start at zero
            p.data = Seeds.of(2, 1).normal("w", *p.shape)[0] * 0.1
    weights = [p for p in built.critic.parameters() if p.dim() > 1]
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        built.compute_dtype = dtype
        x = seen.x.clone().requires_grad_()
        grads = torch.autograd.grad(squared_gradient(built.criticise(x, seen.given), x).mean(), weights)
        found.append(torch.cat([g.flatten() for g in grads]))
        assert all(g.abs().max() > 0 for g in grads)
    assert torch.cosine_similarity(*found, dim=0) > 0.995


def test_each_player_learns_alone():
    built, seen = model(), batch()
    critic, generator = built.objectives()
    owned = [p for o in (critic, generator) for p in o.parameters]
    assert {id(p) for p in owned} == {id(p) for p in built.parameters()}
    assert len(owned) == len({id(p) for p in owned})
    assert (critic.average, generator.average) == (False, True)
    loss = sum(critic.terms(seen).loss.values())
    assert all(g is None for g in torch.autograd.grad(loss, generator.parameters, allow_unused=True))
    for player, other in ((critic, generator), (generator, critic)):
        mine, theirs = [[p.detach().clone() for p in o.parameters] for o in (player, other)]
        optimizer = Adam(player, Recipe(images=600, batch=6, clip=0.0))
        optimizer.step(torch.autograd.grad(sum(player.terms(seen).loss.values()), player.parameters), 0)
        assert all(torch.equal(a, b) for a, b in zip(theirs, other.parameters, strict=True))
        assert any(not torch.equal(a, b) for a, b in zip(mine, player.parameters, strict=True))


def test_a_step_of_each_player_lowers_its_own_loss():
    built, seen = model(), batch(32)
    for player in built.objectives():
        before = player.terms(seen).loss[player.name]
        grads = torch.autograd.grad(before, player.parameters)
        with torch.no_grad():
            for p, g in zip(player.parameters, grads, strict=True):
                p -= 1e-3 * g
        assert player.terms(seen).loss[player.name] < before


# -- the window ----------------------------------------------------------------------------------------------------------------


def test_a_whole_shift_moves_pixels_and_repeats_the_edge():
    x = Seeds.of(0, 2).normal("x", 3, 4, 6)
    moved = _resample(x, torch.tensor([[0.25, 0.0], [0.0, -1 / 6]]), torch.ones(2, 2))
    torch.testing.assert_close(moved[0], torch.cat([x[0, :, :1], x[0, :, :-1]], 1))
    torch.testing.assert_close(moved[1], torch.cat([x[1, :, :, 1:], x[1, :, :, -1:]], 2))


def test_magnifying_a_ramp_flattens_it():
    x = torch.arange(9.0).expand(1, 1, 9)
    torch.testing.assert_close(_resample(x, torch.zeros(1, 1), torch.tensor([[2.0]])), 4 + (x - 4) / 2)


@pytest.mark.parametrize("size", [(6,), (4, 5), (3, 4, 4)])
def test_the_augmentation_is_differentiable_and_keeps_flat_images(size: tuple[int, ...]):
    u = Seeds.of(0, 3).uniform("u", numbers(len(size))).double()
    x = Seeds.of(0, 3).normal("x", 2, *size).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augment(x, u, 1.0), (x,))
    flat = torch.full((3, 2, *size), 0.3, dtype=torch.float64)
    torch.testing.assert_close(augment(flat, u, 1.0, colour=False), flat)
    assert not torch.allclose(augment(flat, u, 1.0), flat)
    assert torch.equal(augment(x, u, 0.0, colour=False), x)


def test_an_image_is_left_alone_as_often_as_the_probability_says():
    n, p = 2000, 0.3
    x = Seeds.of(0, n).normal("x", 1, 4, 4)
    changed = (augment(x, Seeds.of(1, n).uniform("u", numbers(2)), p) - x).abs().flatten(1).amax(1) > 1e-6
    assert float(changed.float().mean()) == pytest.approx(1 - (1 - p) ** 4, abs=4 * 0.5 / n**0.5)


def test_a_pair_is_seen_through_one_window_that_its_key_alone_decides():
    built, seen = model(), batch()
    real, fake = built._seen(seen.x, seen.x, seen.keys, "critic").chunk(2)
    torch.testing.assert_close(real, fake)
    alone, _ = built._seen(seen.x[4:5], seen.x[4:5], seen.keys[4:5], "critic").chunk(2)
    torch.testing.assert_close(alone, real[4:5])
    assert not torch.allclose(real, built._seen(seen.x, seen.x, seen.keys, "generator")[:6])


# -- the model -----------------------------------------------------------------------------------------------------------------


def test_sampling_is_pure_and_an_image_is_its_seed():
    built = model()
    weights, state = [p.clone() for p in built.parameters()], torch.random.get_rng_state()
    six = built.sample(6, {"label": "b"}, seeds=3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(weights, built.parameters(), strict=True))
    assert torch.equal(six, SPEC.snap(six))
    assert six.abs().max() <= 1
    halves = [built.generate(Seeds.of(3, 3, i).normal("prior", 8), built.schema.given(3, {"label": "b"})) for i in (0, 3)]
    whole = built.decode(built.prior(6, seeds=3), {"label": "b"})
    torch.testing.assert_close(torch.cat(halves), whole, rtol=0, atol=1e-5)
    assert torch.equal(SPEC.snap(whole), six)
    with pytest.raises(ValueError, match="no option 'stepz'"):
        built.sample(1, stepz=3)


def test_the_label_reaches_both_players():
    built, seen = model(), batch()
    z = built.prior(6)
    drawn = [built.decode(z, {"label": name}) for name in ("a", "b", None)]
    said = [built.criticise(seen.x, built.schema.given(6, {"label": name})) for name in ("a", "b", None)]
    for one in (drawn, said):
        assert min((one[i] - one[j]).abs().max() for i, j in ((0, 1), (0, 2), (1, 2))) > 1e-2


def test_the_critic_projects_its_features_on_the_condition():
    built, seen = model(), batch()
    c = built.critic_embed(seen.given, 6, torch.device("cpu"))
    zero = built.critic(seen.x, torch.zeros_like(c))
    double = built.critic(seen.x, 2 * c)
    torch.testing.assert_close(double - zero, 2 * (built.critic(seen.x, c) - zero), rtol=1e-3, atol=1e-5)


def test_the_latent_moves_the_image_and_has_a_gradient():
    built = model()
    z = built.prior(2).requires_grad_()
    (grad,) = torch.autograd.grad(built.decode(z).sum(), z)
    assert grad.abs().min() > 0
    assert not isinstance(built, Likelihood)


SPECS = [
    ImageSpec(3, (7, 10)),
    ImageSpec(1, (1, 9), levels=2),
    ImageSpec(1, (4, 5, 3), axes="dhw", levels=2),
    ImageSpec(1, (5, 4, 4), axes="thw"),
    ImageSpec(2, (9,), axes="l", kind="continuous", levels=None),
    ImageSpec(5, (), axes="", kind="continuous", levels=None),
    ImageSpec(5, (), axes="", kind="continuous", levels=None, value_range=(0, 9)),
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.axes}{s.shape}")
@pytest.mark.parametrize("schema", [Schema(), LABELS], ids=["alone", "given"])
def test_images_of_any_kind_but_categories(spec: ImageSpec, schema: Schema):
    built = model(spec=spec, schema=schema)
    x = built.sample(3, "as trained" if schema else None)
    assert x.shape == (3, *spec.shape)
    assert torch.isfinite(x).all()
    for player in built.objectives():
        terms = player.terms(batch(4, spec=spec, schema=schema))
        assert torch.isfinite(sum(terms.loss.values()))
        assert all(g is not None for g in torch.autograd.grad(sum(terms.loss.values()), player.parameters))


def test_what_it_cannot_serve_is_refused():
    with pytest.raises(ValueError, match="as many blocks as widths"):
        R3GAN(replace(TINY, blocks=(1,)), SPEC, Schema())
    with pytest.raises(ValueError, match="differentiable"):
        R3GAN(TINY, ImageSpec(1, (4, 4), kind="categorical", levels=4), Schema())


def test_a_ring_of_eight_modes_is_covered():
    n, spec = 4096, ImageSpec(2, (), axes="", kind="continuous", levels=None)
    keys = Seeds.of(0, n)
    angle = keys.integers("mode", 8) * (math.pi / 4)
    x = torch.stack([angle.cos(), angle.sin()], 1) + 0.05 * keys.normal("x", 2)
    ring = Images(spec, Schema(), x, Given(n))
    config = Config(latent=8, embed=32, widths=(32,), blocks=(2,), gamma=0.05, gamma_end=0.005, penalty_every=2, critic_lr=1.0)
    built = R3GAN(config, spec, Schema())
    run = Run(built, ring, Recipe(images=256 * 200, batch=256, lr=4e-3, betas=(0.0, 0.99), clip=0.0))
    while run.images < run.recipe.images:
        run.step()
    run.averages.swap()
    y = built.sample(2000)
    angle = torch.atan2(y[:, 1], y[:, 0]) / (math.pi / 4)
    near = (angle - angle.round()).abs() * math.pi / 4 < 0.2
    shares = torch.bincount((angle.round().long() % 8)[near & ((y.norm(dim=1) - 1).abs() < 0.2)], minlength=8) / len(y)
    assert shares.min() > 0.03, shares
    assert shares.sum() > 0.5, f"{shares}: a cloud without modes would have 0.2"
