"""DDPM against its own closed forms, and against diffusers, whose network has the same weights under other names."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.catalog import from_diffusers
from nonesuch.core.given import Category, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion._betas import Betas
from nonesuch.models.diffusion._diffusers import to_diffusers
from nonesuch.models.diffusion._samplers import solve
from nonesuch.models.diffusion.ddpm import DDPM
from nonesuch.train.device import place

SPEC = ImageSpec(1, (4, 4), levels=17)
BETAS = Betas(1000, 1e-4, 0.02)


def built(spec: ImageSpec = SPEC, schema: Schema | None = None, **config: object) -> DDPM:
    """A tiny model that counts as fitted, its zeros moved so that inputs matter."""
    model = catalog.build("diffusion/ddpm", spec, schema or Schema(), "tiny", **config)
    assert isinstance(model, DDPM)
    draws = Seeds.of(7, 1)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.05 * draws.normal("test", *p.shape, step=i)[0])
    model.images_seen.fill_(1)
    return model


def images(n: int, spec: ImageSpec = SPEC) -> Tensor:
    return spec.from_levels(Seeds.of(3, n).integers("x", spec.levels or 2, *spec.shape))


# -- the noise -------------------------------------------------------------------------------------------------------------------


def test_the_tables_are_the_papers():
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    abar = torch.cumprod(1 - beta, 0)
    torch.testing.assert_close(BETAS.log_abar[1:].exp(), abar)
    posterior = (1 - abar[:-1]) / (1 - abar[1:]) * beta[1:]  # Eq. 7
    torch.testing.assert_close(BETAS.decoder_std**2, float(posterior[0]), rtol=1e-9, atol=0)
    eq12 = beta[1:] ** 2 / (2 * posterior * (1 - beta[1:]) * (1 - abar[1:]))  # of ||eps - epshat||^2
    torch.testing.assert_close(BETAS.weights, eq12 * abar[1:] / (1 - abar[1:]), rtol=1e-8, atol=0)
    torch.testing.assert_close(BETAS.shares, eq12 / eq12.sum(), rtol=1e-8, atol=0)
    alpha, sigma = BETAS.scales(torch.tensor([0.0, 1.0, 500.5, 1000.0]))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(4, dtype=torch.float64))
    assert (alpha[0], sigma[0]) == (1, 0)
    torch.testing.assert_close(float(alpha[2] ** 2), math.sqrt(float(abar[499] * abar[500])))


def gaussian(model: DDPM, mean: float, std: float, monkeypatch: pytest.MonkeyPatch) -> DDPM:
    """The model with its network replaced by the exact one of data N(mean, std^2)."""

    def noise_of(x_k: Tensor, k: Tensor, given: object, keys: object = None) -> Tensor:
        alpha, sigma = model._scales(k, x_k)
        return sigma * (x_k - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    monkeypatch.setattr(model, "noise_of", noise_of)
    return model


@pytest.mark.parametrize(("sampler", "steps", "close"), [("ddpm", 1000, 0.02), ("ddim", 1000, 0.02), ("ddim", 50, 0.03)])
def test_sampling_a_gaussian_gives_that_gaussian(sampler: str, steps: int, close: float, monkeypatch: pytest.MonkeyPatch):
    spec = ImageSpec(1, (32, 32), "hw", "continuous", None)
    model = gaussian(built(spec), 0.7, 0.3, monkeypatch)
    x = model.sample(16, seeds=1, sampler=sampler, steps=steps)
    torch.testing.assert_close(float(x.mean()), 0.7, atol=close, rtol=0)
    torch.testing.assert_close(float(x.std()), 0.3, atol=close, rtol=0)


def test_steps_between_the_steps_are_found_again():
    k = torch.tensor([0.0, 1.0, 1.25, 12.0, 500.5, 999.9, 1000.0], dtype=torch.float64)
    for where, ratio in zip(k.tolist(), BETAS.ratio(k).tolist(), strict=True):
        assert BETAS.step_of(ratio) == pytest.approx(where, abs=1e-8)
    assert (BETAS.step_of(0.0), BETAS.step_of(1e9)) == (0, 1000)


@pytest.mark.parametrize(("sampler", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2), ("unipc_1", 2), ("unipc_2", 3)])
def test_samplers_converge_on_the_flow_of_a_gaussian(sampler: str, order: int, monkeypatch: pytest.MonkeyPatch):
    """Each pixel's distance from the mean shrinks as the deviation of x + s eps does; the last step is D at s_1."""
    mean, std, spec = 0.7, 0.3, ImageSpec(1, (8, 8), "hw", "continuous", None)
    model = gaussian(built(spec), mean, std, monkeypatch)
    first, last = model.levels.sigma_min, model.levels.sigma_max
    y = Seeds.of(0, 16).normal("x", *spec.shape).double() * math.hypot(1, last)
    flow = mean + (y - mean) * math.sqrt((std**2 + first**2) / (std**2 + last**2))
    truth = mean + (flow - mean) * std**2 / (std**2 + first**2)

    def error(n: int) -> float:
        if sampler == "ddim":  # evenly spaced steps, whose last is long before s_1
            walk = solve(sampler, model._guided(model.schema.missing(16), 1.0, (0.0, 1.0)), y, model.levels.steps(n))
            return float((list(walk)[-1] - truth).square().mean().sqrt())
        return float((model.sample(16, seeds=0, sampler=sampler, steps=n) - truth).square().mean().sqrt())

    assert math.log2(error(24) / error(48)) == pytest.approx(order, abs=0.5)


def test_twelve_evaluations_of_unipc_are_nearer_the_flow_than_fifty_of_ddim(monkeypatch: pytest.MonkeyPatch):
    spec = ImageSpec(1, (8, 8), "hw", "continuous", None)
    model = gaussian(built(spec), 0.7, 0.3, monkeypatch)
    draw = partial(model.sample, 16, seeds=0)
    truth = draw(sampler="unipc_3", steps=400)
    few, many = (float((draw(sampler=s, steps=n) - truth).square().mean()) for s, n in (("unipc_2", 12), ("ddim", 50)))
    assert few < many


def test_guidance_evaluates_twice_as_many_rows_inside_its_interval_only():
    model = built(schema=Schema({"label": Category(("a", "b"))}))
    rows: list[tuple[float, int]] = []
    model.unet.register_forward_pre_hook(lambda _, args: rows.append((float(args[1][0]) + 1, len(args[0]))))
    for options, steps in (({"sampler": "unipc_2"}, 9), ({"sampler": "ddim"}, 10)):
        rows.clear()
        x = model.sample(5, {"label": "a"}, steps=steps, guidance=2.0, interval=(0.2, 0.7), **options)
        assert all(n == (10 if 200 < k <= 700 else 5) for k, n in rows)
        assert {n for _, n in rows} == {5, 10}
        assert not torch.equal(x, model.sample(5, {"label": "a"}, steps=steps, **options))


def test_the_bound_of_a_gaussian_is_the_sum_of_its_posterior_variances(monkeypatch: pytest.MonkeyPatch):
    """With v_k = 1 / (1 / std^2 + SNR_k) the mean of Eq. 5 is known, up to the width of a level against the decoder's."""
    spec, std = ImageSpec(1, (8, 8), levels=256), 0.25
    model = gaussian(built(spec, strata=64, clip=False), 0.1, std, monkeypatch)
    x = spec.snap(0.1 + std * Seeds.of(5, 256).normal("x", *spec.shape))
    nats = -model.log_prob(x).nats.double().mean() / 64
    snr = 1 / torch.expm1(-BETAS.log_abar[1:])
    v, d = 1 / (std**-2 + snr), BETAS.decoder_std
    decoder = v[0] / (2 * d**2) + math.log(d * math.sqrt(2 * math.pi) / spec.step)
    alpha, sigma = (float(s) for s in BETAS.scales(torch.tensor(1000)))
    prior = 0.5 * (sigma**2 - 1 + alpha**2 * (0.1**2 + std**2)) - math.log(sigma)
    wanted = float(decoder + (BETAS.weights * v[1:]).sum() + prior)
    assert abs(float(nats) - wanted) < 0.08
    assert float(nats) > 0.5 * math.log(2 * math.pi * math.e * std**2 / spec.step**2)  # the entropy of the data


def test_the_drawn_terms_average_to_all_of_them():
    model, x = built(timesteps=24, beta_last=0.3), images(2)
    given, seeds = model.schema.missing(2), Seeds.of(0, 2)
    with torch.no_grad():
        drawn = torch.stack([model._middle(x, given, 23, Seeds.of(i, 2)) for i in range(100)]).double()
        whole = torch.zeros(2, 24, dtype=torch.float64)
        for k in range(2, 25):
            for i in range(24):
                eps = seeds.normal("test", *x.shape[1:], step=24 * k + i)
                error, _ = model._estimate(x, torch.full((2,), k), eps, given)
                whole[:, i] += model.betas.weights[k - 2] * error.double().square().flatten(1).sum(1)
    spread = drawn.std(0) / 10 + whole.std(1) / math.sqrt(24)
    assert ((drawn.mean(0) - whole.mean(1)).abs() < 4 * spread).all()


def test_the_decoder_sums_to_one_over_the_levels():
    spec = ImageSpec(1, (2, 2), levels=3)
    model = built(spec, beta_first=0.3, beta_last=0.5, timesteps=10)
    grid, seeds = torch.cartesian_prod(*[torch.arange(3)] * 4).view(-1, 1, 2, 2), Seeds((0,) * 81, (0,) * 81)
    fixed = torch.full((81, 1, 2, 2), 0.1)
    model._estimate = lambda x, k, eps, given: (x - fixed, fixed)  # type: ignore[method-assign]
    total = model._decoder(spec.from_levels(grid), model.schema.missing(81), seeds, 0).double().exp().sum()
    torch.testing.assert_close(float(total), 1.0, rtol=1e-6, atol=0)


# -- the network -----------------------------------------------------------------------------------------------------------------


def test_the_published_network_has_its_parameters():
    with torch.device("meta"):
        model = catalog.build("diffusion/ddpm", ImageSpec(3, (32, 32)), Schema(), "cifar10")
    assert sum(p.numel() for p in model.parameters()) == 35_746_307


@pytest.mark.parametrize(
    "spec",
    [
        ImageSpec(1, (5, 8)), ImageSpec(1, (4, 4, 4), "dhw"), ImageSpec(1, (16,), "l", "categorical"),
        ImageSpec(1, (), "", "continuous", None),
    ],
)  # fmt: skip
def test_unfit_images_are_refused_in_a_sentence(spec: ImageSpec):
    with pytest.raises(ValueError, match=r"\.$"):
        built(spec)


def test_kept_casts_follow_the_weights():
    model = built()
    x, k, given = images(3), torch.tensor([1, 20, 900]), model.schema.missing(3)
    with torch.no_grad():
        exact = model.noise_of(x, k, given)
        model.compute_dtype = torch.bfloat16
        first, second = model.noise_of(x, k, given), model.noise_of(x, k, given)
        assert torch.equal(first, second)
        assert 0 < float((first - exact).norm() / exact.norm()) < 0.05
        for p in model.parameters():
            p.mul_(0.5)
        after = model.noise_of(x, k, given)
        assert not torch.equal(first, after)
    torch.testing.assert_close(after, model.noise_of(x, k, given).detach(), atol=1e-2, rtol=1e-2)


# -- diffusers -------------------------------------------------------------------------------------------------------------------

PUBLISHED = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "downsample_padding": 0, "norm_eps": 1e-6,
    "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
TINY = PUBLISHED | {
    "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "norm_num_groups": 8,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
OTHERS = TINY | {
    "attention_head_dim": 8, "downsample_padding": 1, "norm_eps": 1e-5, "flip_sin_to_cos": True, "freq_shift": 0,
    "in_channels": 1, "out_channels": 1,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "config", [TINY, OTHERS, pytest.param(PUBLISHED, marks=pytest.mark.slow)], ids=["tiny", "others", "published"]
)
def test_a_network_of_diffusers_gives_the_same(config: dict[str, object], tmp_path: Path):
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = diffusers.UNet2DModel(**config).eval()
    theirs.save_pretrained(tmp_path / "unet")
    ours = from_diffusers(tmp_path)
    assert ours.spec.size == (config["sample_size"],) * 2
    x = Seeds.of(1, 4).normal("x", *ours.spec.shape)
    k, given = torch.tensor([1, 40, 500, 1000]), ours.schema.missing(4)
    with torch.no_grad():
        wanted = theirs(x, k - 1).sample

        def error(found: Tensor) -> float:
            return float((found - wanted).norm() / wanted.norm())

        assert error(ours.noise_of(x, k, given)) <= 1e-5
        place(ours, "cpu", "fp32", compile=True)
        assert error(ours.noise_of(x, k, given)) <= 1e-5
        place(ours, "cpu", "bf16", compile=True)
        assert error(ours.noise_of(x, k, given)) <= 1e-2  # measured: 8.9e-3, 8.8e-3, 8.3e-3; diffusers' own in bf16 is 1.2e-2


def written(folder: Path, **settings: object) -> Path:
    """A folder as diffusers would write its network, with our own tiny weights under their names."""
    to_diffusers(built(ImageSpec(3, (8, 8)), base=16, attention=(False, True), groups=8), folder.parent / "pipeline")
    (folder.parent / "pipeline" / "unet").rename(folder)
    (folder / "config.json").write_text(json.dumps({"_class_name": "UNet2DModel"} | TINY | settings))
    return folder


@pytest.mark.filterwarnings("ignore")
def test_what_is_written_is_the_same_model_to_diffusers_and_back(tmp_path: Path):
    model = built(ImageSpec(2, (8, 4)), base=16, attention=(True, True), groups=4, head_dim=8, blocks=2, timesteps=100)
    to_diffusers(model, tmp_path)
    back = from_diffusers(tmp_path)
    assert (back.config.mults, back.config.head_dim, back.betas, back.spec) == ((1, 2), 8, model.betas, model.spec)
    assert {k: v.tolist() for k, v in back.unet.state_dict().items()} == {
        k: v.tolist() for k, v in model.unet.state_dict().items()
    }
    with pytest.raises(ValueError, match="no place for the condition label"):
        to_diffusers(built(schema=Schema({"label": Category(("a", "b"))})), tmp_path)
    diffusers = pytest.importorskip("diffusers", exc_type=ImportError)
    pipeline = diffusers.DDPMPipeline.from_pretrained(tmp_path)
    assert pipeline.scheduler.config.num_train_timesteps == 100
    x, k = images(3, model.spec), torch.tensor([1, 40, 100])
    with torch.no_grad():
        torch.testing.assert_close(
            pipeline.unet(x, k - 1).sample, model.noise_of(x, k, model.schema.missing(3)), atol=1e-5, rtol=1e-4
        )


def test_a_folder_is_read_without_diffusers(tmp_path: Path):
    read, same = from_diffusers(written(tmp_path)), built(ImageSpec(3, (8, 8)), base=16, attention=(False, True), groups=8)
    x, k = images(2, same.spec), torch.tensor([3, 700])
    torch.testing.assert_close(read.noise_of(x, k, same.schema.missing(2)), same.noise_of(x, k, same.schema.missing(2)))
    assert read.sample(2, steps=3).shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"time_embedding_type": "fourier"}, "time_embedding_type = 'fourier'"),
        ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift"),
        ({"num_class_embeds": 10}, "num_class_embeds"),
        ({"a_new_setting": 1}, "'a_new_setting'"),
        ({"_class_name": "UNet2DConditionModel"}, "UNet2DConditionModel"),
        ({"sample_size": None}, "sample_size"),
        ({"down_block_types": ["SkipDownBlock2D", "DownBlock2D"]}, "SkipDownBlock2D"),
        ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "attend at different"),
        ({"layers_per_block": 2}, "does not hold the network"),
    ],
)
def test_what_ddpm_is_not_is_refused_by_name(settings: dict[str, object], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        from_diffusers(written(tmp_path, **settings))


def test_pickles_are_refused_and_schedules_read(tmp_path: Path):
    folder = written(tmp_path / "unet").parent
    (folder / "scheduler").mkdir()
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text(
        json.dumps({"num_train_timesteps": 100, "beta_start": 0.001, "beta_end": 0.2, "beta_schedule": "linear"})
    )
    assert from_diffusers(folder).betas == Betas(100, 0.001, 0.2)
    scheduler.write_text(json.dumps({"beta_schedule": "squaredcos_cap_v2"}))
    with pytest.raises(ValueError, match="squaredcos_cap_v2"):
        from_diffusers(folder)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "diffusion_pytorch_model.bin")
    scheduler.unlink()
    with pytest.raises(ValueError, match="is a pickle"):
        from_diffusers(folder)


def test_conditions_and_guidance_reach_the_images():
    model = built(schema=Schema({"label": Category(("a", "b"))}))
    a, b = (model.sample(4, {"label": name}, seeds=0, steps=5) for name in "ab")
    assert not torch.equal(a, b)
    assert not torch.equal(a, model.sample(4, {"label": "a"}, seeds=0, steps=5, guidance=3.0))
    with pytest.raises(ValueError, match="no sampler"):
        model.sample(1, sampler="ancestral")
    with pytest.raises(ValueError, match="from 1 to 1000"):
        model.sample(1, steps=1001)
