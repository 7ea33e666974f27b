"""Evaluations of DDPM's published U-Net (35.7 M, 32 x 32, one attention head), the same weights here and in diffusers.

    python -m benchmarks.unet          (needs diffusers; about three minutes)

Peers, in the same process and by turns with ours:

    default             diffusers' UNet2DModel as its README uses it: float32, its own memory layout
    tuned               the same in bf16 and channels-last
    tuned, compiled     and under torch.compile, if that ends within `--compile-within` seconds

The limit is the network's convolutions of 3 x 3 (the work of one call, counted by hooks), each as one bf16 channels-last
call with nothing between them. The note has the relative L2 distance of each to diffusers' float32 answer, and what a cold start
costs.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
import warnings
from collections.abc import Callable
from types import FrameType

import torch
from torch import Tensor, nn

from benchmarks._turns import FAST, arguments, convolutions, race
from nonesuch.catalog import from_diffusers
from nonesuch.models.diffusion.ddpm import DDPM
from nonesuch.nn import native
from nonesuch.nn.fused import Fusible
from nonesuch.train.device import place

PUBLISHED = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "downsample_padding": 0, "norm_eps": 1e-6,
    "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
Call = Callable[[], Tensor]


def pair(config: dict[str, object] = PUBLISHED) -> tuple[nn.Module, DDPM]:
    """diffusers' network with its random weights, and ours with the same."""
    from diffusers import UNet2DModel

    theirs = UNet2DModel(**config).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, from_diffusers(folder)


def tuned(theirs: nn.Module) -> nn.Module:
    """A copy in what is quickest and channels-last."""
    copy = type(theirs)(**theirs.config).eval()  # type: ignore[operator,arg-type]
    copy.load_state_dict(theirs.state_dict())
    return copy.to(FAST).to(memory_format=torch.channels_last)


def called(module: Callable[..., object], x: Tensor, timestep: Tensor, dtype: torch.dtype) -> Call:
    """A call of diffusers' network, without gradients; what it returns, in float32."""

    @torch.no_grad()
    def call() -> Tensor:
        image = x if dtype == torch.float32 else x.to(dtype).contiguous(memory_format=torch.channels_last)
        return module(image, timestep).sample.float()  # type: ignore[attr-defined]

    return call


def ours(model: DDPM, x: Tensor, timestep: Tensor) -> Call:
    given = model.schema.missing(len(x))

    @torch.no_grad()
    def call() -> Tensor:
        return model.noise_of(x, timestep + 1, given)

    return call


def within(call: Callable[[], object], seconds: int) -> float | None:
    """Seconds that the first call takes, which compiles; None if it does not end in time."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    start = time.perf_counter()
    try:
        call()
    except Exception as error:  # the compiler passes on what stopped it under names of its own
        print(f"  (torch.compile did not end within {seconds} s: {type(error).__name__})")
        return None
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return time.perf_counter() - start


def measure(models: tuple[nn.Module, DDPM], batch: int, asked: argparse.Namespace) -> None:
    theirs, model = models
    x, timestep = torch.randn(batch, 3, 32, 32), torch.arange(batch) * 999 // batch
    evaluate = ours(model, x, timestep)
    fast = tuned(theirs)
    contestants: dict[str, Call] = {
        "ours": evaluate,
        "diffusers, default": called(theirs, x, timestep, torch.float32),
        "diffusers, tuned": called(fast, x, timestep, FAST),
    }
    if asked.compile_within:
        compiled = called(torch.compile(fast), x, timestep, FAST)
        took = within(compiled, asked.compile_within)
        if took is not None:
            contestants["diffusers, tuned, compiled"] = compiled
            asked.notes.append(f"torch.compile took {took:.0f} s")
    wanted = contestants["diffusers, default"]()
    far = {name: float((call() - wanted).norm() / wanted.norm()) for name, call in contestants.items()}
    for module in model.modules():  # hooks see the layers where the eager path calls them
        if isinstance(module, Fusible):
            module.fused = False
    limit = convolutions(model.unet, evaluate, only=lambda m: isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    place(model, "cpu")
    note = "relative L2 to float32: " + ", ".join(f"{name} {v:.1e}" for name, v in far.items())
    line = race(
        f"{asked.row} batch {batch}", "images/s", {name: (batch, call) for name, call in contestants.items()}, asked.rounds,
        (batch, limit), "; ".join([note, *asked.notes]),
    )  # fmt: skip
    line.show(asked.json)


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--batch", type=int, nargs="*", default=[16, 32])
    parser.add_argument("--compile-within", type=int, default=300, help="seconds that torch.compile may take; 0: do without")


def main() -> None:
    asked = arguments(__doc__, more=options)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = pair()
    except ImportError as error:
        print(f"  skipped: diffusers cannot be imported ({error}); pip install diffusers")
        return
    start = time.perf_counter()
    native.library()
    asked.row, asked.notes = (
        "DDPM-CIFAR U-Net, 35.7 M,",
        [f"our kernels took {time.perf_counter() - start:.1f} s to build or load"],
    )
    print(f"  {place(models[1], 'cpu')}")
    for batch in asked.batch:
        measure(models, batch, asked)


if __name__ == "__main__":
    main()
