"""Langevin dynamics at temperature 1, of second order in the step at the price of one gradient a step.

The stationary law of dx = -1/2 grad E(x) dt + dW is exp(-E) / Z. Its Euler-Maruyama discretisation, with eps^2 of time a step,

    x <- x - (eps^2 / 2) grad E(x) + eps z,    z ~ N(0, I),                                                          (1)

is off by O(eps^2): on E = |x - m|^2 / (2 v) its variance settles at v / (1 - eps^2 / (4 v)), a third too much at eps^2 = v.
Leimkuhler and Matthews add the mean of two neighbouring draws in place of one,

    x <- x - (eps^2 / 2) grad E(x) + (eps / 2) (z_k + z_{k+1}),                                                       (2)

and the O(eps^2) error is gone. On the Gaussian, y_k = x_k - (eps / 2) z_k follows y <- a y + (1 + a) (eps / 2) z with
a = 1 - eps^2 / (2 v), so var y = (1 + a) v / 2 and var x = var y + eps^2 / 4 = v: exact for every eps^2 < 4 v. Both agree
as eps -> 0. A chain that is annealed, with eps and E changing as it goes, takes half of each draw at its own step's size.

References:
| Bayesian Learning via Stochastic Gradient Langevin Dynamics (Welling & Teh, 2011), Eq. 3
| Rational Construction of Stochastic Numerical Methods for Molecular Sampling (Leimkuhler & Matthews, 2012) arXiv:1203.5428
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor


def gradient(energy: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """grad E at x (B, ...), for an energy that gives (B,); no graph is kept and no weight gets a gradient."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (grad,) = torch.autograd.grad(energy(leaf).sum(), leaf)
    return grad


def langevin(
    energy: Callable[[int, Tensor], Tensor], x: Tensor, eps: Sequence[Tensor | float], noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """Run Eq. 2 from x (B, ...) for len(eps) steps and yield every state.

    energy(k, x) (B,) is step k's; eps[k], broadcast against x, its step size; noise(k) its standard normal draw, of x's shape.
    """
    yield from downhill(lambda k, at: gradient(partial(energy, k), at), x, eps, noise)


def downhill(
    slope: Callable[[int, Tensor], Tensor], x: Tensor, eps: Sequence[Tensor | float], noise: Callable[[int], Tensor]
) -> Iterator[Tensor]:
    """The same for slope(k, x) = grad E of step k, for those who know it better than by automatic differentiation."""
    half = 0.5 * eps[0] * noise(0)
    for k, size in enumerate(eps):
        ahead = 0.5 * eps[min(k + 1, len(eps) - 1)] * noise(k + 1)
        x = x - 0.5 * size**2 * slope(k, x) + half + ahead  # Eq. 2
        half = ahead
        yield x
