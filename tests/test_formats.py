"""File formats: every value that went into a file comes out, at its depth; what cannot is refused or said."""

import io
import json
import logging
import math
import os
import resource
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms

from nonesuch.data import formats
from nonesuch.data.formats import MAX_PIXELS, Format, Head, Picture, encode, head, read
from nonesuch.data.formats._exif import orientation, turned, upright

RAMP16 = np.arange(65536, dtype=np.uint16)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, bits: int, kind: int, rows: bytes, *extra: bytes) -> bytes:
    """A PNG written by hand: rows with their filter bytes, chunks before the data."""
    start = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + start + b"".join(extra) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")


def exif(code: int, order: str = "<") -> bytes:
    first = b"II*\0" if order == "<" else b"MM\0*"
    entries = struct.pack(order + "H", 1) + struct.pack(order + "HHIHH", 0x0112, 3, 1, code, 0)
    return b"Exif\0\0" + first + struct.pack(order + "I", 8) + entries + bytes(4)


def noise(*shape: int, dtype: str = "uint8") -> np.ndarray:
    generator = np.random.default_rng(math.prod(shape))
    if np.dtype(dtype).kind == "f":
        return generator.normal(0, 1000, shape).astype(dtype)
    info = np.iinfo(dtype)
    return generator.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def agree(data: bytes, values: np.ndarray, remarks: tuple[str, ...] = ()) -> Picture:
    """The file's picture is exactly `values`, and its head says so."""
    said, found = head(data), read(data)
    assert found.values.dtype == values.dtype
    np.testing.assert_array_equal(found.values, values)
    assert (said.channels, *said.size) == values.shape
    assert said.dtype == str(values.dtype)
    assert found.values.flags.c_contiguous
    assert found.values.flags.writeable
    assert found.remarks == remarks
    return found


# -- ramps: distinct values in = out -------------------------------------------------------------------------------------


RAMPS = {
    "16-bit grey PNG": (".png", RAMP16.reshape(1, 256, 256)),
    "16-bit colour PNG": (".png", np.stack([RAMP16, RAMP16[::-1], np.roll(RAMP16, 7)]).reshape(3, 256, 256)),
    "16-bit colour and alpha PNG": (".png", np.stack([RAMP16, RAMP16[::-1], np.roll(RAMP16, 7), RAMP16]).reshape(4, 256, 256)),
    "16-bit grey and alpha PNG": (".png", np.stack([RAMP16, RAMP16[::-1]]).reshape(2, 256, 256)),
    "16-bit grey TIFF": (".tif", RAMP16.reshape(1, 256, 256)),
    "16-bit colour TIFF": (".tif", np.stack([RAMP16, RAMP16[::-1], np.roll(RAMP16, 7)]).reshape(3, 256, 256)),
    "float TIFF": (".tif", np.linspace(-1000, 3000, 65536, dtype=np.float32).reshape(1, 256, 256)),
    "5-channel 16-bit TIFF": (".tif", np.stack([np.roll(RAMP16, k) for k in range(5)]).reshape(5, 256, 256)),
    "4-channel 8-bit PNG": (".png", np.stack([np.arange(256, dtype=np.uint8)] * 4).reshape(4, 16, 16)),
}


@pytest.mark.parametrize("name", RAMPS)
def test_ramps_keep_every_value(name: str):
    suffix, values = RAMPS[name]
    data, given = encode(Picture(values), suffix)
    assert given == suffix
    found = agree(data, values)
    assert [len(np.unique(c)) for c in found.values] == [len(np.unique(c)) for c in values]


@pytest.mark.parametrize(
    "dtype", ["uint8", "int8", "uint16", "int16", "uint32", "int32", "int64", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
def test_whatever_is_written_is_read_back(dtype: str, channels: int):
    for axes, size in (
        ("hw", (5, 7)),
        ("dhw", (2, 5, 7)),
        ("thw", (3, 5, 7)),
        ("hw", (1, 1)),
        ("dhw", (1, 5, 7)),
        ("l", (4,)),
        ("", ()),
    ):
        values = noise(channels, *size, dtype=dtype)
        for suffix in (None, ".tif", ".npz"):
            if (suffix == ".tif" and axes in ("l", "")) or (
                suffix is None and size[:1] == (1,)
            ):  # NIfTI has no volume of one slice
                continue
            data, given = encode(Picture(values, axes), suffix)
            found = read(data)
            assert (found.axes, found.values.dtype, head(data).axes) == (axes, values.dtype, axes), (axes, given)
            np.testing.assert_array_equal(found.values, values)
            assert (head(data).channels, *head(data).size) == values.shape


def test_the_first_format_that_keeps_a_picture_is_chosen():
    assert encode(Picture(noise(3, 4, 4)))[1] == ".png"
    assert encode(Picture(noise(4, 4, 4, dtype="uint16")))[1] == ".png"
    assert encode(Picture(noise(5, 4, 4)))[1] == ".tif"
    assert encode(Picture(noise(1, 4, 4, dtype="float32")))[1] == ".tif"
    assert encode(Picture(noise(1, 4, 4), spacing=(0.7, 0.5)))[1] == ".tif"  # a PNG would lose it
    assert encode(Picture(noise(7, dtype="float32"), ""))[1] == ".npz"
    for suffix, values in ((".jpg", noise(3, 4, 4)), (".png", noise(5, 4, 4)), (".xyz", noise(1, 4, 4))):
        with pytest.raises(ValueError, match=rf"^\{suffix} does not keep \d channels of uint8 along hw without loss"):
            encode(Picture(values), suffix)
    with pytest.raises(ValueError, match="no format keeps 1 channels of complex64"):
        encode(Picture(np.zeros((1, 2, 2), np.complex64)))


def test_files_are_the_same_bytes_every_time():
    for values, suffix in ((noise(3, 4, 4), ".png"), (noise(5, 4, 4), ".tif"), (noise(5, 4, 4), ".npz")):
        first = encode(Picture(values), suffix)[0]
        assert first == encode(Picture(values), suffix)[0]


@pytest.mark.parametrize(("axes", "spacing"), [("hw", (0.7, 0.3)), ("dhw", (2.5, 0.7, 0.3)), ("thw", (0.04, 1.0, 1.0))])
def test_spacing_is_kept(axes: str, spacing: tuple[float, ...]):
    values = noise(1, *(2, 3, 4)[-len(axes) :])
    for suffix in (".tif", ".npz"):
        found = read(encode(Picture(values, axes, spacing), suffix)[0])
        assert found.spacing == pytest.approx(spacing, rel=1e-12)


# -- modes, with known values --------------------------------------------------------------------------------------------


def test_png_of_every_kind():
    agree(png(3, 1, 1, 0, b"\0\xa0"), np.array([[[255, 0, 255]]], np.uint8), ("1-bit grey stretched over 8 bits",))
    agree(png(4, 1, 2, 0, b"\0\x1b"), np.array([[[0, 85, 170, 255]]], np.uint8), ("2-bit grey stretched over 8 bits",))
    agree(png(2, 1, 4, 0, b"\0\x1f"), np.array([[[17, 255]]], np.uint8), ("4-bit grey stretched over 8 bits",))
    agree(png(2, 1, 8, 0, b"\0\x01\xfe"), np.array([[[1, 254]]], np.uint8))
    agree(png(2, 1, 16, 0, b"\0\x01\x02\xfe\xff"), np.array([[[0x0102, 0xFEFF]]], np.uint16))
    agree(png(1, 1, 8, 2, b"\0\1\2\3"), np.array([1, 2, 3], np.uint8).reshape(3, 1, 1))
    agree(png(1, 1, 16, 2, b"\0\1\2\3\4\5\6"), np.array([0x102, 0x304, 0x506], np.uint16).reshape(3, 1, 1))
    agree(png(1, 1, 8, 4, b"\0\1\2"), np.array([1, 2], np.uint8).reshape(2, 1, 1))
    agree(png(1, 1, 16, 4, b"\0\1\2\3\4"), np.array([0x102, 0x304], np.uint16).reshape(2, 1, 1))
    agree(png(1, 1, 8, 6, b"\0\1\2\3\4"), np.array([1, 2, 3, 4], np.uint8).reshape(4, 1, 1))
    agree(png(1, 1, 16, 6, b"\0" + bytes(range(8))), np.array([1, 0x203, 0x405, 0x607], np.uint16).reshape(4, 1, 1))
    colours = chunk(b"PLTE", bytes((10, 20, 30, 40, 50, 60)))
    two = np.array([[10, 40], [20, 50], [30, 60]], np.uint8).reshape(3, 1, 2)
    agree(png(2, 1, 8, 3, b"\0\0\1", colours), two, ("palette read as RGB",))
    agree(png(2, 1, 1, 3, b"\0\x40", colours), two, ("palette read as RGB",))
    alpha = np.concatenate([two, np.array([[[7, 255]]], np.uint8)])
    agree(png(2, 1, 8, 3, b"\0\0\1", colours, chunk(b"tRNS", b"\7")), alpha, ("palette with transparency read as RGBA",))


def test_a_transparent_colour_is_alpha():
    said = ("transparent colour read as an alpha channel",)
    agree(png(2, 1, 8, 0, b"\0\1\2", chunk(b"tRNS", b"\0\1")), np.array([[[1, 2]], [[0, 255]]], np.uint8), said)
    key = chunk(b"tRNS", bytes((0, 1, 0, 2, 0, 3)))
    agree(png(2, 1, 8, 2, b"\0\1\2\3\1\2\4", key), np.array([[[1, 1]], [[2, 2]], [[3, 4]], [[0, 255]]], np.uint8), said)
    deep = png(2, 1, 16, 0, b"\0\1\0\2\0", chunk(b"tRNS", b"\1\0"))
    agree(deep, np.array([[[256, 512]], [[0, 65535]]], np.uint16), said)


def test_modes_that_pillow_writes():
    grey = noise(5, 7)
    rgb = noise(5, 7, 3)
    rgba = noise(5, 7, 4)
    first = np.moveaxis(rgb, -1, 0)
    agree(saved(Image.fromarray(grey), "BMP"), grey[None])
    agree(saved(Image.fromarray(rgb), "BMP"), first)
    bits = Image.fromarray(grey > 99)
    agree(saved(bits, "BMP"), (grey > 99)[None] * np.uint8(255), ("1-bit grey stretched over 8 bits",))
    palette = Image.fromarray(rgb).quantize(17)
    shown = np.moveaxis(np.asarray(palette.convert("RGB")), -1, 0)
    agree(saved(palette, "BMP"), shown, ("palette read as RGB",))
    agree(saved(palette, "GIF"), shown, ("palette read as RGB",))
    agree(saved(Image.fromarray(grey), "GIF"), grey[None], ("palette read as grey",))
    transparent = read(saved(palette, "GIF", transparency=int(np.asarray(palette)[0, 0])))
    assert transparent.remarks == ("palette with transparency read as alpha",)
    assert transparent.values[3, 0, 0] == 0
    hole = np.asarray(palette) == np.asarray(palette)[0, 0]
    np.testing.assert_array_equal(transparent.values[3], np.where(hole, 0, 255))
    np.testing.assert_array_equal(transparent.values[:3][:, ~hole], shown[:, ~hole])
    agree(saved(Image.fromarray(rgb), "WEBP", lossless=True), first)
    agree(saved(Image.fromarray(rgba), "WEBP", lossless=True, exact=True), np.moveaxis(rgba, -1, 0))
    lossy = saved(Image.fromarray(rgb), "WEBP")
    agree(lossy, np.moveaxis(np.asarray(Image.open(io.BytesIO(lossy)).convert("RGB")), -1, 0))
    assert (head(lossy).lossy, head(saved(Image.fromarray(rgb), "WEBP", lossless=True)).lossy) == (True, False)
    lossy = saved(Image.fromarray(rgba), "WEBP")
    assert (head(lossy).lossy, head(lossy).channels) == (True, 4)
    for image, options in (
        (Image.fromarray(grey), {}),
        (Image.fromarray(rgb), {}),
        (Image.fromarray(rgb), {"progressive": True}),
    ):
        data = saved(image, "JPEG", **options)
        decoded = np.asarray(Image.open(io.BytesIO(data)))
        agree(data, decoded[None] if decoded.ndim == 2 else np.moveaxis(decoded, -1, 0))
        assert head(data).lossy


def test_cmyk_is_rgb_by_the_formula_or_by_its_profile():
    inks = np.zeros((4, 6, 4), np.uint8)
    inks[:, 0], inks[:, 1], inks[:, 2, 0], inks[:, 3, 3], inks[:, 4] = 0, 255, 255, 255, (100, 50, 200, 30)
    page = tiff(inks, photometric="separated", planarconfig="contig")
    found = read(page)
    assert found.remarks == ("CMYK turned into RGB without a colour profile",)
    assert found.values[:, 0, :5].T.tolist()[:4] == [[255] * 3, [0] * 3, [0, 255, 255], [0] * 3]
    by_pillow = np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")).astype(int)
    assert np.abs(np.moveaxis(found.values, 0, -1).astype(int) - by_pillow).max() <= 1
    assert head(page).channels == 3
    deep = read(tiff(inks.astype(np.uint16) * 257, photometric="separated", planarconfig="contig"))
    assert np.abs(deep.values / 257 - found.values).max() <= 0.51
    data = saved(Image.fromarray(inks, "CMYK"), "JPEG", quality=100)
    assert np.abs(np.moveaxis(read(data).values, 0, -1).astype(int) - by_pillow).max() < 12
    assert head(data).mode == "CMYK"
    bad = saved(Image.fromarray(inks, "CMYK"), "JPEG", icc_profile=b"no profile at all")
    assert read(bad).remarks == ("CMYK turned into RGB without a colour profile",)
    wrong = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()  # of RGB: as if there were none
    assert read(saved(Image.fromarray(inks, "CMYK"), "JPEG", icc_profile=wrong)).remarks == bad_remark()


def bad_remark() -> tuple[str, ...]:
    return ("CMYK turned into RGB without a colour profile",)


def test_a_profile_of_other_colours_is_said():
    rgb = Image.fromarray(noise(4, 4, 3))
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    for kind in ("PNG", "JPEG", "WEBP", "TIFF"):
        assert read(saved(rgb, kind, icc_profile=srgb)).remarks == ()
        assert read(saved(rgb, kind, icc_profile=lab)).remarks == ("colour profile not applied",)


# -- TIFF ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits", "zstd", "lzma"])
@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_tiff_in_every_packing(compression: str | None, planar: str, tile: tuple[int, int] | None):
    for dtype, channels in (("uint8", 3), ("uint16", 5), ("float32", 2)):
        values = noise(channels, 37, 41, dtype=dtype)
        array = values if planar == "separate" else np.moveaxis(values, 0, -1)
        photometric = "rgb" if channels == 3 else "minisblack"
        predictor = compression in ("lzw", "zlib")
        agree(
            tiff(array, photometric=photometric, planarconfig=planar, compression=compression, tile=tile, predictor=predictor),
            values,
        )


def test_tiff_of_every_kind():
    grey = noise(5, 7)
    agree(tiff(grey, byteorder=">"), grey[None])
    deep = noise(5, 7, dtype="uint16")
    agree(tiff(deep, byteorder=">", bigtiff=True), deep[None])
    agree(tiff(grey, photometric="miniswhite"), 255 - grey[None], ("white is zero: inverted",))
    bits = grey > 99
    agree(saved(Image.fromarray(bits), "TIFF"), bits[None] * np.uint8(255), ("1-bit grey stretched over 8 bits",))
    table = noise(3, 256) * np.uint16(257)
    agree(tiff(grey, photometric="palette", colormap=table), (table // 257).astype(np.uint8)[:, grey], ("palette read as RGB",))
    fine = noise(3, 256, dtype="uint16")
    agree(tiff(grey, photometric="palette", colormap=fine), fine[:, grey], ("palette read as RGB",))
    colour = noise(32, 32, 3)
    lossy = tiff(colour, photometric="rgb", compression="jpeg")
    assert head(lossy).lossy
    assert read(lossy).values.shape == (3, 32, 32)
    rgba = noise(5, 7, 4)
    agree(tiff(rgba, photometric="rgb", extrasamples=["unassalpha"]), np.moveaxis(rgba, -1, 0))
    for code in range(1, 9):
        turn = tiff(grey, extratags=[(274, 3, 1, code, True)])
        agree(turn, upright(grey[None], code), ("turned as its EXIF orientation says",) if code > 1 else ())
    with pytest.raises(ValueError, match=r"^x.tif cannot be read: it holds NaN or infinite values\.$"):
        read(tiff(np.array([[1, np.nan]], np.float32)), "x.tif")
    with pytest.raises(ValueError, match="of a type that is not read"):
        read(tiff(np.ones((2, 2), np.complex64)))
    with pytest.raises(ValueError, match="3 channels of photometric interpretation 8"):
        read(tiff(noise(4, 4, 3), photometric="cielab"))


def test_twelve_bits_stay_twelve_bits():
    deep = noise(4, 8, dtype="uint16") >> 4
    agree(tiff(deep, bitspersample=12), deep[None])


def test_pages_are_frames_unless_the_file_says_otherwise():
    stack = noise(6, 5, 7, dtype="uint16")
    plain = tiff(stack, photometric="minisblack", metadata=None)
    assert head(plain).frames == 6
    assert read(plain).remarks == ("only the first of several pages read",)
    np.testing.assert_array_equal(read(plain).values, stack[:1])
    for axes in ("thw", "dhw"):
        every = read(plain, axes=axes)
        assert every.axes == axes
        np.testing.assert_array_equal(every.values, stack[None])
    for options in (
        {"metadata": {"axes": "CYX"}},
        {"imagej": True, "metadata": {"axes": "CYX"}},
        {"ome": True, "metadata": {"axes": "CYX"}},
    ):
        agree(tiff(stack, photometric="minisblack", **options), stack)
    for letter, axes in (("Z", "dhw"), ("T", "thw")):
        for options in ({}, {"imagej": True}, {"ome": True}):
            data = tiff(stack, photometric="minisblack", metadata={"axes": f"{letter}YX"}, **options)
            assert head(data).axes == axes, options
            agree(data, stack[None])
    mixed = tiff(stack.reshape(2, 3, 5, 7), imagej=True, metadata={"axes": "ZCYX"})
    agree(mixed, stack.reshape(2, 3, 5, 7).swapaxes(0, 1))
    assert head(mixed).axes == "dhw"
    first = io.BytesIO()
    with tifffile.TiffWriter(first) as file:
        file.write(stack[0], metadata=None)
        file.write(stack[0, :2, :2], metadata=None, subfiletype=1)  # its preview
    agree(first.getvalue(), stack[:1])


def test_a_stack_that_lost_pages_is_refused():
    stack = noise(6, 5, 7, dtype="uint16")
    for options in ({"imagej": True, "metadata": {"axes": "ZYX"}}, {"metadata": None}, {"bigtiff": True}):
        data = tiff(stack, photometric="minisblack", **options)
        for kept in range(0, len(data) - 8, 20):
            with pytest.raises(ValueError, match=r"^x cannot be read: |^x is "):
                read(data[:kept], "x")
    data = tiff(stack, photometric="minisblack", imagej=True, metadata={"axes": "ZYX"}).replace(b"slices=6", b"slices=7")
    with pytest.raises(ValueError, match="it says it has 7 pages, and holds 6"):
        read(data)
    one = bytearray(tiff(stack[0], metadata=None))
    (at,) = struct.unpack_from("<I", one, 4)
    (entries,) = struct.unpack_from("<H", one, at)
    struct.pack_into("<I", one, at + 2 + 12 * entries, at)  # the next page is this page
    with pytest.raises(ValueError, match="its pages have no end"):
        read(bytes(one))


def test_spacing_of_others_is_read_where_it_is_metric():
    grey = noise(5, 7)
    metric = tiff(grey, resolution=(20.0, 40.0), resolutionunit="CENTIMETER")
    assert read(metric).spacing == pytest.approx((0.25, 0.5))
    assert read(tiff(grey, resolution=(300, 300), resolutionunit="INCH")).spacing is None
    volume = noise(3, 5, 7)
    micro = tiff(volume, imagej=True, resolution=(4, 2), metadata={"axes": "ZYX", "spacing": 3.0, "unit": "um"})
    assert read(micro).spacing == pytest.approx((3e-3, 0.5e-3, 0.25e-3))


def test_a_short_tiff_is_refused_where_tifffile_fills_with_zeros():
    whole = tiff(noise(64, 64), metadata=None)
    for kept in range(len(whole) - 4000, len(whole), 500):
        with pytest.raises(ValueError, match=r"^x cannot be read: "):
            read(whole[:kept], "x")


# -- turned pictures -----------------------------------------------------------------------------------------------------


def test_orientation_is_that_of_pillow():
    from PIL import ImageOps

    pixels = noise(4, 6, 3)
    for code in range(1, 9):
        made = Image.fromarray(pixels)
        tag = made.getexif()
        tag[0x0112] = code
        expected = np.moveaxis(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(saved(made, "PNG", exif=tag))))), -1, 0)
        remarks = ("turned as its EXIF orientation says",) if code > 1 else ()
        np.testing.assert_array_equal(upright(np.moveaxis(pixels, -1, 0), code), expected)
        agree(saved(made, "PNG", exif=tag), expected, remarks)
        agree(saved(made, "WEBP", exif=tag, lossless=True), expected, remarks)
        lossy = saved(made, "JPEG", exif=tag)
        decoded = np.moveaxis(np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(lossy)))), -1, 0)
        agree(lossy, decoded, remarks)
        assert orientation(exif(code, "<")) == orientation(exif(code, ">")) == code
        assert turned((4, 6), code) == expected.shape[1:]
    for nothing in (b"", b"Exif\0\0", exif(9), exif(0), exif(3)[:20], b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\4"):
        assert orientation(nothing) == 1


def test_a_damaged_camera_note_does_not_hinder():
    data = saved(Image.fromarray(noise(8, 8, 3)), "JPEG", exif=exif(6)[:-8] + b"\xff" * 40)
    assert read(data).values.shape == (3, 8, 8)


# -- animations ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_animations_are_their_first_frame_or_all(kind: str):
    shown = [np.full((4, 6, 3), value, np.uint8) for value in (0, 60, 250)]
    pictures = [Image.fromarray(s) for s in shown]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=40, **options)
    assert head(data).frames == 3
    first = read(data)
    assert first.remarks[-1] == "only the first of several frames read"
    assert first.axes == "hw"
    assert np.unique(first.values).tolist() == [0]
    every = read(data, axes="thw")
    assert every.values.shape == (first.values.shape[0], 3, 4, 6)
    assert every.values[0, :, 0, 0].tolist() == [0, 60, 250]
    assert every.spacing == pytest.approx((0.04, 1, 1))
    assert "only the first of several frames read" not in every.remarks
    assert read(data, axes="dhw").spacing is None
    uneven = saved(pictures[0], kind, save_all=True, append_images=pictures[1:], duration=[40, 80, 60], **options)
    assert "frames shown for unequal times read as equally spaced" in read(uneven, axes="thw").remarks
    assert read(uneven, axes="thw").spacing == pytest.approx((0.06, 1, 1))


def test_a_still_picture_asked_for_as_a_clip_has_one_frame():
    values = noise(3, 4, 5)
    still = read(encode(Picture(values))[0], axes="thw")
    assert (still.axes, still.values.shape) == ("thw", (3, 1, 4, 5))


# -- NumPy ---------------------------------------------------------------------------------------------------------------


def test_arrays_of_one_picture():
    for shape, axes, expected in (
        ((5, 7), "hw", (1, 5, 7)),
        ((5, 7, 3), "hw", (3, 5, 7)),
        ((2, 5, 7), "hw", (2, 5, 7)),
        ((6, 5, 7), "dhw", (1, 6, 5, 7)),
        ((6, 5, 7, 2), "dhw", (2, 6, 5, 7)),
        ((2, 6, 5, 7), "dhw", (2, 6, 5, 7)),
    ):
        array = noise(*shape, dtype="int16")
        for made in (array, np.asfortranarray(array), array.astype(">i2")):
            found = read(npy(made))
            assert (found.axes, found.values.shape, found.values.dtype) == (axes, expected, np.int16)
            assert (head(npy(made)).axes, head(npy(made)).size) == (axes, expected[1:])
            np.testing.assert_array_equal(
                np.moveaxis(found.values, 0, -1) if shape[-1] < 4 else found.values.reshape(shape), array
            )
    bits = noise(3, 4) > 99
    agree(npy(bits), bits[None] * np.uint8(255), ("1-bit grey stretched over 8 bits",))
    single = io.BytesIO()
    np.savez(single, picture=noise(5, 7))
    agree(single.getvalue(), noise(5, 7)[None])
    compressed = io.BytesIO()
    np.savez_compressed(compressed, values=noise(6, 5, 7), axes="hw")
    agree(compressed.getvalue(), noise(6, 5, 7))


def test_arrays_that_are_no_picture():
    two = io.BytesIO()
    np.savez(two, a=noise(5, 7), b=noise(5, 7))
    objects = io.BytesIO()
    np.save(objects, np.array([{}, None], object), allow_pickle=True)
    planted = npy(noise(5, 7)).replace(b"'<u1'", b"__im'").replace(b"'|u1'", b"__im'")
    lying = npy(noise(5, 7)).replace(b"(5, 7), }      ", b"(99999, 99999)}")
    for data, reason in (
        (two.getvalue(), r"it holds 2 arrays \(a, b\)"),
        (objects.getvalue(), "is an array of object, which is no picture|other things than numbers"),
        (planted, "its header is damaged"),
        (lying, "it says it has 99999 x 99999 pixels"),
        (npy(noise(7)), "shape 7, which is no picture"),
        (npy(noise(9, 9, 9, 9)), "which is no picture"),
        (npy(np.ones((2, 2), np.complex64)), "array of complex64"),
        (npy(noise(0, 7)), "it holds no pixels"),
        (npy(noise(50, 70))[:-1], "it is cut short"),
    ):
        with pytest.raises(ValueError, match=rf"^x\.npy cannot be read: .*({reason})"):
            read(data, "x.npy")


# -- what is refused -----------------------------------------------------------------------------------------------------


def test_refusals_are_sentences_that_begin_with_the_name(tmp_path: Path):
    good = saved(Image.fromarray(noise(32, 32, 3)), "PNG")
    planted = {
        "empty.png": (b"", "is empty; images are"),
        "page.png": (b"\n<!DOCTYPE html><html>", "holds text or HTML"),
        "fits.png": (b"SIMPLE  =                    T" + bytes(600), "is of no known format"),
        "psd.png": (b"8BPS\0\1" + bytes(600), "is of no known format"),
        "eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(600), "is of no known format"),
        "pdf.png": (b"%PDF-1.7\n" + bytes(600), "is of no known format"),
        "cut.png": (good[: len(good) // 2], "cannot be read: "),
        "crc.png": (good[:60] + bytes((good[60] ^ 1,)) + good[61:], "cannot be read: "),
        "none.gif": (b"GIF89a\1\0\1\0\0\0\0;", "cannot be read: it holds no pixels."),
    }
    for name, (data, reason) in planted.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=r"^.* .*\.$") as refused:
            read(tmp_path / name)
        assert str(refused.value).startswith(f"{tmp_path / name} {reason}"), refused.value
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(ValueError, match=r"fifo\.png is not a regular file\.$"):
        read(tmp_path / "fifo.png")
    with pytest.raises(ValueError, match=r"gone\.png cannot be read: no such file or directory\.$"):
        read(tmp_path / "gone.png")
    strange = tmp_path / os.fsdecode(b"\xff\xfe\n.png")
    strange.write_bytes(b"")
    with pytest.raises(ValueError, match=r"\\udcff\\udcfe\\n\.png is empty"):
        read(strange)


def test_a_file_is_known_by_its_bytes(tmp_path: Path):
    values = noise(3, 4, 5)
    (tmp_path / "wrong.jpg").write_bytes(encode(Picture(values))[0])
    np.testing.assert_array_equal(read(tmp_path / "wrong.jpg").values, values)


def resident_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def bombs() -> dict[str, bytes]:
    side = 40_000
    deflate = zlib.compressobj(9)
    rows = b"".join(deflate.compress(bytes(side // 8 + 1)) for _ in range(side)) + deflate.flush()
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    made = {"png": start + chunk(b"IDAT", rows) + chunk(b"IEND", b"")}
    made["gif"] = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    made["gif"] += b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;"
    made["bmp"] = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(999)
    extended = b"VP8X" + struct.pack("<I", 10) + b"\x10\0\0\0" + (16382).to_bytes(3, "little") * 2
    still = saved(Image.new("RGB", (4, 4)), "WEBP")[12:]
    made["webp"] = b"RIFF" + struct.pack("<I", 4 + len(extended + still)) + b"WEBP" + extended + still
    made["tif"] = tiff(np.zeros((4, 4), np.uint8), metadata=None)
    for tag in (256, 257, 278):  # width, length and rows in a strip
        place = made["tif"].index(struct.pack("<HH", tag, 3)) if struct.pack("<HH", tag, 3) in made["tif"] else None
        place = place if place is not None else made["tif"].index(struct.pack("<HH", tag, 4))
        made["tif"] = made["tif"][: place + 2] + struct.pack("<HII", 4, 1, side) + made["tif"][place + 12 :]
    made["npy"] = npy(noise(5, 7)).replace(b"(5, 7), }      ", b"(99999, 99999)}")
    grey = bytearray(saved(Image.new("L", (8, 8)), "JPEG"))
    place = grey.index(b"\xff\xc0")
    grey[place + 5 : place + 9] = b"\xff\xff\xff\xff"
    made["jpg"] = bytes(grey)
    return made


def test_bombs_are_refused_before_anything_is_allocated():
    made = bombs()
    assert 150_000 < len(made["png"]) < 250_000
    assert head(made["png"]).values == 1_600_000_000
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:  # a fresh process, so that its peak is of these files alone
        try:
            Path("/proc/self/clear_refs").write_text("5")  # peak := now
            status = Path("/proc/self/status")
            peak = lambda: int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024  # noqa: E731
            before, told = peak(), []
            for kind, data in made.items():
                for then in (head, read):
                    try:
                        then(data, kind)
                    except ValueError as error:
                        told.append(str(error))
            os.write(writing, json.dumps([peak() - before, told]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        growth, told = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert growth < 100
    assert {t.split()[0] for t in told} == set(made)
    assert sum("pixels of" in t for t in told) >= len(made), told


def test_a_strip_that_inflates_without_end_is_bounded():
    data = tiff(np.zeros((8, 8), np.uint8), compression="zlib", metadata=None)
    bomb = zlib.compress(bytes(1 << 28), 9)
    place = (
        data.index(struct.pack("<HH", 279, 4)) if struct.pack("<HH", 279, 4) in data else data.index(struct.pack("<HH", 279, 3))
    )
    offset = (
        data.index(struct.pack("<HH", 273, 4)) if struct.pack("<HH", 273, 4) in data else data.index(struct.pack("<HH", 273, 3))
    )
    made = bytearray(data + bomb)
    made[place + 2 : place + 12] = struct.pack("<HII", 4, 1, len(bomb))
    made[offset + 2 : offset + 12] = struct.pack("<HII", 4, 1, len(data))
    before = resident_mb()
    try:
        assert read(bytes(made)).values.shape == (1, 8, 8)
    except ValueError:
        pass
    assert resident_mb() - before < 100


def test_a_head_that_says_another_depth_than_the_pixels_is_refused(monkeypatch: pytest.MonkeyPatch):
    said = Head("hw", (4, 5), 3, "uint16", "RGB")
    lying = Format("lying", (".lie",), lambda start: True, lambda file: said, lambda file: Picture(noise(3, 4, 5)))
    monkeypatch.setattr(formats, "formats", lambda: (lying,))
    with pytest.raises(ValueError, match=r"^x cannot be read: its head says another size or depth than its pixels have\.$"):
        read(b"anything", "x")
    assert MAX_PIXELS < Image.MAX_IMAGE_PIXELS  # or Pillow would warn of what we read


def test_tifffile_says_nothing_while_we_read(caplog: pytest.LogCaptureFixture):
    made = bytearray(tiff(noise(16, 16), metadata=None))
    spoilt = made[:]
    struct.pack_into("<I", spoilt, len(spoilt) - 256 - 4 if len(spoilt) > 300 else 4, 0xFFFFFF)
    for data in (bytes(spoilt), bytes(made[:100]), bytes(made[:8]) + b"\xff" * 300):
        try:
            read(data)
        except ValueError:
            continue
    assert not [r for r in caplog.records if r.name == "tifffile"]
    logging.getLogger("tifffile").warning("said elsewhere")
    assert [r.message for r in caplog.records if r.name == "tifffile"] == ["said elsewhere"]


def test_a_format_is_registered_by_being_there():
    folder = Path(formats.__file__).parent
    files = sorted(f.stem for f in folder.glob("*.py") if not f.stem.startswith("_"))
    formats.formats.cache_clear()
    assert len(formats.formats()) == len(files)
    assert {"PNG", "JPEG", "WebP", "BMP", "GIF", "TIFF", "NumPy"} <= {f.name for f in formats.formats()}
    found = formats.suffixes()
    assert all(s.startswith(".") and s == s.lower() for s in found)
    assert len(found) == sum(len(f.suffixes) for f in formats.formats())  # no suffix is promised twice


def rate(action: Callable[[], object], repeats: int) -> float:
    best = math.inf
    for _ in range(3):
        began = time.process_time()  # of this process: the core is shared
        for _ in range(repeats):
            action()
        best = min(best, time.process_time() - began)
    return repeats / best


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_small_files_are_read_fast(kind: str, tmp_path: Path):
    path = tmp_path / "x"
    path.write_bytes(saved(Image.fromarray(noise(28, 28)), kind))
    assert rate(lambda: read(path), 200) > 1000  # 2,000 and more on an idle machine


def test_a_zip_without_arrays_is_refused():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("x.npy", b"nothing")
    with pytest.raises(ValueError, match=r"^x cannot be read: it is no NumPy array\.$"):
        read(file.getvalue(), "x")
