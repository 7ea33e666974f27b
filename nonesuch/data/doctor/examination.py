"""What an examination found, as JSON, as text, and as a list of files to fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from nonesuch.data.doctor.findings import HANDLED, MUST, NOTE, Finding, escaped

if TYPE_CHECKING:
    from nonesuch.core.image import ImageSpec
    from nonesuch.data.doctor.advice import Advice

SCHEMA = 1  # of the JSON; raised when a field changes its meaning
_SHOWN = 5  # rows of a tally, and files of a kind, in text


@dataclass(frozen=True)
class Examination:
    """files: regular ones, of whatever kind; images: those that can be read; tallies: "splits", "classes", "formats", "sizes",
    "channels", "depths", "modes" -> value -> images; columns: of a table, a clause each; remarks: what reading will do and say;
    copies, likenesses: images that are exact and near duplicates of another; spec: of the images as they will be read."""

    source: str
    files: int
    images: int
    bytes: int
    seconds: float
    tallies: Mapping[str, Mapping[str, int]]
    findings: tuple[Finding, ...]
    columns: Mapping[str, str] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    copies: int = 0
    likenesses: int = 0
    spec: ImageSpec | None = None
    split: str = ""
    advice: tuple[Advice, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether nothing must be fixed."""
        return not any(f.severity == MUST for f in self.findings)

    def to_fix(self) -> list[str]:
        """Paths below the source of what must be fixed, each once, in order; not escaped."""
        return list(dict.fromkeys(f.file for f in self.findings if f.severity == MUST and f.file))

    def to_json(self) -> dict[str, Any]:
        """Everything, in plain types; paths are escaped as `findings.escaped` says."""
        spec = self.spec and {k: getattr(self.spec, k) for k in ("channels", "size", "axes", "kind", "levels", "dtype")}
        severities = Counter(f.severity for f in self.findings)
        return {
            "schema": SCHEMA, "source": escaped(self.source), "ok": self.ok, "files": self.files, "images": self.images,
            "bytes": self.bytes, "seconds": round(self.seconds, 3), **{k: dict(v) for k, v in self.tallies.items()},
            "columns": dict(self.columns), "copies": self.copies, "likenesses": self.likenesses, "read_as": spec,
            "remarks": list(self.remarks), "split": self.split, "counts": {s: severities[s] for s in (MUST, HANDLED, NOTE)},
            "findings": [f.to_json() for f in self.findings], "advice": [a.to_json() for a in self.advice],
        }  # fmt: skip

    def lines(self) -> list[tuple[str, str]]:
        """(style, line) for a terminal; styles are rich's."""
        rate = f", {self.files / self.seconds:,.0f} files/s" if self.files > 1 and self.seconds > 0 else ""
        out = [("bold", f"{escaped(self.source)}: {self.images:,} images in {self.files:,} files, "
                        f"{self.bytes / 1e6:,.1f} MB, read in {self.seconds:.1f} s{rate}")]  # fmt: skip
        out += [("", f"  {name}: {_tally(counts)}") for name, counts in self.tallies.items() if counts]
        out += [("", f"  column {name}: {said}") for name, said in self.columns.items()]
        if self.spec:
            size = " x ".join(map(str, self.spec.size))
            out.append(("", f"  read as: {size}, {self.spec.channels} channels, {self.spec.dtype}"))
        out += [("", f"  {r}") for r in (*self.remarks, self.split) if r]
        for severity, style in ((MUST, "bold red"), (HANDLED, "yellow"), (NOTE, "cyan")):
            out += self._of(severity, style)
        if self.advice:
            out.append(("bold", "What to choose"))
            out += [("", f"  {a}") for a in _grouped(self.advice)]
        verdict = "Nothing must be fixed." if self.ok else f"{len(self.to_fix()) or 1} to fix; --fix-list prints their paths."
        return [*out, ("bold green" if self.ok else "bold red", verdict)]

    def __str__(self) -> str:
        return "\n".join(line for _, line in self.lines())

    def _of(self, severity: str, style: str) -> list[tuple[str, str]]:
        """The findings of one severity, kind by kind."""
        found = [f for f in self.findings if f.severity == severity]
        if not found:
            return []
        out = [(style, f"{severity[0].upper()}{severity[1:]}: {len(found)}")]
        for kind in dict.fromkeys(f.kind for f in found):
            some = [f for f in found if f.kind == kind]
            how = f": {some[0].handling}" if some[0].handling else ""
            out.append((style.removeprefix("bold "), f"  {kind}, {len(some)}{how}"))
            out += [("", f"    {f}") for f in some[:_SHOWN]]
            out += [("dim", f"    and {len(some) - _SHOWN:,} more")] if len(some) > _SHOWN else []
        return out


def _tally(counts: Mapping[str, int]) -> str:
    ordered = sorted(counts.items(), key=lambda c: (-c[1], c[0]))
    said = ", ".join(f"{escaped(k)} {v:,}" for k, v in ordered[:_SHOWN])
    if len(ordered) <= _SHOWN:
        return said
    return f"{said}, and {len(ordered) - _SHOWN:,} more, the rarest {escaped(ordered[-1][0])} {ordered[-1][1]:,}"


def _grouped(advice: Sequence[Advice]) -> list[str]:
    """A line a family, with a reason that the next one shares said once, after the last."""
    out = []
    for i, one in enumerate(advice):
        shared = i + 1 < len(advice) and advice[i + 1].preset and one.preset and advice[i + 1].why == one.why
        out.append(str(one).removesuffix(f" {one.why}") if shared else str(one))
    return out
