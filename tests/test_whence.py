"""`nonesuch whence`: what it says, and its exit codes."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_sample_image

from nonesuch import cli
from nonesuch.applications import _mark
from nonesuch.applications.provenance import Origin, stamped
from nonesuch.data.formats import Picture, encode

ORIGIN = Origin("sample", "diffusion/edm", "ab" * 32, 7, 41, {"label": "3"}, date="2026-11-28", library="nonesuch 0.1.0")
PHOTO = np.ascontiguousarray(np.moveaxis(load_sample_image("china.jpg"), -1, 0)[:, :256, :256])

_FORGED = '{"format": 1, "asked": {"provenance": true}, "fixed": {}, "builds": [], "shards": {}, "complete": true}'

Said = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """small.png with an origin, marked.png with a mark alone, both.png with both, bare.png and words.txt with none."""
    small = encode(Picture(np.zeros((1, 8, 8), np.uint8)))[0]
    marked = encode(Picture(_mark.marked(PHOTO)[0]))[0]
    for name, data in {
        "small.png": stamped(small, ".png", ORIGIN), "marked.png": marked, "bare.png": encode(Picture(PHOTO))[0],
        "both.png": stamped(marked, ".png", replace(ORIGIN, mark=_mark.NAME)), "words.txt": b"not a picture",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    return tmp_path


@pytest.mark.parametrize("text", ['{"name": "another program"}', "[]", "no JSON", _FORGED])
def test_a_manifest_that_is_no_data_sets_is_a_file_without_an_origin(text: str, folder: Path, capsys: Said):
    (folder / "manifest.json").write_text(text)
    assert cli.main(["whence", str(folder / "manifest.json"), str(folder / "small.png")]) == 1
    nothing, small = capsys.readouterr().out.splitlines()
    assert "manifest.json: no origin in its metadata" in nothing
    assert "small.png: sample by diffusion/edm" in small


def test_a_line_a_file(folder: Path, capsys: Said):
    assert cli.main(["whence", *(str(folder / f"{n}.png") for n in ("small", "marked", "both"))]) == 0
    small, marked, both = capsys.readouterr().out.splitlines()
    said = 'sample by diffusion/edm (weights abababababab), seed 7, index 41, given label="3", 2026-11-28, nonesuch 0.1.0'
    assert small == f"{folder}/small.png: {said}; no mark looked for: only in pictures of 8 bits from 64x64 up"
    assert marked.startswith(f"{folder}/marked.png: no origin in its metadata; marked (a false alarm: at most ")
    assert both.startswith(f"{folder}/both.png: {said}; marked (")


@pytest.mark.parametrize("name", ["bare.png", "words.txt"])
def test_one_without_is_the_answer_no(name: str, folder: Path, capsys: Said):
    assert cli.main(["whence", str(folder / "small.png"), str(folder / name), "--json"]) == 1
    small, other = json.loads(capsys.readouterr().out)
    assert small["origin"] == ORIGIN.to_json()
    assert small["mark"] is None
    assert other["origin"] is None
    if name == "bare.png":
        assert other["mark"]["found"] is False
        assert other["mark"]["p"] > _mark.FALSE_ALARMS
    else:
        assert other["note"].startswith("is of no known format")


def test_a_file_that_is_not_there(folder: Path, capsys: Said):
    assert cli.main(["whence", str(folder / "small.png"), str(folder / "none.png")]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"nonesuch: there is no file {folder}/none.png; name pictures, such as out/*.png.\n"
