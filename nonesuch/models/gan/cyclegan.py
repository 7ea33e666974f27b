"""CycleGAN: pictures of one kind made of pictures of another, learned from two heaps without a pair between them.

    x_b = G_b(x_a),    a, b the categories of one column ("horse", "zebra"): a generator and a critic for each

    generators   adversarial E (D_b(G_b(x_a)) - 1)^2  +  cycle E |G_a(G_b(x_a)) - x_a|  +  identity E |G_b(x_b) - x_b|     (1)
    critics      E (D_b(x_b) - 1)^2  +  E D_b(G_b(x_a))^2  +  R1 + R2                                                    (2)

Nothing says which x_b belongs to an x_a. That the way back must find x_a again keeps G_b from drawing any zebra at all, and that
G_b leaves zebras alone keeps colours; both are habits, not guarantees: a G_b that mixes up what G_a unmixes has the same loss,
and the smaller change is only the easier one to learn. Count what is kept, by a classifier of the target, before believing.

The paper's least squares are kept; its instance normalisation, which would make a pixel depend on the whole picture, and its
buffer of old pictures are replaced by networks without normalisation (`_translation.py`) and zero-centred penalties. With more
than two categories each generator learns from all other kinds, and a batch goes to one of them and back; with two this is the
paper.

The picture to translate is a column of its own, "source", which training does not look at: x itself is the source there. Without
one there is nothing to draw from, and sampling refuses; only the run that trains the model has a few training pictures at hand
(transient, and in no checkpoint) to look at itself by. A missing target is drawn by the categories' frequencies, for P(x | y) is
the mixture of P(x | y, b).

References:
    Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks (Zhu et al., 2017) arXiv:1703.10593, Eqs. 1-3
    Least Squares Generative Adversarial Networks (Mao et al., 2016) arXiv:1611.04076
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Category, Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.core.translator import Translator
from nonesuch.models.gan._adversarial import held, squared_gradient
from nonesuch.models.gan._networks import Shape
from nonesuch.models.gan._translation import PatchCritic, Plan, Translation, picture_column

SOURCE = "source"
_EXAMPLES = 16  # of each kind


@dataclass(frozen=True)
class Config:
    """Sizes of the players and weights of the game.

    widths, blocks: channels and residual blocks of each generator from the picture's grid to coarser ones; critic_widths,
    critic_blocks: the same of each critic. adversarial, cycle, identity: weights of the generators' terms (Eq. 1).
    skips: whether a picture begins as the one it is made of and keeps its lines on the way; without, as in the paper's network,
    all goes through the coarsest grid, and shapes may change, too.
    gamma, last_gamma: weight of the critics' penalties at the beginning and, by a constant factor an image, at the end. Slopes
    have to reach from heap to heap: at first these are far apart (at 0.1 critics are steep and soon sure, and generators stay
    what they are at first, the identity), and at last near, and what still tells them apart is fine.
    penalty_every: rounds between penalties; critic_lr: relative to the generators'.
    """

    widths: tuple[int, ...] = (32, 64, 96)
    blocks: tuple[int, ...] = (1, 1, 2)
    critic_widths: tuple[int, ...] = (32, 64, 96)
    critic_blocks: tuple[int, ...] = (0, 1, 1)
    skips: bool = True
    adversarial: float = 1.0
    cycle: float = 1.0
    identity: float = 0.2
    gamma: float = 10.0
    last_gamma: float = 0.3
    penalty_every: int = 4
    critic_lr: float = 1.0


_RECIPE = {"batch": 8, "lr": 5e-4, "betas": (0.5, 0.99), "clip": 0.0, "hide": 0.0}

PRESETS = {
    "tiny":  Preset({"widths": (8, 8), "blocks": (1, 1), "critic_widths": (8, 16), "critic_blocks": (1, 1),
                     "gamma": 1.0, "last_gamma": 1.0}, _RECIPE),
    "32px":  Preset({"blocks": (1, 1, 4), "skips": False}, _RECIPE, up_to_px=32),
    "photo": Preset({"widths": (32, 64, 128, 128), "blocks": (1, 1, 2, 2), "critic_widths": (32, 64, 96, 128),
                     "critic_blocks": (0, 0, 1, 1)}, _RECIPE, up_to_px=256),
}  # fmt: skip


class CycleGAN(Model, Translator):
    """A generator and a critic for each category of the one Category column."""

    card = Card(
        title="Unpaired Image-to-Image Translation using Cycle-Consistent Adversarial Networks",
        authors="Zhu, Jun-Yan and Park, Taesung and Isola, Phillip and Efros, Alexei A.",
        year=2017,
        arxiv="1703.10593",
        summary="Pictures of one kind from pictures of another, learned without pairs; deterministic.",
    )
    Config = Config
    presets = PRESETS
    transient = ("examples", "at_hand")
    examples: Tensor
    at_hand: Tensor
    ratio = 1
    deterministic = True

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        if not any(isinstance(column, Image) for column in schema.columns.values()):
            schema = Schema({**schema.columns, SOURCE: Image(spec)})
        super().__init__(config, spec, schema)
        self.column, given, ratio, others = picture_column(schema, spec, "CycleGAN")
        kinds = [name for name, column in others.columns.items() if isinstance(column, Category)]
        if len(kinds) != 1 or len(others.columns) != 1 or len(others.category()[1].names) < 2:
            raise ValueError(
                "CycleGAN learns from one column of two or more categories, the kinds of pictures to be turned into each other "
                "(a folder a kind: fit(given='label')), and has no use for other columns."
            )
        if min(config.gamma, config.last_gamma) <= 0:
            raise ValueError(
                "gamma and last_gamma are the weights of penalties that CycleGAN cannot do without; give them above 0."
            )
        if given.channels != spec.channels or ratio != 1:
            raise ValueError("CycleGAN's pictures are of one kind and size on both sides; for others fit pix2pix on pairs.")
        self.kind, category = others.category()
        self.kinds, dims = len(category.names), len(spec.size)
        self.bounded = spec.kind == "ordinal" or spec.value_range is not None
        widths, blocks = tuple(config.widths), tuple(config.blocks)
        plan = Plan(dims, spec.channels, spec.channels, 1, widths, blocks, widths[0], skips=config.skips)
        self.reach, self.multiple = plan.reach, plan.multiple
        shape = Shape(spec.size, tuple(config.critic_widths), tuple(config.critic_blocks), 1.0, 8, 3)
        self.generators = nn.ModuleList(Translation(plan) for _ in range(self.kinds))
        self.critics = nn.ModuleList(PatchCritic(spec.channels, shape) for _ in range(self.kinds))
        self.register_buffer("examples", torch.zeros(self.kinds, _EXAMPLES, *spec.shape))
        self.register_buffer("at_hand", torch.zeros((), dtype=torch.int64))

    def prepare(self, data: Tensor, given: Given) -> None:
        """Keep the first pictures of each kind, for the run to look at itself by. Raises ValueError for a kind without any."""
        names = self.schema.category()[1].names
        for k, name in enumerate(names):
            own = data[given.columns[self.kind] == k][:_EXAMPLES]
            if not len(own):
                raise ValueError(f"there is no picture of {name!r} to learn from; give some, or open the data without that kind.")
            self.examples[k] = own[torch.arange(_EXAMPLES) % len(own)]
        self.at_hand.fill_(1)

    # -- the game --------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        critics, generators = list(self.critics.parameters()), list(self.generators.parameters())
        lr = self.config.critic_lr
        return [
            Objective("critic", critics, self._critic_terms, average=False, lr_scale=lr, second_derivatives=True),
            Objective("generator", generators, self._generator_terms),
        ]

    def _critic_terms(self, batch: Batch) -> Terms:
        """Each critic sees every picture once: as it is if it is of its kind, translated to it if not."""
        own = batch.given.columns[self.kind]
        penalised = (batch.images // batch.size) % self.config.penalty_every == 0
        score, slope = batch.x.new_zeros(()), batch.x.new_zeros(())
        for k in range(self.kinds):
            rows, real = own >= 0, (own[own >= 0] == k).float()
            seen = batch.x.clone()
            if bool((away := rows & (own != k)).any()):
                with torch.no_grad():
                    seen[away] = self.generate(batch.x[away], k)
            if bool(rows.any()):
                seen = (seen + self._grid(batch, f"critic/{k}"))[rows].requires_grad_(penalised)
                logits = self.criticise(seen, k)
                score = score + (logits - real[:, None]).square().mean(1).sum()  # Eq. 2
                if penalised:
                    slope = slope + squared_gradient(logits.sum(1) / math.sqrt(logits.shape[1]), seen).sum()
        loss = {"critic": score / len(batch.x)}
        if penalised:
            loss["penalty"] = self.config.penalty_every * self._gamma(batch) / 2 * slope / len(batch.x)
        return Terms(loss)

    def _gamma(self, batch: Batch) -> float:
        first, last = self.config.gamma, self.config.last_gamma
        return first * (last / first) ** batch.progress

    def _generator_terms(self, batch: Batch) -> Terms:
        """Each generator translates every picture, those of its own kind to leave them alone, and back those of its kind."""
        config, own, x = self.config, batch.given.columns[self.kind], batch.x
        target, there = self._target(own, batch.keys), torch.zeros_like(x)
        adversarial, cycle, identity = (x.new_zeros(()) for _ in range(3))
        for k in range(self.kinds):
            here, away = own == k, (own >= 0) & (own != k)
            made = self.generate(x, k)
            there = torch.where((target == k).view(-1, *[1] * (x.dim() - 1)), made, there)
            identity = identity + (here * _distance(made, x)).sum()  # Eq. 1
            if bool(away.any()):
                with held(self.critics):
                    logits = self.criticise((made + self._grid(batch, f"generator/{k}"))[away], k)
                adversarial = adversarial + (logits - 1).square().mean(1).sum()
        for k in range(self.kinds):
            if bool((here := own == k).any()):
                cycle = cycle + _distance(self.generate(there[here], k), x[here]).sum()
        weighted = {"adversarial": config.adversarial * adversarial, "cycle": config.cycle * cycle}
        weighted["identity"] = config.identity * identity
        return Terms({name: total / len(x) for name, total in weighted.items()})

    def _target(self, own: Tensor, keys: Seeds) -> Tensor:
        """Another kind for each picture: the other one of two, drawn by its key of more."""
        step = keys.integers("target", self.kinds - 1, device=own.device) + 1
        return (own + step) % self.kinds

    def _grid(self, batch: Batch, name: str) -> Tensor:
        """Noise of a level on what critics see, or the grid of real pictures would give the others away."""
        if not self.spec.levels:
            return batch.x.new_zeros(())
        return (batch.keys.uniform(name, *batch.x.shape[1:], device=batch.x.device) - 0.5) * self.spec.step

    # -- the players -----------------------------------------------------------------------------------------------------------

    def generate(self, x: Tensor, kind: int) -> Tensor:
        """G_kind(x): pictures (B, C, *size) float32 of that kind from x of any, not clipped; differentiable."""
        made: Tensor = self.generators[kind](x, None, x.new_zeros(len(x), self.config.widths[0]), self.compute_dtype)
        return made

    def criticise(self, x: Tensor, kind: int) -> Tensor:
        """D_kind(x): logits (B, patches) float32, near 1 for real pictures of that kind and near 0 for others."""
        logits: Tensor
        logits, _ = self.critics[kind](x.to(self.compute_dtype), x.new_zeros(len(x), self.config.critic_widths[-1]))
        return logits

    def _translate(self, y: Tensor, given: Given, seeds: Seeds, glance: Tensor | None = None) -> Tensor:
        target = self._wanted(given, seeds)
        made = torch.empty_like(y)
        for k in target.unique().tolist():
            made[target == k] = self.generate(y[target == k], k)
        return made.clamp(-1, 1) if self.bounded else made

    def _wanted(self, given: Given, seeds: Seeds) -> Tensor:
        """The kind that each picture is to become (n,): what is given, or drawn by frequency."""
        told, column = given.columns[self.kind], self.schema[self.kind]
        assert isinstance(column, Category)
        return torch.where(told < 0, column.draw(seeds, self.kind).to(told.device), told)

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        if options:
            raise ValueError(f"this sampler has no option {next(iter(options))!r}.")
        y, column = given.columns[self.column], self.schema[self.column]
        there = column.present(y)
        if not bool(there.all()):
            if not self.at_hand:
                raise ValueError(
                    "CycleGAN turns pictures of one kind into another; give it one for each: "
                    f"sample(n, given={{{self.column!r}: x, {self.kind!r}: ...}})."
                )
            other = self._wanted(given, seeds) + 1 + seeds.integers("kind", self.kinds - 1, device=y.device)
            which = seeds.integers("example", _EXAMPLES, device=y.device)
            y = torch.where(there.view(-1, *[1] * (y.dim() - 1)), y, self.examples[other % self.kinds, which])
        yield Step(1, 1, self.spec.snap(self._translate(y, given, seeds)))


def _distance(made: Tensor, x: Tensor) -> Tensor:
    """Mean absolute difference a picture, (B,)."""
    return (made - x).abs().flatten(1).mean(1)
