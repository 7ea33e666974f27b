"""`nonesuch demo` against itself before its speed was worked on: pictures trained and sampled a second, each family, and means.

    python -m benchmarks.demo                                   rates, about ten minutes on two free cores
    python -m benchmarks.demo --families flow vae --rounds 3
    python -m benchmarks.demo --cas 45 --families vae           and after how many seconds now has the CAS of 45 seconds before

Before is the code of commit 01d9d3d, in a checkout (`git worktree`) that lives in a temporary folder while this runs. Each side
does what its demo does on scikit-learn's 8 x 8 digits given the label, with its own presets: before, one process trained and
sampled one family at a time with all cores; now as many processes as there are cores do, each with its share. Rates are of the
machine: those of the processes of a turn added up, by turns of --window seconds, a family at a time, both sides already running.
A ratio is the median of the ratios of neighbouring turns. A third contestant, the code of before in as many processes, says
how much of it is the processes' doing. On a busy machine threads that wait for one another suffer most: measure on a quiet one.

With --cas S, before trains for S seconds; now trains for an eighth, a quarter, half and all of S (a process of n has n times as
long on its share of the cores, as in the demo), a seed a process, and the first mean CAS that is not below before's ends the
search. Each CAS is of 1,400 samples.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks._turns import Line, arguments
from nonesuch.catalog import FAMILIES

BEFORE, SPREAD = "01d9d3d", "before, a process a core"
ROOT = Path(__file__).parents[1]

# One contestant's process: "train S" and "sample S" answer images a second over about S seconds, "cas S SEED" trains and scores.
WORK = r"""
import json, sys, time
import torch
torch.set_num_threads(int(sys.argv[2]))
import nonesuch as ns
from nonesuch.core import artifact
from nonesuch.evaluate import utility
from nonesuch.train.device import place
from nonesuch.train.plan import choose_model, plan
from nonesuch.train.recipe import Budget, Recipe
data = ns.data.open("digits").select(["label"])
model, defaults = choose_model(sys.argv[1], data, None, {}, 0)
place(model)
recipe = artifact.read_dataclass(Recipe, {**defaults, "seed": 0, "images": 200_000}, "the recipe")
run = plan(model, data, recipe, Budget(images=200_000), "200000")
labels = data.train.labels()

def steps():
    for _ in range(4):
        run.step()
    return 4 * recipe.batch

def samples():
    model.sample(len(labels), data.train.given, seeds=0)
    return len(labels)

def cas(seconds, seed):
    got = ns.fit(sys.argv[1], data, given="label", budget=f"{seconds:g}s", seed=seed)
    x = got.sample(len(labels), data.train.given, seeds=seed)
    real = (data.train.x, labels), (data.test.x, data.test.labels())
    return float(utility([(x, labels)], *real)["CAS"].value), int(got.images_seen)

def rate(work, seconds):
    done, start = 0, time.perf_counter()
    while (took := time.perf_counter() - start) < seconds or not done:
        done += work()
    return done / took

for work in (steps, samples):
    work()
print(json.dumps("ready"), flush=True)
for line in sys.stdin:
    kind, *rest = line.split()
    numbers = [float(r) for r in rest]
    answer = cas(numbers[0], int(numbers[1])) if kind == "cas" else rate(steps if kind == "train" else samples, *numbers)
    print(json.dumps(answer), flush=True)
"""


class Side:
    """The processes of one contestant: asked at once, and waited for."""

    def __init__(self, code: Path, family: str, processes: int, threads: int) -> None:
        env = {**os.environ, "PYTHONPATH": str(code), "OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, "-c", WORK, family, str(threads)]
        pipe = subprocess.PIPE
        self.all = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=env, cwd=code) for _ in range(processes)]
        self.answers()

    def answers(self) -> list[object]:
        out = []
        for p in self.all:
            assert p.stdout is not None
            line = p.stdout.readline()
            if not line:
                raise SystemExit(f"a process of {' '.join(p.args[3:])} ended early.")  # type: ignore[index]
            out.append(json.loads(line))
        return out

    def ask(self, *what: str) -> list[object]:
        """One question a process, or the same for all; their answers."""
        for p, text in zip(self.all, what * len(self.all) if len(what) == 1 else what, strict=True):
            assert p.stdin is not None
            p.stdin.write(text + "\n")
            p.stdin.flush()
        return self.answers()

    def rate(self, kind: str, window_s: float) -> float:
        return sum(float(a) for a in self.ask(f"{kind} {window_s}"))  # type: ignore[arg-type]

    def end(self) -> None:
        for p in self.all:
            p.kill()
            p.wait()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """The code of that commit in a folder that is gone afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "before"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", str(place), commit], check=True, capture_output=True)
        try:
            yield place
        finally:
            subprocess.run([*git, "remove", "--force", str(place)], check=True, capture_output=True)


def measured(family: str, kind: str, sides: dict[str, Side], rounds: int, window_s: float) -> Line:
    """Rates by turns, ours first."""
    found = [{name: side.rate(kind, window_s) for name, side in sides.items()} for _ in range(rounds)]
    rates = {name: statistics.median(f[name] for f in found) for name in sides}
    times = {name: statistics.median(f["now"] / f[name] for f in found) for name in sides}
    return Line(f"{family}, {kind}", "images/s", rates, times)


def seconds_to_cas(family: str, now: Side, before: Side, seconds: float) -> str:
    """How soon now is as good as before."""
    seeds = range(len(now.all))
    target = statistics.mean(float(before.ask(f"cas {seconds} {seed}")[0][0]) for seed in seeds)  # type: ignore[index]
    for share in (1 / 8, 1 / 4, 1 / 2, 1):
        answers = now.ask(*(f"cas {seconds * share * len(seeds)} {seed}" for seed in seeds))
        reached = statistics.mean(float(a[0]) for a in answers)  # type: ignore[index]
        if reached >= target:
            return f"{family}: CAS {target:.4f} before after {seconds:g} s, {reached:.4f} now after {seconds * share:g} s"
    return f"{family}: CAS {target:.4f} before after {seconds:g} s, {reached:.4f} now after as long"


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--families", nargs="+", default=list(FAMILIES))
        parser.add_argument("--window", type=float, default=2.0, help="seconds of a turn")
        parser.add_argument("--cas", type=float, default=0.0, help="seconds before trains, to be matched; 0: rates alone")

    asked = arguments(__doc__, more=more)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))  # so that the checkout is removed then, too
    ratios: dict[str, list[float]] = {"train": [], "sample": []}
    try:
        with checkout(BEFORE) as old:
            for family in asked.families:
                with ExitStack() as stack:
                    shapes = {"now": (ROOT, asked.threads, 1), "before": (old, 1, asked.threads), SPREAD: (old, asked.threads, 1)}
                    sides = {name: Side(code, family, n, threads) for name, (code, n, threads) in shapes.items()}
                    for side in sides.values():
                        stack.callback(side.end)
                    for kind in ratios:
                        line = measured(family, kind, sides, asked.rounds, asked.window)
                        line.show(asked.json)
                        ratios[kind].append(line.ours_is_times["before"])
                    if asked.cas:
                        print(seconds_to_cas(family, sides["now"], sides["before"], asked.cas), flush=True)
    except subprocess.CalledProcessError as error:
        print(f"skipped: commit {BEFORE} cannot be checked out here: {error.stderr.decode().strip()}")
        return
    for kind, found in ratios.items():
        mean = statistics.geometric_mean(found)
        said = {"row": f"geometric mean, {kind}", "ours_is_times": mean}
        print(json.dumps(said) if asked.json else f"geometric mean, {kind}: ours is {mean:.2f} x", flush=True)


if __name__ == "__main__":
    main()
