"""A data set made on a Ray cluster: machines that go and come change no byte, and a cluster that is lost is one sentence."""

import json
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from kill_datasets import content

from nonesuch import catalog
from nonesuch.applications import _dataset_ray
from nonesuch.applications.dataset import Options, run, synthesize
from nonesuch.core.model import Model
from nonesuch.testing import SCHEMA, SPEC

OPTIONS = {"per_shard": 20, "balance": "label", "date": "2026-01-01"}


def drawn() -> Model:
    model = catalog.build("diffusion", SPEC, SCHEMA, "tiny")
    model.images_seen.fill_(1)
    return model


@pytest.fixture
def cluster() -> Iterator[Any]:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, of what it will change
        made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
        made.extra = made.add_node(num_cpus=1)
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        yield made
        ray.shutdown()
        made.shutdown()


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["folder", "webdataset"])
def test_a_machine_that_is_lost_and_one_that_joins_change_no_byte(cluster: Any, layout: str, tmp_path: Path):
    import ray

    threads = torch.get_num_threads()
    torch.set_num_threads(2)  # Ray gives its workers one: it must be set again, and is recorded
    try:
        synthesize(drawn(), tmp_path / "here", 600, layout=layout, **OPTIONS)
        steps, made = [100, 240], None
        for event in run(drawn(), tmp_path / "there", Options(600, layout=layout, engine="ray", **OPTIONS)):
            made = event.result
            if steps and event.done >= steps[0]:
                if steps.pop(0) == 100:
                    cluster.remove_node(cluster.extra, allow_graceful=False)
                else:
                    cluster.add_node(num_cpus=1)
    finally:
        torch.set_num_threads(threads)
    assert made.now == 30
    assert sorted(node["Alive"] for node in ray.nodes()) == [False, True, True]
    assert content(tmp_path / "there") == content(tmp_path / "here")
    assert json.loads((tmp_path / "there" / "manifest.json").read_bytes())["fixed"]["threads"] == 2


LOSE = """
import sys, warnings
warnings.simplefilter("ignore")
from pathlib import Path
from ray.cluster_utils import Cluster
import ray
from test_dataset_scale import OPTIONS, drawn
from nonesuch.applications.dataset import Options, run
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
try:
    for i, event in enumerate(run(drawn(), Path(sys.argv[1]), Options(600, engine="ray", **OPTIONS))):
        if i == 5:
            cluster.head_node.kill_all_processes(check_alive=False, allow_graceful=False)
except ConnectionError as error:
    print(error, flush=True)
"""


@pytest.mark.slow
def test_a_cluster_that_is_lost_is_told_and_the_job_goes_on_without_it(tmp_path: Path):
    pytest.importorskip("ray")
    program = [sys.executable, "-c", LOSE, str(tmp_path / "d")]
    found = subprocess.run(program, capture_output=True, text=True, cwd=Path(__file__).parent, timeout=150)
    assert found.stdout.startswith("the Ray cluster is lost (")
    assert "finished shards are kept, and the same command goes on" in found.stdout
    made = synthesize(drawn(), tmp_path / "d", 600, **OPTIONS)
    assert 0 < made.now < 30
    synthesize(drawn(), tmp_path / "whole", 600, **OPTIONS)
    assert content(tmp_path / "d") == content(tmp_path / "whole")


def test_a_head_that_does_not_answer_is_noticed_after_a_while(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        door = _dataset_ray._Door(f"127.0.0.1:{taken.getsockname()[1]}")
        monkeypatch.setattr(_dataset_ray, "_SILENCE_S", 0.0)
        door.knock()
    with pytest.raises(ConnectionError, match="does not answer"):
        door.knock()
    monkeypatch.setattr(_dataset_ray, "_SILENCE_S", 60.0)
    door.knock()
