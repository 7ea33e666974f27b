"""Sampling 28 x 28 pictures from the gated PixelCNN and PixelCNN++: kept activations against a pass a pixel, the same weights.

    python -m benchmarks.pixelcnn --sources FOLDER      (about ten minutes on one core)

The peers are pytorch-generative's GatedPixelCNN (3.4 M) and pixel-cnn-pp's PixelCNN, from clones `pytorch-generative` and
`pixel-cnn-pp` in FOLDER; a network whose source is not there is restated (`_pixelcnns`) and its line says so. Their weights are
ours through `_public`, and their loop is that of their own samplers: the whole network on the whole picture for each of 784
pixels. "default" is float32 as they come, "tuned" bf16 and channels last with weight normalisation folded, "compiled" the tuned
one after torch.compile. One pass costs the same at every pixel, so a call of a peer times one pixel, at four spread places by
turns, and counts as 1/784 of a batch: their rate for a whole batch is EXTRAPOLATED. Ours is timed whole.

The limit is one pass of our network over all pixels of the batch, in the dtype of the first line: the work there is.
Before the race, ours draws a batch in float32 and the peer must draw the same values at those places from the same uniforms.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks import _pixelcnns as public
from benchmarks._turns import Line, arguments, race
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._public import _mixture, folded, from_pixelcnnpp, from_pytorch_generative
from nonesuch.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp

SIDE = 28
PIXELS = SIDE * SIDE
PLACES = (0, PIXELS // 3, 2 * PIXELS // 3 + 5, PIXELS - 1)
Model = GatedPixelCNN | PixelCNNpp


class Loop:
    """A peer's network in its sampler's loop: a pass over the picture for a pixel, and the pixel drawn as ours draws it."""

    def __init__(self, net: nn.Module, model: Model, dtype: torch.dtype) -> None:
        self.net, self.model, self.dtype = net, model, dtype
        self.turn, self.pictures = itertools.cycle(PLACES), dict[int, Tensor]()
        self.pads = isinstance(model, PixelCNNpp) and not isinstance(net, public.Plain)
        # as their sampler calls it, which makes a channel of float32 ones each time; in bf16 the ones are made beforehand
        self.more = {"sample": True} if self.pads and dtype == torch.float32 else {}

    def begin(self, k: Tensor, u: Tensor) -> None:
        """What stands in the loop's picture when it comes to each place: the values drawn before it."""
        self.u = u
        layout = torch.contiguous_format if self.dtype == torch.float32 else torch.channels_last
        for place in PLACES:
            x = self.model.raster.picture(torch.where(torch.arange(PIXELS)[None, :, None] < place, k, 0))
            x = x / 2 + 0.5 if isinstance(self.model, GatedPixelCNN) else x
            self.pictures[place] = x = x.to(self.dtype, memory_format=layout)
            if self.pads and not self.more:
                self.net.init_padding = torch.ones_like(x)  # type: ignore[assignment]

    def outputs(self, place: int) -> Tensor:
        """The head's inputs (n, size) at one pixel, as our head reads them."""
        out = self.net(self.pictures[place], **self.more)[:, :, place // SIDE, place % SIDE].float()
        if isinstance(self.model, GatedPixelCNN):  # log odds of white
            return torch.cat([torch.zeros_like(out), out, torch.zeros_like(out)], 1)
        columns, start = _mixture(out.T, torch.zeros(out.shape[1]), self.model.config.mixtures, 1)
        return columns.T + start

    @torch.no_grad()
    def draw(self, place: int) -> Tensor:
        """The levels (n,) of one pixel."""
        nothing = torch.zeros(len(self.u), 1, dtype=torch.int64)
        return self.model.head.draw(self.outputs(place), nothing, 0, self.u[:, place, 0])

    def __call__(self) -> Tensor:
        return self.draw(next(self.turn))


def gated(sources: Path) -> tuple[str, Model, nn.Module]:
    state = public.gated_state()
    net = public.real_gated(sources, state)
    name = "pytorch-generative" if net else "pytorch-generative restated"
    return name, from_pytorch_generative(state), net or public.Plain("gated_pixelcnn", state)


def pixelcnnpp(sources: Path, width: int, blocks: int) -> tuple[str, Model, nn.Module]:
    state = public.pixelcnnpp_state(width, blocks)
    net = public.real_pixelcnnpp(sources, state, width, blocks)
    name = "pixel-cnn-pp" if net else "pixel-cnn-pp restated"
    return name, from_pixelcnnpp(state, (SIDE, SIDE)), net or public.Plain("pixelcnnpp", folded(state))


def tuned(net: nn.Module) -> nn.Module:
    """The network without weight normalisation to compute, in bf16 and channels last."""
    net = copy.deepcopy(net) if isinstance(net, public.Plain) else net
    for module in net.modules():
        if "weight_g" in dict(module.named_parameters(recurse=False)):
            torch.nn.utils.remove_weight_norm(module)
    return net.to(torch.bfloat16).to(memory_format=torch.channels_last)


@torch.no_grad()
def agreement(model: Model, peers: dict[str, Loop], n: int) -> str:
    """How near the outputs are at the places, and whether the pixels drawn are the same; the loops begin with what ours drew.

    The first peer is in float32: raises ValueError if it draws other pixels than ours does in float32.
    """
    model.compute_dtype, wanted = torch.float32, None
    k = model.raster.tokens(model.sample(n))
    u = Seeds.of(0, n).uniform("value", PIXELS, 1, model.head.draws)
    c, said = model._condition(model.schema.missing(n)), []
    for name, loop in peers.items():
        loop.begin(k, u)
        if "compiled" in name:
            continue
        model.compute_dtype = loop.dtype
        ours = _meant(model, model.outputs(k, c)[:, list(PLACES)])
        theirs = _meant(model, torch.stack([loop.outputs(p) for p in PLACES], 1))
        wanted = theirs if wanted is None else wanted
        same = float((torch.stack([loop.draw(p) for p in PLACES], 1) == k[:, list(PLACES), 0]).float().mean())
        if loop.dtype == torch.float32 and same < 1:
            raise ValueError(f"{name} draws other pixels: only {same:.3f} of {n * len(PLACES)} are the same.")
        apart, off = (float((t - wanted).norm() / wanted.norm()) for t in (ours, theirs))
        word = str(loop.dtype).removeprefix("torch.")
        said.append(f"{word}: ours {apart:.1e}, theirs {off:.1e} from their float32 outputs, {same:.3f} of their pixels ours")
    return "; ".join(said)


def _meant(model: Model, out: Tensor) -> Tensor:
    """What outputs (..., size) say: log odds, or the mixture's numbers."""
    if isinstance(model, GatedPixelCNN):
        return out[..., 1] - out[..., 0]
    columns = out.shape[-1]
    return out - _mixture(torch.zeros(columns, 1), torch.zeros(columns), model.config.mixtures, 1)[1]  # without our start


def measure(name: str, model: Model, net: nn.Module, n: int, rounds: int, compiled: bool, again: Callable[[], nn.Module]) -> Line:
    """One row: ours in bf16 and float32, the peer by default, tuned, and compiled."""
    peers = {f"{name}, default": Loop(net, model, torch.float32)}
    fast = tuned(again())
    peers[f"{name}, tuned"] = Loop(fast, model, torch.bfloat16)
    if compiled:
        peers[f"{name}, tuned and compiled"] = Loop(torch.compile(fast), model, torch.bfloat16)  # type: ignore[arg-type]
    said = agreement(model, peers, n)
    k, c = torch.zeros(n, PIXELS, 1, dtype=torch.int64), model._condition(model.schema.missing(n))

    def ours(dtype: torch.dtype) -> Callable[[], object]:
        def draw() -> Tensor:
            model.compute_dtype = dtype
            return model.sample(n)

        return draw

    @torch.no_grad()
    def one_pass() -> Tensor:
        model.compute_dtype = torch.bfloat16
        return model.outputs(k, c)

    size = sum(p.numel() for p in model.parameters()) / 1e6
    contestants: dict[str, tuple[float, Callable[[], object]]] = {
        "ours, bf16": (n, ours(torch.bfloat16)), "ours, float32": (n, ours(torch.float32)),
        **{who: (n / PIXELS, loop) for who, loop in peers.items()},
    }  # fmt: skip
    row = f"{type(model).__name__}, {size:.1f} M, 28 x 28, batch {n}, {torch.get_num_threads()} thread(s)"
    return race(row, "images/s", contestants, rounds, (n, one_pass), f"peers extrapolated from single passes; {said}")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sources", type=Path, default=Path("peers"), help="a folder with clones of the peers")
    parser.add_argument(
        "--network", choices=("gated_pixelcnn", "pixelcnnpp"), nargs="+", default=["gated_pixelcnn", "pixelcnnpp"]
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--width", type=int, default=64, help="of PixelCNN++; the published one has 160")
    parser.add_argument("--blocks", type=int, default=2, help="of PixelCNN++; the published one has 5")
    parser.add_argument("--compiled", action="store_true", help="race the peers after torch.compile, too")


def main() -> None:
    asked = arguments(__doc__, more=_options)
    warnings.filterwarnings("ignore", category=FutureWarning)  # the peers' weight_norm is an old one
    for network in asked.network:

        def build(network: str = network) -> tuple[str, Model, nn.Module]:
            if network == "gated_pixelcnn":
                return gated(asked.sources)
            return pixelcnnpp(asked.sources, asked.width, asked.blocks)

        for n in asked.batch:
            name, model, net = build()
            measure(name, model, net, n, asked.rounds, asked.compiled, lambda: build()[2]).show(asked.json)


if __name__ == "__main__":
    main()
