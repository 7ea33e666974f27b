"""Adam for one objective, and the exponential averages of what samples; both as tensors with names, so that they resume."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nonesuch.core.objective import Objective
from nonesuch.train.ranks import Ranks
from nonesuch.train.recipe import Recipe
from nonesuch.train.shard import is_cut, part, piece, whole


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

    @torch.no_grad()
    def step(self, grads: Sequence[Tensor], images: int) -> Tensor:
        """Apply the gradients at the clock's reading; returns their norm before clipping. Not applied when it is not finite."""
        norm = torch.nn.utils.get_total_norm(grads)
        if self.cut:
            norm = self.ranks.sum(norm.square()).sqrt()  # of all pieces
        if not torch.isfinite(norm):
            return norm
        scale = (self.recipe.clip / (norm + 1e-8)).clamp(max=1.0) if self.recipe.clip > 0 else torch.ones_like(norm)
        # Not in place: two parameters' gradients may be one tensor (of a sum), or a single number spread out (of a mean).
        # Times 1 is nothing, and a pass over them; a GPU is not made to wait for the answer.
        unchanged = scale.device.type == "cpu" and bool(scale == 1)
        for p, g in zip(self.owned, grads if unchanged else torch._foreach_mul(list(grads), scale), strict=True):
            # A gradient in another memory layout (channels last) is read by the fused step as if it were in the parameter's.
            p.grad = g if g.stride() == p.stride() else torch.empty_like(p).copy_(g)
        self.inner.param_groups[0]["lr"] = self.recipe.lr_at(images) * self.objective.lr_scale
        self.inner.step()
        for p in self.owned:
            p.grad = None
        return norm

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
        for i, (p, own) in enumerate(zip(self.objective.parameters, self.owned, strict=True)):
            prefix = f"{self.objective.name}/{i}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                self.inner.state[own] = {k: piece(v, p, self.ranks).to(own.device).clone() for k, v in found.items()}


class Averages:
    """Exponential averages of the parameters that sample, by parameter name."""

    def __init__(self, model: nn.Module, objectives: list[Objective]) -> None:
        sampling = {id(p) for o in objectives if o.average for p in o.parameters}
        self.live = {name: p for name, p in model.named_parameters() if id(p) in sampling}
        self.mean = {name: part(p).detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """mean <- decay mean + (1 - decay) live."""
        if self.mean:
            torch._foreach_lerp_(list(self.mean.values()), [part(p) for p in self.live.values()], 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the live weights; twice is nothing."""
        for name, p in self.live.items():
            kept = part(p).detach().clone()
            part(p).copy_(self.mean[name])
            self.mean[name].copy_(kept)
