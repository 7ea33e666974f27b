"""DICOM (extra [medical]): pictures, series of slices as volumes, and multi-frame files; only read, and no word of one is kept.

    values = slope * stored + intercept            MONOCHROME1 (white is low): stored -> low + high - stored, before that

Of a file only its numbers are asked for: the grid, the kind of pixels, rescaling, where slices lie. Names, dates, identifiers and
private tags are never parsed; no error repeats what a file says; a series is named by a digest. Text burned into pixels is
pixels: a file that declares it is remarked on. A volume is turned as in `_anatomy`, its slices sorted by their position along the
slices' normal; frames in time are "thw". Colour is RGB. 1 bit is 0 and 255.

References: DICOM PS3.3 C.7.6.2, C.7.6.3, C.11.1 (NEMA), https://www.dicomstandard.org/current
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, BinaryIO

import numpy as np

from nonesuch.data.formats import MAX_VALUES, Format, Head, Picture
from nonesuch.data.formats._anatomy import TURNED, turned
from nonesuch.data.formats._encapsulated import LOSSY, Unreadable, decoded

_TAGS = [
    *("Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", "PhotometricInterpretation", "PlanarConfiguration"),
    *("BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "LossyImageCompression", "BurnedInAnnotation"),
    *("RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "DoseGridScaling", "GridFrameOffsetVector", "Modality"),
    *("PixelSpacing", "ImagerPixelSpacing", "ImagePositionPatient", "ImageOrientationPatient", "FrameTime", "CineRate"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence", "ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *(f"{c}PaletteColorLookupTable{w}" for c in ("Red", "Green", "Blue") for w in ("Descriptor", "Data")),
    *(f"Segmented{c}PaletteColorLookupTableData" for c in ("Red", "Green", "Blue")),
    *("PixelData", "FloatPixelData", "DoubleFloatPixelData"),
]
_SERIES_TAGS = ["SeriesInstanceUID", "SOPInstanceUID", "EchoNumbers", "TemporalPositionIdentifier"]
_GREY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
_DEFLATED, _PLAIN = b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.1\0\0\0"
_MAX_INFLATED_BYTES = 64 << 20
_IN_TIME = ("US", "XA", "RF", "ES", "XC", "IVUS")  # modalities whose frames follow one another in time


@dataclass(frozen=True)
class _Frame:
    """Where one frame lies, in LPS mm, and how its values are rescaled. spacing: (between rows, between columns), or None."""

    position: np.ndarray | None
    orientation: np.ndarray | None
    spacing: tuple[float, float] | None
    slope: float
    intercept: float


@dataclass(frozen=True)
class _Grid:
    """How frames lie in a picture: axes, spacing, in which order, where the axes (d, h, w) point (LPS) if that is known."""

    axes: str
    spacing: tuple[float, ...] | None
    order: tuple[int, ...] = (0,)
    directions: np.ndarray | None = None
    remarks: tuple[str, ...] = ()


def knows(start: bytes) -> bool:
    """The word DICM after 128 bytes; or, as old files do without, a data set that begins with group 0008 or 0002."""
    groups = (b"\x08\x00", b"\x02\x00")
    bare = start[:2] in groups and start[2:4] in (b"\0\0", b"\1\0", b"\5\0", b"\x08\0", b"\x12\0", b"\x16\0", b"\x18\0")
    return start[128:132] == b"DICM" or (bare and b"1.2.840.10008." in start)


def head(file: BinaryIO) -> Head:
    """What the file says, without its pixels."""
    with _discreet():
        dataset = _dataset(file, pixels=False)
        frames = _frames(dataset)
        grid = _grid(dataset, frames)
        channels = 3 if dataset.PhotometricInterpretation == "PALETTE COLOR" else int(dataset.SamplesPerPixel)
        shape = (channels, len(frames), int(dataset.Rows), int(dataset.Columns))
        size = _laid(np.broadcast_to(np.uint8(0), shape), grid)[0].shape[1:]
        lossy = str(dataset.file_meta.TransferSyntaxUID) in LOSSY or dataset.get("LossyImageCompression") == "01"
        return Head(grid.axes, size, channels, str(_dtype(dataset, frames)), str(dataset.PhotometricInterpretation), 1, lossy)


def read(file: BinaryIO) -> Picture:
    """The values in their unit. Raises ValueError for files without pixels, damaged ones, and compressions without a decoder."""
    with _discreet():
        dataset = _dataset(file, pixels=True)
        frames = _frames(dataset)
        grid = _grid(dataset, frames)
        values, spacing, changed = _laid(np.moveaxis(_values(dataset, frames), 3, 0), grid)
        remarks = (*grid.remarks, *_remarks(dataset), *((TURNED,) if changed else ()))
        return Picture(np.ascontiguousarray(values), grid.axes, spacing, _unit(dataset), remarks)


def series(file: BinaryIO) -> str:
    """A digest that all slices of a volume share: of series, grid, direction, echo and time; its own for what is no slice."""
    with _discreet():
        dataset = _dataset(file, pixels=False)
        frame, uid, own = _frames(dataset)[0], *(str(dataset.get(tag, "")) for tag in _SERIES_TAGS[:2])
        said = [uid, *(str(dataset.get(t, "")) for t in (*_SERIES_TAGS[2:], "Rows", "Columns", "SamplesPerPixel"))]
        if not uid or int(dataset.get("NumberOfFrames", 1) or 1) > 1 or frame.position is None or frame.orientation is None:
            said = [uid, own]
        else:
            said += [f"{v:.2f}".replace("-0.00", "0.00") for v in frame.orientation]
        return hashlib.blake2b("|".join(said).encode(), digest_size=16).hexdigest()


def join(files: Sequence[BinaryIO]) -> Picture:
    """All slices of a series, in any order, as one volume. Raises ValueError where two of them lie at the same place."""
    with _discreet():
        if len(files) == 1:
            return read(files[0])
        sets = [_dataset(file, pixels=True) for file in files]
        if len({(d.Rows, d.Columns, d.SamplesPerPixel, d.PhotometricInterpretation) for d in sets}) > 1:
            raise Unreadable("its slices differ in size or in kind")
        if sum(int(d.Rows) * int(d.Columns) * int(d.SamplesPerPixel) for d in sets) > MAX_VALUES:
            raise Unreadable("its slices together are too many values to read")
        frames = [frame for d in sets for frame in _frames(d)]
        if len(frames) != len(sets):
            raise Unreadable("some of its files hold several frames; each is a volume of its own")
        grid = _volume(frames)
        stack = np.concatenate([_values(d, [frame]) for d, frame in zip(sets, frames, strict=True)])
        values, spacing, changed = _laid(np.moveaxis(stack, 3, 0), grid)
        said = {remark: None for d in sets for remark in _remarks(d)}
        remarks = (*grid.remarks, *said, *((TURNED,) if changed else ()))
        return Picture(np.ascontiguousarray(values), "dhw", spacing, _unit(sets[0]), remarks)


@contextmanager
def _discreet() -> Iterator[None]:
    """No word of a file in a warning, a log or an error: pydicom quotes what it cannot read, which may be a patient's name."""
    with _SILENCE:
        try:
            yield
        except (Unreadable, ImportError):
            raise
        except Exception as error:  # pydicom and its decoders raise what they like on a damaged file
            raise Unreadable(f"it is damaged, cut short, or not as DICOM prescribes ({type(error).__name__})") from None


class _Silence:
    """Warnings, and pydicom's log, off while any thread reads; as they were after the last one."""

    def __init__(self) -> None:
        self.lock, self.readers, self.undo = Lock(), 0, ExitStack()

    def __enter__(self) -> None:
        with self.lock:
            self.readers += 1
            if self.readers == 1:
                log = logging.getLogger("pydicom")  # its parts' records pass through it, and end here
                self.undo.callback(setattr, log, "propagate", log.propagate)
                self.undo.callback(setattr, log, "handlers", log.handlers)
                log.propagate, log.handlers = False, [logging.NullHandler()]
                self.undo.enter_context(warnings.catch_warnings())
                warnings.simplefilter("ignore")

    def __exit__(self, *error: object) -> None:
        with self.lock:
            self.readers -= 1
            if self.readers == 0:
                self.undo.close()


_SILENCE = _Silence()


def _dataset(file: BinaryIO, pixels: bool) -> Any:
    import pydicom

    wanted = [*_TAGS, *_SERIES_TAGS]
    dataset = pydicom.dcmread(_inflated(file), stop_before_pixels=not pixels, force=True, specific_tags=wanted)  # type: ignore[arg-type]
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        syntax = "1.2.840.10008.1.2" if implicit else "1.2.840.10008.1.2.1" if little else "1.2.840.10008.1.2.2"
        dataset.file_meta.TransferSyntaxUID = pydicom.uid.UID(syntax)
    if not {"Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated"} <= set(dataset.dir()):
        raise Unreadable("it holds no image: a report, plan, wave or the like")
    if dataset.PhotometricInterpretation not in (*_GREY, *_COLOUR, "PALETTE COLOR"):
        raise Unreadable("its colours are of a kind that is not read; convert it to RGB")
    return dataset


def _inflated(file: BinaryIO) -> BinaryIO:
    """The file, or what a deflated data set holds, up to a bound."""
    start = file.read(4096)
    file.seek(0)
    if start[128:132] != b"DICM" or _DEFLATED not in start or start[132:136] != b"\x02\0\0\0":
        return file
    meta = 144 + int.from_bytes(start[140:144], "little")
    data = file.read()
    plain = zlib.decompressobj(-15).decompress(data[meta:], _MAX_INFLATED_BYTES + 1)
    if len(plain) > _MAX_INFLATED_BYTES:
        raise Unreadable("it is deflated and too large to inflate; decompress it first")
    return io.BytesIO(data[:meta].replace(_DEFLATED, _PLAIN) + plain)


def _frames(dataset: Any) -> list[_Frame]:
    """Each frame's place and rescaling: of the functional groups where there are some, otherwise of the data set itself."""
    count = int(dataset.get("NumberOfFrames", 1) or 1)
    area = int(dataset.Rows) * int(dataset.Columns) * int(dataset.SamplesPerPixel)
    if count < 1 or area < 1 or count * area > MAX_VALUES:
        raise Unreadable(f"it says it has {count} frames of {dataset.Rows} x {dataset.Columns} pixels, which cannot be read")
    shared = (dataset.get("SharedFunctionalGroupsSequence") or [{}])[0]
    each = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if not each and not shared:
        return [_frame([dataset])] * count
    return [_frame([*_groups(each[i] if i < len(each) else {}), *_groups(shared), dataset]) for i in range(count)]


def _groups(item: Any) -> list[Any]:
    names = ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence", "PixelValueTransformationSequence")
    return [found[0] for name in names if (found := item.get(name))]


def _frame(places: Sequence[Any]) -> _Frame:
    def numbers(name: str, count: int) -> np.ndarray | None:
        found = next((v for place in places if (v := place.get(name)) is not None), None)
        array = None if found is None or found == "" else np.atleast_1d(np.asarray(found, np.float64))
        return array if array is not None and array.shape == (count,) and np.isfinite(array).all() else None

    apart = numbers("PixelSpacing", 2)
    apart = numbers("ImagerPixelSpacing", 2) if apart is None else apart
    spacing = (float(apart[0]), float(apart[1])) if apart is not None and (apart > 0).all() else None
    slope, intercept, dose = (numbers(name, 1) for name in ("RescaleSlope", "RescaleIntercept", "DoseGridScaling"))
    scale = slope if slope is not None and slope[0] else dose if dose is not None and dose[0] else np.ones(1)
    shift = 0.0 if intercept is None else float(intercept[0])
    return _Frame(numbers("ImagePositionPatient", 3), numbers("ImageOrientationPatient", 6), spacing, float(scale[0]), shift)


def _grid(dataset: Any, frames: Sequence[_Frame]) -> _Grid:
    """How the frames of one file lie: an image, a volume, or a clip."""
    first = frames[0]
    if len(frames) == 1:
        return _Grid("hw", first.spacing)
    offsets = dataset.get("GridFrameOffsetVector")  # of doses: mm along the normal
    if offsets is not None and len(offsets) == len(frames) and first.position is not None and first.orientation is not None:
        steps = np.asarray(offsets, np.float64)[:, None] * np.cross(first.orientation[:3], first.orientation[3:])
        return _volume([replace(first, position=first.position + step) for step in steps])
    if all(f.position is not None for f in frames) and any((f.position != first.position).any() for f in frames):
        return _volume(frames)
    rate, period = dataset.get("CineRate"), dataset.get("FrameTime")
    seconds = float(period) / 1000 if period else 1 / float(rate) if rate else 0.0
    order = tuple(range(len(frames)))
    if seconds > 0:
        return _Grid("thw", (seconds, *(first.spacing or (1.0, 1.0))), order)
    return _Grid("thw" if dataset.get("Modality") in _IN_TIME else "dhw", None, order)


def _volume(frames: Sequence[_Frame]) -> _Grid:
    """Slices sorted along their normal, the product of their rows' and columns' directions."""
    first = frames[0]
    if any(f.position is None or f.orientation is None for f in frames) or first.orientation is None:
        raise Unreadable("some of its slices do not say where they lie")
    if any(np.abs(f.orientation - first.orientation).max() > 1e-2 for f in frames):
        raise Unreadable("its slices lie in different directions")
    normal = np.cross(first.orientation[:3], first.orientation[3:])
    positions = np.array([f.position for f in frames])
    along = positions @ normal
    order = np.argsort(along, kind="stable")
    gaps = np.diff(along[order])
    gap = float(np.median(gaps))
    if gaps.min() < 1e-3:
        raise Unreadable("two of its slices lie at the same place: it is several volumes, or one at several times; separate them")
    aside = np.abs(np.diff((positions - along[:, None] * normal)[order], axis=0)).max()
    remarks = []
    if gaps.max() - gaps.min() > 0.01 * gap + 1e-3:
        apart = f"{gaps.min():.3g} to {gaps.max():.3g}"
        remarks.append(f"slices {apart} mm apart, taken as {gap:.3g} mm: some may be missing")
    if aside > 0.05 * gap + 1e-2:
        remarks.append("slices shifted along one another (a tilted gantry), left as they are")
    spacing = (gap, *first.spacing) if first.spacing else None
    directions = np.stack([normal, first.orientation[3:], first.orientation[:3]])  # the second triple points along columns: h
    return _Grid("dhw", spacing, tuple(int(i) for i in order), directions, tuple(remarks))


def _laid(values: np.ndarray, grid: _Grid) -> tuple[np.ndarray, tuple[float, ...] | None, bool]:
    """Values (C, frames, h, w) as the grid says: (C, h, w), (C, t, h, w), or a volume turned to (C, d, h, w)."""
    if grid.axes == "hw":
        return values[:, 0], grid.spacing, False
    if grid.order != tuple(range(values.shape[1])):
        values = values[:, list(grid.order)]
    return (values, grid.spacing, False) if grid.directions is None else turned(values, grid.directions, grid.spacing)


def _values(dataset: Any, frames: Sequence[_Frame]) -> np.ndarray:
    """The rescaled values, (frames, h, w, channels)."""
    from pydicom.pixels.processing import apply_color_lut, apply_modality_lut

    stored = decoded(dataset, len(frames))
    dtype = _dtype(dataset, frames)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(stored[..., 0], dataset).astype(dtype)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        low, high = _ends(dataset)
        stored = (low + high - stored.astype(np.int64 if stored.dtype.kind in "iu" else np.float64)).astype(stored.dtype)
    if int(dataset.BitsAllocated) == 1:
        return (stored * 255).astype(dtype)
    if dataset.get("ModalityLUTSequence"):
        return apply_modality_lut(stored, dataset).astype(dtype)
    if all((f.slope, f.intercept) == (1, 0) for f in frames):
        return stored.astype(dtype)
    wide = np.int64 if dtype.kind == "i" else np.float64
    slopes, shifts = np.array([(f.slope, f.intercept) for f in frames]).astype(wide).T[..., None, None, None]
    return (stored.astype(wide) * slopes + shifts).astype(dtype)


def _ends(dataset: Any) -> tuple[int, int]:
    """The least and greatest value that can be stored."""
    bits, signed = int(dataset.get("BitsStored") or dataset.BitsAllocated), int(dataset.get("PixelRepresentation", 0))
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)


def _dtype(dataset: Any, frames: Sequence[_Frame]) -> np.dtype[Any]:
    """Of the values: the stored one, that of a table, the first signed integer that holds them rescaled, or float32."""
    bits = int(dataset.BitsAllocated)
    table = (dataset.get("ModalityLUTSequence") or [None])[0]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return np.dtype("uint8" if int(dataset.RedPaletteColorLookupTableDescriptor[2]) <= 8 else "uint16")
    if table is not None:
        return np.dtype("uint8" if int(table.LUTDescriptor[2]) <= 8 else "uint16")
    if bits not in (1, 8, 16, 32, 64):
        raise Unreadable("its pixels have a number of bits that is not 1, 8, 16 or 32")
    if bits == 64 or "FloatPixelData" in dataset or "DoubleFloatPixelData" in dataset:
        return np.dtype("float64" if bits == 64 else "float32")
    stored = np.dtype(f"{'int' if dataset.get('PixelRepresentation') else 'uint'}{max(8, bits)}")
    if bits == 1 or all((f.slope, f.intercept) == (1, 0) for f in frames):
        return stored
    if all(f.slope.is_integer() and f.intercept.is_integer() for f in frames):
        ends = [f.slope * end + f.intercept for f in frames for end in _ends(dataset)]
        for wide in (16, 32):
            if min(ends) >= -(2 ** (wide - 1)) and max(ends) < 2 ** (wide - 1):
                return np.dtype(f"int{wide}")
    return np.dtype("float32")


def _unit(dataset: Any) -> str | None:
    """The unit, in our own word: Hounsfield units of a computed tomography that is rescaled, grays of a dose."""
    if dataset.get("Modality") == "CT" and dataset.get("RescaleIntercept") is not None:
        return "HU"
    return "Gy" if dataset.get("Modality") == "RTDOSE" and dataset.get("DoseGridScaling") is not None else None


def _remarks(dataset: Any) -> tuple[str, ...]:
    said = []
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        said.append("white was low (MONOCHROME1): inverted")
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        said.append("palette read as RGB")
    if dataset.get("BurnedInAnnotation") == "YES":
        said.append("text, perhaps a patient's name, burned into the pixels, as the file says: look before you train on it")
    return tuple(said)


FORMAT = Format("DICOM", (".dcm", ".dicom", ".ima"), knows, head, read, extra="medical", series=series, join=join)
