"""Random numbers: published vectors of the generator, distribution, independence of neighbours, and one number a place."""

import math
from collections.abc import Callable

import pytest
import torch
from scipy import stats
from torch import nn

from nonesuch.core import seeds as draws
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


@pytest.fixture(params=["built", "numpy"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Each test with compiled code and with what takes its place."""
    built = draws._built(True) if request.param == "built" else None
    if request.param == "built" and built is None:
        pytest.skip("there is no compiler")
    monkeypatch.setattr(draws, "_built", lambda build: built)
    kind: str = request.param
    return kind


MIXED = [Seeds.of(11, 5), Seeds.of(-7, 1), Seeds((11, 5, -3, 2**70), (17, 0, 2**40 + 3, 2**64 - 1)), Seeds((4, 4), (2**33, 9))]
COUNTS = [1, 3, 4, 63, 64, 65, 4095, 4096, 4097, 9000]  # about a vector's words and a task's
STEPS = [0, 3, 2**32 - 1, 2**33 + 5, 2**47]


DRAWS: list[Callable[[Seeds, int, int], torch.Tensor]] = [
    lambda seeds, count, step: seeds.bits("a", count, step),
    lambda seeds, count, step: seeds.uniform("b", count, 2, step=step),
    lambda seeds, count, step: seeds.normal("c", 1, count, step=step),
    lambda seeds, count, step: seeds.integers("d", 1000, count, step=step),
    lambda seeds, count, step: seeds.keep("e", 0.3, count, step=step),
]


@pytest.mark.parametrize("seeds", MIXED)
def test_compiled_draws_are_bit_for_bit_those_of_numpy(seeds: Seeds, monkeypatch: pytest.MonkeyPatch):
    asked = [(draw, count, step) for draw in DRAWS for count in COUNTS for step in STEPS]
    if draws._built(True) is None:
        pytest.skip("there is no compiler")
    found = [draw(seeds, count, step) for draw, count, step in asked]
    monkeypatch.setattr(draws, "_built", lambda build: None)
    for (draw, count, step), mine in zip(asked, found, strict=True):
        wanted = draw(seeds, count, step)
        assert mine.dtype == wanted.dtype
        assert torch.equal(mine, wanted), f"{count} at step {step}"


def test_torch_and_numpy_make_the_same_words():
    words = Seeds((11, 5), (17, 2**40 + 3)).bits("a", 70, 2**33 + 5)
    keys = torch.tensor([draws._key(s, "a") for s in (11, 5)]).T[:, :, None]
    block = torch.arange(18)[None]
    low, high = torch.tensor([[17], [3]]), torch.tensor([[0 ^ 2 << 16], [(2**40 >> 32) ^ 2 << 16]])
    counters = torch.stack(torch.broadcast_tensors(block, torch.full_like(block, 5), low, high))
    assert torch.equal(words, philox(counters, keys).permute(1, 2, 0).reshape(2, -1)[:, :70])


def test_small_draws_build_nothing(monkeypatch: pytest.MonkeyPatch):
    asked: list[bool] = []
    monkeypatch.setattr(draws, "_built", lambda build: asked.append(build))
    Seeds.of(0, 8).normal("z", 64)
    Seeds.of(0, 8).keep("z", 0.1, 64)
    assert set(asked) == {False}
    asked.clear()
    Seeds.of(0, 2).bits("z", draws._WORTH // 2)
    assert asked == [True]


SHAPES = [(3, 5), (2, 70, 64), (2, 64, 16, 16), (3, 130, 7, 7), (2, 66, 3, 4, 5), (1, 1, 300, 1), (4, 3, 0)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dropout_in_one_pass_is_the_product_with_the_mask(shape: tuple[int, ...], last: bool, dtype: torch.dtype, form: str):
    seeds = Seeds((1, 1, 9, 1)[: shape[0]], (4, 2**34, 7, 1)[: shape[0]])
    x = Seeds.of(0, shape[0]).normal("x", *shape[1:]).to(dtype).contiguous()
    if x.numel():
        x[0, 0], x[-1, -1] = math.nan, -math.inf
    if last:
        x = x.movedim(1, -1).contiguous().movedim(-1, 1)
    found, wanted = seeds.drop(x, "d", 0.3), x * seeds.keep("d", 0.3, *shape[1:]).to(dtype)
    assert found.dtype == dtype
    assert found.stride() == x.stride()
    assert torch.equal(found.isnan(), wanted.isnan())
    assert torch.equal(found.nan_to_num(5.0), wanted.nan_to_num(5.0))


def test_large_dropout_has_all_its_derivatives_and_keeps_no_mask(form: str):
    keys, x = (
        Seeds.of(1, 2),
        Seeds.of(0, 2).normal("x", 32, 32, 40).contiguous(memory_format=torch.channels_last).requires_grad_(),
    )
    mask = keys.keep("d", 0.3, 32, 32, 40)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        y = Dropout(0.3, "d")(x, keys)
    assert (kept == []) == (form == "built")
    assert torch.equal(y, x * mask)
    w = torch.ones_like(x).requires_grad_()
    (g,) = torch.autograd.grad(y, x, w, create_graph=True)
    assert torch.equal(g, mask)
    (h,) = torch.autograd.grad(g.square().sum(), w)  # the derivative of (mask w)^2
    assert torch.equal(h, 2 * mask * mask)


def test_a_picture_has_its_numbers_in_any_batch(form: str):
    whole = Seeds.of(11, 64).normal("eps", 3, 40, 41)
    assert torch.equal(whole[17], Seeds((11,), (17,)).normal("eps", 3, 40, 41)[0])
    assert torch.equal(whole[[3, 60]], Seeds.of(11, 64)[[3, 60]].normal("eps", 3, 40, 41))
    mixed = Seeds((11, 5), (17, 2)).normal("eps", 3, 40, 41)
    assert torch.equal(mixed[0], whole[17])
    assert torch.equal(mixed[1], Seeds.of(5, 3).normal("eps", 3, 40, 41)[2])


def test_a_longer_draw_begins_with_the_shorter(form: str):
    seeds = Seeds.of(0, 3)
    assert torch.equal(seeds.bits("a", 50_000)[:, :40], seeds.bits("a", 40))


def test_names_steps_seeds_and_indices_all_matter(form: str):
    draws = [
        Seeds((seed,), (index,)).bits(name, 8, step)
        for seed in (0, 1, -1, 2**70)
        for index in (0, 1, 2**33)
        for name in ("a", "b")
        for step in (0, 1)
    ]
    assert len({tuple(d[0].tolist()) for d in draws}) == len(draws)


def test_uniforms_and_normals_have_their_distribution(form: str):
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
