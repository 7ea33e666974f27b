"""Explore: the measures are the reference library's, a rotated copy of the pixels scores as they do, and codes are handled."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
from torch import Tensor

import nonesuch as ns
from nonesuch.applications._representations import MOST, adjusted_rand, between, nmi, probe, reduced, vectors, view
from nonesuch.applications.explore import explore
from nonesuch.cli import main
from nonesuch.core.card import Card
from nonesuch.core.given import Given
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Encoder, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data import Data
from nonesuch.evaluate.score import keyed


@pytest.fixture(scope="module")
def digits() -> Data:
    return ns.data.open("digits")


class Rotation(Model, Encoder):
    """z = Q x with an orthogonal Q: nothing lost and nothing learned."""

    card = Card("Rotation", "nobody", 1800)
    Config = dict

    def __init__(self, config: dict[str, Any], spec: ImageSpec, schema: Any) -> None:
        super().__init__(config, spec, schema)
        self.latent_spec = ImageSpec(spec.numel, (), "", "continuous", None)
        self.q = torch.linalg.qr(Seeds.of(3, 1).normal("q", spec.numel, spec.numel)[0])[0]
        self.images_seen.fill_(1)

    def objectives(self) -> list[Objective]:
        return []

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(1, 1, torch.zeros(len(seeds), *self.spec.shape))

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        return x.flatten(1) @ self.q

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        return (z @ self.q.T).view(len(z), *self.spec.shape)


def test_agreement_is_the_reference_librarys():
    rng = keyed("agreement")
    a, b = rng.integers(0, 5, 300), rng.integers(0, 7, 300)
    b[:150] = a[:150]
    assert adjusted_rand(a, b, np.ones(300)) == pytest.approx(adjusted_rand_score(a, b))
    assert nmi(a, b, np.ones(300)) == pytest.approx(normalized_mutual_info_score(a, b))
    weights = rng.integers(0, 3, 300)
    again = np.repeat(np.arange(300), weights)
    assert adjusted_rand(a, b, weights) == pytest.approx(adjusted_rand_score(a[again], b[again]))
    assert adjusted_rand(a, a, np.ones(300)) == nmi(a, a, np.ones(300)) == pytest.approx(1)


def test_reduction_is_principal_components():
    x = keyed("pca").standard_normal((400, 200)) * np.linspace(3, 0.1, 200)
    train, test = reduced(x[:300], x[300:])
    reference = PCA(MOST, svd_solver="full").fit(x[:300])
    assert train.shape == (300, MOST)
    assert np.abs(train) == pytest.approx(np.abs(reference.transform(x[:300])), abs=1e-6)
    assert np.abs(test) == pytest.approx(np.abs(reference.transform(x[300:])), abs=1e-6)


def test_codes_are_placed_or_counted_and_large_maps_pooled():
    codes = torch.tensor([[[0, 2], [2, 1]], [[1, 1], [1, 1]]])[:, None]
    spec = ImageSpec(1, (2, 2), kind="categorical", levels=3)
    assert vectors(codes, spec)[0].reshape(4, 3).argmax(1).tolist() == [0, 2, 2, 1]
    many = ImageSpec(1, (2, 2), kind="categorical", levels=1 << 13)
    assert np.square(vectors(codes, many)).sum(1) == pytest.approx(1)
    assert vectors(codes, many)[0, 2] ** 2 == pytest.approx(0.5)
    large = ImageSpec(4, (32, 32), "hw", "continuous", None)
    z = torch.ones(3, 4, 32, 32) * torch.arange(4.0).view(1, 4, 1, 1)
    pooled = vectors(z, large)
    assert pooled.shape == (3, 4 * 64)
    assert pooled[0].reshape(4, 64).mean(1).tolist() == [0, 1, 2, 3]
    assert view("z", z, z, large).train.shape[1] <= MOST


def test_the_probe_finds_a_planted_direction_and_nothing_in_noise():
    rng = keyed("probe")
    x, y = rng.standard_normal((600, 30)), rng.integers(0, 3, 600)
    assert (probe(x[:400], y[:400], x[400:], 0) == y[400:]).mean() < 0.5
    x[np.arange(600), y] += 5
    assert (probe(x[:400], y[:400], x[400:], 0) == y[400:]).mean() > 0.97
    assert (probe(x[:40], np.zeros(40, int), x[400:], 0) == 0).all()


def test_the_way_keeps_its_ends_and_its_length():
    a, b = Seeds.of(0, 2).normal("z", 4, 5)
    spec = ImageSpec(4, (5,), "l", "continuous", None)
    way = between(a, 2 * b, 9, spec, torch.arange(20))
    torch.testing.assert_close(way[0], a)
    torch.testing.assert_close(way[-1], 2 * b)
    lengths = way.flatten(1).norm(dim=1)
    torch.testing.assert_close(lengths, torch.linspace(float(a.norm()), float(2 * b.norm()), 9))
    codes = ImageSpec(1, (4, 5), kind="categorical", levels=9)
    k, m = torch.zeros(1, 4, 5, dtype=torch.int64), torch.full((1, 4, 5), 8)
    steps = between(k, m, 5, codes, torch.randperm(20, generator=torch.Generator().manual_seed(0)))
    assert [int((s == 8).sum()) for s in steps] == [0, 5, 10, 15, 20]
    torch.testing.assert_close(between(a, a, 3, spec, torch.arange(20)), torch.stack([a, a, a]))


def test_a_rotation_of_pixels_scores_as_the_pixels_do(digits: Data, tmp_path: Path):
    model = Rotation({}, digits.spec, digits.schema.select([]))
    seen = []
    found = explore(model, digits, n=150, progress=seen.append)
    assert seen[-1].result is found
    for key, margin in found.margins.items():
        tolerance = 0.05 if key in ("rand", "nmi") else 1e-9  # k-means starts elsewhere
        assert margin.value == pytest.approx(0, abs=tolerance), key
        assert margin.interval is not None
        assert margin.interval[0] < 0.0 < margin.interval[1]
    assert found.scores["latents"]["probe"].value > 0.85
    assert found.reconstructed.value < 1e-9
    torch.testing.assert_close(found.walks[:, 0], found.walks[:, 1], atol=1e-5, rtol=0)  # the way begins and ends at the pictures
    torch.testing.assert_close(found.walks[:, -1], found.walks[:, -2], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.neighbours["latents"], found.neighbours["PCA of pixels"])
    page = found.save(tmp_path / "e.html").read_text()
    assert "<svg" in page
    assert "<script" not in page
    assert json.loads((tmp_path / "e.json").read_text())["label"] == "label"


def test_data_without_classes_has_maps_and_says_why_no_scores(digits: Data):
    model = Rotation({}, digits.spec, digits.schema.select([]))
    found = explore(model, digits.select([]), n=60)
    assert found.scores == {}
    assert "no column of categories" in found.notes[0]
    assert len(found.maps["latents"]["t-SNE"]) == len(found.colours) == 60


def test_an_encoder_of_codes_by_the_command(digits: Data, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    ns.fit("vae/vqvae", digits, preset="tiny", budget=512, out=tmp_path / "run")
    arguments = ["explore", str(tmp_path / "run"), "digits", "-n", "60", "--out", str(tmp_path / "e.html"), "--json"]
    assert main(arguments) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["latent"]["kind"] == "categorical"
    assert 0 <= told["scores"]["latents"]["nmi"]["value"] <= 1
    assert "exchanging the codes" in (tmp_path / "e.html").read_text()


def test_refusals(digits: Data):
    model = Rotation({}, digits.spec, digits.schema.select([]))
    with pytest.raises(ValueError, match="Encoder"):
        explore(ns.fit("gan", digits, preset="tiny", budget=64), digits)
    with pytest.raises(ValueError, match="give images of its kind"):
        explore(model, {"x": np.zeros((50, 9, 9), np.uint8) + np.arange(50, dtype=np.uint8)[:, None, None]})
    with pytest.raises(ValueError, match="there is no column"):
        explore(model, digits, label="lable")
    with pytest.raises(ValueError, match="at least 10 images"):
        explore(model, digits, n=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flow/nsf", "flow/glow", "vae/vdvae", "vae/vqvae", "vae/autoencoder_kl"])
def test_every_encoder(name: str, digits: Data):
    preset = "tiny" if "tiny" in ns.catalog.get(name).presets else None
    images = 40_000 if name == "vae/vdvae" else 4000  # whose latents say nothing at first
    found = explore(ns.fit(name, digits, preset=preset, budget=images), digits, n=300)
    assert found.scores["latents"]["probe"].value > 0.3
    assert found.walks.shape[1] == 11
