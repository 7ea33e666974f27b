"""Real and synthetic pictures in one folder: the stated ratio for each class, each marked, and no test picture to train on."""

import csv
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from broken import Config, Sound
from kill_datasets import content

from nonesuch import data
from nonesuch.applications.augment import Options, augment, run, wanted
from nonesuch.applications.provenance import read_origin
from nonesuch.core.given import Category, Given, Number, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.data import formats
from nonesuch.data.dataset import Data, Images, content_hash, content_hashes, fingerprint
from nonesuch.testing import SPEC

BOTH = Schema({"age": Number(50.0, 10.0), "kind": Category(("cat", "dog", "owl"))})
DAY = "2026-01-01"


def images(n: int, name: str, schema: Schema = BOTH) -> Images:
    levels = Seeds.of(0, n).integers(name, 5, *SPEC.shape).to(torch.uint8)
    said = {"age": [20.0 + i for i in range(n)], "kind": [("cat", "cat", "cat", "owl")[i % 4] for i in range(n)]}
    return Images(SPEC, schema, levels, schema.given(n, {k: said[k] for k in schema.columns}), name)


def source(schema: Schema = BOTH) -> Data:
    train, test = images(40, "train", schema), images(8, "test", schema)
    return Data("animals", train, test, fingerprint(train) + fingerprint(test))


def sound(schema: Schema = BOTH, spec: ImageSpec = SPEC) -> Sound:
    model = Sound(Config(), spec, schema)
    model.images_seen.fill_(1)
    return model


def table(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {row["file_name"]: row for row in csv.DictReader(file)}


@pytest.mark.parametrize("ratio", [0.3, 1.0, 2.5])
def test_every_class_gets_its_share_and_conditions_that_real_ones_had(ratio: float, tmp_path: Path):
    found, real = augment(source(), sound(), tmp_path, ratio=ratio), source().train
    rows = table(tmp_path / "train" / "metadata.csv")
    counts = Counter((row["kind"], row["source"]) for row in rows.values())
    assert counts == {
        ("cat", "real"): 30,
        ("owl", "real"): 10,
        ("cat", "synthetic"): round(30 * ratio),
        ("owl", "synthetic"): round(10 * ratio),
    }
    assert found.n == 48 + round(30 * ratio) + round(10 * ratio)
    ages = {(row["kind"], row["age"]) for row in rows.values() if row["source"] == "real"}
    drawn = Counter((row["kind"], row["age"]) for row in rows.values() if row["source"] == "synthetic")
    assert drawn.keys() <= ages
    assert max(drawn.values()) - min([*drawn.values(), *([0] if len(drawn) < len(ages) else [])]) <= 1
    for name, row in rows.items():
        assert name.split("/")[0] == row["kind"]
        assert (read_origin(tmp_path / "train" / name) is None) == (row["source"] == "real")
    assert len(real) == 40


def test_the_test_split_is_real_apart_and_found_again(tmp_path: Path):
    augment(source(), sound(), tmp_path, ratio=1.0)
    tested = set(content_hashes(source().test.levels))
    there = {content_hash(formats.read(p).values) for p in (tmp_path / "train").rglob("*.png")}
    assert not tested & there
    assert set(content_hashes(source().train.levels)) <= there
    assert {row["source"] for row in table(tmp_path / "test" / "metadata.csv").values()} == {"real"}
    again = data.open(tmp_path)
    assert (len(again.train), len(again.test)) == (80, 8)
    assert set(content_hashes(again.test.levels)) == tested
    assert again.schema["source"].names == ("real", "synthetic")
    assert again.test.labels("source").tolist() == [0] * 8


def test_it_goes_on_after_it_was_stopped_as_if_it_had_not_been(tmp_path: Path):
    options = Options(ratio=0.5, per_shard=7, date=DAY)
    for _ in run(source(), sound(), tmp_path / "whole", options):
        pass
    events = run(source(), sound(), tmp_path / "parts", options)
    for _ in range(8):
        next(events)
    events.close()
    assert not (tmp_path / "parts" / "README.md").exists()
    *_, last = run(source(), sound(), tmp_path / "parts", options)
    assert 0 < last.result.now < last.result.shards
    assert content(tmp_path / "parts") == content(tmp_path / "whole")
    for changed, said in [({"ratio": 1.0}, "ratio: 0.5 -> 1.0"), ({"seed": 1}, "seed: 0 -> 1")]:
        with pytest.raises(ValueError, match=said):
            augment(source(), sound(), tmp_path / "parts", **changed)
    other = Data("animals", source().train[:39], source().test, "other")
    with pytest.raises(ValueError, match="data: "):
        augment(other, sound(), tmp_path / "parts", ratio=0.5)


def test_without_classes_the_ratio_is_of_all(tmp_path: Path):
    plain = Schema()
    train = Images(SPEC, plain, images(10, "train").levels, Given(10), "train")
    test = Images(SPEC, plain, images(3, "test").levels, Given(3), "test")
    augment(Data("plain", train, test, "f"), sound(plain), tmp_path, ratio=0.5)
    rows = table(tmp_path / "train" / "metadata.csv")
    assert Counter(row["source"] for row in rows.values()) == {"real": 10, "synthetic": 5}
    assert wanted(train, "", 0.5, 0) != wanted(train, "", 0.5, 1)


def test_a_set_of_its_own_validation_split_keeps_it_apart(tmp_path: Path):
    whole = Data("animals", source().train, source().test, "f", own_validation=images(5, "validation"))
    augment(whole, sound(), tmp_path)
    assert len(table(tmp_path / "validation" / "metadata.csv")) == 5
    again = data.open(tmp_path)
    assert again.own_validation is not None
    assert len(again.own_validation) == 5


def test_the_card_tells_real_from_synthetic_and_other_data_are_remarked(tmp_path: Path):
    about = {"data": "animals", "fingerprint": source().fingerprint}
    assert augment(source(), sound(), tmp_path / "a", about=about).remarks == ()
    text = (tmp_path / "a" / "README.md").read_text()
    assert "40 in train/, 8 in test/" in text
    assert "augment DATA MODEL --ratio 1 --seed 0 --out THAT_FOLDER" in text
    assert "No picture here shows" not in text
    assert "learned from other data" in augment(source(), sound(), tmp_path / "b", about={"fingerprint": "x"}).remarks[0]


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        (sound(), {"ratio": 0}, "a number above 0"),
        (sound(), {"ratio": float("nan")}, "a number above 0"),
        (sound(), {"ratio": 1e-4}, "no picture"),
        (sound(), {"per_shard": 0}, "at least 1"),
        (sound(BOTH, ImageSpec(1, (8, 8), levels=6)), {}, "of 6 levels"),
        (sound(Schema({"age": Number(50.0, 10.0)})), {}, "not given 'kind'"),
        (sound(Schema({**BOTH.columns, "sex": Category(("f", "m"))})), {}, "given sex, which animals does not have"),
        (sound(Schema({"kind": Category(("cat", "dog"))})), {}, "not learned: owl"),
    ],
)
def test_what_cannot_be_is_told_and_leaves_nothing(model: Sound, options: dict[str, Any], said: str, tmp_path: Path):
    with pytest.raises(ValueError, match=said):
        augment(source(), model, tmp_path / "d", **options)
    assert content(tmp_path) == {}
