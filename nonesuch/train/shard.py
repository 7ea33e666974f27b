"""Weights, gradients, optimizer state and averages in equal parts on all processes: FSDP2, for models that fit no single one.

A parameter of shape (n, ...) lies along its first axis in pieces of ceil(n / N) rows, of which rank r has the r-th. It is
gathered for the forward pass of the block it belongs to; on the way back its gradient is averaged over the processes and cut up
again, by hooks on `backward`. Hooks see nothing of gradients of gradients, so an objective that has them is refused. What is
saved and sampled is gathered, in the layout of an unsharded run, so that either kind of run resumes from the other's save.

References:
    PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel (Zhao et al., 2023) arXiv:2304.11277
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor, nn

from nonesuch.core.model import Model
from nonesuch.core.objective import Batch
from nonesuch.train.ranks import Ranks

_LEAST = 1 << 16  # parameters of a block that is gathered by itself


class Sharded(nn.Module):
    """The terms of a model's objectives as one forward pass, which is where FSDP2 gathers the weights."""

    def __init__(self, model: Model, ranks: Ranks, least: int = _LEAST) -> None:
        """Cut up the model's weights, in place. Raises ValueError for objectives that have second derivatives."""
        super().__init__()
        for objective in model.objectives():
            if objective.second_derivatives:
                raise ValueError(
                    f"the objective {objective.name!r} of {type(model).__name__} differentiates through gradients, which sharded "
                    "weights do not pass on; train it without --shard."
                )
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model = model
        mesh = init_device_mesh(model.device.type, (ranks.world,))
        for stack in [m for m in model.modules() if isinstance(m, nn.ModuleList)]:
            for block in stack:
                if not isinstance(block, nn.ModuleList) and sum(p.numel() for p in block.parameters()) >= least:
                    fully_shard(block, mesh=mesh)
        fully_shard(self, mesh=mesh)
        self.objectives = model.objectives()  # with the parameters as they are now

    def forward(self, which: int, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The loss terms and the watched numbers of one objective."""
        terms = self.objectives[which].terms(batch)
        return terms.loss, terms.watch

    def gradients(self, which: int, batch: Batch, weight: float) -> tuple[list[Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """The pieces of the whole batch's gradient, and the terms and watched numbers of these rows, whose weight is `weight`."""
        loss, watch = self(which, batch)
        world = torch.distributed.get_world_size()
        (torch.stack(list(loss.values())).sum() * (weight * world)).backward()  # the hooks take the mean over processes
        grads = [part(p.grad) if p.grad is not None else torch.zeros_like(part(p)) for p in self.objectives[which].parameters]
        for p in self.model.parameters():
            p.grad = None
        return grads, loss, watch


def is_cut(tensor: Tensor) -> bool:
    """Whether a tensor is one of pieces; the module that makes them takes a second to import, so it is not asked for here."""
    module: Any = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def part(tensor: Tensor) -> Tensor:
    """What this process has of a tensor: all of one that is not cut."""
    return tensor._local_tensor if is_cut(tensor) else tensor  # type: ignore[attr-defined]


def _rows(tensor: Tensor, ranks: Ranks) -> slice:
    size = -(-tensor.shape[0] // ranks.world)
    return slice(min(ranks.rank * size, tensor.shape[0]), min((ranks.rank + 1) * size, tensor.shape[0]))


def whole(piece: Tensor, like: Tensor, ranks: Ranks) -> Tensor:
    """All of a tensor whose piece, cut as the parameter `like` is, every process gives."""
    if not is_cut(like) or piece.dim() == 0:  # such as the count of Adam's steps
        return piece
    full = piece.new_zeros(like.shape)
    full[_rows(like, ranks)] = piece
    return ranks.sum(full)


def piece(full: Tensor, like: Tensor, ranks: Ranks) -> Tensor:
    """The inverse of `whole`."""
    return full[_rows(like, ranks)] if is_cut(like) and full.dim() else full
