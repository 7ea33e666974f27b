"""Sampling at equal quality, from the same weights: UniPC in 10 evaluations here, DDIM in 50 and DDPM in 1000 in the peers.

    python -m benchmarks.sampling                                     (trains a small DDPM of digits first; about ten minutes)
    python -m benchmarks.sampling --data fashion_mnist.npz --model runs/fashion --keep runs/fashion/samples
    python -m benchmarks.sampling --data fashion_mnist.npz --train 300k --model runs/fashion

The model is an unconditional DDPM, of pictures that may be folded (`_folded.py`). diffusers has its weights, by `to_diffusers`;
denoising-diffusion-pytorch has a U-Net of its own of about as many parameters, random, and is only timed.

Speed: pictures a second, --batch of them a call, by turns. DDIM takes all of its 50 evaluations; DDPM is timed over 20 of its
thousand, each of the same work, and scaled. *Default* is the pipeline of the peer's README: float32, its own memory layout.
*Tuned* is its network in bf16, channels last and compiled, with its scheduler in float32.

Quality: FD[extractor trained on the training split] of --n samples from all test pictures, with its bootstrap interval, of our
samplers. Those of the peers give the same pictures of the same noise: their schedulers walk beside ours over the same network,
and the relative L2 distance of their ends is printed. DDIM is diffusers' with timestep_spacing="trailing" and the noise taken of
the clipped image, which is ours; what its defaults reach (they begin at step 981 of 1000) is a row of its own. Where DDPM has
fewer pictures (--slow), the others are scored on as many beside it. *off* is the share of values that differ by more than two
levels from the solved flow (UniPC-3 in 200 steps): FD alone does not say that a solver is good.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import nonesuch as ns
from benchmarks._folded import seen, train, unfold
from benchmarks._turns import FAST, arguments, convolutions, race
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.evaluate import frechet_distance
from nonesuch.models.diffusion._diffusers import to_diffusers
from nonesuch.models.diffusion.ddpm import DDPM
from nonesuch.train.device import place

EVALUATIONS, TIMED = 10, 20  # of ours; of DDPM's thousand, those that are timed
OFF = 250  # pictures held against the solved flow
OURS: dict[str, dict[str, Any]] = {
    "UniPC-2, 10": {"sampler": "unipc_2", "steps": 10},
    "UniPC-2, 12": {"sampler": "unipc_2", "steps": 12},
    "DDIM-10": {"sampler": "ddim", "steps": 10},
    "DDIM-50": {"sampler": "ddim", "steps": 50},
    "DDPM-1000": {"sampler": "ddpm"},
}
FLOW = {"sampler": "unipc_3", "steps": 200}
Evaluate = Callable[[Tensor, int], Tensor]  # x_k and the peer's timestep k - 1 -> eps


# -- the peers' samplers over any network


def with_scheduler(scheduler: Any, steps: int, x: Tensor, evaluate: Evaluate, **options: Any) -> Tensor:
    """What a scheduler of diffusers makes of the noise x."""
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(evaluate(x, int(t)), t, x, **options).prev_sample
    return x


def schedulers(folder: Path) -> dict[str, Any]:
    """diffusers' DDIM at its defaults and as ours walks, and its DDPM."""
    from diffusers import DDIMScheduler, DDPMScheduler

    noise = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {
        "DDIM": DDIMScheduler.from_config(noise),
        "trailing": DDIMScheduler.from_config(noise, timestep_spacing="trailing"),
        "DDPM": DDPMScheduler.from_config(noise),
    }


@torch.no_grad()
def parity(model: DDPM, folder: Path, n: int = 4) -> dict[str, float]:
    """Relative L2 between the ends of our samplers and of diffusers', of the same noise in float32 over our network."""
    from diffusers.schedulers import scheduling_ddpm

    place(model, precision="fp32")
    seeds, theirs, given = Seeds.of(0, n), schedulers(folder), model.schema.missing(n)
    x = seeds.normal("x", *model.spec.shape)
    last, found = model.config.timesteps, {}

    def evaluate(x: Tensor, t: int) -> Tensor:
        return model.noise_of(x, torch.full((n,), t + 1), given)

    def distance(options: dict[str, Any], end: Tensor) -> float:
        ours = model.sample(n, seeds=0, **options)
        return float((model.spec.snap(end.clamp(-1, 1)) - ours).norm() / ours.norm())

    walked = with_scheduler(theirs["trailing"], 50, x, evaluate, use_clipped_model_output=True)
    found["DDIM-50"] = distance(OURS["DDIM-50"], walked)
    steps, before = itertools.count(last, -1), scheduling_ddpm.randn_tensor
    scheduling_ddpm.randn_tensor = lambda *_, **__: seeds.normal("step", *model.spec.shape, step=next(steps))
    try:
        found["DDPM-1000"] = distance(OURS["DDPM-1000"], with_scheduler(theirs["DDPM"], last, x, evaluate))
    finally:
        scheduling_ddpm.randn_tensor = before
    place(model)
    return found


# -- quality


def drawn(model: DDPM, n: int, options: dict[str, Any]) -> Tensor:
    return model.sample(n, seeds=0, **options)


@torch.no_grad()
def default_ddim(model: DDPM, n: int, folder: Path, batch: int = 250) -> Tensor:
    """n pictures by diffusers' DDIM at its defaults, over our network."""

    def walked(rows: Seeds) -> Tensor:
        given = model.schema.missing(len(rows))
        start = rows.normal("x", *model.spec.shape)
        end = with_scheduler(
            schedulers(folder)["DDIM"], 50, start, lambda x, t: model.noise_of(x, torch.full((len(x),), t + 1), given)
        )
        return model.spec.snap(end.clamp(-1, 1))

    return torch.cat([walked(Seeds.of(0, min(batch, n - i), start=i)) for i in range(0, n, batch)])


def quality(model: DDPM, data: Any, name: str, n: int, slow: int, keep: Path, folder: Path | None) -> Iterator[dict[str, Any]]:
    """Of each sampler: FD with its interval at n, and at as many as the slow one has; the share of values off the flow."""
    extractor, test = seen(data, name)

    def kept(key: str, count: int, make: Callable[[], Tensor]) -> Tensor:
        file = keep / f"{key.replace(', ', '-')}.safetensors"
        if not file.is_file() or len(load_file(file)["x"]) < count:
            keep.mkdir(parents=True, exist_ok=True)
            save_file({"x": make()}, file)
        return load_file(file)["x"][:count]

    solved = kept("flow", OFF, lambda: drawn(model, OFF, FLOW))
    rows: dict[str, Callable[[], Tensor]] = {k: partial(drawn, model, n, o) for k, o in OURS.items() if k != "DDPM-1000"}
    if folder:
        rows["DDIM-50, diffusers' defaults"] = partial(default_ddim, model, n, folder)
    counts = dict.fromkeys(rows, n)
    if slow:
        rows["DDPM-1000"], counts["DDPM-1000"] = partial(drawn, model, slow, OURS["DDPM-1000"]), slow
    for key, make in rows.items():
        x = kept(key, counts[key], make)
        row: dict[str, Any] = {"sampler": key}
        for count in sorted({min(len(x), slow or n), len(x)}, reverse=True):
            score = frechet_distance(extractor.features(unfold(x[:count], model, data.spec), "samples"), test)
            row[f"FD, n={count}"] = [score.value, *(score.interval or ())]
        if key != "DDPM-1000":
            row["off"] = float(((x[:OFF] - solved[: len(x)]).abs() > 2.5 * model.spec.step).float().mean())
        yield row


# -- speed


def ours(model: DDPM, batch: int) -> Callable[[], object]:
    return lambda: model.sample(batch, seeds=1, sampler="unipc_2", steps=EVALUATIONS)


def of_diffusers(folder: Path, batch: int, compile_it: bool) -> dict[str, tuple[float, Callable[[], object]]]:
    """diffusers' pipelines at their defaults, and its network tuned, under DDIM and under its own UniPC."""
    from diffusers import DDIMPipeline, DDPMPipeline, UNet2DModel, UniPCMultistepScheduler

    network = UNet2DModel.from_pretrained(folder / "unet").eval()
    fast = UNet2DModel.from_pretrained(folder / "unet").eval().to(FAST).to(memory_format=torch.channels_last)
    called = torch.compile(fast) if compile_it else fast
    kinds = schedulers(folder)
    ddim, ddpm = DDIMPipeline(network, kinds["DDIM"]), DDPMPipeline(network, kinds["DDPM"])
    for pipeline in (ddim, ddpm):
        pipeline.set_progress_bar_config(disable=True)
    channels, side = network.config.in_channels, network.config.sample_size
    unipc = UniPCMultistepScheduler.from_config(kinds["DDIM"].config)

    def evaluate(x: Tensor, t: int) -> Tensor:
        x = x.to(FAST).contiguous(memory_format=torch.channels_last)
        return called(x, t).sample.float()

    @torch.no_grad()
    def tuned(scheduler: Any, steps: int) -> Tensor:
        return with_scheduler(scheduler, steps, torch.randn(batch, channels, *side), evaluate)

    how = ("bf16" if FAST == torch.bfloat16 else "float32") + " channels-last" + (" compiled" if compile_it else "")
    return {
        "diffusers DDIM-50, default": (batch, lambda: ddim(batch, num_inference_steps=50, output_type="np")),
        "diffusers DDPM-1000, default": (
            batch * TIMED / 1000, lambda: ddpm(batch, num_inference_steps=TIMED, output_type="np")
        ),
        f"diffusers DDIM-50, {how}": (batch, lambda: tuned(kinds["DDIM"], 50)),
        f"diffusers DDPM-1000, {how}": (batch * TIMED / 1000, lambda: tuned(kinds["DDPM"], TIMED)),
        f"diffusers UniPC-10, {how}": (batch, lambda: tuned(unipc, EVALUATIONS)),
    }  # fmt: skip


def of_denoising_diffusion(model: DDPM, batch: int) -> dict[str, tuple[float, Callable[[], object]]]:
    """denoising-diffusion-pytorch's sampling with its own U-Net, the width whose parameters are nearest to ours."""
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet
    from denoising_diffusion_pytorch import denoising_diffusion_pytorch as module

    module.tqdm = lambda it, **_: it
    count, c = sum(p.numel() for p in model.parameters()), model.config

    def network(dim: int) -> nn.Module:
        return Unet(dim=dim, dim_mults=c.mults, channels=model.spec.channels, flash_attn=False)

    with torch.device("meta"):
        sizes = {dim: sum(p.numel() for p in network(dim).parameters()) for dim in range(16, 129, 8)}
    dim = min(sizes, key=lambda d: abs(sizes[d] - count))
    theirs = network(dim).eval()
    form = {"image_size": model.spec.size[0], "beta_schedule": "linear"}
    ddim = GaussianDiffusion(theirs, timesteps=1000, sampling_timesteps=50, **form)
    ddpm = GaussianDiffusion(theirs, timesteps=TIMED, **form)
    name = f"denoising-diffusion-pytorch ({sizes[dim] / 1e6:.2f} M)"
    return {
        f"{name} DDIM-50": (batch, lambda: ddim.sample(batch_size=batch)),
        f"{name} DDPM-1000": (batch * TIMED / 1000, lambda: ddpm.sample(batch_size=batch)),
    }


def speed(model: DDPM, folder: Path | None, asked: argparse.Namespace) -> None:
    contestants = {f"ours, UniPC-2 in {EVALUATIONS}": (float(asked.batch), ours(model, asked.batch))}
    if folder:
        contestants |= of_diffusers(folder, asked.batch, not asked.no_compile)
    try:
        contestants |= of_denoising_diffusion(model, asked.batch)
    except ImportError as error:
        print(f"  (without denoising-diffusion-pytorch, which cannot be imported: {error})")
    one = model.sample_steps(asked.batch, steps=1)
    limit = (asked.batch / EVALUATIONS, convolutions(model.unet, lambda: next(one)))
    size = f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M, {'x'.join(map(str, model.spec.shape))}"
    note = f"DDPM timed over {TIMED} of 1000 evaluations and scaled; the limit is the convolutions of {EVALUATIONS} evaluations"
    race(f"sampling, DDPM of {size}, batch {asked.batch}", "pictures/s", contestants, asked.rounds, limit, note).show(asked.json)


def said(row: dict[str, Any]) -> str:
    """One line of a row: FD with its interval, and the share that is off."""
    fds = [f"{k} {v[0]:.4f} ({v[1]:.4f} to {v[2]:.4f})" for k, v in row.items() if k.startswith("FD")]
    return f"{row['sampler']:30}" + "  ".join(fds) + (f"  off {row['off']:.2%}" if "off" in row else "")


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", default="digits", help='"digits", or an .npz file of pictures of one channel')
        parser.add_argument("--model", help="the model's folder: read if there is one, and otherwise written")
        parser.add_argument("--train", default="134144", help="images, or a time such as 90s, for a model that is not there")
        parser.add_argument("--batch", type=int, default=64)
        parser.add_argument("--n", type=int, default=5000, help="samples whose quality is measured; 0: none")
        parser.add_argument("--slow", type=int, default=0, help="and of DDPM-1000: a million evaluations a thousand")
        parser.add_argument("--keep", help="a folder that keeps the samples, so that a second run only scores them")
        parser.add_argument("--no-compile", action="store_true")
        parser.add_argument("--no-speed", action="store_true")

    asked = arguments(__doc__, more=more)
    warnings.simplefilter("ignore")  # the peers' own
    with tempfile.TemporaryDirectory() as temporary:
        at = Path(asked.model or Path(temporary) / "model")
        model: Model = ns.load(at) if (at / "config.json").is_file() else train(asked.data, asked.train, at)
        assert isinstance(model, DDPM), "the benchmark is of a DDPM"
        written = Path(temporary) / "diffusers"
        to_diffusers(model, written)
        folder: Path | None = written
        try:
            for name, distance in parity(model, written).items():
                print(f"  {name}: relative L2 to diffusers' scheduler {distance:.1e}", flush=True)
        except ImportError as error:
            print(f"  (without diffusers, which cannot be imported: {error}; pip install diffusers)")
            folder = None
        if not asked.no_speed:
            speed(model, folder, asked)
        if asked.n:
            keep = Path(asked.keep or Path(temporary) / "samples")
            for row in quality(model, ns.data.open(asked.data), Path(asked.data).stem, asked.n, asked.slow, keep, folder):
                print(json.dumps(row) if asked.json else f"  {said(row)}", flush=True)


if __name__ == "__main__":
    main()
