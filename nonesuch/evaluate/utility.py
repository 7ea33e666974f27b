"""What samples are good for: a classifier trained on them alone, tested on real images (classification accuracy score).

    CAS = accuracy on real test images of a classifier trained on as many synthetic images, with the real labels, as real ones.

Beside it stand the same classifier trained on the real images, and on both. The classifier is fixed before anything is seen: for
pictures of at most 16 x 16 pixels an RBF support vector machine on the pixels, C = 10 and gamma = 1 / (dimensions * variance of
its training pixels); for larger ones the network of `features`. Nothing is selected on the test images. The interval is Student's
over the sampling seeds.

References:
| Classification Accuracy Score for Conditional Generative Models (Ravuri & Vinyals, 2019) arXiv:1905.10887
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from nonesuch.core.model import Model
from nonesuch.evaluate.features import fit_extractor
from nonesuch.evaluate.score import Array, Score, bootstrap_mean

__all__ = ["accuracy", "classifier_name", "labelled_sampler", "predict_labels", "synthetic_sets", "utility"]

Labelled = tuple[Tensor, Tensor]
Sampler = Callable[[Tensor, int], Tensor]


def classifier_name(x: Tensor) -> str:
    """The classifier that images (n, C, *size) are judged with."""
    return "svm-rbf" if x[0, 0].numel() <= 256 else "cnn"


def predict_labels(train: Labelled, x: Tensor) -> np.ndarray:
    """Train the fixed classifier on labelled images and predict the labels (n,) of x."""
    images, labels = train
    if len(labels.unique()) == 1:
        return np.full(len(x), int(labels[0]))
    if classifier_name(x) == "cnn":
        return fit_extractor(images, labels, name="classifier").predict(x).argmax(1).numpy()
    from sklearn.svm import SVC

    machine = SVC(C=10.0, gamma="scale").fit(images.flatten(1).double().cpu().numpy(), labels.cpu().numpy())
    return machine.predict(x.flatten(1).double().cpu().numpy())


def labelled_sampler(model: Model) -> Sampler:
    """A function (labels (n,), seed) -> images of the model given those classes of its first Category column."""
    column, category = model.schema.category()
    return lambda labels, seed: model.sample(len(labels), {column: [category.names[i] for i in labels.tolist()]}, seeds=seed)


def synthetic_sets(sample: Sampler, labels: Tensor, seeds: Iterable[int] = range(5)) -> list[Labelled]:
    """One synthetic training set a seed, with exactly the labels of the real one."""
    return [(sample(labels, seed), labels) for seed in seeds]


def utility(synthetic: Sequence[Labelled], train: Labelled, test: Labelled) -> dict[str, Score]:
    """Score synthetic sets by what they teach: "CAS", beside "real" and "real+synthetic".

    synthetic: one (images, labels) a seed; train, test: the real ones; images (n, C, *size) in [-1, 1], labels (n,) int64.
    The floor of each score (a ceiling, here) is the accuracy of the classifier trained on the real images.
    """
    if not synthetic:
        raise ValueError("Utility needs at least one synthetic set; sample the model first.")
    truth = test[1].cpu().numpy()

    def right(*sets: Labelled) -> Array:
        both = (torch.cat([s[0].cpu() for s in sets]), torch.cat([s[1].cpu() for s in sets]))
        return (predict_labels(both, test[0].cpu()) == truth).astype(np.float64)

    real = right(train)
    about = {"extractor": classifier_name(test[0]), "better": "higher", "floor": float(real.mean())}
    counts = {"test": len(truth), "seeds": len(synthetic)}
    n = len(synthetic[0][1])
    found = {
        "CAS": over_seeds("CAS", [right(s) for s in synthetic], n, counts, about),
        "real+synthetic": over_seeds("real+synthetic", [right(train, s) for s in synthetic], n + len(train[1]), counts, about),
    }
    interval = bootstrap_mean(real, "real on real")
    about |= {"interval": interval, "resampled": "test images", "counts": {"test": len(truth)}}
    return found | {"real": Score(float(real.mean()), "real", len(train[1]), **about)}


def accuracy(probabilities: Tensor, labels: Tensor, name: str, extractor: str = "") -> Score:
    """Share of images whose likeliest class (n, classes) is the true one (n,): of Bayes' rule, or of a classifier beside it."""
    right = (probabilities.argmax(1).cpu() == labels.cpu()).double().numpy()
    interval = bootstrap_mean(right, name)
    return Score(right.mean(), name, len(right), extractor, interval=interval, resampled="test images", better="higher")


def over_seeds(name: str, right: Sequence[Array], n: int, counts: dict[str, int], about: dict[str, object]) -> Score:
    """Mean accuracy with Student's 95 % interval over the seeds; over the test images where there is one seed only."""
    from scipy.stats import t

    accuracy = np.array([r.mean() for r in right])
    if len(accuracy) == 1:
        interval, over = bootstrap_mean(right[0], name), "test images"
    else:
        half = float(t.ppf(0.975, len(accuracy) - 1) * accuracy.std(ddof=1) / np.sqrt(len(accuracy)))
        interval, over = (float(accuracy.mean()) - half, min(1.0, float(accuracy.mean()) + half)), "sampling seeds"
    return Score(float(accuracy.mean()), name, n, counts=counts, interval=interval, resampled=over, **about)  # type: ignore[arg-type]
