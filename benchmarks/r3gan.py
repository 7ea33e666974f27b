"""One training round of R3GAN at 32 x 32 (generator 4.0 M, critic 2.8 M), both penalties in every round, batch 64.

    python -m benchmarks.r3gan          (about ten minutes)

Peers, in the same process and by turns with ours, on the same batches:

    default      the same networks of torch's own layers in a plain loop, as published code has it: float32, real and generated
                 pictures through the critic one after the other, each penalty by autograd.grad(create_graph=True), Adam, and a
                 loop over the parameters for the generator's average
    tuned        the same in bf16 and channels-last, real and generated together, the fused Adam, the average by one call for all
                 (the compiler takes no second derivatives)

Ours is the catalogue's "32px" preset with penalties in every round, and has in it what training has: moved pictures, keyed
noise, the norms that guard against what is not finite. The limit is what the convolutions and matrix products of our own round
take, each alone, once more with its operands as they were (`replayed`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks._turns import FAST, arguments, race, replayed
from nonesuch import catalog
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.gan.r3gan import R3GAN
from nonesuch.train.device import has_bf16, place
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SPEC, LR, BETAS, DECAY = ImageSpec(3, (32, 32)), 2e-4, (0.0, 0.99), 0.999


def ours(model: R3GAN, levels: Tensor, batch: int, precision: str) -> Callable[[], object]:
    model = copy.deepcopy(model)
    place(model, precision=precision)  # type: ignore[arg-type]  # one of its words
    images = Images(SPEC, Schema(), levels, Given(len(levels)))
    return Run(model, images, Recipe(images=1 << 40, batch=batch, lr=LR, betas=BETAS, clip=0.0)).step


class Block(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.spread, self.mix, self.gather = plain(like.spread), plain(like.mix), plain(like.gather)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gather(F.leaky_relu(self.mix(F.leaky_relu(self.spread(x), 0.2)), 0.2))


def plain(like: nn.Module) -> nn.Module:
    """torch's own layer with the same weights."""
    if isinstance(like, nn.Linear):
        layer: nn.Module = nn.Linear(like.in_features, like.out_features, like.bias is not None)
    else:
        padding = [k // 2 for k in like.kernel_size]
        layer = nn.Conv2d(like.in_channels, like.out_channels, like.kernel_size, padding=padding, groups=like.groups)
    layer.load_state_dict(like.state_dict())
    return layer


def stages(like: Sequence[nn.Module]) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(*(Block(block) for block in stage)) for stage in like)


class Generator(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.enter, self.start, self.leave = plain(like.enter), plain(like.start), plain(like.leave)
        self.stages, self.change = stages(like.stages), nn.ModuleList(map(plain, like.change))

    def forward(self, z: Tensor) -> Tensor:
        h = F.leaky_relu(self.start(F.leaky_relu(self.enter(z), 0.2)), 0.2).view(len(z), 4, 4, -1).permute(0, 3, 1, 2)
        for i, stage in enumerate(self.stages):
            h = stage(F.interpolate(self.change[i - 1](h), scale_factor=2) if i else h)
        return self.leave(F.leaky_relu(h, 0.2)).float().tanh()


class Critic(nn.Module):
    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.enter, self.features, self.psi = plain(like.enter), plain(like.features), plain(like.psi)
        self.stages, self.change = stages(like.stages), nn.ModuleList(map(plain, like.change))

    def forward(self, x: Tensor) -> Tensor:
        h = self.enter(x)
        for i, stage in enumerate(self.stages):
            h = stage(self.change[i - 1](F.avg_pool2d(h, 2)) if i else h)
        h = F.leaky_relu(h, 0.2).permute(0, 2, 3, 1).flatten(1)
        return self.psi(F.leaky_relu(self.features(h), 0.2))[:, 0].float()


class Plain:
    """The published loop; `tuned` as the head of this file says."""

    def __init__(self, model: R3GAN, levels: Tensor, batch: int, tuned: bool) -> None:
        self.x, self.batch, self.tuned, self.latent = levels.float() / 127.5 - 1, batch, tuned, model.config.latent
        self.width = model.config.latent + model.config.embed  # an unconditional model's embedding is zeros
        self.g, self.d, self.mean = Generator(model.generator), Critic(model.critic), Generator(model.generator)
        if tuned:
            for net in (self.g, self.d):
                net.to(memory_format=torch.channels_last)
        self.optimizers = [torch.optim.Adam(net.parameters(), LR, BETAS, fused=tuned or None) for net in (self.d, self.g)]

    def _run(self, net: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.tuned and FAST == torch.bfloat16):
            return net(x.contiguous(memory_format=torch.channels_last) if self.tuned and x.dim() == 4 else x)

    def _fake(self) -> Tensor:
        return self._run(
            self.g, torch.cat([torch.randn(self.batch, self.latent), torch.zeros(self.batch, self.width - self.latent)], 1)
        )

    def _scores(self, *pictures: Tensor) -> Sequence[Tensor]:
        if self.tuned:
            return self._run(self.d, torch.cat(pictures)).chunk(len(pictures))
        return [self._run(self.d, x) for x in pictures]

    def __call__(self) -> None:
        real = self.x[torch.randint(len(self.x), (self.batch,))].requires_grad_()
        with torch.no_grad():
            fake = self._fake()
        fake.requires_grad_()
        above, below = self._scores(real, fake)
        slopes = torch.autograd.grad(above.sum() + below.sum(), [real, fake], create_graph=True)
        penalties = [slope.square().flatten(1).sum(1).mean() for slope in slopes]
        self._update(0, F.softplus(below - above).mean() + 0.05 * (penalties[0] + penalties[1]))
        with torch.no_grad():
            above = self._scores(real.detach())[0]
        self.d.requires_grad_(False)
        self._update(1, F.softplus(above - self._scores(self._fake())[0]).mean())
        self.d.requires_grad_(True)
        with torch.no_grad():
            pair = list(self.mean.parameters()), list(self.g.parameters())
            if self.tuned:
                torch._foreach_lerp_(*pair, 1 - DECAY)
            else:
                for mean, p in zip(*pair, strict=True):
                    mean.copy_(p.lerp(mean, DECAY))

    def _update(self, which: int, loss: Tensor) -> None:
        self.optimizers[which].zero_grad()
        loss.backward()
        self.optimizers[which].step()


def alike(model: R3GAN, levels: Tensor) -> float:
    """The largest relative difference between our critic and generator and the peer's, in float32."""
    peer, empty = Plain(model, levels, 4, False), Schema().missing(4)
    x, z = peer.x[:4], Seeds.of(0, 4).normal("z", model.config.latent)
    pairs = [(model.criticise(x, empty), peer.d(x)), (model.generate(z, empty), peer.g(F.pad(z, (0, peer.width - z.shape[1]))))]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def main() -> None:
    asked = arguments(__doc__, more=lambda parser: parser.add_argument("--batch", type=int, default=64))
    levels = (torch.arange(512 * 3072).view(512, 3, 32, 32) * 2654435761 % 2**32 // 2**24).to(torch.uint8)
    model = catalog.build("gan/r3gan", SPEC, Schema(), "32px", penalty_every=1)
    with torch.no_grad():
        for name, p in model.named_parameters():  # the last layers start at zero, which would make a comparison empty
            if float(p.abs().sum()) == 0 and p.dim() > 1:
                p.copy_(Seeds.of(1, 1).normal(name, *p.shape)[0] / p[0].numel() ** 0.5 / 4)
        difference = alike(model, levels)
    fast = "auto" if has_bf16(torch.device("cpu")) else "fp32"
    n, step = asked.batch, ours(model, levels, asked.batch, fast)
    race(
        f"8: R3GAN round with penalties, 32 x 32, batch {n}", "images/s",
        {
            "ours": (n, step),
            "ours, fp32": (n, ours(model, levels, n, "fp32")),
            "plain loop, default": (n, Plain(model, levels, n, False)),
            "plain loop, tuned": (n, Plain(model, levels, n, True)),
        },
        asked.rounds, (n, replayed(step)), f"the same networks: outputs differ by {difference:.0e} in float32",
    ).show(asked.json)  # fmt: skip


if __name__ == "__main__":
    main()
