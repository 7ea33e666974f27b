"""Where a model comes from, and the sizes it is offered in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from nonesuch.core.image import ImageSpec


@dataclass(frozen=True)
class Card:
    """The paper behind a model: title, authors ("Surname, First and Surname, First"), year, arXiv id or venue."""

    title: str
    authors: str
    year: int
    arxiv: str = ""
    venue: str = ""
    url: str = ""
    summary: str = ""

    def bibtex(self) -> str:
        """A BibTeX entry; its key is the first author's surname, the year and the title's first word."""
        surname = re.sub(r"\W", "", self.authors.split(",")[0]).lower()
        word = re.sub(r"\W", "", next((w for w in self.title.split() if len(w) > 3), self.title)).lower()
        lines = [f"  title  = {{{self.title}}}", f"  author = {{{self.authors}}}", f"  year   = {{{self.year}}}"]
        if self.arxiv:
            lines += [f"  eprint = {{{self.arxiv}}}", "  archivePrefix = {arXiv}"]
        if self.venue:
            lines.append(f"  booktitle = {{{self.venue}}}")
        if self.url:
            lines.append(f"  url    = {{{self.url}}}")
        kind = "inproceedings" if self.venue else "misc"
        return f"@{kind}{{{surname}{self.year}{word},\n" + ",\n".join(lines) + "\n}"


@dataclass(frozen=True)
class Preset:
    """A size a model is offered in: its config, how it is best trained, and up to which image size it is the default.

    config: fields of the model's Config; recipe: fields of train.Recipe; up_to_px: the largest side it is chosen for
    (0: only by name); reached: the measured number and what it took.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    up_to_px: int = 0
    reached: str = ""


def choose_preset(presets: Mapping[str, Preset], spec: ImageSpec) -> str:
    """The name of the smallest preset made for images of this size, or of the largest there is."""
    side = max(spec.size, default=1)
    sized = sorted((p.up_to_px, name) for name, p in presets.items() if p.up_to_px)
    return next((name for px, name in sized if px >= side), sized[-1][1] if sized else next(iter(presets)))
