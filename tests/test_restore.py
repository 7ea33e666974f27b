"""Restoration against posteriors that are known: Gaussian mixtures and tables of images in closed form."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from of_toys import Dense, ToyChain, ToyDecoder, ToyDenoiser, ToyEnergy, ToyPreserving, compared, toy
from torch import Tensor

import nonesuch as ns
from nonesuch.applications.provenance import read_origin
from nonesuch.applications.restore import restore
from nonesuch.applications.restore._completion import _cell
from nonesuch.applications.restore._measured import Measured, effective, resample
from nonesuch.catalog import build
from nonesuch.cli import main
from nonesuch.core.degradation import (
    Blur,
    Compose,
    Degradation,
    Downsample,
    Grayscale,
    Jpeg,
    LowLight,
    Mask,
    Noise,
    SecondOrder,
)
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.data.formats import Picture, encode, read
from nonesuch.data.toy import GaussianMixture, TableOfImages

LEFT = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0]]).bool()
GIVEN_A_HALF = Mask(LEFT, noise=0.3)


def mixture_case() -> tuple[GaussianMixture, Tensor, GaussianMixture]:
    """A mixture of pictures, what was measured of one of them (half of it, with noise), and its posterior of three modes."""
    density = GaussianMixture.images(3, (1, 2, 4), 9)
    y = GIVEN_A_HALF(density.sample(1, 202)[0].float(), 2)
    return density, y, density.posterior(torch.eye(8)[LEFT.flatten()], y[0, 0][LEFT], 0.3)


def draws(model: Model, y: Tensor, degradation: Degradation, n: int, **options: Any) -> Tensor:
    """n draws of one posterior, each of a picture of its own."""
    return restore(model, y.expand(n, *y.shape[1:]), degradation, samples=1, **options).x[:, 0]


# -- the truth that the rest is held against


def test_the_posterior_of_a_mixture_is_bayes_rule():
    density = GaussianMixture.images(3, (1, 2, 2), 3)
    a, noise = torch.tensor([[1.0, 0.5, 0.0, 0.0], [0.0, 0.0, 1.0, -1.0]]).double(), 0.3
    y = torch.tensor([0.4, -0.2]).double()
    posterior = density.posterior(a, y, noise)
    x = density.sample(64, 1)[0]
    log_likelihood = -(y - x.flatten(1) @ a.T).square().sum(1) / (2 * noise**2)
    constant = density.log_prob(x) + log_likelihood - posterior.log_prob(x)  # log p(y) of every x
    torch.testing.assert_close(constant, constant[:1].expand(64), atol=1e-9, rtol=0)
    torch.testing.assert_close(posterior.weights.sum(), torch.tensor(1.0).double())


def test_comparing_finds_a_posterior_of_the_wrong_noise_or_share():
    _, _, truth = mixture_case()
    right = compared(truth.sample(4000, 1)[0], truth)
    assert max(right["mean"], right["covariance"], right["weights, absolute"]) < 0.05
    wide = GaussianMixture(truth.weights, truth.means, truth.covariances * 1.3)
    assert compared(wide.sample(4000, 1)[0], truth)["covariance"] > 0.05
    even = GaussianMixture(torch.full_like(truth.weights, 1 / 3), truth.means, truth.covariances)
    assert compared(even.sample(4000, 1)[0], truth)["weights, absolute"] > 0.1


# -- the likelihood of measurements


@pytest.mark.parametrize(
    "degradation", [GIVEN_A_HALF, Downsample((1, 2), noise=0.2), Blur(0.8, noise=0.2), Dense(((1.0,) * 8,), 0.1)]
)
def test_whitening_solves_for_the_covariance_of_the_residual(degradation: Degradation):
    spec = ImageSpec(1, (2, 4), kind="continuous", levels=None)
    x = Seeds.of(0, 3).normal("x", *spec.shape)
    y = Measured(degradation, spec, degradation(x, 1))
    r = y.residual(torch.zeros_like(x))
    white = y.whiten(r, 0.3, 0.7)
    assert y.operator is not None
    back = 0.09 * white + 0.49 * y.operator(y.operator.adjoint(white))
    torch.testing.assert_close(back, r, atol=1e-4, rtol=1e-4)


def test_the_error_is_the_root_mean_square_over_what_was_measured():
    spec, x = ImageSpec(1, (2, 4), kind="continuous", levels=None), torch.zeros(2, 1, 2, 4)
    y = Measured(GIVEN_A_HALF, spec, torch.cat([LEFT * 0.5, LEFT * 2.0 - 1]).view(1, 2, 2, 4).repeat(2, 1, 1, 1))
    torch.testing.assert_close(y.error(x), torch.full((2,), 0.5))


def test_systematic_resampling_keeps_expected_counts():
    log_weight = torch.tensor([[0.1, 0.2, 0.3, 0.4]]).log().repeat(4000, 1)
    u = Seeds.of(0, 4000).uniform("u", 1)
    counts = torch.stack([(resample(log_weight, u) == k).sum(1).double().mean() for k in range(4)])
    torch.testing.assert_close(counts, torch.tensor([0.4, 0.8, 1.2, 1.6]).double(), atol=0.03, rtol=0)
    assert float(effective(torch.zeros(1, 7))[0]) == pytest.approx(7)


# -- diffusion


def test_twisted_particles_come_nearer_to_the_posterior_than_guidance():
    density, y, truth = mixture_case()
    model = toy(ToyDenoiser, density)
    guided = compared(draws(model, y, GIVEN_A_HALF, 800, steps=32), truth)
    twisted = compared(draws(model, y, GIVEN_A_HALF, 800, method="twisted", steps=32, particles=16), truth)
    assert twisted["mean"] < 0.07 < guided["mean"]
    assert twisted["weights, absolute"] < 0.05 < guided["weights, absolute"]
    assert twisted["covariance"] < 0.12


def test_guidance_is_exact_for_one_round_normal():
    """Where Cov(x | x_t) is r^2 I, as Eq. 2 takes it to be, guidance is no guess."""
    round_one = GaussianMixture.normal(torch.full((1, 2, 2), 0.2), 0.25 * torch.eye(4))
    a = torch.tensor([[1.0, 0, 0, 0], [0, 1.0, 0, 0]])
    y = torch.tensor([[0.8, -0.5]])
    degradation = Dense(tuple(map(tuple, a.tolist())), 0.3)
    truth = round_one.posterior(a, y[0], 0.3)
    for cls in (ToyDenoiser, ToyPreserving):
        found = compared(draws(toy(cls, round_one), y, degradation, 1500, steps=32), truth)
        assert found["mean"] < 0.06, cls
        assert found["covariance"] < 0.12, cls


def test_dps_is_led_to_the_measurements():
    density, y, _ = mixture_case()
    x = draws(toy(ToyDenoiser, density), y, GIVEN_A_HALF, 100, method="dps", steps=60)
    measured = Measured(GIVEN_A_HALF, density.spec, y.expand(100, *y.shape[1:]))
    assert float(measured.error(x).mean()) < 0.6 * float(measured.error(density.sample(100)[0].float()).mean())


# -- energies and latents


def test_langevin_on_an_energy_samples_the_posterior():
    density, y, truth = mixture_case()
    found = compared(draws(toy(ToyEnergy, density), y, GIVEN_A_HALF, 400, particles=64), truth)
    assert found["mean"] < 0.1
    assert found["covariance"] < 0.15
    assert found["weights, absolute"] < 0.06


def test_langevin_on_latents_samples_the_posterior_of_a_linear_flow():
    density = GaussianMixture.images(1, (1, 2, 4), 0)
    y = GIVEN_A_HALF(density.sample(1, 5)[0].float(), 1)
    truth = density.posterior(torch.eye(8)[LEFT.flatten()], y[0, 0][LEFT], 0.3)
    found = compared(draws(toy(ToyDecoder, density), y, GIVEN_A_HALF, 600), truth)
    assert found["mean"] < 0.1
    assert found["covariance"] < 0.15
    best = restore(toy(ToyDecoder, density), y, GIVEN_A_HALF, method="optimise", steps=300)  # of a normal, the mean
    torch.testing.assert_close(best.mean.double(), truth.mean[None], atol=0.02, rtol=0)
    assert best.honest == "approximate"
    assert float(best.spread.max()) < 0.02


# -- chains of pixels


@pytest.fixture(scope="module")
def table() -> TableOfImages:
    return TableOfImages.random(ImageSpec(1, (2, 2), levels=3), seed=1, sharpness=1.0)


def table_posterior(table: TableOfImages, degradation: Degradation, y: Tensor, n: float) -> Tensor:
    """P(image | y) of every image of the table."""
    every = Measured(degradation, table.spec, y.expand(len(table.images), *y.shape[1:]))
    return (table.probabilities.log() + every.log_likelihood(table.images, n).double()).softmax(0)


def shares_of(x: Tensor, table: TableOfImages) -> Tensor:
    levels = table.spec.levels or 0
    base = levels ** torch.arange(table.spec.numel - 1, -1, -1)
    place = (table.spec.to_levels(x).flatten(1) * base).sum(1)
    return torch.bincount(place, minlength=len(table.images)).double() / len(x)


@pytest.mark.parametrize(
    "degradation", [Downsample(2, kernel="area", noise=0.4), Noise(0.7), Mask(torch.tensor([[0, 1], [0, 1]]).bool())]
)
def test_gibbs_sampling_is_the_posterior_by_enumeration(table: TableOfImages, degradation: Degradation):
    y = degradation(table.images[40:41], 2)
    r = restore(toy(ToyChain, table), y.expand(6000, *y.shape[1:]), degradation, samples=1, steps=5)
    assert (r.method, r.honest) == ("gibbs", "asymptotically exact")
    truth = table_posterior(table, degradation, y, Measured(degradation, table.spec, y).least())
    distance = float((shares_of(r.x[:, 0], table) - truth).abs().sum() / 2)
    noise = float((truth * (1 - truth) / 6000).sqrt().sum() / 2)  # what 6,000 true draws would be off by, on average
    assert distance < 2 * noise + 0.01, (distance, noise)


def test_gibbs_sampling_in_cells_keeps_the_posterior():
    many = TableOfImages.random(ImageSpec(1, (1, 2), levels=40), seed=2, sharpness=1.5)
    degradation = Noise(0.4)
    y = degradation(many.images[777:778], 3)
    x = draws(toy(ToyChain, many), y, degradation, 3000, steps=12)
    truth = table_posterior(many, degradation, y, 0.4)
    mean = torch.einsum("n,n...->...", truth, many.images.double())
    spread = (torch.einsum("n,n...->...", truth, (many.images.double() - mean) ** 2)).sqrt()
    assert float(((x.double().mean(0) - mean) / spread).abs().max()) < 0.08
    torch.testing.assert_close(x.double().std(0), spread, atol=0, rtol=0.08)


def test_the_cells_of_levels_do_not_depend_on_the_level():
    keys = Seeds.of(4, 200)
    for step in (0, 1):
        cells = [_cell(torch.full((200,), level), 200, keys, step) for level in range(200)]
        for level, cell in enumerate(cells):
            for other in {int(v) for v in cell[0].tolist() if v >= 0}:
                assert torch.equal(cells[other][0].sort().values, cell[0].sort().values)
            assert (cell == level).any(1).all()


def test_completion_is_exact_where_the_known_pixels_come_first(table: TableOfImages):
    degradation, model = Mask("half"), toy(ToyChain, table)
    y = degradation(table.images[40:41])
    r = restore(model, y.expand(6000, *y.shape[1:]), degradation, samples=1)
    assert (r.method, r.honest) == ("complete", "exact")
    assert float(r.error.max()) == 0
    truth = table_posterior(table, degradation, y, 1e-3)
    assert float((shares_of(r.x[:, 0], table) - truth).abs().sum() / 2) < 0.03
    late = Mask(torch.tensor([[0, 0], [1, 1]]).bool())
    said = restore(model, late(table.images[40:41]), late, method="complete")
    assert said.honest == "approximate"


# -- the promise of posterior samples


def coverage(x: Tensor, samples: Tensor) -> float:
    """Share of values of x (B, ...) within the central 80 % of samples (B, 19, ...): ranks 2 to 17 of 20, so 16 / 20."""
    rank = (samples < x[:, None]).sum(1)
    return float(((rank >= 2) & (rank <= 17)).double().mean())


def test_samples_cover_the_truth_as_often_as_they_say():
    density = GaussianMixture.images(3, (1, 2, 4), 11)
    x = density.sample(100, 3)[0].float()
    y = GIVEN_A_HALF(x, 4)
    r = restore(toy(ToyEnergy, density), y, GIVEN_A_HALF, samples=19, seeds=9, particles=8, steps=2)
    assert coverage(x, r.x) == pytest.approx(0.8, abs=0.05)  # 800 values, of 100 pictures
    narrow = r.mean[:, None] + 0.5 * (r.x - r.mean[:, None])
    assert coverage(x, narrow) < 0.7  # half the spread is found out


# -- what every method keeps


FAMILIES = ("diffusion", "energy", "vae", "flow", "gan", "autoregressive")


@pytest.fixture(scope="module")
def tiny() -> dict[str, Model]:
    """A model of every family that has seen its data's statistics and learned nothing: what is tested does not depend on it."""
    train = ns.data.open("digits").train
    models = {family: build(family, train.spec, Schema(), "tiny") for family in FAMILIES}
    for model in models.values():
        model.prepare(train.x[:256], Given(256))
        model.images_seen.fill_(1)
    for i, weight in enumerate(models["vae"].parameters()):  # to a fresh VAE z is nothing
        weight.data += 0.05 * Seeds.of(i, 1).normal("weight", *weight.shape)[0]
    return models


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_restores_and_a_seed_is_a_picture(family: str, tiny: dict[str, Model]):
    x = ns.data.open("digits").test.x[:2]
    y = Mask("half")(x)
    few: dict[str, Any] = (
        {"steps": 6} if family == "diffusion" else {} if family == "autoregressive" else {"steps": 1, "particles": 3}
    )
    r = restore(tiny[family], y, Mask("half"), samples=2, seeds=3, **few)
    assert r.method == ("pigdm" if family == "diffusion" else "complete" if family == "autoregressive" else "langevin")
    assert r.x.shape == (2, 2, 1, 8, 8)
    assert float(r.x.abs().max()) <= 1
    torch.testing.assert_close(r.x[:, :, :, :4], x[:, None, :, :4].expand(-1, 2, -1, -1, -1), atol=1e-5, rtol=0)
    assert float(r.error.max()) < 1e-5
    assert float(r.spread[:, :, :4].max()) < 1e-5 < float(r.spread[:, :, 4:].max())
    alone = restore(tiny[family], y[1:], Mask("half"), samples=1, seeds=Seeds((3,), (1,)), **few)
    tolerance = 0.02 if family in ("energy", "flow", "vae", "gan") else 1e-3  # chains of many steps amplify rounding
    torch.testing.assert_close(alone.x[0, 0], r.x[1, 0], atol=tolerance, rtol=0)


def test_noiseless_measurements_are_met(tiny: dict[str, Model]):
    x = ns.data.open("digits").test.x[:2]
    y = Downsample(2, kernel="area")(x)
    r = restore(tiny["diffusion"], y, Downsample(2, kernel="area"), samples=2, steps=8)
    assert float(r.error.max()) < 0.02


def test_a_file_of_jpeg_is_led_back_without_a_derivative():
    density = GaussianMixture.images(2, (1, 8, 8), 4)
    x = density.sample(4, 1)[0].float().clamp(-1, 1)
    y = Jpeg(30)(x)
    model = toy(ToyDenoiser, density)
    r = restore(model, y, Jpeg(30), noise=0.1, samples=2, steps=20)
    apart = (model.sample(4, seeds=9) - x).square().mean().sqrt()
    assert float((r.mean - x).square().mean().sqrt()) < min(0.5 * float(apart), 1.1 * float((y - x).square().mean().sqrt()))


# -- bad input


def test_what_does_not_fit_is_refused_in_a_sentence(tiny: dict[str, Model], table: TableOfImages):
    model, y = tiny["diffusion"], torch.zeros(2, 1, 4, 4)
    faults: list[tuple[str, Any]] = [
        (r"\(batch, 1, 4, 4\) of this model's", lambda: restore(model, torch.zeros(2, 1, 8, 8), Downsample(2))),
        (r"\(batch, 1, 4, 4\) of this model's", lambda: restore(model, torch.zeros(2, 3, 4, 4), Downsample(2))),
        ("no pictures", lambda: restore(model, torch.zeros(0, 1, 4, 4), Downsample(2))),
        ("NaN", lambda: restore(model, y * math.nan, Downsample(2))),
        ("one already", lambda: restore(model, y, Grayscale())),
        ("17 levels", lambda: restore(model, torch.zeros(1, 1, 8, 8), Jpeg(50))),
        ("must be a Degradation", lambda: restore(model, y, "downsample")),  # type: ignore[arg-type]
        ("samples must be", lambda: restore(model, y, Downsample(2), samples=0)),
        ("did you mean 'samples'", lambda: restore(model, y, Downsample(2), sample=3)),
        ("did you mean 'twisted'", lambda: restore(model, y, Downsample(2), method="twist")),
        ("optimise needs a Decoder.*pigdm, twisted, dps", lambda: restore(model, y, Downsample(2), method="optimise")),
        ("unconditional", lambda: restore(model, y, Downsample(2), {"label": 3})),
        ("this is none", lambda: restore(toy(ToyChain, table), torch.zeros(1, 1, 2, 2), Noise(), method="complete")),
        ("noise is a standard deviation", lambda: restore(model, y, Downsample(2), noise=-1.0)),
    ]
    for sentence, fault in faults:
        with pytest.raises(ValueError, match=sentence) as found:
            fault()
        assert str(found.value).count(". ") == 0


def test_what_was_done_by_chance_is_not_undone():
    model = toy(ToyDenoiser, GaussianMixture.images(2, (1, 8, 8), 4))
    for degradation, side in ((SecondOrder(2), 4), (LowLight(), 8)):
        with pytest.raises(ValueError, match=r"something else to every picture.*fit"):
            restore(model, torch.zeros(1, 1, side, side), degradation)
    with pytest.raises(ValueError, match="neither inverted nor differentiated"):
        restore(model, torch.zeros(1, 1, 4, 4), Compose(Downsample(2), Jpeg(50)))
    assert restore(model, torch.zeros(1, 1, 4, 8), Compose(Blur(0.5), Downsample((2, 1))), steps=4).x.shape == (1, 4, 1, 8, 8)


def test_codes_have_no_slope():
    model = build("vae/vqvae", ns.data.open("digits").spec, Schema(), "tiny")
    model.images_seen.fill_(1)
    with pytest.raises(ValueError, match="numbers of codes"):
        restore(model, torch.zeros(1, 1, 4, 4), Downsample(2))


# -- the command line


def said(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main([*argv, "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_the_commands_write_samples_and_a_sheet(tiny: dict[str, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs, out, again = tmp_path / "model", tmp_path / "out", tmp_path / "again"
    ns.save(tiny["autoregressive"], runs)
    shown = said(capsys, "inpaint", str(runs), "digits", "--hide", "half", "-n", "2", "--samples", "3", "--out", str(out))
    assert (shown["method"], shown["honest"], shown["pictures"]) == ("complete", "exact", 2)
    assert shown["consistency"] == 0 < shown["error"] < 1.5
    names = [f"{i:04d}-{word}.png" for i in range(2) for word in ("0", "1", "2", "mean", "spread")]
    assert sorted(p.name for p in out.iterdir()) == sorted([*names, "sheet.png"])
    x = ns.data.open("digits").test
    top = torch.from_numpy(read(out / "0000-0.png").values.astype("float64"))[:, :4]
    assert torch.equal(x.spec.from_values(top), x.x[0, :, :4])  # what was known is in the file as it was
    origin = read_origin(out / "0001-2.png")
    assert origin is not None
    assert (origin.job, origin.index, origin.source) == ("inpaint", 1, "compositeWithTrainedAlgorithmicMedia")
    assert dict(origin.options) == {"method": "complete", "degradation": "mask", "samples": 3, "sample": 2}
    # the same holes by a mask's white and by alpha
    first = read(out / "0000-0.png").values
    hidden = np.zeros((1, 8, 8), np.uint8)
    hidden[:, 4:] = 255
    (tmp_path / "p.png").write_bytes(encode(Picture(first), ".png")[0])
    (tmp_path / "m.png").write_bytes(encode(Picture(hidden), ".png")[0])
    (tmp_path / "a.png").write_bytes(encode(Picture(np.concatenate([first, 255 - hidden])), ".png")[0])
    made = []
    for place, extra in (("p.png", ("--mask", str(tmp_path / "m.png"))), ("a.png", ())):
        said(
            capsys, "inpaint", str(runs), str(tmp_path / place), *extra, "--samples", "1", "--out", str(again), "--no-provenance"
        )
        assert read_origin(again / f"{place[0]}-0.png") is None
        made.append(read(again / f"{place[0]}-0.png").values)
    assert np.array_equal(made[0], made[1])
    assert np.array_equal(made[0], first)  # sample 0 of picture 0 of seed 0, again


def test_restoring_files_is_restoring_what_they_hold(tiny: dict[str, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    runs, small = tmp_path / "model", tmp_path / "small"
    ns.save(tiny["diffusion"], runs)
    by = Downsample(2, kernel="area")
    y = by(ns.data.open("digits").test.x[:2])
    small.mkdir()
    for i, one in enumerate(y):
        (small / f"{i}.png").write_bytes(encode(Picture(((one + 1) * 127.5).round().byte().numpy()), ".png")[0])
    shown = said(
        capsys, "restore", str(runs), str(small), "--by", "Downsample(2, 'area')", "--samples", "2", "--out", str(tmp_path / "o")
    )
    assert shown["method"] == "pigdm"
    assert shown["consistency"] < 0.02
    assert "error" not in shown
    assert (tmp_path / "o" / "1-mean.png").is_file()
    measured = said(
        capsys, "restore", str(runs), "digits", "--spoil", "--by", "noise:0.5", "-n", "1", "--out", str(tmp_path / "o2")
    )
    assert 0.3 < measured["consistency"] < 0.8


@pytest.mark.parametrize(("argv", "sentence"), [
    (("restore", "MODEL", "digits", "--by", "Downsample(2)"), "say --spoil"),
    (("restore", "MODEL", "SMALL", "--by", "Downsample(2)"), "1 x 4 x 4 is wanted"),
    (("restore", "MODEL", "SMALL", "--by", "Downsample(0)"), "whole factor"),
    (("restore", "MODEL", "SMALL", "--by", "Mask(half)"), "plain values"),
    (("restore", "MODEL", "SMALL", "--by", "Mask('half')"), "nonesuch inpaint"),
    (("inpaint", "MODEL", "SMALL"), "alpha channel, or --mask"),
    (("inpaint", "MODEL", "digits", "--hide", "haf"), "did you mean 'half'"),
    (("inpaint", "MODEL", "nowhere"), "there is no nowhere"),
    (("inpaint", "MODEL", "digits", "--hide", "half", "-n", "0"), "at least 1"),
    (("inpaint", "MODEL", "digits", "--hide", "half", "--mask", "m.png"), "give one of them"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(
    argv: tuple[str, ...], sentence: str, tiny: dict[str, Model], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    ns.save(tiny["vae"], tmp_path / "model")
    (tmp_path / "small.png").write_bytes(encode(Picture(np.zeros((1, 3, 5), np.uint8)), ".png")[0])
    places = {"MODEL": str(tmp_path / "model"), "SMALL": str(tmp_path / "small.png")}
    assert main([*(places.get(a, a) for a in argv), "--out", str(tmp_path / "out")]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# -- five per cent, measured with enough draws (minutes)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "cls", "options"), [
    ("langevin", ToyEnergy, {"particles": 192}),
    ("twisted", ToyDenoiser, {"particles": 64, "steps": 96}),
])  # fmt: skip
def test_the_posterior_is_met_within_five_per_cent(method: str, cls: type, options: dict[str, int]):
    density, y, truth = mixture_case()
    found = compared(draws(toy(cls, density), y, GIVEN_A_HALF, 8000, method=method, **options), truth)
    assert max(found["mean"], found["covariance"], found["weights"]) < 0.05, found
