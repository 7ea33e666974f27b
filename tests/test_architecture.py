"""The plan of the house, read from its source: who imports whom, budgets of size, words and calls that stay out.

Every checker takes the folder of a package and returns the violations it finds, one sentence each; the same checkers are run
on nonesuch, which must have none, and on stub packages with one planted violation each, which must be found.
"""

import ast
import importlib
import re
import statistics
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError, install_import_hook

PACKAGE = Path(__file__).parents[1] / "nonesuch"

# room: the rooms it may import, beside itself. "family" stands for a folder of models/; catalog reaches models by path.
BELOW = {
    "core": set(),
    "nn": {"core"},
    "data": {"core"},
    "family": {"core", "nn"},
    "catalog": {"core"},
    "train": {"core", "nn", "data", "catalog"},
    "evaluate": {"core", "nn", "data", "catalog", "train"},
    "applications": {"core", "nn", "data", "catalog", "train", "evaluate"},
    "testing": {"core", "nn", "data", "catalog", "train", "evaluate"},
}
BELOW["serve"] = BELOW["applications"] | {"applications", "testing", "__init__"}
BELOW["cli"] = BELOW["serve"] | {"serve"}
BELOW["__init__"] = BELOW["cli"] | {"cli"}
BELOW["__main__"] = {"cli"}

BANNED_WORDS = {"manager", "runner", "helper", "util", "misc", "common", "factory", "wrapper"}  # and their plurals
BANNED_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve"}
BANNED_CALLS = {"eval", "exec", "hasattr"}
ARXIV = re.compile(r"(\d\d(0[1-9]|1[0-2])\.\d{4,5}|[a-z-]+(\.[A-Z]{2})?/\d\d(0[1-9]|1[0-2])\d{3})(v\d+)?")


def sources(package: Path) -> Iterator[tuple[Path, str, ast.Module]]:
    for file in sorted(package.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        yield file.relative_to(package), text, ast.parse(text)


def imported(file: Path, tree: ast.Module, package: Path) -> Iterator[tuple[int, list[str]]]:
    """The parts, below the package, of every module that `file` imports from it: ["models", "gan", "r3gan"]."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            here = [package.name, *file.parent.parts]
            base = here[: len(here) - node.level + 1] if node.level else []
            names = [[*base, *(node.module or "").split("."), alias.name] for alias in node.names]
            names = [[part for part in name if part] for name in names]
        else:
            continue
        yield from ((node.lineno, name[1:]) for name in names if name[0] == package.name)


def room(parts: tuple[str, ...] | list[str], package: Path) -> str:
    """The room a module stands in: "core", "models/gan", or "__init__" for a public name of the package itself."""
    if not parts or not ((package / parts[0]).is_dir() or (package / f"{parts[0]}.py").is_file()):
        return "__init__"
    return "/".join(parts[:2]) if parts[0] == "models" else parts[0]


def import_law(package: Path) -> list[str]:
    found = []
    for file, _, tree in sources(package):
        mine = room(file.with_suffix("").parts, package)
        allowed = {mine} | BELOW["family" if mine.startswith("models") else mine]
        for line, parts in imported(file, tree, package):
            if (theirs := room(parts, package)) not in allowed:
                found.append(f"{file}:{line}: {mine} may not import {theirs}")
    return found


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def size_budgets(package: Path) -> list[str]:
    found, lengths = [], []
    for file, text, tree in sources(package):
        budget = 150 if file.as_posix() in ("train/fit.py", "train/loop.py") else 400
        if (lines := len(text.splitlines())) > budget:
            found.append(f"{file}: {lines} lines, the budget is {budget}")
        lengths += [(node.end_lineno or node.lineno) - node.lineno + 1 for node in functions(tree)]
    if len(lengths) > 1 and (percentile := statistics.quantiles(lengths, n=20, method="inclusive")[-1]) > 40:
        found.append(f"95th percentile of the lengths of functions: {percentile:.0f} lines, the budget is 40")
    return found


def banned_words(package: Path) -> list[str]:
    found = []
    for file, _, tree in sources(package):
        named = [(1, part) for part in file.with_suffix("").parts]
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                named.append((node.lineno, node.name))
            elif isinstance(node, ast.arg):
                named.append((node.lineno, node.arg))
        for line, name in named:
            words = {word.lower().removesuffix("s") for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", name)}
            found += [f"{file}:{line}: {name!r} says {word!r}" for word in sorted(words & BANNED_WORDS)]
    return found


def banned_code(package: Path) -> list[str]:
    """No file may run code when it is read, and no capability is guessed from an attribute."""
    found = []
    for file, _, tree in sources(package):
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names) if any(alias.name.split(".")[0] in BANNED_MODULES for alias in names):
                    what = "imports a pickle"
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] in BANNED_MODULES:
                    what = "imports a pickle"
                case ast.ImportFrom(module="torch", names=names) if any(alias.name in {"load", "save"} for alias in names):
                    what = "imports torch.load or torch.save"
                case ast.Attribute(value=ast.Name("torch"), attr="load" | "save"):
                    what = f"torch.{node.attr}"
                case ast.Call(func=ast.Name(name)) if name in BANNED_CALLS:
                    what = f"{name}("
                case ast.keyword(arg="allow_pickle", value=value) if ast.unparse(value) != "False":
                    what = "allow_pickle"
                case _:
                    continue
            found.append(f"{file}:{node.lineno}: {what}")
    return found


def unsafe_loading(folder: Path) -> list[str]:
    """Nothing read from a file may run as code: no pickle under any name, no eval or exec, no loader that falls back to them."""
    found = []
    for file, _, tree in sources(folder):
        for node in ast.walk(tree):
            match node:
                case ast.Import(names=names) if any(alias.name.split(".")[0] in BANNED_MODULES for alias in names):
                    what = "imports a pickle"
                case ast.ImportFrom(module=str(module)) if module.split(".")[0] in BANNED_MODULES:
                    what = "imports a pickle"
                case ast.Call(func=ast.Name("eval" | "exec" | "__import__" as name)):
                    what = f"{name}("
                case ast.Call(func=ast.Attribute(value=ast.Name("builtins"), attr="eval" | "exec" as name)):
                    what = f"{name}("
                case ast.Call(func=ast.Attribute(value=ast.Name("torch"), attr="load"), keywords=given) if not _says(
                    given, "weights_only", "True"
                ):
                    what = "torch.load without weights_only=True"
                case ast.Call(func=ast.Attribute(attr="torch_load" | "read_pickle" | "unpickle")):
                    what = "unpickles"
                case ast.Call(func=ast.Attribute(value=ast.Name("yaml"), attr="load" | "load_all" | "unsafe_load" | "full_load")):
                    what = "yaml.load"
                case ast.Call(func=ast.Attribute(value=ast.Name("joblib"), attr="load")):
                    what = "joblib.load"
                case ast.keyword(arg="allow_pickle" | "trust_remote_code" as name, value=value) if ast.unparse(value) != "False":
                    what = name
                case _:
                    continue
            found.append(f"{file}:{node.lineno}: {what}")
    return found


def _says(given: list[ast.keyword], name: str, value: str) -> bool:
    return any(k.arg == name and ast.unparse(k.value) == value for k in given)


def references(package: Path) -> list[str]:
    """Every model names the paper it is: at least one arXiv id in the file, and none malformed."""
    found = []
    for file, text, _ in sources(package):
        if file.parts[0] != "models" or file.stem.startswith("_"):
            continue
        ids = re.findall(r"""arXiv:\s*([^\s,;)"']+)|arxiv\s*=\s*["']([^"']*)["']""", text)
        ids = [(a or b).rstrip(".") for a, b in ids]
        found += [f"{file}: malformed arXiv id {name!r}" for name in ids if not ARXIV.fullmatch(name)]
        found += [] if ids else [f"{file}: no arXiv id"]
    return found


Checker = Callable[[Path], list[str]]
CHECKERS: list[Checker] = [import_law, size_budgets, banned_words, banned_code, unsafe_loading, references]
CODE = ("nonesuch", "tests", "recipes", "benchmarks", "examples", "docs")
# Tests that plant what must be refused, and the one that runs the README's own words.
PLANTING = {"tests/test_checkpoint_attacks.py", "tests/test_formats.py", "tests/test_readme.py"}

SOUND = {
    "__init__.py": "from nonesuch.core.model import Model",
    "core/model.py": "import torch\nfrom . import image\nclass Model:\n    def train(self, on): self.eval()",
    "core/image.py": "'The grid of an image.'",
    "nn/unet.py": "from nonesuch.core import image",
    "models/gan/r3gan.py": "'arXiv:2501.05441v1, arXiv:cs/0501001'\nimport nonesuch.nn\nfrom nonesuch.models.gan import _part",
    "models/gan/_part.py": "from ...core.model import Model",
    "models/vae/hvae.py": "arxiv = '2007.03898'",
    "data/arrays.py": "import numpy as np\ndef read(f): return np.load(f, allow_pickle=False)",
    "train/fit.py": "from nonesuch.data.arrays import read\nfrom nonesuch import catalog",
    "catalog.py": "from nonesuch.core.model import Model",
    "cli.py": "import nonesuch as ns\nfrom nonesuch import train",
}

PLANTED = [
    (import_law, "models/gan/r3gan.py", "'arXiv:2501.05441'\nfrom nonesuch.models.vae import hvae"),
    (import_law, "models/gan/r3gan.py", "'arXiv:2501.05441'\nfrom ..vae.hvae import arxiv"),
    (import_law, "models/gan/r3gan.py", "'arXiv:2501.05441'\ndef f():\n    import nonesuch.train.fit"),
    (import_law, "core/image.py", "from nonesuch import catalog"),
    (import_law, "core/image.py", "from ..nn.unet import block"),
    (import_law, "core/image.py", "import nonesuch as ns"),
    (import_law, "nn/unet.py", "from nonesuch.data.arrays import read"),
    (import_law, "data/arrays.py", "from nonesuch import train"),
    (import_law, "train/fit.py", "from nonesuch.models.gan import r3gan"),
    (import_law, "train/fit.py", "from nonesuch import Model"),
    (import_law, "catalog.py", "from nonesuch.models import gan"),
    (size_budgets, "core/image.py", "\n" * 401),
    (size_budgets, "train/fit.py", "\n" * 151),
    (size_budgets, "core/image.py", "".join(f"def f{i}():\n" + "    x = 1\n" * 45 for i in range(8))),
    (banned_words, "data/utils.py", ""),
    (banned_words, "core/image.py", "class SampleManager: ..."),
    (banned_words, "core/image.py", "def common_size(): ..."),
    (banned_words, "core/image.py", "def f(model_factory): ..."),
    (banned_code, "data/arrays.py", "import pickle"),
    (banned_code, "data/arrays.py", "def f(np, p): return np.load(p, allow_pickle=True)"),
    (banned_code, "data/arrays.py", "import torch\nx = torch.load('x')"),
    (banned_code, "data/arrays.py", "from torch import load"),
    (banned_code, "data/arrays.py", "x = eval('1')"),
    (banned_code, "data/arrays.py", "exec('1')"),
    (banned_code, "data/arrays.py", "x = hasattr(1, 'imag')"),
    (unsafe_loading, "data/arrays.py", "from pickle import loads"),
    (unsafe_loading, "data/arrays.py", "import numpy as np\nx = np.load('x', allow_pickle=True)"),
    (unsafe_loading, "data/arrays.py", "import torch\nx = torch.load('x')"),
    (unsafe_loading, "data/arrays.py", "import torch\nx = torch.load('x', weights_only=False)"),
    (unsafe_loading, "data/arrays.py", "import yaml\nx = yaml.load('x')"),
    (unsafe_loading, "data/arrays.py", "import joblib\nx = joblib.load('x')"),
    (unsafe_loading, "data/arrays.py", "def f(pandas): return pandas.read_pickle('x')"),
    (unsafe_loading, "data/arrays.py", "x = __import__('os')"),
    (unsafe_loading, "data/arrays.py", "import builtins\nx = builtins.eval('1')"),
    (unsafe_loading, "data/arrays.py", "def f(auto): return auto.from_pretrained('x', trust_remote_code=True)"),
    (references, "models/vae/hvae.py", "'A paper without an address.'"),
    (references, "models/vae/hvae.py", "'Auto-Encoding (Kingma and Welling, 2013) arXiv:1312.611'"),
    (references, "models/vae/hvae.py", "arxiv = '1319.6114'"),
]


def build(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        file = folder / "nonesuch" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    return folder / "nonesuch"


@pytest.mark.parametrize("checker", CHECKERS)
def test_nonesuch_keeps_to_the_plan(checker: Checker):
    assert checker(PACKAGE) == []


def test_nothing_in_the_repository_runs_what_it_reads():
    root = PACKAGE.parent
    found = [f"{name}/{said}" for name in CODE if (root / name).is_dir() for said in unsafe_loading(root / name)]
    assert [said for said in found if said.split(":")[0] not in PLANTING] == []
    assert {said.split(":")[0] for said in found} <= PLANTING
    assert any("test_checkpoint_attacks" in said for said in found)  # the tests are looked at too


@pytest.mark.parametrize("checker", CHECKERS)
def test_a_sound_package_is_passed(checker: Checker, tmp_path: Path):
    assert checker(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize(("checker", "path", "source"), PLANTED)
def test_a_planted_violation_is_caught(checker: Checker, path: str, source: str, tmp_path: Path):
    found = checker(build(tmp_path, SOUND | {path: source}))
    assert len(found) == 1
    assert "functions" in found[0] or found[0].startswith(path)


def test_annotations_of_shapes_are_checked_in_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lines = ("from jaxtyping import Float", "from torch import Tensor", "def total(x: Float[Tensor, 'b c']): return x.sum(1)")
    (tmp_path / "annotated_stub.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(tmp_path)
    with install_import_hook("annotated_stub", "conftest.check_shapes"):
        total = importlib.import_module("annotated_stub").total
    assert total(torch.ones(2, 3)).tolist() == [3, 3]
    with pytest.raises(TypeCheckError, match="b c"):
        total(torch.ones(2))
