"""Pictures of several sizes: the sizes chosen, batches of one size in an order of (seed, clock), and a model that draws each."""

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

import nonesuch as ns
from nonesuch import catalog, cli
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import AnySize, guided
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.buckets import LEAST, MOST, MULTIPLE, chosen_sizes, nearest, turn
from nonesuch.data.dataset import Data, Images
from nonesuch.data.loader import Batches
from nonesuch.data.open import open as open_data
from nonesuch.data.shards import write_shards
from nonesuch.data.transforms import fitted
from nonesuch.models.diffusion.edm import EDM
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run
from nonesuch.train.watch import FAILED, Watch

SIZES = ((16, 16), (8, 24), (24, 8))
TWO = ImageSpec(1, (8, 16), levels=2, sizes=((8, 16), (16, 8)))


def several(counts: tuple[int, ...], spec: ImageSpec | None = None) -> Images:
    """Noise of so many pictures of each size, mixed up, each with its number as its label."""
    spec = spec or ImageSpec(2, SIZES[0], sizes=SIZES)
    n, random = sum(counts), np.random.default_rng(0)
    longest = max(spec.of_size(s).numel for s in spec.sizes)
    levels = torch.from_numpy(random.integers(0, spec.levels, (n, longest))).byte()
    bucket = torch.from_numpy(random.permutation(np.repeat(np.arange(len(counts)), counts)))
    schema = Schema({"number": Category(tuple(map(str, range(n))))})
    return Images(spec, schema, levels, Given(n, {"number": torch.arange(n)}), bucket=bucket)


def numbers(batch: Batch) -> list[int]:
    return batch.given.columns["number"].tolist()


def pictures(root: Path, *sizes: tuple[int, int], mode: str = "L") -> Path:
    """Smooth pictures of these sizes (h, w)."""
    root.mkdir(parents=True, exist_ok=True)
    for i, (h, w) in enumerate(sizes):
        y, x = np.mgrid[:h, :w]
        wave = 127 + 120 * np.sin(0.3 * (i % 5 + 1) * x / 4) * np.cos(0.2 * y + i)
        Pillow.fromarray(wave.astype(np.uint8)).convert(mode).save(root / f"{i:03d}.png")
    return root


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and numbers(a) == numbers(b) and (a.keys, a.images, a.size) == (b.keys, b.images, b.size)


# -- which sizes


@pytest.mark.parametrize("side", [24, 48, 64, 200])
def test_sizes_are_few_multiples_of_about_one_area_and_the_usual_one_first(side: int):
    random = np.random.default_rng(side)
    given = [tuple(int(v) for v in s) for s in np.exp(random.normal(math.log(300), 0.5, (500, 2)))]
    found = chosen_sizes(given, (side, side))
    assert 1 < len(found) <= MOST
    assert all(s % MULTIPLE == 0 for size in found for s in size)
    assert all(abs(h * w / side**2 - 1) < MULTIPLE / side for h, w in found)
    counts = Counter(nearest(s, found) for s in given)
    assert [counts[s] for s in found] == sorted(counts.values(), reverse=True)
    assert min(counts.values()) >= LEAST * len(given)
    assert found == chosen_sizes(given[::-1], (side, side))


def test_sizes_of_common_cameras():
    assert chosen_sizes([(200, 300)] * 5 + [(300, 200)] * 4 + [(250, 250)] * 3, (64, 64)) == ((56, 72), (72, 56), (64, 64))
    assert chosen_sizes([(480, 640)] * 3, (48, 64)) == ((48, 64),)
    assert chosen_sizes([(2000, 3000), (3000, 2000)])[0] in ((208, 312), (216, 304), (312, 208), (304, 216))  # at most 256 x 256
    assert set(chosen_sizes([(60, 180)] * 99 + [(180, 60)], (64, 64))) == {(40, 104)}  # one of a hundred gets no size of its own


def test_a_picture_goes_to_the_nearest_aspect_by_its_logarithm():
    assert nearest((30, 41), SIZES) == (16, 16)
    assert nearest((30, 51), SIZES) == (16, 16)  # 51 / 30 < sqrt 3 < 53 / 30
    assert nearest((30, 53), SIZES) == (8, 24)
    assert nearest((53, 30), SIZES) == (24, 8)
    halfway = ((8, 32), (16, 16), (32, 8))
    assert nearest((30, 60), halfway) == nearest((60, 30), halfway[::-1]) == (16, 16)  # in whatever order they stand
    assert chosen_sizes([(30, 60), (60, 30)], (16, 16)) == ((16, 16),)


def test_files_of_mixed_sizes_cover_their_nearest_size_and_lose_only_what_lies_beyond(tmp_path: Path):
    sizes = [(40, 60), (42, 61), (60, 40), (39, 58), (66, 44), (50, 50)] * 3
    found = open_data(pictures(tmp_path / "p", *sizes), fit="bucket", size=32)
    assert found.spec.sizes[0] == found.spec.size
    assert set(found.spec.sizes) == {(24, 40), (40, 24), (32, 32)}
    made = {x.tobytes() for part in (found.train, found.test) for i in range(len(part)) for x in [part.levels[i].numpy()]}
    assert len(found.train) + len(found.test) == len(sizes)
    row = found.train.levels.shape[1]
    for file, size in zip(sorted((tmp_path / "p").iterdir()), sizes, strict=True):
        wanted = fitted(np.asarray(Pillow.open(file))[None], nearest(size, found.spec.sizes), "crop").ravel()
        assert np.pad(wanted, (0, row - len(wanted)), "edge").tobytes() in made
    assert any("the nearest in aspect of 3 sizes, 24 x 40: 9, 40 x 24: 6, 32 x 32: 3" in r for r in found.remarks)
    for part in found.train.by_size():
        assert part.x.shape[1:] == part.spec.shape
        assert part.spec.sizes == ()


def test_the_cache_and_shards_give_the_same_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nonesuch.data import decode

    root = pictures(tmp_path / "p", *[(40, 60), (60, 40)] * 6)
    plain = open_data(root, fit="bucket", size=32)
    monkeypatch.setattr(decode, "_IN_MEMORY_BYTES", 0)
    for _ in range(2):  # written, and read again
        kept = open_data(root, fit="bucket", size=32)
        assert kept.spec == plain.spec
        assert torch.equal(kept.train.levels, plain.train.levels)
        assert torch.equal(kept.train.bucket, plain.train.bucket)
    write_shards(plain.train, tmp_path / "shards")
    again = open_data(tmp_path / "shards", fit="bucket", size=(24, 40))
    assert set(again.spec.sizes) == set(plain.spec.sizes)
    assert len(again.train) + len(again.test) == len(plain.train)


def test_one_aspect_is_one_size_and_plain_data(tmp_path: Path):
    found = open_data(pictures(tmp_path, *[(40, 60), (80, 120)] * 3), fit="bucket", size=(32, 48))
    assert (found.spec.size, found.spec.sizes, found.train.bucket) == ((32, 48), (), None)


# -- which batches


@pytest.mark.parametrize(("counts", "batch"), [((100, 37, 11), 16), ((9, 0, 3), 4), ((5, 3, 2), 32), ((64, 64, 64), 64)])
def test_every_picture_is_seen_once_an_epoch_but_for_what_does_not_fill_a_batch(counts: tuple[int, ...], batch: int):
    data, epochs = several(counts), 12
    number = [(data.bucket == j).sum().item() for j in range(3)]
    assert tuple(number) == counts
    due = sum(epochs * n // batch for n in counts)
    batches = Batches(data, batch, seed=3)
    found = [batches.at(i * batch) for i in range(due)]
    seen = Counter(i for b in found for i in numbers(b))
    for j, n in enumerate(counts):
        members = (data.bucket == j).nonzero()[:, 0].tolist()
        assert all(epochs - math.ceil(batch / n) <= seen[i] <= epochs for i in members)
        assert sum(epochs - seen[i] for i in members) == epochs * n % batch  # fewer than a batch are missing
        stream = [i for b in found if tuple(b.x.shape[2:]) == SIZES[j] for i in numbers(b)]
        for start in range(0, len(stream) - n + 1, n or 1):
            assert n == 0 or sorted(stream[start : start + n]) == members  # one permutation after another


def test_a_batch_has_one_size_its_own_pictures_and_a_mixed_order():
    data, batches = several((60, 30, 30)), Batches(several((60, 30, 30)), 6, seed=0)
    order = []
    for clock in range(0, 1200, 6):
        batch = batches.at(clock)
        parts = [data.inside(torch.tensor([i])) for i in numbers(batch)]
        assert torch.equal(batch.x, torch.cat(parts))
        assert batch.x.is_contiguous()
        order.append(tuple(batch.x.shape[2:]))
    assert Counter(order[:20]) == Counter(order[20:40]) == {SIZES[0]: 10, SIZES[1]: 5, SIZES[2]: 5}
    assert order[:20] != order[20:40]
    assert order != [tuple(Batches(data, 6, seed=1).at(c).x.shape[2:]) for c in range(0, 1200, 6)]


def test_which_turn_it_is_counts_up_for_each_size():
    counts, batch = (1000, 17, 301), 24
    before = Counter[int]()
    for n in range(3000):
        which, count = turn(counts, batch, 5, n)
        assert count == before[which]
        before[which] += 1
    assert turn((3, 1), 256, 0, 10**9)[1] > 2 * 10**8  # far on, at once


@pytest.mark.parametrize("augment", ["", "flip:hw,shift,crop"])
def test_workers_ranks_and_resuming_see_the_same(augment: str):
    data, clocks = several((40, 22, 9)), range(0, 8 * 30, 8)
    whole = Batches(data, 8, 7, hide=0.2, augment=augment)
    expected = [whole.at(c) for c in clocks]
    assert len({b.x.shape for b in expected}) == 3
    for workers in (1, 2):
        with Batches(data, 8, 7, hide=0.2, augment=augment, workers=workers) as ahead:
            assert all(same(ahead.at(c), e) for c, e in zip(clocks, expected, strict=True))
    for i in (29, 3, 17):
        assert same(Batches(data, 8, 7, hide=0.2, augment=augment).at(clocks[i]), expected[i])
    ranks = [Batches(data, 8, 7, hide=0.2, augment=augment, rows=range(r, 8, 2)) for r in (0, 1)]
    for clock, one in zip(clocks, expected, strict=True):
        halves = [r.at(clock) for r in ranks]
        assert torch.equal(torch.stack([h.x for h in halves], 1).flatten(0, 1), one.x)
        assert [i for pair in zip(*map(numbers, halves), strict=True) for i in pair] == numbers(one)


def test_another_batch_taken_up_in_the_middle_still_goes_on():
    data = several((40, 22, 9))
    batches = Batches(data, 8, 7)
    shapes = {batches.at(c).x.shape[2:] for c in range(37, 37 + 8 * 20, 8)}
    assert len(shapes) == 3


# -- a model of several sizes


def tiny(spec: ImageSpec, schema: Schema | None = None, **config: object) -> EDM:
    model = catalog.build("diffusion/edm", spec, schema or Schema(), "tiny", **config)
    assert isinstance(model, EDM)
    model.images_seen.fill_(1)
    return model


def striped(n: int) -> Images:
    """Wide pictures of vertical stripes and tall ones of horizontal stripes, black and white, each from a random place."""
    start, place = torch.from_numpy(np.random.default_rng(0).integers(0, 4, n)), torch.arange(16)
    lines = ((place[None] + start[:, None]) // 2 % 2).byte()
    wide = lines[:, None, :].expand(n, 8, 16)
    levels = torch.cat([wide.flatten(1), wide.transpose(1, 2).flatten(1)])
    return Images(TWO, Schema(), levels, Given(2 * n, {}), bucket=torch.arange(2).repeat_interleave(n))


def independent(n: int, p: Tensor, spec: ImageSpec) -> Images:
    """Pictures of independent pixels with these frequencies of levels."""
    rows = max(spec.of_size(s).numel for s in spec.sizes)
    levels = Seeds.of(4, n).categorical(p.log().expand(n, rows, -1), "pixels").byte()
    return Images(spec, Schema(), levels, Given(n, {}), bucket=torch.arange(n) % len(spec.sizes))


@pytest.mark.parametrize("levels", [3, 200])
def test_bits_of_independent_pixels_are_their_entropy_at_each_size(levels: int):
    spec = ImageSpec(1, (8, 16), levels=levels, sizes=((8, 16), (24, 8), (16, 16)))
    p = torch.tensor([0.2, 0.5, 0.3]) if levels == 3 else torch.full((levels,), 1 / levels)
    images = independent(240, p, spec)
    model = tiny(spec, sigma_max=20.0)
    model.prepare_sizes([part.x for part in images.by_size()])
    bits = [ns.bits_per_dim(model, part.x) for part in images.by_size()]
    entropy = float(-(p * p.log2()).sum())
    for found in bits:  # an untrained network that votes is the exact denoiser of independent pixels; others give a bound
        assert found.value >= entropy - 0.02
        assert levels > 3 or found.value == pytest.approx(entropy, abs=0.03)
    assert [b.counts["dimensions"] for b in bits] == [128, 192, 256]
    whole = ns.bits_per_dim(model, images)
    assert (whole.n, whole.kind) == (240, "bound")
    assert whole.value == pytest.approx(sum(b.value for b in bits) / 3, abs=0.02)


def test_statistics_are_those_of_all_pictures_of_a_channel():
    images = several((20, 30, 5))
    model = tiny(images.spec)
    parts = [part.x for part in images.by_size()]
    model.prepare_sizes(parts)
    pixels = torch.cat([x.movedim(1, 0).flatten(1) for x in parts], 1)
    torch.testing.assert_close(model.network.mean.flatten(), pixels.mean(1))
    torch.testing.assert_close(model.network.variance.flatten(), pixels.var(1, unbiased=False))
    assert model.network.mean.shape == (2, 1, 1)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, EDM]:
    data = Data("stripes", striped(64), striped(8), "stripes")
    folder = tmp_path_factory.mktemp("runs") / "stripes"
    recipe, config = {"batch": 32, "lr": 3e-3}, {"blocks": 2, "log_normal": 0.8, "log_normal_mean": 0.5}
    model = ns.fit("diffusion", data, preset="tiny", config=config, budget=9600, recipe=recipe, out=folder)
    assert isinstance(model, EDM)
    return folder, model


def test_a_fitted_model_has_learned_both_sizes_and_draws_each(trained: tuple[Path, EDM]):
    _, model = trained
    assert ns.bits_per_dim(model, striped(8)).value < 0.1  # independent pixels: 1 bit; a stripe's place: 2 / 128
    for size in ((8, 16), (16, 8), (12, 20)):
        x = model.sample(8, size=size, seeds=1)
        assert x.shape == (8, 1, *size)
        assert torch.equal(x, model.spec.snap(x))
        assert set(x.unique().tolist()) == {-1.0, 1.0}
    for size, along, across in (((8, 16), 2, 3), ((16, 8), 3, 2)):
        x = model.sample(32, size=size, seeds=2)
        assert float(x.diff(dim=along).abs().mean() / 2) < 0.2  # a stripe goes through; of independent pixels half differ
        assert float(x.diff(dim=across).abs().mean() / 2) == pytest.approx(0.5, abs=0.15)  # and is two pixels wide
    one = model.sample(3, size=(16, 8), seeds=Seeds((9,) * 3, (4, 5, 6)))
    torch.testing.assert_close(one[1:2], model.sample(1, size=(16, 8), seeds=Seeds((9,), (5,))))


def test_the_checkpoint_keeps_the_sizes_and_the_command_draws_them(trained: tuple[Path, EDM], tmp_path: Path):
    folder, model = trained
    loaded = ns.load(folder)
    assert loaded.spec == model.spec
    assert torch.equal(loaded.sample(2, size=(16, 8)), model.sample(2, size=(16, 8)))
    assert cli.main(["sample", str(folder), "-n", "3", "--size", "16x8", "--out", str(tmp_path / "tall")]) == 0
    assert {np.asarray(Pillow.open(f)).shape for f in (tmp_path / "tall").rglob("*.png")} == {(16, 8)}
    assert cli.main(["sample", str(folder), "-n", "4", "--size", "8x24", "--out", str(tmp_path / "wide.png")]) == 0


def test_the_command_fits_a_folder_and_takes_it_up_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    root = pictures(tmp_path / "p", *[(30, 60), (60, 30)] * 20, mode="RGB")
    fit = ["fit", "diffusion", str(root), "--fit", "bucket", "--size", "32", "--preset", "tiny", "--set", "recipe.batch=8"]
    assert cli.main([*fit, "--budget", "80", "--out", str(tmp_path / "run")]) == 0
    assert "40 of 40 images were scaled and cropped to the nearest in aspect of 2 sizes" in capsys.readouterr().err
    model = ns.load(tmp_path / "run")
    assert sorted(model.spec.sizes) == [(24, 40), (40, 24)]
    assert cli.main([*fit, "--budget", "80", "--out", str(tmp_path / "run")]) == 0  # nothing is left to do
    assert int(ns.load(tmp_path / "run").images_seen) == int(model.images_seen)


def test_a_run_taken_up_in_the_middle_ends_with_the_same_weights():
    def run() -> Run:
        model = tiny(TWO)
        model.prepare_sizes([part.x for part in striped(20).by_size()])
        return Run(model, striped(20), Recipe(images=96, batch=8, lr=1e-3))

    whole, first, second = run(), run(), run()
    for _ in range(12):
        whole.step()
    for _ in range(5):
        first.step()
    second.restore(first.state())
    second.images, second.rounds = first.images, first.rounds
    for _ in range(7):
        second.step()
    assert all(torch.equal(v, second.state()[k]) for k, v in whole.state().items())


def test_a_look_at_a_run_measures_all_sizes_and_draws_the_usual_one():
    recipe = Recipe(images=96, batch=8, lr=1e-3)
    model, images = tiny(TWO), striped(40)
    model.prepare_sizes([part.x for part in images.by_size()])
    run = Run(model, images, recipe)
    run.step()
    watch = Watch.of(run, striped(20))
    look = watch.look(run)
    assert look.verdicts == tuple(v for v in look.verdicts if not v.startswith(FAILED))
    assert {"training", "validation", "distance", "variety", "bits"} <= look.values.keys()
    with run.averaged() as averaged:  # of pictures of two sizes of equally many values
        whole = ns.bits_per_dim(averaged, striped(20), seeds=0).value
    assert look.values["bits"] == pytest.approx(whole, abs=0.1)
    assert watch.shown is not None
    assert watch.shown.shape[1:] == (1, *TWO.size)


def test_guidance_and_a_model_of_one_size():
    schema = Schema({"label": Category(("a", "b"))})
    model = tiny(TWO, schema)
    assert guided(model, 1.5).sample(2, {"label": "a"}, size=(16, 24)).shape == (2, 1, 16, 24)
    plain = tiny(replace(TWO, sizes=()))
    assert plain.network.mean.shape == plain.spec.shape
    with pytest.raises(ValueError, match=r"draws images of \(8, 16\), not \(16, 8\)"):
        plain.sample(1, size=(16, 8))


# -- refusals


@pytest.mark.parametrize("name", [n for n in catalog.names() if not issubclass(catalog.get(n), AnySize)])
def test_models_of_one_size_say_which_take_several(name: str):
    with pytest.raises(ValueError, match=r"takes images of one size, .* several sizes \(diffusion/edm\), or .* 'crop'"):
        catalog.build(name, TWO, Schema())


def refused(call: Any, *arguments: Any, **named: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the caller looks at the sentence)
        call(*arguments, **named)
    return str(caught.value)


def test_what_is_refused_is_refused_in_a_sentence(tmp_path: Path):
    images, model = several((4, 3, 2)), tiny(TWO, mults=(1, 1, 1), attention=(False,) * 3)
    assert "choose a preset of tiny, 32px, 64px" in refused(catalog.build, "diffusion", TWO, Schema(), "digits")
    assert "these images are of several sizes (16 x 16, 8 x 24, 24 x 8)" in refused(lambda: images.x)
    assert "multiples of 4, not 8 x 18" in refused(model.sample, 1, size=(8, 18))
    assert "multiples of 4, not 8" in refused(model.sample, 1, size=(8,))
    assert "multiples of 4, not 6 x 8" in refused(model.log_prob, torch.ones(1, 1, 6, 8))
    assert "this model takes (batch, 1, 8, 16)" in refused(model.log_prob, torch.ones(1, 2, 8, 8))
    assert "needs square pictures, not 8 x 24" in refused(Batches, images, 4, 0, augment="rotate90")
    for i in range(3):  # volumes
        (tmp_path / "v").mkdir(exist_ok=True)
        np.save(tmp_path / "v" / f"{i}.npy", np.zeros((5 + i, 6, 7), np.uint8))
    assert "fit 'bucket' is for images" in refused(open_data, tmp_path / "v", fit="bucket", axes="dhw")
    assert "sizes are all the sizes there are" in refused(ImageSpec, 1, (8, 8), sizes=((8, 16),))
    data = open_data(pictures(tmp_path / "p", *[(30, 60), (60, 30)] * 10), fit="bucket", size=32)
    assert "several sizes" in refused(ns.compare, data, budget=100)
    assert "the data has" in refused(ns.fit, tiny(TWO), data, budget=100)
