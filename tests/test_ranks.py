"""Several processes against one: the same batches, gradients, weights and averages; and what happens when one dies."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Config, Sound
from of_ranks import FAMILIES
from torch import nn

from nonesuch.core.given import Given
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.testing import SCHEMA, SPEC, stripes
from nonesuch.train.optim import Adam
from nonesuch.train.ranks import Ranks, join
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

HERE = Path(__file__).parent


def torchrun(*words: str, restarts: int = 0, processes: int = 2) -> subprocess.Popen[str]:
    """Start of_ranks.py in two processes; one thread each."""
    asked = [f"--nproc-per-node={processes}", f"--max-restarts={restarts}", "--monitor-interval=0.1"]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"}
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", *asked, str(HERE / "of_ranks.py"), *words],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def finished(process: subprocess.Popen[str], seconds: float = 240) -> tuple[int, str]:
    """Its exit code and what it said; ended, with all its own, if it takes too long."""
    try:
        said = process.communicate(timeout=seconds)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)
        said = process.communicate(timeout=60)[0]
        pytest.fail(f"not finished after {seconds} s:\n{said[-3000:]}")
    return process.returncode, said


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    code, said = finished(torchrun("families", str(folder)))
    assert code == 0, said[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def all_of(compared: list[dict[str, Any]], family: str) -> dict[str, float]:
    both = [{k.partition(": ")[2]: v for k, v in c["found"].items() if k.startswith(f"{family}: ")} for c in compared]
    return {k: max(b.get(k, 0.0) for b in both) for k in {**both[0], **both[1]}}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_learn_what_one_does(family: str, compared: list[dict[str, Any]]):
    found = all_of(compared, family)
    assert found["moved"] > 1e-2  # it did learn
    assert found["ranks alike"] == 0
    for name in ("2 and 1", "1 -> 2", "2 -> 1", "logged"):
        assert found[name] < 1e-9, name
    assert found["logged names"] == 0


@pytest.mark.parametrize("family", FAMILIES)
def test_the_first_gradient_of_two_processes_is_that_of_one(family: str, compared: list[dict[str, Any]]):
    assert all_of(compared, family)["gradients"] < 1e-5


@pytest.mark.parametrize("family", ["vae", "diffusion", "flow", "autoregressive"])
def test_sharded_weights_learn_the_same_and_resume_either_way(family: str, compared: list[dict[str, Any]]):
    found = all_of(compared, family)
    assert 0.45 < found["share of the weights"] < 0.55
    for name in ("sharded", "resumed sharded", "resumed whole", "averaged"):
        assert found[name] < 1e-9, name


def test_sharding_refuses_second_derivatives_in_a_sentence(compared: list[dict[str, Any]]):
    for one in compared:
        assert [s.split()[2] for s in one["refusals"]] == ["'critic'", "'energy'"]
        assert all(s.endswith("train it without --shard.") for s in one["refusals"])


def test_all_processes_stop_at_what_is_not_finite_in_one(compared: list[dict[str, Any]]):
    assert [one["poisoned"] for one in compared] == ["model kl 0"] * 2


def test_processes_that_do_not_begin_alike_are_told_so(compared: list[dict[str, Any]]):
    assert all("do not begin alike" in one["unlike"] for one in compared)


# -- death


def metrics(folder: Path) -> dict[int, dict[str, float]]:
    """The terms logged at each reading of the clock; a later line stands for one that was logged again."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = ("reconstruction", "kl", "model_gradient")
    return {one["images"]: {k: one[k] for k in names} for one in lines if one["kind"] == "progress"}


def test_a_killed_process_ends_the_others_and_a_restart_changes_nothing(tmp_path: Path):
    code, said = finished(torchrun("0", str(tmp_path), restarts=1))
    assert code == 0, said[-3000:]
    assert (tmp_path / "killed").exists()
    curve, whole = metrics(tmp_path / "run"), metrics(tmp_path / "whole")
    assert len(whole) == 36
    assert curve == whole
    for name in ("model.safetensors", "steps/000000002304/state.safetensors"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_killed_process_ends_the_run_within_ten_seconds(tmp_path: Path):
    code, said = finished(torchrun("1", str(tmp_path)))
    ended = time.time()
    assert code != 0
    assert ended - float((tmp_path / "killed").read_text()) < 10, said[-3000:]
    assert (tmp_path / "run" / "steps" / "LATEST").read_text().strip() == "000000000832"


# -- what the loop and the models are given


def test_the_rows_of_all_processes_are_the_batch():
    for world, size in ((1, 5), (2, 9), (3, 9), (4, 4)):
        rows = [list(Ranks(r, world).rows(size)) for r in range(world)]
        assert sorted(i for one in rows for i in one) == list(range(size))
        assert max(map(len, rows)) - min(map(len, rows)) <= 1
    with pytest.raises(ValueError, match=r"does not go round 3 processes; set recipe.batch to 3"):
        Ranks(0, 3).rows(2)


def test_batches_of_two_processes_are_those_of_one():
    model = Sound(Config(), SPEC, SCHEMA)
    recipe = Recipe(images=160, batch=9, hide=0.3)
    whole = Run(model, stripes(20), recipe)
    alone = Ranks()
    for images in (0, 9, 18, 99):
        whole.images = images
        one = whole.batch()
        for r in range(2):
            whole.batches = dataclasses.replace(whole.batches, rows=Ranks(r, 2).rows(9))
            part = whole.batch()
            rows = list(part.rows)
            assert rows == list(range(r, 9, 2))
            assert part.size == 9
            assert torch.equal(part.x, one.x[rows])
            assert torch.equal(part.given.columns["label"], one.given.columns["label"][rows])
            assert part.keys == one.keys[rows]
            assert part.first == one.first == one.keys[:1]
        whole.batches = dataclasses.replace(whole.batches, rows=alone.rows(9))


def test_means_of_parts_average_to_the_mean_of_the_whole():
    values = torch.linspace(-1, 3, 9, dtype=torch.float64).requires_grad_()
    parts = []
    for r in range(2):
        rows = Ranks(r, 2).rows(9)
        other = values.detach()[Ranks(1 - r, 2).rows(9)]
        x = values[list(rows)]
        keys = Seeds.of(0, len(x))
        batch = Batch(
            x.detach(), Given(len(x)), keys, rows=rows, size=9, sum=lambda own, other=other: own + other.mean() * (len(other) / 9)
        )
        n = batch.before(4)
        assert [i for i in rows if i < 4] == list(rows)[:n]
        loss = batch.mean(x[:n].square(), 4) + batch.whole(x.mean()).square()
        parts.append(len(x) / 9 * loss)
    expected = values[:4].square().mean() + values.mean().square()
    total = torch.stack(parts).sum()
    torch.testing.assert_close(total, expected)
    grads = [torch.autograd.grad(v, values, retain_graph=True)[0] for v in (total, expected)]
    torch.testing.assert_close(*grads)


def test_one_process_alone_is_nothing_special(monkeypatch: pytest.MonkeyPatch):
    assert join() == Ranks()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert join() == Ranks()
    value = torch.ones(3)
    alone = Ranks()
    assert alone.sum(value) is value
    assert alone.any(True, False) == (True, False)
    assert alone.from_first(7) == 7
    assert alone.first
    alone.alike(1)
    alone.barrier()


@pytest.mark.parametrize("shape", [(4, 3, 3, 3), (8, 2, 1, 1), (3, 5)])
def test_gradients_in_another_memory_layout_are_not_permuted(shape: tuple[int, ...]):
    """Fused Adam reads a channels-last gradient as if it lay in memory as the parameter does."""
    grad = torch.linspace(-1, 1, 8 * 27)[: torch.Size(shape).numel()].view(shape)
    moved = []
    for given in (grad, grad.movedim(1, -1).contiguous().movedim(-1, 1)):
        p = nn.Parameter(torch.zeros(shape))
        adam = Adam(Objective("model", [p], lambda batch: Terms({})), Recipe(images=100, batch=1, clip=0))
        for images in range(3):
            adam.step([given], images)
        moved.append(p.detach())
        torch.testing.assert_close(adam.inner.state[p]["exp_avg"], grad * (1 - 0.9**3))
    assert torch.equal(*moved)


@pytest.mark.slow
def test_a_process_that_falls_silent_ends_the_others(tmp_path: Path):
    """As a machine that goes without a word does: its connections stay open, and nothing comes. No torchrun to notice, either."""
    code = (
        "import sys, time, pathlib, torch; from nonesuch.train.ranks import join; r = join('cpu'); r.barrier();"
        "pathlib.Path(sys.argv[1], str(r.rank)).touch(); time.sleep(1); r.sum(torch.ones(1));"
        "r.rank or r.sum(torch.ones(1)); time.sleep(60)"
    )
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    base = {**os.environ, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "PYTHONPATH": str(HERE.parent)}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path)], env={**base, "RANK": str(r)}, stderr=subprocess.PIPE, text=True
        )
        for r in range(2)
    ]
    try:
        while not all((tmp_path / str(r)).exists() for r in range(2)):
            assert all(p.poll() is None for p in both)
            time.sleep(0.05)
        time.sleep(2)
        os.kill(both[1].pid, signal.SIGSTOP)
        stopped = time.time()
        said = both[0].communicate(timeout=30)[1]
        assert both[0].returncode == 1
        assert time.time() - stopped < 10
        assert "rank 1 has been silent" in said
    finally:
        for p in both:
            p.kill()
            p.communicate()
