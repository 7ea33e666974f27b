"""An audit as one HTML page, in the manner of `evaluate.report`: no script, no request, light and dark."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from nonesuch.applications._copies import MARGIN
from nonesuch.evaluate.report import duration, figure, interval, p_value, short

if TYPE_CHECKING:
    from nonesuch.applications.audit import Audit

_COLOURS = {"do not release": "bad", "look closer": "mid", "no sign found": "good"}


def render(audit: Audit) -> str:
    """The page as text."""
    from nonesuch.applications.audit import LIMITS, VERDICTS, tells

    pairs = [
        {**mark, "figure": figure(triplet[None], audit.spec, _alt("A flagged sample"), 170, gap=1)}
        for mark, triplet in zip(audit.marks, audit.pairs, strict=True)
    ]
    usual = [figure(triplet[None], audit.spec, _alt("A sample that was not flagged"), 170, gap=1) for triplet in audit.usual]
    page = template("audit.html.j2").render(
        audit=audit, about=audit.about, limits=LIMITS, meaning=VERDICTS[audit.verdict], colour=_COLOURS[audit.verdict],
        pairs=pairs, usual=usual, d=audit.duplicates, margin=MARGIN, told=tells,
    )  # fmt: skip
    return str(page)


def _alt(what: str) -> str:
    return f"{what}, its nearest training image, and its nearest held-out image"


def percent(value: float) -> str:
    """A share with as many digits as it needs: 0.34 %, 12 %."""
    return f"{100 * value:.2g} %" if value < 0.995 else f"{100 * value:.0f} %"


@cache
def template(name: str) -> Any:
    """A page of applications/templates, with the words of reports."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    engine = Environment(
        loader=PackageLoader("nonesuch.applications"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters |= {"short": short, "interval": interval, "p_value": p_value, "duration": duration, "percent": percent}
    return engine.get_template(name)
