"""What formats read by Pillow share: one named decoder opened directly, never a guess by content; colours; all frames.

Pillow is given a file only after its head was read by us, and only blocks it needs, so that it has nothing to warn about.
CMYK without a profile is R = (1 - C)(1 - K), and so on: what Pillow computes, here at any depth.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

    from nonesuch.data.formats import Picture

MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
_SRGB = (b"sRGB", "sRGB".encode("utf-16-be"))


def planes(image: Image, channels: int) -> np.ndarray:
    """uint8 (channels, height, width)."""
    mode = MODES[channels]
    array = np.array(image if image.mode == mode else image.convert(mode))
    return array[None] if channels == 1 else np.ascontiguousarray(np.moveaxis(array, -1, 0))


def frames(image: Image, channels: int, axes: str, count: int) -> Picture:
    """All frames of an animation, (channels, count, height, width), with the mean time between them as spacing along t."""
    from nonesuch.data.formats import Picture

    stack, times = [], []
    for place in range(count):
        image.seek(place)
        stack.append(planes(image, channels))
        times.append(float(image.info.get("duration", 0)) / 1000)
    if len({one.shape for one in stack}) > 1:
        raise ValueError("its frames differ in size")
    return Picture(np.stack(stack, 1), axes, *timing(times, axes))


def timing(times: list[float], axes: str) -> tuple[tuple[float, float, float] | None, None, tuple[str, ...]]:
    """The spacing, unit and remarks of frames shown for these times, in s."""
    mean = sum(times) / max(1, len(times))
    uneven = ("frames shown for unequal times read as equally spaced",) if len(set(times)) > 1 and axes == "thw" else ()
    return ((mean, 1.0, 1.0) if mean > 0 and axes == "thw" else None), None, uneven


def first_of(count: int, what: str = "frames") -> tuple[str, ...]:
    """The remark of a file of several."""
    return (f"only the first of several {what} read",) if count > 1 else ()


def profiled(profile: bytes | None) -> tuple[str, ...]:
    """The remark of colours kept as stored although the file says they are not sRGB's."""
    known = not profile or any(name in profile for name in _SRGB)
    return () if known else ("colour profile not applied",)


def cmyk_to_rgb(values: np.ndarray, profile: bytes | None) -> tuple[np.ndarray, tuple[str, ...]]:
    """uint8 or uint16 (4, height, width) as RGB (3, height, width) of the same depth, and the remark."""
    if profile and values.dtype == np.uint8:
        from PIL import ImageCms
        from PIL.Image import fromarray

        try:
            inks = fromarray(np.ascontiguousarray(np.moveaxis(values, 0, -1)), "CMYK")
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            shown = ImageCms.profileToProfile(inks, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            assert shown is not None
            return planes(shown, 3), ("CMYK turned into RGB by its colour profile",)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
            pass  # a profile of another kind or a damaged one: as if there were none
    top = np.iinfo(values.dtype).max
    light = top - values.astype(np.uint64)
    rgb = (light[:3] * light[3:] + top // 2) // top
    return rgb.astype(values.dtype), ("CMYK turned into RGB without a colour profile",)
