"""Samplers of diffusion against truth: orders measured on densities with a known score, evaluations counted, memory bounded."""

import math
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.toy import GaussianMixture
from nonesuch.models.diffusion._samplers import SAMPLERS, ddpm, multistep, solve, weights
from nonesuch.models.diffusion._schedule import NoiseLevels

NORMAL = GaussianMixture.normal(torch.tensor([0.3, -0.2]), torch.tensor([[0.5, 0.2], [0.2, 0.1]]))
DENSITIES = {"mixture": GaussianMixture.ring(3, deviation=0.3), "normal": NORMAL}
ORDERS = {"ddim": 1, "dpmpp_2m": 2, "heun": 2, "dpmpp_3m": 3, "unipc_1": 2, "unipc_2": 3, "unipc_3": 4}


def ends(walk: object) -> Tensor:
    """x at sigma_min, before the step to sigma = 0."""
    return list(walk)[-2]  # type: ignore[call-overload]


def flow_of_normal(x: Tensor, high: float, low: float) -> Tensor:
    """Where the probability flow takes x from sigma = high to low: each principal axis shrinks as its own deviation does."""
    values, axes = torch.linalg.eigh(NORMAL.covariances[0])
    shrunk = ((values + low**2) / (values + high**2)).sqrt()
    return NORMAL.mean + ((x - NORMAL.mean) @ axes * shrunk) @ axes.T


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("sampler", ORDERS)
def test_halving_the_step_divides_the_error_by_two_to_the_order(density: str, sampler: str):
    toy, levels = DENSITIES[density], NoiseLevels(0.2, 10.0)
    x = 10 * Seeds.of(0, 100).normal("x", 2).double()
    if density == "normal":
        truth = flow_of_normal(x, 10.0, 0.2)
    else:
        truth = ends(solve("unipc_3", toy.denoise, x, levels.steps(1201)))
    coarse, fine = (
        float((ends(solve(sampler, toy.denoise, x, levels.steps(n + 1))) - truth).square().mean().sqrt()) for n in (40, 80)
    )
    # dpmpp_3m is of order 2 to 3 in its first two steps, and of a normal its own leading term nearly cancels: better than told.
    assert math.log2(coarse / fine) == pytest.approx(ORDERS[sampler], abs=0.7 if sampler == "dpmpp_3m" else 0.4)


def test_the_flow_of_a_normal_is_its_closed_form():
    x = 10 * Seeds.of(0, 50).normal("x", 2).double()
    found = ends(solve("unipc_3", NORMAL.denoise, x, NoiseLevels(0.2, 10.0).steps(200)))
    torch.testing.assert_close(found, flow_of_normal(x, 10.0, 0.2), atol=1e-7, rtol=0)


@pytest.mark.parametrize("h", [1e-3, 0.1, 1.0, 6.0, 40.0])
def test_weights_integrate_polynomials_exactly(h: float):
    """Against Gauss-Legendre quadrature; for two nodes UniPC's B(h) / 2 stands for the integral of u."""
    import numpy as np

    at, share = np.polynomial.legendre.leggauss(60)
    u, measure = (at + 1) / 2, share / 2 * h * np.exp(h * ((at + 1) / 2 - 1))
    for nodes in ([0.0], [0.0, -0.8, -2.0], [1.0, 0.0, -0.7], [1.0, 0.0, -0.8, -2.0]):
        found = weights(nodes, h)
        for k in range(len(nodes)):
            mine = sum(w * n**k for w, n in zip(found, nodes, strict=True))
            assert mine == pytest.approx(float(measure @ u**k), rel=1e-7, abs=1e-13)
    first, second = weights([0.0, -0.5], h)
    assert (first + second, -0.5 * second) == pytest.approx((-math.expm1(-h), -math.expm1(-h) / 2))


def test_a_predictor_of_two_values_is_dpm_solver_2m_and_of_one_is_ddim():
    toy, x = DENSITIES["mixture"], 10 * Seeds.of(0, 20).normal("x", 2).double()
    sigmas = NoiseLevels(0.02, 10.0).steps(20)
    for order, sampler in ((1, "ddim"), (2, "dpmpp_2m")):
        for a, b in zip(multistep(toy.denoise, x, sigmas, order), solve(sampler, toy.denoise, x, sigmas), strict=True):
            torch.testing.assert_close(a, b)
    assert SAMPLERS["ddim"] is SAMPLERS["euler"]


@pytest.mark.parametrize("rho", [7.0, math.inf])
@pytest.mark.parametrize("sampler", [*SAMPLERS, "ddpm"])
@pytest.mark.parametrize("n", [1, 2, 5, 12])
def test_every_sampler_counts_its_evaluations_and_ends_at_sigma_min(sampler: str, n: int, rho: float):
    toy, levels, asked = DENSITIES["mixture"], NoiseLevels(0.02, 10.0, rho=rho), []

    def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return toy.denoise(x, sigma)

    seeds = Seeds.of(0, 50)
    x, sigmas = 10 * seeds.normal("x", 2).double(), levels.steps(n)
    steps = list(solve(sampler, denoise, x, sigmas, 0.0, lambda i: seeds.normal("churn", 2, step=i).double()))
    assert len(steps) == n
    assert len(asked) == (2 * n - 1 if sampler == "heun" else n)
    assert asked[-1] == sigmas[-1] == pytest.approx(0.02 if n > 1 else 10.0, rel=1e-12)
    assert sigmas[0] == pytest.approx(10.0, rel=1e-12)
    assert sorted(set(asked), reverse=True) == sigmas
    assert torch.isfinite(steps[-1]).all()


@pytest.mark.parametrize("sampler", ["dpmpp_3m", "unipc_1", "unipc_2", "unipc_3"])
@pytest.mark.parametrize("steps", [5, 8, 12])
def test_few_steps_are_stable_and_better_than_ddim(sampler: str, steps: int):
    """In a range of noise of 1 to 4,000, as for real pictures, where a polynomial of high order overshoots if it is let."""
    toy = GaussianMixture.images(4, (1, 4, 4), seed=1)
    levels, x = NoiseLevels(0.02, 80.0, rho=math.inf), 80 * Seeds.of(0, 64).normal("x", 1, 4, 4).double()

    def error(name: str, n: int) -> float:
        found = list(solve(name, toy.denoise, x, levels.steps(n)))[-1]
        return float((found - truth).flatten(1).square().mean(1).sqrt().median())

    truth = list(solve("unipc_3", toy.denoise, x, levels.steps(400)))[-1]
    assert error(sampler, steps) < error("ddim", steps) * (1.5 if sampler == "dpmpp_3m" else 1)
    assert sampler != "unipc_2" or steps < 12 or error(sampler, steps) < error("ddim", 50)


def test_ancestral_samples_have_the_mean_and_covariance():
    toy, n = GaussianMixture.images(3, (1, 2, 2)), 3000
    seeds = Seeds.of(3, n)
    *_, x = ddpm(
        toy.denoise, 20 * seeds.normal("x", 1, 2, 2).double(), NoiseLevels(0.002, 20.0).steps(200),
        lambda i: seeds.normal("churn", 1, 2, 2, step=i).double(),
    )  # fmt: skip
    error = toy.covariance.diagonal().sqrt() * 4 / math.sqrt(n)
    assert ((x.mean(0) - toy.mean).flatten().abs() < error + 0.01).all()
    torch.testing.assert_close(torch.cov(x.flatten(1).T), toy.covariance, atol=0.02, rtol=0)


def test_levels_uniform_in_log_sigma_are_the_limit_of_rho():
    straight, t = NoiseLevels(0.02, 10.0, rho=math.inf), torch.linspace(0, 1, 9).double()
    torch.testing.assert_close(straight.sigma(t), NoiseLevels(0.02, 10.0, rho=1e6).sigma(t), rtol=1e-4, atol=0)
    torch.testing.assert_close(straight.time(straight.sigma(t)), t)
    ratios = torch.tensor(straight.steps(9)).log().diff()
    torch.testing.assert_close(ratios, ratios[:1].expand(8))


# -- guidance --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", [None, math.inf])
@pytest.mark.parametrize("sampler", ["dpmpp_2m", "unipc_3", "heun"])
def test_guidance_evaluates_twice_as_many_rows_inside_its_interval_only(sampler: str, rho: float | None):
    model = catalog.build("diffusion/edm", ImageSpec(1, (4, 4), levels=17), Schema({"c": Category(("a", "b"))}), "tiny")
    model.images_seen.fill_(1)
    rows: list[tuple[float, int]] = []
    model.network.register_forward_pre_hook(lambda _, args: rows.append((float(args[1][0]), len(args[0]))))
    draw = partial(model.sample, 5, {"c": "a"}, steps=9, sampler=sampler, rho=rho)
    low, high = model.levels.sigma(torch.tensor([0.2, 0.7])).tolist()
    draw(guidance=2.0, interval=(0.2, 0.7))
    assert {n for s, n in rows if low < s <= high} == {10}
    assert {n for s, n in rows if not low < s <= high} == {5}
    for options, guided in ({"guidance": 1.0}, 0), ({"guidance": 2.0, "interval": (0.0, 0.0)}, 0), ({"guidance": 2.0}, 1):
        rows.clear()
        draw(**options)
        assert len(rows) == (17 if sampler == "heun" else 9)
        once = [n for _, n in rows].count(5)
        last = 2 if sampler == "heun" else 1  # evaluations at sigma_min itself, where guidance does not act
        assert once == (last if guided else len(rows))


def test_rho_below_zero_is_refused():
    model = catalog.build("diffusion/edm", ImageSpec(1, (4, 4), levels=17), Schema(), "tiny")
    model.images_seen.fill_(1)
    for rho in (0.0, -7.0, math.nan):
        with pytest.raises(ValueError, match="rho must be above 0"):
            model.sample(1, rho=rho)


# -- many images -----------------------------------------------------------------------------------------------------------------

MANY = """
import resource, sys, torch
from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
torch.set_num_threads(1)
model = catalog.build(sys.argv[1], ImageSpec(1, (2, 2), levels=3), Schema(), "tiny")
model.images_seen.fill_(1)
rows, layers = [], [m for m in model.modules() if not list(m.children())]
for layer in layers:
    layer.register_forward_pre_hook(lambda _, args: rows.append(args[0].shape[0] if args else 0))
peaks = []
for n in (32_768, 100_000):
    assert model.sample(n).shape == (n, 1, 2, 2)
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
print(max(rows, default=0), *peaks)
"""


@pytest.mark.parametrize("family", ["autoregressive", "flow"])
def test_a_hundred_thousand_images_hold_the_memory_of_one_chunk(family: str):
    """Peak resident memory after three chunks and after one, in MiB."""
    found = subprocess.run([sys.executable, "-c", MANY, family], capture_output=True, text=True, check=True)
    rows, one, three = map(float, found.stdout.split())
    assert rows == 32_768  # the most that any layer was given at once
    assert three - one < 60  # without chunks it is 285 (autoregressive) and 100 (flow)
