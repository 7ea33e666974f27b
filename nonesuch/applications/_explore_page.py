"""An exploration as one HTML page; maps are drawings of dots, pictures are inside the page."""

from __future__ import annotations

import colorsys
from typing import TYPE_CHECKING

import numpy as np

from nonesuch.applications._audit_page import template
from nonesuch.evaluate.report import figure

if TYPE_CHECKING:
    from nonesuch.applications.explore import Exploration

ROWS = (
    ("probe", "linear probe", True, "accuracy of logistic regression on the features"),
    ("neighbours", "nearest is of its class", True, "test images whose nearest training image is of their class"),
    ("rand", "adjusted Rand index", False, "k-means clusters against classes: 0 by chance, 1 equal"),
    ("nmi", "mutual information", False, "the same, normalised"),
)


def render(found: Exploration) -> str:
    """The page as text."""
    groups = np.unique(found.colours)
    colours = {int(g): colour(i, len(groups)) for i, g in enumerate(groups)}
    drawings = [
        {"view": view, "name": name, "dots": dots(points, found.colours, colours)}
        for view, maps in found.maps.items()
        for name, points in maps.items()
    ]
    names = {g: found.classes[g] if found.classes else f"cluster {g}" for g in colours}
    near = {view: figure(grid, found.spec, f"Test images and their nearest training images in {view}", 300, gap=2)
            for view, grid in found.neighbours.items()}  # fmt: skip
    page = template("explore.html.j2").render(
        found=found, about=found.about, rows=ROWS, drawings=drawings, colours=colours, names=names, near=near,
        walks=figure(found.walks, found.spec, "Ways through the latents between two pictures", 640, gap=2),
    )  # fmt: skip
    return str(page)


def colour(i: int, n: int) -> str:
    """The i-th of n hues, light and dark in turn, to be told apart on both grounds."""
    r, g, b = colorsys.hls_to_rgb(i / max(1, n), 0.45 + 0.17 * (i % 2), 0.62)
    return f"#{round(r * 255):02x}{round(g * 255):02x}{round(b * 255):02x}"


def dots(points: np.ndarray, groups: np.ndarray, colours: dict[int, str]) -> list[tuple[float, float, str]]:
    """Points (m, 2) on a square of 200, with their colours."""
    low, high = np.quantile(points, 0.005, axis=0), np.quantile(points, 0.995, axis=0)
    place = ((points - low) / np.maximum(high - low, 1e-12)).clip(-0.02, 1.02) * 184 + 8
    return [(round(float(x), 1), round(float(y), 1), colours[int(g)]) for (x, y), g in zip(place, groups, strict=True)]
