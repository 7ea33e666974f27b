"""`nonesuch synthesize` and `nonesuch augment`: exit codes, sentences, and the same words as the library."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from kill_datasets import content

from nonesuch import catalog
from nonesuch import data as sources
from nonesuch.applications import provenance
from nonesuch.cli import main
from nonesuch.core import artifact
from nonesuch.core.seeds import Seeds
from nonesuch.data.formats import Picture, encode

Said = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pictures of two classes."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(40):
        place = folder / ("cat", "dog")[i % 2]
        place.mkdir(exist_ok=True)
        pixels = Seeds.of(0, 1, i).integers("p", 256, 1, 8, 8)[0].byte().numpy()
        (place / f"{i}.png").write_bytes(encode(Picture(pixels))[0])
    return folder


@pytest.fixture(scope="module")
def checkpoint(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of them that has learned nothing: what is tested is not the pictures' worth."""
    source, folder = sources.open(photos), tmp_path_factory.mktemp("model")
    model = catalog.build("vae", source.spec, source.schema, "tiny")
    model.images_seen.fill_(1)
    artifact.save(model, folder, {"data": source.name, "fingerprint": source.fingerprint})
    return folder


def refused(capsys: Said, *arguments: object) -> str:
    assert main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    return said.err


def test_synthesize_then_verify_then_find_what_was_changed(capsys: Said, checkpoint: Path, tmp_path: Path):
    command = ["synthesize", str(checkpoint), "--out", str(tmp_path / "d")]
    assert main([*command, "--n", "30", "--balance", "label", "--per-shard", "10", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["images"], said["shards"], said["made_now"]) == (30, 3, 3)
    assert sum(1 for p in (tmp_path / "d" / "dog").iterdir()) == 15
    assert main(command) == 0
    assert "30 pictures in 3 shards (0 made now)" in capsys.readouterr().out
    assert main([*command, "--verify", "5"]) == 0
    assert capsys.readouterr().out == "3 of 3 shards made again: 3 equal byte for byte\n"
    (tmp_path / "d" / "dog" / "000000007.png").write_bytes(b"")
    assert main([*command, "--verify", "5", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["same"], len(found["different"])) == (False, 1)
    assert "| the model's training: data | photos" in (tmp_path / "d" / "README.md").read_text()


def test_given_options_and_table_reach_the_pictures(capsys: Said, checkpoint: Path, tmp_path: Path):
    common = ["synthesize", str(checkpoint), "--no-provenance", "--as", "webdataset"]
    assert main([*common, "--n", "6", "--given", "label=dog,cat", "--out", str(tmp_path / "one")]) == 0
    (tmp_path / "c.csv").write_text("label,count\ndog,1\ncat,1\n")
    assert main([*common, "--n", "6", "--table", str(tmp_path / "c.csv"), "--out", str(tmp_path / "two")]) == 0
    assert content(tmp_path / "one")["train-000000.tar"] == content(tmp_path / "two")["train-000000.tar"]


def test_mistakes_are_one_sentence(capsys: Said, photos: Path, checkpoint: Path, tmp_path: Path):
    command = ["synthesize", checkpoint, "--out", tmp_path / "d"]
    for more, said in [
        (("--n", 0), "--n must be at least 1"),
        ((), "say how many"),
        (("--n", 3, "--as", "folders"), "did you mean 'folder'"),
        (("--n", 3, "--balance", "lable"), "did you mean 'label'"),
        (("--n", 3, "--given", "label"), "column=value"),
        (("--n", 3, "--set", "stepps=3"), "stepps"),
        (("--n", 3, "--verify", 0), "no finished shards"),
    ]:
        assert said in refused(capsys, *command, *more)
    assert not (tmp_path / "d").exists() or content(tmp_path / "d") == {}
    assert "above 0" in refused(capsys, "augment", photos, checkpoint, "--ratio", -1, "--out", tmp_path / "e")


def test_block_memorized_asks_the_audit(
    capsys: Said, photos: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    audit = ModuleType("nonesuch.applications.audit")
    audit.blocker = lambda model, data: lambda x, given: x[:, 0, 0, 0] > 0  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "nonesuch.applications.audit", audit)
    command, more = ["synthesize", str(checkpoint), "--out", str(tmp_path)], ["--block-memorized", str(photos)]
    assert main([*command, *more, "--n", "20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["blocked"] > 0
    manifest = json.loads((tmp_path / "manifest.json").read_bytes())
    assert manifest["asked"]["blocking"] == f"copies of images of {photos.name} ({sources.open(photos).fingerprint})"
    assert "say so again" in refused(capsys, *command, "--verify", 1)
    assert main([*command, *more, "--verify", "1"]) == 0


def test_augment(capsys: Said, photos: Path, checkpoint: Path, tmp_path: Path):
    assert main(["augment", str(photos), str(checkpoint), "--ratio", "0.5", "--out", str(tmp_path), "--json"]) == 0
    said, source = json.loads(capsys.readouterr().out), sources.open(photos)
    assert said["remarks"] == []
    assert said["images"] == 40 + sum(round(k / 2) for k in source.train.labels().bincount().tolist())
    assert len(list((tmp_path / "test").rglob("*.png"))) == len(source.test)
    origin = provenance.read_origin(next((tmp_path / "train").rglob("synthetic-*.png")))
    assert origin is not None
    assert origin.job == "augment"
