"""The pass that clips, steps and averages at once does what torch's own functions do one after the other."""

import pytest
import torch
from torch import Tensor, nn

from nonesuch.core.objective import Objective, Terms
from nonesuch.nn import native
from nonesuch.train import memory, optim
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.recipe import Recipe

SHAPES = [(8, 3, 3, 3), (5,), (16, 8), (2, 3, 2, 2, 2), (4, 4, 1, 1), (300,)]


class Net(nn.Module):
    """Parameters of several shapes and memory layouts, small and large."""

    def __init__(self) -> None:
        super().__init__()
        self.all = nn.ParameterList(nn.Parameter(torch.linspace(-1, 1, torch.Size(s).numel()).view(s)) for s in SHAPES)
        self.all[0] = nn.Parameter(self.all[0].detach().to(memory_format=torch.channels_last))


def objective(net: nn.Module) -> Objective:
    return Objective("model", list(net.parameters()), lambda batch: Terms({}))


def gradients(net: Net, step: int) -> list[Tensor]:
    """In the parameters' layout or not, some sharing memory."""
    found = [torch.cos(p.detach() * (step + 2)) for p in net.all]
    if step % 2:
        found[0] = found[0].contiguous()
        found[1] = found[5][:5]
        found[5] = torch.ones(()).expand(300)
    return found


def trained(net: Net, recipe: Recipe, steps: range, state: dict[str, Tensor] | None = None, mean: dict | None = None) -> tuple:
    adam, averages = Adam(objective(net), recipe), Averages(net, [objective(net)])
    if state is not None:
        adam.load(state)
        averages.mean |= mean or {}
    for step in steps:
        averages.begin(0.3 + 0.05 * step)
        adam.step(gradients(net, step), 10 * step, averages)
        averages.finish()
    return adam, averages


@pytest.fixture
def passed(monkeypatch: pytest.MonkeyPatch) -> list[native.Row]:
    """Sends tensors above 20 numbers through the compiled pass, and notes them."""
    if native.library() is None:
        pytest.skip("needs a C++ compiler")
    rows: list[native.Row] = []
    adam = native.adam
    monkeypatch.setattr(optim, "LARGE", 20)
    monkeypatch.setattr(optim, "MANY", 20)
    monkeypatch.setattr(native, "adam", lambda some, numbers: (rows.extend(some), adam(some, numbers)))
    return rows


def equal(one: tuple, two: tuple, **near: float) -> None:
    for a, b in zip(one, two, strict=True):
        tensors = [x.state() if isinstance(x, Adam) else x.mean if isinstance(x, Averages) else dict(x.named_parameters())
                   for x in (a, b)]  # fmt: skip
        assert tensors[0].keys() == tensors[1].keys()
        for name in tensors[0]:
            torch.testing.assert_close(tensors[0][name], tensors[1][name], msg=name, **near)


@pytest.mark.parametrize(("clip", "decay", "betas"), [(0.0, 0.0, (0.9, 0.999)), (0.5, 0.1, (0.9, 0.99)), (1e9, 0.0, (0.0, 0.99))])
def test_at_once_is_one_after_the_other(
    clip: float, decay: float, betas: tuple[float, float], passed: list[native.Row], monkeypatch: pytest.MonkeyPatch
):
    recipe = Recipe(images=1000, batch=10, clip=clip, weight_decay=decay, lr=1e-2, warmup=0.1, betas=betas)
    nets = Net(), Net()
    at_once = trained(nets[0], recipe, range(9))
    assert len(passed) == 9 * 4  # the tensors of 5 and 16 numbers go the other way
    monkeypatch.setattr(native, "library", lambda: None)  # as on a machine without a compiler
    apart = trained(nets[1], recipe, range(9))
    assert len(passed) == 9 * 4
    equal((*at_once, nets[0]), (*apart, nets[1]), rtol=2e-5, atol=1e-6)


def test_small_networks_do_not_build_anything(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(native, "library", lambda: pytest.fail("asked for"))
    trained(Net(), Recipe(images=1000, batch=10), range(2))


def test_at_once_resumes_bit_for_bit(passed: list[native.Row]):
    recipe, net, other = Recipe(images=1000, batch=10, clip=0.5), Net(), Net()
    whole = trained(net, recipe, range(6))
    adam, averages = trained(other, recipe, range(3))
    saved = {k: v.clone(memory_format=torch.contiguous_format) for k, v in adam.state().items()}  # as a file gives them back
    again = Net()
    again.load_state_dict(other.state_dict())
    resumed = trained(again, recipe, range(3, 6), saved, averages.mean)
    assert passed
    equal((*resumed, again), (*whole, net), rtol=0, atol=0)


@pytest.mark.parametrize("given", [True, False])
def test_averages_of_a_round_are_updated_once_each(given: bool, passed: list[native.Row]):
    """By the optimizer or at the end of the round; all at the end where parameters move after the step."""
    net, recipe = Net(), Recipe(images=1000, batch=10)
    adam, averages = Adam(objective(net), recipe), Averages(net, [objective(net)])
    before = {k: v.clone() for k, v in averages.mean.items()}
    averages.begin(0.75)
    adam.step(gradients(net, 0), 500, averages if given else None)
    averages.finish()
    assert {row[4] is not None for row in passed} == {given}
    for name, p in net.named_parameters():
        torch.testing.assert_close(averages.mean[name], 0.75 * before[name] + 0.25 * p.detach())


@pytest.mark.parametrize("threads", [1, 2])
def test_the_pass_is_the_law_in_float64(threads: int, passed: list[native.Row]):
    """Over tasks of several lengths, with and without an average; gradients stay."""
    generator, before = torch.Generator().manual_seed(0), torch.get_num_threads()
    given = [[torch.randn(n, generator=generator) for _ in range(5)] for n in (1, 63, 65, 7_777, 65_536, 150_001)]
    for row in given:
        row[3].square_()
    clip, kept, beta1, beta2, step, root2, eps, rate = numbers = [0.7, 0.99, 0.9, 0.999, 1e-3, 0.3, 1e-8, 0.01]
    found = [[t.clone() for t in row] for row in given]
    torch.set_num_threads(threads)
    try:
        native.adam([(p, g, m, v, mean if i % 2 else None) for i, (p, g, m, v, mean) in enumerate(found)], numbers)
    finally:
        torch.set_num_threads(before)
    for i, (row, ours) in enumerate(zip(given, found, strict=True)):
        p, g, m, v, mean = (t.double() for t in row)
        m, v = beta1 * m + (1 - beta1) * clip * g, beta2 * v + (1 - beta2) * (clip * g) ** 2
        p = kept * p - step * m / (v.sqrt() / root2 + eps)
        law = [p, g, m, v, mean + rate * (p - mean) if i % 2 else mean]
        assert torch.equal(ours[1], row[1])
        torch.testing.assert_close(ours, [t.float() for t in law], rtol=1e-6, atol=1e-7)


def test_large_pages_change_no_number():
    x = torch.arange(3 << 20, dtype=torch.float32)
    kept = x.clone()
    memory.large_pages([x[: 1 << 20], x[(1 << 20) + 5 :], torch.zeros(3), kept[:7]])
    assert torch.equal(x, kept)
