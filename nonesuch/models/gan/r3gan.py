"""R3GAN: a generator against a relativistic critic, with zero-centred gradient penalties on both sides of it.

    y = G(z, given),  z ~ N(0, I)

`_adversarial.py` has the law and its equations, `_networks.py` the two networks. Of the paper's recipe this keeps the loss,
both penalties, the networks without normalisation, and the fall of gamma over the run. Three things are for few images, small
nets and two cores: augmentations that do not leak (`_augment.py`), penalties at every k-th round with k times their weight
(which rounds is a function of the clock), and uniform noise of one level on what the critic sees, real or generated, so that
the grid of the real images' levels is not what gives the generated ones away.

References:
    The GAN is dead; long live the GAN! A Modern GAN Baseline (Huang et al., 2025) arXiv:2501.05441
    Analyzing and Improving the Image Quality of StyleGAN (Karras et al., 2020) arXiv:1912.04958, appendix B (lazy penalties)
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Decoder, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.gan._adversarial import held, pairing_loss, squared_gradient
from nonesuch.models.gan._augment import augment, numbers
from nonesuch.models.gan._networks import Critic, Shape, Synthesis
from nonesuch.nn.embed import GivenEmbedding


@dataclass(frozen=True)
class Config:
    """Sizes of the two players and weights of the game.

    latent: numbers in z; embed: length of the condition's vector in either player, and of the critic's features.
    widths: channels from the finest resolution to the coarsest, each half the size of the one before.
    blocks: residual blocks at each of these; expansion: how much wider a block is inside; group: channels a group there.
    gamma, gamma_end: weight of both penalties at the start and at the end of a run, geometric between.
    penalty_every: rounds from one computation of the penalties to the next.
    augment: probability of each augmentation; noise: uniform noise on the critic's images, in levels.
    critic_lr: the critic's learning rate relative to the generator's.
    """

    latent: int = 64
    embed: int = 64
    widths: tuple[int, ...] = (32, 64)
    blocks: tuple[int, ...] = (0, 1)
    expansion: float = 2.0
    group: int = 16
    gamma: float = 0.2
    gamma_end: float = 0.02
    penalty_every: int = 4
    augment: float = 0.2
    noise: float = 1.0
    critic_lr: float = 3.0


_RECIPE = {"batch": 64, "lr": 2e-3, "betas": (0.0, 0.99), "clip": 0.0}

PRESETS = {
    "tiny":   Preset({"latent": 8, "embed": 8, "widths": (8, 16), "blocks": (1, 1), "group": 8, "expansion": 1.0}, _RECIPE),
    "digits": Preset({"augment": 0.4}, {**_RECIPE, "batch": 128}, up_to_px=16,
                     reached="digits given label, test: CAS 0.98 after 290k images, 90 s of one core"),
    "32px":   Preset({"widths": (64, 128, 256, 256), "blocks": (2,) * 4, "latent": 64, "embed": 256}, _RECIPE, up_to_px=32),
    "64px":   Preset({"widths": (64, 128, 256, 256, 256), "blocks": (2,) * 5, "latent": 64, "embed": 256}, _RECIPE, up_to_px=64),
}  # fmt: skip


class R3GAN(Model, Decoder):
    """A generator and its critic; samples in one pass and has no likelihood."""

    card = Card(
        title="The GAN is dead; long live the GAN! A Modern GAN Baseline",
        authors="Huang, Yiwen and Gokaslan, Aaron and Kuleshov, Volodymyr and Tompkin, James",
        year=2025,
        arxiv="2501.05441",
        summary="A relativistic critic with zero-centred gradient penalties; one pass to sample, no likelihood.",
    )
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError("a generator's images must be differentiable, and categories are not; use an autoregressive model.")
        if len(config.widths) != len(config.blocks) or not config.widths:
            raise ValueError("give as many blocks as widths, one number for each resolution.")
        self.bounded = spec.kind == "ordinal" or spec.value_range is not None
        self.latent_spec = ImageSpec(config.latent, (), axes="", kind="continuous", levels=None, dtype="float32")
        # A vector is a line of one pixel, and needs no neighbours.
        size, kernel = (spec.size, 3) if spec.axes else ((1,), 1)
        shape = Shape(size, tuple(config.widths), tuple(config.blocks), config.expansion, config.group, kernel)
        self.generator_embed = GivenEmbedding(schema, config.embed)
        self.generator = Synthesis(config.latent + config.embed, spec.channels, shape)
        self.critic_embed = GivenEmbedding(schema, config.embed)
        self.critic = Critic(config.embed, spec.channels, shape)

    # -- the game --------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        critic = [*self.critic.parameters(), *self.critic_embed.parameters()]
        generator = [*self.generator.parameters(), *self.generator_embed.parameters()]
        return [
            Objective(
                "critic", critic, self._critic_terms, average=False, lr_scale=self.config.critic_lr, second_derivatives=True
            ),
            Objective("generator", generator, self._generator_terms),
        ]

    def _critic_terms(self, batch: Batch) -> Terms:
        with torch.no_grad():
            fake = self.generate(batch.keys.normal("critic/z", self.config.latent, device=batch.x.device), batch.given)
        both = self._seen(batch.x, fake, batch.keys, "critic")
        penalised = (batch.images // batch.size) % self.config.penalty_every == 0
        logits = self.criticise(both.requires_grad_(penalised), batch.given + batch.given)
        real, generated = logits.chunk(2)
        loss = {"critic": pairing_loss(real, generated)}
        if penalised:
            r1, r2 = squared_gradient(logits, both).chunk(2)
            weight = self.config.penalty_every * self._gamma(batch.progress) / 2
            loss |= {"r1": weight * r1.mean(), "r2": weight * r2.mean()}
        return Terms(loss, {"real_above_generated": (real > generated).float().mean()})

    def _generator_terms(self, batch: Batch) -> Terms:
        fake = self.generate(batch.keys.normal("generator/z", self.config.latent, device=batch.x.device), batch.given)
        real, fake = self._seen(batch.x, fake, batch.keys, "generator").chunk(2)
        with torch.no_grad():
            above = self.criticise(real, batch.given)
        with held(self.critic, self.critic_embed):
            below = self.criticise(fake, batch.given)
        return Terms({"generator": pairing_loss(below, above)})

    def _gamma(self, progress: float) -> float:
        """The penalties' weight, from gamma to gamma_end in equal ratios."""
        return float(math.exp((1 - progress) * math.log(self.config.gamma) + progress * math.log(self.config.gamma_end)))

    def _seen(self, real: Tensor, fake: Tensor, keys: Seeds, name: str) -> Tensor:
        """Both batches (2 B, C, *size) as the critic gets to see them: each pair through the same window, with the same noise."""
        dims, p = len(self.spec.size), self.config.augment
        noise = self.spec.numel if self.spec.levels and self.config.noise else 0
        u = keys.uniform(name, numbers(dims) + noise, device=real.device)
        both, twice = torch.cat([real, fake]), torch.cat([u, u])
        if dims and p:
            both = augment(both, twice[:, : numbers(dims)], p, colour=self.spec.kind == "ordinal")
        if noise:
            both = both + (twice[:, numbers(dims) :].view_as(both) - 0.5) * (self.spec.step * self.config.noise)
        return both

    # -- the players -----------------------------------------------------------------------------------------------------------

    def generate(self, z: Tensor, given: Given) -> Tensor:
        """G(z | given): images (B, C, *size) float32 in [-1, 1] of latents z (B, latent), not on levels; differentiable."""
        c = self.generator_embed(given, len(z), z.device)
        x = self.generator(torch.cat([z, c], 1).to(self.compute_dtype)).float()
        x = x.tanh() if self.bounded else x
        return x.view(len(z), *self.spec.shape)

    def criticise(self, x: Tensor, given: Given) -> Tensor:
        """D(x | given): logits (B,) float32 of images x (B, C, *size); only differences of them mean anything."""
        c = self.critic_embed(given, len(x), x.device)
        logits: Tensor = self.critic((x if self.spec.axes else x[..., None]).to(self.compute_dtype), c)
        return logits

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        if options:
            raise ValueError(f"this sampler has no option {next(iter(options))!r}.")
        yield Step(1, 1, self.spec.snap(self.generate(self._prior(given, seeds), given)))

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        return self.generate(z, given)
