"""Evaluations of DDPM's published U-Net (35.7 M, 32 x 32, one attention head), the same weights here and in diffusers.

    python -m benchmarks.unet          (needs diffusers; about three minutes on one thread)

Peers, in the same process and by turns with ours:

    default    diffusers' UNet2DModel as its README uses it: float32, its own memory layout
    tuned      the same in bf16 and channels-last
    compiled   the tuned one under torch.compile, if that ends within `--compile-within` seconds

The limit is measured in the same rounds: the network's convolutions of 3 x 3 (the work of one call, counted by hooks), each as
one bf16 channels-last call with nothing between them. The ratio beside it is the share of the limit that ours reaches. Ratios are
medians of the ratios of neighbouring measurements; each rate has the relative L2 distance to diffusers' float32 answer with it.
"""

from __future__ import annotations

import argparse
import json
import signal
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from types import FrameType

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds
from nonesuch.models.diffusion._diffusers import from_diffusers
from nonesuch.models.diffusion.ddpm import DDPM

PUBLISHED = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "layers_per_block": 2, "attention_head_dim": None,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"), "downsample_padding": 0, "norm_eps": 1e-6,
    "flip_sin_to_cos": False, "freq_shift": 1,
}  # fmt: skip
Call = Callable[[Tensor, Tensor], Tensor]


def pair() -> tuple[nn.Module, DDPM]:
    """diffusers' network with its random weights, and ours with the same."""
    from diffusers import UNet2DModel

    theirs = UNet2DModel(**PUBLISHED).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        return theirs, from_diffusers(folder)


def ours(model: DDPM, dtype: torch.dtype) -> Call:
    def call(x: Tensor, timestep: Tensor) -> Tensor:
        model.compute_dtype = dtype
        return model.noise_of(x, timestep + 1, model.schema.missing(len(x)))

    return call


def tuned(theirs: nn.Module) -> nn.Module:
    """A copy in bf16 and channels-last."""
    from diffusers import UNet2DModel

    copy = UNet2DModel(**PUBLISHED).eval()
    copy.load_state_dict(theirs.state_dict())
    return copy.to(torch.bfloat16).to(memory_format=torch.channels_last)


def bf16(module: Callable[..., object]) -> Call:
    def call(x: Tensor, timestep: Tensor) -> Tensor:
        x = x.to(torch.bfloat16).contiguous(memory_format=torch.channels_last)
        return module(x, timestep).sample.float()  # type: ignore[attr-defined]

    return call


def compiled(call: Call, x: Tensor, timestep: Tensor, within_s: int) -> bool:
    """Whether the first call, which compiles, ends in time."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(within_s)
    try:
        call(x, timestep)
    except Exception as error:  # the compiler passes on what stopped it under names of its own
        print(f"  (torch.compile did not end within {within_s} s: {type(error).__name__})")
        return False
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return True


def convolutions(model: DDPM, x: Tensor, timestep: Tensor) -> Callable[[], None]:
    """The 3 x 3 convolutions of one call, and nothing else."""
    shapes: list[tuple[torch.Size, nn.Conv2d]] = []

    def note(module: nn.Conv2d, inputs: tuple[Tensor, ...]) -> None:
        shapes.append((inputs[0].shape, module))

    hooks = [m.register_forward_pre_hook(note) for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    ours(model, torch.bfloat16)(x, timestep)
    for hook in hooks:
        hook.remove()
    form = {"dtype": torch.bfloat16, "memory_format": torch.channels_last}
    work = [(torch.randn(shape).to(**form), m.weight.detach().to(**form), m.stride, m.padding) for shape, m in shapes]

    def call() -> None:
        for inputs, weight, stride, padding in work:
            F.conv2d(inputs, weight, None, stride, padding)

    return call


@torch.no_grad()
def measure(rounds: int, batch: int, compile_within_s: int, models: tuple[nn.Module, DDPM]) -> dict[str, dict[str, float]]:
    """Median images a second of each contestant, how many times as many ours does, and the distance to diffusers' float32."""
    theirs, model = models
    x, timestep = Seeds.of(0, batch).normal("x", 3, 32, 32), torch.arange(batch) * 999 // batch
    fast = tuned(theirs)
    contestants: dict[str, Call] = {
        "ours": ours(model, torch.bfloat16),
        "ours, fp32": ours(model, torch.float32),
        "diffusers, default": lambda x, t: theirs(x, t).sample,
        "diffusers, bf16 channels-last": bf16(fast),
    }
    if compile_within_s:
        faster = bf16(torch.compile(fast))
        if compiled(faster, x, timestep, compile_within_s):
            contestants["diffusers, and compiled"] = faster
    wanted = contestants["diffusers, default"](x, timestep)
    error = {name: float((call(x, timestep) - wanted).norm() / wanted.norm()) for name, call in contestants.items()}
    limit = convolutions(model, x, timestep)
    limit()
    rates: dict[str, list[float]] = {name: [] for name in [*contestants, "convolutions alone"]}
    for _ in range(rounds):
        for name in rates:
            start = time.perf_counter()
            limit() if name == "convolutions alone" else contestants[name](x, timestep)
            rates[name].append(batch / (time.perf_counter() - start))
    out = {}
    for name, found in rates.items():
        ratio = statistics.median(a / b for a, b in zip(rates["ours"], found, strict=True))
        out[name] = {"images_per_s": statistics.median(found), "ours_is_times": ratio, "relative_l2": error.get(name, 0.0)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--batch", type=int, nargs="*", default=[16, 32])
    parser.add_argument("--compile-within", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    asked, _ = parser.parse_known_args()
    torch.set_num_threads(asked.threads)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            models = pair()
    except ImportError as error:
        print(f"  skipped: diffusers cannot be imported ({error}); pip install diffusers")
        return
    for batch in asked.batch:
        found = measure(asked.rounds, batch, asked.compile_within, models)
        if asked.json:
            print(json.dumps({"batch": batch, **found}))
            continue
        print(f"batch {batch}, 3 x 32 x 32; medians of {asked.rounds}; {asked.threads} thread(s)")
        for name, row in found.items():
            print(
                f"  {name:32}{row['images_per_s']:>8.1f} images/s   ours is {row['ours_is_times']:6.2f} x"
                f"   relative L2 {row['relative_l2']:.1e}"
            )


if __name__ == "__main__":
    main()
