"""What made a file, in its own metadata: `Origin`, put in by `stamped`, read back by `read_origin`.

Two readers are served. Programs that know IPTC's vocabulary (search engines, agencies) find the digital source type and the tool
in a packet of XMP; `read_origin` finds everything, as one line of JSON within that packet or beside it:

    job, model and the hash of its weights, seed and index, given, options      what makes the same picture again
    date                                                                        as the caller fixed it when the job began
    source, mark, library                                                       IPTC's word, the invisible mark, who wrote it

Pixels are not touched (`_stamps` says where each format keeps words), and the same input is the same bytes. Nothing of the person
gets in: no path, name of a user or machine, no text of a condition and no picture; `Origin` refuses what looks like a path. And
nothing of a stranger's file is believed: sizes are bounded, XMP is searched for one strict pattern and never parsed (so no
entities), JSON is checked field by field, and whatever does not fit is no origin. Metadata is lost when a file is edited or
converted, and anyone can write it: it helps the honest. The invisible mark (`_mark`) survives a little more.

References:
    Photo Metadata Standard, Digital Source Type (IPTC, 2025), http://cv.iptc.org/newscodes/digitalsourcetype/
    XMP Specification Part 1: Data Model, Serialization, and Core Properties (Adobe, 2012), ISO 16684-1
"""

from __future__ import annotations

import datetime
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch

from nonesuch.applications import _mark
from nonesuch.applications._signature import SEAL as SEAL
from nonesuch.applications._signature import sealed as sealed
from nonesuch.applications._signature import signature as signature
from nonesuch.applications._signature import signed as signed
from nonesuch.applications._stamps import MAX_BYTES, find, put
from nonesuch.core.artifact import export_state, model_name
from nonesuch.core.given import Category, Given, Number, Schema, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.core.seeds import Seeds
from nonesuch.data.formats import Picture, encode
from nonesuch.data.pictures import Write

SOURCES = (
    "trainedAlgorithmicMedia",  # drawn by a trained model
    "compositeWithTrainedAlgorithmicMedia",  # a real picture, in part drawn by a model: restored, inpainted, translated
    "algorithmicallyEnhanced",  # a real picture, changed by an algorithm without a trained model
)
WITHHELD = "(withheld)"
Scalar = str | int | float | bool | None

_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_NAMESPACE = "https://nonesuch.invalid/ns/1.0/"
_ELEMENT = re.compile(rb"<nonesuch:origin>(\{[^<>&\0]{2,60000}\})</nonesuch:origin>")
_PATH = re.compile(r"^\s*([/\\~]|[A-Za-z]:[\\/]|\w+://|file:)|\\|/(home|Users|root|tmp|mnt|media|var)/|(^|/)\.\.?/")
_JOB, _MODEL = re.compile(r"[a-z][a-z0-9-]{0,31}"), re.compile(r"([\w.+:-]{1,80}(/[\w.+-]{1,80}){0,3})?")
_LIBRARY, _HASH = re.compile(r"[\w .+-]{0,80}"), re.compile(r"([0-9a-f]{64})?")
_DATE = re.compile(r"(\d{4}-\d\d-\d\d(T\d\d:\d\d:\d\dZ)?)?")
_MAX_ENTRIES, _MAX_CHARACTERS = 64, 200


def _library() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"nonesuch {version('nonesuch')}"
    except PackageNotFoundError:  # run from a folder of sources
        return "nonesuch"


@dataclass(frozen=True)
class Origin:
    """What made one file. Raises ValueError for a field of another form, and for any text that looks like a path.

    job: the command, such as "sample"; model: its name in the catalogue; weights: their sha256, of `weights_sha256`.
    seed, index: which picture; None of either where there is none (a sheet of several has no index).
    given, options: plain values by name; date: UTC, "2026-11-28" or "2026-11-28T14:44:21Z", fixed when the job began.
    source: one of SOURCES, IPTC's word; mark: the invisible mark's name, or why there is none; library: who wrote it.
    """

    job: str
    model: str = ""
    weights: str = ""
    seed: int | None = None
    index: int | None = None
    given: Mapping[str, Scalar] = field(default_factory=dict)
    options: Mapping[str, Scalar] = field(default_factory=dict)
    date: str = ""
    source: str = SOURCES[0]
    mark: str = ""
    library: str = field(default_factory=_library)

    def __post_init__(self) -> None:
        for name, pattern in (("job", _JOB), ("model", _MODEL), ("weights", _HASH), ("date", _DATE), ("library", _LIBRARY)):
            if not isinstance(value := getattr(self, name), str) or not pattern.fullmatch(value):
                raise ValueError(f"an origin's {name} cannot be {value!r}.")
        if self.source not in SOURCES:
            raise ValueError(f"{self.source!r} is no digital source type; {did_you_mean(str(self.source), SOURCES)}")
        for name, lowest in (("seed", -(2**127)), ("index", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or not lowest <= value < 2**127):
                raise ValueError(f"an origin's {name} cannot be {value!r}.")
        for name in ("given", "options"):
            value = getattr(self, name)
            if not isinstance(value, Mapping) or len(value) > _MAX_ENTRIES:
                raise ValueError(f"an origin's {name} takes at most {_MAX_ENTRIES} plain values by name.")
            object.__setattr__(self, name, {_text(k, name): _scalar(v, name) for k, v in value.items()})
        _text(self.mark, "mark")

    def to_json(self) -> dict[str, Any]:
        """Its fields as JSON values, those that say nothing left out."""
        return {k: v for k, v in asdict(self).items() if v not in ("", None, {})}

    @classmethod
    def from_json(cls, values: Any) -> Origin:
        """The origin that such values say; fields of later versions are passed over. Raises ValueError if they say none."""
        if not isinstance(values, dict):
            raise ValueError("an origin is an object of JSON.")
        known = {f.name for f in fields(cls)}
        return cls(**{"job": None, "library": "", **{k: v for k, v in values.items() if k in known}})


def stamped(data: bytes, suffix: str, origin: Origin) -> bytes:
    """The file with its origin in the metadata: PNG, JPEG, TIFF, WebP, MP4, NIfTI or .npz; the pixels' bytes stay as they are.

    Raises ValueError, with the suffix, for a format without a place for it, and for a file that already says what made it.
    """
    line = json.dumps(origin.to_json(), sort_keys=True, separators=(",", ":"), allow_nan=False)
    line = line.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")  # the same JSON, and plain text in XML
    try:
        return put(data, _packet(line, origin), line.encode())
    except ValueError as error:
        raise ValueError(f"{suffix}: {error}") from None


def read_origin(path: Path) -> Origin | None:
    """What made a file, as its metadata says; None where it says nothing, or nothing that can be believed.

    Raises ValueError only where there is no such file.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}.")
    try:
        with path.open("rb") as file:
            for words in find(file):
                if (origin := _understood(words)) is not None:
                    return origin
    except Exception:  # a damaged or hostile file: readers raise what they like, and it is no origin
        return None
    return None


def weights_sha256(model: Model) -> str:
    """sha256 over name, type, shape and bytes of every tensor of a checkpoint, in the order of their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(export_state(model).items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def utc_day() -> str:
    """Today in UTC, for a job to ask once, when it begins."""
    return datetime.datetime.now(datetime.UTC).date().isoformat()


def told(schema: Schema, given: Given, i: int) -> dict[str, Scalar]:
    """Row i of a batch of conditions as plain values: categories and numbers; texts and pictures are withheld."""
    out: dict[str, Any] = {}
    for name, column in schema.columns.items():
        value = given.columns[name][i]
        if not bool(column.present(value[None])[0]):
            continue
        if isinstance(column, Category):
            out[name] = column.names[int(value)]
        elif isinstance(column, Number):
            out[name] = float(f"{float(value) * column.std + column.mean:.6g}")
        else:
            out[name] = WITHHELD
    return plain(out)


def origins(
    model: Model, job: str, given: Given, seeds: Seeds | int = 0, options: Mapping[str, Any] | None = None,
    date: str | None = None, source: str = SOURCES[0],
) -> list[Origin]:  # fmt: skip
    """An origin for each of the pictures that a model drew with these conditions, seeds and options, today by default."""
    pairs = Seeds.of(seeds, len(given))
    name = "/".join(part[:80] for part in re.sub(r"[^\w.+:/-]", "_", model_name(type(model))).split("/")[:4])
    day = utc_day() if date is None else date
    first = Origin(job, name, weights_sha256(model), options=plain(options or {}), date=day, source=source)
    rows = enumerate(zip(pairs.seed, pairs.index, strict=True))
    return [replace(first, seed=seed, index=index, given=told(model.schema, given, i)) for i, (seed, index) in rows]


def stamping(made: Sequence[Origin], spec: ImageSpec, mark: bool = True) -> Write:
    """How save_images and save_sheet write picture i: marked if it may be (`_mark.unmarked`), encoded, stamped with made[i]."""
    why_not = _mark.unmarked(spec) or ("" if mark else "none: not asked for")

    def write(picture: Picture, index: int | None) -> tuple[bytes, str]:
        if index is None:  # a sheet of several: a preview
            data, suffix = encode(picture)
            return stamped(data, suffix, replace(made[0], index=None, given={}, mark="none: a sheet")), suffix
        said = why_not
        if not said:
            values, said = _mark.marked(picture.values)
            picture = replace(picture, values=values)
        data, suffix = encode(picture)
        return stamped(data, suffix, replace(made[index], mark=said)), suffix

    return write


def _packet(line: str, origin: Origin) -> bytes:
    """A packet of XMP without padding: IPTC's source type, the tool, the date, and the line."""
    date = f"<xmp:CreateDate>{origin.date}</xmp:CreateDate>" if origin.date else ""
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about=""'
        ' xmlns:xmp="http://ns.adobe.com/xap/1.0/" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"'
        f' xmlns:nonesuch="{_NAMESPACE}">'
        f"<Iptc4xmpExt:DigitalSourceType>{_IPTC}{origin.source}</Iptc4xmpExt:DigitalSourceType>"
        f"<xmp:CreatorTool>{origin.library}</xmp:CreatorTool>{date}<nonesuch:origin>{line}</nonesuch:origin>"
        '</rdf:Description></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def _understood(words: bytes) -> Origin | None:
    """The origin in a packet of XMP or a line of JSON, if it is one."""
    found = _ELEMENT.search(words[:MAX_BYTES])
    line = found[1] if found else words
    if not line.startswith(b"{"):
        return None
    try:
        return Origin.from_json(json.loads(line.decode("ascii"), parse_constant=_refuse))
    except (ValueError, TypeError, RecursionError):
        return None


def _refuse(word: str) -> Any:
    raise ValueError(f"{word} is no number of an origin.")


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or len(value) > _MAX_CHARACTERS or not value.isprintable() or _PATH.search(value):
        raise ValueError(f"an origin's {name} takes short plain texts that are no paths, not {value!r}.")
    return value


def _scalar(value: Any, name: str) -> Scalar:
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if isinstance(value, int) and abs(value) < 2**127:
        return value
    return _text(value, name)


def plain(values: Mapping[str, Any]) -> dict[str, Scalar]:
    """What an origin takes of them: other values are withheld, other names left out with theirs."""
    return {name: _kept(value) for name, value in list(values.items())[:_MAX_ENTRIES] if _kept(name) == name}


def _kept(value: Any) -> Scalar:
    """The value if an origin takes it, or the word that it is withheld."""
    try:
        return _scalar(value, "options")
    except ValueError:
        return WITHHELD
