"""Glow against autograd, quadrature and dense linear algebra; every network gets weights, for at the start they are silent."""

import math
from collections.abc import Callable

import pytest
import torch
from of_flows import continuous, log_abs_det, normals, shake
from torch import Tensor, nn

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.flow import _products
from nonesuch.models.flow._affine import Mixes, StepsAndPriors, bounded

NO_COLUMNS = Schema({})
LABEL = Schema({"label": Category(("a", "b", "c"))})


def glow(spec: ImageSpec, schema: Schema = NO_COLUMNS, scale: float = 1.0, **config: object) -> nn.Module:
    model = catalog.build("flow/glow", spec, schema, "tiny", **config)
    model.images_seen.fill_(1)
    return shake(model, scale)


# -- invertible 1x1 convolutions and ActNorm -----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [2, 5, 12])
def test_w_is_a_rotation_at_first_and_its_determinant_is_read_off_the_diagonal(channels: int):
    mixes = Mixes(3, channels, "test")
    w = mixes.rotations()
    torch.testing.assert_close(w @ w.mT, torch.eye(channels).expand_as(w), atol=1e-5, rtol=0)
    assert (w[0] - w[1]).abs().max() > 0.1  # each step has its own
    shake(mixes.double())
    dense = torch.linalg.slogdet(mixes.rotations())[1]
    torch.testing.assert_close(dense, mixes.log_diagonal.sum(1), atol=1e-10, rtol=1e-10)
    whole = torch.linalg.slogdet(torch.stack(mixes()[0]))[1].sum()
    torch.testing.assert_close(mixes.log_det(), whole, atol=1e-10, rtol=1e-10)


def test_triangular_solves_give_the_dense_inverse():
    mixes = shake(Mixes(4, 7, "test")).double()
    (a, b), (inverse, back) = mixes(), mixes.inverses()
    torch.testing.assert_close(torch.stack(inverse), torch.linalg.inv(torch.stack(a)), atol=1e-9, rtol=1e-9)
    z = normals("z", 7).double()
    torch.testing.assert_close(inverse[1] @ (a[1] @ z + b[1]) + back[1], z, atol=1e-10, rtol=1e-10)


def test_actnorm_takes_its_first_data_to_mean_zero_and_variance_one_at_every_step(monkeypatch: pytest.MonkeyPatch):
    spec = continuous(2, (4, 4))
    model = catalog.build("flow/glow", spec, LABEL, "tiny")
    for name, p in model.named_parameters():
        if "nets" in name:  # speaking networks, so that later steps are not the first one's rotation
            p.data += 0.1 * normals(name, *p.shape)
    seen = []
    adapt = Mixes.adapt

    def watch(self: Mixes, k: int, z: Tensor) -> None:
        adapt(self, k, z)
        seen.append((z + self.shift[k]) * self.log_scale[k].exp())

    monkeypatch.setattr(Mixes, "adapt", watch)
    x = 3 * normals("x", 200, 2, 4, 4) + torch.arange(2).view(2, 1, 1) + 7
    given = Given(200, {"label": torch.arange(200) % 3})
    model.prepare(x, given)
    assert len(seen) == 4  # two scales of two steps
    for z in seen:
        torch.testing.assert_close(z.flatten(0, -2).mean(0), torch.zeros(z.shape[-1]), atol=1e-4, rtol=0)
        torch.testing.assert_close(z.flatten(0, -2).var(0, unbiased=False), torch.ones(z.shape[-1]), atol=1e-3, rtol=0)
    again = catalog.build("flow/glow", spec, LABEL, "tiny")
    again.load_state_dict(dict(model.state_dict()))
    model.prepare(x, given)  # of the same pictures: the same
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    model.images_seen.fill_(1)
    model.prepare(x * 9, given)  # a trained model keeps its own
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items() if k != "images_seen")


def test_preparing_is_keyed():
    spec = ImageSpec(1, (4, 4), levels=5)
    k = Seeds.of(0, 40).integers("k", 5, 1, 4, 4)
    models = [catalog.build("flow/glow", spec, NO_COLUMNS, "tiny") for _ in range(2)]
    state = torch.get_rng_state()
    for model in models:
        model.prepare(spec.from_levels(k), Given(40))
        torch.rand(3)
    assert all(torch.equal(v, models[1].state_dict()[n]) for n, v in models[0].state_dict().items())
    torch.set_rng_state(state)


# -- the flow --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, (2, 2)), (1, (6, 5)), (2, (4, 4)), (3, (1, 1)), (3, (3, 5)), (1, (6,)), (1, (2, 2, 2)), (4, (1,))],
)
def test_the_flow_inverts_and_its_log_det_is_autograds(width: int, channels: int, size: tuple[int, ...]):
    net = shake(StepsAndPriors(channels, size, 3, 2, 12, width), 1.5).double()
    x, c = normals("x", 2, channels, *size).double(), normals("c", 2, width).double() if width else None
    z, log_det = net(x, c, torch.float64)
    assert z.shape == (2, x[0].numel())
    torch.testing.assert_close(net.inverse(z, c, torch.float64), x, atol=1e-9, rtol=1e-9)
    first = c[:1] if c is not None else None
    expected = log_abs_det(lambda v: net(v, first, torch.float64)[0], x[:1])
    torch.testing.assert_close(log_det[:1], expected, atol=1e-9, rtol=1e-9)


def test_the_inverse_is_good_to_1e5_of_x_in_float32_through_48_steps():
    net = StepsAndPriors(3, (16, 16), 3, 16, 16, 0)
    shake(net, 0.3)
    x = normals("x", 4, 3, 16, 16)
    z, _ = net(x, None, torch.float32)
    assert (z - x.flatten(1)).abs().mean() > 0.1
    back = net.inverse(z, None, torch.float32)
    assert (back - x).norm() < 1e-5 * x.norm()
    assert (back - x).abs().max() < 1e-4


def test_half_of_the_channels_leave_at_each_scale():
    assert StepsAndPriors(3, (32, 32), 3, 1, 4, 0).leaving == [(16, 16, 6), (8, 8, 12), (4, 4, 48)]
    assert StepsAndPriors(3, (6, 5), 3, 1, 4, 0).leaving == [(3, 5, 6)]  # it ends where nothing can be halved


def test_what_cannot_be_squeezed_is_refused_in_a_sentence():
    for spec in (ImageSpec(1, (7, 5), levels=4), continuous(1, (1,), "l")):
        with pytest.raises(ValueError, match=r"no even side to squeeze: .*flow/nsf\.$"):
            catalog.build("flow/glow", spec, NO_COLUMNS, "tiny")
    with pytest.raises(ValueError, match="not categorical ones"):
        catalog.build("flow/glow", ImageSpec(1, (4, 4), kind="categorical", levels=4), NO_COLUMNS, "tiny")


def test_scales_are_bounded_and_gentle():
    a = torch.linspace(-100, 100, 999)
    assert bounded(a, 2.0).abs().max() <= 2
    torch.testing.assert_close(bounded(torch.tensor([0.01]), 2.0), torch.tensor([0.01]), atol=1e-6, rtol=0)


# -- the couplings' network as products ----------------------------------------------------------------------------------------


def layers(dims: int, channels: int, hidden: int, out: int) -> tuple[Tensor, ...]:
    """W_1, b_1, W_2, b_2, W_3, b_3 in float64."""
    first, last = (hidden, channels, *[3] * dims), (out, hidden, *[3] * dims)
    shapes = [first, (hidden,), (hidden, hidden, *[1] * dims), (hidden,), last, (out,)]
    found = [normals(f"w{i}", *s).double() / math.sqrt(math.prod(s[1:])) for i, s in enumerate(shapes)]
    return tuple(w.requires_grad_() for w in found)


@pytest.mark.parametrize("told", [False, True])
@pytest.mark.parametrize("size", [(5,), (3, 4), (2, 3, 1)])
def test_the_products_in_tiles_are_the_convolutions_with_their_slopes(
    size: tuple[int, ...], told: bool, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_products, "_TILE", 2 * math.prod(size) * 4 * 8 // torch.get_num_threads())  # two of three pictures
    weights = layers(len(size), 2, 4, 3)
    x, c = normals("x", 3, *size, 2).double().requires_grad_(), normals("c", 3, 8).double().requires_grad_()
    inputs = [x, *weights, *([c] if told else [])]

    def run(form: Callable[..., Tensor], *v: Tensor) -> Tensor:
        return form(v[0], v[1:7], v[7] if told else None, torch.float64)

    expected, found = run(_products.convolutions, *inputs), run(_products.network, *inputs)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(run(_products.network, *inputs), expected, atol=1e-12, rtol=1e-12)
    dy = normals("dy", *expected.shape).double()
    slopes = torch.autograd.grad(found, inputs, dy)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected, inputs, dy), atol=1e-12, rtol=1e-12)
    assert torch.autograd.gradcheck(lambda *v: run(_products.network, *v), inputs)
    if len(size) == 1:
        assert torch.autograd.gradgradcheck(lambda *v: run(_products.network, *v), inputs)


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_the_products_are_good_to_the_rounding_of_their_dtype(dtype: torch.dtype, most: float):
    weights = layers(2, 6, 64, 12)
    x = normals("x", 8, 8, 8, 6).double().requires_grad_()
    expected = _products.convolutions(x, weights, None, torch.float64)
    dy = normals("dy", *expected.shape).double()
    wanted = [expected, *torch.autograd.grad(expected, [x, *weights], dy)]
    single = [v.detach().float().requires_grad_() for v in (x, *weights)]
    errors = []
    for form in (_products.network, _products.convolutions):
        y = form(single[0], tuple(single[1:]), None, dtype)
        found = [y, *torch.autograd.grad(y, single, dy.float())]
        assert all(v.dtype == torch.float32 for v in found)
        errors.append([float((a.detach() - b.detach()).norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True)])
    assert errors[0][0] < most
    assert all(a < max(most, 1.2 * b) for a, b in zip(*errors, strict=True))  # a unit that rounding silences moves the slopes


# -- the whole: density, bound, latents --------------------------------------------------------------------------------------


def test_the_density_of_two_values_integrates_to_one():
    schema = Schema({"label": Category(("a", "b")), "age": Number(0.0, 1.0)})
    model = glow(continuous(1, (1, 2)), schema)
    axis = torch.linspace(-14, 14, 561)
    x = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    for given in (None, {"label": "b", "age": 0.3}):
        found = model.log_prob(x, given)
        assert found.kind == "density"
        total = found.nats.double().exp().sum() * (axis[1] - axis[0]).double() ** 2
        assert abs(total - 1) < 1e-3


def test_the_density_is_that_of_the_prior_and_the_jacobian():
    model = glow(continuous(1, (2, 4)), scale=1.5)
    x = normals("x", 3, 1, 2, 4)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(model.encode(x)).sum(1)
    expected = normal + log_abs_det(lambda v: model.encode(v), x)
    torch.testing.assert_close(model.log_prob(x).nats, expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("dequantize", [0, 1])
def test_an_untrained_flow_is_the_uniform_model(dequantize: int):
    spec = ImageSpec(2, (4, 4), levels=17)
    model = catalog.build("flow/glow", spec, LABEL, "tiny", dequantize=dequantize)
    model.images_seen.fill_(1)
    found = model.log_prob(spec.from_levels(Seeds.of(0, 5).integers("x", 17, 2, 4, 4)), {"label": "a"})
    assert found.kind == "bound"
    torch.testing.assert_close(found.nats, torch.full((5,), -32 * math.log(17.0)), atol=1e-3, rtol=0)


@pytest.mark.parametrize("dequantize", [0, 1])
def test_importance_weights_of_all_pictures_sum_to_one_and_the_bound_to_less(dequantize: int):
    spec = ImageSpec(1, (1, 2), levels=3)
    model = glow(spec, scale=0.5, dequantize=dequantize)
    x = spec.from_levels(torch.cartesian_prod(torch.arange(3), torch.arange(3)).view(-1, 1, 1, 2))
    draws = model.log_prob(x.repeat_interleave(4000, 0), seeds=1).nats.double().view(9, -1)
    assert abs(draws.exp().mean(1).sum() - 1) < 0.03
    assert draws.mean(1).exp().sum() < 1


@pytest.mark.parametrize("dequantize", [0, 1])
@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(1, (8, 8), levels=17),
        ImageSpec(3, (7, 5), levels=256),
        ImageSpec(1, (6,), "l", levels=2),
        ImageSpec(1, (2, 2, 2), "dhw", levels=4),
        continuous(2, (4, 6)),
        ImageSpec(5, (), "", "continuous", None),
    ],
)
def test_decode_of_encode_is_the_picture(spec: ImageSpec, dequantize: int):
    model = glow(spec, LABEL, 0.5, dequantize=dequantize)
    given = Given(16, {"label": torch.arange(16) % 4 - 1})
    if spec.levels is None:
        x = normals("x", 16, *spec.shape)
    else:
        k = (Seeds.of(0, 16).uniform("k", *spec.shape) ** 3 * spec.levels).long()
        model.histogram.count(k, given)
        x = spec.from_levels(k)
    z = model.encode(x, given, seeds=4)
    assert z.shape == (16, spec.numel)
    back = model.decode(z, given)
    torch.testing.assert_close(back if spec.levels is None else spec.snap(back), x, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("spec", [continuous(3, (4, 4)), ImageSpec(1, (4, 4), levels=256)])
def test_samples_encode_to_the_prior(spec: ImageSpec):
    """A sample's latent is standard normal; on a grid up to the place in the cell, which is small."""
    model = glow(spec, LABEL, 0.5, dequantize=0)
    given = {"label": "b"}
    z = model.encode(model.sample(600, given, seeds=3), given, seeds=5).double()
    se = 1 / math.sqrt(600)
    assert z.mean(0).abs().max() < 4.5 * se
    assert (z.var(0) - 1).abs().max() < 4.5 * se * math.sqrt(2) + 0.02
    correlation = torch.corrcoef(z.T) - torch.eye(z.shape[1])
    assert correlation.abs().max() < 5 * se
    if spec.levels is None:
        torch.testing.assert_close(z.float(), model.prior(600, given, seeds=3), atol=2e-4, rtol=1e-4)


def test_half_precision_is_of_the_networks_alone():
    model = glow(ImageSpec(3, (8, 8), levels=256), LABEL, 0.5)
    x = model.spec.from_levels(Seeds.of(0, 16).integers("x", 256, 3, 8, 8))
    exact, sampled = model.log_prob(x, seeds=1).nats, model.sample(4, seeds=1)
    encoded = model.encode(x, seeds=1)
    model.compute_dtype = torch.bfloat16
    half = model.log_prob(x, seeds=1).nats
    assert half.dtype == torch.float32
    assert (half - exact).abs().mean() / model.spec.numel / math.log(2) < 0.01  # bits/dim
    assert torch.equal(model.encode(x, seeds=1), encoded)
    assert (model.sample(4, seeds=1) - sampled).abs().mean() < 0.02


def test_a_few_steps_of_learning_find_what_two_values_have_in_common():
    """Two values of a normal with correlation 0.95: the gain over independence is -log(1 - r^2) / 2 nats."""
    spec = continuous(1, (1, 2))
    x = normals("x", 4096, 2)
    x[:, 1] = 0.95 * x[:, 0] + math.sqrt(1 - 0.95**2) * x[:, 1]
    x = x.view(-1, 1, 1, 2)
    model = catalog.build("flow/glow", spec, NO_COLUMNS, "tiny")
    model.prepare(x[:1024], Given(1024))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    objective = model.objectives()[0]
    for i in range(150):
        part = slice(i * 512 % 4096, i * 512 % 4096 + 512)
        loss = sum(objective.terms(Batch(x[part], Given(512), Seeds.of(i, 512))).loss.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.images_seen.fill_(1)
    entropy = math.log(2 * math.pi * math.e) + math.log(1 - 0.95**2) / 2
    assert abs(float(-model.log_prob(x).nats.mean()) - entropy) < 0.05
