"""A signed manifest of C2PA in a file (package c2pa-python): who vouches for it, and that not a byte was changed since.

Metadata alone can be written by anyone; a signature binds it to the holder of a certificate. The claim says "c2pa.created" (or
"c2pa.edited", for a real picture that was changed) with IPTC's digital source type, and carries the Origin as it stands. A
certificate's name and an identifier drawn anew get into the file, so, unlike everything else that is written here, a signed file
is not the same bytes twice: sign what is finished. A file of any other kind is signed by a store beside it (`sealed`), as is the
manifest of a data set, whose shards are to be the same bytes everywhere. Nothing is fetched, whatever a file asks for: no
manifests, no time stamps, no lists of trust, so that "valid" means unchanged since a holder of this certificate signed it, and
not who that is.

References:
    Content Credentials: C2PA Technical Specification, version 2.2 (Coalition for Content Provenance and Authenticity, 2025)
"""

from __future__ import annotations

import io
import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonesuch.applications.provenance import Origin

_TYPES = {
    ".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".tif": "image/tiff", ".tiff": "image/tiff",
    ".webp": "image/webp", ".mp4": "video/mp4",
}  # fmt: skip
_ANY, SEAL = "application/octet-stream", ".c2pa"
_IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/"
_SETTINGS = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False}, "builder": {"thumbnail": {"enabled": False}}}


@dataclass(frozen=True)
class Signature:
    """state: "valid" (unchanged since it was signed; by whom is for you to judge), "trusted" or "invalid"; signer: of the
    certificate, as it says."""

    state: str
    signer: str


def signed(data: bytes, suffix: str, origin: Origin, certificates: bytes, key: bytes) -> bytes:
    """The file with a manifest of its origin, signed by ES256; the pixels' bytes stay as they are.

    certificates: PEM, the signer's first, then those that vouch for it; key: the signer's private one, PEM, on the curve P-256.
    Raises ValueError without the package, for other formats, and for certificates that do not do.
    """
    _c2pa()
    if suffix.lower() not in _TYPES:
        raise ValueError(f"{suffix} files cannot be signed here; {', '.join(_TYPES)} can.")
    return _signed(data, _TYPES[suffix.lower()], origin, certificates, key, suffix)


def sealed(data: bytes, origin: Origin, certificates: bytes, key: bytes) -> bytes:
    """A signed manifest store for a file of any kind, to be kept beside it under its name and ".c2pa". See `signed`."""
    return _signed(data, _ANY, origin, certificates, key, SEAL)


def _signed(data: bytes, kind: str, origin: Origin, certificates: bytes, key: bytes, called: str) -> bytes:
    """The file with its store, or the store alone where the kind of file has no place for one."""
    c2pa, within = _c2pa(), kind != _ANY
    said: dict[str, Any] = {"action": "c2pa.created", "digitalSourceType": _IPTC + origin.source}
    if origin.source != "trainedAlgorithmicMedia":  # what it was made from is another file, which is not at hand
        said["description"] = "a real picture, changed"
    name, _, version = origin.library.partition(" ")
    manifest = {
        "claim_generator_info": [{"name": name or "nonesuch", "version": version or "0"}],
        "assertions": [
            {"label": "c2pa.actions.v2", "data": {"actions": [said]}},
            {"label": "invalid.nonesuch.origin", "data": origin.to_json()},
        ],
    }
    out = io.BytesIO()
    try:
        with (
            c2pa.Signer.from_info(c2pa.C2paSignerInfo(b"es256", certificates, key, None)) as signer,
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Builder(json.dumps(manifest), context) as builder,
        ):
            if not within:
                builder.set_no_embed()
            store: bytes = builder.sign(signer, kind, io.BytesIO(data), out)
    except c2pa.C2paError as error:
        raise ValueError(f"{called}: it cannot be signed: {_clause(error)}.") from None
    return out.getvalue() if within else store


def signature(data: bytes, suffix: str, seal: bytes | None = None) -> Signature | None:
    """The signature in a file, or in the seal beside it.

    None where there is none, where the format has none, and where the package is not installed.
    """
    try:
        c2pa = _c2pa()
    except ValueError:
        return None
    if seal is None and suffix.lower() not in _TYPES:
        return None
    kind = _TYPES[suffix.lower()] if seal is None else _ANY
    try:
        with (
            c2pa.Context.from_dict(_SETTINGS) as context,
            c2pa.Reader(kind, io.BytesIO(data), manifest_data=seal, context=context) as reader,
        ):
            signer = (reader.get_active_manifest() or {}).get("signature_info", {})
            named = " ".join(str(signer.get(k, "")) for k in ("common_name", "issuer")).strip()
            return Signature(str(reader.get_validation_state()).lower(), "".join(c for c in named[:200] if c.isprintable()))
    except c2pa.C2paError:
        return None if seal is None else Signature("invalid", "")


def _c2pa() -> Any:
    try:
        import c2pa
    except ImportError:
        raise ValueError("signing needs a package that is not installed: pip install c2pa-python.") from None
    return c2pa


def _clause(error: Exception) -> str:
    return re.split(r"[\n.]\s", str(error))[0].rstrip(". ") or type(error).__name__
