"""The flow family against closed forms, quadrature and autograd; every network gets weights, for at the start they are silent."""

import math

import pytest
import torch
from of_flows import continuous, log_abs_det, normals, shake
from torch import nn

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.models.flow._coupling import ActNorm, Coupling, MultiScale, Networks, colourings, squeeze, unsqueeze
from nonesuch.models.flow._dequantize import into_cell
from nonesuch.models.flow._marginal import Histogram
from nonesuch.models.flow._spline import Spline

NO_COLUMNS = Schema({})
LABEL = Schema({"label": Category(("a", "b", "c"))})
DENSE = Networks(16, 1, 24, 10**6, 8)
CONV = Networks(16, 2, 24, 0, 8, heads=2, attention_px=4)


def flow(spec: ImageSpec, schema: Schema = NO_COLUMNS, scale: float = 1.0, **config: object) -> nn.Module:
    model = catalog.build("flow/nsf", spec, schema, "tiny", **config)
    model.images_seen.fill_(1)
    return shake(model, scale)


# -- the spline --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bins", [2, 8])
def test_the_spline_is_a_bijection_whose_slope_autograd_confirms(bins: int):
    spline = Spline(bins, 4.0)
    x = torch.linspace(-6, 6, 301, dtype=torch.float64)[None].requires_grad_()
    raw = 2 * normals("raw", 1, spline.count, 301).double()
    y, log_slope = spline(x, raw)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_slope, slope.log(), atol=1e-9, rtol=1e-9)
    back, log_back = spline(y, raw, inverse=True)
    torch.testing.assert_close(back, x, atol=1e-8, rtol=1e-8)
    torch.testing.assert_close(log_back, -log_slope, atol=1e-6, rtol=1e-6)


def test_one_spline_rises_over_all_its_bins_and_meets_the_identity_outside():
    spline = Spline(6, 3.0)
    raw = (1.5 * normals("raw", 1, spline.count, 1)).expand(-1, -1, 2001)
    x = torch.linspace(-4, 4, 2001)[None]
    y, _ = spline(x, raw)
    assert (y.diff() > 0).all()
    assert y.diff().max() < 0.2  # no jump
    assert torch.equal(y[x.abs() >= 3], x[x.abs() >= 3])


def test_a_silent_network_makes_the_identity():
    spline = Spline(8, 5.0)
    x = 2 * normals("x", 4, 50)
    y, log_slope = spline(x, torch.zeros(4, spline.count, 50))
    torch.testing.assert_close(y, x, atol=2e-6, rtol=0)
    torch.testing.assert_close(log_slope, torch.zeros_like(x), atol=2e-6, rtol=0)


# -- layers ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "factors"), [((6,), (2,)), ((4, 5), (2, 1)), ((2, 4, 6), (2, 2, 2)), ((3, 3), (1, 1))])
def test_squeeze_and_unsqueeze_are_inverse_and_keep_cells_together(size: tuple[int, ...], factors: tuple[int, ...]):
    x = torch.arange(2 * 3 * math.prod(size)).view(2, 3, *size)
    y = squeeze(x, factors)
    assert y.shape == (2, 3 * math.prod(factors), *[s // f for s, f in zip(size, factors, strict=True)])
    assert torch.equal(unsqueeze(y, factors), x)
    first = y[(0, slice(0, math.prod(factors)), *[0] * len(size))]
    assert set(first.tolist()) == set(x[(0, 0, *[slice(0, f) for f in factors])].flatten().tolist())


def test_actnorm_gives_its_first_data_mean_zero_and_deviation_one():
    norm = ActNorm(3)
    x = normals("x", 50, 3, 4, 4) * torch.tensor([0.1, 2.0, 30.0]).view(3, 1, 1) + torch.tensor([5.0, -1.0, 0.0]).view(3, 1, 1)
    norm.adapt(x)
    z, log_det = norm(x)
    torch.testing.assert_close(z.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(z.std((0, 2, 3), unbiased=False), torch.ones(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(log_det[:2], log_abs_det(lambda v: norm(v)[0], x[:2]), atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(norm(z, inverse=True)[0], x, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("nets", [DENSE, CONV])
@pytest.mark.parametrize("which", [0, 1, 2])
def test_a_coupling_keeps_moves_and_inverts(nets: Networks, which: int):
    moved = colourings(3, (2, 3), 2, "test")[which]
    coupling = shake(Coupling(moved, Spline(5, 4.0), nets, context=0), 1.0).double()
    z, c = normals("z", 4, 3, 2, 3).double(), normals("c", 4, 8).double()
    y, log_det = coupling(z, c, torch.float64)
    assert torch.equal(y[:, ~moved], z[:, ~moved])
    assert (y[:, moved] != z[:, moved]).all()
    torch.testing.assert_close(coupling(y, c, torch.float64, inverse=True)[0], z, atol=1e-8, rtol=1e-8)
    expected = log_abs_det(lambda v: coupling(v, c[:1], torch.float64)[0], z[:1])
    torch.testing.assert_close(log_det[:1], expected, atol=1e-8, rtol=1e-8)


def test_a_coupling_moves_each_value_by_a_function_of_itself_and_the_kept_ones_alone():
    moved = colourings(1, (3, 3), 1, "test")[0]
    coupling = shake(Coupling(moved, Spline(5, 4.0), CONV), 1.0)
    z, c = normals("z", 1, 1, 3, 3), torch.zeros(1, 8)
    jacobian = torch.autograd.functional.jacobian(lambda v: coupling(v, c, torch.float32)[0].flatten(), z).view(9, 9)
    rows = moved.flatten()
    assert torch.equal(jacobian[rows][:, rows], jacobian[rows][:, rows].diagonal().diag())
    assert (jacobian[rows][:, ~rows].abs().sum(1) > 0).all()


@pytest.mark.parametrize("nets", [DENSE, CONV])
@pytest.mark.parametrize(
    ("channels", "size"),
    [(1, (2, 2)), (1, (7, 5)), (2, (4, 4)), (3, (1, 1)), (1, (1, 1)), (1, (6,)), (1, (2, 2, 2)), (1, (6, 5))],
)
def test_the_multi_scale_flow_inverts_and_its_log_det_is_autograds(nets: Networks, channels: int, size: tuple[int, ...]):
    net = shake(MultiScale(channels, size, (1, 1), Spline(4, 4.0), nets), 0.7).double()
    x, c = normals("x", 2, channels, *size).double(), normals("c", 2, 8).double()
    z, log_det = net(x, c, torch.float64)
    assert z.shape == (2, x[0].numel())
    torch.testing.assert_close(net.inverse(z, c, torch.float64), x, atol=1e-7, rtol=1e-7)
    torch.testing.assert_close(log_det[:1], log_abs_det(lambda v: net(v, c[:1], torch.float64)[0], x[:1]), atol=1e-7, rtol=1e-7)


def test_an_even_size_is_halved_at_each_scale_and_half_of_the_channels_leave():
    net = MultiScale(1, (8, 8), (1, 1, 1), Spline(4, 4.0), DENSE)
    assert net.leaving == [(2, 4, 4), (4, 2, 2), (16, 1, 1)]
    assert MultiScale(1, (7, 5), (1, 1), Spline(4, 4.0), DENSE).leaving == [(1, 7, 5)]


def test_prepare_sets_actnorm_at_every_scale():
    spec = continuous(2, (4, 4))
    model = catalog.build("flow", spec, NO_COLUMNS, "tiny")
    x = 3 * normals("x", 64, 2, 4, 4) + 7
    model.prepare(x, Given(64))
    model.images_seen.fill_(1)
    z = model.encode(x)  # silent couplings: what leaves is what ActNorm made
    torch.testing.assert_close(z[:, : 64 // 4].mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    torch.testing.assert_close(z.std(), torch.tensor(1.0), atol=1e-2, rtol=0)
    kept = {k: v.clone() for k, v in model.state_dict().items()}
    model.prepare(x * 9, Given(64))  # a trained model keeps its own
    assert all(torch.equal(v, kept[k]) for k, v in model.state_dict().items())


# -- each pixel's distribution function --------------------------------------------------------------------------------------


def test_the_histogram_tends_to_the_frequencies_of_each_class_and_pixel():
    spec = ImageSpec(1, (1, 2), levels=3)
    histogram = Histogram(spec, LABEL, 10**6)
    labels = torch.arange(3).repeat(20000)
    k = torch.stack([labels, (labels + Seeds((0,), (0,)).integers("k", 2, len(labels))[0]) % 3], 1).view(-1, 1, 1, 2)
    histogram.count(k, Given(len(k), {"label": labels}))
    mass = histogram.edges.diff(dim=-1)
    assert mass.min() > 0
    expected = torch.zeros(3, 1, 2, 3, dtype=torch.float64)
    for y in range(3):
        expected[y, 0, 0, y] = 1
        expected[y, 0, 1, y] = expected[y, 0, 1, (y + 1) % 3] = 0.5
    torch.testing.assert_close(mass[:3], expected, atol=0.02, rtol=0)
    torch.testing.assert_close(mass[3], torch.full((1, 2, 3), 1 / 3, dtype=torch.float64), atol=0.02, rtol=0)


@pytest.mark.parametrize("limit", [10**6, 40, 10])
def test_the_histogram_finds_the_cell_it_placed_a_level_in(limit: int):
    spec = ImageSpec(2, (2, 2), levels=4)
    histogram = Histogram(spec, LABEL, limit)
    assert (histogram.classes, histogram.pixels) == {10**6: (3, 4), 40: (3, 1), 10: (0, 1)}[limit]
    k = Seeds.of(0, 300).integers("k", 4, 2, 2, 2).square() // 3
    given = Given(300, {"label": torch.arange(300) % 4 - 1})
    histogram.count(k, given)
    rows = histogram.rows(given, 300)
    low, length = histogram.cells(k, rows)
    found, u = histogram.find(low + 0.3 * length, rows)
    assert torch.equal(found, k.flatten(2))
    torch.testing.assert_close(u, torch.full_like(u, 0.3))


def test_the_table_without_a_picture_is_that_of_the_others():
    spec = ImageSpec(1, (1, 2), levels=3)
    k = Seeds.of(0, 60).integers("k", 3, 1, 1, 2)
    given = Given(60, {"label": torch.arange(60) % 4 - 1})
    everything, others = Histogram(spec, LABEL, 10**6), Histogram(spec, LABEL, 10**6)
    everything.count(k, given)
    found = everything.cells(k, everything.rows(given, 60), own=True)
    for i in range(8):
        rest = torch.arange(60) != i
        others.count(k[rest], given[rest])
        expected = others.cells(k[i : i + 1], others.rows(given, 60)[i : i + 1])
        torch.testing.assert_close(torch.stack([f[i : i + 1] for f in found]), torch.stack(expected), atol=0.02, rtol=0)
    # A new table has seen nothing and leaves nothing out.
    fresh = Histogram(spec, LABEL, 10**6)
    torch.testing.assert_close(fresh.cells(k, fresh.rows(given, 60), own=True)[1], torch.full((60, 1, 2), 1 / 3).double())


# -- the whole: density, bound, latents --------------------------------------------------------------------------------------


def test_the_density_of_a_continuous_picture_integrates_to_one():
    model = flow(continuous(1, (1, 2)), LABEL)
    axis = torch.linspace(-8, 8, 801)
    x = torch.cartesian_prod(axis, axis).view(-1, 1, 1, 2)
    for given in (None, {"label": "b"}):
        found = model.log_prob(x, given)
        assert found.kind == "density"
        total = found.nats.double().exp().sum() * (axis[1] - axis[0]).double() ** 2
        assert abs(total - 1) < 1e-3


def test_the_density_is_that_of_the_prior_and_the_jacobian():
    model = flow(continuous(1, (2, 3)), scale=1.5)
    x = normals("x", 3, 1, 2, 3)
    z = model.encode(x)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1)
    expected = normal + log_abs_det(lambda v: model.encode(v), x)
    torch.testing.assert_close(model.log_prob(x).nats, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("levels", "spread"), [(2, 1.0), (3, 1.0)])
def test_the_bound_is_below_the_exact_probability_and_draws_tighten_it(levels: int, spread: float):
    spec = ImageSpec(1, (1, 2), levels=levels)
    model = flow(spec, scale=spread)
    k = torch.cartesian_prod(torch.arange(levels), torch.arange(levels)).view(-1, 1, 1, 2)
    model.histogram.count(k.repeat(3, 1, 1, 1)[:-2], Given(3 * len(k) - 2))
    x = spec.from_levels(k)
    # Exactly: the density of z_0 integrated over each picture's cell, by midpoints.
    low, length = model.histogram.cells(k, torch.zeros(len(k), dtype=torch.int64))
    begin, end = torch.special.ndtri(low).clamp(-8, 8)[:, 0], torch.special.ndtri((low + length).clamp(max=1)).clamp(-8, 8)[:, 0]
    place = (torch.arange(240, dtype=torch.float64) + 0.5) / 240
    exact = []
    for a, b in zip(begin, end, strict=True):
        z = torch.cartesian_prod(a[0] + (b - a)[0] * place, a[1] + (b - a)[1] * place)
        density = model._density(z.float().view(-1, 1, 1, 2), torch.zeros(len(z), 16), torch.float32).detach()
        exact.append((density - math.log(2 * math.pi)).exp().mean().log() + (b - a).log().sum())
    exact = torch.stack(exact)
    assert abs(exact.exp().sum() - 1) < 1e-3
    many = x.repeat_interleave(4000, 0)
    one = model.log_prob(many, seeds=1).nats.double().view(len(x), -1)
    error = one.std(1) / math.sqrt(one.shape[1])
    assert (one.mean(1) <= exact + 4 * error + 1e-3).all()
    assert (one.mean(1) < exact - 0.005).any()  # a random q is no posterior
    torch.testing.assert_close(one.exp().mean(1).log(), exact, atol=0.1, rtol=0)  # importance weights are unbiased
    tight = model.log_prob(many[::200], samples=30, seeds=2).nats.double().view(len(x), -1).mean(1)
    assert (exact - tight).abs().mean() < (exact - one.mean(1)).abs().mean()


def test_an_untrained_flow_is_the_uniform_model_exactly():
    spec = ImageSpec(2, (4, 4), levels=17)
    model = catalog.build("flow", spec, LABEL, "tiny")
    model.images_seen.fill_(1)
    x = spec.from_levels(Seeds.of(0, 5).integers("x", 17, 2, 4, 4))
    found = model.log_prob(x, {"label": "a"})
    assert found.kind == "bound"
    torch.testing.assert_close(found.nats, torch.full((5,), -32 * math.log(17.0)), atol=1e-3, rtol=0)


def test_points_stay_inside_their_cells():
    w = torch.tensor([-7.0, -1.0, 0.0, 2.0, 7.0])
    low, length = torch.tensor([0.0, 0.2, 0.999]).double(), torch.tensor([0.2, 1e-6, 0.001]).double()
    z = into_cell(w[:, None].expand(-1, 3), low, length)
    f = torch.special.ndtr(z)
    assert torch.isfinite(z).all()
    assert ((f >= low - 1e-15) & (f <= low + length + 1e-15)).all()


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(1, (8, 8), levels=17),
        ImageSpec(3, (7, 5), levels=256),
        ImageSpec(1, (6,), "l", levels=2),
        ImageSpec(1, (2, 2, 2), "dhw", levels=4),
    ],
)
@pytest.mark.parametrize("dense_values", [0, 256])
def test_decode_of_encode_is_the_picture(spec: ImageSpec, dense_values: int):
    model = flow(spec, LABEL, 0.5, dense_values=dense_values)
    assert spec.levels is not None
    k = (Seeds.of(0, 64).uniform("k", *spec.shape) ** 3 * spec.levels).long()
    labels = {"label": ["a", "b", "c", None] * 16}
    model.histogram.count(k, model.schema.given(64, labels))
    model.compute_dtype = torch.bfloat16  # latents are computed in float32 all the same
    x = spec.from_levels(k)
    z = model.encode(x, labels, seeds=3)
    back = model.decode(z, labels)
    assert back.abs().max() <= 1
    assert (spec.to_levels(back) != k).double().mean() < 1e-3
    assert (model.encode(spec.snap(back), labels, seeds=3) - z).abs().max() < 0.05
    drawn = model.sample(4, {"label": "a"}, seeds=5)
    assert torch.equal(drawn, spec.snap(model.decode(model.prior(4, seeds=5), {"label": "a"})))


@pytest.mark.parametrize(
    "spec", [continuous(1, (7, 5)), continuous(5, (), ""), continuous(2, (3,), "l"), continuous(1, (2, 2, 2), "thw")]
)
def test_continuous_pictures_come_back_within_rounding(spec: ImageSpec):
    model = flow(spec, LABEL, 0.7)
    x = 2 * normals("x", 9, *spec.shape)
    torch.testing.assert_close(model.decode(model.encode(x, {"label": "c"}), {"label": "c"}), x, atol=1e-4, rtol=1e-4)
    z = model.prior(9)
    torch.testing.assert_close(model.encode(model.decode(z)), z, atol=1e-4, rtol=1e-4)


def test_the_inverse_drifts_by_rounding_in_float32_and_little_in_bf16():
    model = flow(ImageSpec(1, (8, 8), levels=17), scale=0.3, pairs=(3, 2), bins=8)
    z, c = normals("z", 40, 1, 8, 8), torch.zeros(40, 16)
    for dtype, most, mean in ((torch.float32, 1e-3, 1e-5), (torch.bfloat16, 0.2, 2e-3)):
        drift = (model.flow.inverse(model.flow(z, c, dtype)[0], c, dtype) - z).abs()
        assert drift.max() < most
        assert drift.mean() < mean


def test_decode_has_a_slope_in_z():
    model = flow(ImageSpec(1, (4, 4), levels=3), scale=0.3)
    z = normals("z", 2, 16).requires_grad_()
    (slope,) = torch.autograd.grad(model.decode(z).sum(), z)
    assert torch.isfinite(slope).all()
    assert (slope != 0).any()


def test_samples_follow_the_model():
    spec = ImageSpec(1, (1, 2), levels=2)
    model = flow(spec, scale=0.0)
    shake(model.flow, 0.4)  # and a silent dequantizer: a steeper flow has a few draws that weigh more than all others
    k = spec.to_levels(model.sample(6000, seeds=0)).view(-1, 2)
    share = torch.bincount(k[:, 0] * 2 + k[:, 1], minlength=4).double() / len(k)
    grid = spec.from_levels(torch.cartesian_prod(torch.arange(2), torch.arange(2)).view(4, 1, 1, 2))
    p = model.log_prob(grid.repeat_interleave(5000, 0)).nats.double().view(4, -1).exp().mean(1)
    assert abs(p.sum() - 1) < 0.03
    assert (share - p).abs().max() < 0.03


def test_an_image_does_not_depend_on_its_batch():
    model = flow(ImageSpec(1, (4, 4), levels=5), LABEL, 0.5)
    labels = ["a", "b", "c", "a", None, "b"]
    together = model.sample(6, {"label": labels}, seeds=4)
    alone = torch.cat([model.sample(1, {"label": [y]}, seeds=Seeds.of(4, 1, i)) for i, y in enumerate(labels)])
    assert (together != alone).double().mean() < 0.02
    assert not torch.equal(model.sample(6, {"label": "a"}, seeds=4), model.sample(6, {"label": "b"}, seeds=4))


def test_dropout_is_keyed_and_every_parameter_learns():
    model = flow(ImageSpec(1, (4, 4), levels=5), LABEL, 0.5, dropout=0.5)
    x = model.spec.from_levels(Seeds.of(0, 8).integers("x", 5, 1, 4, 4))
    batch = Batch(x, model.schema.given(8, {"label": ["a", "b", "c", None] * 2}), Seeds.of(1, 8))
    (objective,) = model.objectives()
    first, again = objective.terms(batch).loss["bits_per_dim"], objective.terms(batch).loss["bits_per_dim"]
    assert torch.equal(first, again)
    other = objective.terms(Batch(x, batch.given, Seeds.of(2, 8))).loss["bits_per_dim"]
    assert first != other
    grads = torch.autograd.grad(first, objective.parameters, allow_unused=True)
    names = {id(p): n for n, p in model.named_parameters()}
    assert [names[id(p)] for p, g in zip(objective.parameters, grads, strict=True) if g is None or not g.any()] == []


def test_uniform_noise_costs_at_least_its_entropy():
    model = flow(ImageSpec(1, (4, 4), levels=4), scale=0.5)
    x = model.spec.from_levels(Seeds.of(7, 400).integers("noise", 4, 1, 4, 4))
    bits = -model.log_prob(x).nats.double() / (16 * math.log(2))
    assert bits.mean() > 2 - 3 * bits.std() / math.sqrt(len(bits))


def test_what_a_flow_cannot_do_is_said():
    with pytest.raises(ValueError, match="order"):
        catalog.build("flow", ImageSpec(1, (4,), "l", "categorical", 5), NO_COLUMNS, "tiny")
    with pytest.raises(ValueError, match="pairs"):
        catalog.build("flow", ImageSpec(1, (4, 4)), NO_COLUMNS, "tiny", pairs=())
    with pytest.raises(ValueError, match="bins"):
        catalog.build("flow", ImageSpec(1, (4, 4)), NO_COLUMNS, "tiny", bins=1)
    model = flow(ImageSpec(1, (2, 2), levels=2))
    with pytest.raises(ValueError, match="bound"):
        model.log_prob(torch.ones(1, 1, 2, 2), method="exact")
