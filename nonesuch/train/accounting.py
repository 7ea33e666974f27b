"""What rounds of noisy, sampled sums cost in privacy: epsilon of a noise multiplier, and the noise multiplier for an epsilon.

A round takes each picture with probability q and adds normal noise of deviation s C to a sum that one picture moves by at most C.
With z ~ N(0, s^2), a picture more or less is the question whether z or z + B was seen, B = 1 with probability q. Its privacy loss

    L(t) = log [(1 - q) + q exp((2 t - 1) / (2 s^2))]                                                                  (1)

is a random variable; T rounds that may depend on one another lose at most the sum of T independent ones, and

    delta(epsilon) = E max(0, 1 - exp(epsilon - L_1 - ... - L_T))                                                      (2)

is the exact price of the worst case, in both directions (added, removed). The accountant "PRV" computes (2) by a Fourier
transform of the law of L on a grid, and returns an upper bound of epsilon, its own error of discretisation added. "RDP" bounds
Renyi divergences instead, is ten percent and more too high, and takes its place where the grid does not carry: both are upper
bounds, and the smaller is the answer. Both are those of opacus; the tests hold them against dp-accounting.

References:
| Deep Learning with Differential Privacy (Abadi et al., 2016) arXiv:1607.00133
| Renyi Differential Privacy of the Sampled Gaussian Mechanism (Mironov, Talwar, Zhang, 2019) arXiv:1908.10530
| Numerical Composition of Differential Privacy (Gopi, Lee, Wutschitz, 2021) arXiv:2106.02848
| Optimal Accounting of Differential Privacy via Characteristic Function (Zhu, Dong, Wang, 2022) arXiv:2106.08567
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from importlib.metadata import version
from typing import Any, NamedTuple

_ERROR, _FINEST = 2e-3, 2e-4  # of PRV's grid: relative to epsilon, and no finer than
_WITHIN = 1.002  # how far above the least noise multiplier the one that is found may lie
_LEAST, _MOST = 1e-2, 1e6  # noise multipliers that are looked at
_GRID = 60.0  # epsilons up to which PRV is asked: its grid grows with them
_FEW = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 2048)  # orders of RDP; high ones for small epsilons
_ORDERS = (*(1 + i / 10 for i in range(1, 100)), *range(11, 65), *(80, 96, 128, 192, 256, 512, 1024, 2048))


class Spent(NamedTuple):
    """epsilon at delta, an upper bound, and the accountant that gave it."""

    epsilon: float
    accountant: str


@lru_cache(maxsize=256)
def spent(noise: float, rate: float, rounds: int, delta: float) -> Spent:
    """What `rounds` rounds cost. noise: deviation of the noise over the sum's sensitivity; rate: q in (0, 1]; delta in (0, 1).

    Raises ValueError if opacus is not installed.
    """
    if rounds == 0:
        return Spent(0.0, "none")
    if noise <= 0:
        return Spent(math.inf, "none")
    rdp, release = _rdp(noise, rate, rounds, delta), version("opacus")
    prv = _prv(noise, rate, rounds, delta, max(_FINEST, _ERROR * rdp)) if rdp < _GRID else math.inf
    return Spent(prv, f"PRV of opacus {release}") if prv < rdp else Spent(rdp, f"RDP of opacus {release}")


@lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, delta: float, rate: float, rounds: int) -> float:
    """The noise multiplier at which `rounds` rounds cost at most `epsilon` at `delta`, within 0.2 % of the least.

    Raises ValueError if none up to a million is known to (epsilon below 0.01), or opacus is not installed.
    """
    low, high = _LEAST, 1.0
    while _rdp(high, rate, rounds, delta, _FEW) > epsilon:  # RDP costs little, and is never below the price: a place to begin
        low, high = high, 2 * high
        if high > _MOST:
            said = f"{rounds:,} rounds within epsilon {epsilon:g} at delta {delta:g}"
            raise ValueError(f"no noise up to a million is known to keep {said}; allow a larger epsilon.")
    while high / low > 1.1:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if _rdp(middle, rate, rounds, delta, _FEW) <= epsilon else (middle, high)

    def over(noise: float) -> float:
        return math.log(max(spent(noise, rate, rounds, delta).epsilon, 1e-12) / epsilon)

    while over(high) > 0:  # by a rounding
        high *= _WITHIN
    above, below = over(high), math.inf  # of a noise that is enough, and of one that is not
    low = _LEAST
    while high / low > _WITHIN and high > _LEAST:
        # log epsilon is nearly a line in log noise; the first guess has its slope 1, and each aims at the middle of the tolerance
        slope = (above - below) / math.log(high / low) if math.isfinite(below) else -1.0
        aim = high * math.exp(-(above + 0.4 * math.log(_WITHIN)) / slope)
        aim = min(max(aim, low * _WITHIN**0.5, _LEAST), high / _WITHIN**0.5)
        found = over(aim)
        if found <= 0:
            high, above = aim, found
        else:
            low, below = aim, found
    return high


def _rdp(noise: float, rate: float, rounds: int, delta: float, orders: Sequence[float] = _ORDERS) -> float:
    accountants = _opacus()
    with _quiet():
        accountant = accountants.RDPAccountant()
        accountant.history = [(noise, rate, rounds)]
        return float(accountant.get_epsilon(delta=delta, alphas=list(orders)))


def _prv(noise: float, rate: float, rounds: int, delta: float, error: float) -> float:
    """math.inf where the grid does not carry."""
    accountants = _opacus()
    with _quiet():
        accountant = accountants.PRVAccountant()
        accountant.history = [(noise, rate, rounds)]
        try:
            found = float(accountant.get_epsilon(delta=delta, eps_error=error, delta_error=delta * 1e-3))
        except (ValueError, RuntimeError, ArithmeticError, MemoryError, IndexError):
            return math.inf
    return found if math.isfinite(found) and found >= 0 else math.inf


def _opacus() -> Any:
    try:
        from opacus import accountants
    except ImportError:
        raise ValueError("a private run needs opacus to account for it: pip install 'nonesuch[private]'.") from None
    return accountants


@contextmanager
def _quiet() -> Iterator[None]:
    """Remarks on orders and on logarithms of zero, whose terms are rightly nothing, say nothing to the caller."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
