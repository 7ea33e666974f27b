"""The loop that clips, steps and averages at once does what torch's own functions do one after the other."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nonesuch.core.objective import Objective, Terms
from nonesuch.train import optim
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
        averages.begin(0.3 + 0.05 * step)  # both sides of a half, where torch changes its formula
        adam.step(gradients(net, step), 10 * step, averages)
        averages.finish()
    return adam, averages


@pytest.fixture
def every_tensor(monkeypatch: pytest.MonkeyPatch) -> Callable[[object], None]:
    """Sends tensors above 20 numbers through the loop given."""

    def send(loop: object) -> None:
        monkeypatch.setattr(optim, "LARGE", 20)
        monkeypatch.setattr(optim, "MANY", 20)
        monkeypatch.setattr(optim, "compiled", lambda averaged: loop)

    return send


def equal(one: tuple, two: tuple, **near: float) -> None:
    for a, b in zip(one, two, strict=True):
        tensors = [x.state() if isinstance(x, Adam) else x.mean if isinstance(x, Averages) else dict(x.named_parameters())
                   for x in (a, b)]  # fmt: skip
        assert tensors[0].keys() == tensors[1].keys()
        for name in tensors[0]:
            torch.testing.assert_close(tensors[0][name], tensors[1][name], msg=name, **near)


@pytest.mark.parametrize(("clip", "decay"), [(0.0, 0.0), (0.5, 0.1), (1e9, 0.0)])
def test_at_once_is_one_after_the_other(clip: float, decay: float, every_tensor: Callable[[object], None]):
    recipe = Recipe(images=1000, batch=10, clip=clip, weight_decay=decay, lr=1e-2, warmup=0.1)
    nets = Net(), Net()
    apart = trained(nets[0], recipe, range(9))
    assert not apart[0].large
    calls = []
    every_tensor(lambda rows, numbers: (calls.extend(rows), optim._together(rows, numbers)))
    at_once = trained(nets[1], recipe, range(9))
    assert len(calls) == 9 * 4  # the tensors of 5 and 16 numbers go the other way
    equal((*at_once, nets[1]), (*apart, nets[0]), rtol=2e-5, atol=1e-6)


def test_at_once_resumes_bit_for_bit(every_tensor: Callable[[object], None]):
    every_tensor(optim._together)
    recipe, net, other = Recipe(images=1000, batch=10, clip=0.5), Net(), Net()
    whole = trained(net, recipe, range(6))
    adam, averages = trained(other, recipe, range(3))
    saved = {k: v.clone(memory_format=torch.contiguous_format) for k, v in adam.state().items()}  # as a file gives them back
    again = Net()
    again.load_state_dict(other.state_dict())
    resumed = trained(again, recipe, range(3, 6), saved, averages.mean)
    equal((*resumed, again), (*whole, net), rtol=0, atol=0)


def test_averages_of_a_round_are_updated_once_each(every_tensor: Callable[[object], None]):
    """By the optimizer or at the end of the round; all at the end where parameters move after the step."""
    every_tensor(optim._together)
    net, recipe = Net(), Recipe(images=1000, batch=10)
    for given in (True, False):
        adam, averages = Adam(objective(net), recipe), Averages(net, [objective(net)])
        before = {k: v.clone() for k, v in averages.mean.items()}
        averages.begin(0.75)
        adam.step(gradients(net, 0), 500, averages if given else None)
        averages.finish()
        for name, p in net.named_parameters():
            torch.testing.assert_close(averages.mean[name], 0.75 * before[name] + 0.25 * p.detach())


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_the_compiled_loop_is_the_eager_one():
    numbers = Adam(objective(Net()), Recipe(images=100, batch=1, weight_decay=0.1))._numbers(3, 0.7, 1e-3, 0.01)
    loop = optim.compiled(True)
    assert loop is not None
    given = [list(torch.linspace(-1, 1, 5 * n).view(5, n).sin()) for n in (70_001, 100_000, 70_001, 7_777, 81_920)]
    for row in given:
        row[3].square_()
    eager, quick = ([tuple(t.clone() for t in row) for row in given] for _ in range(2))
    optim._together(eager, numbers)
    with torch.no_grad():
        loop(quick, numbers)
    for one, two, before in zip(quick, eager, given, strict=True):
        assert torch.equal(one[1], before[1])  # gradients stay
        torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
