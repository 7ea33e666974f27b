"""The doctor against files that are known: every planted fault named, with its kind, and nothing else named."""

import io
import json
import os
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from sklearn.datasets import load_digits, load_sample_images

from nonesuch.cli import main
from nonesuch.data.doctor import Examination, escaped, examine, quick, unescaped
from nonesuch.data.doctor.findings import HANDLED, HANDLING, MUST, MUST_FIX, NOTES
from nonesuch.data.duplicates import Print, clusters, near, print_of, same

SIDE = 64


def png(array: np.ndarray, **options: object) -> bytes:
    return saved(Image.fromarray(array), "PNG", **options)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    """500 distinct pictures (64, 64, 3): the crops of two photographs, and digits drawn large in colour."""
    crops = [
        photo[y : y + SIDE, x : x + SIDE]
        for photo in load_sample_images().images
        for y in range(0, photo.shape[0] - SIDE + 1, SIDE)
        for x in range(0, photo.shape[1] - SIDE + 1, SIDE)
    ]
    digits = load_digits().images[: 500 - len(crops)]
    colours = np.array([[255, 255, 255], [255, 160, 90], [120, 200, 255]]) / 255
    large = [
        (np.asarray(Image.fromarray((d * 15.9).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC))[..., None]
         * colours[i % 3]).astype(np.uint8)
        for i, d in enumerate(digits)
    ]  # fmt: skip
    return [*crops, *large]


@pytest.fixture(scope="module")
def good(pictures: list[np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("good")
    for i, picture in enumerate(pictures):
        place = root / ("cat" if i % 2 else "dog") / f"{i:04}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(picture, compress_level=1))
    return root


@pytest.fixture
def folder(good: Path, tmp_path: Path) -> Path:
    """A copy of the good pictures, by hard links."""
    for path in good.rglob("*.png"):
        place = tmp_path / "data" / path.relative_to(good)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.hardlink_to(path)
    return tmp_path / "data"


def plain(seed: int, mode: str = "RGB", size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A picture that resembles no other: smooth noise."""
    rng = np.random.default_rng(seed)
    channels = {"RGB": 3, "L": 1, "RGBA": 4, "CMYK": 4}[mode]
    coarse = rng.integers(0, 256, (8, 8, channels), dtype=np.uint8)
    planes = [Image.fromarray(coarse[..., c]) for c in range(channels)]
    return (Image.merge(mode, planes) if channels > 1 else planes[0]).resize(size, Image.Resampling.BICUBIC)


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def bomb(side: int = 40_000) -> bytes:
    """A PNG of side x side 1-bit pixels, 1.6 gigapixel, in 195 kB."""
    packed, row = zlib.compressobj(9), bytes(1 + side // 8)
    body = b"".join(packed.compress(row * 100) for _ in range(side // 100)) + packed.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def fault_files() -> dict[str, tuple[str, bytes]]:
    """Kind -> the name and bytes of a file that has that fault alone."""
    whole = saved(plain(1), "PNG")
    changed = bytearray(whole)
    changed[len(whole) // 2] ^= 0x55
    jpeg = saved(plain(2), "JPEG", quality=95)
    wrong = saved(plain(3), "PNG")
    turned = plain(4, size=(SIDE, SIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [plain(5), plain(6)]
    holes = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    holes[3, 4] = np.nan
    tiff = io.BytesIO()
    tifffile.imwrite(tiff, holes[..., 0])
    opaque = plain(14, "RGBA")
    return {
        "empty": ("cat/empty.png", b""),
        "truncated": ("cat/cut.png", whole[: len(whole) // 2]),
        "truncated#jpeg": ("cat/cut.jpg", jpeg[: len(jpeg) // 2]),
        "corrupt": ("cat/flipped.png", bytes(changed)),
        "bomb": ("dog/bomb.png", bomb()),
        "html": ("dog/page.png", b"<!DOCTYPE html><html><body>404</body></html>"),
        "disallowed-format": ("dog/a.png", b"8BPS\x00\x01" + bytes(100)),
        "disallowed-format#pdf": ("dog/b.jpg", b"%PDF-1.7\n" + bytes(100)),
        "disallowed-format#eps": ("dog/c.tif", b"%!PS-Adobe-3.0 EPSF-3.0\n" + bytes(100)),
        "disallowed-format#fits": ("dog/d.png", b"SIMPLE  =                    T".ljust(2880)),
        "disallowed-format#svg": ("dog/e.png", b"<?xml version='1.0'?><svg/>"),
        "unknown-format": ("dog/f.png", bytes(range(7, 207))),
        "not-finite": ("dog/nan.tif", tiff.getvalue()),
        "wrong-extension": ("dog/png.jpg", wrong),
        "unlisted": ("dog/picture.dat", saved(plain(7), "PNG")),
        "other-file": ("README.txt", b"taken in 1998"),
        "animated": ("dog/moving.png", saved(frames[0], "PNG", save_all=True, append_images=frames[1:])),
        "palette": ("dog/palette.png", saved(plain(8).quantize(32), "PNG")),
        "cmyk": ("dog/cmyk.jpg", saved(plain(9, "CMYK"), "JPEG", quality=95)),
        "turned": ("dog/turned.jpg", saved(turned, "JPEG", quality=95, exif=exif)),
        "mixed-alpha": ("dog/alpha.png", saved(opaque, "PNG")),
        "mixed-channels": ("dog/grey.png", saved(plain(10, "L"), "PNG")),
        "mixed-depth": ("dog/deep.tif", _deep()),
        "mixed-size": ("dog/wide.png", saved(plain(11, size=(96, 64)), "PNG")),
        "hidden": (".DS_Store", b"junk"),
        "name-control": ("dog/two\nlines.png", saved(plain(12), "PNG")),
        "blank": ("dog/black.png", saved(Image.new("RGB", (SIDE, SIDE)), "PNG")),
        "class-of-one": ("owl", b""),
    }


def _deep() -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.asarray(plain(13)).astype(np.uint16) * 257, photometric="rgb")
    return file.getvalue()


def plant(root: Path) -> dict[str, str]:
    """Put one of every fault in a folder: path -> the kind that must be found there."""
    expected = {}
    for kind, (name, data) in fault_files().items():
        if kind != "class-of-one":
            (root / name).write_bytes(data)
            expected[name] = kind.split("#")[0]
    (root / "owl").mkdir()
    (root / "owl" / "alone.png").write_bytes(saved(plain(20), "PNG"))
    expected["owl"] = "class-of-one"
    odd = os.fsdecode(b"dog/\xff\xfe.png")
    (root / odd).write_bytes(saved(plain(21), "PNG"))
    expected[odd] = "name-not-utf8"
    one_bit = np.zeros((SIDE, SIDE), np.uint8)
    one_bit[: SIDE // 2, ::2] = 255
    (root / "dog" / "bits.png").write_bytes(saved(Image.fromarray(one_bit).convert("1"), "PNG"))
    expected["dog/bits.png"] = "one-bit"
    first = sorted((root / "cat").glob("0*.png"))[0]
    links = {
        "dog/loop": ("link-loop", "loop"), "dog/up": ("link-loop", "../dog"), "dog/out.png": ("link-outside", "/etc/hostname"),
        "dog/gone.png": ("dangling-link", "nowhere.png"), "dog/same.png": ("link", str(first)),
    }  # fmt: skip
    for name, (kind, target) in links.items():
        (root / name).symlink_to(target)
        expected[name] = kind
    os.mkfifo(root / "dog" / "pipe.png")
    expected["dog/pipe.png"] = "pipe"
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(root)  # names of sockets are short
        listener.bind("dog/s.png")
        os.chdir(here)
    expected["dog/s.png"] = "socket"
    if os.geteuid() == 0:
        try:
            os.mknod(root / "dog" / "device.png", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero never ends
            expected["dog/device.png"] = "device"
        except PermissionError:  # in some containers
            pass
    (root / "dog" / "zz-copy.png").write_bytes(sorted((root / "dog").glob("0*.png"))[0].read_bytes())
    expected["dog/zz-copy.png"] = "duplicate"
    (root / "dog" / "zz-stolen.png").write_bytes(first.read_bytes())
    expected["dog/zz-stolen.png"] = "duplicate-across-classes"
    textured = max(sorted((root / "dog").glob("0*.png"))[:60], key=lambda p: np.asarray(Image.open(p), float).std())
    (root / "dog" / "zz-again.jpg").write_bytes(saved(Image.open(textured), "JPEG", quality=85))
    expected["dog/zz-again.jpg"] = "near-duplicate"
    return expected


@pytest.fixture(scope="module")
def clean(good: Path) -> Examination:
    return examine(good)


def test_five_hundred_good_pictures_raise_no_finding(clean: Examination):
    assert clean.findings == ()
    assert (clean.ok, clean.files, clean.images, clean.copies, clean.likenesses) == (True, 500, 500, 0, 0)
    assert clean.tallies["classes"] == {"dog": 250, "cat": 250}
    assert clean.tallies["sizes"] == {"64 x 64": 500}
    assert clean.tallies["formats"] == {"PNG": 500}
    assert clean.spec is not None
    assert (clean.spec.shape, clean.spec.levels) == ((3, 64, 64), 256)
    assert "100 of 500" in clean.split


def test_every_planted_fault_is_named_and_nothing_else(folder: Path):
    expected = plant(folder)
    start = time.monotonic()
    found = examine(folder)
    assert time.monotonic() - start < 60
    named = {f.file: f for f in found.findings}
    assert set(named) == set(expected), (set(expected) - set(named), set(named) - set(expected))
    kinds = {name: {f.kind for f in found.findings if f.file == name} for name in expected}
    assert {n: k for n, k in kinds.items() if k != {expected[n]} and n != "dog/bits.png"} == {}
    assert kinds["dog/bits.png"] == {"one-bit", "mixed-channels"}  # it is grey, too
    assert len(set(expected.values())) >= 30
    assert not found.ok
    assert set(found.to_fix()) == {n for n, kind in expected.items() if kind in MUST_FIX}
    reasons = {f.kind: f.reason for f in found.findings}
    assert "HTML" in reasons["html"]
    assert "40000 x 40000" in reasons["bomb"]
    assert "NaN" in reasons["not-finite"]
    assert "zz" not in reasons["duplicate"]
    for finding in found.findings:
        assert "\n" not in str(finding)
        assert not finding.reason.endswith(".")


def test_every_kind_has_one_severity():
    assert not set(MUST_FIX) & set(NOTES)
    assert not set(HANDLING) & {*MUST_FIX, *NOTES}


def test_tables_are_held_against_the_files(good: Path, tmp_path: Path):
    for i, path in enumerate(sorted(good.rglob("*.png"))[:6]):
        (tmp_path / f"{i}.png").write_bytes(path.read_bytes())
    rows = "file_name,age,sex 0.png,70,F 1.png,,M 2.png,55,F gone.png,1,M ../out.png,2,M 0.png,70,F 3.png,44,M".split()
    (tmp_path / "metadata.csv").write_text("\n".join(rows))
    found = examine(tmp_path)
    kinds = {f.file: f.kind for f in found.findings if "duplicate" not in f.kind}
    assert kinds == {
        "gone.png": "row-without-file", "../out.png": "row-outside", "0.png": "row-twice", "4.png": "file-without-row",
        "5.png": "file-without-row",
    }  # fmt: skip
    assert found.images == 4
    assert found.columns["sex"] == "2 categories, M 4, F 3"
    with pytest.raises(ValueError, match=r"(gone|out)\.png is named in metadata.csv"):
        quick(tmp_path)
    (tmp_path / "metadata.csv").write_bytes(b"file_name\n\xff\n")
    assert "bad-table" in {f.kind for f in examine(tmp_path).findings}


def test_copies_and_likenesses_across_splits_are_found(pictures: list[np.ndarray], tmp_path: Path):
    for i, picture in enumerate(pictures[:100]):
        place = tmp_path / ("test" if i % 5 == 0 else "train") / f"{i:04}.png"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(png(picture))
    textured = [i for i in range(0, 100, 5) if np.asarray(pictures[i], float).std() > 30][:4]
    (tmp_path / "train" / "zz0.png").write_bytes(png(pictures[textured[0]], compress_level=1))  # other bytes, the same values
    (tmp_path / "train" / "zz1.jpg").write_bytes(saved(Image.fromarray(pictures[textured[1]]), "JPEG", quality=80))
    lighter = np.clip(pictures[textured[2]] * 1.05 + 5.0, 0, 255).astype(np.uint8)
    (tmp_path / "train" / "zz2.png").write_bytes(png(lighter))
    (tmp_path / "train" / "zz3.png").write_bytes(png(pictures[textured[3]][1:, 1:]))
    found = examine(tmp_path)
    kinds = {f.file: f.kind for f in found.findings if "duplicate" in f.kind}
    likely = {f"train/zz{i}.{e}": "near-duplicate-across-splits" for i, e in ((1, "jpg"), (2, "png"), (3, "png"))}
    assert kinds == {"train/zz0.png": "duplicate-across-splits", **likely}
    assert found.tallies["splits"] == {"train": 84, "test": 20}
    assert (found.copies, found.likenesses) == (1, 3)
    assert found.to_fix() == ["train/zz0.png"]


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "jpeg 75": lambda a: np.asarray(Image.open(io.BytesIO(saved(Image.fromarray(a), "JPEG", quality=75)))),
    "lighter": lambda a: np.clip(a * 1.06 + 3.0, 0, 255).astype(np.uint8),
    "darker": lambda a: (a * 0.92).astype(np.uint8),
    "crop": lambda a: a[1:, 1:],
    "crop and resize": lambda a: np.asarray(Image.fromarray(a[1:-1, 1:-1]).resize((SIDE, SIDE), Image.Resampling.BILINEAR)),
    "half": lambda a: np.asarray(Image.fromarray(a).resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS)),
}


@pytest.fixture(scope="module")
def prints(pictures: list[np.ndarray]) -> list[Print]:
    return [print_of(np.moveaxis(p, -1, 0)) for p in pictures]


def test_distinct_pictures_are_not_near(prints: list[Print]):
    assert near(prints) == []


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_is_near(pictures: list[np.ndarray], prints: list[Print], change: str):
    contrast = [float(np.asarray(p, float).mean(-1).std()) for p in pictures]
    picked = [i for i in range(len(pictures)) if contrast[i] > 15][::5]
    copies = [print_of(np.moveaxis(CHANGES[change](pictures[i]), -1, 0)) for i in picked]
    wanted = {(i, len(prints) + k) for k, i in enumerate(picked)}
    found = {(a, b) for a, b, _ in near(prints + copies)}
    assert found - wanted == set()
    assert len(found & wanted) >= 0.97 * len(wanted)


def test_groups_chain_and_equal_digests_gather():
    assert clusters([(5, 3), (1, 2), (3, 9), (2, 0)]) == [[0, 1, 2], [3, 5, 9]]
    assert same(["a", "b", "a", "c", "b", "a"]) == [[0, 2, 5], [1, 4]]
    a = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert print_of(a).digest == print_of(a.copy()).digest
    assert print_of(a).digest != print_of(a.astype(np.uint16)).digest != print_of(a.reshape(1, 4, 16)).digest


def test_a_tree_finds_what_the_product_finds(monkeypatch: pytest.MonkeyPatch):
    rng = np.random.default_rng(0)
    pictures = [np.asarray(plain(i)) for i in range(300)]
    pictures += [np.clip(pictures[i] + rng.normal(0, 3, pictures[i].shape), 0, 255).astype(np.uint8) for i in range(0, 300, 7)]
    prints = [print_of(np.moveaxis(p, -1, 0)) for p in pictures]
    found = {p[:2] for p in near(prints)}
    assert found == {(i, 300 + k) for k, i in enumerate(range(0, 300, 7))}
    monkeypatch.setattr("nonesuch.data.duplicates.MANY", 100)
    assert {p[:2] for p in near(prints)} == found


def test_a_bomb_costs_no_memory(tmp_path: Path):
    from nonesuch.data.doctor import workers

    code = workers._START.replace("workers.serve()", """
import resource, sys
from nonesuch.data.doctor import one
one.examined(sys.argv[2] + "/a.png")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kinds = [f[0] for f in one.examined(sys.argv[2] + "/bomb.png")["findings"]]
print(*kinds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
""")  # fmt: skip
    (tmp_path / "a.png").write_bytes(saved(plain(0), "PNG"))
    data = bomb()
    assert len(data) < 200_000
    (tmp_path / "bomb.png").write_bytes(data)
    command = [sys.executable, "-c", code, str(Path(workers.__file__).parents[1]), str(tmp_path)]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    kind, grown_kb = said.stdout.split()
    assert kind == "bomb"
    assert int(grown_kb) < 100_000


def test_a_crashing_decoder_costs_one_file_that_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from nonesuch.data.doctor import workers

    for i in range(20):
        (tmp_path / f"{i:02}.png").write_bytes(saved(plain(i), "PNG"))
    start = workers._START.replace(
        "workers.serve()",
        "import os, time\nfrom nonesuch.data.doctor import one\nreal = one.examined\n"
        "def examined(path):\n    if path.endswith('07.png'): os.abort()\n    if path.endswith('11.png'): time.sleep(60)\n"
        "    return real(path)\none.examined = examined\nworkers.serve()",
    )
    monkeypatch.setattr(workers, "_START", start)
    paths = [str(p) for p in sorted(tmp_path.glob("*.png"))]
    found = dict(workers.examine_all(paths, 1, limit_s=2.0))
    assert found[7]["findings"] == [("crash", "makes its decoder crash (signal 6)")]
    assert found[11]["findings"] == [("slow", "takes too long to read")]
    assert all("print" in found[i] for i in range(20) if i not in (7, 11))


def test_workers_load_no_torch(tmp_path: Path):
    from nonesuch.data.doctor import workers

    code = workers._START.replace("workers.serve()", "import nonesuch.data.doctor.one as one, json\none.examined(sys.argv[2])\n"
                                  "print('torch' in sys.modules)")  # fmt: skip
    (tmp_path / "a.png").write_bytes(saved(plain(0), "PNG"))
    command = [sys.executable, "-c", code, str(Path(workers.__file__).parents[1]), str(tmp_path / "a.png")]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout == "False\n"


def test_what_cannot_be_opened_is_named():
    from nonesuch.data.doctor import one

    with tempfile.TemporaryDirectory() as place:  # pytest's own folder is closed to all but root
        os.chmod(place, 0o755)
        path = Path(place, "closed.png")
        path.write_bytes(b"x")
        path.chmod(0)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)
        try:
            said = one.examined(str(path))
        finally:
            os.seteuid(user)
    assert said["findings"] == [("unreadable", "cannot be opened: Permission denied")]


def test_a_file_that_vanishes_is_said_to_have(tmp_path: Path):
    from nonesuch.data.doctor import one

    assert one.examined(str(tmp_path / "a.png"))["findings"] == [("vanished", "was listed, and is gone")]


ODD_NAMES = [b"plain.png", b"\xff\xfe.png", b"a\nb\\n.png", "\u2028 \u202e \U0001f984.png".encode(), b"\x1b[31m.png", b"\t.png"]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_paths_are_escaped_on_one_line_and_back(name: bytes):
    line = escaped(os.fsdecode(name))
    assert line.encode().decode() == line
    assert line.isprintable()
    assert os.fsencode(unescaped(line)) == name
    shell = subprocess.run(["bash", "-c", 'printf %b "$1"', "-", line], capture_output=True, check=True)
    assert shell.stdout == name


def test_the_command_answers_by_its_exit_code(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["doctor", str(good), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["ok"], said["images"], said["findings"], said["schema"]) == (True, 500, [], 1)
    assert [a["family"] for a in said["advice"]] == ["autoregressive", "flow", "vae", "diffusion", "energy", "gan"]
    assert all(a["why"] and (not a["preset"] or (a["batch"] >= 2 and a["budget"])) for a in said["advice"])
    (tmp_path / "a.png").write_bytes(saved(plain(0), "PNG"))
    (tmp_path / "b.png").write_bytes(saved(plain(1), "PNG"))
    (tmp_path / os.fsdecode(b"\xff\n.png")).write_bytes(b"")
    assert main(["doctor", str(tmp_path), "--fix-list"]) == 1
    assert capsys.readouterr().out == f"{tmp_path}/\\xff\\n.png\n"
    assert main(["doctor", str(tmp_path), "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["findings"][0]
    assert first == {"kind": "empty", "severity": MUST, "file": "\\xff\\n.png", "reason": "is empty, 0 bytes"}
    assert main(["doctor", str(tmp_path)]) == 1
    assert "1 to fix" in capsys.readouterr().out
    assert main(["doctor", str(tmp_path / "nothing")]) == 2
    assert capsys.readouterr().err.startswith("nonesuch: there is no data")


def test_an_empty_folder_holds_no_images(tmp_path: Path):
    found = examine(tmp_path)
    assert [f.kind for f in found.findings] == ["no-images"]
    assert not found.ok
    with pytest.raises(ValueError, match="holds no images"):
        quick(tmp_path)


def test_the_quick_part_refuses_what_a_fit_cannot_read(folder: Path):
    start = time.monotonic()
    assert quick(folder) == ()
    assert time.monotonic() - start < 3
    os.mkfifo(folder / "pipe.png")
    (folder / "loop").symlink_to("loop")
    assert quick(folder) == ("1 link-loop: not followed.", "1 pipe: not opened.")
    (folder / "cat" / "page.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"page.png is an HTML page.*nonesuch doctor"):
        quick(folder, seconds=30)
    (folder / "cat" / "page.png").write_bytes(bomb())
    with pytest.raises(ValueError, match=r"page.png says it has 40000 x 40000 pixels"):
        quick(folder, seconds=30)


def test_arrays_and_named_data_are_examined(tmp_path: Path):
    digits = examine("digits")
    assert (digits.images, digits.ok, digits.tallies["splits"]) == (1797, True, {"train": 1400, "test": 397})
    assert digits.copies == 0
    x = np.stack([np.asarray(plain(i, "L")) for i in range(20)])
    x[13] = x[4]
    np.savez(tmp_path / "a.npz", x_train=x[:12], x_test=x[12:])
    found = examine(tmp_path / "a.npz")
    assert [(f.kind, f.file) for f in found.findings] == [("duplicate-across-splits", "train[4]")]
    broken = x.astype(np.float32)
    broken[0, 0, 0] = np.nan
    np.savez(tmp_path / "b.npz", x=broken)
    assert [f.kind for f in examine(tmp_path / "b.npz").findings] == ["bad-array"]
    assert examine(x).copies == 1


def test_sizes_that_differ_are_told_with_what_reading_does(tmp_path: Path):
    for i in range(12):
        (tmp_path / f"{i:02}.png").write_bytes(saved(plain(i, size=(40 + 8 * (i % 4), 40)), "PNG"))
    found = examine(tmp_path)
    assert [(f.kind, f.file, f.severity) for f in found.findings] == [("mixed-size", "", HANDLED)]
    assert any("cropped to 40 x 40" in r for r in found.remarks)
    assert found.ok
