"""One optimizer step and exponential average of 36 M parameters: clip, Adam, average, against the peers.

    python -m benchmarks.optimizer                    (a minute on one core)
    python -m benchmarks.optimizer --width 16         (seconds)

By turns in one process, the same shapes (those of a convolutional U-Net) and gradients of norm above and below the clip:

    adam + ema loop    torch.optim.Adam at its defaults, clip_grad_norm_, and for each parameter ema.lerp_(p, 1 - decay), as
                       ema-pytorch and diffusers' EMAModel do at their defaults
    tuned              torch.optim.Adam(fused=True), clip_grad_norm_, torch._foreach_lerp_ (what EMAModel(foreach=True) does)
    ours               nonesuch.train.optim: the same numbers as `tuned`, gradients never changed in place

The share of the limit is the time that the bytes which must be moved take at the bandwidth measured in the same run: a parameter,
its gradient, two moments and an average read, all but the gradient written, and the gradient read once more for its norm.
"""

from __future__ import annotations

import argparse
import json

import torch
from torch import Tensor, nn

from benchmarks._turns import bandwidth, by_turns, table
from nonesuch.core.objective import Objective, Terms
from nonesuch.train.optim import Adam, Averages
from nonesuch.train.recipe import Recipe

DECAY = 0.999


class Net(nn.Module):
    """Parameters in the shapes of a U-Net whose width is `width`; 36 M at 128."""

    def __init__(self, width: int) -> None:
        super().__init__()
        shapes = [(width, 3, 3, 3), *[(width, width, 3, 3)] * 10, (2 * width, width, 3, 3), *[(2 * width, 2 * width, 3, 3)] * 57]
        shapes += [(2 * width,)] * 130
        generator = torch.Generator().manual_seed(0)
        self.all = nn.ParameterList(nn.Parameter(0.02 * torch.randn(shape, generator=generator)) for shape in shapes)


def measure(rounds: int, width: int) -> dict[str, dict[str, float]]:
    """Median seconds of each contestant, how many times as long as ours, and the share of the limit."""
    limit, out = bandwidth(), {}
    for clip, word in ((1.0, "clipped"), (1e9, "not clipped")):
        nets = [Net(width) for _ in range(3)]
        generator = torch.Generator().manual_seed(1)
        grads = [torch.randn(p.shape, generator=generator) for p in nets[0].all]
        given: list[list[Tensor]] = [[g.clone() for g in grads] for _ in nets]
        objective = Objective("model", list(nets[0].parameters()), lambda batch: Terms({}))
        adam, averages = Adam(objective, Recipe(images=1 << 30, batch=1, clip=clip)), Averages(nets[0], [objective])

        def ours(adam: Adam = adam, averages: Averages = averages, given: list[Tensor] = given[0]) -> None:
            adam.step(given, 10_000)
            averages.update(DECAY)

        def peer(net: Net, given: list[Tensor], tuned: bool, clip: float = clip) -> object:
            params, means = list(net.parameters()), [p.detach().clone() for p in net.parameters()]
            optimizer = torch.optim.Adam(params, 2e-4, fused=tuned or None)

            @torch.no_grad()
            def step() -> None:
                for p, g in zip(params, given, strict=True):
                    p.grad = g
                nn.utils.clip_grad_norm_(params, clip)
                optimizer.step()
                if tuned:
                    torch._foreach_lerp_(means, params, 1 - DECAY)
                else:
                    for mean, p in zip(means, params, strict=True):
                        mean.lerp_(p.detach(), 1 - DECAY)

            return step

        contestants = {"ours": ours, "adam + ema loop": peer(nets[1], given[1], False), "tuned": peer(nets[2], given[2], True)}
        for work in contestants.values():
            work()  # the states begin
        rows = table(by_turns(contestants, rounds))
        moved = 4 * (5 + 4 + 1) * sum(p.numel() for p in nets[0].parameters())
        rows["limit"] = {"bytes_per_s": limit, "share": moved / limit / rows["ours"]["s"]}
        out |= {f"{word}: {name}": row for name, row in rows.items()}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    found = measure(asked.rounds, asked.width)
    if asked.json:
        print(json.dumps(found))
        return
    n = sum(p.numel() for p in Net(asked.width).parameters())
    print(f"{n / 1e6:.1f} M parameters; medians of {asked.rounds}; {torch.get_num_threads()} thread(s)")
    for name, row in found.items():
        print(f"  {name:30}" + "   ".join(f"{key} {value:.4g}" for key, value in row.items()))


if __name__ == "__main__":
    main()
