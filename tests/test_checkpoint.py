"""Steps on the disk: no kill, full disk, second writer or changed run loses or mixes up what was saved."""

import dataclasses
import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Config, Sound
from test_train import pictures, quick, same, saved, sound, started

from nonesuch import catalog
from nonesuch.core.objective import Batch, Terms
from nonesuch.data.dataset import Data, fingerprint
from nonesuch.testing import SCHEMA, SPEC, stripes
from nonesuch.train import checkpoint, identity, lock, log, loop
from nonesuch.train.fit import fit
from nonesuch.train.run import Run
from nonesuch.train.stopping import Terminated


def steps(folder: Path) -> list[str]:
    return sorted(p.name for p in (folder / "steps").iterdir())


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".jsonl"}


def saved_run(folder: Path, rounds: int = 1, **options: Any) -> Run:
    run = started()
    for _ in range(rounds):
        run.step()
        checkpoint.save(run, folder, **options)
    return run


# -- the layout


def test_a_finished_run_is_a_model_and_its_steps(tmp_path: Path):
    quick(out=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        "model.safetensors", "config.json", "README.md", "steps", "metrics.jsonl",
    }  # fmt: skip
    assert (tmp_path / "steps" / "LATEST").read_text() == "000000000160\n"
    record = json.loads((tmp_path / "steps" / "000000000160" / "state.json").read_text())
    assert (record["version"], record["images"], record["rounds"], record["budget"]) == (2, 160, 10, "160")
    assert record["identity"]["data"] == pictures().fingerprint
    assert sorted(p.name for p in (tmp_path / "steps" / "000000000160").iterdir()) == ["state.json", "state.safetensors"]


@pytest.mark.parametrize("keep", [1, 2, 4])
def test_the_last_steps_are_kept_and_the_best(keep: int, tmp_path: Path):
    run = started()
    for i in range(8):
        run.step()
        checkpoint.save(run, tmp_path, keep, best=i == 1)
    last = [f"{16 * i:012d}" for i in range(9 - keep, 9)]
    assert steps(tmp_path) == sorted({*last, "000000000032", "BEST", "LATEST"})
    assert (tmp_path / "steps" / "BEST").read_text() == "000000000032\n"


def test_what_is_on_the_disk_when(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """fsync of the files < fsync of their folder < rename < fsync of steps/ < fsync and rename of LATEST < what is old goes."""
    run = saved_run(tmp_path, 2)
    run.step()
    calls: list[str] = []

    def name(path: Any) -> str:
        path = os.readlink(f"/proc/self/fd/{path}") if isinstance(path, int) else str(path)
        parts = ["TMP" if p.startswith("tmp-") else p for p in Path(path).relative_to(tmp_path).parts]
        return "/".join("LATEST~" if p.startswith(".LATEST.") else p for p in parts)

    def noted(called: str, real: Callable[..., None]) -> Callable[..., None]:
        def call(*paths: Any, **options: Any) -> None:
            calls.append(f"{called} {' '.join(name(p) for p in paths)}".strip())
            real(*paths, **options)

        return call

    for called in ("fsync", "rename", "replace"):
        monkeypatch.setattr(os, called, noted(called, getattr(os, called)))
    checkpoint.save(run, tmp_path)
    monkeypatch.undo()
    assert calls[:8] == [
        "fsync steps/TMP/state.safetensors", "fsync steps/TMP/state.json", "fsync steps/TMP",
        "rename steps/TMP steps/000000000048", "fsync steps", "fsync steps/LATEST~", "replace steps/LATEST~ steps/LATEST",
        "fsync steps",
    ]  # fmt: skip
    assert calls[8] == "rename steps/000000000016 steps/TMP/000000000016"


# -- what a kill leaves


def test_what_a_kill_left_half_done_is_swept(tmp_path: Path):
    run = saved_run(tmp_path, 3)
    before = content(tmp_path)
    (tmp_path / "steps" / "tmp-abc").mkdir()
    (tmp_path / "steps" / "tmp-abc" / "state.safetensors").write_bytes(b"half")
    (tmp_path / "steps" / ".LATEST.x.tmp").write_bytes(b"00")
    (tmp_path / ".model.safetensors.x.tmp").write_bytes(b"half")
    shutil.copytree(tmp_path / "steps" / "000000000048", tmp_path / "steps" / "000000000048.old")
    checkpoint.sweep(tmp_path)
    assert content(tmp_path) == before
    os.rename(tmp_path / "steps" / "000000000048", tmp_path / "steps" / "000000000048.old")  # killed between two renames
    again = started()
    checkpoint.sweep(tmp_path)
    checkpoint.load(again, tmp_path)
    assert content(tmp_path) == before
    assert same(run.state(), again.state())


def test_a_step_that_nobody_points_at_yet_is_not_taken(tmp_path: Path):
    run = saved_run(tmp_path, 2)
    (tmp_path / "steps" / "LATEST").write_text("000000000016\n")
    again = started()
    checkpoint.load(again, tmp_path)
    assert again.images == 16
    again.step()
    checkpoint.save(again, tmp_path)  # takes the place of the one that was there
    assert steps(tmp_path) == ["000000000016", "000000000032", "LATEST"]
    assert same(run.state(), saved(tmp_path)[0])


def test_a_run_that_goes_back_leaves_the_course_it_gave_up(tmp_path: Path):
    saved_run(tmp_path, 5, keep=5)
    (tmp_path / "steps" / "LATEST").write_text("000000000032\n")
    again = started()
    checkpoint.load(again, tmp_path)
    again.step()
    checkpoint.save(again, tmp_path, keep=5)
    assert steps(tmp_path) == ["000000000016", "000000000032", "000000000048", "LATEST"]


def damage(step: Path) -> None:
    data = bytearray((step / checkpoint.TENSORS).read_bytes())
    data[-3] ^= 1  # one bit of one weight
    (step / checkpoint.TENSORS).write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (damage, "is damaged: it is not what was written"),
        (lambda s: (s / "state.json").write_text("{"), "cannot be read as JSON"),
        (lambda s: (s / "state.json").write_text("[" * 100_000), "cannot be read as JSON"),
        (lambda s: (s / "state.json").write_text("9" * 5000), "cannot be read as JSON"),
        (lambda s: (s / "state.json").write_text("[]"), "is no record of a run"),
        (lambda s: (s / "state.json").write_text('{"version": 2}'), "images field required"),
        (lambda s: (s / "state.json").write_bytes(b"x" * (17 << 20)), "is too long"),
        (lambda s: (s / "state.json").unlink(), "is not there, or is no plain file"),
        (lambda s: (s / "state.safetensors").unlink(), "is not there, or is no plain file"),
        (shutil.rmtree, "LATEST names 000000000048, which is not there"),
    ],
)
def test_a_damaged_step_is_said_and_the_one_before_taken(harm: Callable[[Path], None], said: str, tmp_path: Path):
    whole = saved_run(tmp_path, 3)
    harm(tmp_path / "steps" / "000000000048")
    found = checkpoint.find(tmp_path)
    assert found
    assert found.record.images == 32
    assert said in found.remark
    assert found.remark.endswith("The step before it is taken.")
    again = started()
    checkpoint.take_up(again, found, tmp_path)
    again.step()
    assert same(whole.state(), again.state())
    shutil.rmtree(tmp_path / "steps" / "000000000032")
    with pytest.raises(ValueError, match=r"no step in .* can be read: "):
        checkpoint.find(tmp_path)


def test_a_damaged_step_is_told_by_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    whole = quick(out=tmp_path)
    damage(tmp_path / "steps" / "000000000160")
    events: list[log.Event] = []
    assert same(whole.state_dict(), quick(out=tmp_path, on_event=events.append).state_dict())
    warning = next(e for e in events if e.kind == "warning")
    assert "state.safetensors is damaged" in warning.text
    assert "resumed at 144" in events[0].text


def test_nothing_of_another_run_is_half_loaded(tmp_path: Path):
    """Right names, wrong shapes or types, in a step that is whole by its digest: refused, and the run is as it was."""
    run = saved_run(tmp_path, 2)
    step = tmp_path / "steps" / "000000000032"
    for change in (
        lambda t: t.pop("raw/out.bias"),
        lambda t: t.update({"raw/out.bias": t["raw/out.bias"][:1]}),
        lambda t: t.update({"mean/out.bias": t["mean/out.bias"].double()}),
        lambda t: t.update({"optim/model/0/exp_avg": torch.zeros(1, 1)}),
        lambda t: t.update({"optim/model/99/exp_avg": torch.zeros(3)}),
        lambda t: t.update({"else": torch.zeros(3)}),
    ):
        tensors = {k: v + 1 for k, v in run.state().items()}
        change(tensors)
        found = checkpoint.find(tmp_path)
        assert found
        fresh = started()
        before = {k: v.clone() for k, v in fresh.state().items()}
        with pytest.raises(ValueError, match=f"{step.name} is not the state of this run: 1 tensors"):
            checkpoint.take_up(fresh, dataclasses.replace(found, tensors=tensors), tmp_path)
        assert same(before, fresh.state())


# -- a run that is stopped


TERMINATED = """
import os, signal, sys
sys.path.insert(0, sys.argv[1])
from test_train import Sound, Config, SPEC, SCHEMA, loop, pictures, train_model
loop._LOG_S = 0.0

def on_event(event):
    if event.kind == "progress" and event.images == 48:
        os.kill(os.getpid(), signal.SIGTERM)

train_model(Sound(Config(), SPEC, SCHEMA), pictures(), given="label", budget=160, recipe={"batch": 16}, precision="fp32",
            out=sys.argv[2], on_event=on_event)
"""


def test_sigterm_saves_and_ends_with_143(tmp_path: Path):
    tests = Path(__file__).parent
    env = {**os.environ, "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1"}
    command = [sys.executable, "-c", TERMINATED, str(tests), str(tmp_path / "half")]
    done = subprocess.run(command, env=env, cwd=tests.parent, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (143, "")
    assert saved(tmp_path / "half")[1]["images"] == 48
    assert not (tmp_path / "half" / lock.LOCK).exists()
    assert same(quick(out=tmp_path / "half").state_dict(), quick().state_dict())


class Signalled(Sound):
    """The signal comes within the third round."""

    def terms(self, batch: Batch) -> Terms:
        if batch.images == 32 and torch.is_grad_enabled() and not getattr(self, "came", False):
            self.came = True
            os.kill(os.getpid(), signal.SIGTERM)
        return super().terms(batch)


def test_sigterm_waits_for_the_end_of_the_round(tmp_path: Path):
    with pytest.raises(Terminated) as caught:
        quick(Signalled(Config(), SPEC, SCHEMA), out=tmp_path)
    assert caught.value.code == 143
    assert saved(tmp_path)[1]["images"] == 48
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_second_ctrl_c_saves_nothing_half_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    class Impatient(Sound):
        def terms(self, batch: Batch) -> Terms:
            if batch.images == 48:
                os.kill(os.getpid(), signal.SIGINT)
                os.kill(os.getpid(), signal.SIGINT)
            return super().terms(batch)

    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    saves: list[int] = []
    save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", lambda run, *a: saves.append(run.images) or save(run, *a))
    with pytest.raises(KeyboardInterrupt):
        quick(Impatient(Config(), SPEC, SCHEMA), out=tmp_path)
    assert saves == [16, 32, 48]


# -- a full disk


def full(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "rename", "replace", "mkdir"])
def test_a_full_disk_leaves_the_last_save(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = saved_run(tmp_path, 2)
    before = content(tmp_path)
    for again in (False, True):  # a new step, and one of a clock that was saved before
        if not again:
            run.step()
        monkeypatch.setattr(os, call, full)
        with pytest.raises(
            checkpoint.SaveFailed, match=r"cannot be saved to .*: No space left on device; the last save is unharmed\."
        ):
            checkpoint.save(run, tmp_path)
        monkeypatch.undo()
        assert content(tmp_path) == before
        assert not [n for n in steps(tmp_path) if n.startswith("tmp-") or n.endswith(".old")]
        run = started()
        checkpoint.load(run, tmp_path)
        assert run.images == 32


def test_training_goes_on_when_a_save_fails_and_the_next_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    commit, tries = checkpoint._commit, iter([*[None] * 2, *[full] * 3, *[None] * 20])
    monkeypatch.setattr(checkpoint, "_commit", lambda *a: (next(tries) or commit)(*a))
    events: list[log.Event] = []
    done = quick(out=tmp_path, on_event=events.append)
    kinds = [(e.kind, e.images) for e in events if e.kind in ("saved", "warning")]
    assert kinds[:6] == [("saved", 16), ("saved", 32), ("warning", 48), ("warning", 64), ("warning", 80), ("saved", 96)]
    assert "No space left on device; the last save is unharmed. Training goes on" in next(
        e.text for e in events if e.kind == "warning"
    )
    assert same(done.state_dict(), quick().state_dict())


def test_the_last_save_failing_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_SAVE_S", 1e9)
    monkeypatch.setattr(checkpoint, "_commit", full)
    with pytest.raises(checkpoint.SaveFailed, match="No space left"):
        quick(out=tmp_path, budget=32)


def test_a_log_that_cannot_be_written_does_not_end_the_run(tmp_path: Path):
    (tmp_path / "metrics.jsonl").mkdir()
    events: list[log.Event] = []
    assert int(quick(out=tmp_path, on_event=events.append).images_seen) == 160


@pytest.fixture
def megabyte(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", place], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_real_full_disk_loses_nothing(megabyte: Path, monkeypatch: pytest.MonkeyPatch):
    """Two steps and a third do not fit beside a filler: saves fail, training goes on, and with room again nothing is missing."""
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    out, events = megabyte / "run", []
    whole = quick()

    def fill(event: log.Event) -> None:
        events.append(event)
        if event.kind == "saved" and event.images == 32:
            with pytest.raises(OSError, match="No space left"), (megabyte / "filler").open("wb", buffering=0) as file:
                all(file.write(bytes(4096)) for _ in range(1000))

    with pytest.raises(
        checkpoint.SaveFailed, match=r"cannot be saved to .*run: No space left on device; the last save is unharmed\."
    ):
        quick(out=out, on_event=fill)
    assert [e.images for e in events if e.kind == "saved"] == [16, 32]
    assert [e.images for e in events if e.kind == "warning" and "Training goes on" in e.text] == list(range(48, 176, 16))
    assert steps(out) == ["000000000016", "000000000032", "LATEST"]
    assert not list(out.glob(".*.tmp"))
    assert catalog.load(out, Sound).sample(2).shape == (2, *SPEC.shape)
    (megabyte / "filler").unlink()
    assert same(whole.state_dict(), quick(out=out).state_dict())


# -- two writers


def test_a_second_writer_is_refused_with_who_the_first_is(tmp_path: Path):
    def second(event: log.Event) -> None:
        if event.kind == "start":
            with pytest.raises(ValueError, match=rf"is being written by process {os.getpid()} on .* since .*; wait for it"):
                quick(out=tmp_path)

    done = quick(out=tmp_path, on_event=second)
    assert same(done.state_dict(), quick(out=tmp_path).state_dict())  # the lock is gone


def test_a_writer_in_another_process_holds_the_lock_until_it_is_killed(tmp_path: Path):
    code = "import sys, time\nfrom pathlib import Path\nfrom nonesuch.train import lock\n" \
           "with lock.held(Path(sys.argv[1])):\n    print('held', flush=True)\n    time.sleep(60)"  # fmt: skip
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        with (
            pytest.raises(ValueError, match=f"is being written by process {holder.pid} on {socket.gethostname()}"),
            lock.held(tmp_path),
        ):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with lock.held(tmp_path):
        assert json.loads((tmp_path / lock.LOCK).read_text())["pid"] == os.getpid()
    assert not (tmp_path / lock.LOCK).exists()


def test_where_there_are_no_locks_the_holder_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import fcntl

    def unsupported(*_: Any) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", unsupported)
    other = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    here = {"host": socket.gethostname(), "since": "today"}

    def refused(**said: Any) -> bool:
        (tmp_path / lock.LOCK).write_text(json.dumps({**here, **said}))
        try:
            with lock.held(tmp_path):
                return False
        except ValueError:
            return True

    try:
        living = lock.started_at(other.pid)
        assert refused(pid=other.pid, start=living)
        assert not refused(pid=other.pid, start="1")  # the number is another process's now
    finally:
        other.communicate(b"\n")
    assert not refused(pid=other.pid, start=living)
    for odd in (0, -1, 2**70, "x", None, True):
        assert not refused(pid=odd, start="")
    (tmp_path / lock.LOCK).write_bytes(b"\xff{[")
    with lock.held(tmp_path):
        pass


def test_a_holder_on_another_machine_lives_while_it_touches_the_lock(tmp_path: Path):
    file = tmp_path / lock.LOCK
    file.write_text(json.dumps({"pid": 7, "host": "elsewhere", "start": "1", "since": "noon"}))
    with (
        pytest.raises(ValueError, match=r"by process 7 on elsewhere since noon; .*if it is dead, remove .*run\.lock"),
        lock.held(tmp_path),
    ):
        pass
    long_ago = time.time() - 1000
    os.utime(file, (long_ago, long_ago))
    with lock.held(tmp_path):
        os.utime(file, (long_ago, long_ago))
        lock.touch(tmp_path)
        assert time.time() - file.stat().st_mtime < 10


def test_the_lock_is_written_through_no_link(tmp_path: Path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / lock.LOCK).symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="nothing can be written to"), lock.held(tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


# -- another run


def test_another_run_is_refused_with_what_differs(tmp_path: Path):
    quick(out=tmp_path)
    before = content(tmp_path)
    for options, said in (
        ({"recipe": {"batch": 16, "lr": 2e-3}}, r"recipe.lr: 0.001 -> 0.002\); allow it with --allow-change lr"),
        (
            {"recipe": {"batch": 16, "betas": (0.9, 0.98)}},
            r"recipe.betas\[1\]: 0.99 -> 0.98\); allow it with --allow-change betas",
        ),
        ({"budget": 320}, r"recipe.images: 160 -> 320"),
        ({"seed": 4}, r"recipe.seed: 0 -> 4"),
        ({"model": Sound(Config(8), SPEC, SCHEMA)}, r"model.config.width: 16 -> 8\)"),
        ({"recipe": {"batch": 8, "lr": 2e-3}, "allow_change": ["lr"]}, r"\(recipe.batch: 16 -> 8\)"),
    ):
        with pytest.raises(ValueError, match=f"holds another run .*{said}.*choose another folder"):
            quick(out=tmp_path, **options)
    with pytest.raises(
        ValueError, match=r"holds another run \(data: [0-9a-f]+ -> [0-9a-f]+\); allow it with --allow-change data"
    ):
        fit(sound(), pictures(41), given="label", budget=160, recipe={"batch": 16}, precision="fp32", out=tmp_path)
    assert content(tmp_path) == before


def test_a_change_that_is_allowed_is_made_and_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "_SAVE_S", 0.0)
    quick(out=tmp_path, budget=80, recipe={"batch": 16, "decay": "constant", "warmup": 0.0})
    changed = {"recipe": {"batch": 16, "lr": 3e-3, "decay": "constant", "warmup": 0.0}, "allow_change": ["lr", "images"]}
    done = quick(out=tmp_path, **changed)
    assert int(done.images_seen) == 160
    about = saved(tmp_path)[1]
    assert about["identity"]["recipe"]["lr"] == 3e-3
    assert about["changes"] == [{"images": 80, "changed": ["recipe.images: 80 -> 160", "recipe.lr: 0.001 -> 0.003"]}]
    by_hand = started(None, pictures().train, images=80, decay="constant", warmup=0.0)
    while by_hand.images < 160:
        if by_hand.images == 80:
            by_hand.optimizers[0].recipe = dataclasses.replace(by_hand.recipe, lr=3e-3)
        by_hand.step()
    assert same(saved(tmp_path)[0], by_hand.state())
    again = quick(out=tmp_path, recipe=changed["recipe"])  # it is that run now
    assert same(done.state_dict(), again.state_dict())


def test_changed_data_that_is_allowed_is_read_by_the_recorded_names(tmp_path: Path):
    """The new pictures know the categories in another order and miss one: the model keeps its own."""
    quick(out=tmp_path, budget=80)
    some = stripes(50)
    names = SCHEMA.category()[1].names
    own = dataclasses.replace(SCHEMA.category()[1], names=tuple(reversed(names)), frequencies=())
    schema = dataclasses.replace(SCHEMA, columns={"label": own})
    turned = dataclasses.replace(
        some, schema=schema, given=dataclasses.replace(some.given, columns={"label": len(names) - 1 - some.labels()})
    )
    options: Any = {"given": "label", "budget": 160, "recipe": {"batch": 16}, "precision": "fp32", "out": tmp_path}
    with pytest.raises(ValueError, match="holds another run"):
        fit(sound(), Data("turned", turned, turned, fingerprint(turned)), **options)
    done = fit(sound(), Data("turned", turned, turned, fingerprint(turned)), **options, allow_change=["data", "images"])
    assert done.schema["label"] == SCHEMA["label"]
    by_hand = started(None, pictures().train, images=80)
    for _ in range(5):
        by_hand.step()
    on_new = started(None, some, images=160)
    on_new.restore(by_hand.state())
    on_new.images, on_new.rounds = 80, 5
    while on_new.images < 160:
        on_new.step()
    assert same(saved(tmp_path)[0], on_new.state())


@pytest.mark.parametrize("name", ["lrr", "model", ""])
def test_only_recipe_and_data_can_be_allowed_to_change(name: str):
    with pytest.raises(ValueError, match=rf"no change of '{name}' can be allowed; "):
        quick(allow_change=[name])


def test_the_command_line_exits_with_2_and_the_difference(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from nonesuch import cli

    asked = ["fit", "vae", "digits", "--preset", "tiny", "--out", str(tmp_path / "x"), "--set", "recipe.batch=16", "--budget"]
    assert cli.main([*asked, "32"]) == 0
    assert cli.main([*asked, "48"]) == 2
    assert "holds another run (recipe.images: 32 -> 48); allow it with --allow-change images" in capsys.readouterr().err


def test_differences_are_listed_leaf_by_leaf():
    old, new = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": 0}, {"a": 1, "b": {"c": (1, 3), "d": 4}}
    assert identity.differences(old, new) == ["b.c[1]: 2 -> 3", "b.d: None -> 4", "e: 0 -> None"]
    assert identity.differences(new, new) == []


# -- random kills


def kills(folder: Path, trials: int, seed: int) -> dict[str, Any]:
    script = Path(__file__).with_name("kill_trials.py")
    env = {**os.environ, "OMP_NUM_THREADS": "1", "JAXTYPING_DISABLE": "1", "PYTHONPATH": str(script.parents[1])}
    command = [sys.executable, str(script), str(folder), str(trials), str(seed)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("trials", [60, pytest.param(200, marks=pytest.mark.slow)])
def test_no_kill_while_saving_leaves_an_unusable_step(trials: int, tmp_path: Path):
    found = kills(tmp_path, trials, trials)
    assert found["unusable"] == []
    assert found["trials"] == trials
    assert found["killed while writing"] >= trials // 10  # the trials hit what they aim at
    assert len([n for n in found["left"] if n.isdigit()]) <= checkpoint.KEEP + 2  # nothing piles up
