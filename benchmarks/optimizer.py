"""One optimizer step and exponential average of 36 M parameters: clip, Adam, average, against the peers.

    python -m benchmarks.optimizer                    (a minute on two cores)
    python -m benchmarks.optimizer --width 16         (seconds)

By turns in one process, the same shapes (those of a convolutional U-Net) and gradients of norm above and below the clip:

    ours                   nonesuch.train.optim
    ema-pytorch, default   torch.optim.Adam at its defaults, clip_grad_norm_, EMA; both average at every step, as ours does
    diffusers, default     the same with EMAModel
    torch, tuned           torch.optim.Adam(fused=True), clip_grad_norm_, torch._foreach_lerp_
    ..., on large pages    the same, its tensors on large pages as ours (train/memory.py)

The limit is the time that the bytes which must be moved take, beside y <- y + x of 64 M numbers on large pages: a parameter, its
gradient, two moments and an average read, all but the gradient written, and the gradient read once more for its norm.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks._turns import Line, arguments, race
from nonesuch.core.objective import Objective, Terms
from nonesuch.train import memory
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.recipe import Recipe

DECAY, FLOATS = 0.999, 1 << 26


class Net(nn.Module):
    """Parameters in the shapes of a U-Net whose width is `width`; 36 M at 128."""

    def __init__(self, width: int) -> None:
        super().__init__()
        shapes = [(width, 3, 3, 3), *[(width, width, 3, 3)] * 10, (2 * width, width, 3, 3), *[(2 * width, 2 * width, 3, 3)] * 57]
        shapes += [(2 * width,)] * 130
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList(nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes)


def ours(net: Net, grads: list[Tensor], clip: float) -> Callable[[], object]:
    objective = Objective("model", list(net.parameters()), lambda batch: Terms({}))
    adam, averages = Adam(objective, Recipe(images=1 << 30, batch=1, clip=clip)), Averages(net, [objective])

    def step() -> None:
        averages.begin(DECAY)
        adam.step(grads, 10_000, averages)
        averages.finish()

    return step


def peer(
    net: Net, given: list[Tensor], clip: float, average: Callable[[], object], fused: bool = False, large: bool = False
) -> Callable[[], object]:
    """Clips its gradients in place, at every step anew."""
    params = list(net.parameters())
    optimizer = torch.optim.Adam(params, 2e-4, fused=fused or None)
    for p, g in zip(params, given, strict=True):
        p.grad = g.clone()

    def step() -> None:
        nn.utils.clip_grad_norm_(params, clip)
        optimizer.step()
        average()

    if large:
        step()
        memory.large_pages([t for p in params for t in (p, p.grad, *optimizer.state[p].values())])
    return step


def ema_pytorch(net: Net) -> Callable[[], object]:
    from ema_pytorch import EMA

    ema = EMA(net, beta=DECAY, update_after_step=0, update_every=1, include_online_model=False)
    return ema.update


def diffusers(net: Net) -> Callable[[], object]:
    from diffusers.training_utils import EMAModel

    params = list(net.parameters())
    ema = EMAModel(params, decay=DECAY)
    return lambda: ema.step(params)


def tuned(net: Net, large: bool = False) -> Callable[[], object]:
    params, means = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
    if large:
        memory.large_pages(means)

    def average() -> None:
        with torch.no_grad():
            torch._foreach_lerp_(means, params, 1 - DECAY)

    return average


LARGE = "torch, tuned, on large pages"
PEERS: dict[str, Callable[[Net], Callable[[], object]]] = {
    "ema-pytorch, default": ema_pytorch, "diffusers, default": diffusers,
    "torch, tuned": tuned, LARGE: partial(tuned, large=True),
}  # fmt: skip


def measure(rounds: int, width: int) -> list[Line]:
    """Clipped, and below the clip."""
    lines = []
    x, y = torch.ones(FLOATS), torch.ones(FLOATS)
    memory.large_pages([x, y])
    for clip, word in ((1.0, "clipped"), (1e9, "below the clip")):
        net, generator = Net(width), torch.Generator().manual_seed(1)
        grads = [torch.randn(p.shape, generator=generator) for p in net.all]
        n = sum(p.numel() for p in net.all)
        work, absent = {"ours": ours(net, grads, clip)}, []
        for name, kind in PEERS.items():
            other, quick = Net(width), name.startswith("torch")
            try:
                work[name] = peer(other, grads, clip, kind(other), fused=quick, large=name == LARGE)
            except ImportError:
                absent.append(name.partition(",")[0])
        lines.append(
            race(
                f"Adam and average of {n / 1e6:.1f} M parameters, {word}", "steps/s",
                {name: (1, step) for name, step in work.items()}, rounds, (3 * FLOATS / (10 * n), lambda: y.add_(x)),
                f"not installed: {', '.join(absent)}" if absent else "",
            )
        )  # fmt: skip
    return lines


def main() -> None:
    asked = arguments(__doc__, 7, lambda parser: parser.add_argument("--width", type=int, default=128))
    for line in measure(asked.rounds, asked.width):
        line.show(asked.json)


if __name__ == "__main__":
    main()
