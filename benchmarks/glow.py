"""Glow of 32 x 32 colour pictures, 3 scales of 16 steps, hidden 512: a training step and sampling, against normflows.

    python -m benchmarks.glow          (about six minutes on one core)

Peers, in the same process and by turns with ours, on the same batches:

    default      normflows' GlowBlock, Squeeze and Merge with Adamax, in float32, as its example of Glow has it
    tuned        the same, with the couplings' networks in bf16 where the processor has it, and channels-last
    plain        where normflows is absent: its architecture in a plain float32 loop, each matrix assembled (and, to sample,
                 inverted in float64) at every call, as normflows writes it

Ours is the catalogue's "32px" preset: the same steps and networks; it has convolutions in its priors besides, and its training
step has dequantization, keyed noise, gradient clipping and the average of weights in it. Peers dequantize uniformly by
torch.rand. Ours runs in the dtype the machine is best at, and then in float32. Medians of the rounds; the ratio of a peer is the
median of the ratios of neighbouring measurements.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch import catalog
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.flow.glow import Glow
from nonesuch.train.device import has_bf16, place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC = ImageSpec(3, (32, 32))
SCALES, STEPS, HIDDEN = 3, 16, 512


@dataclass
class Contestant:
    """One training step, and one call that samples."""

    step: Callable[[], object]
    sample: Callable[[], object]


# -- ours


def ours(levels: Tensor, batch: int, n: int, precision: str) -> Contestant:
    images = Images(SPEC, Schema(), levels, Given(len(levels)))
    model = catalog.build("flow/glow", SPEC, Schema(), "32px", scales=SCALES, steps=STEPS, hidden=HIDDEN)
    place(model, precision=precision)
    model.prepare(images.x[:64].to(model.device), images.given[:64].to(model.device))
    run = Run(model, images, Recipe(images=1 << 20, batch=batch))
    model.images_seen.fill_(1)
    assert isinstance(model, Glow)
    return Contestant(run.step, lambda: model.sample(n, seeds=0))


# -- a peer as it is written, when there is none


class Block(nn.Module):
    """A step in normflows' manner, from latents to pictures: coupling, W^-1, ActNorm; `inverse` is what training runs."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.half = (channels + 1) // 2
        self.net = nn.Sequential(
            nn.Conv2d(self.half, HIDDEN, 3, padding=1), nn.LeakyReLU(0.0), nn.Conv2d(HIDDEN, HIDDEN, 1), nn.LeakyReLU(0.0),
            nn.Conv2d(HIDDEN, 2 * (channels - self.half), 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.net[-1].weight)
        p, lower, upper = torch.linalg.lu(torch.linalg.qr(torch.randn(channels, channels))[0])
        self.register_buffer("p", p)
        self.register_buffer("sign", upper.diag().sign())
        self.register_buffer("eye", torch.eye(channels))
        self.lower, self.upper = nn.Parameter(lower), nn.Parameter(upper.triu(1))
        self.log_s = nn.Parameter(upper.diag().abs().log())
        self.s, self.t = nn.Parameter(torch.zeros(1, channels, 1, 1)), nn.Parameter(torch.zeros(1, channels, 1, 1))

    def factors(self) -> tuple[Tensor, Tensor]:
        return self.lower.tril(-1) + self.eye, self.upper.triu(1) + torch.diag(self.sign * self.log_s.exp())

    def forward(self, z: Tensor) -> Tensor:
        keep, move = z.split([self.half, z.shape[1] - self.half], 1)
        out = self.net(keep)
        scale = torch.sigmoid(out[:, 1::2] + 2)
        lower, upper = self.factors()
        w = upper.double().inverse().float() @ lower.double().inverse().float() @ self.p.T
        z = F.conv2d(torch.cat([keep, move / scale + out[:, ::2]], 1), w[:, :, None, None])
        return z * self.s.exp() + self.t

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        pixels = z.shape[2] * z.shape[3]
        z = F.conv2d((z - self.t) * (-self.s).exp(), (self.p @ lower @ upper)[:, :, None, None])
        keep, move = z.split([self.half, z.shape[1] - self.half], 1)
        out = self.net(keep)
        scale = torch.sigmoid(out[:, 1::2] + 2)
        log_det = scale.log().sum((1, 2, 3)) + pixels * (self.log_s.sum() - self.s.sum())
        return torch.cat([keep, (move - out[:, ::2]) * scale], 1), log_det


class Plain(nn.Module):
    """Three scales of blocks with a learned normal each."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.ModuleList(Block(12 * 2**i) for _ in range(STEPS)) for i in range(SCALES))
        self.shapes = [(12 * 2**i // (1 if i + 1 == SCALES else 2), 16 >> i, 16 >> i) for i in range(SCALES)]
        self.mean = nn.ParameterList(torch.zeros(s) for s in self.shapes)
        self.log_std = nn.ParameterList(torch.zeros(s) for s in self.shapes)

    def forward_kld(self, x: Tensor) -> Tensor:
        u = 0.05 + 0.9 * x
        x, total = u.logit(), -(u * (1 - u)).log().sum((1, 2, 3))
        for i, blocks in enumerate(self.scales):
            x = F.pixel_unshuffle(x, 2)
            for block in blocks:
                x, log_det = block.inverse(x)
                total = total + log_det
            x, gone = (x[:, :0], x) if i + 1 == SCALES else x.chunk(2, 1)
            eps = (gone - self.mean[i]) * (-self.log_std[i]).exp()
            total = total - eps.square().sum((1, 2, 3)) / 2 - self.log_std[i].sum()
        return -total.mean()

    def sample(self, n: int) -> Tensor:
        x = torch.zeros(n, 0, *self.shapes[-1][1:])
        for blocks, shape, mean, log_std in reversed(list(zip(self.scales, self.shapes, self.mean, self.log_std, strict=True))):
            x = torch.cat([x, mean + torch.randn(n, *shape) * log_std.exp()], 1)
            for block in blocks:
                x = block(x)
            x = F.pixel_shuffle(x, 2)
        return x.sigmoid()


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
        with torch.autocast(x.device.type, torch.bfloat16):
            out: Tensor = self.net(x.contiguous(memory_format=torch.channels_last))
        return out.float()


def tune(model: nn.Module, half: bool) -> nn.Module:
    """The peer with its networks channels-last, and in bf16 where that is faster."""
    model = model.to(memory_format=torch.channels_last)
    nets = [(m, n) for m in model.modules() for n in ("param_map", "net") if isinstance(getattr(m, n, None), nn.Module)]
    owners = [(m, n) for m, n in nets if n == "param_map"] or nets
    for owner, name in owners if half else []:
        setattr(owner, name, InHalf(getattr(owner, name)))
    return model


def theirs(model: nn.Module, levels: Tensor, batch: int, n: int) -> Contestant:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model.to(device)
    optimizer = torch.optim.Adamax(model.parameters(), lr=1e-3, weight_decay=1e-5)
    x = levels[:batch].to(device).float()

    def step() -> None:
        optimizer.zero_grad()
        loss = model.forward_kld((x + torch.rand_like(x)) / 256)
        loss.backward()
        optimizer.step()

    def sample() -> Tensor:
        with torch.no_grad():
            return model.sample(n)

    return Contestant(step, sample)


# -- the measurement


def seconds(call: Callable[[], object]) -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure(rounds: int, batch: int, n: int) -> dict[str, dict[str, float]]:
    """Median images a second of each contestant and job, and how many times as many ours does."""
    levels = Seeds.of(0, 256).integers("levels", 256, *SPEC.shape).to(torch.uint8)
    try:
        build, peer = normflows_glow, "normflows"
        build()
    except ImportError:
        build, peer = Plain, "plain"
    half = has_bf16(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    contestants = {
        "ours": ours(levels, batch, n, "auto"),
        f"{peer}, default": theirs(build(), levels, batch, n),
        f"{peer}, tuned": theirs(tune(build(), half), levels, batch, n),
        "ours, float32": ours(levels, batch, n, "fp32"),
    }
    rates: dict[tuple[str, str], list[float]] = {}
    for i in range(rounds + 1):  # the first warms up, and lets ActNorm see its data
        for job in ("step", "sample"):
            for name, one in contestants.items():
                rate = (batch if job == "step" else n) / seconds(getattr(one, job))
                if i:
                    rates.setdefault((job, name), []).append(rate)
    out = {}
    for (job, name), found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates[job, "ours"], found, strict=True))
        out[f"{job}: {name}"] = {"images_per_s": statistics.median(found), "ours_is_times": ratio}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--n", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(asked.threads)
    found = measure(asked.rounds, asked.batch, asked.n)
    if asked.json:
        print(json.dumps(found))
        return
    print(
        f"Glow 32 x 32, L{SCALES} K{STEPS}, hidden {HIDDEN}: batches of {asked.batch}, samples {asked.n} at a time; medians of "
        f"{asked.rounds}; {asked.threads} thread(s)"
    )
    for name, row in found.items():
        print(f"  {name:32}{row['images_per_s']:>10,.1f} images/s    ours is {row['ours_is_times']:6.2f} x")


if __name__ == "__main__":
    main()
