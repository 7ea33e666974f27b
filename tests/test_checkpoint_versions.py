"""Checkpoints of earlier releases still load, resume and draw the same; those of later ones are refused in a sentence.

`tests/golden/<release>/` holds what a release wrote, never to be changed: `run/`, a run stopped half way;
`finished.safetensors`, the state it had at its end; `pixels/` and `samples.safetensors`, a model of the catalogue and what it
drew. A new release adds its own: `python tests/test_checkpoint_versions.py RELEASE`. Weights are compared to 1e-5, for other
machines round otherwise; what is drawn on a grid of levels is compared exactly. `golden/layout-1/` is the layout before `steps/`.
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))
from broken import Config, Sound

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.image import ImageSpec
from nonesuch.data.dataset import Data, Images, fingerprint
from nonesuch.testing import SCHEMA, stripes
from nonesuch.train import checkpoint
from nonesuch.train.fit import fit
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

GOLDEN = Path(__file__).with_name("golden")
RELEASES = sorted(p.name for p in GOLDEN.iterdir() if p.name[0].isdigit()) if GOLDEN.is_dir() else []
PLACES = [f"{name}/run" for name in RELEASES] + ["layout-1/run"]
SMALL = ImageSpec(1, (4, 4), levels=3)
RECIPE = {"batch": 4, "lr": 1e-2, "warmup": 0.25}
HALF, WHOLE = 16, 32


def pictures() -> Data:
    made = stripes(8)
    levels = made.levels[..., ::2, ::2] % 3
    train = Images(SMALL, SCHEMA, levels.contiguous(), made.given)
    return Data("stripes", train, train, fingerprint(train))


def run_of(images: int = WHOLE) -> Run:
    data = pictures()
    return Run(
        Sound(Config(2), SMALL, SCHEMA), data.train, Recipe(images=images, **RECIPE), data.fingerprint, str(images), data.name
    )  # type: ignore[arg-type]


def drawn(folder: Path) -> dict[str, torch.Tensor]:
    """The levels that the model in a folder draws, by its class."""
    model = catalog.load(folder, Sound)
    label = {"label": "rows"}
    return {folder.name: model.spec.to_levels(model.sample(8, label, seeds=7)).to(torch.uint8)}


def write(release: str) -> None:
    """What this release writes."""
    place = GOLDEN / release
    place.mkdir(parents=True)
    run = run_of()
    while run.images < HALF:
        run.step()
    checkpoint.save(run, place / "run", keep=1, best=True)
    while run.images < WHOLE:
        run.step()
    artifact.save_tensors(place / "finished.safetensors", run.state(), {})
    pixels: dict[str, Any] = {"width": 8, "depth": 1, "num_heads": 1, "ratio": 1, "reach": 1}
    model = fit(
        "image_transformer", pictures(), given="label", budget=8, preset="tiny", config=pixels, recipe=RECIPE, precision="fp32"
    )
    artifact.save(model, place / "pixels")
    artifact.save_tensors(place / "samples.safetensors", {**drawn(place / "run"), **drawn(place / "pixels")}, {})
    print(f"{sum(f.stat().st_size for f in place.rglob('*') if f.is_file()):,} bytes in {place}")


def taken_up(folder: Path) -> Run:
    run = run_of()
    checkpoint.load(run, folder)
    return run


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("which", ["run", "pixels"])
def test_a_model_of_an_earlier_release_draws_the_same(which: str, release: str):
    golden = artifact.load_tensors(GOLDEN / release / "samples.safetensors")[0]
    assert torch.equal(drawn(GOLDEN / release / which)[which], golden[which])


@pytest.mark.parametrize("place", PLACES)
def test_a_run_of_an_earlier_release_goes_on_as_it_would_have(place: str):
    run = taken_up(GOLDEN / place)
    assert run.images == HALF
    while run.images < WHOLE:
        run.step()
    release = place.split("/")[0] if place[0].isdigit() else RELEASES[0]
    golden = artifact.load_tensors(GOLDEN / release / "finished.safetensors")[0]
    state = run.state()
    assert state.keys() == golden.keys()
    for name, value in golden.items():
        assert torch.allclose(state[name].double(), value.double(), atol=1e-5), name


@pytest.mark.parametrize("place", PLACES)
def test_an_earlier_release_is_taken_up_by_fit(place: str, tmp_path: Path):
    """And what fit then writes is of this release; nothing of the other layout is left."""
    shutil.copytree(GOLDEN / place, tmp_path / "run")
    model = Sound(Config(2), SMALL, SCHEMA)
    done = fit(model, pictures(), given="label", budget=WHOLE, recipe=RECIPE, precision="fp32", out=tmp_path / "run")
    assert int(done.images_seen) == WHOLE
    found = checkpoint.find(tmp_path / "run")
    assert found
    assert (found.record.version, found.record.images) == (checkpoint.VERSION, WHOLE)
    assert not (tmp_path / "run" / "resume.safetensors").exists()


def test_this_release_is_among_the_golden_ones():
    import nonesuch

    assert nonesuch.__version__ in RELEASES
    assert sum(f.stat().st_size for f in GOLDEN.rglob("*") if f.is_file()) < len(PLACES) * 64_000


@pytest.mark.parametrize("place", PLACES)
def test_another_run_is_still_told_apart(place: str, tmp_path: Path):
    shutil.copytree(GOLDEN / place, tmp_path / "run")
    run = run_of()
    run.recipe = Recipe(images=WHOLE, **{**RECIPE, "lr": 2e-2})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"holds another run \(recipe.lr: 0.01 -> 0.02\); allow it with --allow-change lr"):
        checkpoint.load(run, tmp_path / "run")


@pytest.mark.parametrize(
    ("version", "said"),
    [
        (checkpoint.VERSION + 1, r"has version 3 of the layout, and this release reads up to 2: upgrade nonesuch\."),
        (10**9, "upgrade nonesuch"),
        (0, "is no record of a run"),
        (-1, "is no record of a run"),
        ("2", "is no record of a run"),
        (True, "is no record of a run"),
        (None, "is no record of a run"),
    ],
)
def test_a_version_that_cannot_be_read_is_refused(version: Any, said: str, tmp_path: Path):
    """A newer step is never passed over for an older one, which would lose work in silence."""
    shutil.copytree(GOLDEN / RELEASES[-1] / "run", tmp_path / "run")
    step = tmp_path / "run" / "steps" / f"{HALF:012d}"
    if isinstance(version, int) and version > checkpoint.VERSION:
        shutil.copytree(step, step.with_name(f"{HALF - 4:012d}"))
    record = json.loads((step / "state.json").read_text())
    (step / "state.json").write_text(json.dumps({**record, "version": version}))
    with pytest.raises(ValueError, match=said):
        taken_up(tmp_path / "run")


def test_a_run_of_another_model_is_no_run_of_the_first_layout(tmp_path: Path):
    """A file of the first layout that is none of ours, or only part of one."""
    for about in ({}, {"images": 4}, {"model": {}, "recipe": {}, "data": "", "images": -4, "rounds": 1, "budget": ""}):
        artifact.save_tensors(tmp_path / "resume.safetensors", {}, about)
        with pytest.raises(ValueError, match=r"resume\.safetensors"):
            taken_up(tmp_path)


if __name__ == "__main__":
    write(sys.argv[1])
