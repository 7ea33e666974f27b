"""Batches by Poisson sampling: each picture is in a round's batch with probability q, whatever the others are.

So a batch has B of N pictures on average, sometimes many more and sometimes none, and the places of pictures in it mean nothing.
This is what privacy by sampling is proved for (train/private.py); batches cut from a permutation are not. Picture i is in round t
if the word that (secret, "poisson", t) has for it is below q 2^32, and everything drawn for it in that round has the key
(secret, t 2^32 + i): a function of the round and of the picture alone. Numbers of augmentations are drawn for the places in the
batch, which is the same in distribution, for no place knows whose it is.

`secret` keys all of it, because whoever knows which pictures were in a batch gains what the sampling hides.

References:
| Deep Learning with Differential Privacy (Abadi et al., 2016) arXiv:1607.00133, section 3.1 (lots)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nonesuch.core.given import Given, Schema
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.augment import Augment
from nonesuch.data.dataset import Images
from nonesuch.data.loader import _inside, _levels
from nonesuch.data.made import Made

_WORD, _MOST = 1 << 32, 1 << 32


@dataclass
class PoissonBatches:
    """The batches of a run: `at(round)` is that round's. `rate` is q, a multiple of 2^-32.

    images: the pictures, all of one size; batch: the expected number of them in a batch; secret: the key of all draws; hide:
    probability that a picture's condition is hidden; augment: names of `nonesuch.data.augment`; total: rounds of the whole run;
    device: where x and given are put. Raises ValueError for pictures of several sizes, none at all, or fewer than a batch has.
    """

    images: Images
    batch: int
    secret: int
    hide: float = 0.0
    augment: tuple[str, ...] | str | Augment = ()
    total: int = 1
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.bucket is not None:
            raise ValueError("Poisson sampling takes pictures of one size; open them with fit='crop'.")
        if not 0 < self.batch <= n < _MOST:
            raise ValueError(f"a batch of {self.batch} on average needs at least as many pictures, and there are {n}.")
        self._makers, columns = Made.of(self.images).makers, self.images.schema.columns
        self._stored = Schema({name: column for name, column in columns.items() if name not in self._makers})
        self._spoiled = Schema({name: columns[name] for name in self._makers})
        self.augment = Augment.of(self.augment).check(self.images.spec, self._stored)
        self.rate = round(self.batch / n * _WORD) / _WORD

    def sampled(self, round_: int) -> torch.Tensor:
        """int64 (B,), ascending: which pictures are in the round's batch; B may be zero."""
        words = Seeds((self.secret,), (round_,)).bits("poisson", len(self.images))[0]
        return (words < round(self.rate * _WORD)).nonzero()[:, 0]

    def at(self, round_: int) -> Batch:
        """The batch of this round; its clock and its total count rounds."""
        assert isinstance(self.augment, Augment)
        data, which = self.images, self.sampled(round_)
        n = len(which)
        keys = Seeds((self.secret,) * n, tuple((round_ << 32) + i for i in which.tolist()))
        given = Given(n, Made.of(data).kept(which))
        hidden = keys.uniform("hide") < self.hide if n else torch.zeros(0, dtype=torch.bool)
        given = self._stored.hide(given, hidden)
        k, given = _levels(data, which).to(self.device), given.to(self.device)
        places = range(round_ * len(data), round_ * len(data) + n)
        if self.augment and n:
            k, given = self.augment.on_levels(k, given, data.spec, self._stored, self.secret, places)
        x = _inside(k.view(data.levels.dtype), data.spec)
        if self.augment and n:
            x = self.augment.inside(x, data.spec, self.secret, places)
        if self._makers and n:
            made = Given(n, {name: maker(x, keys) for name, maker in self._makers.items()})
            columns = {**given.columns, **self._spoiled.hide(made, hidden).columns}
            given = Given(n, {name: columns[name] for name in data.schema.columns})
        return Batch(x, given, keys, round_, self.total)

    def close(self) -> None:
        """Nothing is held."""
