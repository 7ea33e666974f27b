"""Volumes of patients in one orientation, whatever the scanner or the tool that wrote them.

A volume's axes (d, h, w) run towards the patient's head (Superior), back (Posterior) and left (Left): an axial slice is then a
picture as radiologists hang it, and the volume is what an axial DICOM series holds as it stands. In NIfTI's canonical RAS+ order
(i right, j front, k head) it is `data[::-1, ::-1, :].T`. An oblique volume is turned by quarters to the nearest such axes, never
interpolated.
"""

from __future__ import annotations

from itertools import permutations

import numpy as np

TURNED = "axes turned to head, back, left"  # the remark of a volume that was not so
DIRECTIONS = np.array([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # of d, h, w; x is left, y back, z head (DICOM's LPS)


def turned(
    values: np.ndarray, directions: np.ndarray, spacing: tuple[float, ...] | None
) -> tuple[np.ndarray, tuple[float, ...] | None, bool]:
    """Values (..., a, b, c) as a view with axes d, h, w, their spacing, and whether anything was turned.

    directions: (3, 3), in its rows where the three axes of `values` point, in LPS; of any length. Not finite or without three
    different directions: the values stay as they are.
    """
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    if not np.isfinite(directions).all() or not (length > 0).all():
        return values, spacing, False
    unit = directions / length
    if abs(np.linalg.det(unit)) < 1e-3:
        return values, spacing, False
    cosines = unit @ DIRECTIONS.T  # of each axis with d, h, w
    order = max(permutations(range(3)), key=lambda p: sum(abs(cosines[a, k]) for k, a in enumerate(p)))
    flips = tuple(cosines[a, k] < 0 for k, a in enumerate(order))
    lead = values.ndim - 3
    out = values.transpose(*range(lead), *(lead + a for a in order))
    out = out[(..., *(slice(None, None, -1 if flip else 1) for flip in flips))]
    return out, None if spacing is None else tuple(spacing[a] for a in order), order != (0, 1, 2) or any(flips)
