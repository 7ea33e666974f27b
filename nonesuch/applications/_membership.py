"""Can one tell which images a model was trained on? Attacks by its own scores, held to images that it never saw.

An attack gives every image a number a(x), smaller for what the model knows better, and calls the smallest members. Over as many
training images as held-out ones of each class,

    AUC = P(a(member) < a(other)), ties half;       TPR at 1 % FPR = share of members below the 1 % quantile of the others,    (1)

0.5 and 1 % for a model that remembers nothing. What is at hand depends on the family:

    log-likelihood    -log p(x | given)                                        of a Likelihood
    denoising loss    E |x - D(alpha x + sigma eps)|^2 over noise levels       of a Denoiser
    energy            E(x | given)                                             of an Energy
    reconstruction    |x - decode(encode(x))|^2                                of an Encoder with a bottleneck
    distance          min over samples |x - s|^2 in pixels                     of anything that samples, a GAN too

Some pictures are hard for every model, which hides what this one remembers. **Calibrated** attacks subtract what the difficulty
predicts: a regression of a(x) on the picture's size when compressed, its contrast, its edges, its largest components and its
distance to other held-out images, fitted on one half of the held-out images and applied to the other half and to training images.
Nothing in it was learned from training images, so it cannot leak them itself.

References:
| Membership Inference Attacks From First Principles (Carlini et al., 2022) arXiv:2112.03570: TPR at low FPR; difficulty
| GAN-Leaks: A Taxonomy of Membership Inference Attacks against Generative Models (Chen et al., 2020) arXiv:1909.03935
| Membership Inference Attacks against Diffusion Models (Matsumoto et al., 2023) arXiv:2302.03262: denoising loss
| Scalable Membership Inference Attacks via Quantile Regression (Bertran et al., 2023) arXiv:2307.03694: difficulty by regression
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.given import Category, Given
from nonesuch.core.model import Denoiser, Encoder, Energy, Likelihood, Model
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.evaluate._pairs import nearest
from nonesuch.evaluate.score import Array, Score, bootstrap_counts, keyed

FPR = 0.01
LEVELS = (0.1, 0.2, 0.3, 0.45, 0.6)  # t of the denoising loss: the informative middle and below
_COMPONENTS = 16
Attack = Callable[[Tensor, Given, Seeds], Tensor]


@dataclass(frozen=True)
class Membership:
    """One attack: its name, whether difficulty was taken out, and its scores "AUC" and "TPR"."""

    attack: str
    calibrated: bool
    auc: Score
    tpr: Score


def attacks(model: Model | None, samples: Tensor) -> dict[str, Attack]:
    """What can be tried on this model, by name; `samples` (n, C, *size) serve the distance."""
    found: dict[str, Attack] = {}
    if isinstance(model, Likelihood):
        able = model
        found["log-likelihood"] = lambda x, given, seeds: -able.log_prob(x, given, seeds=seeds).nats
    if isinstance(model, Denoiser):
        found["denoising loss"] = lambda x, given, seeds: denoising_loss(model, x, given, seeds)
    if isinstance(model, Energy):
        ranked = model
        found["energy"] = lambda x, given, seeds: ranked.energy(x.to(model.device), given.to(model.device))  # type: ignore[union-attr]
    if isinstance(model, Encoder) and (model.latent_spec.kind == "categorical" or model.latent_spec.numel < model.spec.numel):
        bottle = model
        found["reconstruction"] = lambda x, given, seeds: reconstruction_loss(bottle, x, given, seeds)
    points = samples.flatten(1).double().cpu().numpy()
    found["distance"] = lambda x, given, seeds: torch.from_numpy(nearest(x.flatten(1).double().cpu().numpy(), points)[0])
    return found


def denoising_loss(model: Denoiser, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
    """(n,) float64: the squared error of D at each of `LEVELS`, in units of its mean over these images, averaged."""
    assert isinstance(model, Model)
    x, total = x.to(model.device), torch.zeros(len(x), dtype=torch.float64)
    for step, level in enumerate(LEVELS):
        t = torch.full((len(x),), level, device=x.device)
        alpha, sigma = (v.view(-1, *[1] * (x.dim() - 1)) for v in model.schedule(t))
        eps = seeds.normal("membership", *x.shape[1:], step=step, device=x.device)
        error = (x - model.denoise(alpha * x + sigma * eps, t, given.to(x.device)).float()).square().flatten(1).mean(1)
        total += error.double().cpu() / _level_scale(model, level)
    return total / len(LEVELS)


def _level_scale(model: Denoiser, level: float) -> float:
    """What an error at this level is divided by, sigma^2 / (sigma^2 + alpha^2): the error of a denoiser that knows unit noise."""
    alpha, sigma = (float(v) for v in model.schedule(torch.tensor([level])))
    return max(1e-12, sigma**2 / (sigma**2 + alpha**2))


def reconstruction_loss(model: Encoder, x: Tensor, given: Given, seeds: Seeds) -> Tensor:
    """(n,) the mean squared error of decoding what was encoded."""
    assert isinstance(model, Model)
    back = model.decode(model.encode(x, given, seeds=seeds), given)
    return (x.to(back.device) - back).float().square().flatten(1).mean(1)


def matched(train: Images, held_out: Images, n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of as many images of each split and class, at most n of each split, in an order that mixes the classes."""
    label = next((k for k, c in train.schema.columns.items() if isinstance(c, Category)), None)
    classes = [s.labels(label).numpy() if label else np.zeros(len(s), dtype=np.int64) for s in (train, held_out)]
    each = max(1, n // max(1, len(np.unique(classes[1]))))
    orders = [keyed("membership", s.name, seed).permutation(len(s)) for s in (train, held_out)]
    picked: list[list[np.ndarray]] = [[], []]
    for one in np.intersect1d(*classes):
        both = [order[y[order] == one] for order, y in zip(orders, classes, strict=True)]
        count = min(each, *map(len, both))
        for place, index in enumerate(both):
            picked[place].append(index[:count])
    if not picked[0]:
        raise ValueError("no class has both training and held-out images; membership needs some of each.")
    mix = keyed("membership mix", seed).permutation(sum(map(len, picked[0])))
    return tuple(torch.from_numpy(np.concatenate(p)[mix]) for p in picked)  # type: ignore[return-value]


def inferred(
    model: Model | None, train: Images, held_out: Images, samples: Tensor, *, n: int = 1000, seed: int = 0
) -> Iterator[tuple[str, list[Membership]]]:
    """Try every attack: yields its name with its scores, plain and calibrated, as it is done."""
    picked = matched(train, held_out, n, seed)
    both = [split[index] for split, index in zip((train, held_out), picked, strict=True)]
    x = torch.cat([b.x.float() for b in both])
    given = _conditions(model, both)
    count, keys = len(picked[0]), Seeds.of(seed, len(x))
    hard = None
    for name, attack in attacks(model, samples).items():
        with torch.no_grad():
            parts = [attack(x[i : i + 256], given[i : i + 256], keys[i : i + 256]).double().cpu() for i in range(0, len(x), 256)]
        values = torch.cat(parts).numpy()
        if not np.isfinite(values).all():
            raise ValueError(f"the {name} of some images is not finite; look at the model before it is audited.")
        hard = difficulty(x.flatten(1).double().numpy(), count) if hard is None else hard
        plain = _judged(name, False, values[:count], values[count:], seed)
        yield name, [plain, _judged(name, True, *without_difficulty(values, hard, count), seed)]


def _conditions(model: Model | None, both: list[Images]) -> Given:
    """The images' own conditions, as the model reads them; what it is not given by the data is missing."""
    n = sum(map(len, both))
    if model is None or not model.schema:
        return Given(n)
    names = [k for k in model.schema.columns if all(k in b.given.columns for b in both)]
    coded = [b.select(names).recoded(model.schema.select(names)).given for b in both]
    return Given(n, {**model.schema.missing(n).columns, **{k: torch.cat([c.columns[k] for c in coded]) for k in names}})


# -- difficulty --------------------------------------------------------------------------------------------------------


def difficulty(x: Array, members: int) -> list[Array]:
    """What is plain to see of each picture, for either half of the held-out images as the reference: two of (n, features).

    x: (n, d), members first. The reference of fold k is the half of the held-out images whose place is k modulo 2.
    """
    size = np.array([len(zlib.compress(np.round((row + 1) * 127.5).clip(0, 255).astype(np.uint8).tobytes(), 6)) for row in x])
    edges = np.abs(np.diff(x, axis=1)).mean(1)
    std = x.std(1)
    plain = np.stack([np.log(size), x.mean(1), std, np.log(std + 1e-3), edges, np.log(edges + 1e-3)], 1)
    out, place = [], np.arange(len(x))
    for fold in (0, 1):
        reference = place[(place >= members) & ((place - members) % 2 == fold)]
        centre = x[reference].mean(0)
        axes = np.linalg.svd(x[reference] - centre, full_matrices=False)[2][:_COMPONENTS]
        distance = np.empty(len(x))
        rest = np.setdiff1d(place, reference)
        distance[rest] = nearest(x[rest], x[reference])[0]
        distance[reference] = nearest(x[reference], x[reference], same=True)[0]
        out.append(np.concatenate([plain, (x - centre) @ axes.T, np.log(distance + 1e-3)[:, None]], 1))
    return out


def without_difficulty(values: Array, hard: list[Array], members: int) -> tuple[Array, Array]:
    """Values less what their difficulty predicts, of members and of others, each judged by the half it is not in."""
    place = np.arange(len(values))
    held = place >= members
    fold_of = np.where(held, place - members, place) % 2
    kept: tuple[list[Array], list[Array]] = ([], [])
    for fold, features in enumerate(hard):
        reference, judged = held & (fold_of == fold), fold_of != fold
        mean, std = features[reference].mean(0), features[reference].std(0) + 1e-9
        design = np.concatenate([np.ones((len(values), 1)), (features - mean) / std], 1)
        square = design[reference].T @ design[reference] + np.diag([0.0, *[0.01 * reference.sum()] * features.shape[1]])
        rest = values - design @ np.linalg.solve(square, design[reference].T @ values[reference])
        rest /= rest[reference].std() + 1e-12
        kept[0].append(rest[judged & ~held])
        kept[1].append(rest[judged & held])
    return np.concatenate(kept[0]), np.concatenate(kept[1])


# -- scores ------------------------------------------------------------------------------------------------------------


def auc(members: Array, others: Array) -> float:
    """P(member < other), ties half (Eq. 1): the area under the curve of true against false positives."""
    order = np.sort(others)
    below, upto = (np.searchsorted(order, members, side) for side in ("left", "right"))
    return float(1 - (below + upto).mean() / (2 * len(others)))


def tpr(members: Array, others: Array, fpr: float = FPR) -> float:
    """Share of members below all but `fpr` of the others (Eq. 1)."""
    return float((members < np.sort(others)[int(fpr * len(others))]).mean())


def _judged(attack: str, calibrated: bool, members: Array, others: Array, seed: int) -> Membership:
    about = {"n": len(members), "counts": {"held_out": len(others)}, "resampled": "images", "better": "lower"}
    name = f"{attack}, calibrated" if calibrated else attack
    values = {"AUC": auc, "TPR": tpr}
    spread: dict[str, list[float]] = {k: [] for k in values}
    drawn = [bootstrap_counts(len(v), 300, "membership", side, seed).astype(int) for side, v in enumerate((members, others))]
    for mine, theirs in zip(*drawn, strict=True):
        pair = np.repeat(members, mine), np.repeat(others, theirs)
        for key, measure in values.items():
            spread[key].append(measure(*pair))
    scores = {}
    for key, floor in (("AUC", 0.5), ("TPR", FPR)):
        low, high = np.quantile(spread[key], (0.025, 0.975))
        title = f"{key} of {name}" if key == "AUC" else f"TPR at {FPR:.0%} FPR of {name}"
        scores[key] = Score(values[key](members, others), title, floor=floor, interval=(float(low), float(high)), **about)  # type: ignore[arg-type]
    return Membership(attack, calibrated, scores["AUC"], scores["TPR"])
