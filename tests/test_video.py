"""Clips: what is written comes back, what others wrote is read as FFmpeg shows it, and damaged ones are refused."""

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nonesuch as ns
from nonesuch.data import formats
from nonesuch.data.formats import Picture

av = pytest.importorskip("av")

from nonesuch.data.formats import mp4  # noqa: E402

RNG = np.random.default_rng(0)


def ramps(n: int = 7, height: int = 32, width: int = 48) -> np.ndarray:
    """Smooth colour frames (n, height, width, 3): red along w, green along h, blue in time."""
    red, green = np.linspace(20, 235, width)[None, None], np.linspace(20, 235, height)[None, :, None]
    blue = np.linspace(20, 235, n)[:, None, None]
    return np.stack(np.broadcast_arrays(red, green, blue), -1).astype(np.uint8)


def filmed(frames: np.ndarray, container: str, codec: str, pixels: str, rate: Any = 25, **tags: str) -> bytes:
    """A clip as FFmpeg writes it."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        out.metadata.update(tags)
        stream = out.add_stream(codec, rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt, stream.thread_count = pixels, 1
        for one in frames:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(one), format="rgb24")))
        out.mux(stream.encode())
    return file.getvalue()


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_what_is_written_comes_back(channels: int, dtype: str) -> None:
    values = RNG.integers(0, np.iinfo(dtype).max + 1, (channels, 5, 11, 17)).astype(dtype)
    for seconds in (1 / 25, 1001 / 30000, 0.5, 2.0, 0.04003):
        picture = Picture(values, "thw", (seconds, 1.0, 1.0))
        data, suffix = formats.encode(picture, ".mp4")
        again, head = formats.read(data), formats.head(data)
        assert suffix == ".mp4"
        np.testing.assert_array_equal(again.values, values)
        assert again.values.dtype == dtype == head.dtype
        assert again.spacing == pytest.approx((seconds, 1, 1), rel=1e-4)
        assert (head.axes, head.size, head.channels, head.frames, head.lossy) == ("thw", (5, 11, 17), channels, 5, False)
        assert again.remarks == ()
    assert formats.encode(Picture(values, "thw"), ".mp4") == formats.encode(Picture(values, "thw"), ".mp4")


def test_a_clip_without_spacing_or_of_one_frame_is_written() -> None:
    values = RNG.integers(0, 255, (1, 1, 4, 4)).astype(np.uint8)
    again = formats.read(formats.encode(Picture(values, "thw"), ".mp4")[0])
    np.testing.assert_array_equal(again.values, values)
    assert again.spacing == pytest.approx((1 / 8, 1, 1))


def test_what_an_mp4_does_not_hold_is_left_to_others() -> None:
    for axes, channels, dtype in (("thw", 2, "uint8"), ("thw", 3, "float32"), ("dhw", 1, "uint8"), ("hw", 3, "uint8")):
        assert not mp4.holds(axes, channels, dtype)
    with pytest.raises(ValueError, match="without loss"):
        formats.encode(Picture(np.zeros((2, 3, 4, 4), np.uint8), "thw"), ".mp4")


@pytest.mark.parametrize(
    ("container", "codec", "pixels", "error"),
    [
        ("mp4", "libx264", "yuv420p", 12),
        ("mov", "mpeg4", "yuv420p", 40),
        ("webm", "libvpx-vp9", "yuv420p", 12),
        ("avi", "mpeg4", "yuv420p", 40),
        ("avi", "huffyuv", "rgb24", 0),
        ("matroska", "ffv1", "bgr0", 0),
        ("matroska", "libx264", "yuv444p", 8),
    ],
)
def test_clips_of_others_are_read(container: str, codec: str, pixels: str, error: int) -> None:
    frames = ramps()
    data = filmed(frames, container, codec, pixels)
    picture, head = formats.read(data), formats.head(data)
    assert (head.axes, head.size, head.channels, head.lossy) == ("thw", (7, 32, 48), 3, error > 0)
    assert picture.values.shape == (3, 7, 32, 48)
    assert picture.spacing == pytest.approx((0.04, 1, 1))
    difference = np.abs(picture.values.astype(int) - frames.transpose(3, 0, 1, 2))
    assert difference.mean() <= error / 4
    assert difference.max() <= error * 2


def test_more_than_eight_bits_become_sixteen() -> None:
    grey = np.linspace(0, 65535, 3 * 8 * 16).astype(np.uint16).reshape(3, 8, 16)
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.height, stream.width, stream.pix_fmt = 8, 16, "gray16le"
        for one in grey:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(one, format="gray16le")))
        out.mux(stream.encode())
    picture = formats.read(file.getvalue())
    np.testing.assert_array_equal(picture.values[0], grey)
    ten = formats.read(filmed(ramps(), "matroska", "ffv1", "yuv444p10le"))
    assert ten.values.dtype == np.uint16
    assert np.abs(ten.values / 257 - ramps().transpose(3, 0, 1, 2)).max() < 3


def test_the_matrix_of_the_file_is_used() -> None:
    """Y, Cb, Cr = 81, 90, 240 is red under BT.601; under BT.709 green is 1.164 * 65 + 0.213 * 38 - 0.533 * 112 = 24."""

    def coded(matrix: int) -> np.ndarray:
        file = io.BytesIO()
        with av.open(file, "w", format="matroska") as out:
            stream = out.add_stream("libx264", rate=25, options={"crf": "0"})
            stream.width = stream.height = 32
            stream.pix_fmt, stream.codec_context.colorspace, stream.codec_context.color_range = "yuv444p", matrix, 1
            frame = av.VideoFrame.from_ndarray(
                np.stack([np.full((32, 32), v, np.uint8) for v in (81, 90, 240)]), format="yuv444p"
            )
            frame.colorspace, frame.color_range = matrix, 1
            out.mux(stream.encode(frame))
            out.mux(stream.encode())
        return formats.read(file.getvalue()).values[:, 0, 9, 9].astype(int)

    assert np.abs(coded(5) - [254, 0, 0]).max() <= 2
    assert np.abs(coded(1) - [255, 24, 0]).max() <= 2


def rotated(data: bytes) -> bytes:
    """The same mp4 with the matrix a phone held upright writes: a quarter turn."""
    at = data.index(b"tkhd")
    start = at + 4 + 40
    fixed = [0, 1, 0, -1, 0, 0, 0, 0, 0x40000000]
    matrix = b"".join((v if i == 8 else v << 16).to_bytes(4, "big", signed=True) for i, v in enumerate(fixed))
    assert data[start : start + 4] == (1 << 16).to_bytes(4, "big")
    return data[:start] + matrix + data[start + 36 :]


def test_a_phone_held_upright_is_turned() -> None:
    values = RNG.integers(0, 255, (3, 2, 6, 10)).astype(np.uint8)
    data = rotated(formats.encode(Picture(values, "thw"), ".mp4")[0])
    picture = formats.read(data)
    assert formats.head(data).size == (2, 10, 6)
    np.testing.assert_array_equal(picture.values, np.rot90(values, -1, (2, 3)))  # the matrix (0 1, -1 0) turns clockwise
    assert any("upright" in remark for remark in picture.remarks)


def test_uneven_frames_are_remarked_on() -> None:
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as out:
        stream = out.add_stream("ffv1", rate=25)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "gray"
        for time in (0, 1, 2, 9, 10):
            frame = av.VideoFrame.from_ndarray(np.zeros((16, 16), np.uint8), format="gray")
            frame.pts = time
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    picture = formats.read(file.getvalue())
    assert picture.spacing == pytest.approx((0.1, 1, 1))
    assert any("unevenly" in remark for remark in picture.remarks)


def test_words_of_a_clip_stay_behind() -> None:
    data = filmed(ramps(), "mp4", "libx264", "yuv420p", title="Zyx at home", comment="+52.5+13.4/")
    assert b"Zyx" in data
    picture = formats.read(data)
    kept = repr(picture).encode() + repr(formats.head(data)).encode() + formats.encode(picture, ".mp4")[0]
    assert b"Zyx" not in kept
    assert b"+52.5" not in kept


def refused(data: bytes) -> str:
    with pytest.raises(ValueError, match=r"^a\.x .*\.$") as caught:
        formats.read(data, "a.x")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_damaged_clips_are_refused_in_a_sentence() -> None:
    whole = filmed(ramps(), "mp4", "libx264", "yuv420p")
    for cut in (len(whole) // 2, len(whole) - 100, 40, 12):
        refused(whole[:cut])
    for container, codec in (("mp4", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mpeg4"), ("matroska", "ffv1")):
        data = filmed(ramps(), container, codec, "yuv420p")
        for _ in range(15):
            mutated = bytearray(data)
            for at in RNG.integers(4, len(data), 15):
                mutated[at] = RNG.integers(256)
            try:
                formats.read(bytes(mutated), "a.x")
            except ValueError as error:
                if not str(error).startswith("a.x "):
                    raise


def test_a_container_that_names_other_files_opens_none(tmp_path: Path) -> None:
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(filmed(ramps(), "mp4", "libx264", "yuv420p"))
    for text in (f"#EXTM3U\n#EXTINF:1,\n{secret}\n", f"ffconcat version 1.0\nfile {secret}\n"):
        for start in (b"", b"\0\0\0\x18ftypisom\0\0\0\0", b"\x1aE\xdf\xa3", b"RIFF\0\0\0\0AVI "):
            refused(start + text.encode())


def test_a_clip_too_long_or_too_wide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    data = formats.encode(Picture(np.zeros((1, 40, 8, 8), np.uint8), "thw"), ".mp4")[0]
    monkeypatch.setattr(mp4, "_MAX_FRAMES", 30)
    assert formats.head(data).frames == 31  # counted no further
    assert "more than 30 frames" in refused(data)
    monkeypatch.setattr(mp4, "_MAX_PIXELS", 50)
    assert "8 x 8" in refused(data)


def test_an_absent_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    data = formats.encode(Picture(np.zeros((1, 2, 4, 4), np.uint8), "thw"), ".mp4")[0]
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install 'nonesuch[video]'" in refused(data)


def test_images_in_the_same_container_are_not_clips() -> None:
    assert not mp4.knows(b"\0\0\0\x20ftypavif\0\0\0\0")
    assert not mp4.knows(b"\0\0\0\x20ftypheic\0\0\0\0")
    assert not mp4.knows(b"RIFF\0\0\0\0WEBPVP8 ")
    assert not mp4.knows(b"")


def test_a_folder_of_clips_is_learned_from(tmp_path: Path) -> None:
    source = tmp_path / "clips"
    for i in range(12):
        folder = source / ("up", "down")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        values = np.zeros((1, 4, 8, 8), np.uint8)
        for t in range(4):
            values[0, t, (2 * t if i % 2 else 6 - 2 * t), i // 2] = 200 + i
        (folder / f"{i}.mp4").write_bytes(formats.encode(Picture(values, "thw", (0.1, 1.0, 1.0)), ".mp4")[0])
    data = ns.data.open(source)
    assert (data.spec.axes, data.spec.size, data.spec.channels) == ("thw", (4, 8, 8), 1)
    assert data.spec.spacing == pytest.approx((0.1, 1, 1))
    model = ns.fit("vae", data, given="label", preset="tiny", budget=16, recipe={"batch": 8})
    assert torch.isfinite(model.sample(1)).all()
