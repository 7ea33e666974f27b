"""What made a file: put into every format that is written, read back, the same pixels, the same bytes, and nothing leaks."""

import gzip
import io
import json
import re
import struct
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from nonesuch import catalog
from nonesuch.applications import _mark
from nonesuch.applications.provenance import (
    SOURCES,
    WITHHELD,
    Origin,
    origins,
    read_origin,
    stamped,
    stamping,
    told,
    weights_sha256,
)
from nonesuch.core.given import Category, Given, Image, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data.formats import Picture, encode, read
from nonesuch.data.pictures import save_images, save_sheet

ORIGIN = Origin(
    "sample", "diffusion/edm", "ab" * 32, 7, 41, {"label": "naïve <&>", "age": 41.5, "left": True}, {"steps": 20},
    "2026-11-28", mark="none: smaller than 256x256",
)  # fmt: skip


TURNED = bytes.fromhex("4578696600004d4d002a00000008000101120003000000010006000000000000")  # to the right, says its EXIF


def values(*shape: int, dtype: str = "uint8") -> np.ndarray:
    drawn = np.random.default_rng(0).integers(0, 250, shape)
    return drawn.astype(dtype) + np.dtype(dtype).type(0.25 if dtype.startswith("f") else 0)


def pillow(form: str, mode: str, **options: object) -> bytes:
    array = values(*((9, 14) if mode == "L" else (9, 14, len(mode))))
    file = io.BytesIO()
    Pillow.fromarray(array, mode).save(file, form, **options)
    return file.getvalue()


def files() -> dict[str, bytes]:
    """A file of every sort that is written, and of every sort that may be stamped."""
    written = {}
    for name, picture in {
        "grey": Picture(values(1, 9, 14)), "deep": Picture(values(3, 9, 14, dtype="uint16")), "alpha": Picture(values(4, 9, 14)),
        "float": Picture(values(1, 9, 14, dtype="float32")), "channels": Picture(values(5, 9, 14)),
        "spaced": Picture(values(1, 9, 14), spacing=(0.5, 0.25)),
        "clip of two": Picture(values(2, 3, 9, 14), "thw"),
        "volume": Picture(values(1, 5, 9, 14, dtype="int16"), "dhw", (2, 1, 1)),
        "clip": Picture(values(3, 4, 16, 16), "thw"), "vector": Picture(values(3, 14, dtype="float32"), "l"),
    }.items():  # fmt: skip
        data, suffix = encode(picture)
        written[name + suffix] = data
    written["packed.nii.gz"] = gzip.compress(written["volume.nii"], mtime=0)
    written["photo.jpg"] = pillow("JPEG", "RGB", quality=80)
    written["turned.jpg"] = pillow("JPEG", "L", exif=TURNED)
    for mode, lossless in (("RGB", True), ("RGB", False), ("RGBA", True), ("RGBA", False)):
        written[f"{mode}{lossless}.webp"] = pillow("WEBP", mode, lossless=lossless)
    return written


FILES = files()


@pytest.mark.parametrize("name", FILES)
def test_an_origin_is_read_back_and_no_pixel_changes(name: str, tmp_path: Path):
    data, suffix = FILES[name], "." + name.split(".", 1)[1]
    once, again = stamped(data, suffix, ORIGIN), stamped(data, suffix, ORIGIN)
    assert once == again
    path = tmp_path / name
    path.write_bytes(once)
    assert read_origin(path) == ORIGIN
    before, after = read(data), read(path)
    np.testing.assert_array_equal(after.values, before.values)
    assert (after.axes, after.spacing, after.unit, after.remarks) == (before.axes, before.spacing, before.unit, before.remarks)
    path.write_bytes(data)
    assert read_origin(path) is None
    with pytest.raises(ValueError, match="says something of itself already"):
        stamped(once, suffix, replace(ORIGIN, index=42))


def test_the_formats_are_all_there():
    assert {Path(n).suffix for n in FILES} == {".png", ".tif", ".nii", ".gz", ".mp4", ".npz", ".jpg", ".webp"}


def test_other_programs_read_it():
    """Pillow finds both chunks of a PNG and the packets of JPEG, TIFF and WebP; nibabel the comment, numpy the arrays."""
    from xml.etree.ElementTree import fromstring

    import nibabel

    with Pillow.open(io.BytesIO(stamped(FILES["grey.png"], ".png", ORIGIN))) as png:
        png.load()
        assert json.loads(png.text["nonesuch"]) == ORIGIN.to_json()
        packets = [png.info["xmp"]]
    for name in ("photo.jpg", "RGBTrue.webp", "RGBAFalse.webp", "float.tif"):
        with Pillow.open(io.BytesIO(stamped(FILES[name], Path(name).suffix, ORIGIN))) as image:
            packets.append(image.tag_v2[700] if image.format == "TIFF" else image.info["xmp"])
    for packet in packets:
        assert b"http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia<" in packet
        tree = fromstring(re.sub(rb"<\?xpacket.*?\?>", b"", packet))  # well-formed, and XML says the same
        (line,) = (e.text for e in tree.iter() if e.tag.endswith("}origin"))
        assert json.loads(line) == ORIGIN.to_json()
    image = nibabel.Nifti1Image.from_bytes(stamped(FILES["volume.nii"], ".nii", ORIGIN))
    (extension,) = image.header.extensions
    assert extension.get_code() == 6
    assert json.loads(bytes(extension._raw).rstrip(b"\0")) == ORIGIN.to_json()
    with np.load(io.BytesIO(stamped(FILES["vector.npz"], ".npz", ORIGIN))) as opened:
        np.testing.assert_array_equal(opened["values"], values(3, 14, dtype="float32"))


def test_every_sort_of_nifti_and_tiff_header(tmp_path: Path):
    import nibabel
    import tifffile

    path = tmp_path / "volume.nii"
    stored = values(4, 5, 6, dtype="int16")
    for image in (
        nibabel.Nifti2Image(stored, np.eye(4)),
        nibabel.Nifti1Image(stored, np.eye(4), nibabel.Nifti1Header(endianness=">")),
        nibabel.Nifti2Image(stored, np.eye(4), nibabel.Nifti2Header(endianness=">")),
    ):
        path.write_bytes(stamped(image.to_bytes(), ".nii", ORIGIN))
        assert read_origin(path) == ORIGIN
        np.testing.assert_array_equal(nibabel.load(path).get_fdata(), stored)
    for large in (False, True):
        for order in "<>":
            file = io.BytesIO()
            tifffile.imwrite(file, values(2, 9, 14), bigtiff=large, byteorder=order, photometric="minisblack")  # two pages
            path.write_bytes(stamped(file.getvalue(), ".tif", ORIGIN))
            assert read_origin(path) == ORIGIN
            np.testing.assert_array_equal(tifffile.imread(path), values(2, 9, 14))


def test_words_of_others_are_not_overwritten():
    """A comment in a NIfTI header, a packet of XMP: who wrote them may need them."""
    import nibabel

    image = nibabel.Nifti1Image(values(4, 5, 6, dtype="int16"), np.eye(4))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"not ours"))
    for data, suffix in ((image.to_bytes(), ".nii"), (pillow("JPEG", "RGB", xmp=b"<x:xmpmeta>theirs</x:xmpmeta>"), ".jpg")):
        with pytest.raises(ValueError, match=f"{suffix}: this file says something of itself already"):
            stamped(data, suffix, ORIGIN)


@pytest.mark.parametrize("data", [b"", b"BM" + bytes(60), b"GIF89a" + bytes(60), encode(Picture(values(1, 9, 9)))[0][:20]])
def test_formats_without_a_place_are_refused(data: bytes):
    with pytest.raises(ValueError, match=r"^\.bmp: (this format has no place|this PNG file is)"):
        stamped(data, ".bmp", ORIGIN)


# -- what a stranger's file may do


def chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(text: bytes, keyword: bytes = b"nonesuch") -> bytes:
    data = FILES["grey.png"]
    return data[:33] + chunk(b"iTXt", keyword + b"\0\0\0\0\0" + text) + data[33:]


LINE = json.dumps(ORIGIN.to_json()).encode()
HOSTILE = {
    "another tool's": b"made by hand",
    "no object": b"[1, 2]",
    "too deep": b'{"job":' + b"[" * 30_000 + b"]" * 30_000 + b"}",
    "too long": b'{"job":"' + b"a" * 70_000 + b'"}',
    "too long a number": LINE.replace(b"41,", b"9" * 5000 + b","),
    "not a number": LINE.replace(b"41.5", b"NaN"),
    "a terminal's escape": LINE.replace(b"sample", b"\\u001b[2J"),
    "an escape in a value": LINE.replace(b"na\\u00efve", b"\\u001b]0;owned\\u0007"),
    "a path": LINE.replace(b"na\\u00efve", b"/etc/passwd"),
    "an object within": LINE.replace(b"41.5", b'{"a": 1}'),
    "a wrong type": LINE.replace(b'"sample"', b"3"),
    "another source": LINE.replace(b"trainedAlgorithmicMedia", b"digitalCapture"),
    "no job": LINE.replace(b'"job"', b'"jab"'),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_does_not_fit_is_no_origin(what: str, tmp_path: Path):
    path = tmp_path / "x.png"
    path.write_bytes(png(LINE))
    assert read_origin(path) == ORIGIN  # the line itself would do
    assert HOSTILE[what] != LINE
    path.write_bytes(png(HOSTILE[what]))
    assert read_origin(path) is None


def test_xmp_is_searched_and_never_parsed(tmp_path: Path):
    path = tmp_path / "x.png"
    bomb = b'<!DOCTYPE x [<!ENTITY a "%s">%s]><nonesuch:origin>&b;</nonesuch:origin>'
    path.write_bytes(png(bomb % (LINE, b'<!ENTITY b "&a;&a;&a;">' * 500), b"XML:com.adobe.xmp"))
    assert read_origin(path) is None
    path.write_bytes(png(b"<x><nonesuch:origin>" + LINE.replace(b" <&>", b"") + b"</nonesuch:origin></x>", b"XML:com.adobe.xmp"))
    assert read_origin(path) == replace(ORIGIN, given={**ORIGIN.given, "label": "naïve"})
    later = {**ORIGIN.to_json(), "mood": "of a later version"}
    path.write_bytes(png(json.dumps(later).encode()))
    assert read_origin(path) == ORIGIN


@pytest.mark.parametrize("name", FILES)
def test_damaged_files_say_nothing_and_raise_nothing(name: str, tmp_path: Path):
    """Cut at many places, and bytes changed at random: an origin that is whole, or None; never an exception."""
    data = stamped(FILES[name], "." + name.split(".", 1)[1], ORIGIN)
    rng = np.random.default_rng(0)
    path = tmp_path / name
    for _ in range(40):
        broken = bytearray(data[: int(rng.integers(0, len(data)))]) if rng.random() < 0.5 else bytearray(data)
        for at in rng.integers(0, max(1, len(broken)), 8):
            if broken:
                broken[at] = int(rng.integers(0, 256))
        path.write_bytes(broken)
        assert isinstance(read_origin(path), Origin | None)
    with pytest.raises(ValueError, match="there is no file"):
        read_origin(tmp_path / "absent.png")


def test_no_bomb_is_unpacked(tmp_path: Path):
    """A gzip stream and a zip member of 24 MB, a chunk that claims 4 GB, a box of 2^62: answered without reading them."""
    import tracemalloc

    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("nonesuch.json", b" " * (24 << 20))
    header = FILES["volume.nii"][:344] + b"n+1\0" + b"\1\0\0\0" + struct.pack("<II", (1 << 31) - 16, 6)
    far = header[:108] + struct.pack("<f", 2.0**31) + header[112:]
    bombs = {
        "a.npz": packed.getvalue(),
        "b.nii.gz": gzip.compress(far + bytes(24 << 20), mtime=0),
        "c.png": FILES["grey.png"][:33] + struct.pack(">I4s", 0xFFFFFFFF, b"iTXt"),
        "d.mp4": FILES["clip.mp4"][:40] + struct.pack(">I4sQ", 1, b"uuid", 1 << 62),
    }
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
        tracemalloc.start()
        assert read_origin(tmp_path / name) is None
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
        tracemalloc.stop()


# -- nothing leaks


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "/home/ann/runs/digits"}, {"model": "C:\\runs\\digits"}, {"job": "/usr/bin/sample"}, {"weights": "runs/digits"},
        {"given": {"label": "/home/ann/scans"}}, {"options": {"critic": "C:\\runs"}}, {"options": {"x": "s3://bucket/x"}},
        {"options": {"/srv/x": 1}}, {"options": {"x": "runs/../secret"}}, {"given": {"x": "~ann"}}, {"mark": "/tmp/x"},
        {"given": {"x": "a\nb"}}, {"given": {"x": "a" * 201}}, {"given": {"x": [1]}}, {"given": {"x": float("nan")}},
        {"date": "yesterday"}, {"date": "2026-11-28 14:00"}, {"seed": 2**127}, {"index": -1}, {"seed": True}, {"source": "photo"},
        {"library": "<x>"}, {"given": {str(i): i for i in range(65)}},
    ],
)  # fmt: skip
def test_an_origin_refuses_paths_and_nonsense(changed: dict):
    with pytest.raises(ValueError, match=r"origin|digital source type"):
        replace(ORIGIN, **changed)


def test_classes_with_a_slash_are_no_paths():
    assert replace(ORIGIN, given={"site": "a/b", "age": None, "split": "5'/6\""}).given["site"] == "a/b"


def test_conditions_are_told_without_texts_and_pictures():
    schema = Schema({
        "label": Category(("cat", "/home/secret-user/cats")), "age": Number(50.0, 12.0), "note": Text(32),
        "scan": Image(ImageSpec(1, (4, 4))),
    })  # fmt: skip
    scan = torch.zeros(1, 4, 4)
    asked = {"label": ["cat", "/home/secret-user/cats", None], "age": [41.5, None, 7], "note": ["John Doe", None, None]}
    given = schema.given(3, {**asked, "scan": [scan, None, None]})
    assert told(schema, given, 0) == {"label": "cat", "age": 41.5, "note": WITHHELD, "scan": WITHHELD}
    assert told(schema, given, 1) == {"label": WITHHELD}
    many = Schema({f"{'/srv/' if i == 3 else 'n'}{i}": Number() for i in range(80)})
    assert list(told(many, many.given(1, dict.fromkeys(many.columns, 0)), 0)) == [f"n{i}" for i in range(64) if i != 3]
    assert told(schema, given, 2) == {"age": 7.0}


SECRETS = ("ann-b-user", "ward7-host", "/home/ann-b", "ann-b", "Doe^Jane", "MRN-4711", "secret-folder", "Siemens-77")


def test_what_a_model_writes_says_where_it_comes_from_and_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A whole way: a model saved in a telling folder, drawn with telling texts, written by a user on a machine with names."""
    for name, value in {"USER": "ann-b-user", "HOSTNAME": "ward7-host", "HOME": "/home/ann-b", "LOGNAME": "ann-b-user"}.items():
        monkeypatch.setenv(name, value)
    place = tmp_path / "secret-folder"
    place.mkdir()
    monkeypatch.chdir(place)
    schema = Schema({"label": Category(("cat", "dog")), "note": Text(32)})
    for spec in (
        ImageSpec(1, (8, 8)), ImageSpec(1, (8, 8), levels=4096, dtype="uint16", spacing=(0.5, 0.5), unit="Siemens-77"),
        ImageSpec(1, (4, 8, 8), "dhw", levels=256, value_range=(-1000, 3000), dtype="int16", unit="HU", spacing=(2, 1, 1)),
    ):  # fmt: skip
        model = catalog.build("vae", ImageSpec(1, (8, 8)), schema, preset="tiny")
        given = schema.given(2, {"label": ["cat", "dog"], "note": ["Doe^Jane MRN-4711", None]})
        options = {"steps": 20, "critic": str(place / "critic"), "guide": model}
        made = origins(model, "sample", given, Seeds((5, 5), (3, 9)), options, date="2026-11-28")
        x = spec.from_levels(torch.arange(2 * spec.numel).view(2, *spec.shape) % spec.levels)
        out = place / f"{spec.axes}{spec.dtype}"
        files = save_images(x, spec, schema, given, out, 5, write=stamping(made, spec))
        save_sheet(x, spec, out / "sheet.png", write=stamping(made, spec))
        for i, file in enumerate(files):
            origin = read_origin(file)
            assert origin == replace(made[i], mark=_mark.unmarked(spec))
            assert (origin.job, origin.model, origin.seed, origin.index) == ("sample", catalog.resolve_name("vae"), 5, (3, 9)[i])
            assert origin.given == ({"label": "cat", "note": WITHHELD}, {"label": "dog"})[i]
            assert origin.options == {"steps": 20, "critic": WITHHELD, "guide": WITHHELD}
            assert origin.weights == weights_sha256(model)
            data = file.read_bytes()
            assert not [s for s in (*SECRETS, str(tmp_path)) if s.encode() in data]
        sheet = read_origin(out / "sheet.png")
        assert (sheet.seed, sheet.index, sheet.given, sheet.mark) == (5, None, {}, "none: a sheet")
        again = out / "again"
        again.mkdir()
        assert [f.read_bytes() for f in save_images(x, spec, schema, given, again, 5, write=stamping(made, spec))] == [
            f.read_bytes() for f in files
        ]


def test_large_photos_are_marked_as_they_are_written(tmp_path: Path):
    spec = ImageSpec(3, (256, 264))
    drawn = torch.from_numpy(values(1, 3, 16, 33)).float().repeat_interleave(16, 2).repeat_interleave(8, 3)
    x = spec.from_levels(drawn.round())
    for write, found in ((stamping([ORIGIN], spec), True), (stamping([ORIGIN], spec, mark=False), False)):
        (file,) = save_images(x, spec, Schema(), Given(1), tmp_path / str(found), 0, write=write)
        assert _mark.detect(read(file).values).found is found
        assert read_origin(file).mark == (_mark.NAME if found else "none: not asked for")
    np.testing.assert_array_equal(read(file).values, drawn[0].numpy())


def test_the_hash_is_of_every_weight():
    model = catalog.build("vae", ImageSpec(1, (8, 8)), Schema(), preset="tiny")
    first = weights_sha256(model)
    assert re.fullmatch("[0-9a-f]{64}", first)
    assert weights_sha256(model) == first
    with torch.no_grad():
        next(iter(model.parameters())).view(-1)[0] += 1e-3
    assert weights_sha256(model) != first


def test_the_words_of_iptc():
    assert set(SOURCES) == {"trainedAlgorithmicMedia", "compositeWithTrainedAlgorithmicMedia", "algorithmicallyEnhanced"}
    assert Origin.from_json(json.loads(json.dumps(ORIGIN.to_json()))) == ORIGIN
