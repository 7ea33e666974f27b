"""SIGKILL at random moments of saving: `python tests/kill_trials.py FOLDER TRIALS SEED` prints what was found, as JSON.

One process imports and warms up; each trial forks from it. The child takes up the run in FOLDER, as `fit` does (lock, sweep,
resume), then steps and saves in a loop until it is killed. The parent then reads what is there and compares it with its own,
undisturbed run, bit for bit at that reading of the clock. All trials are one run, so that each also resumes from the kill before.
"""

import json
import os
import random
import select
import signal
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import torch
from broken import Config, Sound

from nonesuch import catalog
from nonesuch.testing import SCHEMA, SPEC, stripes
from nonesuch.train import checkpoint, lock
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run


def fresh() -> Run:
    return Run(Sound(Config(), SPEC, SCHEMA), stripes(40), Recipe(images=1 << 30, batch=8), budget="1Gi")


def child(folder: Path, ready: int) -> None:
    run = fresh()
    with lock.held(folder):
        checkpoint.sweep(folder)
        if saved := checkpoint.find(folder):
            checkpoint.take_up(run, saved, folder)
        os.write(ready, b"x")
        while True:
            run.step()
            checkpoint.save(run, folder, best=run.rounds % 3 == 0)


def trial(folder: Path, after_s: float) -> None:
    """One child, killed so long after it is ready; or before, if it is not ready that soon."""
    gone, ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(gone)
            child(folder, ready)
        except BaseException as error:
            print(repr(error), file=sys.stderr, flush=True)
        os._exit(1)
    os.close(ready)
    select.select([gone], [], [], 10)
    os.close(gone)
    time.sleep(after_s)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"


def equals(run: Run, models: dict[int, torch.Tensor], folder: Path) -> str:
    """What is wrong with what the folder holds; the run is the undisturbed one, stepped up to there, and its averages so far."""
    saved = checkpoint.find(folder)
    if saved is None:
        return "nothing saved"
    if saved.remark:
        return saved.remark
    if saved.record.images < run.images:
        return f"went back to {saved.record.images}"
    while run.images < saved.record.images:
        run.step()
        models[run.images] = torch.cat([v.flatten() for v in run.averages.mean.values()])
    state = run.state()
    if state.keys() != saved.tensors.keys() or not all(torch.equal(v, saved.tensors[k]) for k, v in state.items()):
        return f"another state at {run.images}"
    model = catalog.load(folder, Sound)  # written after the step, so it may be older
    seen, weights = int(model.images_seen), torch.cat([p.detach().flatten() for p in model.parameters()])
    if seen > run.images or not torch.equal(weights, models[seen]):
        return f"a model of image {seen} that is not the averaged one"
    return ""


def main(folder: Path, trials: int, seed: int) -> dict[str, object]:
    torch.set_num_threads(1)
    chance, reference, models, wrong, within = random.Random(seed), fresh(), {}, [], 0
    fresh().step()  # warm
    start = fresh()
    start.step()
    checkpoint.save(start, folder)
    for _ in range(trials):
        trial(folder, chance.uniform(0, 0.12))
        within += any((folder / "steps").glob("tmp-*")) or any((folder / "steps").glob(".*.tmp")) or any(folder.glob(".*.tmp"))
        if said := equals(reference, models, folder):
            wrong.append(said)
    left = sorted(p.name for p in (folder / "steps").iterdir())
    return {"trials": trials, "unusable": wrong, "killed while writing": within, "images": reference.images, "left": left}


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))))
