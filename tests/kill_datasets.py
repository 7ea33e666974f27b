"""SIGKILL while a data set is made: `python tests/kill_datasets.py FOLDER LAYOUT TRIALS SEED` prints what was found, as JSON.

One process imports and warms up; each trial forks from it. The child takes up the job in FOLDER/killed until it is killed, at a
random moment; the last one is left alone. The parent then compares the folder with that of an undisturbed job, byte for byte.
"""

import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from broken import Config, Sound

from nonesuch.applications._dataset_ledger import Ledger
from nonesuch.applications.dataset import synthesize
from nonesuch.testing import SCHEMA, SPEC

N, PER_SHARD = 200, 10


def model() -> Sound:
    made = Sound(Config(), SPEC, SCHEMA)
    made.images_seen.fill_(1)
    return made


def job(folder: Path, layout: str) -> None:
    synthesize(model(), folder, N, layout=layout, balance="label", per_shard=PER_SHARD, date="2026-01-01")


def trial(folder: Path, layout: str, after_s: float | None) -> bool:
    """One child, killed so long after its start, or not at all; whether it was killed."""
    pid = os.fork()
    if pid == 0:
        try:
            job(folder, layout)
            os._exit(0)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the child failed"
    return os.WIFSIGNALED(status)


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file, by its name below the folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(files)}


def main(root: Path, layout: str, trials: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)
    chance, killed, moments = random.Random(seed), root / "killed", []
    start = time.perf_counter()
    job(root / "whole", layout)  # warm, too
    whole_s, within = time.perf_counter() - start, 0
    for _ in range(trials):
        if not trial(killed, layout, chance.uniform(0.0, 0.25) * whole_s):
            break
        within += (killed / ".making").is_dir() or any(killed.glob(".*.tmp"))
        ledger = Ledger.read(killed) if killed.is_dir() else None
        moments.append(len(ledger.shards) if ledger else -1)
    trial(killed, layout, None)
    same = content(root / "whole") == content(killed)
    return {
        "same": same,
        "killed": len(moments),
        "done at each": moments,
        "killed while writing": within,
        "files": len(content(killed)),
    }


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
