"""The command line: what each command says, one sentence for every mistake, and exit codes."""

import json
import os
import signal
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nonesuch import catalog, cli
from nonesuch.evaluate import compare as comparing
from nonesuch.evaluate import features
from nonesuch.train import fit as training

TINY = ["--given", "label", "--budget", "1k", "--preset", "tiny"]
HOME = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120", "NO_COLOR": "1"}
MODELS = catalog.names()

Said = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "vae"
    assert cli.main(["fit", "vae", "digits", *TINY, "--out", str(folder)]) == 0
    return folder


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(features, "IMAGES_SEEN", 640)


def refused(capsys: Said, *arguments: object) -> str:
    """The one sentence that a command is refused with."""
    capsys.readouterr()
    assert cli.main([str(a) for a in arguments]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("nonesuch: ")
    assert "Traceback" not in said.err
    return lines[0]


def images(folder: Path, *sizes: tuple[int, int], name: str = "") -> Path:
    (folder / name).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i, size in enumerate(sizes):
        Image.fromarray(rng.integers(0, 256, size, dtype=np.uint8)).save(folder / name / f"{i}.png")
    return folder


# -- what each command says ---------------------------------------------------------------------------------------------


def test_list_draws_the_taxonomy(capsys: Said):
    assert cli.main(["list"]) == 0
    drawn = capsys.readouterr().out
    for name in MODELS:
        assert name in drawn
        assert str(catalog.get(name).card.year) in drawn
    assert drawn.index("autoregressive") < drawn.index("p(f(x))") < drawn.index("implicit")


def test_list_as_json_has_capabilities(capsys: Said):
    assert cli.main(["list", "--json"]) == 0
    families = {f["family"]: f for f in json.loads(capsys.readouterr().out)["families"]}
    assert tuple(families) == catalog.FAMILIES
    assert [m["name"] for f in families.values() for m in f["models"]] == list(MODELS)
    assert "Likelihood" in families["vae"]["models"][0]["capabilities"]
    assert "Likelihood" not in families["gan"]["models"][0]["capabilities"]


def test_fit_writes_a_checkpoint_and_says_where(capsys: Said, checkpoint: Path, tmp_path: Path):
    asked = ["fit", "vae/vdvae", "digits", *TINY, "--out", "x", "--set", "recipe.batch=64", "--set", "recipe.decay=linear"]
    assert cli.main([*asked, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["checkpoint"] == "x"
    assert said["images"] == 1024
    assert catalog.load(tmp_path / "x").schema.category()[0] == "label"
    assert {p.name for p in checkpoint.iterdir()} >= {"model.safetensors", "config.json", "README.md", "metrics.jsonl"}


def test_fit_without_out_takes_a_place_below_runs(capsys: Said, tmp_path: Path):
    assert cli.main(["fit", "vae", "digits", *TINY]) == 0
    assert "Next: nonesuch sample runs/vae-digits" in capsys.readouterr().out
    assert (tmp_path / "runs" / "vae-digits" / "model.safetensors").is_file()


def test_sample_draws_a_sheet_that_is_the_same_again(capsys: Said, checkpoint: Path, tmp_path: Path):
    for out in ("a.png", "deep/b.png"):
        assert cli.main(["sample", str(checkpoint), "-n", "9", "--given", "label=3", "--seed", "5", "--out", out]) == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "deep" / "b.png").read_bytes()
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (3 * 8 * 4 + 2 * 4, 3 * 8 * 4 + 2 * 4)
    assert "9 images" in capsys.readouterr().out


def test_sample_writes_a_folder_of_classes(capsys: Said, checkpoint: Path, tmp_path: Path):
    assert cli.main(["sample", str(checkpoint), "-n", "5", "--given", "label=0,7", "--out", "more", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 5
    assert [len(list((tmp_path / "more" / c).glob("*.png"))) for c in "07"] == [3, 2]
    assert cli.main(["sample", str(checkpoint), "-n", "3", "--given", "as trained", "--out", "any"]) == 0
    assert len(list((tmp_path / "any").rglob("*.png"))) == 3


def test_score_prints_scores_or_json(capsys: Said, checkpoint: Path):
    assert cli.main(["score", str(checkpoint), "digits", "--limit", "60", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["scores"]["bits"]["kind"] == "bound"
    assert found["scores"]["FD"]["n"] == 60
    assert cli.main(["score", str(checkpoint), "digits", "--limit", "60"]) == 0
    said = capsys.readouterr().out
    assert "FD[digits-cnn, n=60] = " in said
    assert "memorization: " in said


def test_demo_writes_the_report_and_a_table(capsys: Said, monkeypatch: Patch, tmp_path: Path):
    monkeypatch.setattr("nonesuch.evaluate.compare.compare", partial(comparing.compare, limit=100, sample_seeds=1))
    assert cli.main(["demo", "--budget", "1k", "--families", "gan", "--runs", "kept"]) == 0
    said = capsys.readouterr()
    assert "report.html" in said.out
    assert "kernel density" in said.out
    assert "1/4 gan/r3gan: " in said.err
    assert json.loads((tmp_path / "report.json").read_text())["rows"][0]["name"] == "gan/r3gan"
    assert (tmp_path / "kept" / "gan" / "r3gan" / "model.safetensors").is_file()


def test_compare_as_json_and_a_failed_family_is_an_answer_of_no(capsys: Said, monkeypatch: Patch, tmp_path: Path):
    def fails(*args: object, **kwargs: object):
        raise ValueError("the loss is not finite")

    monkeypatch.setattr("nonesuch.evaluate.compare.fit", fails)
    asked = ["compare", "digits", "--families", "gan,independent-categoricals", "--no-baselines", "--limit", "60"]
    assert cli.main([*asked, "--given", "none", "--out", "r.html", "--json"]) == 1
    said = capsys.readouterr()
    rows = json.loads(said.out)["rows"]
    assert rows[0]["failed"] == "the loss is not finite"
    assert rows[1]["scores"]["bits"]["name"] == "bits/dim"
    assert "gan/r3gan failed: the loss is not finite" in said.err
    assert (tmp_path / "r.html").is_file()


def test_cite_prints_bibtex(capsys: Said):
    assert cli.main(["cite", "diffusion", "gan/r3gan"]) == 0
    said = capsys.readouterr().out
    assert said.count("@") == 2
    assert "2206.00364" in said
    assert cli.main(["cite", "vae", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)) == ["vae/vdvae"]


@pytest.mark.parametrize("command", ["list", "fit", "sample", "score", "compare", "demo", "cite"])
def test_every_help_has_examples(capsys: Said, command: str):
    assert cli.main([command, "--help"]) == 0
    assert f"$ nonesuch {command}" in capsys.readouterr().out


def test_help_and_version(capsys: Said):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("0.")
    for arguments in (["--help"], []):
        assert cli.main(arguments) == 0
        assert "demo" in capsys.readouterr().out


# -- mistakes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("fit", "difusion", "digits"), "did you mean 'diffusion'"),
        (("fit", "vae", "digits", "--budget", "-5m"), "must be positive"),
        (("fit", "vae", "digits", "--budget", "soon"), "neither a time"),
        (("fit", "vae", "digits", "--given", "lable"), "did you mean 'label'"),
        (("fit", "vae", "digits", "--preset", "huge", "--budget", "1k"), "no preset 'huge'"),
        (("fit", "vae", "digits", "--set", "config.wdth=3", "--budget", "1k"), "no field 'wdth'"),
        (("fit", "vae", "digits", "--set", "width=3"), "begin with config. or recipe."),
        (("fit", "vae", "digits", "--set", "config.width"), "--set takes path=value"),
        (("fit", "vae", "digits", "--precision", "fp8", "--budget", "1k"), "precision must be"),
        (("fit", "vae", "digits", "--out", "/proc/none", "--budget", "1k"), "/proc/none"),
        (("fit", "vae"), "Missing argument"),
        (("fit", "vae", "digits", "--nope"), "--nope"),
        (("frob",), "frob"),
        (("cite", "vea"), "did you mean 'vae'"),
        (("sample", "no/such"), "there is no file"),
        (("score", "no/such", "digits"), "there is no file"),
        (("compare", "digits", "--families", "gans"), "did you mean 'gan'"),
        (("compare", "digits", "--given", "lable"), "did you mean 'label'"),
        (("compare", "digits", "--out", "/proc/none/report.html"), "cannot be written|can be written"),
        (("compare", "digits", "--budget", "-1k"), "must be positive"),
        (("demo", "--budget", "0s"), "must be positive"),
    ],
)
def test_a_mistake_is_one_sentence(capsys: Said, arguments: tuple[str, ...], word: str):
    assert any(w in refused(capsys, *arguments) for w in word.split("|"))


def test_mistakes_with_a_model(capsys: Said, checkpoint: Path, tmp_path: Path):
    (tmp_path / "folder.png").mkdir()
    assert "not one of its categories" in refused(capsys, "sample", checkpoint, "--given", "label=x")
    assert "no column 'lable'; did you mean" in refused(capsys, "sample", checkpoint, "--given", "lable=3")
    assert "column=value" in refused(capsys, "sample", checkpoint, "--given", "label")
    assert "at least 1" in refused(capsys, "sample", checkpoint, "-n", 0)
    assert "cannot be guided" in refused(capsys, "sample", checkpoint, "--guidance", 2)
    assert "nope" in refused(capsys, "sample", checkpoint, "--set", "nope=3")
    assert "is a folder" in refused(capsys, "sample", checkpoint, "--out", "folder.png")
    assert "/proc" in refused(capsys, "sample", checkpoint, "--out", "/proc/none/x.png")


def test_data_that_cannot_be_learned_from_is_one_sentence(capsys: Said, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    images(tmp_path / "one", (8, 8))
    images(tmp_path / "corrupt", *[(8, 8)] * 5)
    (tmp_path / "corrupt" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    for name in ("empty", "one", "corrupt", "missing"):
        sentence = refused(capsys, "fit", "vae", tmp_path / name, "--budget", "1k", "--out", tmp_path / "x")
        assert len(sentence) < 400
        assert refused(capsys, "compare", tmp_path / name, "--budget", "1k", "--out", tmp_path / "x.html")
    assert "3.png" in refused(capsys, "fit", "vae", tmp_path / "corrupt", "--budget", "1k")


def test_a_damaged_checkpoint_is_one_sentence(capsys: Said, checkpoint: Path, tmp_path: Path):
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    assert "not a safetensors file" in refused(capsys, "sample", tmp_path)
    (tmp_path / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:-50])
    assert "cannot be read" in refused(capsys, "sample", tmp_path)


def test_an_interrupt_is_130(capsys: Said, monkeypatch: Patch):
    def interrupted(*args: object, **kwargs: object):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "fit", interrupted)
    assert cli.main(["fit", "vae", "digits", "--budget", "1k"]) == 130
    assert "kept" in capsys.readouterr().err


def test_a_broken_pipe_is_no_error(monkeypatch: Patch):
    def closed(value: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(cli.models, "print_json", closed)
    monkeypatch.setattr(os, "dup2", lambda *a: None)
    assert cli.main(["list", "--json"]) == 0


def test_a_file_that_cannot_be_read_is_named(capsys: Said, monkeypatch: Patch):
    def fails(value: object) -> None:
        raise PermissionError(13, "Permission denied", "secret.png")

    monkeypatch.setattr(cli.models, "print_json", fails)
    assert refused(capsys, "list", "--json") == "nonesuch: secret.png: Permission denied."


# -- the program itself -------------------------------------------------------------------------------------------------


def program(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=ENVIRONMENT, cwd=HOME, capture_output=True, text=True, check=False)


def test_the_program_refuses_with_2_and_no_traceback():
    found = program("-m", "nonesuch", "cite", "vea")
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "nonesuch: there is no model 'vea'; did you mean 'vae'?\n"


def test_help_is_quick_and_loads_no_torch():
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        assert program("-m", "nonesuch", "--help").returncode == 0
        seconds.append(time.perf_counter() - start)
    assert statistics.median(seconds) < 1.2  # 0.3 s on an idle machine; twice the 0.6 s that is promised
    loaded = "import sys, nonesuch, nonesuch.cli; print('torch' in sys.modules or 'numpy' in sys.modules)"
    assert program("-c", loaded).stdout == "False\n"


def test_control_c_saves_and_exits_with_130(tmp_path: Path):
    asked = ["fit", "vae", "digits", "--budget", "10M", "--preset", "tiny", "--out", str(tmp_path / "x")]
    pipes = {"stderr": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-m", "nonesuch", *asked], env=ENVIRONMENT, cwd=HOME, **pipes)
    metrics = tmp_path / "x" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while not (metrics.is_file() and '"progress"' in metrics.read_text()) and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "Traceback" not in said
    assert (tmp_path / "x" / "model.safetensors").is_file()
