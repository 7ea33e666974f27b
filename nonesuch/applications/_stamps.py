"""Where each file format keeps words about itself: a packet of XMP and a line of JSON put in, and found again.

    PNG     iTXt chunks after IHDR, "XML:com.adobe.xmp" and "nonesuch"      JPEG  an APP1 segment
    TIFF    tag 700 of the first directory, which is written anew           WebP  the chunk "XMP " of a picture with VP8X
    MP4     a box "uuid" at the end                                         NIfTI a header extension of code 6, a comment: JSON
    NumPy   the member "nonesuch.json" of an .npz

The coded pixels are never touched: bytes are put before, between or after them, and the places that count bytes are corrected.
Nothing depends on the machine or the clock: the same input is the same bytes. Finding reads no pixels, no more than MAX_BYTES of
words at a place, and raises whatever it likes on a damaged file.

References:
    XMP Specification Part 3: Storage in Files (Adobe, 2020); TIFF, Revision 6.0 (Adobe, 1992)
    Portable Network Graphics (PNG) Specification, Third Edition (W3C, 2025); WebP Image Format (2024), RFC 9649
    NIfTI-1 Data Format (Cox et al., 2003), https://nifti.nimh.nih.gov/nifti-1
"""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

MAX_BYTES = 1 << 16  # of words at one place; an APP1 segment holds no more
_MAX_PIECES = 1 << 16  # chunks, segments, boxes and directory entries that are walked
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_XMP, _PNG_JSON = b"XML:com.adobe.xmp", b"nonesuch"
_JPEG_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_TIFF_XMP, _BYTE = 700, 1
_BOX_XMP = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")
_NIFTI_COMMENT = 6
_MEMBER = "nonesuch.json"


def put(data: bytes, xmp: bytes, line: bytes) -> bytes:
    """The file with the packet, or the line, in its place. Raises ValueError for a format without one, or one that is taken."""
    kind = _kind(data[:512])
    if kind is None:
        raise ValueError("this format has no place for what made a file; write PNG, TIFF, NIfTI, MP4 or .npz.")
    if max(len(xmp), len(line)) > MAX_BYTES - 512:
        raise ValueError(f"what made the file takes {max(len(xmp), len(line)):,} bytes to say; {MAX_BYTES - 512:,} are the most.")
    try:
        if any(True for _ in find(io.BytesIO(data))):
            raise ValueError("this file says something of itself already; encode its pixels anew to say what made it.")
        out = _PUT[kind](data, xmp, line)
        if not {xmp, line} & set(find(io.BytesIO(out))):
            raise ValueError(f"this {kind} file is built in a way that hides what is put into it; encode its pixels anew.")
        return out
    except (struct.error, IndexError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"this {kind} file is damaged ({type(error).__name__}); encode its pixels anew.") from None


def find(file: BinaryIO) -> Iterator[bytes]:
    """The packets and lines that stand in the places of `put`, whoever wrote them."""
    start = file.read(512)
    file.seek(0)
    if (kind := _kind(start)) is not None:
        yield from _FIND[kind](file)


def _kind(start: bytes) -> str | None:
    """The format of a file, by its first bytes."""
    if start.startswith(_PNG):
        return "PNG"
    if start.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if start[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WebP"
    if start[4:8] == b"ftyp":
        return "MP4"
    if start.startswith(b"PK\3\4"):
        return "NumPy"
    if start[:2] == b"\x1f\x8b" or any(int.from_bytes(start[:4], order) in (348, 540) for order in ("little", "big")):
        return "NIfTI"
    return None


# -- PNG


def _put_png(data: bytes, xmp: bytes, line: bytes) -> bytes:
    chunks = b""
    for name, text in ((_PNG_XMP, xmp), (_PNG_JSON, line)):
        body = b"iTXt" + name + b"\0\0\0\0\0" + text  # not compressed; no language, no translation
        chunks += struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
    return data[:33] + chunks + data[33:]  # the signature and IHDR are 33 bytes


def _find_png(file: BinaryIO) -> Iterator[bytes]:
    file.seek(8)
    for _ in range(_MAX_PIECES):
        start = file.read(8)
        length, name = struct.unpack(">I4s", start)
        if name == b"IEND":
            return
        body = file.read(length) if name == b"iTXt" and length <= MAX_BYTES else b""
        file.seek(length - len(body) + 4, 1)
        keyword, _, rest = body.partition(b"\0")
        if keyword in (_PNG_XMP, _PNG_JSON) and rest[:1] == b"\0":
            yield rest[2:].split(b"\0", 2)[-1]


# -- JPEG


def _put_jpeg(data: bytes, xmp: bytes, line: bytes) -> bytes:
    body = _JPEG_XMP + xmp
    at = 2
    while data[at : at + 2] == b"\xff\xe0":  # JFIF comes first
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return data[:at] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + data[at:]


def _find_jpeg(file: BinaryIO) -> Iterator[bytes]:
    file.seek(2)
    for _ in range(_MAX_PIECES):
        mark, marker, length = struct.unpack(">BBH", file.read(4))
        if mark != 0xFF or marker in (0xDA, 0xD9) or length < 2:
            return
        body = file.read(length - 2)
        if marker == 0xE1 and body.startswith(_JPEG_XMP):
            yield body.removeprefix(_JPEG_XMP)


# -- TIFF


def _tiff(start: bytes) -> tuple[str, str, str, str, int]:
    """Byte order, the forms of a count of entries, an offset and an entry, and where the first offset stands."""
    order = "<" if start[:2] == b"II" else ">"
    large = struct.unpack(order + "H", start[2:4])[0] == 43
    return (order, "Q", "Q", "HHQQ", 8) if large else (order, "H", "I", "HHII", 4)


def _put_tiff(data: bytes, xmp: bytes, line: bytes) -> bytes:
    order, count_form, at_form, entry, where = _tiff(data)
    size = struct.calcsize("=" + entry)
    (at,) = struct.unpack_from(order + at_form, data, where)
    (count,) = struct.unpack_from(order + count_form, data, at)
    first = at + struct.calcsize("=" + count_form)
    entries = [data[i : i + size] for i in range(first, first + count * size, size)]
    end = data[first + count * size :][: struct.calcsize("=" + at_form)]
    if len(entries) != count or any(len(e) != size for e in entries) or len(end) != struct.calcsize("=" + at_form):
        raise ValueError("this TIFF file is cut short; encode its pixels anew.")
    out = data + bytes(len(data) % 2)
    entries.append(struct.pack(order + entry, _TIFF_XMP, _BYTE, len(xmp), len(out)))
    entries.sort(key=lambda e: struct.unpack_from(order + "H", e)[0])
    out += xmp + bytes(len(xmp) % 2)
    directory = struct.pack(order + at_form, len(out))
    out += struct.pack(order + count_form, len(entries)) + b"".join(entries) + end
    return out[:where] + directory + out[where + len(directory) :]


def _find_tiff(file: BinaryIO) -> Iterator[bytes]:
    order, count_form, at_form, entry, where = _tiff(file.read(16))
    file.seek(where)
    file.seek(struct.unpack(order + at_form, file.read(struct.calcsize("=" + at_form)))[0])
    (count,) = struct.unpack(order + count_form, file.read(struct.calcsize("=" + count_form)))
    for _ in range(min(count, _MAX_PIECES)):
        tag, kind, length, at = struct.unpack(order + entry, file.read(struct.calcsize("=" + entry)))
        if tag == _TIFF_XMP and kind in (1, 7) and 8 < length <= MAX_BYTES:
            file.seek(at)
            yield file.read(length)
            return


# -- WebP


def _put_webp(data: bytes, xmp: bytes, line: bytes) -> bytes:
    body = data[12:]
    if body[:4] == b"VP8X":
        body = body[:8] + bytes((body[8] | 0x04,)) + body[9:]
    else:
        width, height, alpha = _webp_size(body)
        sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
        body = b"VP8X" + struct.pack("<IB3x", 10, 0x04 | 0x10 * alpha) + sides + body
    body += b"XMP " + struct.pack("<I", len(xmp)) + xmp + bytes(len(xmp) % 2)
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


def _webp_size(body: bytes) -> tuple[int, int, bool]:
    if body[:4] == b"VP8 ":
        width, height = struct.unpack_from("<HH", body, 14)
        return width & 0x3FFF, height & 0x3FFF, False
    (bits,) = struct.unpack_from("<I", body, 9)
    return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, bool(bits >> 28 & 1)


def _find_webp(file: BinaryIO) -> Iterator[bytes]:
    file.seek(12)
    for _ in range(_MAX_PIECES):
        start = file.read(8)
        if len(start) < 8:
            return
        name, length = struct.unpack("<4sI", start)
        if name == b"XMP " and length <= MAX_BYTES:
            yield file.read(length)
            return
        file.seek(length + length % 2, 1)


# -- MP4


def _put_mp4(data: bytes, xmp: bytes, line: bytes) -> bytes:
    return data + struct.pack(">I4s", 24 + len(xmp), b"uuid") + _BOX_XMP + xmp


def _find_mp4(file: BinaryIO) -> Iterator[bytes]:
    for _ in range(_MAX_PIECES):
        start = file.read(8)
        if len(start) < 8:
            return
        size, name = struct.unpack(">I4s", start)
        inside = size - 8
        if size == 1:
            inside = struct.unpack(">Q", file.read(8))[0] - 16
        if inside < 0:  # to the end of the file
            return
        if name == b"uuid" and 16 < inside <= MAX_BYTES:
            body = file.read(inside)
            if body.startswith(_BOX_XMP):
                yield body[16:]
        else:
            file.seek(inside, 1)


# -- NIfTI


def _put_nifti(data: bytes, xmp: bytes, line: bytes) -> bytes:
    if data[:2] == b"\x1f\x8b":
        return gzip.compress(_put_nifti(gzip.decompress(data), xmp, line), mtime=0)
    order, header, form, where = _nifti(data)
    offset = int(struct.unpack_from(order + form, data, where)[0])
    extended = data[header] != 0
    if offset < header + 4 or (not extended and offset != header + 4) or len(data) < offset:
        raise ValueError("this NIfTI file keeps its values elsewhere or is damaged; encode its pixels anew.")
    size = -(-(8 + len(line)) // 16) * 16
    words = struct.pack(order + "II", size, _NIFTI_COMMENT) + line.ljust(size - 8, b"\0")
    moved = struct.pack(order + form, offset + size)
    head = data[:where] + moved + data[where + len(moved) : header] + b"\1\0\0\0" + data[header + 4 : offset]
    return head + words + data[offset:]


def _nifti(data: bytes) -> tuple[str, int, str, int]:
    """Byte order, the header's length, and the form and place of the offset of the values."""
    order = "<" if int.from_bytes(data[:4], "little") in (348, 540) else ">"
    header = struct.unpack(order + "I", data[:4])[0]
    if header not in (348, 540):
        raise ValueError("this is no NIfTI file; a gzip file of something else has no place for what made it.")
    return (order, 348, "f", 108) if header == 348 else (order, 540, "q", 168)


def _find_nifti(file: BinaryIO) -> Iterator[bytes]:
    packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: Any = gzip.GzipFile(fileobj=file) if packed else file
    start = stream.read(544)
    order, header, form, where = _nifti(start)
    offset = int(struct.unpack_from(order + form, start, where)[0])
    stream.seek(header + 4)
    at = header + 4
    while start[header] and at + 16 <= min(offset, 1 << 24):
        size, code = struct.unpack(order + "II", stream.read(8))
        if size < 16:
            return
        body = stream.read(size - 8) if code == _NIFTI_COMMENT and size <= MAX_BYTES else b""
        if body:
            yield body.rstrip(b"\0")
        at += size
        stream.seek(at)


# -- NumPy


def _put_numpy(data: bytes, xmp: bytes, line: bytes) -> bytes:
    file = io.BytesIO(data)
    with zipfile.ZipFile(file, "a") as opened:
        member = zipfile.ZipInfo(_MEMBER, (1980, 1, 1, 0, 0, 0))
        member.create_system = 3  # whatever the system
        opened.writestr(member, line)
    return file.getvalue()


def _find_numpy(file: BinaryIO) -> Iterator[bytes]:
    with zipfile.ZipFile(file) as opened:
        if _MEMBER in opened.namelist():
            with opened.open(_MEMBER) as member:
                if len(found := member.read(MAX_BYTES + 1)) <= MAX_BYTES:
                    yield found


_PUT: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    "PNG": _put_png, "JPEG": _put_jpeg, "TIFF": _put_tiff, "WebP": _put_webp, "MP4": _put_mp4, "NIfTI": _put_nifti,
    "NumPy": _put_numpy,
}  # fmt: skip
_FIND: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {
    "PNG": _find_png, "JPEG": _find_jpeg, "TIFF": _find_tiff, "WebP": _find_webp, "MP4": _find_mp4, "NIfTI": _find_nifti,
    "NumPy": _find_numpy,
}  # fmt: skip
