"""What the README says is true: its example runs, its tree and its taxonomy are those of the source."""

import re
from pathlib import Path

import pytest

from nonesuch import catalog

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(code.replace('"45s"', '"2k"'), "README", "exec"), names)
    assert tuple(names["x"].shape) == (16, 1, 8, 8)  # type: ignore[attr-defined]
    assert "bound" in capsys.readouterr().out
    assert (tmp_path / "runs/digits/model.safetensors").is_file()


def test_the_tree_is_true():
    block = README.split("## The tree")[1].split("```")[1]
    top = re.findall(r"^(\w+)/ ", block, re.M)
    inside = re.findall(r"^  ([\w.]+?)/? {2,}", block, re.M)
    assert all((ROOT / name).is_dir() for name in top)
    shipped = {p.name for p in (ROOT / "nonesuch").iterdir() if not p.name.startswith(("_", ".")) and p.name != "py.typed"}
    assert set(inside) == shipped


def test_the_taxonomy_is_the_catalogue():
    assert re.findall(r"\| `([a-z]+/\w+)` \|$", README, re.M) == list(catalog.names())


def test_links_lead_somewhere():
    targets = [t for t in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in t]
    assert targets
    assert [t for t in targets if not (ROOT / t).exists()] == []
