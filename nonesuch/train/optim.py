"""Adam for one objective, and the exponential averages of what samples; both as tensors with names, so that they resume.

All of it is limited by memory: a parameter, its gradient, two moments and an average are read, all but the gradient written. On a
processor, the large tensors of large networks go through one compiled pass (nn/passes.cpp) that does clipping, Adam and the
average at once, so that each number moves once, on large pages (memory.py); elsewhere, and where there is no compiler, torch's
fused step and its averages do the same one after the other, with the same result but for rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonesuch.core.objective import Objective
from nonesuch.nn import native
from nonesuch.train import memory
from nonesuch.train.ranks import Ranks
from nonesuch.train.recipe import Recipe
from nonesuch.train.shard import is_cut, part, piece, whole

LARGE = 1 << 16  # numbers of a tensor that is worth a place in the pass
MANY = 1 << 23  # numbers of such tensors for which building it, some seconds when first done, is worth while


def _dense(tensor: Tensor) -> bool:
    formats = {4: torch.channels_last, 5: torch.channels_last_3d}
    layout = formats.get(tensor.dim(), torch.contiguous_format)
    return tensor.is_contiguous() or tensor.is_contiguous(memory_format=layout)


class Adam:
    """One objective's optimizer: gradient clipping, then Adam with decoupled weight decay.

    References: Decoupled Weight Decay Regularization (Loshchilov, Hutter, 2017) arXiv:1711.05101
    """

    def __init__(self, objective: Objective, recipe: Recipe, ranks: Ranks | None = None) -> None:
        self.objective, self.recipe, self.ranks = objective, recipe, ranks or Ranks()
        self.owned = [part(p) for p in objective.parameters]
        self.cut = any(is_cut(p) for p in objective.parameters)
        self.inner = torch.optim.AdamW(
            self.owned, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
        )
        large = [
            p for p in self.owned if p.numel() >= LARGE and p.device.type == "cpu" and p.dtype == torch.float32 and _dense(p)
        ]
        self.large = {id(p) for p in large} if sum(p.numel() for p in large) >= MANY else set()
        self.settled = False  # whether what the pass goes over lies on large pages

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], images: int, averages: Averages | None = None) -> Tensor:
        """Apply the gradients at the clock's reading; returns their norm before clipping. Not applied when it is not finite.

        averages: those of the round, of which it may do the parameters' own while it has them at hand.
        """
        norm = torch.nn.utils.get_total_norm(grads)
        if self.cut:
            norm = self.ranks.sum(norm.square()).sqrt()  # of all pieces
        if not torch.isfinite(norm):
            return norm
        scale = (self.recipe.clip / (norm + 1e-8)).clamp(max=1.0) if self.recipe.clip > 0 else torch.ones_like(norm)
        lr = self.recipe.lr_at(images) * self.objective.lr_scale
        pairs = [
            # A gradient in another memory layout (channels last) would be read as if it were in the parameter's.
            (p, g if g.stride() == p.stride() else torch.empty_like(p).copy_(g))
            for p, g in zip(self.owned, grads, strict=True)
        ]
        if self.large and native.library():
            self._step_large([(p, g) for p, g in pairs if id(p) in self.large], scale, lr, averages)
            pairs = [(p, g) for p, g in pairs if id(p) not in self.large]
        if pairs:
            self._step_fused(pairs, scale, lr)
        return norm

    def _step_fused(self, pairs: list[tuple[Tensor, Tensor]], scale: Tensor, lr: float) -> None:
        # Not in place: two parameters' gradients may be one tensor (of a sum), or a single number spread out (of a mean).
        # Times 1 is nothing, and a pass over them; a GPU is not made to wait for the answer.
        unchanged = scale.device.type == "cpu" and bool(scale == 1)
        grads = [g for _, g in pairs]
        for (p, _), g in zip(pairs, grads if unchanged else torch._foreach_mul(grads, scale), strict=True):
            p.grad = g
        self.inner.param_groups[0]["lr"] = lr
        self.inner.step()
        for p, _ in pairs:
            p.grad = None

    def _step_large(self, pairs: list[tuple[Tensor, Tensor]], scale: Tensor, lr: float, averages: Averages | None) -> None:
        rows: dict[int, list[native.Row]] = {}
        for p, g in reversed(pairs):  # the norm has just read the gradients: the last are still in the caches
            if not (state := self.inner.state[p]):  # as torch begins it
                state |= {"step": torch.zeros((), dtype=torch.float32), "exp_avg": torch.zeros_like(p)}
                state |= {"exp_avg_sq": torch.zeros_like(p)}
            state["step"] += 1
            row = (p, g, state["exp_avg"], state["exp_avg_sq"], averages.take(p) if averages else None)
            rows.setdefault(int(state["step"]), []).append(row)
        if not self.settled:
            memory.large_pages([t for some in rows.values() for row in some for t in row if t is not None])
            self.settled = True
        for count, some in rows.items():
            native.adam(some, self._numbers(count, float(scale), lr, 1 - averages.decay if averages else 0.0))

    def _numbers(self, count: int, scale: float, lr: float, rate: float) -> list[float]:
        (beta1, beta2), r = self.recipe.betas, self.recipe
        step, root2 = lr / (1 - beta1**count), math.sqrt(1 - beta2**count)
        return [scale, 1 - lr * r.weight_decay, beta1, beta2, step, root2, r.eps, rate]

    def state(self) -> dict[str, Tensor]:
        """Named tensors of the optimizer's state, gathered; empty before the first step."""
        return {
            f"{self.objective.name}/{i}/{key}": whole(value, p, self.ranks)
            for i, (p, own) in enumerate(zip(self.objective.parameters, self.owned, strict=True))
            for key, value in self.inner.state.get(own, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave; empty, the optimizer is new again."""
        self.inner.state.clear()
        self.settled = False
        for i, (p, own) in enumerate(zip(self.objective.parameters, self.owned, strict=True)):
            prefix = f"{self.objective.name}/{i}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                own_state = {k: piece(v, p, self.ranks).to(own.device) for k, v in found.items()}
                # in the parameter's memory layout, which both ways of the step take for granted
                self.inner.state[own] = {
                    k: torch.empty_like(own, dtype=v.dtype).copy_(v) if v.shape == own.shape else v.clone()
                    for k, v in own_state.items()
                }


class Averages:
    """Exponential averages of the parameters that sample, by parameter name."""

    def __init__(self, model: nn.Module, objectives: list[Objective]) -> None:
        sampling = {id(p) for o in objectives if o.average for p in o.parameters}
        self.live = {name: p for name, p in model.named_parameters() if id(p) in sampling}
        self.mean = {name: part(p).detach().clone() for name, p in self.live.items()}
        self.begin(1.0)

    def begin(self, decay: float) -> None:
        """A round in which mean <- decay mean + (1 - decay) live."""
        self.decay, self.left = decay, {id(part(p)): name for name, p in self.live.items()}

    def take(self, p: Tensor) -> Tensor | None:
        """The average of a parameter that the caller will update in this round; None if it has none."""
        name = self.left.pop(id(p), None)
        return None if name is None else self.mean[name]

    @torch.no_grad()
    def finish(self) -> None:
        """Update those that nobody took in this round."""
        if self.left:
            live = [part(self.live[name]) for name in self.left.values()]
            torch._foreach_lerp_([self.mean[name] for name in self.left.values()], live, 1 - self.decay)
        self.left = {}

    def update(self, decay: float) -> None:
        """mean <- decay mean + (1 - decay) live, of all."""
        self.begin(decay)
        self.finish()

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the live weights; twice is nothing."""
        for name, p in self.live.items():
            kept = part(p).detach().clone()
            part(p).copy_(self.mean[name])
            self.mean[name].copy_(kept)
