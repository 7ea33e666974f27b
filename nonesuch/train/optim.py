"""Adam for one objective, and the exponential averages of what samples; both as tensors with names, so that they resume."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nonesuch.core.objective import Objective
from nonesuch.train.recipe import Recipe


class Adam:
    """One objective's optimizer: gradient clipping, then Adam with decoupled weight decay.

    References: Decoupled Weight Decay Regularization (Loshchilov, Hutter, 2017) arXiv:1711.05101
    """

    def __init__(self, objective: Objective, recipe: Recipe) -> None:
        self.objective, self.recipe = objective, recipe
        self.inner = torch.optim.AdamW(
            objective.parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay, fused=True
        )

    @torch.no_grad()
    def step(self, grads: tuple[Tensor, ...], images: int) -> Tensor:
        """Apply the gradients at the clock's reading; returns their norm before clipping. Not applied when it is not finite."""
        norm = torch.nn.utils.get_total_norm(grads)
        if not torch.isfinite(norm):
            return norm
        scale = (self.recipe.clip / (norm + 1e-8)).clamp(max=1.0) if self.recipe.clip > 0 else torch.ones_like(norm)
        # Not in place: two parameters' gradients may be one tensor (of a sum), or a single number spread out (of a mean).
        for p, g in zip(self.objective.parameters, torch._foreach_mul(grads, scale), strict=True):
            p.grad = g
        self.inner.param_groups[0]["lr"] = self.recipe.lr_at(images) * self.objective.lr_scale
        self.inner.step()
        for p in self.objective.parameters:
            p.grad = None
        return norm

    def state(self) -> dict[str, Tensor]:
        """Named tensors of the optimizer's state; empty before the first step."""
        return {
            f"{self.objective.name}/{i}/{key}": value
            for i, p in enumerate(self.objective.parameters)
            for key, value in self.inner.state.get(p, {}).items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        for i, p in enumerate(self.objective.parameters):
            prefix = f"{self.objective.name}/{i}/"
            found = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            if found:
                self.inner.state[p] = {k: v.to(p.device).clone() for k, v in found.items()}


class Averages:
    """Exponential averages of the parameters that sample, by parameter name."""

    def __init__(self, model: nn.Module, objectives: list[Objective]) -> None:
        sampling = {id(p) for o in objectives if o.average for p in o.parameters}
        self.live = {name: p for name, p in model.named_parameters() if id(p) in sampling}
        self.mean = {name: p.detach().clone() for name, p in self.live.items()}

    @torch.no_grad()
    def update(self, decay: float) -> None:
        """mean <- decay mean + (1 - decay) live."""
        if self.mean:
            torch._foreach_lerp_(list(self.mean.values()), list(self.live.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the averages and the live weights; twice is nothing."""
        for name, p in self.live.items():
            kept = p.detach().clone()
            p.copy_(self.mean[name])
            self.mean[name].copy_(kept)
