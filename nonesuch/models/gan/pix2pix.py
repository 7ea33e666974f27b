"""pix2pix: a picture made of a picture, by a pixel loss, a critic of patches that sees both, and the critic's own features.

    x = G(y, z, given),    y the Image column, z noise on y's grid

    generator   pixel E rho(x - G)  +  adversarial E f(D(G | y) - D(x | y))  +  features E |phi(x) - phi(G)|              (1)
    critic      E f(D(x | y) - D(G | y))  +  R1 + R2                                                                      (2)

The pixel loss alone gives the middle of all pictures that y may come from, which is sharp nowhere; the critic asks for one of
them. rho is Charbonnier's smooth absolute value, phi are the features of the critic's stages, and the game is that of
`_adversarial.py`, patch by patch: relativistic pairs (each G is held against its own x, as in ESRGAN) with penalties on both
sides, where pix2pix has a cross-entropy and batch normalisation. With `adversarial` and `features` 0 there is no critic, and the
model is the regression that such models are measured against (preset "regression").

Where the picture is smaller than what is made of it, this is super-resolution: all work is on the small grid (`_translation.py`).

Convolutions know a neighbourhood. Where the answer hangs on the whole picture (how dark is it, how flat), `glance` features of
all of it change c and send y through curves before anything else is done (`_translation.Glance`); tiles of a picture share them.

What is honest to say of z: pix2pix is nearly deterministic. The pixel loss pays for ignoring noise, and only the critic pays for
using it, so samples of one y differ in fine detail and not in kind. A model of P(x | y) with all its width is a diffusion model.

References:
    Image-to-Image Translation with Conditional Adversarial Networks (Isola et al., 2016) arXiv:1611.07004
    ESRGAN: Enhanced Super-Resolution Generative Adversarial Networks (Wang et al., 2018) arXiv:1809.00219, sections 3.2, 3.3
    High-Resolution Image Synthesis and Semantic Manipulation with Conditional GANs (Wang et al., 2017) arXiv:1711.11585
    Deep Laplacian Pyramid Networks for Fast and Accurate Super-Resolution (Lai et al., 2017) arXiv:1704.03915 (Charbonnier's rho)
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
from nonesuch.core.model import Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.core.translator import Translator
from nonesuch.models.gan._adversarial import held, pairing_loss, squared_gradient
from nonesuch.models.gan._networks import Shape
from nonesuch.models.gan._translation import Glance, PatchCritic, Plan, Translation, matching, picture_column
from nonesuch.nn.bicubic import enlarge
from nonesuch.nn.embed import GivenEmbedding

_SMOOTH = 1e-3  # where rho turns from a square to an absolute value, on [-1, 1]


@dataclass(frozen=True)
class Config:
    """Sizes of the two players and weights of the game.

    widths, blocks: channels and residual blocks of the generator on the given picture's grid and on coarser ones, each half
    of the one before; tail: channels after enlarging; noise: channels of noise (0: the generator is deterministic).
    glance: features of the whole picture that every part of it is told (0: none).
    critic_widths, critic_blocks: the same of the critic, from the made picture's grid on.
    pixel, adversarial, features: weights of the generator's terms (Eq. 1).
    gamma: weight of the critic's penalties; penalty_every: rounds between them; critic_lr: relative to the generator's.
    """

    widths: tuple[int, ...] = (48,)
    blocks: tuple[int, ...] = (8,)
    tail: int = 24
    noise: int = 4
    glance: int = 0
    critic_widths: tuple[int, ...] = (32, 64, 128)
    critic_blocks: tuple[int, ...] = (0, 1, 1)
    pixel: float = 1.0
    adversarial: float = 0.02
    features: float = 0.1
    gamma: float = 0.1
    penalty_every: int = 4
    critic_lr: float = 1.0


_RECIPE = {"batch": 16, "lr": 5e-4, "betas": (0.5, 0.99), "clip": 0.0, "hide": 0.0}
_REGRESSION = {"batch": 16, "lr": 1e-3, "hide": 0.0}
_UNET = {"widths": (32, 64, 96), "blocks": (1, 1, 2), "adversarial": 0.5, "features": 0.5}

PRESETS = {
    "tiny":       Preset({"widths": (16, 16), "blocks": (1, 1), "tail": 8, "critic_widths": (8, 16), "critic_blocks": (1, 1),
                          "adversarial": 0.3}, {**_RECIPE, "lr": 2e-3}),
    "32px":       Preset(_UNET, {**_RECIPE, "batch": 32, "lr": 1e-3}, up_to_px=32),
    "photo":      Preset({}, _RECIPE, up_to_px=256),
    "regression": Preset({"adversarial": 0.0, "features": 0.0, "noise": 0}, _REGRESSION),
}  # fmt: skip


class Pix2Pix(Model, Translator):
    """A generator of pictures from pictures and, unless it is a mere regression, its critic."""

    card = Card(
        title="Image-to-Image Translation with Conditional Adversarial Networks",
        authors="Isola, Phillip and Zhu, Jun-Yan and Zhou, Tinghui and Efros, Alexei A.",
        year=2016,
        arxiv="1611.07004",
        summary="Pictures from pictures in one pass: pixel loss, patch critic, feature matching; nearly deterministic.",
    )
    Config = Config
    presets = PRESETS

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.column, given, self.ratio, others = picture_column(schema, spec, "pix2pix")
        if min(config.pixel, config.adversarial, config.features) < 0 or config.pixel + config.adversarial == 0:
            raise ValueError("the weights pixel, adversarial and features must not be negative, nor the first two both 0.")
        self.bounded = spec.kind == "ordinal" or spec.value_range is not None
        dims = len(spec.size)
        beside = config.noise + (given.channels if config.glance else 0)
        plan = Plan(
            dims, given.channels, spec.channels, self.ratio, tuple(config.widths), tuple(config.blocks), config.tail, beside
        )
        self.reach, self.multiple, self.deterministic = plan.reach, plan.multiple, config.noise == 0
        self.generator, self.generator_embed = Translation(plan), GivenEmbedding(others, config.widths[0])
        self.looks = Glance(dims, given.channels, config.glance, config.widths[0]) if config.glance else None
        self.plays = config.adversarial + config.features > 0
        if self.plays:
            shape = Shape(spec.size, tuple(config.critic_widths), tuple(config.critic_blocks), 1.0, 8, 3)
            self.critic = PatchCritic(spec.channels + given.channels, shape)
            self.critic_embed = GivenEmbedding(others, config.critic_widths[-1])

    # -- the game --------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        looks = self.looks.parameters() if self.looks else ()
        generator = [*self.generator.parameters(), *self.generator_embed.parameters(), *looks]
        players = [Objective("generator", generator, self._generator_terms)]
        if self.plays:
            critic, lr = [*self.critic.parameters(), *self.critic_embed.parameters()], self.config.critic_lr
            first = Objective("critic", critic, self._critic_terms, average=False, lr_scale=lr, second_derivatives=True)
            players.insert(0, first)
        return players

    def _critic_terms(self, batch: Batch) -> Terms:
        with torch.no_grad():
            fake = self.generate(self._picture(batch.given), batch.given, batch.keys, "critic/noise")
        penalised = (batch.images // batch.size) % self.config.penalty_every == 0
        both = self._seen(batch.x, fake, batch.keys, "critic/grid").requires_grad_(penalised)
        logits, _ = self.criticise(both, batch.given + batch.given)
        real, made = logits.chunk(2)
        loss = {"critic": pairing_loss(real, made)}  # Eq. 2
        if penalised:
            whole = logits.sum(1) / math.sqrt(logits.shape[1])  # so that a picture's penalty is that of its mean patch
            r1, r2 = squared_gradient(whole, both).chunk(2)
            weight = self.config.penalty_every * self.config.gamma / 2
            loss |= {"r1": weight * r1.mean(), "r2": weight * r2.mean()}
        return Terms(loss, {"real_above_made": (real > made).float().mean()})

    def _generator_terms(self, batch: Batch) -> Terms:
        config = self.config
        fake = self.generate(self._picture(batch.given), batch.given, batch.keys, "generator/noise")
        off = fake - batch.x
        loss = {"pixel": config.pixel * (off.square() + _SMOOTH**2).sqrt().mean()}  # Eq. 1
        watch = {"rmse": off.detach().square().mean().sqrt()}
        if self.plays:
            real, seen = self._seen(batch.x, fake, batch.keys, "generator/grid").chunk(2)
            with torch.no_grad():
                above, known = self.criticise(real, batch.given)
            with held(self.critic, self.critic_embed):
                below, mine = self.criticise(seen, batch.given)
            loss |= {"adversarial": config.adversarial * pairing_loss(below, above)}
            loss |= {"features": config.features * matching(mine, known)}
        return Terms(loss, watch)

    def _seen(self, real: Tensor, fake: Tensor, keys: Seeds, name: str) -> Tensor:
        """Both batches (2 B, C, *size) as the critic sees them: under one noise of a level, or the grid would tell them apart."""
        both = torch.cat([real, fake])
        if not self.spec.levels:
            return both
        u = keys.uniform(name, *real.shape[1:], device=real.device) - 0.5
        return both + torch.cat([u, u]) * self.spec.step

    # -- the players -----------------------------------------------------------------------------------------------------------

    def _picture(self, given: Given) -> Tensor:
        """The given pictures (B, C', *size); a hidden one is grey."""
        return torch.nan_to_num(given.columns[self.column].float())

    def generate(
        self, y: Tensor, given: Given, seeds: Seeds, name: str = "noise", glance: Tensor | None = None
    ) -> Tensor:  # fmt: skip
        """G(y, z, given): (B, C, *ratio size) float32 of y (B, C', *size), not clipped; z is the draw `name`; differentiable."""
        channels = self.config.noise
        beside = [seeds.normal(name, channels, *y.shape[2:], device=y.device)] if channels else []
        c = self.generator_embed(given, len(y), y.device)
        if self.looks:
            looked = self.looks.look(y, self.compute_dtype) if glance is None else glance
            beside, (c, y) = [y, *beside], self.looks(y, looked, c)
        x: Tensor = self.generator(y, torch.cat(beside, 1) if beside else None, c, self.compute_dtype)
        return x

    def criticise(self, x: Tensor, given: Given) -> tuple[Tensor, list[Tensor]]:
        """D(x | y, given): logits (B, patches) float32, of which only differences mean anything, and features."""
        y = enlarge(self._picture(given), self.ratio)
        c = self.critic_embed(given, len(x), x.device)
        found: tuple[Tensor, list[Tensor]] = self.critic(torch.cat([x, y], 1).to(self.compute_dtype), c)
        return found

    def _glance(self, y: Tensor) -> Tensor | None:
        return self.looks.look(y, self.compute_dtype) if self.looks else None

    def _translate(self, y: Tensor, given: Given, seeds: Seeds, glance: Tensor | None = None) -> Tensor:
        x = self.generate(y, given, seeds, glance=glance)
        return x.clamp(-1, 1) if self.bounded else x

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        if options:
            raise ValueError(f"this sampler has no option {next(iter(options))!r}.")
        y = given.columns[self.column]
        if not bool(self.schema[self.column].present(y).all()):
            raise ValueError(
                f"pix2pix makes pictures of pictures; give it one for each: sample(n, given={{{self.column!r}: y}})."
            )
        yield Step(1, 1, self.spec.snap(self._translate(y, given, seeds)))
