"""A comparison as one HTML page: no script, no network request, readable on a phone, light and dark; and as a text table.

Pictures are PNGs inside the page at their own pixels, enlarged by the browser without smoothing. Charts are rows with a dot on a
scale, drawn by style rules alone, so that they reflow like text. All text is escaped by the template engine, and the page's own
content policy forbids every request.
"""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor

from nonesuch.core.artifact import read_spec
from nonesuch.core.image import ImageSpec
from nonesuch.data.pictures import png_bytes, sheet
from nonesuch.evaluate.effect import VERDICTS as EFFECTS
from nonesuch.evaluate.effect import verdict as effect_verdict
from nonesuch.evaluate.panel import VERDICTS
from nonesuch.evaluate.score import Score
from nonesuch.train.verdicts import TITLES, Look, count
from nonesuch.train.verdicts import best as best_look

if TYPE_CHECKING:
    from nonesuch.evaluate.compare import Comparison, Row

__all__ = ["render", "text_table"]

# key in scores, heading, better, as a percentage, meaning
QUALITY = (
    ("FD", "Fréchet distance", "lower", False, "two Gaussians fitted to the features"),
    ("KD", "kernel distance", "lower", False, "unbiased; 0 for a perfect sampler"),
    ("precision", "precision", "higher", True, "samples that lie among real images"),
    ("recall", "recall", "higher", True, "real images that lie among samples"),
    ("density", "density", "higher", False, "how thickly samples lie among real images"),
    ("coverage", "coverage", "higher", True, "real images with a sample nearby"),
)
UTILITY = (
    ("CAS", "trained on samples", "higher", True, ""),
    ("real+synthetic", "trained on real and samples", "higher", True, ""),
    ("bayes", "P(y | x) by Bayes' rule", "higher", True, ""),
)
QUESTIONS = (
    ("nearer", "nearer", "samples nearer to a training image than held-out images are"),
    ("membership", "nearest is training", "samples whose nearest real image was trained on"),
    ("copies", "within copying distance", "samples nearer than all but 1 % of held-out images"),
)


# -- pictures ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Figure:
    """A picture in the page: its address, its size there in CSS pixels, and what it shows in words."""

    src: str
    width: int
    height: int
    alt: str


def figure(grid: Tensor, spec: ImageSpec, alt: str, wide_px: int = 400, gap: int | None = None) -> Figure | None:
    """A grid as a figure about `wide_px` wide, its pixels enlarged a whole number of times where they are few."""
    if not grid.numel():
        return None
    pixels = sheet(grid, spec, gap)
    height, width = pixels.shape[:2]
    times = max(1, round(wide_px / width)) if width < wide_px else wide_px / width
    data = base64.b64encode(png_bytes(pixels)).decode()
    return Figure(f"data:image/png;base64,{data}", round(width * times), round(height * times), alt)


# -- numbers -----------------------------------------------------------------------------------------------------------


def short(value: float | None, percent: bool = False) -> str:
    """Three or four significant digits with a true minus sign; percentages with one decimal."""
    if value is None or not math.isfinite(value):
        return "none" if value is None else "not finite"
    if percent:
        return f"{100 * value:.1f} %"
    places = max(0, 2 - math.floor(math.log10(abs(value)))) if value else 0
    return f"{value:,.{min(places, 4)}f}".replace("-", "\N{MINUS SIGN}")


def interval(score: Score | None, percent: bool = False) -> str:
    """ "2.01 to 2.04", or nothing."""
    if score is None or score.interval is None:
        return ""
    low, high = (short(v, percent).removesuffix(" %") for v in score.interval)
    return f"{low} to {high}"


def p_value(value: float) -> str:
    """A p-value as it is said: "0.31", or "below 0.0001"."""
    return "below 0.0001" if value < 1e-4 else f"{value:.2g}" if value < 0.0995 else f"{value:.2f}"


def duration(seconds: float | None) -> str:
    """Seconds as a person says them."""
    if seconds is None:
        return "none"
    if seconds < 1:
        return f"{1000 * seconds:.3g} ms"
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def short_name(row: Row) -> str:
    """What a row is called in a chart: the family, or the whole name where a family has more than one model."""
    return row.name if row.family == "classical" else row.family


def best(rows: Iterable[Row], key: str, better: str) -> str:
    """The name of the row with the best score among those that do not copy."""
    found = [(r.scores[key].value, r.name) for r in rows if key in r.scores and r.verdict != "copies"]
    return (min(found) if better == "lower" else max(found))[1] if found else ""


@dataclass(frozen=True)
class Dot:
    """A row of a chart: positions in percent of the scale."""

    row: Any
    label: str
    at: float
    low: float
    high: float
    value: str
    interval: str
    word: str


@dataclass(frozen=True)
class Chart:
    """Dots on one scale from `start` to `end`, with a reference line."""

    dots: list[Dot]
    start: str
    end: str
    reference: float | None


def chart(rows: Sequence[Row], key: str, *, percent: bool = False, reference: float | None = None) -> Chart | None:
    """The rows that have the score, best first, on a scale that holds all intervals and the reference."""
    found = [(r, r.scores[key]) for r in rows if key in r.scores and math.isfinite(r.scores[key].value)]
    if not found:
        return None
    sign = -1 if found[0][1].better == "higher" else 1
    found.sort(key=lambda pair: sign * pair[1].value)
    ends = [v for _, s in found for v in (s.value, *(s.interval or ()))] + ([reference] if reference is not None else [])
    low, high = min(ends), max(ends)
    margin = 0.04 * (high - low) or 0.05
    low, high = low - margin, high + margin
    low, high = (max(0.0, low), min(1.0, high)) if percent else (low, high)

    def place(v: float) -> float:
        return round(100 * (min(max(v, low), high) - low) / (high - low), 2)

    dots = []
    for row, s in found:
        left, right = s.interval or (s.value, s.value)
        value = short(s.value, True) if percent else f"{s.value:.3f}"
        dots.append(Dot(row, short_name(row), place(s.value), place(left), place(right), value, interval(s, percent), s.kind))
    return Chart(dots, short(low, percent), short(high, percent), None if reference is None else place(reference))


# -- training and conditions -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Course:
    """How a network's training went: what was said at the end, the score there and at its best, and its curves as points."""

    row: Row
    text: str
    name: str
    last: str
    best: str
    curves: tuple[tuple[str, str], ...]  # of 100 x 30, y downwards: (what, "x,y x,y ...")


def course(row: Row) -> Course | None:
    """The looks at a row's training, or None if there were none."""
    looks = [Look.from_json(entry) for entry in row.looks]
    if not looks:
        return None
    top, last, kind = best_look(looks), looks[-1], looks[-1].kind
    names = [n for n in (("training", "validation") if kind == "loss" else ("distance",)) if n in last.values]
    points = {n: [(k.images, k.values[n]) for k in looks if math.isfinite(k.values.get(n, math.nan))] for n in names}
    values = [v for found in points.values() for _, v in found]
    low, high = min(values, default=0.0), max(values, default=1.0)
    height, end = (high - low) or 1.0, max(1, last.images)
    curves = tuple(
        (n, " ".join(f"{100 * x / end:.1f},{28 - 26 * (v - low) / height:.1f}" for x, v in found)) for n, found in points.items()
    )
    at = f"{short(top.score)} at {count(top.images)} images" if top else "none"
    return Course(row, last.text, TITLES[last.name], short(last.score), at, curves)


def effect_rows(row: Row) -> list[dict[str, Any]]:
    """What each condition does in a row's samples: its scores, and the word for them."""
    columns = [k.removeprefix("effect of ") for k in row.scores if k.startswith("effect of ") and f"{k}, shuffled" in row.scores]
    named = [(c, row.scores[f"effect of {c}"], row.scores[f"effect of {c}, shuffled"]) for c in columns]
    return [
        {"column": c, "score": s, "chance": chance, "word": effect_verdict(row.scores, c), "percent": "accuracy" in s.name}
        for c, s, chance in named
    ]


# -- the page ----------------------------------------------------------------------------------------------------------


def render(comparison: Comparison) -> str:
    """The page as text."""
    spec = read_spec(comparison.data["spec"])
    rows, done = comparison.rows, [r for r in comparison.rows if not r.failed]
    ceiling = next((r.scores["real"].value for r in done if "real" in r.scores), None)
    uniform = math.log2(spec.levels) if spec.levels else None
    floors = {k: next((r.scores[k].floor for r in done if k in r.scores), None) for k, *_ in QUALITY}
    return _template().render(
        data=comparison.data, protocol=comparison.protocol, rows=rows, done=done, spec=spec, floors=floors, ceiling=ceiling,
        uniform=uniform,
        title=_title(comparison), real=figure(comparison.real, spec, _alt("Real training images", comparison), 400),
        figures={r.name: figure(r.grid, spec, _alt(f"Samples of {r.name}", comparison), 400) for r in done},
        thumbs={r.name: figure(_some(r.grid), spec, f"Samples of {r.name}", 180) for r in done},
        pairs={r.name: _pairs(r, spec) for r in done},
        overfit=any("validation" in look["values"] for r in done for look in r.looks),
        courses=[c for c in map(course, done) if c], effects={r.name: effect_rows(r) for r in done}, words=EFFECTS,
        bits=chart(done, "bits"), cas=chart(done, "CAS", percent=True, reference=ceiling),
        quality=QUALITY, utility=UTILITY, questions=QUESTIONS, verdicts=VERDICTS,
        best={k: best(done, k, better) for k, _, better, *_ in (*QUALITY, *UTILITY)},
        classifier=next((r.scores["CAS"].extractor for r in done if "CAS" in r.scores), ""),
        seeds=sorted({r.scores["CAS"].counts.get("seeds", 1) for r in done if "CAS" in r.scores}),
    )  # fmt: skip


def _title(comparison: Comparison) -> str:
    networks = sum(r.family != "classical" for r in comparison.rows)
    words = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    counts = [(networks, "network"), (len(comparison.rows) - networks, "baseline")]
    named = [f"{words[n] if n < len(words) else n} {word}{'s' * (n != 1)}" for n, word in counts if n]
    return f"{comparison.data['name']}: {' and '.join(named)}"


def _some(grid: Tensor, count: int = 20) -> Tensor:
    """The first images of every row of a grid, twenty in rows of five."""
    images = grid.transpose(0, 1).flatten(0, 1)[:count]
    return images[: len(images) // 5 * 5].unflatten(0, (-1, 5)) if len(images) >= 5 else images[None]


def _alt(what: str, comparison: Comparison) -> str:
    classes = next(iter(comparison.data["classes"].values()), None)
    return f"{what}, one row for each class: {', '.join(classes[:10])}" if classes else what


def _pairs(row: Row, spec: ImageSpec) -> list[dict[str, Any]]:
    found = zip(row.pairs, row.distances, row.copied, strict=True)
    alt = "A sample, and its nearest training image at distance"
    return [
        {"figure": figure(pair[None], spec, f"{alt} {d:.3g}", 104, gap=1), "distance": f"{d:.3g}", "copied": copied}
        for pair, d, copied in found
    ]


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader("nonesuch.evaluate"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"short": short, "interval": interval, "p_value": p_value, "duration": duration, "short_name": short_name}
    return engine.get_template("report.html.j2")


def text_table(comparison: Comparison) -> str:
    """The rows as aligned text for a terminal."""
    head = ["model", "bits/dim", "", "FD", "recall", "CAS", "Bayes", "memory", "train", "an image", "parameters"]
    lines = []
    for r in comparison.rows:
        if r.failed:
            lines.append([r.name, f"failed: {r.failed}"])
            continue
        s, c = r.scores, r.costs
        word = s["bits"].kind if "bits" in s else "none"
        cells = [
            short(s[k].value, percent) if k in s else "-"
            for k, percent in (("bits", False), ("FD", False), ("recall", True), ("CAS", True), ("bayes", True))
        ]
        more = [
            r.verdict or "-",
            duration(c.get("train_s")),
            duration(c.get("sample_s_per_image")),
            f"{c['parameters']:,.0f}" if "parameters" in c else "-",
        ]
        lines.append([r.name, cells[0], word, *cells[1:], *more])
    widths = [max(len(line[i]) for line in [head, *(x for x in lines if len(x) > 2)]) for i in range(len(head))]
    widths[0] = max(len(line[0]) for line in [head, *lines])

    def aligned(line: Sequence[str]) -> str:
        return "  ".join(
            v.ljust(w) if i in (0, 2, 7) else v.rjust(w) for i, (v, w) in enumerate(zip(line, widths, strict=False))
        ).rstrip()

    return "\n".join(aligned(line) if len(line) > 2 else f"{line[0].ljust(widths[0])}  {line[1]}" for line in [head, *lines])
