"""What two players minimise: the relativistic pairing loss, and the penalties that make the game converge.

The critic says how much more real one image looks than another. With f(t) = softplus(-t), real x and generated y = G(z):

    critic      E f(D(x) - D(y)),        generator      E f(D(y) - D(x)).                                              (1)

A critic that only had to put y below a fixed line could drop modes unnoticed; here each generated image is held against a real
one. Zero-centred penalties on both distributions make the equilibrium locally attractive:

    R1 = gamma / 2  E |grad_x D(x)|^2,    R2 = gamma / 2  E |grad_y D(y)|^2.                                           (2)

References:
    The GAN is dead; long live the GAN! A Modern GAN Baseline (Huang et al., 2025) arXiv:2501.05441, section 2
    The relativistic discriminator: a key element missing from standard GAN (Jolicoeur-Martineau, 2018) arXiv:1807.00734
    Which Training Methods for GANs do actually Converge? (Mescheder, Geiger, Nowozin, 2018) arXiv:1801.04406
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.nn.higher import of_input_only


def pairing_loss(winner: Tensor, loser: Tensor) -> Tensor:
    """The mean of softplus(loser - winner) over pairs of logits (B,): small where the winner is above (Eq. 1)."""
    return F.softplus(loser.float() - winner.float()).mean()


def squared_gradient(logits: Tensor, x: Tensor) -> Tensor:
    """|grad_x D(x)|^2 (B,) in float32 for logits (B,) computed from x (B, ...); differentiable in D's weights (Eq. 2)."""
    with of_input_only():
        (slope,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return slope.float().square().flatten(1).sum(1)


@contextmanager
def held(*players: nn.Module) -> Iterator[None]:
    """Within, what is computed by these networks has gradients in their inputs only: the other player's turn costs half."""
    learning = [p for player in players for p in player.parameters() if p.requires_grad]
    for p in learning:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in learning:
            p.requires_grad_(True)
