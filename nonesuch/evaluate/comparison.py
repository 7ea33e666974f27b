# ruff: noqa: RUF001 (laws are written with their own letters)
"""The result of a comparison: a `Row` for each model, and what all rows have in common."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core import artifact
from nonesuch.evaluate.score import Score

__all__ = ["CLASSICAL", "LAWS", "Comparison", "Row"]

LAWS = {  # what a family says of P(x), and how directly
    "autoregressive": ("p(x) = ∏ᵢ p(xᵢ | x₁ … xᵢ₋₁)", "explicit, exact"),
    "flow": ("p(x) = p(f(x)) |det ∂f/∂x|", "explicit, exact density; a bound on pixels"),
    "vae": ("log p(x) ≥ E_q log p(x | z) − KL(q ‖ p)", "explicit, a bound"),
    "diffusion": ("x_t = α_t x + σ_t ε, run backwards", "explicit, a bound or an estimate"),
    "energy": ("p(x) = exp(−E(x)) / Z", "explicit, unnormalised"),
    "gan": ("x = G(z), trained against a critic", "implicit"),
    "kernel density": ("p(x) = meanᵢ N(x; xᵢ, σ²)", "explicit, a bound on pixels"),
    "Gaussian mixture": ("p(x) = Σⱼ πⱼ N(x; μⱼ, Σⱼ)", "explicit, a bound on pixels"),
    "independent categoricals": ("P(x) = Σⱼ πⱼ ∏ᵢ P(xᵢ | j)", "explicit, exact"),
}
CLASSICAL = "classical"


@dataclass
class Row:
    """One subject's results: scores by name, notes for what is missing, costs, pictures, and the command that makes it again.

    grid: (classes, 10, C, *size), NaN where there is none; pairs: (P, 2, C, *size), samples beside their nearest training image,
    the closest of all first; distances (P,). looks: what was seen of a network while it trained (`nonesuch.train.watch`).
    """

    name: str
    family: str
    command: str
    card: dict[str, Any] = field(default_factory=dict)
    citation: str = ""
    failed: str = ""
    scores: dict[str, Score] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    costs: dict[str, float] = field(default_factory=dict)
    verdict: str = ""
    distances: list[float] = field(default_factory=list)
    copied: list[bool] = field(default_factory=list)
    looks: list[dict[str, Any]] = field(default_factory=list)
    grid: Tensor = field(default_factory=lambda: torch.empty(0))
    pairs: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def law(self) -> tuple[str, str]:
        """The family's law, and how directly it says P(x)."""
        return LAWS.get(self.name if self.family == CLASSICAL else self.family, ("", ""))

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        plain = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in ("scores", "grid", "pairs")}
        law, directness = self.law
        return {**plain, "law": law, "directness": directness, "scores": {k: s.to_json() for k, s in self.scores.items()}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any], **pictures: Tensor) -> Row:
        """Read back what `to_json` wrote."""
        known = {f.name for f in dataclasses.fields(cls)}
        plain = {k: v for k, v in values.items() if k in known and k != "scores"}
        return cls(**plain, **pictures, scores={k: Score.from_json(s) for k, s in values["scores"].items()})


@dataclass
class Comparison:
    """Rows, and what they have in common: the data and the protocol as plain values, and a grid of real images like the rows'."""

    data: dict[str, Any]
    protocol: dict[str, Any]
    rows: list[Row]
    real: Tensor

    def to_json(self) -> dict[str, Any]:
        """Everything but the pictures, as plain values."""
        return {"format": 1, "data": self.data, "protocol": self.protocol, "rows": [r.to_json() for r in self.rows]}

    def table(self) -> str:
        """The rows as aligned text."""
        from nonesuch.evaluate.report import text_table

        return text_table(self)

    def save(self, path: str | Path = "report.html") -> Path:
        """Write the report as one HTML page, and the numbers as JSON beside it. Raises ValueError if it cannot be written."""
        from nonesuch.evaluate.report import render

        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            artifact.write_atomic(path, render(self).encode())
            artifact.write_atomic(path.with_suffix(".json"), json.dumps(self.to_json(), indent=1, allow_nan=False).encode())
        except OSError as error:
            raise ValueError(
                f"the report cannot be written to {path}: {error.strerror or error}; choose another place."
            ) from None
        return path
