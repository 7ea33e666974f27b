"""Batches of a run: the order and keys of a run without threads, and what each augmentation may do to a picture."""

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

import nonesuch as ns
from nonesuch.core.given import Category, Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import permutation
from nonesuch.data.augment import CHUNK, Augment, coins, pieces, uniform
from nonesuch.data.dataset import Images, batch_keys
from nonesuch.data.loader import Batches

COLOUR = ImageSpec(3, (12, 10))


def numbered(n: int, spec: ImageSpec = COLOUR, dtype: torch.dtype = torch.uint8) -> Images:
    """Pictures of noise, each with its number as its label."""
    levels = torch.from_numpy(np.random.default_rng(n).integers(0, spec.levels or 256, (n, *spec.shape))).to(dtype)
    return Images(spec, Schema({"number": Category(tuple(map(str, range(n))))}), levels, Given(n, {"number": torch.arange(n)}))


def same(a: Batch, b: Batch) -> bool:
    columns = all(torch.equal(v, b.given.columns[k]) for k, v in a.given.columns.items())
    return torch.equal(a.x, b.x) and columns and (a.keys, a.images, a.rows, a.size) == (b.keys, b.images, b.rows, b.size)


def joined(parts: list[Batch]) -> tuple[Tensor, Tensor, list[int]]:
    """What ranks have, in the order of the whole batch."""
    place = torch.tensor([r for part in parts for r in part.rows]).argsort()
    x, number = (torch.cat(v)[place] for v in ([p.x for p in parts], [p.given.columns["number"] for p in parts]))
    index = torch.tensor([i for part in parts for i in part.keys.index])[place]
    return x, number, index.tolist()


def seen(batches: Batches, n: int, start: int = 0) -> Tensor:
    return torch.cat([batches.at(clock).x for clock in range(start, start + n, batches.batch)])[:n]


@pytest.mark.parametrize("clock", [0, 1280, 1399, 70_000])
def test_without_augmentation_a_batch_is_that_of_the_keyed_permutation(clock: int):
    data = ns.data.open("digits").train
    found, sights = Batches(data, 128, 5, hide=0.1).at(clock), range(clock, clock + 128)
    which = torch.stack([permutation(5, "order", len(data), s // len(data))[s % len(data)] for s in sights])
    keys = batch_keys(5, clock, 128)
    given = data.schema.hide(data.given[which], keys.uniform("hide") < 0.1)
    assert torch.equal(found.x, data.x[which])
    assert torch.equal(found.given.columns["label"], given.columns["label"])
    assert found.keys == keys


def test_recorded_batches_of_the_digits():
    batches, digest = Batches(ns.data.open("digits").train, 128, 0, hide=0.1), hashlib.blake2b(digest_size=8)
    for clock in (0, 128, 1280, 4096):
        batch = batches.at(clock)
        digest.update(batch.x.numpy().tobytes() + batch.given.columns["label"].numpy().tobytes())
    assert digest.hexdigest() == "b3f19e3db25d3805"


def test_an_epoch_shows_each_image_once():
    data = numbered(100)
    numbers = torch.cat([Batches(data, 32, 1).at(clock).given.columns["number"] for clock in range(0, 320, 32)])
    first, second = numbers[:100], numbers[100:200]
    assert first.sort()[0].tolist() == second.sort()[0].tolist() == list(range(100))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize("augment", [(), ("flip:hw", "shift", "crop", "colour")])
def test_workers_change_nothing(augment: tuple[str, ...]):
    alone = [Batches(numbered(70), 16, 3, 0.5, augment).at(clock) for clock in range(0, 1600, 16)]
    for workers in (0, 1, 2):
        with Batches(numbered(70), 16, 3, 0.5, augment, workers) as batches:
            assert all(same(batches.at(one.images), one) for one in alone)
            assert all(same(batches.at(one.images), one) for one in (alone[7], alone[50], alone[51], alone[7]))


@pytest.mark.parametrize(
    "rows", [[range(0, 16, 2), range(1, 16, 2)], [slice(8), slice(8, 16)], [range(r, 16, 3) for r in range(3)]]
)
def test_ranks_joined_are_the_whole_batch(rows: list[range | slice]):
    data, names = numbered(70), ("flip", "shift", "crop", "colour")
    whole = Batches(data, 16, 3, 0.5, names)
    ranks = [Batches(data, 16, 3, 0.5, names, rows=row) for row in rows]
    for clock in range(0, 480, 16):
        batch, (x, number, index) = whole.at(clock), joined([rank.at(clock) for rank in ranks])
        assert torch.equal(x, batch.x)
        assert torch.equal(number, batch.given.columns["number"])
        assert tuple(index) == batch.keys.index


@pytest.mark.parametrize("clock", [0, 5, 16_380, CHUNK * 3 + 1])
def test_a_run_resumed_at_any_clock_and_with_another_batch_sees_the_same(clock: int):
    data = numbered(37)
    wide, narrow = (Batches(data, size, 2, 0.5, ("flip:hw", "colour")) for size in (48, 12))
    assert torch.equal(seen(wide, 48, clock), seen(narrow, 48, clock))


def test_flips_are_exact_mirrors_by_fair_and_independent_coins():
    data, n = numbered(40), 40 * 250
    plain, flipped = seen(Batches(data, 40, 0), n), seen(Batches(data, 40, 0, augment=("flip:hw",)), n)
    ways = torch.stack([(flipped == plain.flip(dims)).flatten(1).all(1) for dims in ([], [2], [3], [2, 3])], 1)
    assert ways.sum(1).eq(1).all()
    counts = ways.sum(0).numpy()
    assert stats.chisquare(counts).pvalue > 1e-3  # each of the four with probability 1/4: fair, and independent between axes
    coin = (ways[:, 2] | ways[:, 3]).double()
    for apart in (1, 2, 32, 40):  # neighbours in a batch, in a word, and the next sight in the same place
        assert abs(float(torch.corrcoef(torch.stack([coin[:-apart], coin[apart:]]))[0, 1])) < 4 / n**0.5


@pytest.mark.parametrize("size", [(5, 7), (6, 64), (4, 9, 3), (3, 4, 130)])
def test_narrow_and_wide_pictures_are_mirrored_alike(size: tuple[int, ...]):
    spec = ImageSpec(2, size, "hw" if len(size) == 2 else "dhw")
    plain, flipped = (Batches(numbered(64, spec), 64, 0, augment=names).at(0).x for names in ((), ("flip",)))
    turned = coins(0, "augment/flip:w", range(64))
    assert torch.equal(flipped[turned], plain[turned].flip(-1))
    assert torch.equal(flipped[~turned], plain[~turned])


def test_quarter_turns_are_exact_and_equally_likely():
    data = numbered(30, ImageSpec(1, (6, 6)))
    plain, turned = seen(Batches(data, 30, 0), 3000), seen(Batches(data, 30, 0, augment=("rotate90",)), 3000)
    ways = torch.stack([(turned == plain.rot90(k, (-2, -1))).flatten(1).all(1) for k in range(4)], 1)
    assert ways.sum(1).eq(1).all()
    assert stats.chisquare(ways.sum(0).numpy()).pvalue > 1e-3


def test_a_shift_moves_whole_pixels_and_reflects_the_edge():
    spec = ImageSpec(1, (16, 24))
    plain, moved = (seen(Batches(numbered(50, spec), 50, 0, augment=names), 200) for names in ((), ("shift",)))
    padded = torch.nn.functional.pad(plain, (3, 3, 2, 2), mode="reflect")
    windows = [padded[..., 2 - dy : 18 - dy, 3 - dx : 27 - dx] for dy in range(-2, 3) for dx in range(-3, 4)]
    hits = torch.stack([(moved == window).flatten(1).all(1) for window in windows], 1)
    assert hits.sum(1).eq(1).all()
    assert hits.any(0).sum() > 30  # of 35 shifts


def test_a_crop_contains_only_the_pixels_of_its_window():
    ramp = torch.stack(torch.meshgrid(torch.arange(40.0), torch.arange(30.0), indexing="ij"))  # each pixel says where it is
    spec = ImageSpec(2, (40, 30), kind="continuous", levels=None)
    data = Images(spec, Schema(), ramp.expand(64, -1, -1, -1).contiguous(), Given(64))
    x = Batches(data, 64, 0, augment=("crop",)).at(0).x
    low, high = x.amin((2, 3)), x.amax((2, 3))
    assert (low >= 0).all()
    assert (high <= torch.tensor([39, 29])).all()
    share = (x[:, :, -2, -2] - x[:, :, 1, 1]) / torch.tensor([37, 27])  # away from the edge, the slope is the window's side
    assert torch.allclose(share[:, 0], share[:, 1], atol=1e-4)  # its shape is the picture's
    assert 0.8 - 1e-4 <= float(share.min()) < 0.82
    assert 0.98 < float(share.max()) <= 1 + 1e-4
    middle = (low + high) / 2 - torch.tensor([19.5, 14.5])
    assert (middle[share[:, 0] < 0.9].abs() > 0.5).any(0).all()  # it goes about in both directions


def test_a_crop_stays_between_its_neighbours_and_on_the_grid():
    data = replace(numbered(20), levels=numbered(20).levels // 4 + 40)
    x = Batches(data, 20, 0, augment=("crop",)).at(0).x
    levels = data.spec.to_levels(x)
    assert torch.equal(data.spec.from_levels(levels), x)
    assert levels.min() >= 40
    assert levels.max() <= 103


def test_colour_ends_on_the_grid_keeps_transparency_and_is_one_change_a_channel():
    for channels in (3, 4, 5):
        data = numbered(64, ImageSpec(channels, (8, 8)))
        data = replace(data, levels=data.levels // 2 + 64)
        plain, tinted = (Batches(data, 64, 0, augment=names).at(0).x for names in ((), ("colour",)))
        assert torch.equal(data.spec.snap(tinted), tinted)
        assert (tinted != plain).flatten(1).any(1).all()
        assert channels != 4 or torch.equal(tinted[:, 3], plain[:, 3])
        p, q = (v[:, :3].flatten(2).double() for v in (plain, tinted))
        p1, q1 = p - p.mean(2, True), q - q.mean(2, True)
        inner = (q.abs() < 1).all(2)
        slope = (p1 * q1).sum(2) / (p1 * p1).sum(2)
        assert ((q1 - slope[..., None] * p1).abs().amax(2)[inner] < 2 / 255).all()  # rounded to the grid
        assert 1 / 1.4 < float(slope[inner].min()) < 0.9 < 1.1 < float(slope[inner].max()) < 1.4


def test_a_sight_has_its_numbers_wherever_the_batch_is_cut():
    for sights in (range(CHUNK - 3, CHUNK + 40), range(5, 3 * CHUNK, 1001)):
        assert torch.equal(coins(1, "a", sights), torch.cat([coins(1, "a", range(s, s + 1)) for s in sights]))
        assert torch.equal(uniform(1, "a", 3, sights), torch.cat([uniform(1, "a", 3, range(s, s + 1)) for s in sights]))
    cut = [which * 7 + place for which, part in pieces(range(3, 50, 4), 7) for place in range(part.start, part.stop, part.step)]
    assert cut == list(range(3, 50, 4))


def test_a_memory_mapped_file_gives_the_same_bits_and_is_never_read_as_a_whole(tmp_path: Path):
    data, path = numbered(300), tmp_path / "levels"
    path.write_bytes(data.levels.numpy().tobytes())
    levels = torch.from_file(str(path), shared=True, size=data.levels.numel(), dtype=torch.uint8)
    mapped = replace(data, levels=levels.view(data.levels.shape))
    for clock in (0, 32, 290):
        batches = [Batches(images, 32, 0, 0.1, ("flip", "crop"), workers) for images in (data, mapped) for workers in (0, 1)]
        assert all(same(one.at(clock), batches[0].at(clock)) for one in batches[1:])
        for one in batches:
            one.close()
    assert mapped.levels.numpy().tobytes() == path.read_bytes() == data.levels.numpy().tobytes()  # flips are done on copies


def test_memory_does_not_grow_with_the_number_of_images(tmp_path: Path):
    n, spec = 4000, ImageSpec(3, (512, 512))
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(n * spec.numel)  # 3 GB that take no disk
    levels = torch.from_file(str(path), shared=True, size=n * spec.numel, dtype=torch.uint8).view(n, *spec.shape)
    batches = Batches(Images(spec, Schema(), levels, Given(n)), 4, 0, augment=("flip",))
    batches.at(0)
    before = anonymous()
    for clock in range(4, 40, 4):
        assert batches.at(clock).x.eq(-1).all()
    assert anonymous() - before < 64 << 20  # a batch is 12 MB as float32; all of them would be 12 GB


def anonymous() -> int:
    """Bytes of memory that are not pages of a file."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) << 10


@pytest.mark.parametrize("dtype", [torch.uint16, torch.int16, torch.int32])
def test_sixteen_bits_in_any_type(dtype: torch.dtype):
    top = 2**15 if dtype == torch.int16 else 2**16
    spec = ImageSpec(1, (6, 5), levels=top, dtype="uint16")
    data = numbered(32, spec, torch.int32)
    names = ("flip:hw", "shift")
    found = Batches(replace(data, levels=data.levels.to(dtype)), 32, 0, augment=names).at(0)
    assert torch.equal(found.x, Batches(data, 32, 0, augment=names).at(0).x)
    assert spec.to_levels(found.x).max() > top // 2


def test_volumes_videos_categories_and_numbers():
    plain = {axes: numbered(16, ImageSpec(1, (4, 6, 6), axes)) for axes in ("dhw", "thw")}
    for axes, names in (("dhw", ("flip:dhw", "rotate90", "crop")), ("thw", ("flip:t", "shift", "crop"))):
        x = Batches(plain[axes], 16, 0, augment=names).at(0).x
        assert torch.equal(plain[axes].spec.snap(x), x)
    frames = plain["thw"].levels.float().mean((1, 3, 4), keepdim=True).expand(-1, 1, 4, 6, 6)  # each frame one grey
    still = replace(plain["thw"], levels=frames.to(torch.uint8).contiguous())
    zoomed, as_is = (Batches(still, 16, 0, augment=names).at(0).x for names in (("crop", "shift"), ()))
    assert torch.equal(zoomed, as_is)  # neither crop nor shift mixes or moves frames
    tokens = numbered(16, ImageSpec(1, (4, 4), kind="categorical", levels=9))
    batch = Batches(tokens, 16, 0, augment=("flip", "shift")).at(0)
    assert batch.x.dtype == torch.int64
    assert batch.x.max() < 9


def test_an_image_condition_moves_with_its_picture():
    spec = ImageSpec(1, (6, 6))
    data = numbered(40, spec)
    schema, x = Schema({"mask": Image(spec)}), data.x
    paired = replace(data, schema=schema, given=Given(40, {"mask": x.clone()}))
    batch = Batches(paired, 40, 0, 0.3, ("flip:hw", "rotate90")).at(0)
    shown = schema["mask"].present(batch.given.columns["mask"])
    assert 15 < int(shown.sum()) < 40
    assert torch.equal(batch.given.columns["mask"][shown], batch.x[shown])
    assert torch.equal(paired.given.columns["mask"], x)
    with pytest.raises(ValueError, match="'crop' would leave the image condition 'mask' behind"):
        Batches(paired, 40, 0, augment=("crop",))


LINE, GREY = ImageSpec(1, (9,), "l", "categorical", 5), ImageSpec(1, (8, 6))
REFUSED = [
    (COLOUR, "flop", "there is no augmentation 'flop'; did you mean 'flip'?"),
    (COLOUR, "flip,flip:h", "named twice"),
    (COLOUR, "crop:h", "takes no axes"),
    (COLOUR, "flip:d", "these pictures have 'hw'"),
    (COLOUR, "flip:", "each to be named once"),
    (COLOUR, "rotate90", "not 12 x 10"),
    (LINE, "flip", "not for vectors and sequences"),
    (GREY, "colour", "of 1 channel"),
    (replace(GREY, kind="categorical"), "crop", "use 'shift'"),
]


@pytest.mark.parametrize(("spec", "names", "sentence"), REFUSED)
def test_what_cannot_be_done_is_said(spec: ImageSpec, names: str, sentence: str):
    with pytest.raises(ValueError, match=sentence.replace("?", r"\?")):
        Augment.of(names).check(spec, Schema())


def test_what_leaks_is_said():
    assert Augment().remark == ""
    assert "mirrored, zoomed" in Augment.of("flip:hw, crop").remark
    assert Augment.of(Augment(("flip",))) == Augment.of(["flip"])


@pytest.mark.parametrize(
    "wrong", [{"batch": 0}, {"hide": 2.0}, {"workers": -1}, {"rows": slice(None, None, -1)}, {"rows": range(0)}]
)
def test_impossible_values_are_refused(wrong: dict[str, object]):
    with pytest.raises(ValueError, match="batch"):
        Batches(**{"images": numbered(5), "batch": 4, "seed": 0} | wrong)
    with pytest.raises(ValueError, match="no images"):
        Batches(numbered(5)[:0], 4, 0)


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_an_error_in_a_worker_reaches_the_caller_and_its_threads_end(workers: int):
    data = numbered(64)
    broken = replace(data, given=Given(64, {"number": data.given.columns["number"][:60]}))
    before = threading.active_count()
    batches = Batches(broken, 8, 0, workers=workers)
    with pytest.raises(IndexError, match="out of range"):
        seen(batches, 64 * 30)
    batches.close()
    batches.close()
    assert threading.active_count() == before
