"""What the pages of docs/ and the README tell people to type exists: every command, every option, in a form that is taken."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from nonesuch.cli import app

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
