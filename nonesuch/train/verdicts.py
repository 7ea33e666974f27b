"""What the recorded history of a run says, in plain words: improving, flat, overfitting, diverging, lagging, collapsed.

A `Look` is one set of measurements at one reading of the clock, all under the same keys, so that two looks differ by the weights
alone. A verdict is a function of the looks and of nothing else. Which number tells how good the model is depends on its kind:

    "loss"       one player that minimises one thing: the sum of its terms on held-out images (on training images if none are)
    "distance"   several players, or an energy, whose losses only mean something against each other: how far samples are

A number has changed when it moved by more than `CHANGE` of its scale: of its value where all are positive, else of their range.
What could be chance at one look must stand at the last two.

References:
| Early Stopping - But When? (Prechelt, 1998)
| On GANs and GMMs (Richardson, Weiss, 2018) arXiv:1805.12462 (shares of samples against shares of images)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Kind = Literal["loss", "distance"]

CHANGE: dict[Kind, float] = {"loss": 0.01, "distance": 0.1}  # distances are of a few hundred samples, and jump
LAG = 0.02  # by how much averages may be worse than raw weights
RARE, ALIKE, NEAR = 0.25, 0.4, 1.25  # of a class's share, of the images' variety; times the distance of real images
FEW = 4  # looks before anything is said of a course


@dataclass(frozen=True)
class Look:
    """One look at a run: the clock, named numbers, which kind of number is the score, and what was said.

    values, as far as they could be had: "validation", "training" (the loss under averaged weights, on held-out and on equally
    many training images), the same with "_raw" (raw weights) and "_critic" (terms of players that are not averaged), the single
    terms as "validation/NAME", "bits" (per dimension), "distance" of samples and "distance_floor" of real images, "variety"
    (their mean distance to one another, the images' is 1), and for each class "class/NAME" (share of samples recognised as it,
    the images' is 1) and "variety/NAME".
    """

    images: int
    values: Mapping[str, float] = field(default_factory=dict)
    kind: Kind = "loss"
    verdicts: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The value that is the score."""
        return "distance" if self.kind == "distance" else "validation" if "validation" in self.values else "training"

    @property
    def score(self) -> float:
        """How good the model is, lower is better; NaN where it was not measured."""
        return self.values.get(self.name, math.nan)

    @property
    def text(self) -> str:
        """The verdicts in one line, or the score where there is nothing to say."""
        if self.verdicts:
            return "; ".join(self.verdicts)
        shown = ("validation", "training", "distance") if self.kind == "loss" else ("distance",)
        return ", ".join(f"{TITLES[k]} {number(self.values[k])}" for k in shown if k in self.values) or "too early to say"

    def to_json(self) -> dict[str, Any]:
        """Plain values; what is not finite becomes None, for JSON has no word for it."""
        values = {k: v if math.isfinite(v) else None for k, v in self.values.items()}
        return {"images": self.images, "kind": self.kind, "values": values, "verdicts": list(self.verdicts)}

    @classmethod
    def from_json(cls, entry: Mapping[str, Any]) -> Look:
        """Read back what `to_json` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        values = {str(k): math.nan if v is None else float(v) for k, v in dict(entry["values"]).items()}
        if entry["kind"] not in CHANGE:
            raise ValueError(f"a look's kind is one of {', '.join(CHANGE)}, not {entry['kind']!r}.")
        return cls(int(entry["images"]), values, entry["kind"], tuple(map(str, entry["verdicts"])))


TITLES = {"validation": "validation loss", "training": "training loss", "distance": "distance of samples"}


def number(value: float) -> str:
    """Three significant digits."""
    return f"{value:.3g}"


def count(images: int) -> str:
    """A reading of the clock as budgets are written: 640, 1.5Ki, 1.2Mi."""
    for power, unit in ((3, "Gi"), (2, "Mi"), (1, "Ki")):
        if images >= 1024**power:
            return f"{images / 1024**power:.1f}".removesuffix(".0") + unit
    return str(images)


def best(history: Sequence[Look]) -> Look | None:
    """The look with the best score, the earliest of equals; None where no score is finite."""
    scored = [look for look in history if math.isfinite(look.score)]
    return min(scored, key=lambda look: look.score) if scored else None


def verdicts(history: Sequence[Look]) -> tuple[str, ...]:
    """All that can be said of a run after these looks, the most urgent first."""
    said: list[str] = []
    for course in (diverging, overfitting, improving, flat):  # one of them: a run has one course
        if found := course(history):
            said.append(found)
            break
    return (*said, *(found for one in (collapsed, alike, critic, lagging, near) if (found := one(history))))


def _course(history: Sequence[Look], name: str) -> list[tuple[int, float]]:
    """The clock and the value at each look that has it."""
    return [(look.images, look.values[name]) for look in history if math.isfinite(look.values.get(name, math.nan))]


def _scale(course: Sequence[tuple[int, float]]) -> float:
    values = [v for _, v in course]
    return abs(values[-1]) if min(values) > 0 else max(values) - min(values)


def diverging(history: Sequence[Look]) -> str | None:
    """Something is not finite, or the training loss (the distance) has lost half of what it had won."""
    if not history:
        return None
    last = history[-1]
    for name in ("training", "validation", "distance"):
        if not math.isfinite(last.values.get(name, 0.0)):
            return f"diverging: the {TITLES[name]} is not finite"
    name = "distance" if last.kind == "distance" else "training"
    course = _course(history, name)
    if len(course) < 3:
        return None
    (_, first), (least_at, least), (_, now) = course[0], min(course, key=lambda pair: pair[1]), course[-1]
    lost = now - least
    if last.kind == "distance":
        bad = now > 3 * least and now > 5 * last.values.get("distance_floor", 0.0) and course[-2][1] > 2 * least
    else:
        bad = lost > 0.5 * (first - least) and lost > 5 * CHANGE["loss"] * _scale(course) and course[-2][1] > least
    return f"diverging since {count(least_at)} images: {TITLES[name]} rose from {number(least)} to {number(now)}" if bad else None


def overfitting(history: Sequence[Look]) -> str | None:
    """The loss on held-out images rises while that on training images falls."""
    both = [look for look in history if {"validation", "training"} <= look.values.keys()]
    course = _course(both, "validation")
    if len(course) < FEW or history[-1].kind != "loss":
        return None
    since, least = min(course, key=lambda pair: pair[1])
    margin = CHANGE["loss"] * _scale(course)
    before = next(look for look in both if look.images == since).values["training"]
    now, after = course[-1][1], both[-1].values["training"]
    if since >= course[-2][0] or min(course[-2][1], now) <= least + margin or not after < before:
        return None
    rose, fell = f"validation loss rose from {number(least)} to {number(now)}", f"fell from {number(before)} to {number(after)}"
    return f"overfitting since {count(since)} images: {rose} while training loss {fell}"


def improving(history: Sequence[Look]) -> str | None:
    """The best score of the last quarter of what has been run is better than the best before it."""
    course = _course(history, history[-1].name) if history else []
    if len(course) < FEW:
        return None
    old = [v for images, v in course if images <= 0.75 * course[-1][0]]
    new = [v for images, v in course if images > 0.75 * course[-1][0]]
    then, now, scale = min(old, default=course[0][1]), min(new), max(_scale(course), 1e-12)
    fall = then - now
    if fall <= CHANGE[history[-1].kind] * scale:
        return None
    share = 100 * fall / (then if now > 0 else scale)
    return f"still improving: {TITLES[history[-1].name]} fell {share:.0f} % over the last quarter, to {number(now)}"


def flat(history: Sequence[Look]) -> str | None:
    """The score has stayed where it is for at least a quarter of what has been run."""
    course = _course(history, history[-1].name) if history else []
    if len(course) < FEW:
        return None
    now, margin = course[-1][1], CHANGE[history[-1].kind] * _scale(course)
    since = course[-1][0]
    for images, value in reversed(course):
        if abs(value - now) > margin:
            break
        since = images
    if course[-1][0] - since < 0.25 * course[-1][0]:
        return None
    return f"flat since {count(since)} images: {TITLES[history[-1].name]} at {number(now)}"


def _standing(history: Sequence[Look], holds: Callable[[Look], bool], needs: str) -> Look | None:
    """The last look that measured `needs`, if something held at the last two of them."""
    two = [look for look in history if needs in look.values][-2:]
    return two[-1] if len(two) == 2 and all(map(holds, two)) else None


def collapsed(history: Sequence[Look]) -> str | None:
    """Classes that hardly any sample is recognised as, or whose samples are all alike."""
    two = [look for look in history if any(k.startswith("class/") for k in look.values)][-2:]
    if len(two) < 2:
        return None
    names = [k.removeprefix("class/") for k in two[-1].values if k.startswith("class/")]
    missing = [n for n in names if all(look.values.get(f"class/{n}", 1.0) < RARE for look in two)]
    same = [n for n in names if n not in missing and all(look.values.get(f"variety/{n}", 1.0) < ALIKE for look in two)]
    if not missing and not same:
        return None
    total = len(missing) + len(same)
    why = [f"hardly any sample looks like {', '.join(missing)}"] if missing else []
    why += [f"samples of {', '.join(same)} are all alike"] if same else []
    classes = "one class" if total == 1 else f"{total} classes"
    return f"{classes} collapsed: {', '.join([*missing, *same])} ({'; '.join(why)})"


def alike(history: Sequence[Look]) -> str | None:
    """Samples that vary much less than the images do."""
    last = _standing(history, lambda look: look.values["variety"] < ALIKE, "variety")
    return f"samples are all alike: they vary {number(last.values['variety'])} times as much as the images do" if last else None


def critic(history: Sequence[Look]) -> str | None:
    """A critic that tells the images it was trained on from samples, and held-out ones much less well: it knows them by heart."""

    def heart(look: Look) -> bool:
        return look.values["validation_critic"] > 1.25 * look.values["training_critic"] > 0

    last = _standing(history, heart, "validation_critic")
    if last is None:
        return None
    there, here = (number(last.values[f"{side}_critic"]) for side in ("training", "validation"))
    return f"the critic overfits: its loss is {there} on training images and {here} on held-out ones"


def lagging(history: Sequence[Look]) -> str | None:
    """Averaged weights that are worse than the raw ones they follow."""
    side = "validation" if history and "validation_raw" in history[-1].values else "training"
    course = _course(history, side)

    def behind(look: Look) -> bool:
        return look.values[side] > look.values[f"{side}_raw"] + LAG * _scale(course)

    last = _standing([look for look in history if side in look.values], behind, f"{side}_raw")
    if last is None or last.kind != "loss" or not course:
        return None
    mean, raw = number(last.values[side]), number(last.values[f"{side}_raw"])
    return f"averages lag behind raw weights: {TITLES[side]} {mean} against {raw} (a shorter average_half_life follows sooner)"


def near(history: Sequence[Look]) -> str | None:
    """Samples as near to the images as other real images are."""

    def there(look: Look) -> bool:
        return look.values["distance"] <= NEAR * look.values.get("distance_floor", -1.0)

    if overfitting(history) or not _standing(history, there, "distance"):  # copies are near, too
        return None
    return "samples are as near to the images as real ones are"
