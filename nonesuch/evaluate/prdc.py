"""Precision, recall, density and coverage: how real the samples are, and how much of the real they reach, apart.

Around every image of a set lies a ball that reaches to its k-th nearest neighbour in that set; the balls together stand for the
set's support. With real images x_i (radius r_i), samples y_j (radius s_j), N and M of them:

    precision = mean_j 1[y_j lies in some ball of a real image]                      (Kynkaanniemi 2019, Eq. 2)        (1)
    recall    = mean_i 1[x_i lies in some ball of a sample]                          (the same, Eq. 3)                 (2)
    density   = mean_j #{i : |y_j - x_i| <= r_i} / k                                 (Naeem 2020, Eq. 6)               (3)
    coverage  = mean_i 1[some sample lies in the ball of x_i]                        (Naeem 2020, Eq. 8)               (4)

Samples that drop modes lower recall and coverage; samples that are noise lower precision and density. Density may exceed 1.

References:
| Improved Precision and Recall Metric for Assessing Generative Models (Kynkaanniemi et al., 2019) arXiv:1904.06991
| Reliable Fidelity and Diversity Metrics for Generative Models (Naeem et al., 2020) arXiv:2002.09797
"""

from dataclasses import dataclass

import numpy as np

from nonesuch.evaluate._pairs import reaches, vectors, within
from nonesuch.evaluate.features import Features, comparison, floor_features
from nonesuch.evaluate.score import Array, Score, bootstrap_mean

__all__ = ["Membership", "prdc", "prdc_sets"]


@dataclass(frozen=True)
class Membership:
    """What each image contributes; the scores are means. precise, dense (M,) by sample; recalled, covered (N,) by real image."""

    precise: Array
    recalled: Array
    dense: Array
    covered: Array

    def means(self) -> dict[str, float]:
        """The four scores by name."""
        arrays = {"precision": self.precise, "recall": self.recalled, "density": self.dense, "coverage": self.covered}
        return {name: float(array.mean()) for name, array in arrays.items()}


def prdc_sets(samples: Array, real: Array, *, k: int = 5) -> Membership:
    """Precision, recall, density and coverage image by image, features (M, d) of samples and (N, d) of real images.

    Float32 or float64. Every decision is that of float64 sums of squared differences, whatever decides it (`_pairs`).
    """
    samples, real = np.asarray(samples), np.asarray(real)
    if min(len(samples), len(real)) <= k:
        raise ValueError(f"k={k} neighbours need more than {k} images on each side; lower k or give more images.")
    x, y = vectors(real, samples)
    reach_real = reaches(x, k)
    reach_samples = reaches(*vectors(samples), k)  # from their own mean, for they may lie close together far away
    inside = np.zeros(len(samples))  # in how many balls of real images does a sample lie
    recalled, covered = np.zeros(len(real)), np.zeros(len(real))
    for (sample, holds), (_, held) in within(y, x, reach_real[None], reach_samples[:, None]):
        inside += np.bincount(sample, minlength=len(samples))
        covered[holds] = 1
        recalled[held] = 1
    return Membership(
        precise=(inside > 0).astype(np.float64),  # Eq. 1
        recalled=recalled,  # Eq. 2
        dense=inside / k,  # Eq. 3
        covered=covered,  # Eq. 4
    )


def prdc(samples: Features, reference: Features, *, real: Features | None = None, k: int = 5, seed: int = 0) -> dict[str, Score]:
    """Score precision, recall, density and coverage against reference images; `real` (training) gives the ceiling at the same n.

    The interval resamples the images a score is the mean of, the balls as they are: duplicates would shrink the balls to nothing.
    """
    about = comparison(samples, reference)
    about["extractor"] += f", k={k}"
    found = prdc_sets(samples.array, reference.array, k=k)
    ceiling = None if real is None else prdc_sets(floor_features(samples, real, seed).array, reference.array, k=k).means()
    arrays = {"precision": found.precise, "recall": found.recalled, "density": found.dense, "coverage": found.covered}
    over = {
        "precision": "sampled images",
        "density": "sampled images",
        "recall": "reference images",
        "coverage": "reference images",
    }
    return {
        name: Score(
            value, name, **about, interval=bootstrap_mean(arrays[name], seed, name, replicates=500), better="higher",
            resampled=f"{over[name]}, neighbourhoods fixed", floor=None if ceiling is None else ceiling[name],
        )
        for name, value in found.means().items()
    }  # fmt: skip
