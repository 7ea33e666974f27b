"""Training that says little about any one picture: gradients clipped picture by picture, summed, and drowned in noise.

Two sets of training pictures are neighbours if one has a picture more, with its condition. A training M is
(epsilon, delta)-private if for neighbours D, D' and whatever set O its result may lie in

    P(M(D) in O) <= exp(epsilon) P(M(D') in O) + delta.                                                                (1)

Each round takes every picture with probability q = batch / N (data/poisson.py), and for each of m players

    g = (sum_i g_i min(1, C / |g_i|) + sqrt(m) s C z) / batch,      z ~ N(0, 1),                                       (2)

with g_i the gradient of picture i alone (private_gradients.py). m normal vectors of deviation sqrt(m) s C about sums that a
picture moves by C each are as one of deviation s C about a sum that it moves by C, so a round of a GAN costs what a round of a
VAE does, though its second player sees what the first has become. s is the least for which all rounds stay within epsilon
(accounting.py). Adam, averages, and all that is drawn from the weights are computed from (2) alone, and cost nothing more.

What the checkpoint (config.json, model.safetensors, README.md) would otherwise have of the training pictures, and has not:

    `prepare`, tables and statistics of pixels   is left out: models keep their own start, codebooks and normalisations included
    categories' frequencies                      are even
    the fingerprint of the pictures              stays in steps/, without which no run resumes
    losses, looks, verdicts, the best step       are not computed; what is logged are norms of (2)
    gradients or losses that are not finite      count as nothing, and send no run back
    the time a round takes, for a time budget    is measured on blank pictures
    the conditions of previews                   are all missing

and what is refused, by name, stands in private_limits.py: batch normalisation, buffers that looking at pictures changes, players
that move by more than their gradient, replay, numbers scaled by their mean, values whose range is the pictures' own, pictures
held out, several sizes, several processes, weights that come from the same pictures, another batch, length or data on the way.

The secret. Noise and sampling are a function of (secret, round), so that a run that was killed goes on as if it had not been,
with the same noise on the same round: drawn anew it would be another look at the same pictures. Who knows the secret can subtract
the noise, so it is no seed of the recipe: it comes from the operating system, and is written nowhere but into steps/, which must
not be given away, as little as the pictures themselves; nor metrics.jsonl, which says when rounds were slow. Noise is the sum of
four draws, halved, in float64, so that neither the grid nor the farthest value of one draw shows, and each round has a key of its
own. It is as secret as Philox is unpredictable: a good generator, and no cipher. (1) is proved of real numbers; floats round.

References:
| Deep Learning with Differential Privacy (Abadi et al., 2016) arXiv:1607.00133, algorithm 1
| The Algorithmic Foundations of Differential Privacy (Dwork, Roth, 2014), definition 2.4, proposition 2.1 (post-processing)
| On Significance of the Least Significant Bits for Differential Privacy (Mironov, 2012) (floats)
| Secure Random Sampling in Differential Privacy (Holohan, Braghin, 2021), ESORICS (sums of draws)
"""

from __future__ import annotations

import copy
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.given import Given
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.data.poisson import PoissonBatches
from nonesuch.train import run as ordinary
from nonesuch.train.accounting import Spent, noise_multiplier, spent
from nonesuch.train.private_gradients import Pictures
from nonesuch.train.recipe import Private
from nonesuch.train.run import Run

_SECRET, _WORD = "private/secret", 60  # its name in the state, and bits a number of it holds
_DRAWS = 4  # whose sum, halved, is the noise


@dataclass
class PrivateRun(Run):
    """A run whose every step is Eq. 2. Its recipe has `private`, and `private_limits.require` has been asked."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.before = int(self.model.images_seen)  # images that the weights have seen elsewhere
        self.pictures = [Pictures(self.model, objective) for objective in self.objectives]
        self.multiplier: float | None = None  # s of Eq. 2; found at the first round
        self.seal(int.from_bytes(os.urandom(15)))

    def seal(self, secret: int) -> None:
        """Key noise and sampling by this secret, below 2^120."""
        r = self.recipe
        self.secret = secret
        self.batches: PoissonBatches = PoissonBatches(  # type: ignore[assignment]  # in place of those cut from a permutation
            self.data, r.batch, secret, r.hide, r.augment, device=self.model.device
        )

    @property
    def private(self) -> Private:
        """What was asked for, with its delta."""
        asked = self.recipe.private
        assert asked is not None
        return replace(asked, delta=asked.delta or len(self.data) ** -1.1)

    @property
    def rounds_in_all(self) -> int:
        """Rounds of the whole run."""
        return math.ceil(self.recipe.images / self.recipe.batch)

    def noise(self) -> float:
        """s of Eq. 2, the noise multiplier. Raises ValueError if none is enough, or opacus is not installed."""
        if self.multiplier is None:
            asked = self.private
            assert asked.delta is not None
            self.multiplier = noise_multiplier(asked.epsilon, asked.delta, self.batches.rate, self.rounds_in_all)
        return self.multiplier

    def spent(self) -> Spent:
        """epsilon of the rounds that were done, at the run's delta, and who counted it."""
        asked = self.private
        assert asked.delta is not None
        return spent(self.noise(), self.batches.rate, self.rounds, asked.delta)

    def step(self) -> dict[str, Tensor]:
        """One round: every player by Eq. 2 in turn; then the averages and the clock. Only what is noisy is told."""
        noise, clip, logged = self.noise(), self.private.clip, dict[str, Tensor]()
        batch = replace(self.batches.at(self.rounds), total=self.rounds_in_all)
        self.averages.begin(self.recipe.average_decay(self.images + self.recipe.batch))
        for pictures, optimizer in zip(self.pictures, self.optimizers, strict=True):
            objective = pictures.objective
            if self.rounds % objective.every:
                continue
            deviation = math.sqrt(len(self.objectives)) * noise * clip
            sums = pictures.clipped_sum(batch, clip)
            grads = [
                (total.add_(self._normal(f"{objective.name}/{i}", total), alpha=deviation) / self.recipe.batch).to(
                    p.dtype
                )  # Eq. 2
                for i, (total, p) in enumerate(zip(sums, objective.parameters, strict=True))
            ]
            logged[f"{objective.name}_gradient"] = optimizer.step(grads, self.images, self.averages)
        self.images += self.recipe.batch
        self.rounds += 1
        self.averages.finish()
        self.model.images_seen.fill_(self.images)
        return logged

    def _normal(self, name: str, like: Tensor) -> Tensor:
        """z of Eq. 2 for one parameter in this round, float64."""
        keys = Seeds((self.secret,), (0,))  # the round in the name: a key of its own
        name = f"noise/{name}/{self.rounds}"
        drawn = [keys.normal(name, *like.shape, step=k, device=like.device)[0].double() for k in range(_DRAWS)]
        return torch.stack(drawn).sum(0) / math.sqrt(_DRAWS)

    # -- the state

    def state(self) -> dict[str, Tensor]:
        """All that resuming needs, the secret included."""
        words = [self.secret >> _WORD, self.secret & ((1 << _WORD) - 1)]
        return {**super().state(), _SECRET: torch.tensor(words, dtype=torch.int64)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `state` gave."""
        super().restore({k: v for k, v in tensors.items() if k != _SECRET})
        high, low = tensors[_SECRET].tolist()
        self.seal(high << _WORD | low)

    def about(self) -> dict[str, Any]:
        """What the model card says: without the pictures' fingerprint, with what was spent, how, and what that does not cover."""
        asked, (epsilon, accountant) = self.private, self.spent()
        kept = {k: v for k, v in super().about().items() if k != "fingerprint"}
        before = f"; what the {self.before:,} images it had seen before say of themselves" if self.before else ""
        return {
            **kept,
            "privacy": f"epsilon {math.ceil(epsilon * 1e4) / 1e4:g} at delta {asked.delta:.3g}, spent by {self.rounds:,} of "
            f"{self.rounds_in_all:,} rounds, counted by {accountant}",
            "neighbours": "training sets that differ by one picture and its condition, added or removed",
            "mechanism": "Gaussian noise on sums of clipped gradients of single pictures; Poisson sampling",
            "epsilon": epsilon,
            "delta": asked.delta,
            "sampling rate": self.batches.rate,
            "clip": asked.clip,
            "noise multiplier": self.noise(),
            "not covered": "choosing the settings by results on the same pictures; the number, size and type of the pictures; "
            f"the names of columns and categories{before}; steps/ and metrics.jsonl, which stay where they are",
        }


def images_for(run: PrivateRun, seconds: float) -> int:
    """The length, in images, of a run of so many seconds: measured as run.py does, on blank pictures, which tell nothing."""
    trial = PrivateRun(copy.deepcopy(run.model), blank(run.data), replace(run.recipe, images=1 << 40))
    trial.multiplier = 1.0
    begin, quickest = time.perf_counter(), math.inf
    while quickest == math.inf or time.perf_counter() - begin < min(ordinary._MEASURE_S, 0.1 * seconds):
        start = time.perf_counter()
        trial.step()
        quickest = min(quickest, time.perf_counter() - start)
    left = max(seconds - (time.perf_counter() - begin), 0.5 * seconds)
    return max(1, round(left / quickest)) * run.recipe.batch


def blank(images: Images) -> Images:
    """As many pictures of the same kind, of which none says anything."""
    levels = torch.zeros((1, *images.levels.shape[1:]), dtype=images.levels.dtype).expand(images.levels.shape)
    n = len(images)
    columns = {k: (one := c.missing(1)).expand(n, *one.shape[1:]) for k, c in images.schema.columns.items()}
    return replace(images, levels=levels, given=Given(n, columns))
