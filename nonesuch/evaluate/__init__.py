"""Honest numbers: every metric is a function of two sets of features, and every score carries its extractor, counts and interval.

score           what a number must say of itself          likelihood     bits per dimension, and classes by Bayes' rule
features        images through a network                  utility        train on synthetic, test on real
frechet, kernel, prdc   distances, fidelity, diversity    memorization   are samples copies of training images?
effect          does a condition do what it says?
baselines       three classical models in the same ledger
"""

from nonesuch.evaluate.baselines import BASELINES, Baseline
from nonesuch.evaluate.effect import effects
from nonesuch.evaluate.features import Extractor, Features, fit_extractor, pixel_features
from nonesuch.evaluate.frechet import frechet_distance
from nonesuch.evaluate.kernel import kernel_distance
from nonesuch.evaluate.likelihood import bits_from_nats, bits_per_dim, classify
from nonesuch.evaluate.memorization import Memorization, memorization
from nonesuch.evaluate.prdc import prdc
from nonesuch.evaluate.score import Score
from nonesuch.evaluate.utility import accuracy, labelled_sampler, synthetic_sets, utility

__all__ = [
    "BASELINES",
    "Baseline",
    "Extractor",
    "Features",
    "Memorization",
    "Score",
    "accuracy",
    "bits_from_nats",
    "bits_per_dim",
    "classify",
    "effects",
    "fit_extractor",
    "frechet_distance",
    "kernel_distance",
    "labelled_sampler",
    "memorization",
    "pixel_features",
    "prdc",
    "synthetic_sets",
    "utility",
]
