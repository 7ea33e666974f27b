"""The comparison: same data, same budget, one report; and the pictures and numbers in it."""

import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Energy, Likelihood, LogProb, Model, Step
from nonesuch.core.objective import Objective
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images, fingerprint, split_by_content
from nonesuch.data.open import open as open_data
from nonesuch.data.pictures import picture, png_bytes, save_images, sheet
from nonesuch.evaluate import compare as comparing
from nonesuch.evaluate import features, panel, report
from nonesuch.evaluate.baselines import BASELINES
from nonesuch.evaluate.compare import compare, subjects
from nonesuch.evaluate.comparison import Comparison, Row
from nonesuch.evaluate.score import Score
from nonesuch.train.recipe import Budget
from nonesuch.train.verdicts import Look, verdicts

EVIL = "<script>alert(1)</script>"
Compared = tuple[Comparison, list[comparing.Progress], Path]
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def digits() -> Data:
    """Three hundred digits under a name that a page must escape, one remark, and a label missing."""
    found = open_data("digits").select(["label"])
    train, test = found.train[:300], found.test[:120]
    train.given.columns["label"][7] = -1
    return Data(EVIL, train, test, fingerprint(train), (f"came through JPEG {EVIL}",))


@pytest.fixture(scope="module")
def run(digits: Data, tmp_path_factory: pytest.TempPathFactory) -> Compared:
    out = tmp_path_factory.mktemp("compared")
    told: list[comparing.Progress] = []
    with Patch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 1280)
        asked = {"budget": "1k", "families": ["vae", "gan/r3gan"], "limit": 150, "sample_seeds": 2}
        found = compare(digits, **asked, out=out / "runs", on_event=told.append)
    found.save(out / "sub" / "report.html")
    return found, told, out


def test_every_row_is_measured_on_the_same_images(run: Compared):
    found = run[0]
    assert [r.name for r in found.rows] == ["vae/vdvae", "gan/r3gan", *BASELINES]
    assert not any(r.failed for r in found.rows)
    for row in found.rows:
        assert set(row.scores) >= {"FD", "KD", "precision", "recall", "density", "coverage"}
        assert set(row.scores) >= {"CAS", "real", "real+synthetic", "nearer_p"}
        assert row.scores["FD"].n == 150
        assert row.scores["FD"].extractor_hash == found.protocol["extractor_sha256"]
        assert row.scores["CAS"].counts == {"test": 120, "seeds": 2}
        assert row.verdict in panel.VERDICTS
        assert row.costs["sample_s_per_image"] > 0
    assert len({r.scores["FD"].floor for r in found.rows}) == 1
    assert found.data["remarks"] == [f"came through JPEG {EVIL}"]


def test_likelihood_stands_with_its_word_or_with_the_reason_why_there_is_none(run: Compared):
    by_name = {r.name: r for r in run[0].rows}
    assert by_name["vae/vdvae"].scores["bits"].kind == "bound"
    assert by_name["independent categoricals"].scores["bits"].kind == "exact"
    assert "bits" not in by_name["gan/r3gan"].scores
    assert "implicit" in by_name["gan/r3gan"].notes["bits"]
    assert by_name["kernel density"].scores["bits"].counts["draws"] == panel.DRAWS
    assert by_name["independent categoricals"].scores["bayes"].n == 120
    assert by_name["independent categoricals"].scores["bayes"].value > 0.7  # on 299 images; a tenth by chance


def test_kernel_density_is_found_to_copy(run: Compared):
    assert next(r for r in run[0].rows if r.name == "kernel density").verdict == "copies"


def test_commands_repeat_the_run(run: Compared):
    by_name = {r.name: r for r in run[0].rows}
    row = by_name["vae/vdvae"]
    assert row.command.endswith(f"--given label --budget {int(row.costs['images'])} --seed 0")
    assert row.command.startswith("nonesuch fit vae/vdvae '<script>")  # quoted for a shell
    assert "--families kernel-density --no-baselines" in by_name["kernel density"].command


def test_events_tell_every_stage(run: Compared):
    stages = [(p.row, p.stage) for p in run[1]]
    assert stages[0] == ("", "prepare")
    for name in ("vae/vdvae", "gan/r3gan", "kernel density"):
        mine = [s for row, s in stages if row == name]
        assert mine[0] == "train"
        assert mine[-1] == "done"
        assert "measure" in mine
    assert any(p.event and p.event.kind == "done" for p in run[1])


def test_what_is_finished_is_not_done_again(run: Compared, digits: Data, monkeypatch: Patch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 1280)
    monkeypatch.setattr(comparing, "fit", None)  # training again would fail
    asked = {"budget": "1k", "families": ["vae"], "limit": 150, "sample_seeds": 2, "out": run[2] / "runs"}
    told = []
    again = compare(digits, **asked, on_event=told.append)
    assert [p.stage for p in told if p.row] == ["kept"] * 4
    assert again.rows[0].scores == run[0].rows[0].scores
    assert torch.equal(again.rows[0].grid.nan_to_num(9), run[0].rows[0].grid.nan_to_num(9))
    with pytest.raises(ValueError, match="other arguments"):
        compare(digits, **asked | {"budget": "2k"})


def test_a_family_that_fails_has_a_row_that_says_why(digits: Data, monkeypatch: Patch, tmp_path: Path):
    monkeypatch.setattr(features, "IMAGES_SEEN", 1280)

    def fails(name: str, *args: object, **kwargs: object):
        raise ValueError("the loss is not finite") if "vae" in name else RuntimeError(EVIL)

    monkeypatch.setattr(comparing, "fit", fails)
    families = ["vae", "gan", "independent-categoricals"]
    found = compare(digits, budget=Budget(images=1000), families=families, baselines=False, limit=60, sample_seeds=1)
    assert [r.failed for r in found.rows] == ["the loss is not finite", f"RuntimeError: {EVIL}", ""]
    page = report.render(found)
    assert "This model failed: the loss is not finite" in page
    assert EVIL not in page
    assert "failed: the loss" in found.table()
    assert found.protocol["budget"] == "1000"


# -- the page -----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """What a page refers to, and its pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.images: list[dict[str, str | None]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        found = dict(attrs)
        self.links += [str(v) for k, v in found.items() if k in ("src", "href", "srcset", "action", "data", "poster")]
        if tag == "img":
            self.images.append(found)
        if tag not in ("meta", "img", "br", "link", "input"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_requests_nothing_and_escapes_everything(run: Compared):
    text = (run[2] / "sub" / "report.html").read_text()
    page = Page()
    page.feed(text)
    assert page.open == []  # every tag is closed, in order
    assert "script" not in page.tags
    assert EVIL not in text
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)
    assert "url(" not in text
    assert "@import" not in text
    assert all(i["alt"] and i["width"] and i["height"] for i in page.images)
    ids = set(re.findall(r'id="([^"]+)"', text))
    assert {link[1:] for link in page.links if link.startswith("#")} <= ids
    assert "prefers-color-scheme: dark" in text
    assert "width=device-width" in text


def test_the_page_shows_every_number_with_its_word(run: Compared):
    text = (run[2] / "sub" / "report.html").read_text()
    for row in run[0].rows:
        assert f">{row.name}" in text
        if "bits" in row.scores:
            assert f'<b>{row.scores["bits"].value:.3f}</b> <span class="pill {row.scores["bits"].kind}">' in text
    assert "has no likelihood" in text
    assert "came through JPEG" in text
    assert run[0].protocol["extractor_sha256"][:16] in text


def test_the_numbers_stand_beside_it_as_json(run: Compared):
    found = json.loads((run[2] / "sub" / "report.json").read_text())
    assert [r["name"] for r in found["rows"]] == [r.name for r in run[0].rows]
    assert Score.from_json(found["rows"][0]["scores"]["FD"]) == run[0].rows[0].scores["FD"]
    assert found["rows"][0]["law"].startswith("log p(x)")


def test_a_report_that_cannot_be_written_is_refused(run: Compared, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        run[0].save(tmp_path / "file" / "report.html")


def test_the_table_is_aligned(run: Compared):
    lines = run[0].table().splitlines()
    assert len(lines) == 6
    column = lines[0].index("bits/dim") + len("bits/dim")
    assert all(line[column : column + 2] in ("  ", "") for line in lines)


def test_a_chart_places_its_dots_where_the_numbers_are():
    scores = {n: Score(v, "CAS", 9, interval=(v - 0.1, v + 0.1), better="higher") for n, v in (("a", 0.3), ("b", 0.7))}
    rows = [Row(n, "gan", "", scores={"CAS": s}) for n, s in scores.items()]
    found = report.chart(rows, "CAS", percent=True, reference=0.8)
    assert found is not None
    assert [d.row.name for d in found.dots] == ["b", "a"]  # the best first
    low, high = 0.2 - 0.04 * 0.6, 0.8 + 0.04 * 0.6
    assert found.dots[0].at == pytest.approx(100 * (0.7 - low) / (high - low), abs=0.01)
    assert found.reference == pytest.approx(found.dots[0].high, abs=0.01)
    assert report.chart(rows, "bits") is None


def test_the_best_is_not_one_that_copies():
    found = (("a", "copies", 0.9), ("b", "clear", 0.7))
    rows = [Row(n, "gan", "", verdict=w, scores={"CAS": Score(v, "CAS", 9)}) for n, w, v in found]
    assert report.best(rows, "CAS", "higher") == "b"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (0.00123, "0.0012"),
        (2.0171, "2.02"),
        (-0.5, "\N{MINUS SIGN}0.500"),
        (1234.5, "1,234"),
        (None, "none"),
        (float("nan"), "not finite"),
        (0.0, "0"),
    ],
)
def test_numbers_are_short(value: float | None, said: str):
    assert report.short(value) == said


def test_other_words_of_numbers():
    assert report.short(0.985, True) == "98.5 %"
    assert [report.duration(s) for s in (None, 0.0123, 45, 600)] == ["none", "12.3 ms", "45 s", "10.0 min"]
    assert [report.p_value(p) for p in (1e-9, 0.012, 0.5)] == ["below 0.0001", "0.012", "0.50"]


# -- what is compared ---------------------------------------------------------------------------------------------------


def test_subjects_are_families_models_or_baselines():
    assert subjects(["Kernel density", "gan/r3gan", "gan", " "], baselines=False) == ["kernel density", "gan/r3gan"]
    every = subjects(None)
    assert len({n.split("/")[0] for n in every[:-3]}) == len(every) - 3
    with pytest.raises(ValueError, match=r"did you mean 'kernel-density'"):
        subjects(["kernel-densty"])
    with pytest.raises(ValueError, match="nothing to compare"):
        subjects([], baselines=False)


def test_unlabelled_images_of_other_kinds_are_compared(monkeypatch: Patch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 640)
    rng = np.random.default_rng(0)
    levels = torch.from_numpy(rng.integers(0, 4, (90, 3, 4, 6)))  # too small for the feature network: pixels are used
    schema, given = Schema({"age": Category(("a",))}), Given(90, {"age": torch.zeros(90).long()})
    everything = Images(ImageSpec(3, (4, 6), levels=4), schema, levels, given)
    train, test = split_by_content(everything, 30)
    found = compare(Data("noise", train, test, "0"), families=["independent-categoricals"], given=None, baselines=False)
    row = found.rows[0]
    assert not row.failed
    assert row.scores["FD"].extractor == "pixels"
    assert "at least 8 pixels" in found.protocol["note"]
    assert "CAS" not in row.scores
    assert row.scores["bits"].value == pytest.approx(2, abs=0.1)  # uniform noise of four levels
    assert row.grid.shape == (10, 10, 3, 4, 6)
    assert "No feature network" in report.render(found)


class Still(Model):
    """Draws black images."""

    def objectives(self) -> list[Objective]:
        return []

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: object):
        yield Step(1, 1, -torch.ones(len(seeds), *self.spec.shape))


class Lukewarm(Still, Energy):
    def energy(self, x: torch.Tensor, given: Given | None = None):
        return x.flatten(1).sum(1)


class Slow(Still, Likelihood):
    def _log_prob(self, x: torch.Tensor, given: Given, *, method: str | None, samples: int, seeds: Seeds):
        return LogProb(torch.zeros(len(x)), "bound")


def test_words_of_models_without_a_likelihood(digits: Data):
    with Patch.context() as patch:
        patch.setattr(features, "IMAGES_SEEN", 640)
        found = panel.Panel.of(digits, ("label",), limit=50)
    built = {cls: cls(None, digits.spec, digits.schema) for cls in (Still, Lukewarm, Slow)}
    for model in built.values():
        model.images_seen.fill_(1)
    assert "implicit" in panel.subject_of_model(built[Still], found, "a").bits
    assert "unnormalised" in panel.subject_of_model(built[Lukewarm], found, "a").bits
    measured = found.measure(panel.subject_of_model(built[Slow], found, "a"), allowance_s=0.0, tell=lambda text: None)
    assert measured.scores["bits"].value == 0
    assert "draws" not in measured.scores["bits"].counts  # no time was allowed for more
    assert measured.scores["CAS"].counts["seeds"] == 1
    assert measured.scores["bayes"].n == 50


def test_images_are_chosen_with_labels_and_by_key(digits: Data):
    first, again = (panel.chosen(digits.train, "label", 40, 0) for _ in range(2))
    assert torch.equal(first.levels, again.levels)
    assert len(panel.chosen(digits.train, "label", 1000, 0)) == 299  # one has no label
    with pytest.raises(ValueError, match="give more images"):
        panel.chosen(digits.train[:1], None, 40, 0)


@pytest.mark.parametrize(
    ("p", "word"),
    [
        ((0.5, 0.5, 0.5), "clear"),
        ((0.001, 0.5, 0.5), "smooth"),
        ((0.5, 0.001, 0.5), "traces"),
        ((0.001, 0.001, 0.5), "copies"),
        ((0.5, 0.5, 0.001), "copies"),
    ],
)
def test_the_verdict_is_a_word(p: tuple[float, ...], word: str):
    scores = {f"{k}_p": Score(v, k, 9) for k, v in zip(("nearer", "membership", "copies"), p, strict=True)}
    assert panel.verdict(scores) == word


# -- pictures -----------------------------------------------------------------------------------------------------------


def test_a_sheet_puts_images_where_they_belong():
    spec = ImageSpec(1, (2, 2), levels=2)
    grid = torch.full((2, 3, 1, 2, 2), -1.0)
    grid[1, 2] = 1.0
    grid[0, 1] = torch.nan
    pixels = sheet(grid, spec, gap=1)
    assert pixels.shape == (5, 8, 4)
    assert pixels[3:5, 6:8].eq(255).all()
    assert pixels[0, 0].tolist() == [0, 0, 0, 255]
    assert pixels[:2, 3:5, 3].eq(0).all()  # there is no image there
    assert pixels[2, :, 3].eq(0).all()  # the gap
    shown = np.asarray(Image.open(io.BytesIO(png_bytes(pixels, 2))))
    assert shown.shape == (10, 16, 4)


def test_pictures_of_every_axes():
    volume = torch.zeros(1, 5, 4, 4) - 1
    volume[0, 2] = 1
    assert picture(volume, ImageSpec(1, (5, 4, 4), "dhw", levels=2))[..., 0].eq(255).all()  # the middle slice
    tokens = torch.tensor([[0, 1, 2]])
    assert picture(tokens, ImageSpec(1, (3,), "l", "categorical", 3))[0, :, 0].tolist() == [0, 128, 255]
    assert picture(torch.zeros(2), ImageSpec(2, (), "", "continuous", None)).shape == (1, 1, 4)
    rgba = torch.ones(4, 1, 1)
    rgba[3] = -1
    assert picture(rgba, ImageSpec(4, (1, 1)))[0, 0].tolist() == [255, 255, 255, 0]


def test_saved_images_are_a_folder_a_class_and_keep_16_bits(tmp_path: Path):
    spec = ImageSpec(1, (2, 3), levels=65536, dtype="uint16")
    schema = Schema({"part": Category(("../bolt", "nut"))})
    values = torch.tensor([0, 1, 40_000, 65_535, 3, 2]).view(1, 1, 2, 3).repeat(3, 1, 1, 1)
    save_images(spec.from_values(values), spec, schema, schema.given(3, {"part": ["nut", "../bolt", None]}), tmp_path, 5)
    written = sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*.png"))
    assert written == ["_bolt/5-000001.png", "nut/5-000000.png", "unlabelled/5-000002.png"]
    with Image.open(tmp_path / "nut" / "5-000000.png") as shown:
        assert np.asarray(shown).tolist() == values[0, 0].tolist()
    rgb = ImageSpec(3, (2, 2))
    save_images(torch.ones(1, 3, 2, 2), rgb, Schema(), Given(1), tmp_path / "flat", 0)
    with Image.open(tmp_path / "flat" / "0-000000.png") as shown:
        assert shown.mode == "RGB"


def test_rows_are_read_back(run: Compared):
    row = run[0].rows[0]
    again = Row.from_json(json.loads(json.dumps(row.to_json())), grid=row.grid, pairs=row.pairs)
    pairs = [(getattr(again, f.name), getattr(row, f.name)) for f in dataclasses.fields(Row)]
    assert all(a is b or a == b for a, b in pairs)


def test_the_page_says_how_training_went_and_what_the_condition_does(run: Compared):
    found = run[0]
    assert all(f"effect of label{end}" in r.scores for r in found.rows for end in ("", ", shuffled"))
    page = report.render(found)
    assert "Does the condition do what it says?" in page
    assert "Did training go well?" not in page  # too short to be looked at
    losses = [(3.0, 2.0), (2.0, 1.8), (1.5, 2.1), (1.0, 2.4)]
    looks = [Look(100 * i, {"training": t, "validation": v}) for i, (t, v) in enumerate(losses, 1)]
    looks[-1] = dataclasses.replace(looks[-1], verdicts=verdicts(looks))
    watched = dataclasses.replace(found.rows[0], looks=[look.to_json() for look in looks])
    page = report.render(dataclasses.replace(found, rows=[watched, *found.rows[1:]]))
    assert "overfitting since 200 images: validation loss rose from 1.8 to 2.4 while training loss fell from 2 to 1" in page
    assert page.count("<polyline") == 2
    assert 'points="25.0,2.0 50.0,15.0 75.0,21.5 100.0,28.0"' in page  # the training loss: linear between its ends
    assert Row.from_json(watched.to_json()).looks == watched.looks


def test_looks_at_training_stand_in_the_row(digits: Data, tmp_path: Path, monkeypatch: Patch):
    monkeypatch.setattr(features, "IMAGES_SEEN", 640)
    monkeypatch.setattr("nonesuch.train.watch.LAST", 100.0)  # so short a run would not be looked at
    asked = {"families": ["vae"], "baselines": False, "limit": 60, "sample_seeds": 1, "budget": "1k"}
    for _ in range(2):  # the second time the run is finished, and its looks are read from its log
        (row,) = compare(digits, **asked, out=tmp_path).rows
        assert [look["images"] for look in row.looks][-1] == row.costs["images"]
        assert report.course(row) is not None
        (kept,) = tmp_path.rglob("row.safetensors")
        kept.unlink()
