"""A checkpoint folder from a stranger: refused in a sentence, or does nothing beyond what it says; no code of it runs."""

import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Sound
from test_train import pictures, quick, started

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.train import checkpoint
from nonesuch.train.fit import fit
from nonesuch.train.run import Run

NAMES = (
    "model.safetensors", "config.json", "README.md", "pytorch_model.bin", "model.pt", "model.ckpt", "model.pth", "model.pkl",
    "data.pkl", ".metadata", "optimizer.pt", "training_args.bin", "model.npy", "model.npz", "model.py", "modeling_evil.py",
    "configuration_evil.py", "__init__.py", "conftest.py", "sitecustomize.py", "tokenizer.json", "scheduler.pt",
    "resume.safetensors", "metrics.jsonl", "run.lock", "steps/LATEST", "steps/BEST", "steps/000000000016/state.safetensors",
    "steps/000000000016/state.json", "steps/000000000032/state.safetensors", "steps/000000000032/state.json",
    "steps/000000000032/.metadata",
)  # fmt: skip


class Canary:
    """Writes a file when it is unpickled."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.file),)


def mine() -> Run:
    """A run such as `quick` makes, and takes up."""
    run = started(None, pictures().train)
    run.fingerprint, run.budget = pictures().fingerprint, "160"
    return run


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run, saved after its first and second round."""
    run = mine()
    for _ in range(2):
        run.step()
        checkpoint.save(run, tmp_path / "run")
    return tmp_path / "run"


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Canary(canary))


def zipped(canary: Path) -> bytes:
    """What torch.save writes, with the canary inside."""
    place = canary.with_suffix(".pt")
    torch.save({"state": Canary(canary)}, place)
    data = place.read_bytes()
    place.unlink()
    assert zipfile.is_zipfile(place) or data[:2] == b"PK"
    return data


def source(canary: Path) -> bytes:
    return f"import os; os.mkdir({str(canary)!r})".encode()


def open_everything(folder: Path) -> list[str]:
    """Every way in: load the model, resume the run, train on from it; the sentences of those that were refused."""
    said = []
    options: Any = {"given": "label", "budget": 160, "recipe": {"batch": 16}, "precision": "fp32"}
    ways: list[Callable[[], Any]] = [
        lambda: catalog.load(folder, Sound), lambda: catalog.load(folder), lambda: checkpoint.load(mine(), folder),
        lambda: fit(folder, pictures(), **options), lambda: quick(out=folder),
    ]  # fmt: skip
    for way in ways:
        try:
            way()
        except ValueError as error:
            said.append(str(error))
    assert all(len(s) > 20 and s[-1] in ".?" and "\n" not in s for s in said), said
    return said


def test_the_canary_does_fire_when_it_is_unpickled(canary: Path):
    pickle.loads(pickled(canary))  # the attack is real; nothing in nonesuch does this
    assert canary.is_dir()
    canary.rmdir()
    assert zipped(canary)
    assert not canary.exists()


@pytest.mark.parametrize("attack", [pickled, zipped, source])
def test_a_pickle_under_every_name_is_not_opened(attack: Callable[[Path], bytes], folder: Path, canary: Path, monkeypatch: Any):
    monkeypatch.chdir(folder)
    for name in NAMES:
        file = folder / name
        file.write_bytes(attack(canary))
    shutil.copytree(folder, folder / "parts" / "0")
    said = open_everything(folder)
    assert len(said) == 5  # refused, every way
    assert not canary.exists()


@pytest.mark.parametrize(("name", "attack"), list(zip(NAMES, [pickled, zipped, source] * len(NAMES), strict=False)))
def test_one_planted_file_among_sound_ones(name: str, attack: Callable[[Path], bytes], folder: Path, canary: Path):
    (folder / name).write_bytes(attack(canary))
    open_everything(folder)
    assert not canary.exists()


def described(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the description in the weights' header, in config.json, and in the record of the step."""
    tensors, about = artifact.load_tensors(folder / artifact.WEIGHTS)
    change(about)
    artifact.save_tensors(folder / artifact.WEIGHTS, tensors, about)
    (folder / artifact.CONFIG).write_text(json.dumps(about))
    for record in folder.glob("steps/*/state.json"):
        said = json.loads(record.read_text())
        change(said["identity"]["model"])
        record.write_text(json.dumps(said))


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update(auto_map={"AutoModel": "modeling_evil.Evil"}, trust_remote_code=True),
        lambda a: a["config"].update(auto_map={"AutoModel": "modeling_evil.Evil"}),
        lambda a: a["config"].update(_target_="os.mkdir", path="canary"),
        lambda a: a.update(model="modeling_evil:Evil"),
        lambda a: a.update(model="../modeling_evil"),
        lambda a: a.update(model="..\\modeling_evil"),
        lambda a: a.update(model="vae/%2e%2e/modeling_evil"),
        lambda a: a.update(model="/etc/passwd\0"),
        lambda a: a.update(parts={"../../../modeling_evil": dict(a)}),
        lambda a: a.update(parts={"encoder": {"path": "../../../../etc/passwd"}}),
        lambda a: a["spec"].update(dtype="O", size=["../../..", 8]),
        lambda a: a["spec"].update(size=[10**12, 10**12]),
        lambda a: a["spec"].update(axes="../../x"),
        lambda a: a["schema"].update({"__class__": {"column": "os.system", "names": ["touch canary"]}}),
        lambda a: a["schema"].update({"../x": {"column": "category", "names": ["a"] * 3}}),
        lambda a: a.update(config={"width": 10**12}),
        lambda a: a.update(config={"width": -1}),
        lambda a: a.update(format=float("inf")),
    ],
)
def test_no_word_in_a_description_leads_anywhere(
    change: Callable[[dict[str, Any]], Any], folder: Path, canary: Path, monkeypatch: Any
):
    for name in ("modeling_evil.py", "evil.py", "../modeling_evil.py"):
        (folder / name).write_bytes(source(canary))
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    described(folder, change)
    before = set(folder.parent.iterdir())
    open_everything(folder)
    assert not canary.exists()
    assert "modeling_evil" not in sys.modules
    assert set(folder.parent.iterdir()) == before


# -- headers that lie


def with_header(file: Path, header: bytes, claimed: int | None = None, body: bytes = b"") -> None:
    file.write_bytes((len(header) if claimed is None else claimed).to_bytes(8, "little") + header + body)


def tensor(start: int, end: int, shape: list[int], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


LIES: dict[str, tuple[Any, int | None, bytes]] = {
    "2^63 bytes": ({}, 2**63, b""),
    "2^64 - 1 bytes": ({}, 2**64 - 1, b""),
    "99 MB": ({}, 99 << 20, b""),
    "overlap": ({"a": tensor(0, 16, [4]), "b": tensor(8, 24, [4])}, None, bytes(24)),
    "twice the same bytes": ({"a": tensor(0, 16, [4]), "b": tensor(0, 16, [4])}, None, bytes(16)),
    "hole": ({"a": tensor(0, 16, [4]), "b": tensor(32, 48, [4])}, None, bytes(48)),
    "backwards": ({"a": tensor(16, 0, [4])}, None, bytes(16)),
    "beyond the end": ({"a": tensor(0, 1 << 40, [1 << 38])}, None, bytes(16)),
    "shape is not the bytes": ({"a": tensor(0, 16, [400])}, None, bytes(16)),
    "shape overflows": ({"a": tensor(0, 16, [2**62, 2**62])}, None, bytes(16)),
    "negative shape": ({"a": tensor(0, 16, [-4])}, None, bytes(16)),
    "object type": ({"a": tensor(0, 16, [4], "O")}, None, bytes(16)),
    "bytes behind": ({"a": tensor(0, 16, [4])}, None, bytes(64)),
    "no object": ([1, 2], None, b""),
    "a name twice": (b"{" + b",".join([b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'] * 2) + b"}", None, bytes(4)),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_headers_that_lie_are_refused(lie: str, folder: Path):
    header, claimed, body = LIES[lie]
    about = artifact.load_tensors(folder / artifact.WEIGHTS)[1]
    if isinstance(header, dict):
        header = {"__metadata__": {"nonesuch": json.dumps(about)}, **header}
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    for file in [folder / artifact.WEIGHTS, *folder.glob("steps/*/state.safetensors")]:
        with_header(file, text, claimed, body)
    assert len(open_everything(folder)) == 5


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_whose_digest_is_right_is_refused_too(lie: str, folder: Path):
    import hashlib

    header, claimed, body = LIES[lie]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    for step in folder.glob("steps/0*"):
        with_header(step / "state.safetensors", text, claimed, body)
        said = json.loads((step / "state.json").read_text())
        said["digest"] = hashlib.blake2b((step / "state.safetensors").read_bytes(), digest_size=32).hexdigest()
        (step / "state.json").write_text(json.dumps(said))
    with pytest.raises(ValueError, match=r"no step in .* can be read: .*state\.safetensors (is not|cannot be read|was not)"):
        checkpoint.load(mine(), folder)


# -- links and things that are no files


def test_links_are_not_followed_to_be_written_or_swept(folder: Path, tmp_path: Path):
    precious = tmp_path / "precious"
    (precious / "000000000016").mkdir(parents=True)
    (precious / "tmp-mine").mkdir()
    (precious / "tmp-mine" / "file").write_text("kept")
    (precious / "000000000016" / "file").write_text("kept")
    shutil.rmtree(folder / "steps" / "000000000016")
    (folder / "steps" / "000000000016").symlink_to(precious / "000000000016")
    (folder / "steps" / "tmp-x").symlink_to(precious)
    quick(out=folder)
    assert not (folder / "steps" / "tmp-x").is_symlink()
    shutil.rmtree(folder / "steps")
    (folder / "steps").symlink_to(precious)
    with pytest.raises(ValueError, match=r"steps is a link or a file where a folder must be"):
        quick(out=folder)
    assert (precious / "000000000016" / "file").read_text() == (precious / "tmp-mine" / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["state.safetensors", "state.json"])
def test_a_step_of_links_or_pipes_is_refused_at_once(name: str, folder: Path):
    for make in (lambda p: p.symlink_to("/dev/zero"), os.mkfifo, lambda p: p.symlink_to("../000000000016/" + name), Path.mkdir):
        file = folder / "steps" / "000000000032" / name
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink()
        make(file)
        found = checkpoint.find(folder)
        assert found
        assert found.record.images == 16
        assert f"{name} is not there, or is no plain file" in found.remark


@pytest.mark.parametrize("name", ["LATEST", "BEST"])
@pytest.mark.parametrize("said", [b"../../precious", b"/etc", b"\xff\xfe", b"000000000032/../../..", b"0" * 5000, b"", b"tmp-x"])
def test_a_pointer_that_points_elsewhere_is_not_followed(name: str, said: bytes, folder: Path):
    (folder / "steps" / name).write_bytes(said)
    run = mine()
    checkpoint.load(run, folder)
    assert run.images == 32
    run.step()
    checkpoint.save(run, folder)
    assert sorted(p.name for p in (folder / "steps").glob("0*")) == ["000000000032", "000000000048"]


def test_a_pipe_or_device_in_place_of_the_weights_does_not_hang(folder: Path):
    (folder / artifact.WEIGHTS).unlink()
    os.mkfifo(folder / artifact.WEIGHTS)
    with pytest.raises(ValueError, match="there is no file"):
        catalog.load(folder, Sound)
    (folder / artifact.WEIGHTS).unlink()
    (folder / artifact.WEIGHTS).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match="there is no file"):
        catalog.load(folder, Sound)
