"""Training a VQ-VAE on 28 x 28 pictures, the ResNet that pythae has for MNIST: images a second of training steps.

    python -m benchmarks.vqvae          (about five minutes on two cores, most of it the default peer and compiling the tuned one)

The network, on both sides: convolutions 1-64-128-128, 4 x 4 and 3 x 3, stride 2; two residual blocks; 512 codes of 16 numbers,
learned by descent; two residual blocks; transposed convolutions 128-128-64-1. 0.68 M parameters, Adam, the same batch.

    ours       a round of `Run.step` of the preset "mnist" of vae/vqvae: batches from memory, the squared error with a learned
               deviation, codebook and commitment terms, clipping, Adam, the average of weights
    default    pythae's BaseTrainer.train_step as it comes: its DataLoader, float32, torch's Adam
    tuned      pythae's model with encoder and decoder in bf16 and channels-last, batches from memory, fused Adam; eager, and with
               encoder and decoder compiled, where there is a compiler

Before the race the peer's weights are put into ours (`from_pythae`) and both reconstruct the same pictures from the same codes:
the relative L2 of the difference, and the share of equal codes stand in the note. Limits, in the same rounds: "limit" is what the
convolutions of the network alone allow, forward and backward in what is quickest and channels-last by torch's kernels, nothing
between them, no optimizer; "as products" is the same arithmetic as plain matrix products.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._turns import FAST, Line, arguments, race
from nonesuch import catalog
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.vae.vqvae import VQVAE
from nonesuch.train.device import has_bf16, place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC = ImageSpec(1, (28, 28))
LAYERS = [  # transposed?, in, out, kernel, stride, padding, output padding, side of the input
    (False, 1, 64, 4, 2, 1, 0, 28), (False, 64, 128, 4, 2, 1, 0, 14), (False, 128, 128, 3, 2, 1, 0, 7),
    *[(False, 128, 32, 3, 1, 1, 0, 4), (False, 32, 128, 1, 1, 0, 0, 4)] * 2, (False, 128, 16, 1, 1, 0, 0, 4),
    (False, 16, 128, 1, 1, 0, 0, 4), (True, 128, 128, 3, 2, 1, 0, 4),
    *[(False, 128, 32, 3, 1, 1, 0, 7), (False, 32, 128, 1, 1, 0, 0, 7)] * 2,
    (True, 128, 64, 3, 2, 1, 1, 7), (True, 64, 1, 3, 2, 1, 1, 14),
]  # fmt: skip


def pictures(n: int) -> Tensor:
    """Blurred noise with black margins, levels (n, 1, 28, 28): the speed does not depend on what is in them."""
    noise = Seeds.of(0, n).uniform("picture", 1, 9, 9)
    smooth = F.interpolate(noise, (28, 28), mode="bilinear").sub(0.5).mul(4).clamp(0, 1)
    return (smooth * 255).round().to(torch.uint8)


# -- ours


def network(precision: str) -> VQVAE:
    model = catalog.build("vae/vqvae", SPEC, Schema(), "mnist")
    assert isinstance(model, VQVAE)
    place(model, precision=precision)  # type: ignore[arg-type]
    return model


def ours(levels: Tensor, batch: int, count: int, precision: str = "auto") -> Callable[[], object]:
    images, model = Images(SPEC, Schema(), levels, Given(len(levels))), network(precision)
    model.prepare(images.x[:256], images.given[:256])
    run = Run(model, images, Recipe(images=1 << 24, batch=batch, lr=1e-4))

    def train() -> None:
        for _ in range(count // batch):
            run.step()

    return train


# -- pythae's


def pythae() -> nn.Module:
    from pythae.models import VQVAE as Theirs
    from pythae.models import VQVAEConfig
    from pythae.models.nn.benchmarks.mnist import Decoder_ResNet_VQVAE_MNIST, Encoder_ResNet_VQVAE_MNIST

    config = VQVAEConfig(input_dim=SPEC.shape, latent_dim=16)
    model: nn.Module = Theirs(config, encoder=Encoder_ResNet_VQVAE_MNIST(config), decoder=Decoder_ResNet_VQVAE_MNIST(config))
    return model


def by_default(levels: Tensor, batch: int, count: int) -> Callable[[], object]:
    from pythae.data.datasets import BaseDataset
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    folder = tempfile.mkdtemp()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            config = BaseTrainerConfig(output_dir=folder, per_device_train_batch_size=batch, num_epochs=1)
            data = BaseDataset(levels[:count].float() / 255, torch.ones(count))
            trainer = BaseTrainer(pythae(), data, training_config=config)
            trainer.prepare_training()
    finally:
        shutil.rmtree(folder, ignore_errors=True)

    def train() -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
            trainer.train_step(1)

    return train


class InHalf(nn.Module):
    """A network of pythae's in bf16 and channels-last, with float32 in and out."""

    def __init__(self, net: nn.Module, name: str, compiled: bool) -> None:
        super().__init__()
        self.net, self.name, self.bf16 = net.to(memory_format=torch.channels_last), name, has_bf16(torch.device("cpu"))
        self.run = torch.compile(self._run) if compiled else self._run

    def _run(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            out: Tensor = self.net(x)[self.name]
        return out.float()

    def forward(self, x: Tensor) -> Any:
        from pythae.models.base.base_utils import ModelOutput

        return ModelOutput(**{self.name: self.run(x.contiguous(memory_format=torch.channels_last))})


def tuned(levels: Tensor, batch: int, count: int, compiled: bool) -> Callable[[], object]:
    model: Any = pythae()
    model.encoder = InHalf(model.encoder, "embedding", compiled)
    model.decoder = InHalf(model.decoder, "reconstruction", compiled)
    optimizer, x = torch.optim.Adam(model.parameters(), lr=1e-4, fused=True), levels[:count].float() / 255

    def train() -> None:
        order = torch.randperm(count)
        for i in range(count // batch):
            loss = model({"data": x[order[i * batch : (i + 1) * batch]]}).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return train


@torch.no_grad()
def from_pythae(theirs: nn.Module, model: VQVAE) -> VQVAE:
    """Put the weights of pythae's network into ours."""
    state = theirs.state_dict()
    names = {"codebook.vectors": "quantizer.embeddings.weight"}
    for kind in ("weight", "bias"):
        names |= {f"encoder.halve.{i}.{kind}": f"encoder.layers.{i}.0.{kind}" for i in range(3)}
        for i in range(2):
            for ours, index in (("enter", 1), ("leave", 3)):
                names[f"encoder.blocks.{i}.{ours}.{kind}"] = f"encoder.layers.3.{i}.conv_block.{index}.{kind}"
                names[f"decoder.blocks.{i}.{ours}.{kind}"] = f"decoder.layers.2.{i}.conv_block.{index}.{kind}"
        names[f"encoder.leave.{kind}"] = f"encoder.pre_qantized.{kind}"
        names[f"decoder.enter.{kind}"] = f"decoder.layers.0.{kind}"
        names |= {f"decoder.grow.{i}.{kind}": f"decoder.layers.{p}.{kind}" for i, p in enumerate(("1", "3.0", "4.0"))}
    for name, p in model.named_parameters():
        if name not in names:
            continue
        w = state[names[name]]
        if name == "decoder.enter.weight":  # theirs is a transposed convolution of one pixel
            w = w.transpose(0, 1)
        elif w.dim() == 4 and "leave" not in name:
            w = w.movedim(1, -1)
        p.copy_(w)
    model.images_seen.fill_(1)
    return model


@torch.no_grad()
def parity(levels: Tensor) -> str:
    """The same weights and pictures through both networks: a sentence of how far apart what comes out is."""
    theirs, x = pythae().eval(), levels[:64].float() / 255
    for p in theirs.parameters():  # its first weights hardly answer to a picture; larger ones do, as after training
        p.mul_(2.4 if p.dim() == 4 else 200 if p.shape[0] == 512 else 1)
    out = theirs({"data": x})
    said = []
    for precision in ("fp32", "bf16"):
        model = from_pythae(theirs, network(precision))
        k = model.encode(SPEC.from_levels(levels[:64]))
        same = float((k.flatten() == out.quantized_indices.flatten()).float().mean())
        found = (model.decode(out.quantized_indices.view_as(k)) + 1) / 2
        apart = float((found - out.recon_x).norm() / out.recon_x.norm())
        said.append(f"{precision}: relative L2 {apart:.1e}, {100 * same:.1f} % of codes equal")
    return "parity of reconstructions, " + "; ".join(said)


# -- limits


def convolutions(batch: int) -> Callable[[], object]:
    """Every convolution of the network once, forward and backward, in what is quickest and channels-last by torch's kernels."""
    work = []
    for transposed, a, b, k, s, p, o, side in LAYERS:
        layer: nn.Module = nn.ConvTranspose2d(a, b, k, s, p, o) if transposed else nn.Conv2d(a, b, k, s, p)
        layer = layer.to(dtype=FAST, memory_format=torch.channels_last)
        x = torch.randn(batch, a, side, side).to(dtype=FAST, memory_format=torch.channels_last)
        wanted = [*layer.parameters()] + ([x.requires_grad_()] if a > 1 else [])
        work.append((layer, x, wanted, torch.randn_like(layer(x))))

    def run() -> None:
        for layer, x, wanted, g in work:
            torch.autograd.grad(layer(x), wanted, g)

    return run


def products(batch: int) -> Callable[[], object]:
    """The same arithmetic as matrix products: three for each layer, two for the first."""
    work = []
    for transposed, a, b, k, s, p, _, side in LAYERS:
        rows = side if transposed else (side + 2 * p - k) // s + 1
        inner, outer = (a, b * k * k) if transposed else (a * k * k, b)
        x, y = (torch.randn(batch * rows * rows, n).to(FAST) for n in (inner, outer))
        work.append((x, y, torch.randn(inner, outer).to(FAST), a > 1))

    def run() -> None:
        for x, y, w, deep in work:
            x @ w
            x.t() @ y
            if deep:
                F.linear(y, w)

    return run


def measure(batch: int, count: int, rounds: int, compiled: bool) -> Line:
    levels = pictures(count)
    contestants = {"ours": (float(count), ours(levels, batch, count))}
    note = "pythae is not installed: no peer; pip install pythae"
    with contextlib.suppress(ImportError):
        contestants["pythae, default"] = (float(count), by_default(levels, batch, count))
        contestants["pythae, tuned"] = (float(count), tuned(levels, batch, count, False))
        if compiled:
            contestants["pythae, tuned and compiled"] = (float(count), tuned(levels, batch, count, True))
        note = parity(levels)
    contestants["ours, float32"] = (float(count), ours(levels, batch, count, "fp32"))
    contestants["as products"] = (float(batch), products(batch))
    row = f"VQ-VAE, pythae's ResNet for MNIST: training, batches of {batch}, {count:,} images a turn"
    return race(row, "images/s", contestants, rounds, (float(batch), convolutions(batch)), note)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--batch", type=int, nargs="+", default=[64, 256])
        parser.add_argument("--images", type=int, default=2048, help="how many are trained on at a turn")
        parser.add_argument("--eager", action="store_true", help="leave out the compiled peer")

    asked = arguments(__doc__, more=more)
    for batch in asked.batch:
        measure(batch, asked.images, asked.rounds, not asked.eager).show(asked.json)


if __name__ == "__main__":
    main()
