"""Shards on a Ray cluster: each is a task that may be begun any number of times and on any machine, as it comes out the same.

The model goes to the cluster once, as the bytes of its file; a worker keeps the model it has built. Workers send shards' bytes
back and write nothing: the driver alone writes files and the manifest, so that machines need no common disk, and a task that a
lost machine may still be running does no harm. Ray sets OMP_NUM_THREADS for each worker; the recorded number of threads is set
again within the task. A task whose machine is lost is begun again, by Ray and then by us; what its own code raises is not.

When the head of a cluster is gone, Ray ends the driver without a word a minute later. So the driver knocks at the head's door
itself, and stops with a sentence before that.

References:
    Ray: A Distributed Framework for Emerging AI Applications (Moritz et al., 2017) arXiv:1712.05889
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Sequence
from typing import Any

from nonesuch.applications._dataset_job import Block, Job, Shard, make, received, sent
from nonesuch.core.model import Model

_TRIES = 5  # of a shard whose workers are lost, beside Ray's own
_RAY_TRIES = 3
_SILENCE_S = 20.0  # Ray itself gives up after 60
_WAIT_S = 1.0
_ROOM = 16  # tasks at a time, at least; machines that join later find work among them
_models: dict[str, Model] = {}  # of a worker, by sha256


def shards_from_cluster(
    job: Job, model: Model, todo: Sequence[int], block: Block | None = None
) -> Iterator[tuple[int, int | Shard]]:
    """Shards in the order in which they are done. Raises ConnectionError when the cluster is lost, ValueError without Ray."""
    if not todo:
        return
    ray = library()
    mine = not ray.is_initialized()
    lost = False
    try:
        if mine:
            ray.init(logging_level="ERROR", log_to_driver=False, include_dashboard=False)
        yield from _gathered(ray, job, model, todo, block)
    except (ConnectionError, ray.exceptions.RaySystemError) as error:
        lost = True
        raise _Lost(str(error)) from None
    finally:
        if mine and not lost:  # of a lost cluster there is nothing to take leave of, and Ray would wait for it
            ray.shutdown()


def library() -> Any:
    """Ray. Raises ValueError if it is not installed."""
    try:
        import ray
    except ImportError:
        raise ValueError("the engine ray needs Ray, which is not installed: pip install 'nonesuch[scale]'.") from None
    return ray


class _Lost(ConnectionError):
    def __init__(self, why: str) -> None:
        said = " ".join(why.split())[:200].rstrip(".")
        super().__init__(f"the Ray cluster is lost ({said}); finished shards are kept, and the same command goes on from there.")


def _gathered(ray: Any, job: Job, model: Model, todo: Sequence[int], block: Block | None) -> Iterator[tuple[int, int | Shard]]:
    on_gpu = model.device.type == "cuda"
    most = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=1)
    wanted = {"num_cpus": max(1, min(job.fixed["threads"], int(most))), **({"num_gpus": 1} if on_gpu else {})}
    task = ray.remote(max_retries=_RAY_TRIES, **wanted)(_shard)
    shared = ray.put(job), ray.put(sent(model)), type(model), model.device.type, ray.put(block)
    door = _Door(ray.get_runtime_context().gcs_address)
    waiting, running, tries = list(reversed(todo)), {}, dict.fromkeys(todo, 0)
    room = max(_ROOM, 2 * int(ray.cluster_resources().get("CPU", 1)))
    while waiting or running:
        while waiting and len(running) < room:
            k = waiting.pop()
            running[task.remote(k, *shared)] = k
        done, _ = ray.wait(list(running), num_returns=1, timeout=_WAIT_S)
        door.knock()
        if not done:
            yield -1, 0  # nothing yet: machines may be on their way
        for reference in done:
            k = running.pop(reference)
            try:
                shard = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise _own(error) from None
            except ray.exceptions.RayError as error:  # its worker, its machine or its result is lost
                tries[k] += 1
                if tries[k] >= _TRIES:
                    raise ConnectionError(f"shard {k} was lost {_TRIES} times: {str(error).splitlines()[0]}") from None
                waiting.append(k)
                continue
            yield k, shard.count
            yield k, shard


def _shard(k: int, job: Job, data: bytes, cls: type[Model], device: str, block: Block | None) -> Shard:
    """One shard, in a worker."""
    weights = job.asked["weights"]
    if weights not in _models:
        _models.clear()
        _models[weights] = received(data, cls, device)
    return make(job, _models[weights], k, block)


def _own(error: Any) -> Exception:
    """What a task raised: our own sentence, or that its machine cannot run it."""
    cause = error.cause
    if isinstance(cause, ValueError):
        return ValueError(str(cause))
    if isinstance(cause, ImportError):
        return ValueError(f"the cluster's machines lack a package that this one has ({cause}); install nonesuch there, too.")
    return error if cause is None else RuntimeError(f"a worker failed: {type(cause).__name__} {cause}")


class _Door:
    """The head of the cluster, and how long it has not answered."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self.where, self.answered = (host, int(port)), time.monotonic()

    def knock(self) -> None:
        """Raise ConnectionError if nobody has been there for so long."""
        try:
            with socket.create_connection(self.where, timeout=5):
                self.answered = time.monotonic()
        except OSError as error:
            if time.monotonic() - self.answered > _SILENCE_S:
                raise ConnectionError(f"its head does not answer: {os.strerror(error.errno) if error.errno else error}") from None
