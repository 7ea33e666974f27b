"""What test_ranks.py starts under torchrun.

of_ranks.py families FOLDER     tiny models of all families on two processes, held against one
of_ranks.py VICTIM FOLDER       a run through the command line, of which the process VICTIM dies
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.data import loader
from nonesuch.data.dataset import Images
from nonesuch.train import shard
from nonesuch.train.guard import NonFinite
from nonesuch.train.ranks import Ranks, join
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

STEPS, ALONE = 50, Ranks()
# Everything that couples the rows of a batch, and everything keyed, is on: free bits at work, lazy penalties, a share of the
# batch so small that one process has none of it, statistics taken from the data, dropout, moved pictures.
FAMILIES: dict[str, dict[str, Any]] = {
    "vae": {"free_bits": 0.005, "augment": 0.3, "dropout": 0.1},
    "gan": {"penalty_every": 2},
    "diffusion": {"dropout": 0.1, "augment": 0.3},
    "flow": {"dropout": 0.1},
    "autoregressive": {"dropout": 0.1, "augment": 0.3},
    "energy": {"dropout": 0.1, "share": 0.1, "chain": 3},
}
SPEC = ImageSpec(1, (6, 6), levels=9)
SCHEMA = Schema({"label": Category(("a", "b", "c"))})


def images(n: int = 40) -> Images:
    """Stripes of three kinds, and noise."""
    keys, label = Seeds.of(5, n), torch.arange(n) % 3
    wave = torch.sin(torch.arange(6.0) * (label[:, None] + 1) + 6 * keys.uniform("phase")[:, None])
    x = wave[:, None, None] * 0.7 + 0.2 * keys.normal("noise", 1, 6, 6).clamp(-1, 1)
    return Images(SPEC, SCHEMA, SPEC.to_levels(x).to(torch.uint8), Given(n, {"label": label}))


def started(family: str, ranks: Ranks, batch: int = 9, sharded: bool = False) -> Run:
    data = images()
    model = catalog.build(family, SPEC, SCHEMA, "tiny", **FAMILIES[family])
    for module in model.modules():
        if isinstance(module, type(model)):
            module.compute_dtype = torch.get_default_dtype()
    model.to(torch.get_default_dtype())
    model.prepare(data.x, data.given)
    return Run(model, data, Recipe(images=STEPS * batch, batch=batch, hide=0.2, lr=1e-3), ranks=ranks, shard=sharded)


def steps(run: Run, n: int) -> list[dict[str, Tensor]]:
    return [run.step() for _ in range(n)]


@contextmanager
def float64() -> Iterator[None]:
    """Whatever says float() for "at least float32" gets float64, and so does whoever draws."""
    plain, inside = Tensor.float, loader._inside
    draws = {name: getattr(Seeds, name) for name in ("uniform", "normal", "keep")}
    torch.set_default_dtype(torch.float64)
    Tensor.float = Tensor.double  # type: ignore[method-assign]  # the patch is the point, undone below
    loader._inside = lambda k, spec: spec.from_levels(k)
    for name, draw in draws.items():
        setattr(Seeds, name, lambda *asked, _draw=draw, **named: _draw(*asked, **named).double())
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        Tensor.float = plain  # type: ignore[method-assign]  # the original again
        loader._inside = inside
        for name, draw in draws.items():
            setattr(Seeds, name, draw)


def apart(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of two states, weights, averages, moments and all."""
    assert a.keys() == b.keys(), sorted(a.keys() ^ b.keys())
    return max(float((a[k].double() - b[k].double()).abs().max()) if a[k].numel() else 0.0 for k in a)


def copied(run: Run) -> tuple[dict[str, Tensor], int, int]:
    return {k: v.clone() for k, v in run.state().items()}, run.images, run.rounds


def resumed(saved: tuple[dict[str, Tensor], int, int], *about: Any) -> Run:
    run = started(*about)
    run.restore(saved[0])
    run.images, run.rounds = saved[1:]
    return run


def compare(family: str, ranks: Ranks, mine: bool) -> Iterator[tuple[str, float]]:
    """Two processes against one, and one resumed by two and the other way about; all in float64, over 50 steps."""
    together = started(family, ranks)
    logged = steps(together, STEPS // 2)
    half = copied(together)
    logged += steps(together, STEPS // 2)
    both = copied(together)[0]
    first = {k: v.clone() for k, v in both.items()}
    ranks.spread(first.values())
    yield "ranks alike", apart(both, first)
    alone = started(family, ALONE)
    steps(alone, STEPS // 2)
    half_alone = copied(alone)
    later = resumed(half_alone, family, ranks)
    steps(later, STEPS // 2)
    late = copied(later)[0]
    if not mine:
        return
    logged_alone = steps(alone, STEPS // 2)
    single = copied(alone)[0]
    yield "2 and 1", apart(both, single)
    moved = {k: v for k, v in copied(started(family, ALONE))[0].items() if k.startswith("raw/") and v.is_floating_point()}
    yield "moved", apart(moved, {k: single[k] for k in moved})
    yield "1 -> 2", apart(late, single)
    back = resumed(half, family, ALONE)
    steps(back, STEPS // 2)
    yield "2 -> 1", apart(copied(back)[0], single)
    yield "logged", apart(logged[-1], logged_alone[-1])
    yield "logged names", float([*logged[-1]] != [*logged_alone[-1]])


def gradients(family: str, ranks: Ranks) -> float:
    """In float32, the relative difference of the first step's gradients between two processes and one."""
    found = []
    for who in (ranks, ALONE):
        run = started(family, who, batch=16)
        batch = run.batch()
        found.append([torch.cat([g.flatten() for g in run._gradients(i, batch)[0]]) for i in range(len(run.objectives))])
    return max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))


def sharded(family: str, ranks: Ranks) -> Iterator[tuple[str, float]]:
    """Sharded weights against whole ones, and each resumed by the other."""
    shard._LEAST = 0
    plain, cut = started(family, ALONE), started(family, ranks, 9, True)
    for run in (plain, cut):
        steps(run, 3)
    half = copied(plain)
    other = copied(cut)
    yield "sharded", apart(other[0], half[0])
    kept = sum(p.to_local().numel() for p in cut.model.parameters()) / sum(p.numel() for p in plain.model.parameters())
    yield "share of the weights", kept
    on, off = resumed(half, family, ranks, 9, True), resumed(other, family, ALONE)
    for run in (plain, on, off):
        steps(run, 3)
    single = copied(plain)[0]
    yield "resumed sharded", apart(copied(on)[0], single)
    yield "resumed whole", apart(copied(off)[0], single)
    with on.averaged() as a, plain.averaged() as b:
        yield "averaged", apart(dict(a.state_dict()), dict(b.state_dict()))


def poisoned(ranks: Ranks) -> str:
    """What every process says when one of them alone meets what is not finite."""
    run = started("vae", ranks)
    whole = run.objectives[0]

    def terms(batch: Any) -> Terms:
        found = whole.terms(batch)
        return Terms({k: v * (float("nan") if k == "kl" and ranks.rank == 1 else 1) for k, v in found.loss.items()})

    run.objectives[0] = Objective(whole.name, whole.parameters, terms)
    before = copied(run)[0]
    try:
        run.step()
    except NonFinite as error:
        assert apart(before, copied(run)[0]) == 0
        return f"{error.objective} {error.term} {error.images}"
    return "nothing"


def unlike(ranks: Ranks) -> str:
    """What is said to processes of which one has been given another command."""
    run = started("vae", ranks)
    run.images = 9 * ranks.rank
    try:
        run.step()
    except ValueError as error:
        return str(error)
    return "nothing"


def families(folder: Path) -> None:
    """All comparisons; FOLDER/<rank>.json."""
    ranks, found, seconds = join("cpu"), {}, {}
    start = time.perf_counter()
    for i, family in enumerate(FAMILIES):
        found[f"{family}: gradients"] = gradients(family, ranks)
        with float64():
            found |= {f"{family}: {k}": v for k, v in compare(family, ranks, i % 2 == ranks.rank)}
            if not any(o.second_derivatives for o in catalog.build(family, SPEC, SCHEMA, "tiny").objectives()):
                found |= {f"{family}: {k}": v for k, v in sharded(family, ranks)}
        seconds[family], start = round(time.perf_counter() - start, 1), time.perf_counter()
    refusals = []
    for family in ("gan", "energy"):
        try:
            started(family, ranks, 9, True)
        except ValueError as error:
            refusals.append(str(error))
    about = {"found": found, "poisoned": poisoned(ranks), "refusals": refusals, "unlike": unlike(ranks), "seconds": seconds}
    (folder / f"{ranks.rank}.json").write_text(json.dumps(about, indent=1))
    ranks.finished()


def train(folder: Path, victim: int) -> None:
    """`nonesuch fit` into FOLDER/run, saving often; at the first attempt the process of number `victim` dies on the way.

    A later attempt trains a second time, undisturbed, into FOLDER/whole. Events that are due by the clock on the wall come at
    every round, so that two runs can be held against each other.
    """
    from nonesuch.cli import main
    from nonesuch.train import loop

    loop._LOG_S = -1.0
    first = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0"
    step = Run.step

    def dying(run: Run) -> dict[str, Tensor]:
        loop._SAVE_S = -1.0 if run.images % 512 == 256 else 1e9
        if first and run.images >= 1024 and run.ranks.rank == victim:
            (folder / "killed").write_text(repr(time.time()))
            os.kill(os.getpid(), signal.SIGKILL)
        return step(run)

    Run.step = dying  # type: ignore[method-assign]  # this process exists to die
    words = "fit vae digits --given label --preset tiny --budget 2304 --set recipe.batch=64 --precision fp32 --out".split()
    code = main([*words, str(folder / "run")])
    if not code and not first:
        code = main([*words, str(folder / "whole")])
    raise SystemExit(code)


if __name__ == "__main__":
    torch.set_num_threads(1)
    where = Path(sys.argv[2])
    families(where) if sys.argv[1] == "families" else train(where, int(sys.argv[1]))
