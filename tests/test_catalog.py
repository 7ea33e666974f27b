"""The catalogue: names are files, near misses are answered, and every model has a card and a preset to try."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

import nonesuch
from nonesuch import catalog
from nonesuch.core.artifact import model_name, read_dataclass
from nonesuch.core.card import Card, Preset, choose_preset
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model
from nonesuch.testing import SCHEMA, SPEC, schema_of
from nonesuch.train.recipe import Recipe

MODELS = Path(nonesuch.__file__).parent / "models"
ENTRY = re.compile(r"@(misc|inproceedings)\{([a-z0-9]+),\n((?:  \w+ *= \{.*\},?\n)+)\}")
FIELD = re.compile(r"^  (\w+) *= \{(.*)\},?$", re.MULTILINE)


# -- names


def test_names_are_files_and_files_are_names():
    files = {f.relative_to(MODELS).with_suffix("").as_posix() for f in MODELS.rglob("*.py") if not f.name.startswith("_")}
    assert {*catalog.names()} == files
    assert len(catalog.names()) == len(files)


def test_every_family_has_a_model_and_every_folder_is_a_family():
    assert {n.split("/")[0] for n in catalog.names()} == {*catalog.FAMILIES}
    assert {f.name for f in MODELS.iterdir() if f.is_dir() and not f.name.startswith("_")} == {*catalog.FAMILIES}
    places = [catalog.FAMILIES.index(n.split("/")[0]) for n in catalog.names()]
    assert places == sorted(places)


def test_naming_imports_no_model():
    loaded = "[m for m in sys.modules if m.startswith(('torch', 'nonesuch.'))]"
    code = f"import sys; from nonesuch import catalog; catalog.names(); print({loaded})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['nonesuch.catalog']"


@pytest.mark.parametrize("name", catalog.names())
def test_a_name_a_file_or_a_family_finds_the_model(name: str):
    family, file = name.split("/")
    meant = importlib.import_module(f"nonesuch.models.{family}").DEFAULT
    assert catalog.resolve_name(name) == catalog.resolve_name(file) == name
    assert catalog.resolve_name(family) == f"{family}/{meant}"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("difusion", "did you mean 'diffusion'?"),
        ("diffusion/edn", "did you mean 'diffusion/edm'?"),
        ("Gan", "did you mean 'gan'?"),
        ("zzzzzz", "known: autoregressive/"),
        ("", "there is no model ''"),
        ("diffusion/_network", "there is no model 'diffusion/_network'"),
        ("../core/model", "there is no model"),
        ("diffusion.edm", "did you mean 'diffusion/edm'?"),
    ],
)
def test_near_misses_are_answered(name: str, said: str):
    for call in (catalog.resolve_name, catalog.get, lambda n: catalog.build(n, SPEC, SCHEMA)):
        with pytest.raises(ValueError, match="there is no model") as caught:
            call(name)
        assert said in str(caught.value)
        assert str(caught.value)[-1] in ".?"


# -- models


@pytest.mark.parametrize("name", catalog.names())
def test_a_file_defines_one_model_and_its_name_leads_back(name: str):
    cls = catalog.get(name)
    module = sys.modules[cls.__module__]
    assert issubclass(cls, Model)
    assert not cls.__abstractmethods__
    assert model_name(cls) == name
    own = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Model) and c.__module__ == module.__name__]
    assert own == [cls]
    assert all(c.__abstractmethods__ for c in cls.__mro__[1:] if issubclass(c, Model))  # a class is abstract or final


@pytest.mark.parametrize("name", catalog.names())
def test_a_card_names_its_paper_in_bibtex(name: str):
    card = catalog.get(name).card
    entry = ENTRY.fullmatch(card.bibtex())
    assert entry, card.bibtex()
    fields = dict(FIELD.findall(entry[3]))
    assert entry[2].startswith(re.sub(r"\W", "", card.authors.split(",")[0]).lower() + str(card.year))
    assert (fields["title"], fields["author"], fields["year"]) == (card.title, card.authors, str(card.year))
    assert all("," in author for author in card.authors.split(" and "))  # "Surname, First and Surname, First"
    assert card.bibtex().count("{") == card.bibtex().count("}")
    assert 1980 < card.year <= 2026
    assert card.arxiv or card.venue or card.url
    if card.arxiv:
        assert re.fullmatch(r"\d{4}\.\d{4,5}", card.arxiv)
        assert int(card.arxiv[:2]) in (card.year % 100, card.year % 100 - 1, card.year % 100 - 2)


def test_the_keys_of_all_cards_differ():
    keys = [catalog.get(n).card.bibtex().split("\n")[0] for n in catalog.names()]
    assert len({*keys}) == len(keys)


def test_a_card_of_a_venue_is_of_its_proceedings():
    card = Card(
        "On the Origin of X", "Darwin, Charles and Wallace, Alfred", 1858, venue="Linnean Society", url="https://example.org"
    )
    assert ENTRY.fullmatch(card.bibtex())
    assert card.bibtex().startswith("@inproceedings{darwin1858origin,")
    assert "booktitle = {Linnean Society}" in card.bibtex()
    assert "url    = {https://example.org}" in card.bibtex()


@pytest.mark.parametrize("name", catalog.names())
def test_every_preset_is_of_its_config_and_of_a_recipe(name: str):
    cls = catalog.get(name)
    assert "tiny" in cls.presets
    assert any(p.up_to_px for p in cls.presets.values())
    for preset, found in cls.presets.items():
        read_dataclass(cls.Config, found.config, f"{name} {preset}")
        assert read_dataclass(Recipe, found.recipe, f"{name} {preset}").batch >= 1
    config = cls.Config()
    with pytest.raises(AttributeError, match="cannot assign"):
        setattr(config, next(iter(vars(config))), 0)


@pytest.mark.parametrize("name", catalog.names())
def test_the_tiny_preset_is_small_and_fields_can_be_replaced(name: str):
    schema = schema_of(name)
    model = catalog.build(name, SPEC, schema, "tiny")
    assert sum(p.numel() for p in model.parameters()) < 200_000
    assert (model.spec, model.schema) == (SPEC, schema)
    if schema == SCHEMA:  # others are none without pictures
        assert not catalog.build(name, SPEC, Schema(), "tiny").schema
    with pytest.raises(ValueError, match="has no preset 'tinny'; did you mean 'tiny'"):
        catalog.build(name, SPEC, schema, "tinny")
    with pytest.raises(ValueError, match="has no field 'no_such_field'"):
        catalog.build(name, SPEC, schema, "tiny", no_such_field=3)
    for field, value in vars(type(model).Config()).items():
        if isinstance(value, int) and not isinstance(value, bool):
            with pytest.raises(ValueError, match=rf"{field} input should be"):
                catalog.build(name, SPEC, schema, "tiny", **{field: "many"})


# -- presets


PRESETS = {"tiny": Preset(), "large": Preset(up_to_px=64), "small": Preset(up_to_px=16), "medium": Preset(up_to_px=32)}


@pytest.mark.parametrize(
    ("size", "preset"),
    [((1, 1), "small"), ((16, 16), "small"), ((8, 17), "medium"), ((33, 2), "large"), ((512, 9), "large")],
)
def test_the_smallest_preset_made_for_the_size_is_chosen(size: tuple[int, ...], preset: str):
    assert choose_preset(PRESETS, ImageSpec(1, size)) == preset


def test_without_sizes_the_first_preset_is_chosen():
    assert choose_preset({"b": Preset(), "a": Preset()}, SPEC) == "b"
    assert choose_preset(PRESETS, ImageSpec(3, (), "", "continuous", None)) == "small"
    assert choose_preset(PRESETS, ImageSpec(1, (40,), "l")) == "large"


def test_building_by_size_takes_the_preset_of_the_size(monkeypatch: pytest.MonkeyPatch):
    cls = catalog.get("diffusion")
    monkeypatch.setattr(cls, "presets", {"tiny": cls.presets["tiny"], "mine": Preset(cls.presets["tiny"].config, {}, 8)})
    assert catalog.build("diffusion", SPEC, SCHEMA).config == catalog.build("diffusion", SPEC, SCHEMA, "tiny").config
