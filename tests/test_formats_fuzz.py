"""Damaged files: thousands of mutants of good ones are read by a child process; none may kill it, hold it or make it print.

A mutant is either read, and then is what its head says, or refused in one sentence that begins with the file's name. The child
is forked once and fed through a pipe, so that a crash of a decoder is a failure here, with the file kept, and not our end.
"""

import io
import os
import select
import signal
import struct
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from nonesuch.data.formats import Picture as Values
from nonesuch.data.formats import encode, formats, head, read

LIMIT_S = 2.0
NAME = "spoilt"
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
QUIET = 1 << 20  # bytes a pipe's message may have


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def tiff(array: np.ndarray, **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, array, **options)
    return file.getvalue()


def corpus() -> dict[str, bytes]:
    """Small good files of every format and mode."""
    y, x = np.mgrid[:24, :32]
    grey = ((x * 8 + y * 3) % 256).astype(np.uint8)
    rgb = np.stack([grey, grey[::-1], 255 - grey], -1)
    rgba = np.concatenate([rgb, grey[..., None]], -1)
    deep = grey.astype(np.uint16) * 257
    made = {}
    for name, image in (("L", grey), ("RGB", rgb), ("RGBA", rgba)):
        made[f"png {name}"] = saved(Image.fromarray(image), "PNG")
        made[f"webp {name}"] = saved(Image.fromarray(image), "WEBP", lossless=name == "RGB")
    one = Image.fromarray(rgb)
    clip = [Image.fromarray(np.roll(rgb, 5 * k, 0)) for k in range(3)]
    tag = one.getexif()
    tag[0x0112] = 6
    for kind in ("PNG", "GIF", "WEBP"):
        made[f"{kind.lower()} clip"] = saved(clip[0], kind, save_all=True, append_images=clip[1:], duration=40)
    made["png P"] = saved(one.quantize(13), "PNG", exif=tag)
    made["png 1"] = saved(Image.fromarray(grey > 99), "PNG")
    for channels in (1, 2, 3, 4):
        made[f"png 16 x {channels}"] = encode(Values(np.stack([deep] * channels)), ".png")[0]
    for name, image in (("L", Image.fromarray(grey)), ("RGB", one), ("CMYK", one.convert("CMYK"))):
        made[f"jpeg {name}"] = saved(image, "JPEG", exif=tag, icc_profile=b"profile" * 9)
        made[f"bmp {name}"] = saved(image if name != "CMYK" else one.quantize(9), "BMP")
    made["jpeg progressive"] = saved(one, "JPEG", progressive=True)
    made["bmp 1"] = saved(Image.fromarray(grey > 99), "BMP")
    made["gif P"] = saved(one.quantize(9), "GIF", transparency=3)
    for packing in (None, "lzw", "zlib", "packbits", "jpeg", "zstd"):
        made[f"tiff {packing}"] = tiff(rgb, photometric="rgb", compression=packing)
        if packing != "jpeg":
            made[f"tiff deep {packing}"] = tiff(
                np.stack([deep] * 5, -1), photometric="minisblack", planarconfig="contig", compression=packing, tile=(16, 16)
            )
    made["tiff pages"] = tiff(np.stack([deep] * 4), imagej=True, metadata={"axes": "ZYX"}, photometric="minisblack")
    made["tiff float"] = tiff(grey.astype(np.float32), bigtiff=True)
    made["tiff palette"] = saved(one.quantize(9), "TIFF")
    made["tiff cmyk"] = saved(one.convert("CMYK"), "TIFF")
    made["tiff 1"] = saved(Image.fromarray(grey > 99), "TIFF", compression="group4")
    made["npz"] = encode(Values(rgb), ".npz")[0]
    bare = io.BytesIO()
    np.save(bare, deep, allow_pickle=False)
    made["npy"] = bare.getvalue()
    return made


def mutants(count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """`count` damaged files: first every good one cut at every tenth, then drawn: flips, noise, splices, gaps, wild numbers."""
    good = corpus()
    names = sorted(good)
    drawn = np.random.default_rng(seed)
    cuts = [(f"{n}, cut at {tenth}0 %", good[n][: len(good[n]) * tenth // 10]) for n in names for tenth in range(1, 10)]
    yield from cuts[:count]
    for k in range(count - len(cuts)):
        name = names[k % len(names)]
        data, other = bytearray(good[name]), good[names[int(drawn.integers(len(names)))]]
        at = int(drawn.integers(len(data)))
        how = ("flip", "flips", "noise", "splice", "insert", "remove", "number", "number", "number", "repeat")[
            k // len(names) % 10
        ]
        if how in ("flip", "flips"):
            for place in drawn.integers(0, len(data), 1 if how == "flip" else 20):
                data[place] ^= 1 << int(drawn.integers(8))
        elif how == "noise":
            data[at : at + 16] = drawn.bytes(len(data[at : at + 16]))
        elif how == "splice":
            data = data[:at] + other[int(drawn.integers(len(other))) :]
        elif how == "insert":
            data[at:at] = drawn.bytes(int(drawn.integers(1, 64)))
        elif how == "remove":
            del data[at : at + int(drawn.integers(1, 64))]
        elif how == "repeat":
            data[at:at] = data[at : at + int(drawn.integers(1, 4096))] * int(drawn.integers(1, 8))
        else:  # a number of the header, or of a TIFF's directory at its end or start, is made extreme
            at = (
                int(drawn.integers(min(len(data) - 4, 300)))
                if drawn.random() < 0.8
                else max(0, len(data) - int(drawn.integers(4, 300)))
            )
            form = ("<H", ">H", "<I", ">I")[int(drawn.integers(4))]
            value = EXTREMES[int(drawn.integers(len(EXTREMES)))] if drawn.random() < 0.7 else int(drawn.integers(1 << 16))
            struct.pack_into(form, data, at, value & (0xFFFF if form[1] == "H" else 0xFFFFFFFF))
        if name.startswith("png") and drawn.random() < 0.7:
            data = bytearray(resealed(bytes(data)))
        yield f"{name}, {how}, mutant {k}", bytes(data)


def resealed(data: bytes) -> bytes:
    """A PNG with right checksums, as far as it has chunks, so that its damage is not found by them."""
    out, at = bytearray(data), 8
    while at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        out[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(out)


def verdict(data: bytes, said: list[str]) -> str:
    """What reading does: "read", "refused" and the sentence, or "wrong" and what is."""
    try:
        about = head(data, NAME)
        picture = read(data, NAME)
        every = read(data, NAME, axes="thw") if about.frames > 1 else picture
    except ValueError as error:
        sentence = str(error)
        one = sentence.startswith(f"{NAME} ") and sentence.endswith(".") and sentence.isprintable() and len(sentence) < 500
        return ("refused: " if one and ". " not in sentence and not said else "wrong: ") + f"{sentence} {' '.join(said)}"
    except BaseException as error:
        return f"wrong: {type(error).__name__}: {error}"
    if said or (about.channels, *about.size) != picture.values.shape or every.values.size < picture.values.size:
        return f"wrong: {about} {picture.values.shape} {' '.join(said)}"
    return "read"


def child(orders: int, answers: int, chatter: Path) -> None:
    """Read what comes, answer with a verdict each; whatever is printed meanwhile lands in `chatter`."""
    os.dup2(os.open(chatter, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    said: list[str] = []
    warnings.simplefilter("always")
    warnings.showwarning = lambda message, *_: said.append(f"warned: {message}")
    with os.fdopen(orders, "rb") as pipe:
        while len(start := pipe.read(4)) == 4:
            said.clear()
            found = verdict(pipe.read(struct.unpack("<I", start)[0]), said).encode("utf-8", "backslashreplace")[:4000]
            os.write(answers, struct.pack("<I", len(found)) + found)


class Reader:
    """A forked child and the pipes to it."""

    def __init__(self, chatter: Path) -> None:
        orders, self.orders = os.pipe()
        self.answers, answers = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.close(self.orders)
                os.close(self.answers)
                child(orders, answers, chatter)
            finally:
                os._exit(0)
        os.close(orders)
        os.close(answers)

    def ask(self, data: bytes) -> str:
        """The child's verdict, or "hang", or "crash" with the signal."""
        try:
            sent = struct.pack("<I", len(data)) + data
            while sent:
                sent = sent[os.write(self.orders, sent) :]
        except BrokenPipeError:
            return self.end("crash")
        answer = b""
        until = time.monotonic() + LIMIT_S
        while len(answer) < 4 or len(answer) < 4 + struct.unpack("<I", answer[:4])[0]:
            ready, _, _ = select.select([self.answers], [], [], max(0, until - time.monotonic()))
            if not ready:
                return self.end("hang")
            got = os.read(self.answers, QUIET)
            if not got:
                return self.end("crash")
            answer += got
        return answer[4:].decode()

    def peak_mb(self) -> float:
        return int(Path(f"/proc/{self.pid}/status").read_text().split("VmHWM:")[1].split()[0]) / 1024

    def end(self, why: str = "") -> str:
        if why == "hang":
            os.kill(self.pid, signal.SIGKILL)
        os.close(self.orders)
        os.close(self.answers)
        _, status = os.waitpid(self.pid, 0)
        return f"{why}: status {status}"


def fuzz(count: int, seed: int, folder: Path) -> Counter[str]:
    formats()  # before the fork: the child starts warm
    for data in corpus().values():
        read(data)
    chatter = folder / "chatter.txt"
    reader, found, failures = Reader(chatter), Counter[str](), []
    began = reader.peak_mb()
    slowest, grown = 0.0, 0.0
    for name, data in mutants(count, seed):
        start = time.monotonic()
        result = reader.ask(data)
        slowest = max(slowest, time.monotonic() - start)
        kind = result.split(":")[0]
        found[kind] += 1
        if kind not in ("read", "refused"):
            kept = folder / f"{len(failures)}-{kind}.bin"
            kept.write_bytes(data)
            failures.append(f"{name} ({kept}): {result}")
        if kind in ("hang", "crash"):
            reader = Reader(chatter)
    grown = reader.peak_mb() - began
    reader.end()
    print(f"{count} mutants: {dict(found)}, slowest {slowest:.2f} s, memory +{grown:.0f} MB")
    assert not failures, f"{len(failures)} failures\n" + "\n".join(failures[:20])
    assert chatter.read_bytes() == b""
    assert grown < 1000
    return found


def test_good_files_are_read(tmp_path: Path):
    reader = Reader(tmp_path / "chatter.txt")
    assert {name: reader.ask(data) for name, data in corpus().items()} == dict.fromkeys(corpus(), "read")
    reader.end()


def test_nothing_is_read_of_a_file_that_was_cut():
    """But for the last bytes, which hold no pixel: an end mark, a checksum of nothing, a link to no further page."""
    for name, data in corpus().items():
        for kept in range(0, len(data) - 16, max(1, len(data) // 40)):
            with pytest.raises(ValueError, match=f"^{NAME} "):
                pytest.fail(f"{name}: {kept} of {len(data)} bytes read as {read(data[:kept], NAME).values.shape}")


def test_the_child_notices_crashes_and_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        f"{__name__}.verdict", lambda data, said: os.kill(os.getpid(), signal.SIGTERM) if data == b"die" else time.sleep(9)
    )
    monkeypatch.setattr(f"{__name__}.LIMIT_S", 0.2)
    assert Reader(tmp_path / "chatter.txt").ask(b"die") == f"crash: status {int(signal.SIGTERM)}"
    assert Reader(tmp_path / "chatter.txt").ask(b"sleep") == f"hang: status {int(signal.SIGKILL)}"


def test_two_thousand_mutants(tmp_path: Path):
    found = fuzz(2_000, 0, tmp_path)
    assert found["refused"] > 1_000


@pytest.mark.slow
def test_twenty_thousand_mutants(tmp_path: Path):
    found = fuzz(20_000, 1, tmp_path)
    assert found["refused"] > 8_000
