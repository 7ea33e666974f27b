"""One ledger of likelihood: bits per dimension of every model that has a likelihood, and classes by Bayes' rule.

    bits/dim = -log P(x | given) / (D log 2),        D = channels x pixels                                        (1)

where P is the probability of the image on its grid of levels, never a density, and the score says whether the number is exact, a
bound or an estimate. A model that gives all grids the same probability scores log2(levels). Classes follow from P(x | y), without
further training,

    P(y | x) = P(x | y) P(y) / sum_y' P(x | y') P(y'),                                                            (2)

with training's class frequencies as P(y), and for a bound with the bound in the place of log P(x | y).

References:
| A note on the evaluation of generative models (Theis et al., 2016) arXiv:1511.01844
| On Discriminative vs. Generative Classifiers (Ng & Jordan, 2001)
"""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.given import Given
from nonesuch.core.model import Energy, Likelihood, Model
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.evaluate.score import Score, bootstrap_mean

__all__ = ["bits_from_nats", "bits_per_dim", "classify", "require_likelihood"]


def require_likelihood(model: Model) -> Likelihood:
    """The model as one with a likelihood; ValueError with the reason if it has none."""
    name = type(model).__name__
    if isinstance(model, Likelihood):
        return model
    if isinstance(model, Energy):
        raise ValueError(
            f"{name} is unnormalised: its energy is -log p up to an unknown constant, so it has no bits per dimension."
        )
    raise ValueError(f"{name} has no likelihood: it samples without saying how probable an image is; judge it by its samples.")


def bits_from_nats(nats: Tensor, kind: str, dims: int | Tensor, *, given: str = "", seed: int = 0) -> Score:
    """The score of log-probabilities (n,) in nats of images of `dims` dimensions, or of (n,); interval over images (Eq. 1)."""
    values = -nats.detach().double().cpu().numpy() / (np.asarray(dims) * math.log(2))
    dims = round(float(dims.double().mean())) if isinstance(dims, Tensor) else dims
    name = f"bits/dim given {given}" if given else "bits/dim"
    return Score(
        float(values.mean()), name, len(values), kind=kind, counts={"dimensions": dims}, better="lower",
        interval=bootstrap_mean(values, seed, name) if np.isfinite(values).all() else None, resampled="test images",
    )  # fmt: skip


def bits_per_dim(
    model: Model, data: Images | Tensor, given: Any = None, *, method: str | None = None, samples: int = 1, seeds: Seeds | int = 0
) -> Score:
    """Score a model's likelihood of images in bits per dimension; lower is better.

    data: images (n, C, *size), or a split with x and given, whose pictures count by their own number of values. given: None
    (log P(x)), a condition as in `model.log_prob`, or the names of the split's own columns, such as "label". method, samples,
    seeds: as in `log_prob`.
    Raises ValueError for a model without a likelihood, and for continuous images, whose densities are not comparable.
    """
    with_likelihood = require_likelihood(model)
    if model.spec.levels is None:
        raise ValueError("Continuous images have a density and no grid of levels, so bits per dimension would not be comparable.")
    if not len(data):
        raise ValueError("There are no images to score; the split is empty.")
    condition, names = condition_of(model, data, given)
    seed = seeds if isinstance(seeds, int) else 0
    if not isinstance(data, Tensor) and data.bucket is not None:
        return _bits_of_sizes(with_likelihood, data, model.schema.given(len(data), condition), names, method, samples, seeds)
    x = data if isinstance(data, Tensor) else data.x
    found = with_likelihood.log_prob(x, condition, method=method, samples=samples, seeds=seeds)
    return bits_from_nats(found.nats, found.kind, x[0].numel(), given=names, seed=seed)


def _bits_of_sizes(
    model: Likelihood, data: Images, given: Given, names: str, method: str | None, samples: int, seeds: Seeds | int
) -> Score:
    """The score of pictures of several sizes."""
    nats, dims, keys, kind = torch.zeros(len(data)).double(), torch.zeros(len(data)).long(), Seeds.of(seeds, len(data)), ""
    for rows in filter(len, map(data.rows, data.spec.sizes)):
        x = data.inside(rows)
        found = model.log_prob(x, given[rows], method=method, samples=samples, seeds=keys[rows.tolist()])
        nats[rows], dims[rows], kind = found.nats.double().cpu(), x[0].numel(), found.kind
    return bits_from_nats(nats, kind, dims, given=names, seed=seeds if isinstance(seeds, int) else 0)


def condition_of(model: Model, data: Images | Tensor, given: Any) -> tuple[Any, str]:
    """The condition a caller means, and the names of its columns; names of columns are looked up in the split."""
    if given is None or isinstance(given, dict):
        return given, ", ".join(map(str, given or ()))
    if isinstance(given, Given):
        return given, ", ".join(given.columns)
    if given == "as trained":
        raise ValueError(
            "The likelihood of an image needs its own condition, not a drawn one; give a column's name or its values."
        )
    names = [given] if isinstance(given, str) else list(given)
    if isinstance(data, Tensor):
        raise ValueError(f"Images without their conditions were given; pass a split, or given={{{names[0]!r}: values}}.")
    data, missing = data.made_as(model.schema), model.schema.missing(len(data)).columns
    known = {name: data.given.columns[name] for name in names if model.schema[name] and name in data.given.columns}
    if len(known) < len(names):
        raise ValueError(
            f"The split has no column {next(n for n in names if n not in known)!r}; it has {sorted(data.given.columns)}."
        )
    return Given(len(data), {**missing, **known}), ", ".join(names)


def classify(
    model: Model, x: Tensor, *, column: str | None = None, method: str | None = None, samples: int = 1, seeds: Seeds | int = 0
) -> Tensor:
    """P(y | x) of images x (B, C, *size) by Bayes' rule (Eq. 2), a Category column's classes (the first), float64 (B, K).

    The same draws serve every class, so that the noise of a bound cancels in the comparison.
    """
    with_likelihood = require_likelihood(model)
    first, category = model.schema.category() if column is None else (column, model.schema.select([column]).category()[1])
    joint = [
        with_likelihood.log_prob(x, {first: name}, method=method, samples=samples, seeds=seeds).nats.double()
        + math.log(max(p, 1e-30))
        for name, p in zip(category.names, category.frequencies, strict=True)
    ]
    return torch.stack(joint, dim=1).softmax(dim=1)  # Eq. 2
