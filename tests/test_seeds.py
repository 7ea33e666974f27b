"""Random numbers: published vectors of the generator, distribution, independence of neighbours, and one number a place."""

import math

import pytest
import torch
from scipy import stats
from torch import nn

from nonesuch.core.seeds import Seeds, initialise, permutation, philox
from nonesuch.nn.conv import Conv, Dropout, Linear, zero

ONES = 0xFFFFFFFF
VECTORS = [  # Random123's kat_vectors for philox4x32, 10 rounds: counter, key, output
    ((0, 0, 0, 0), (0, 0), ("6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8")),
    ((ONES,) * 4, (ONES,) * 2, ("408f276d", "41c83b0e", "a20bc7c6", "6d5451fd")),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        ("d16cfe09", "94fdcceb", "5001e420", "24126ea1"),
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), VECTORS)
def test_published_vectors(counter: tuple[int, ...], key: tuple[int, ...], output: tuple[str, ...]):
    found = philox(torch.tensor(counter)[:, None], torch.tensor(key)[:, None])[:, 0]
    assert tuple(f"{int(w):08x}" for w in found) == output


def test_vectors_survive_batching():
    counters = torch.tensor([v[0] for v in VECTORS]).T
    keys = torch.tensor([v[1] for v in VECTORS]).T
    found = philox(counters, keys).T
    assert [tuple(f"{int(w):08x}" for w in row) for row in found] == [v[2] for v in VECTORS]


def test_a_picture_has_its_numbers_in_any_batch():
    whole = Seeds.of(11, 64).normal("eps", 3, 40, 41)
    assert torch.equal(whole[17], Seeds((11,), (17,)).normal("eps", 3, 40, 41)[0])
    assert torch.equal(whole[[3, 60]], Seeds.of(11, 64)[[3, 60]].normal("eps", 3, 40, 41))
    mixed = Seeds((11, 5), (17, 2)).normal("eps", 3, 40, 41)
    assert torch.equal(mixed[0], whole[17])
    assert torch.equal(mixed[1], Seeds.of(5, 3).normal("eps", 3, 40, 41)[2])


def test_a_longer_draw_begins_with_the_shorter():
    seeds = Seeds.of(0, 3)
    assert torch.equal(seeds.bits("a", 50_000)[:, :40], seeds.bits("a", 40))


def test_names_steps_seeds_and_indices_all_matter():
    draws = [
        Seeds((seed,), (index,)).bits(name, 8, step)
        for seed in (0, 1, -1, 2**70)
        for index in (0, 1, 2**33)
        for name in ("a", "b")
        for step in (0, 1)
    ]
    assert len({tuple(d[0].tolist()) for d in draws}) == len(draws)


def test_uniforms_and_normals_have_their_distribution():
    seeds = Seeds.of(3, 200)
    uniform, normal = seeds.uniform("u", 1000).flatten(), seeds.normal("z", 1001).flatten()
    assert uniform.min() > 0
    assert uniform.max() < 1
    assert stats.kstest(uniform.numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.double().numpy(), "norm").pvalue > 1e-3
    counts = torch.bincount(seeds.integers("i", 7, 1000).flatten(), minlength=7)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3


def test_neighbours_are_independent():
    z = Seeds.of(0, 400).normal("z", 400).double()
    for a, b in ((z[:, 1:], z[:, :-1]), (z[1:], z[:-1]), (z, Seeds.of(0, 400).normal("z", 400, step=1).double())):
        correlation = (a * b).mean().item()
        assert abs(correlation) < 4 / math.sqrt(a.numel())
        squares = ((a**2 - 1) * (b**2 - 1)).mean().item() / 2
        assert abs(squares) < 5 / math.sqrt(a.numel())


def test_categorical_follows_its_probabilities():
    logits = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
    drawn = Seeds.of(2, 8000).categorical(logits.expand(8000, 4), "k")
    assert stats.chisquare(torch.bincount(drawn, minlength=4).numpy(), [4000, 2000, 1000, 1000]).pvalue > 1e-3


def test_dropout_keeps_the_mean_and_is_keyed():
    keys, x = Seeds.of(1, 50), torch.ones(50, 1000)
    dropped = Dropout(0.3, "d")(x, keys)
    assert abs(float((dropped == 0).float().mean()) - 77 / 256) < 0.01
    assert abs(float(dropped.mean()) - 1) < 0.01
    assert torch.equal(dropped[7], Dropout(0.3, "d")(x[7:8], keys[[7]])[0])
    assert torch.equal(Dropout(0.3, "d")(x, None), x)
    assert not torch.equal(dropped, Dropout(0.3, "e")(x, keys))


def test_permutations_are_keyed_permutations():
    first = permutation(0, "order", 1000)
    assert torch.equal(first.sort().values, torch.arange(1000))
    assert not torch.equal(first, permutation(0, "order", 1000, 1))
    assert torch.equal(first, permutation.__wrapped__(0, "order", 1000))


def test_initialisation_is_keyed_by_name_and_moves_nothing_else():
    def net() -> nn.Module:
        return nn.ModuleDict({"a": Linear(256, 128), "b": Conv(2, 64, 32), "c": zero(Linear(8, 8)), "d": Linear(256, 128)})

    state = torch.get_rng_state()
    with torch.random.fork_rng():
        one, two = net(), net()
    for module in (one, two):
        initialise(module, 5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not torch.equal(one["a"].weight, one["d"].weight)
    assert abs(float(one["a"].weight.detach().std()) * 16 - 1) < 0.02
    assert abs(float(one["b"].weight.detach().std()) * 24 - 1) < 0.02
    assert not one["c"].weight.any()
    initialise(two, 6)
    assert not torch.equal(one["a"].weight, two["a"].weight)


def test_wrong_seeds_are_refused():
    with pytest.raises(ValueError, match="one seed an image"):
        Seeds.of(Seeds.of(0, 3), 4)
    with pytest.raises(ValueError, match="must be an int"):
        Seeds.of("7", 2)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="negative"):
        Seeds((0,), (-1,))
