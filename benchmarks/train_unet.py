"""A training step of a small 32 x 32 U-Net (6.5 M), batch 64: forward, backward, clipping, Adam and exponential averages.

    python -m benchmarks.train_unet          (needs diffusers and denoising-diffusion-pytorch; about ten minutes)

Ours is `Run.step` of nonesuch.train as `fit` runs it, data loading and keyed noise included. Peers, by turns with ours:

    diffusers, default                      the loop of its training example: UNet2DModel with the same weights, DDPMScheduler,
                                            AdamW, clipping, EMAModel; float32
    diffusers, tuned                        bf16 autocast and channels-last
    diffusers, tuned, compiled              and torch.compile of the network, if that ends within `--compile-within` seconds
    denoising-diffusion-pytorch, default    its Unet of about the size, GaussianDiffusion, Adam and its EMA; float32

No peer is given data to load: its images lie in memory. The limit is the network's convolutions of 3 x 3, forward and both
backward, each as one bf16 channels-last call with nothing between them.
"""

from __future__ import annotations

import argparse
import copy
import warnings
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._turns import FAST, arguments, race
from benchmarks.unet import PUBLISHED, pair, within
from nonesuch.core.seeds import Seeds
from nonesuch.data.open import open as open_data
from nonesuch.models.diffusion.ddpm import DDPM
from nonesuch.nn.fused import Fusible
from nonesuch.train.device import place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SMALL = PUBLISHED | {
    "block_out_channels": (64, 128, 128), "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
BATCH, IMAGES, RATE = 64, 1024, 2e-4
Step = Callable[[], object]


def ours(model: DDPM, x: Tensor) -> Step:
    levels = model.spec.to_levels(x).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    run = Run(model, open_data(levels).train, Recipe(batch=BATCH, lr=RATE, images=1 << 30))
    return run.step


def diffusers_loop(theirs: nn.Module, x: Tensor, network: Callable[..., object], tuned: bool) -> Step:
    """The loop of diffusers' unconditional training example, without accelerate around it."""
    from diffusers import DDPMScheduler
    from diffusers.training_utils import EMAModel

    theirs.train()
    schedule, average = DDPMScheduler(1000), EMAModel(theirs.parameters(), use_ema_warmup=True)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=RATE, betas=(0.95, 0.999), weight_decay=1e-6)

    def step() -> None:
        clean = x[torch.randint(len(x), (BATCH,))]
        noise, k = torch.randn_like(clean), torch.randint(1000, (BATCH,))
        noisy = schedule.add_noise(clean, noise, k)
        if tuned:
            noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=tuned and FAST == torch.bfloat16):
            found = network(noisy, k).sample  # type: ignore[attr-defined]
        loss = F.mse_loss(found.float(), noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(theirs.parameters())

    return step


def ddpm_pytorch(x: Tensor) -> tuple[Step, float]:
    """denoising-diffusion-pytorch's network of about the size in its trainer's steps; and its parameters."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from ema_pytorch import EMA

    model = GaussianDiffusion(Unet(dim=56, dim_mults=(1, 2, 3), full_attn=(False, True, True), flash_attn=False), image_size=32)
    average, optimizer = EMA(model, beta=0.995, update_every=10), torch.optim.Adam(model.parameters(), lr=RATE, betas=(0.9, 0.99))

    def step() -> None:
        loss = model(x[torch.randint(len(x), (BATCH,))] / 2 + 0.5)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()

    return step, sum(p.numel() for p in model.parameters()) / 1e6


def convolutions(model: DDPM) -> Callable[[], None]:
    """The convolutions of 3 x 3 of one step, forward and backward, in bf16 and channels last, and nothing else."""
    met: list[tuple[torch.Size, nn.Conv2d]] = []
    for module in model.modules():
        if isinstance(module, Fusible):
            module.fused = False  # its layers are called where hooks see them
    hooks = [
        m.register_forward_pre_hook(lambda m, i: met.append((i[0].shape, m)))
        for m in model.modules()
        if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)
    ]
    with torch.no_grad():
        model.noise_of(torch.zeros(BATCH, 3, 32, 32), torch.ones(BATCH), model.schema.missing(BATCH))
    for hook in hooks:
        hook.remove()
    form = {"dtype": FAST, "memory_format": torch.channels_last}
    work = []
    for shape, m in met:
        x, weight = torch.randn(shape).to(**form), m.weight.detach().to(**form)  # type: ignore[call-overload]
        y = F.conv2d(x, weight, None, m.stride, m.padding)
        work.append((x, weight, torch.randn_like(y), m))

    def run() -> None:
        for i, (x, weight, dy, m) in enumerate(work):
            F.conv2d(x, weight, None, m.stride, m.padding)
            asked = [i > 0, True, False]  # the image wants no gradient
            torch.ops.aten.convolution_backward(dy, x, weight, None, m.stride, m.padding, m.dilation, False, [0, 0], 1, asked)

    return run


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--compile-within", type=int, default=300, help="seconds that torch.compile may take; 0: do without")


def main() -> None:
    asked = arguments(__doc__, more=options)
    x = Seeds.of(0, IMAGES).normal("images", 3, 32, 32).clamp(-1, 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs, model = pair(SMALL)
            other, size = ddpm_pytorch(x)
    except ImportError as error:
        print(f"  skipped: a peer cannot be imported ({error}); pip install diffusers denoising-diffusion-pytorch")
        return
    limit = convolutions(model)
    said = place(model, "cpu")
    plain, fast, quick = (copy.deepcopy(theirs) for _ in range(3))
    channels_last = [m.to(memory_format=torch.channels_last) for m in (fast, quick)]
    steps: dict[str, Step] = {
        "ours": ours(model, x),
        "diffusers, default": diffusers_loop(plain, x, plain, False),
        "diffusers, tuned": diffusers_loop(channels_last[0], x, channels_last[0], True),
        "denoising-diffusion-pytorch, default": other,
    }
    notes = [
        said,
        f"parameters: {sum(p.numel() for p in theirs.parameters()) / 1e6:.2f} M; denoising-diffusion-pytorch {size:.2f} M",
    ]
    if asked.compile_within:
        compiled = diffusers_loop(channels_last[1], x, torch.compile(channels_last[1]), True)
        took = within(compiled, asked.compile_within)
        if took is not None:
            steps["diffusers, tuned, compiled"] = compiled
            notes.append(f"torch.compile took {took:.0f} s")
    contestants = {name: (BATCH, step) for name, step in steps.items()}
    race("training step, U-Net 32 x 32, batch 64", "images/s", contestants, asked.rounds, (BATCH, limit), "; ".join(notes)).show(
        asked.json
    )


if __name__ == "__main__":
    main()
