"""Data sets drawn from a model: a shard is the same bytes wherever it is made, each is made once, and mistakes are told."""

import errno
import gc
import getpass
import io
import json
import socket
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from broken import Config, Sound
from kill_datasets import content
from torch import Tensor

from nonesuch import data
from nonesuch.applications import _dataset_job, _dataset_ledger
from nonesuch.applications._dataset_conditions import conditions, read_rows
from nonesuch.applications._dataset_files import digest, pictures_in
from nonesuch.applications._dataset_job import AGAIN, Job, make, received, sent
from nonesuch.applications._dataset_ledger import Ledger
from nonesuch.applications.dataset import Options, recorded, run, synthesize, verify
from nonesuch.applications.provenance import read_origin
from nonesuch.core.given import Category, Given, Image, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.pictures import stored
from nonesuch.testing import SCHEMA, SPEC
from nonesuch.train import lock

WIDE = Schema({"kind": Category(("a cat", "dog")), "age": Number(50.0, 10.0, (20.0, 80.0)), "text": Text(16)})
DAY = "2026-01-01"
NAMES = ("rows", "columns", "dots")  # of SCHEMA


def sound(schema: Schema = SCHEMA, spec: ImageSpec = SPEC) -> Sound:
    model = Sound(Config(), spec, schema)
    model.images_seen.fill_(1)
    return model


def job_of(model: Sound, folder: Path, **options: Any) -> Job:
    synthesize(model, folder, **options)
    ledger = Ledger.read(folder)
    assert ledger is not None
    return recorded(model, ledger)


def values(job: Job, k: int, model: Sound) -> dict[str, Tensor]:
    found = {}
    for name, file in make(job, model, k).files.items():
        found |= {key: torch.from_numpy(formats.read(one).values.astype("int64")) for key, one in pictures_in(name, file)}
    return found


def by_keys(model: Sound, seed: int, index: list[int], given: Any) -> Tensor:
    x = model.sample(len(index), given, seeds=Seeds((seed,) * len(index), tuple(index)))
    return torch.stack([torch.from_numpy(stored(one, model.spec).values.astype("int64")) for one in x])


# -- what each picture is given


def test_balanced_counts_differ_by_one_and_lists_cross_them():
    schema = Schema({"a": Category(("0", "1", "2")), "b": Category(("x", "y")), "c": Number(0.0, 1.0)})
    found = conditions(schema, {"c": [5, 6]}, ("a", "b"), ()).given(range(64), 0)
    assert torch.bincount(found.columns["a"]).tolist() == [22, 21, 21]
    cells = {(int(a), int(b), float(c)) for a, b, c in zip(*found.columns.values(), strict=True)}
    assert len(cells) == 3 * 2 * 2
    assert torch.equal(conditions(schema, {"c": [5, 6]}, ("a", "b"), ()).given([17], 0).columns["a"], found.columns["a"][17:18])


def test_as_trained_is_what_the_key_draws_wherever_it_is_asked():
    schema = Schema({n: c for n, c in WIDE.columns.items() if n != "text"})
    whole = conditions(schema, "as trained", (), ()).given(range(30), 7)
    plain = schema.given(30, "as trained", Seeds.of(7, 30))
    assert all(torch.equal(whole.columns[n], plain.columns[n]) for n in schema.columns)
    part = conditions(schema, "as trained", ("kind",), ()).given([4, 21], 7)
    assert torch.equal(part.columns["age"], plain.columns["age"][[4, 21]])
    assert part.columns["kind"].tolist() == [0, 1]


def test_rows_of_a_table_come_in_order_as_often_as_they_say(tmp_path: Path):
    (tmp_path / "c.csv").write_text("kind,age,count\ndog,31,2\n,,1\na cat,40,3\n")
    rows = read_rows(tmp_path / "c.csv", WIDE)
    found = conditions(WIDE, None, (), rows).given(range(8), 0)
    assert found.columns["kind"].tolist() == [1, 1, -1, 0, 0, 0, 1, 1]
    age = found.columns["age"] * 10 + 50
    assert age[[0, 3, 7]].tolist() == pytest.approx([31, 40, 31])
    assert torch.isnan(age[2])
    assert not found.columns["text"].any()


@pytest.mark.parametrize(
    ("given", "balance", "table", "said"),
    [
        ({"kindd": 1}, (), "", "did you mean 'kind'"),
        ({"kind": ["dog", "cow"]}, (), "", "not one of its categories"),
        (None, ("age",), "", "takes a column of categories"),
        ({"kind": "dog"}, ("kind",), "", "spoken for twice"),
        ({"kind": []}, (), "", "no value"),
        ("trained", (), "", "takes 'as trained'"),
        (None, (), "kind,agee\ndog,3\n", "did you mean 'age'"),
        (None, (), "kind,count\ndog,0\n", "whole numbers from 1"),
        (None, (), "kind,age\ndog\n", "line 2"),
        (None, (), "kind\n", "at least one row"),
    ],
)
def test_conditions_that_cannot_be_are_told(given: Any, balance: tuple[str, ...], table: str, said: str, tmp_path: Path):
    (tmp_path / "c.csv").write_text(table)
    with pytest.raises(ValueError, match=said):
        conditions(WIDE, given, balance, read_rows(tmp_path / "c.csv", WIDE) if table else ())


def test_pictures_and_unconditional_models_take_no_conditions():
    with pytest.raises(ValueError, match="nonesuch restore"):
        conditions(Schema({"y": Image(SPEC)}), {"y": [0]}, (), ())
    with pytest.raises(ValueError, match="unconditional"):
        conditions(Schema(), "as trained", (), ())


# -- a shard


def test_a_picture_is_what_its_key_alone_draws(tmp_path: Path):
    model = sound()
    job = job_of(model, tmp_path / "d", n=40, per_shard=16, seed=3, balance="label")
    assert [len(job.which(k)) for k in range(job.shards)] == [16, 16, 8]
    found = {key: v for k in (2, 0, 1) for key, v in values(job, k, model).items()}
    assert len(found) == 40
    wanted = by_keys(model, 3, list(range(40)), {"label": [NAMES[i % 3] for i in range(40)]})
    for name, one in found.items():
        assert torch.equal(one, wanted[int(Path(name).stem)])
        assert Path(name).parts[0] == NAMES[int(Path(name).stem) % 3]


def test_a_shard_is_computed_with_what_was_fixed_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model, seen = sound(), []
    job = job_of(model, tmp_path / "d", n=8)
    sample = Sound.sample

    def spied(self: Sound, *args: Any, **more: Any) -> Tensor:
        seen.append((torch.get_num_threads(), self.compute_dtype))
        return sample(self, *args, **more)

    monkeypatch.setattr(Sound, "sample", spied)
    before = torch.get_num_threads()
    other = Job(job.asked, {**job.fixed, "threads": before + 1, "precision": "bf16"}, job.conditions)
    make(other, model, 0)
    assert seen == [(before + 1, torch.bfloat16)]
    assert (torch.get_num_threads(), model.compute_dtype) == (before, torch.float32)


def test_a_model_that_was_sent_makes_the_same_shard(tmp_path: Path):
    model = sound(WIDE)
    job = job_of(model, tmp_path / "d", n=8, layout="webdataset", balance="kind")
    again = received(sent(model), Sound, "cpu")
    assert make(job, again, 0).files == make(job, model, 0).files


# -- a job


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_a_job_that_went_on_is_the_job_that_did_not_stop(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    options = {"layout": layout, "per_shard": 5, "given": "as trained", "date": DAY}
    synthesize(sound(), tmp_path / "whole", 23, **options)
    events = run(sound(), tmp_path / "parts", Options(23, **options))
    for _ in range(3):
        next(events)
    events.close()
    ledger, made = Ledger.read(tmp_path / "parts"), []
    assert ledger is not None
    assert (list(ledger.shards), ledger.complete) == (["0", "1"], False)
    assert not (tmp_path / "parts" / "README.md").exists()
    put = Ledger.put
    monkeypatch.setattr(Ledger, "put", lambda self, key, shard: made.append(key) or put(self, key, shard))
    found = synthesize(sound(), tmp_path / "parts", 23, **options)
    assert made == ["2", "3", "4"]
    assert (found.now, found.shards) == (3, 5)
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    assert synthesize(sound(), tmp_path / "parts", 23, **options).now == 0
    assert synthesize(sound(), tmp_path / "parts").n == 23  # without a number, the folder's own job


def test_killed_at_random_moments_it_ends_as_if_it_had_not_been(tmp_path: Path):
    program = [sys.executable, "tests/kill_datasets.py", str(tmp_path), "folder", "3", "1"]
    said = json.loads(subprocess.run(program, check=True, capture_output=True, cwd=Path(__file__).parents[1]).stdout)
    assert said["same"]
    assert said["killed"] >= 2


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_many_kills(layout: str, tmp_path: Path):
    program = [sys.executable, "tests/kill_datasets.py", str(tmp_path), layout, "40", "2"]
    said = json.loads(subprocess.run(program, check=True, capture_output=True, cwd=Path(__file__).parents[1]).stdout)
    assert said["same"]
    assert said["killed"] >= 5


def test_the_manifest_alone_makes_the_same_set_again(tmp_path: Path):
    (tmp_path / "c.csv").write_text("kind,age\ndog,31\na cat,\n")
    assert synthesize(sound(WIDE), tmp_path / "none", table=tmp_path / "c.csv").n == 2  # as many as the table says
    synthesize(sound(WIDE), tmp_path / "one", 9, per_shard=4, seed=5, table=tmp_path / "c.csv", date=DAY)
    (tmp_path / "two").mkdir()
    for name in ("manifest.json", "conditions.csv"):
        (tmp_path / "two" / name).write_bytes((tmp_path / "one" / name).read_bytes())
    assert synthesize(sound(WIDE), tmp_path / "two").remarks == ()
    assert content(tmp_path / "two") == content(tmp_path / "one")
    (tmp_path / "two" / "conditions.csv").write_text("kind,age\ndog,32\na cat,\n")
    with pytest.raises(ValueError, match="not the table that this job began with"):
        synthesize(sound(WIDE), tmp_path / "two")


def test_a_shard_that_is_lost_is_made_again_and_one_that_differs_is_told(tmp_path: Path):
    synthesize(sound(), tmp_path, 20, per_shard=5, layout="webdataset")
    (tmp_path / "train-000001.tar").unlink()
    (tmp_path / "train-000002.tar").write_bytes(b"cut")
    found = synthesize(sound(), tmp_path)
    assert (found.now, found.remarks) == (2, ())
    ledger = Ledger.read(tmp_path)
    assert ledger is not None
    ledger.shards["3"]["sha256"] = "0" * 64
    ledger.write()
    (tmp_path / "train-000003.tar").unlink()
    assert "shard 3 was made anew and is not" in synthesize(sound(), tmp_path).remarks[0]


def test_another_job_another_model_and_a_second_writer_are_refused(tmp_path: Path):
    synthesize(sound(), tmp_path, 6, per_shard=3)
    for changed, said in [
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"layout": "parquet"}, "as: folder -> parquet"),
        ({"date": DAY}, "date: 20"),
    ]:
        with pytest.raises(ValueError, match=said):
            synthesize(sound(), tmp_path, 6, **changed)
        with pytest.raises(ValueError, match=said):
            synthesize(sound(), tmp_path, **changed)
    other = sound()
    torch.nn.init.ones_(other.out.weight)
    with pytest.raises(ValueError, match="weights: "):
        synthesize(other, tmp_path, 6)
    with lock.held(tmp_path), pytest.raises(ValueError, match="is being written by"):
        synthesize(sound(), tmp_path, 6)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "at least 1"),
        ({"n": True}, "at least 1"),
        ({"n": None}, "say how many"),
        ({"n": 3, "layout": "folders"}, "did you mean 'folder'"),
        ({"n": 3, "engine": "rya"}, "did you mean 'ray'"),
        ({"n": 3, "per_shard": 0}, "at least 1"),
        ({"n": 3, "layout": "nifti"}, "volumes"),
        ({"n": 3, "sampling": {"steps": [1]}}, "option steps"),
        ({"n": 3, "guidance": 2.0}, "cannot be guided"),
        ({"n": 3, "blocking": "copies"}, "go together"),
        ({"n": 3, "given": {"lable": 1}}, "did you mean 'label'"),
        ({"n": 3, "table": "nowhere.csv"}, "cannot be read"),
        ({"n": 3, "date": "yesterday"}, "date"),
    ],
)
def test_a_mistake_leaves_nothing_behind(options: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        synthesize(sound(), tmp_path / "d", **options)
    assert content(tmp_path) == {}


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.png").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"other files \(mine.png\)"):
        synthesize(sound(), tmp_path, 3)
    assert set(content(tmp_path)) == {"mine.png"}
    (tmp_path / "manifest.json").write_text("[]")
    with pytest.raises(ValueError, match="no manifest of a data set"):
        synthesize(sound(), tmp_path, 3)
    with pytest.raises(ValueError, match="is a file"):
        synthesize(sound(), tmp_path / "mine.png", 3)


@pytest.mark.parametrize(
    ("group", "name", "value"),
    [
        ("asked", "n", -1), ("asked", "n", "9"), ("asked", "per_shard", 0), ("asked", "seed", None),
        ("asked", "balance", [1]), ("shards", "../0", {}), ("shards", "0", {"sha256": "x"}), ("fixed", "date", "today"),
        ("fixed", "threads", 10**9), ("fixed", "suffix", "/../../x.png"), ("fixed", "precision", "fp8"),
    ],
)  # fmt: skip
def test_a_manifest_of_a_stranger_is_not_believed(group: str, name: str, value: Any, tmp_path: Path):
    synthesize(sound(), tmp_path / "d", 3)
    path = tmp_path / "d" / "manifest.json"
    said = json.loads(path.read_bytes())
    said[group][name] = value
    path.write_text(json.dumps(said))
    before = content(tmp_path)
    with pytest.raises(ValueError, match="no manifest of a data set"):
        synthesize(sound(), tmp_path / "d")
    assert content(tmp_path) == before


def test_a_full_disk_is_told_and_what_is_done_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    synthesize(sound(), tmp_path / "whole", 12, per_shard=4, date=DAY)
    place, calls = _dataset_ledger.place, []

    def full(folder: Path, files: dict[str, bytes]) -> None:
        calls.append(1)
        if len(calls) == 3:
            with monkeypatch.context() as inner:
                inner.setattr(
                    _dataset_ledger,
                    "_sync",
                    lambda *args: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
                )
                place(folder, files)
        place(folder, files)

    monkeypatch.setattr(_dataset_ledger, "place", full)
    with pytest.raises(ValueError, match=r"no space left on device; 2 finished shards are kept, and the same command goes on"):
        synthesize(sound(), tmp_path / "d", 12, per_shard=4, date=DAY)
    assert not any((tmp_path / "d").glob(".*"))
    assert sum(name.endswith(".png") for name in content(tmp_path / "d")) == 8
    synthesize(sound(), tmp_path / "d", 12, per_shard=4, date=DAY)
    assert content(tmp_path / "d") == content(tmp_path / "whole")


# -- blocking


def test_blocked_pictures_are_drawn_again_and_the_others_stay(tmp_path: Path):
    model = sound()
    plain = job_of(model, tmp_path / "plain", n=60, per_shard=20, balance="label")
    before = {key: v for k in range(3) for key, v in values(plain, k, model).items()}

    def dark(x: Tensor, given: Given) -> Tensor:
        assert len(x) == len(given)
        return x[:, 0, 0, 0] < 0

    made = synthesize(model, tmp_path / "d", 60, per_shard=20, balance="label", block=dark, blocking="a dark corner")
    ledger = Ledger.read(tmp_path / "d")
    assert ledger is not None
    after = {str(p.relative_to(tmp_path / "d")): p for p in (tmp_path / "d").rglob("*.png")}
    assert after.keys() == before.keys()
    changed = refused = 0
    for name, path in after.items():
        found, i = torch.from_numpy(formats.read(path).values.astype("int64")), int(path.stem)
        origin = read_origin(path)
        assert origin is not None
        assert origin.index is not None
        r, rest = divmod(origin.index, AGAIN)
        assert rest == i
        assert found[0, 0, 0] >= 2  # of 5 levels, not below the middle
        assert torch.equal(found, before[name]) == (r == 0)
        assert torch.equal(found, by_keys(model, 0, [origin.index], {"label": path.parent.name})[0])
        refused, changed = refused + r, changed + (r > 0)
    assert made.blocked == refused == sum(e.get("blocked", 0) for e in ledger.shards.values())
    assert changed > 5
    assert f"a dark corner: {refused} pictures" in (tmp_path / "d" / "README.md").read_text()
    job = recorded(model, ledger)
    assert digest(make(job, model, 2, dark).files) == ledger.shards["2"]["sha256"]  # alone, and first
    with pytest.raises(ValueError, match="say so again"):
        synthesize(model, tmp_path / "d", 60)
    with pytest.raises(ValueError, match="say so again"):
        verify(model, tmp_path / "d")
    assert verify(model, tmp_path / "d", 3, dark).same


@pytest.mark.parametrize(
    ("block", "said"),
    [
        (lambda x, given: torch.ones(len(x), dtype=torch.bool), "32 times in a row"),
        (lambda x, given: x[:, 0, 0, 0], "must return a bool for each image"),
    ],
)
def test_a_block_that_lets_nothing_pass_or_says_no_bools_is_told(block: Callable[..., Tensor], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        synthesize(sound(), tmp_path, 4, block=block, blocking="all")


# -- layouts, as others read them


def test_a_folder_and_its_shards_open_as_the_pictures_they_are(tmp_path: Path):
    model, opened = sound(), []
    for layout in ("folder", "webdataset"):
        synthesize(model, tmp_path / layout, 30, layout=layout, balance="label")
        found = data.open(tmp_path / layout)
        splits = [(found.train, i) for i in range(len(found.train))] + [(found.test, i) for i in range(len(found.test))]
        names = found.schema["label"].names
        opened.append(sorted((names[int(s.given.columns["label"][i])], s.levels[i].flatten().tolist()) for s, i in splits))
    wanted = by_keys(model, 0, list(range(30)), {"label": [NAMES[i % 3] for i in range(30)]})
    assert opened[0] == opened[1]
    assert [one for _, one in sorted(opened[0], key=lambda o: o[1])] == sorted(wanted.flatten(1).tolist())


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = pytest.importorskip("datasets", reason="reads the folder as its users do; no dependency of ours")
    found.disable_progress_bars()
    return found


def test_datasets_loads_every_layout(datasets: Any, tmp_path: Path):
    model, cache = sound(), str(tmp_path / "cache")
    for layout in ("folder", "webdataset", "parquet"):
        synthesize(model, tmp_path / layout, 12, layout=layout, balance="label", per_shard=5)
    labels, pixels = [], []
    found = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "folder"), cache_dir=cache)["train"]
    names = found.features["label"].names
    labels.append(sorted(names[row["label"]] for row in found))
    pixels.append(sorted(np.asarray(row["image"]).tolist() for row in found))
    files = str(tmp_path / "webdataset" / "train-*.tar")
    found = datasets.load_dataset("webdataset", data_files=files, cache_dir=cache)["train"]
    labels.append(sorted(NAMES[row["cls"]] for row in found))
    assert all(row["json"]["label"] == NAMES[row["cls"]] for row in found)
    pixels.append(sorted(np.asarray(row["png"]).tolist() for row in found))
    found = datasets.load_dataset("parquet", data_files=str(tmp_path / "parquet" / "*.parquet"), cache_dir=cache)["train"]
    assert tuple(found.features["label"].names) == NAMES
    labels.append(sorted(found.features["label"].names[row["label"]] for row in found))
    pixels.append(sorted(np.asarray(row["image"]).tolist() for row in found))
    assert labels[0] == labels[1] == labels[2] == sorted([*NAMES] * 4)
    assert pixels[0] == pixels[1] == pixels[2]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_datasets_follows_the_card(datasets: Any, tmp_path: Path):
    for layout in ("folder", "webdataset", "parquet"):
        synthesize(sound(WIDE), tmp_path / layout, 12, layout=layout, given={"age": [30, None]}, balance="kind", per_shard=5)
        found = datasets.load_dataset(str(tmp_path / layout), cache_dir=str(tmp_path / "cache"))["train"]
        assert len(found) == 12
        if layout == "folder":
            assert sorted(found["kind"]) == ["a cat"] * 6 + ["dog"] * 6
            assert found["age"].count(None) == 6
    del found
    gc.collect()  # it leaves the table open


def test_a_table_says_what_folders_cannot(tmp_path: Path):
    synthesize(sound(WIDE), tmp_path, 6, given={"age": [31.5, None], "text": 'a "quoted", texts'}, balance="kind")
    lines = (tmp_path / "metadata.csv").read_text().splitlines()
    assert lines[:3] == [
        "file_name,kind,age,text",
        'a cat/000000000.png,a cat,31.5,"a ""quoted"", text"',  # texts are cut at 16 bytes, as the model is given them
        'dog/000000001.png,dog,31.5,"a ""quoted"", text"',
    ]
    assert lines[3].startswith("a cat/000000002.png,a cat,,")
    assert len(data.open(tmp_path).train) + len(data.open(tmp_path).test) == 6


def test_shards_of_webdataset_say_all_conditions(tmp_path: Path):
    synthesize(sound(WIDE), tmp_path, 2, given={"kind": ["dog", None], "age": 40}, layout="webdataset")
    with tarfile.open(tmp_path / "train-000000.tar") as shard:
        held = {m.name: shard.extractfile(m).read() for m in shard}
        heads = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in shard}
    assert heads == {(0, 0, 0, "", "", 0o644)}
    assert json.loads(held["000000000.json"]) == {"kind": "dog", "age": 40.0, "text": None}
    assert (held["000000000.cls"], held["000000001.cls"]) == (b"1", b"-1")


def test_volumes_as_nifti_keep_their_values_and_spacing(tmp_path: Path):
    pytest.importorskip("nibabel", reason="NIfTI is written by the extra [medical]")
    spec = ImageSpec(1, (4, 5, 6), "dhw", levels=9, dtype="int16", value_range=(-4, 4), spacing=(2.0, 0.5, 0.5))
    model = sound(SCHEMA, spec)
    synthesize(model, tmp_path / "one", 4, layout="nifti", balance="label")
    synthesize(model, tmp_path / "two", 4, layout="nifti", balance="label")
    assert content(tmp_path / "one") == content(tmp_path / "two")
    found = formats.read(tmp_path / "one" / "rows" / "000000003.nii.gz")
    assert (found.axes, found.spacing, str(found.values.dtype)) == ("dhw", (2.0, 0.5, 0.5), "int16")
    assert torch.equal(torch.from_numpy(found.values.astype("int64")), by_keys(model, 0, [3], {"label": "rows"})[0])
    assert read_origin(tmp_path / "one" / "rows" / "000000003.nii.gz") is not None


# -- what the files say


def test_files_say_what_made_them_and_nothing_of_the_machine(tmp_path: Path):
    words = [w.encode() for w in (str(tmp_path), getpass.getuser(), socket.gethostname(), str(Path.home())) if len(w) > 4]
    for layout in ("folder", "webdataset", "parquet"):
        synthesize(
            sound(), tmp_path / layout, 6, layout=layout, given="as trained", date=DAY, about={"data": str(tmp_path / "scans")}
        )
        for path in (p for p in (tmp_path / layout).rglob("*") if p.is_file()):
            assert not any(w in path.read_bytes() for w in words), path
    path = next((tmp_path / "folder").rglob("*.png"))
    origin = read_origin(path)
    assert origin is not None
    assert (origin.job, origin.seed, origin.index, origin.date) == ("synthesize", 0, int(path.stem), DAY)
    assert origin.given == {"label": path.parent.name}
    synthesize(sound(), tmp_path / "none", 6, given="as trained", provenance=False)
    assert read_origin(next((tmp_path / "none").rglob("*.png"))) is None


def test_the_card_says_counts_model_and_how_to_make_it_again(tmp_path: Path):
    about = {"data": "digits", "fingerprint": "abc123", "images": 77}
    synthesize(sound(WIDE), tmp_path, 7, balance="kind", given={"age": [30, 40, None]}, about=about)
    text = (tmp_path / "README.md").read_text()
    for said in (
        "| a cat | 4 |",
        "| dog | 3 |",
        "| least | 30 |",
        "| mean | 34 |",
        "| (missing) | 2 |",
        "abc123",
        "licence",
        "seed 0",
    ):
        assert said in text, said
    assert "nonesuch synthesize MODEL --out THAT_FOLDER" in text


# -- verification


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_verify_finds_what_was_changed(layout: str, tmp_path: Path):
    model = sound()
    synthesize(model, tmp_path, 20, per_shard=5, layout=layout, balance="label")
    found = verify(model, tmp_path, 9)
    assert (found.same, found.equal, found.checked) == (True, [0, 1, 2, 3], 4)
    assert verify(model, tmp_path, 2).checked == 2
    path = sorted(p for p in tmp_path.rglob("*") if p.suffix in (".png", ".tar", ".parquet") and not p.stem.endswith("3"))[0]
    whole = path.read_bytes()
    path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
    found = verify(model, tmp_path, 9)
    assert (len(found.different), len(found.equal)) == (1, 3)
    assert "changed or damaged" in found.different[0]
    path.unlink()
    assert "cannot be read" in verify(model, tmp_path, 9).different[0]
    other = sound()
    torch.nn.init.ones_(other.out.weight)
    with pytest.raises(ValueError, match="weights"):
        verify(other, tmp_path)


def test_verify_compares_pixels_with_another_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    spec = ImageSpec(1, (8, 8))
    model = sound(SCHEMA, spec)
    synthesize(model, tmp_path, 6, per_shard=3, layout="webdataset", provenance=False)
    sampled, by = _dataset_job.sampled, 1

    def rounded(job: Job, model: Sound, given: Given, index: list[int]) -> Tensor:
        x = sampled(job, model, given, index)
        return spec.from_levels((spec.to_levels(x) + by * (torch.arange(64).view(8, 8) % 2)).clamp(0, 255))

    monkeypatch.setattr(_dataset_job, "sampled", rounded)
    assert "not equal byte for byte, though made by the same build" in verify(model, tmp_path).different[0]
    monkeypatch.setattr(_dataset_job, "build", lambda model: {"torch": "another"})
    found = verify(model, tmp_path)
    assert (found.same, found.within, found.equal) == (True, [0, 1], [])
    assert "by another build and within 1%" in found.lines()[0]
    by = 6  # of 255, in half of the pixels: 1.2 %
    found = verify(model, tmp_path)
    assert not found.same
    assert "3 of 3 pictures differ by more than 1%" in found.different[0]


def test_there_must_be_something_to_verify(tmp_path: Path):
    with pytest.raises(ValueError, match="no finished shards"):
        verify(sound(), tmp_path)
    synthesize(sound(), tmp_path, 2)
    with pytest.raises(ValueError, match="at least 1"):
        verify(sound(), tmp_path, 0)


def test_missing_extras_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ValueError, match=r"nonesuch\[scale\]"):
        synthesize(sound(), tmp_path / "r", 2, engine="ray")
    with pytest.raises(ValueError, match=r"nonesuch\[tables\]"):
        synthesize(sound(), tmp_path / "p", 2, layout="parquet")
    assert not any((tmp_path / "p").iterdir())


def test_progress_is_told_by_the_batch(tmp_path: Path):
    events = list(run(sound(), tmp_path, Options(20, per_shard=8)))
    assert [e.done for e in events] == [8, 16, 20, 20]
    assert all(e.total == 20 for e in events)
    assert "images/s" in events[0].text
    assert events[-1].result.shards == 3


def test_pixels_of_parquet_are_plain_pngs(tmp_path: Path):
    pq = pytest.importorskip("pyarrow.parquet")
    synthesize(sound(), tmp_path, 3, layout="parquet")
    table = pq.read_table(io.BytesIO((tmp_path / "train-00000-of-00001.parquet").read_bytes()))
    assert [row["path"] for row in table["image"].to_pylist()] == [f"{i:09d}.png" for i in range(3)]
    assert table["label"].null_count == 3
