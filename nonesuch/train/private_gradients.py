"""The gradient of each picture alone, and the sum of them that no picture moves by more than its bound.

An objective's terms are asked for batches of one picture,

    g_i = grad sum of terms({x_i})                                                                                     (1)

so nothing that a term does across the rows of a batch (means, clamps of them, strata) can join two pictures: each is computed as
if it were the only one, in a world whose batches hold one and whose clock counts rounds. Then

    S = sum_i g_i min(1, C / |g_i|)        |S(with i) - S(without i)| <= C                                             (2)

whatever the pictures are; what is not finite counts as nothing. |g| is over all of an objective's parameters.

All pictures of a chunk go through `vmap(grad)` at once, as `torch.func` has it. The terms' code runs once, so the draws it makes
from the keys must be those of every picture: `Row` makes them for all and hands each picture its own. Where a transformation
cannot follow (losses made of gradients, custom functions, control that depends on values), the pictures are taken one by one,
which gives the same and takes longer.

References:
| Deep Learning with Differential Privacy (Abadi et al., 2016) arXiv:1607.00133, algorithm 1
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._functorch.pyfunctorch import temporarily_clear_interpreter_stack
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from nonesuch.core.given import Given
from nonesuch.core.model import Model
from nonesuch.core.objective import Batch, Objective
from nonesuch.core.seeds import Seeds

_CHUNK, _CHUNK_BYTES = 64, 256 << 20  # pictures whose gradients are held at a time: so many, of so many bytes at most
_ROUNDING = 1 - 1e-6  # so that a sum in float32 keeps Eq. 2


class Row(Seeds):
    """The key of one picture among many, where a transformation runs its code for all at once.

    every: the keys of all; place: which one, an int64 scalar that differs between the pictures of the transformation.
    """

    def __init__(self, every: Seeds, place: Tensor) -> None:
        object.__setattr__(self, "every", every)
        object.__setattr__(self, "place", place)

    @property
    def seed(self) -> tuple[int, ...]:  # type: ignore[override]  # what is made of the words themselves is no draw from here
        raise RuntimeError("the words of a key cannot be told within a transformation.")

    index = seed  # type: ignore[assignment]

    def __len__(self) -> int:
        return 1

    def _mine(self, draw: Callable[[Seeds], Tensor]) -> Tensor:
        """The picture's row of a draw for all, which is made outside of the transformation: no draw depends on it."""
        every, place = object.__getattribute__(self, "every"), object.__getattribute__(self, "place")
        with temporarily_clear_interpreter_stack():
            drawn = draw(every)
        return drawn.index_select(0, place.view(1).to(drawn.device))

    def __getitem__(self, which: slice | Sequence[int]) -> Seeds:
        if not isinstance(which, slice) or range(1)[which] != range(1):
            raise RuntimeError("a picture's key is taken as it is, or not at all.")
        return self

    def bits(self, name: str, count: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        return self._mine(lambda keys: keys.bits(name, count, step, device))

    def uniform(self, name: str, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        return self._mine(lambda keys: keys.uniform(name, *shape, step=step, device=device))

    def normal(self, name: str, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        return self._mine(lambda keys: keys.normal(name, *shape, step=step, device=device))

    def integers(self, name: str, high: int, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        return self._mine(lambda keys: keys.integers(name, high, *shape, step=step, device=device))

    def keep(self, name: str, p: float, *shape: int, step: int = 0, device: torch.device | str = "cpu") -> Tensor:
        return self._mine(lambda keys: keys.keep(name, p, *shape, step=step, device=device))

    def drop(self, x: Tensor, name: str, p: float) -> Tensor:
        return x * self.keep(name, p, *x.shape[1:], device=x.device).to(x.dtype)


@dataclass(frozen=True)
class Single(Batch):
    """A batch of one picture; what is drawn once a batch is drawn with its own key."""

    @property
    def first(self) -> Seeds:
        return self.keys


class _Player(nn.Module):
    """The loss of an objective as what a module returns, so that other weights can stand in its parameters' place."""

    def __init__(self, model: Model, objective: Objective) -> None:
        super().__init__()
        self.model, self.terms = model, objective.terms

    def forward(self, batch: Batch) -> Tensor:
        loss = self.terms(batch).loss
        return torch.stack([value.reshape(()) for value in loss.values()]).sum()


class Pictures:
    """One objective's gradients, picture by picture. `together`: whether the pictures of a chunk are done at once.

    chunk: how many are held at a time, at most.
    """

    def __init__(self, model: Model, objective: Objective) -> None:
        self.objective, self.player = objective, _Player(model, objective)
        names = {id(p): f"model.{name}" for name, p in model.named_parameters()}
        self.names = [names[id(p)] for p in objective.parameters]
        size = sum(p.numel() * p.element_size() for p in objective.parameters)
        self.chunk = max(1, min(_CHUNK, _CHUNK_BYTES // max(1, size)))
        self.together = True

    def gradients(self, batch: Batch) -> list[Tensor]:
        """Eq. 1: for each parameter the gradients (B, *shape) of the B pictures of a batch, of which B are held at once."""
        if self.together:
            try:
                return self._at_once(batch)
            except (RuntimeError, NotImplementedError, TypeError, ValueError):
                self.together = False  # if it is no matter of the transformation, it is raised again
        return self._one_by_one(batch)

    def clipped_sum(self, batch: Batch, clip: float) -> list[Tensor]:
        """Eq. 2: for each parameter its part of S in float64, of the B >= 0 pictures of a batch."""
        total = [torch.zeros(p.shape, dtype=torch.float64, device=p.device) for p in self.objective.parameters]
        for i in range(0, len(batch.x), self.chunk):
            for sum_, part in zip(total, _clipped(self.gradients(_rows(batch, i, self.chunk)), clip), strict=True):
                sum_ += part
        return total

    def _at_once(self, batch: Batch) -> list[Tensor]:
        weights = dict(zip(self.names, (p.detach() for p in self.objective.parameters), strict=True))

        def loss(weights: dict[str, Tensor], x: Tensor, columns: dict[str, Tensor], place: Tensor) -> Tensor:
            given = Given(1, {name: value[None] for name, value in columns.items()})
            one = Single(x[None], given, Row(batch.keys, place), batch.images, batch.total)
            found: Tensor = functional_call(self.player, weights, (one,))
            return found

        places = torch.arange(len(batch.x), device=batch.x.device)
        # The other ways of attention know no vmap; what else has no rule of its own is done one by one within, and says so.
        with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop")
            found = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, batch.x, dict(batch.given.columns), places)
        return [found[name] for name in self.names]

    def _one_by_one(self, batch: Batch) -> list[Tensor]:
        parameters = self.objective.parameters
        found = [p.new_empty((len(batch.x), *p.shape)) for p in parameters]
        for i in range(len(batch.x)):
            part = slice(i, i + 1)
            one = Single(batch.x[part], batch.given[part], batch.keys[part], batch.images, batch.total)
            grads = torch.autograd.grad(self.player(one), parameters, allow_unused=True)
            for kept, g in zip(found, grads, strict=True):
                kept[i].zero_() if g is None else kept[i].copy_(g)
        return found


def _rows(batch: Batch, start: int, count: int) -> Batch:
    part = slice(start, min(start + count, len(batch.x)))
    return Single(batch.x[part], batch.given[part], batch.keys[part], batch.images, batch.total)


def _clipped(grads: list[Tensor], clip: float) -> list[Tensor]:
    """The sum over pictures of their gradients (B, *shape), each cut to a norm of at most `clip`."""
    norms = torch.stack([torch.linalg.vector_norm(g.flatten(1), dim=1, dtype=torch.float64) for g in grads])
    norm = torch.linalg.vector_norm(norms, dim=0)
    finite = torch.isfinite(norm)
    if not finite.all():
        grads, norm = [g[finite] for g in grads], norm[finite]
    scale = (clip / norm.clamp_min(math.ulp(0.0))).clamp(max=1.0) * _ROUNDING
    return [torch.tensordot(scale.to(g.dtype), g, 1) for g in grads]
