"""What the pages of docs/ and the README tell people to type exists, in a form that is taken; and, slowly, does what it says.

Pages are run as they stand, on a folder of small pictures of two classes, with smaller budgets and counts than they name.
"""

import re
import runpy
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import nonesuch as ns
from nonesuch import catalog, cli
from nonesuch.cli import app
from nonesuch.core import given
from nonesuch.core.seeds import Seeds

ROOT = Path(__file__).parent.parent
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])
COMMAND = typer.main.get_command(app)


def typed(text: str) -> list[list[str]]:
    """The arguments of every nonesuch command in the blocks of a page."""
    found = []
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.S | re.M):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line.partition(" #")[0])
            if (start := next((i for i, w in enumerate(words) if w.rpartition("/")[2] == "nonesuch"), None)) is not None:
                found.append([w for w in words[start + 1 :] if w != "..."])
    return found


def refused(words: list[str]) -> str:
    """Why the command line does not take these words; "" if it does. Nothing is run."""
    if not words or words[0].startswith("-"):
        return ""
    known = COMMAND.commands.get(words[0])  # type: ignore[attr-defined]
    if known is None:
        return f"there is no command {words[0]}"
    try:
        known.make_context(words[0], list(words[1:]))
    except Exception as error:
        return str(error) or type(error).__name__
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_says_to_type_is_taken(page: Path):
    assert [(words, said) for words in typed(page.read_text()) if (said := refused(words))] == []


def test_a_page_that_says_other_things_is_caught():
    text = "```sh\n.venv/bin/nonesuch sampel runs/x\nnonesuch sample runs/x --numbre 3  # three\nnonesuch list\n```"
    assert [bool(refused(words)) for words in typed(text)] == [True, True, False]


# -- and does it


SMALLER = {"--budget": "96", "--n": "24", "-n": "4", "--size": "16"}
RUNS = {  # pages of one job each, and what they take for granted
    "audit.md": ("digits", "photos", "made"),
    "datasets.md": (),
    "explore.md": (),
    "privacy.md": (),
    "provenance.md": (),
    "restore.md": (),
    "style.md": (),
    "translation.md": (),
}


def pictures(folder: Path, n: int, mode: str = "RGB", side: int = 16) -> None:
    """Stripes and spots in colours of their own."""
    folder.mkdir(parents=True)
    x = Seeds.of(sum(map(ord, str(folder.name))), n).uniform("x", side // 4, side // 4, 3)
    x = (x.repeat_interleave(4, 1).repeat_interleave(4, 2) * 255).to(torch.uint8).numpy()
    for i in range(n):
        Image.fromarray(x[i]).convert(mode).save(folder / f"{i}.png")


def place(folder: Path) -> None:
    """The pictures that the pages speak of."""
    for kind in ("cat", "dog"):
        pictures(folder / "photos" / kind, 60)
        pictures(folder / "scans" / kind, 200, "L")
    for kind in ("horse", "zebra"):
        pictures(folder / "animals" / kind, 40)
    for name in ("made", "horses"):
        pictures(folder / name, 2)
    for name, mode, side in (("holidays", "RGB", 20), ("album", "L", 20), ("small", "L", 4), ("photo", "RGB", 32)):
        pictures(folder / name, 2, mode, side)
    pictures(folder / "painting", 1, "RGB", 32)
    pictures(folder / "torn", 1, "L", 8)
    for name in ("torn", "photo", "painting"):
        (folder / name / "0.png").rename(folder / f"{name}.png")
    Image.new("L", (8, 8), 0).save(folder / "holes.png")
    with Image.open(folder / "holes.png") as holes:
        holes.paste(255, (0, 4, 8, 8))
        holes.save(folder / "holes.png")


def smaller(words: list[str]) -> list[str]:
    """The same with the values of SMALLER, and without a size that would make of small pictures larger ones."""
    return [SMALLER.get(before, word) for before, word in zip(["", *words], words, strict=False)]


def known(page: str, folder: Path) -> dict[str, Any]:
    """What a page's Python takes from the reader."""
    if page == "translation.md":
        spec = ns.data.open("horses/").spec
        model = catalog.build("gan/pix2pix", spec, ns.Schema({"spoiled": given.Image(spec), "strength": given.Number()}), "tiny")
        model.images_seen.fill_(1)
        return {"model": model, "y": ns.data.open("horses/").train.x}
    if page == "style.md":
        x = Seeds.of(0, 2).uniform("x", 3, 32, 32) * 2 - 1
        return {"content": x[:1], "reference": x[1:]}
    if page in ("restore.md", "datasets.md", "privacy.md"):
        return {"ns": ns}
    run = "runs/vae" if page == "explore.md" else "runs/digits"
    model = ns.load(folder / run)
    told = model.schema.given(1, {"label": 3} if model.schema else None)
    x = model.sample(1, told)
    return {"model": model, "data": ns.data.open("digits"), "folder": folder / "out", "given": told, "x": x}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNS)
def test_a_page_does_what_it_says(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    place(tmp_path)
    for name in RUNS[page]:
        if name != "made":
            data, out = ("digits" if name == "digits" else "photos/"), f"runs/{name}"
            assert cli.main(["fit", "vae", data, "--given", "label", "--budget", "96", "--out", out]) == 0
    text = (ROOT / "docs" / page).read_text()
    others = {"ray", "--sign", "more/manifest.json"}  # what a cluster and a signature do is for tests of their own
    for words in (words for words in typed(text) if not others & set(words)):
        assert cli.main(smaller(words)) == 0, words
    for block in re.findall(r"^```python\n(.*?)^```", text, re.S | re.M):
        code = re.sub(r"\bn=\d+", "n=24", block).replace("2Mi", SMALLER["--budget"])
        (tmp_path / "page.py").write_text(code)
        runpy.run_path(str(tmp_path / "page.py"), known(page, tmp_path))
