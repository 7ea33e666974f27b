"""A small sound model, and models broken in one way each, for the checks of `nonesuch.testing` to catch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Encoder, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.nn.conv import Linear
from nonesuch.nn.embed import GivenEmbedding


@dataclass(frozen=True)
class Config:
    width: int = 16


class Sound(Model, Likelihood):
    """Independent categoricals given the condition: exact, and within every clause of the contract."""

    card: ClassVar[Card] = Card("Independent pixels", "Nobody, Anna", 2026)
    Config: ClassVar[type] = Config
    presets: ClassVar[dict[str, Preset]] = {"tiny": Preset()}

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.embed = GivenEmbedding(schema, config.width)
        self.out = Linear(config.width, spec.numel * (spec.levels or 2))

    def objectives(self) -> list[Objective]:
        return [Objective("model", list(self.parameters()), self.terms)]

    def logits(self, given: Given, n: int) -> Tensor:
        return self.out(torch.tanh(self.embed(given, n, self.device))).view(n, *self.spec.shape, -1)

    def terms(self, batch: Batch) -> Terms:
        logits = self.logits(batch.given, len(batch.x))
        return Terms({"nll": F.cross_entropy(logits.flatten(0, -2), self.spec.to_levels(batch.x).flatten())})

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(0, 1, torch.zeros(len(seeds), *self.spec.shape))
        yield Step(1, 1, self.spec.from_levels(seeds.categorical(self.logits(given, len(seeds)), "x")))

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        if method is not None:
            raise ValueError(f"there is no method {method!r}; this model has one only.")
        log_p = self.logits(given, len(x)).log_softmax(-1)
        return LogProb(log_p.gather(-1, self.spec.to_levels(x)[..., None])[..., 0].flatten(1).sum(1), "exact")


class Uniform(Sound):
    """Every picture is as likely as any other: log2(levels) bits per dimension, on whatever picture."""

    def logits(self, given: Given, n: int) -> Tensor:
        return super().logits(given, n) * 0


class TwoOwners(Sound):
    def objectives(self) -> list[Objective]:
        return [*super().objectives(), Objective("again", [self.out.weight], self.terms)]


class Orphan(Sound):
    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.unused = Linear(2, 2)

    def objectives(self) -> list[Objective]:
        return [Objective("model", [p for n, p in self.named_parameters() if "unused" not in n], self.terms)]


class GlobalNoise(Sound):
    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(1, 1, self.spec.snap(torch.rand(len(seeds), *self.spec.shape) * 2 - 1))


class ModeDependent(Sound):
    def logits(self, given: Given, n: int) -> Tensor:
        return super().logits(given, n) * (3.0 if self.training else 0.1)


class BatchNorm(Sound):
    def logits(self, given: Given, n: int) -> Tensor:
        logits = super().logits(given, n)
        return logits - 50 * logits.mean(0, keepdim=True) + torch.linspace(-3, 3, n).view(-1, *[1] * (logits.dim() - 1))


class DeafToLabels(Sound):
    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield from super()._sample_steps(self.schema.missing(len(seeds)), seeds, size)


class OffTheGrid(Sound):
    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        yield Step(1, 1, self.logits(given, len(seeds)).softmax(-1).amax(-1) + 0 * seeds.normal("z", *self.spec.shape))


class OneForgottenTerm(Sound):
    """A likelihood without its last pixel: it sums to more than one."""

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        log_p = self.logits(given, len(x)).log_softmax(-1)
        return LogProb(log_p.gather(-1, self.spec.to_levels(x)[..., None])[..., 0].flatten(1)[:, 1:].sum(1), "exact")


class MeanNotSum(Sound):
    """A likelihood a pixel where one an image is asked for: noise costs next to nothing."""

    def _log_prob(self, x: Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds) -> LogProb:
        found = super()._log_prob(x, given, method=method, samples=samples, seeds=seeds)
        return LogProb(found.nats / self.spec.numel, "bound")


class Rewards(Sound):
    """The sign of the loss is wrong: it climbs."""

    def terms(self, batch: Batch) -> Terms:
        return Terms({"nll": -super().terms(batch).loss["nll"]})


class WritesOnItself(Sound):
    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        self.out.bias.add_(0.01)
        yield from super()._sample_steps(given, seeds, size)


class UnkeyedDropout(Sound):
    def terms(self, batch: Batch) -> Terms:
        logits = F.dropout(self.logits(batch.given, len(batch.x)), 0.2)
        return Terms({"nll": F.cross_entropy(logits.flatten(0, -2), self.spec.to_levels(batch.x).flatten())})


class ForgetsOnSaving(Sound):
    """A weight outside the state: a loaded copy starts from another one."""

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.learned = 0.0

    def logits(self, given: Given, n: int) -> Tensor:
        return super().logits(given, n) * (1 - self.learned)

    def terms(self, batch: Batch) -> Terms:
        self.learned = 0.9
        return super().terms(batch)


class ExportsItsBuffer(Sound):
    """Training state that neither resumes nor is in a checkpoint: the running scale of its gradient is lost."""

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.scale = 1.0

    def terms(self, batch: Batch) -> Terms:
        self.scale *= 1.3
        return Terms({"nll": super().terms(batch).loss["nll"] * self.scale})


class ChangesTheData(Sound):
    def prepare(self, data: Tensor, given: Given) -> None:
        if "label" in given.columns:
            given.columns["label"].zero_()


class Crash(Sound):
    """Refuses an unknown label with a traceback's words, and takes NaN."""

    def log_prob(self, x: Tensor, given: Any = None, **options: Any) -> LogProb:
        return self._log_prob(x, self.schema.given(len(x), given), method=None, samples=1, seeds=Seeds.of(0, len(x)))


class LossyEncoder(Sound, Encoder):
    """decode(encode(x)) is the mean image."""

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        self.latent_spec = ImageSpec(4, (), "", "continuous", None)
        self.project = nn.Parameter(torch.zeros(4, spec.numel))

    def terms(self, batch: Batch) -> Terms:
        found = super().terms(batch)
        return Terms({**found.loss, "anchor": (self.project - 0.01).square().mean()})

    def _encode(self, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
        return x.flatten(1)[:, :4] * 0

    def _decode(self, z: Tensor, given: Given) -> Tensor:
        return (z @ self.project).view(-1, *self.spec.shape)


CAUGHT_BY = {
    TwoOwners: "one_owner_and_a_gradient_for_each_parameter",
    Orphan: "one_owner_and_a_gradient_for_each_parameter",
    GlobalNoise: "sampling_is_pure",
    ModeDependent: "sampling_is_pure",
    BatchNorm: "a_seed_is_an_image",
    DeafToLabels: "labels_change_images",
    OffTheGrid: "samples_are_images_of_the_spec",
    OneForgottenTerm: "probabilities_sum_to_one_or_less",
    MeanNotSum: "uniform_noise_costs_log2_levels",
    Rewards: "training_images_are_likelier_than_noise",
    WritesOnItself: "sampling_is_pure",
    UnkeyedDropout: "terms_are_a_function_of_the_batch",
    ForgetsOnSaving: "a_fresh_process_draws_the_same",
    ExportsItsBuffer: "resuming_is_exact",
    ChangesTheData: "fitting_changes_neither_config_nor_data",
    Crash: "unfit_images_are_refused",
    LossyEncoder: "decoding_undoes_encoding",
}
