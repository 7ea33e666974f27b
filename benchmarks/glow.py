"""Glow of 32 x 32 colour pictures, 3 scales of 16 steps, hidden 512: a training step and sampling, against normflows.

    python -m benchmarks.glow          (needs normflows; about five minutes on two cores)

Peers, in the same process and by turns with ours, on the same pictures:

    default      GlowBlock, Squeeze and Merge with Adamax, in float32, as normflows' example of Glow has them
    tuned        the same, with the couplings' networks in bf16 where the processor has it, and channels-last
    compiled     the tuned one with its networks under torch.compile; asked for by --compile, for it takes minutes to begin

Ours is the catalogue's "32px" preset: the same steps and networks; it has convolutions in its priors besides, and its training
step has dequantization, keyed noise, gradient clipping and the average of weights in it. Peers dequantize uniformly by
torch.rand. Ours runs in the dtype the machine is best at. The limit is the couplings' convolutions alone, by the library, in bf16
and channels-last: forward and backward for the step, forward for samples. Ours computes them as products, and may pass it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._turns import FAST, arguments, race
from nonesuch import catalog
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.flow._products import network
from nonesuch.models.flow.glow import Glow
from nonesuch.train.device import has_bf16, place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC = ImageSpec(3, (32, 32))
SCALES, STEPS, HIDDEN = 3, 16, 512
Call = Callable[[], object]


def ours(levels: Tensor, batch: int) -> tuple[Run, Glow]:
    images = Images(SPEC, Schema(), levels, Given(len(levels)))
    model = catalog.build("flow/glow", SPEC, Schema(), "32px", scales=SCALES, steps=STEPS, hidden=HIDDEN)
    place(model)
    model.prepare(images.x[:64], images.given[:64])
    run = Run(model, images, Recipe(images=1 << 20, batch=batch))
    model.images_seen.fill_(1)
    assert isinstance(model, Glow)
    return run, model


# -- peers


def normflows_glow() -> nn.Module:
    """As in normflows' example of Glow, without classes."""
    import normflows as nf

    q0, merges, flows = [], [], []
    for i in range(SCALES):
        flows.append(
            [nf.flows.GlowBlock(3 * 2 ** (SCALES + 1 - i), HIDDEN, split_mode="channel", scale=True) for _ in range(STEPS)]
        )
        flows[-1].append(nf.flows.Squeeze())
        if i > 0:
            merges.append(nf.flows.Merge())
            shape = (3 * 2 ** (SCALES - i), 32 >> (SCALES - i), 32 >> (SCALES - i))
        else:
            shape = (3 * 2 ** (SCALES + 1), 32 >> SCALES, 32 >> SCALES)
        q0.append(nf.distributions.DiagGaussian(shape))
    return nf.MultiscaleFlow(q0, flows, merges, transform=nf.transforms.Logit(0.05), class_cond=False)


class InHalf(nn.Module):
    """A coupling's network in bf16, channels-last, with float32 in and out."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=FAST == torch.bfloat16):
            out: Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        return out.float()


def tuned(compiled: bool) -> nn.Module:
    """normflows' Glow with its networks channels-last, and in bf16 where that is faster."""
    model = normflows_glow().to(memory_format=torch.channels_last)
    half = has_bf16(torch.device("cpu"))
    for owner in [m for m in model.modules() if isinstance(getattr(m, "param_map", None), nn.Module)]:
        net = InHalf(owner.param_map) if half else owner.param_map
        owner.param_map = torch.compile(net) if compiled else net
    return model


def step_of(model: nn.Module, levels: Tensor) -> Call:
    """A training step as in normflows' example."""
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3, weight_decay=1e-5)
    x = levels.float()

    def step() -> None:
        optimizer.zero_grad()
        loss = model.forward_kld((x + torch.rand_like(x)) / 256)  # type: ignore[operator]
        loss.backward()
        optimizer.step()

    return step


def sample_of(model: nn.Module, n: int) -> Call:
    def sample() -> object:
        with torch.no_grad():
            return model.sample(n)  # type: ignore[operator]

    return sample


# -- the limit, and whether the networks are the same


def alone(batch: int, backward: bool) -> Call:
    """The couplings' convolutions of a batch, each as one call of the library."""
    form = {"dtype": FAST, "memory_format": torch.channels_last}
    work = []
    for i in range(SCALES):
        half, side = 6 << i, 16 >> i
        for channels, out, kernel in ((half, HIDDEN, 3), (HIDDEN, HIDDEN, 1), (HIDDEN, 2 * half, 3)):
            x = torch.randn(batch, channels, side, side).to(**form).requires_grad_(backward)
            w = torch.randn(out, channels, kernel, kernel).to(**form).requires_grad_(backward)
            work.append((x, w, torch.randn(batch, out, side, side).to(**form)))

    def run() -> None:
        for x, w, dy in work * STEPS:
            y = F.conv2d(x, w, None, 1, w.shape[-1] // 2)
            if backward:
                torch.autograd.grad(y, (x, w), dy)

    return run


@torch.no_grad()
def parity() -> str:
    """A coupling's network by ours against normflows', with the same weights."""
    import normflows as nf

    net = nf.nets.ConvNet2d((6, HIDDEN, HIDDEN, 12), (3, 1, 3), init_zeros=False)
    x, weights = torch.randn(4, 6, 16, 16), tuple(net.parameters())
    wanted = net(x)
    found = {t: network(x.movedim(1, -1), weights, None, t).movedim(-1, 1) for t in (torch.float32, torch.bfloat16)}
    said = [f"{float((y - wanted).norm() / wanted.norm()):.1e} in {str(t)[6:]}" for t, y in found.items()]
    return f"a coupling's network, ours against normflows' in float32 with the same weights: relative L2 {', '.join(said)}"


def more(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, default=64, help="pictures a training step (normflows' example: 128)")
    parser.add_argument("--n", type=int, nargs="+", default=[4, 64], help="samples at a time, a row each")
    parser.add_argument("--compile", action="store_true", help="normflows under torch.compile too")


def main() -> None:
    asked = arguments(__doc__, more=more)
    try:
        import normflows  # noqa: F401  only asked whether it is there
    except ImportError:
        print("benchmarks.glow needs normflows, which is not installed here: pip install normflows.")
        return
    warnings.filterwarnings("ignore", "torch.lu is deprecated")  # normflows'
    levels = Seeds.of(0, 256).integers("levels", 256, *SPEC.shape).to(torch.uint8)
    run, model = ours(levels, asked.batch)
    peers = {"normflows, default": normflows_glow(), "normflows, tuned": tuned(False)}
    if asked.compile:
        peers["normflows, tuned and compiled"] = tuned(True)
    name = f"Glow 32 x 32, L{SCALES} K{STEPS}, hidden {HIDDEN}"
    steps = {"ours": (asked.batch, run.step)}
    steps |= {k: (asked.batch, step_of(m, levels[: asked.batch])) for k, m in peers.items()}
    limit = (asked.batch, alone(asked.batch, backward=True))
    race(f"{name}: training step, batches of {asked.batch}", "images/s", steps, asked.rounds, limit, parity()).show(asked.json)
    for n in asked.n:
        samples = {"ours": (n, lambda n=n: model.sample(n, seeds=0)), **{k: (n, sample_of(m, n)) for k, m in peers.items()}}
        limit = (n, alone(n, backward=False))
        race(f"{name}: {n} samples at a time", "images/s", samples, asked.rounds, limit).show(asked.json)


if __name__ == "__main__":
    main()
