"""Rows of a comparison in processes of their own: the same rows, and an orderly end."""

import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from nonesuch.evaluate import _together, features
from nonesuch.evaluate.compare import Progress, compare
from nonesuch.train.stopping import Terminated, stops

Tell = Any


def square(name: str, tell: Tell) -> int:
    if name == "3":
        os._exit(3)  # as the system ends a process that wants too much memory
    tell("train", text=name, threads=torch.get_num_threads())
    return int(name) ** 2


def waiting(folder: Path, name: str, tell: Tell) -> None:
    with stops() as stopped:
        tell("train")
        while not stopped()[0]:
            time.sleep(0.01)
    (folder / name).touch()
    raise Terminated


def test_every_row_is_made_once_and_a_dead_process_costs_its_row_alone(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_together, "cores", lambda: 4)
    found = list(_together.made(["1", "2", "3", "4"], square, 2))
    assert {name: value for name, value, ended in found if ended} == {"1": 1, "2": 4, "3": None, "4": 16}
    told = {name: value for name, value, ended in found if not ended}
    assert told == {n: (("train",), {"text": n, "threads": 2}) for n in "124"}  # two of four cores each


def test_ctrl_c_waits_until_every_process_has_saved(tmp_path: Path):
    names, going = ["a", "b", "never"], set()
    made = _together.made(names, partial(waiting, tmp_path), 2)
    while len(going) < 2:
        going.add(next(made)[0])
    with pytest.raises(KeyboardInterrupt):
        made.throw(KeyboardInterrupt)
    assert sorted(f.name for f in tmp_path.iterdir()) == ["a", "b"]


def test_one_network_a_core_and_all_of_a_graphics_processor_for_one(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_together, "cores", lambda: 4)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert [_together.at_once(n) for n in (0, 1, 3, 6)] == [1, 1, 3, 4]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _together.at_once(6) == 1


def test_rows_made_at_once_are_those_made_one_after_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(features, "IMAGES_SEEN", 512)
    monkeypatch.setattr(_together, "cores", lambda: 2)  # a thread a process, as here
    asked = {"budget": 512, "families": ["vae", "gan"], "given": "label", "limit": 100, "sample_seeds": 1, "baselines": False}
    told: list[Progress] = []
    apart = compare("digits", **asked, at_once=2, on_event=told.append)
    alone = compare("digits", **asked)
    for a, b in zip(apart.rows, alone.rows, strict=True):
        assert (a.name, a.failed, a.command, a.verdict) == (b.name, "", b.command, b.verdict)
        assert a.scores.keys() == b.scores.keys()
        assert all(a.scores[k].value == pytest.approx(b.scores[k].value, rel=1e-3, abs=0.02) for k in a.scores)
        assert (a.grid - b.grid).nan_to_num().abs().mean() < 1e-3
    assert {p.place for p in told if p.stage == "done"} == {1, 2}
    assert any(p.event and p.event.kind == "done" for p in told)
    assert apart.protocol["at_once"] == 2


def test_more_at_once_needs_data_that_can_be_opened_again():
    with pytest.raises(ValueError, match="a name or a folder"):
        compare(torch.zeros(4, 1, 2, 2), at_once=2)
