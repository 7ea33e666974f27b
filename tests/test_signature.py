"""C2PA: a signed file is valid, says what made it, keeps its pixels, and is invalid once a byte of them is changed."""

import datetime
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from nonesuch import cli
from nonesuch.applications import _signature
from nonesuch.applications.dataset import sign
from nonesuch.applications.provenance import Origin, read_origin, signature, signed, stamped
from nonesuch.core import artifact
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import initialise
from nonesuch.data.formats import Picture, encode, read
from nonesuch.models.autoregressive.image_transformer import ImageTransformer

ORIGIN = Origin("sample", "diffusion/edm", "ab" * 32, 7, 41, {"label": "3"}, date="2026-11-28")


def chain() -> tuple[bytes, bytes]:
    """A signer's certificate on P-256, that of the authority it made up for itself, and its key, as PEM."""
    x509 = pytest.importorskip("cryptography.x509")
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def certificate(name: str, serial: int, key: object, use: dict[str, bool]) -> object:
        words = ("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement",
                 "key_cert_sign", "crl_sign", "encipher_only", "decipher_only")  # fmt: skip
        named = [x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, "Test"), x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]
        issued = [named[0], x509.NameAttribute(x509.NameOID.COMMON_NAME, "authority")]
        begin = datetime.datetime(2026, 1, 1)
        ca = name == "authority"
        built = x509.CertificateBuilder(x509.Name(issued), x509.Name(named), key.public_key(), serial, begin)
        built = built.not_valid_after(begin + datetime.timedelta(36500))
        built = built.add_extension(x509.BasicConstraints(ca, None), True)
        built = built.add_extension(x509.KeyUsage(**{w: use.get(w, False) for w in words}), True)
        built = built.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
        built = built.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key()), False)
        if not ca:
            built = built.add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), False)
        return built.sign(authority, hashes.SHA256())

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    both = [
        certificate("signer", 2, own, {"digital_signature": True}),
        certificate("authority", 1, authority, {"key_cert_sign": True, "crl_sign": True}),
    ]
    pem = serialization.Encoding.PEM
    key = own.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return b"".join(c.public_bytes(pem) for c in both), key


@pytest.fixture(scope="module")
def keys() -> tuple[bytes, bytes]:
    pytest.importorskip("c2pa")
    return chain()


@pytest.mark.parametrize(("axes", "shape", "suffix"), [
    ("hw", (3, 9, 14), ".png"), ("hw", (1, 9, 14), ".tif"), ("thw", (3, 4, 16, 16), ".mp4"),
])  # fmt: skip
def test_a_signed_file_is_valid_until_it_is_changed(
    axes: str, shape: tuple[int, ...], suffix: str, keys: tuple[bytes, bytes], tmp_path: Path
):
    c2pa = pytest.importorskip("c2pa")
    picture = Picture(np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8), axes)
    plain = stamped(encode(picture, suffix)[0], suffix, ORIGIN)
    data = signed(plain, suffix, ORIGIN, *keys)
    assert signature(plain, suffix) is None
    assert signature(data, suffix) == _signature.Signature("valid", "signer Test")
    np.testing.assert_array_equal(read(data).values, picture.values)
    path = tmp_path / f"x{suffix}"
    path.write_bytes(data)
    assert read_origin(path) == ORIGIN
    with c2pa.Reader(_signature._TYPES[suffix], io.BytesIO(data)) as reader:
        told = {a["label"]: a["data"] for a in reader.get_active_manifest()["assertions"]}
    assert told["invalid.nonesuch.origin"] == ORIGIN.to_json()
    (action,) = told["c2pa.actions.v2"]["actions"]
    assert action["digitalSourceType"].endswith("/trainedAlgorithmicMedia")
    assert not [line for line in keys[1].splitlines()[1:-1] if line in data]
    at = data.index(b"x\x9c" if suffix == ".tif" else b"IDAT") + 12  # within the compressed pixels; the clip's frames are PNG
    changed = data[:at] + bytes((data[at] ^ 1,)) + data[at + 1 :]
    assert signature(changed, suffix).state == "invalid"


def test_whence_tells_the_signature(keys: tuple[bytes, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    plain = stamped(encode(Picture(np.zeros((1, 9, 9), np.uint8)))[0], ".png", ORIGIN)
    (tmp_path / "x.png").write_bytes(signed(plain, ".png", ORIGIN, *keys))
    assert cli.main(["whence", str(tmp_path / "x.png")]) == 0
    assert "; signature valid, of signer Test; no mark looked for" in capsys.readouterr().out
    assert cli.main(["whence", str(tmp_path / "x.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["signature"] == {"state": "valid", "signer": "signer Test"}


def test_the_manifest_of_a_data_set_is_signed_beside_it(
    keys: tuple[bytes, bytes], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    config = ImageTransformer.Config(**ImageTransformer.presets["tiny"].config)
    model = ImageTransformer(config, ImageSpec(1, (4, 4), levels=3), Schema())
    initialise(model, 0)
    model.images_seen.fill_(1)
    artifact.save(model, tmp_path / "model")
    for name, data in zip(("certificates.pem", "key.pem"), keys, strict=True):
        (tmp_path / name).write_bytes(data)
    files = [str(tmp_path / "certificates.pem"), str(tmp_path / "key.pem")]
    command = ["synthesize", str(tmp_path / "model"), "-n", "8", "--per-shard", "4", "--out", str(tmp_path / "set"), "--sign"]
    for broken, said in (([files[0], "gone"], "there is no file gone"), (files[::-1], "it cannot be signed")):
        assert cli.main([*command, *broken]) == 2
        assert said in capsys.readouterr().err
        assert not (tmp_path / "set").exists(), "found out before anything is made"
    assert cli.main([*command, *files]) == 0
    manifest = tmp_path / "set" / "manifest.json"
    assert manifest.with_name("manifest.json.c2pa").is_file()
    capsys.readouterr()
    assert cli.main(["whence", str(manifest)]) == 0
    said = capsys.readouterr().out
    assert "synthesize by autoregressive" in said
    assert "signature valid, of signer Test" in said
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert cli.main(["whence", str(manifest), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["signature"]["state"] == "invalid"
    manifest.with_name("manifest.json.c2pa").write_bytes(b"no store")
    assert signature(manifest.read_bytes(), ".json", b"no store") == _signature.Signature("invalid", "")
    with pytest.raises(ValueError, match="no finished data set to sign"):
        sign(tmp_path / "model", *keys)


def test_what_cannot_be_signed_is_one_sentence(keys: tuple[bytes, bytes], monkeypatch: pytest.MonkeyPatch):
    data = encode(Picture(np.zeros((1, 9, 9), np.uint8)))[0]
    with pytest.raises(ValueError, match=r"\.nii files cannot be signed here"):
        signed(data, ".nii", ORIGIN, *keys)
    for broken in ((b"none", keys[1]), (keys[0], b"none")):
        with pytest.raises(ValueError, match=r"\.png: it cannot be signed"):
            signed(data, ".png", ORIGIN, *broken)
    assert signature(b"not a picture", ".png") is None
    monkeypatch.setitem(sys.modules, "c2pa", None)
    with pytest.raises(ValueError, match="pip install c2pa-python"):
        signed(data, ".png", ORIGIN, *keys)
    assert signature(data, ".png") is None
