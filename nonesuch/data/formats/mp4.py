"""Clips (extra [video]): mp4, mov, mkv, webm and avi through FFmpeg; written as an mp4 of PNG frames, which loses nothing.

Axes "thw", the spacing along t is one over the mean frame rate, in seconds, and along h and w 1, for a clip knows no lengths.
Colour is RGB by the file's own matrix and range; more than 8 bits become 16; sound, titles, places and every other word of the
file stay behind. Most codecs are lossy and `Head.lossy` says so. Players such as VLC and mpv show PNG frames; for a browser:
`ffmpeg -i clip.mp4 -pix_fmt yuv420p seen.mp4`.

References: ISO/IEC 14496-12 (the container); Portable Network Graphics, W3C (the frames)
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from nonesuch.data.formats import MAX_VALUES, Format, Head, Picture

_MAX_FRAMES = 1 << 14
_MAX_PIXELS = 1 << 25  # of one frame
_LOSSLESS = ("png", "ffv1", "huffyuv", "ffvhuff", "utvideo", "rawvideo", "qtrle", "flashsv", "zlib")
_STILL_BRANDS = (b"heic", b"heix", b"mif1", b"msf1", b"avif", b"avis", b"crx ", b"jp2 ", b"jpx ")  # images in the same container
_WRITTEN = {
    (1, "uint8"): ("gray", "gray"),
    (3, "uint8"): ("rgb24", "rgb24"),
    (4, "uint8"): ("rgba", "rgba"),
    (1, "uint16"): ("gray16le", "gray16be"),
    (3, "uint16"): ("rgb48le", "rgb48be"),
    (4, "uint16"): ("rgba64le", "rgba64be"),
}  # channels and dtype -> FFmpeg's names of our values and of PNG's


def knows(start: bytes) -> bool:
    """Boxes of ISO media, EBML, or RIFF with AVI."""
    return _container(start) is not None


def head(file: BinaryIO) -> Head:
    """What the container says, its packets counted and one frame decoded, which alone tells how it is turned."""
    with _opened(file) as (container, stream):
        frame = next(container.decode(stream), None)
        if frame is None:
            raise ValueError("it holds no frames")
        shown = _kind(frame)
        height, width = (frame.width, frame.height) if frame.rotation % 180 else (frame.height, frame.width)
        channels, dtype = next(key for key, (name, _) in _WRITTEN.items() if name == shown)
        most = min(_MAX_FRAMES, MAX_VALUES // (channels * height * width)) + 1
        count = _count(container, stream, most)
        lossy = stream.codec_context.name not in _LOSSLESS
        return Head("thw", (count, height, width), channels, dtype, stream.codec_context.name, count, lossy)


def read(file: BinaryIO) -> Picture:
    """All frames. Raises ValueError for a clip too long to hold, damaged frames, and frames of several sizes."""
    with _opened(file) as (container, stream):
        frames: list[np.ndarray] = []
        times: list[float] = []
        shown, values, turn = "", 0, 0
        for frame in container.decode(stream):
            if not shown:
                shown, turn, size = _kind(frame), int(frame.rotation), (frame.width, frame.height)
            if (frame.width, frame.height) != size:
                raise ValueError("its frames change their size; cut it into clips of one size")
            array = _array(frame, shown)
            values += array.size
            if values > MAX_VALUES or len(frames) >= _MAX_FRAMES:
                raise ValueError(f"it has more than {len(frames):,} frames, too many to hold; cut it into shorter clips")
            frames.append(np.rot90(array, turn // 90, (0, 1)))
            times.append(math.nan if frame.time is None else float(frame.time))
        if not frames:
            raise ValueError("it holds no frames")
        seconds, remarks = _period(stream, times)
    stack = np.ascontiguousarray(np.moveaxis(np.stack(frames), 3, 0))
    remarks += ("turned upright",) if turn % 360 else ()
    return Picture(stack, "thw", (seconds, 1.0, 1.0) if seconds else None, None, remarks)


def encode(picture: Picture) -> bytes:
    """An mp4 file of PNG frames, exactly these values (C, t, h, w); 1 / spacing[0] frames a second, or 8."""
    import av

    ours, stored = _WRITTEN[len(picture.values), str(picture.values.dtype)]
    rate = Fraction(1 / picture.spacing[0]).limit_denominator(1001) if picture.spacing else Fraction(8)
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream: Any = container.add_stream("png", rate=rate if rate > 0 else Fraction(1, 1001))
        stream.height, stream.width = picture.values.shape[2:]
        stream.pix_fmt = stored
        for values in np.moveaxis(picture.values, 0, 3):
            dense = np.ascontiguousarray(values[..., 0] if values.shape[2] == 1 else values)
            frame = av.VideoFrame.from_ndarray(dense, format=ours)
            container.mux(stream.encode(frame if stored == ours else frame.reformat(format=stored)))
        container.mux(stream.encode())
    return file.getvalue()


def holds(axes: str, channels: int, dtype: str) -> bool:
    """Clips of 1, 3 or 4 channels of 8 or 16 bits."""
    return axes == "thw" and (channels, dtype) in _WRITTEN


def _container(start: bytes) -> str | None:
    """FFmpeg's name of the container: said to it, so that it never tries formats that open other files or addresses."""
    if start[4:8] == b"ftyp":
        return None if start[8:12] in _STILL_BRANDS else "mp4"
    if start[4:8] in (b"moov", b"mdat", b"wide") or (start[4:8] in (b"free", b"skip") and (b"moov" in start or b"mdat" in start)):
        return "mp4"
    if start[:4] == b"\x1aE\xdf\xa3":
        return "matroska"
    return "avi" if start[:4] == b"RIFF" and start[8:12] == b"AVI " else None


@contextmanager
def _opened(file: BinaryIO) -> Iterator[tuple[Any, Any]]:
    """The container and its first moving picture; FFmpeg may allocate no more than _MAX_PIXELS for a frame."""
    import av

    name = _container(file.read(512))
    file.seek(0)
    try:
        with av.open(file, "r", format=name, metadata_errors="ignore") as container:
            if not container.streams.video:
                raise ValueError("it holds no moving picture")
            stream = container.streams.video[0]
            width, height = stream.codec_context.width, stream.codec_context.height
            if width * height > _MAX_PIXELS:
                raise ValueError(f"it says its frames have {width} x {height} pixels, too many to read")
            stream.codec_context.options = {"max_pixels": str(_MAX_PIXELS)}
            stream.thread_type = "NONE"
            yield container, stream
    except av.error.FFmpegError as error:  # its sentences name codes and our own object, not the cause
        raise ValueError(f"it is damaged or cut short ({type(error).__name__})") from None


def _kind(frame: Any) -> str:
    """The name in _WRITTEN that keeps a frame: grey, colour, colour with alpha, of 8 or 16 bits."""
    parts = frame.format.components
    deep = "uint16" if max(part.bits for part in parts) > 8 else "uint8"
    grey = frame.format.name.startswith("gray")
    has_alpha = any(part.is_alpha for part in parts) or frame.format.name in ("ya8", "ya16be", "ya16le", "pal8")
    channels = 1 if grey else 4 if has_alpha else 3
    return _WRITTEN[channels, deep][0]


def _array(frame: Any, shown: str) -> np.ndarray:
    """(height, width, channels)."""
    array = frame.to_ndarray(format=shown)
    return array[..., None] if array.ndim == 2 else array


def _count(container: Any, stream: Any, most: int) -> int:
    """Frames of a stream, by its packets, counted no further than `most`."""
    container.seek(0)
    count = 0
    for packet in container.demux(stream):
        count += packet.size > 0 and not packet.is_discard
        if count >= most:
            break
    return count


def _period(stream: Any, times: list[float]) -> tuple[float | None, tuple[str, ...]]:
    """Seconds a frame: the mean over the clip, else what the container says; and a remark where frames are uneven."""
    steps = np.diff(times)
    rate = stream.average_rate or stream.guessed_rate
    if len(steps) == 0 or not np.isfinite(steps).all() or steps.min() <= 0:
        return (float(1 / rate) if rate else None), ()
    if steps.max() - steps.min() > 0.1 * steps.mean() + 2e-3:  # 2 ms: some containers round times to one
        return float(steps.mean()), ("frames unevenly spaced in time, taken as even",)
    return float(1 / rate if rate else steps.mean()), ()


FORMAT = Format("MP4", (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v"), knows, head, read, encode, holds, extra="video")
