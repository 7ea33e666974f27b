"""A model as a folder: it comes back whole or is refused in a sentence, and no write or kill leaves half of one."""

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from broken import Config as SoundConfig
from broken import LossyEncoder, Sound
from torch import Tensor, nn

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Category, Given, Image, Number, Schema, Text
from nonesuch.core.image import AXES, ImageSpec, Kind
from nonesuch.core.model import Encoder, Model, Step, guided
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.testing import SCHEMA, SPEC

SIZES = {"hw": (3, 5), "dhw": (2, 3, 4), "thw": (4, 3, 2), "l": (7,), "": ()}
EVERY_COLUMN = Schema(
    {
        "kind": Category(("naïve", "dog"), (0.25, 0.75)),
        "age": Number(50.0, 12.0, (0.0, 1.5, 9.0)),
        "title": Text(12),
        "sketch": Image(ImageSpec(2, (4, 4), levels=3, value_range=(0, 9), unit="HU"), "blur"),
    }
)


@dataclass(frozen=True)
class NormalConfig:
    floor: float = 1e-3


class Normal(Model):
    """A normal a pixel, of any spec; with a part, one over the latents of an encoder, decoded by it."""

    card: ClassVar[Card] = Card("Theory of the Motion of the Heavenly Bodies", "Gauss, Carl Friedrich", 1809)
    Config: ClassVar[type] = NormalConfig
    presets: ClassVar[dict[str, Preset]] = {"tiny": Preset()}
    transient: ClassVar[tuple[str, ...]] = ("replay",)
    replay: Tensor

    def __init__(self, config: NormalConfig, spec: ImageSpec, schema: Schema, **parts: Model) -> None:
        super().__init__(config, spec, schema, **parts)
        shape = self.encoder.latent_spec.shape if parts else spec.shape
        self.mean, self.log_std = nn.Parameter(torch.zeros(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("replay", torch.zeros(4))

    @property
    def encoder(self) -> Encoder:
        part = self.parts["encoder"]
        assert isinstance(part, Encoder)
        return part

    def objectives(self) -> list[Objective]:
        return [Objective("prior", [self.mean, self.log_std], self.terms)]

    def terms(self, batch: Batch) -> Terms:
        z = self.encoder.encode(batch.x, batch.given) if self.parts else batch.x.float()
        return Terms({"nll": (((z - self.mean) / self.log_std.exp()).square() / 2 + self.log_std).mean()})

    def _sample_steps(self, given: Given, seeds: Seeds, size: tuple[int, ...], **options: Any) -> Iterator[Step]:
        z = self.mean + (self.log_std.exp() + self.config.floor) * seeds.normal("z", *self.mean.shape)
        yield Step(1, 1, self.spec.snap(self.encoder.decode(z, given) if self.parts else z))


def fitted(model: Model, seed: int = 1) -> Model:
    """The model with weights unlike those of a fresh one."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(Seeds.of(seed, 1).normal(name, *p.shape)[0] * 0.3)
    for m in model.modules():
        if isinstance(m, Model):
            m.images_seen.fill_(640)
    return model


def sound(seed: int = 1) -> Model:
    return fitted(Sound(SoundConfig(), SPEC, SCHEMA), seed)


def resolve(name: str) -> type[Model]:
    known = {artifact.model_name(cls): cls for cls in (Normal, Sound, LossyEncoder)}
    return known[name] if name in known else catalog.get(name)


def same_model(a: Model, b: Model) -> bool:
    one, other = artifact.export_state(a), artifact.export_state(b)
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


def rewrite(folder: Path, **changes: Any) -> None:
    """Write the weights again with another description."""
    tensors, about = artifact.load_tensors(folder / artifact.WEIGHTS)
    artifact.save_tensors(folder / artifact.WEIGHTS, tensors, {**about, **changes})


def refused(folder: Path, **options: Any) -> str:
    """The one sentence a checkpoint is refused with."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (each test looks at the sentence)
        catalog.load(folder, **options)
    said = str(caught.value)
    assert len(said) > 20
    assert said[-1] in ".?"
    return said


# -- there and back


@pytest.mark.parametrize("axes", AXES)
@pytest.mark.parametrize("kind", ["ordinal", "categorical", "continuous"])
def test_every_spec_and_every_column_comes_back(axes: str, kind: Kind, tmp_path: Path):
    spec = ImageSpec(2, SIZES[axes], axes, kind, None if kind == "continuous" else 6, (-3, 8.5), "HU", "int16")
    model = fitted(Normal(NormalConfig(0.25), spec, EVERY_COLUMN))
    again = catalog.load(artifact.save(model, tmp_path / "m"), Normal)
    assert (again.config, again.spec, again.schema) == (model.config, spec, EVERY_COLUMN)
    assert list(again.schema.columns) == list(EVERY_COLUMN.columns)
    assert same_model(model, again)
    assert int(again.images_seen) == 640


def test_numbers_survive_to_the_last_bit(tmp_path: Path):
    mean, frequency = 0.1 + 0.2, 1 / 3
    schema = Schema({"n": Number(mean, 1e-17, (1e300, 2e300)), "k": Category(("a", "b"), (frequency, 1 - frequency))})
    model = fitted(Normal(NormalConfig(1e-3 / 3), SPEC, schema))
    again = catalog.load(artifact.save(model, tmp_path), Normal)
    assert (again.schema, again.config) == (schema, model.config)


def test_a_prior_over_the_latents_of_a_model_of_the_catalogue(tmp_path: Path):
    encoder = fitted(catalog.build("vae", SPEC, SCHEMA, "tiny"), 3)
    model = fitted(Normal(NormalConfig(), SPEC, SCHEMA, encoder=encoder), 4)
    again = catalog.load(artifact.save(model, tmp_path), Normal)
    assert type(again.parts["encoder"]) is type(encoder)
    assert same_model(model, again)
    assert torch.equal(model.sample(3, {"label": "rows"}, seeds=2), again.sample(3, {"label": "rows"}, seeds=2))
    described = json.loads((tmp_path / artifact.CONFIG).read_text())
    assert described["parts"]["encoder"]["model"].startswith("vae/")
    assert described["parts"]["encoder"]["schema"].keys() == {"label"}
    assert any(k.startswith("parts.encoder.") for k in artifact.load_tensors(tmp_path / artifact.WEIGHTS)[0])


def test_parts_within_parts_and_a_guided_model(tmp_path: Path):
    inner = fitted(Normal(NormalConfig(0.5), SPEC, SCHEMA, encoder=LossyEncoder(SoundConfig(8), SPEC, SCHEMA)))
    outer = Normal(NormalConfig(0.1), SPEC, SCHEMA, encoder=inner.encoder)  # type: ignore[arg-type]
    again = artifact.load(artifact.save(fitted(outer), tmp_path), resolve)
    assert same_model(outer, again)
    assert isinstance(again, Normal)
    assert isinstance(again.encoder, LossyEncoder)
    assert again.encoder.config == SoundConfig(8)
    with pytest.raises(ValueError, match="cannot be guided"):
        guided(again)


def test_building_a_model_leaves_the_weights_of_its_parts():
    encoder = fitted(LossyEncoder(SoundConfig(), SPEC, SCHEMA))
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    Normal(NormalConfig(), SPEC, SCHEMA, encoder=encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())


def test_transient_buffers_stay_behind(tmp_path: Path):
    model = fitted(Normal(NormalConfig(), SPEC, SCHEMA))
    model.replay.fill_(7)
    assert not any("replay" in k for k in artifact.export_state(model))
    again = catalog.load(artifact.save(model, tmp_path), Normal)
    assert isinstance(again, Normal)
    assert (again.replay == 0).all()


def test_the_weights_alone_are_enough(tmp_path: Path):
    folder = artifact.save(sound(), tmp_path / "m", {"budget": "5m"})
    (folder / artifact.CONFIG).unlink()
    (folder / artifact.CARD).unlink()
    assert same_model(catalog.load(folder, Sound), sound())
    assert same_model(catalog.load(folder / artifact.WEIGHTS, Sound), sound())
    assert artifact.load_tensors(folder / artifact.WEIGHTS)[1]["about"] == {"budget": "5m"}


def test_the_config_beside_the_weights_is_the_one_inside(tmp_path: Path):
    artifact.save(sound(), tmp_path, {"seed": 4})
    assert json.loads((tmp_path / artifact.CONFIG).read_text()) == artifact.load_tensors(tmp_path / artifact.WEIGHTS)[1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
def test_tensors_of_any_type_and_layout(dtype: torch.dtype, tmp_path: Path):
    x = (torch.arange(24).view(2, 3, 4) % 5).to(dtype)
    given = {"plain": x, "turned": x.transpose(0, 2), "picked": x[:, 1], "empty": x[:0], "number": x[1, 1, 1]}
    artifact.save_tensors(tmp_path / "x.safetensors", given, {"a": [1, None, "é"]})
    tensors, about = artifact.load_tensors(tmp_path / "x.safetensors")
    assert about == {"a": [1, None, "é"]}
    assert all(torch.equal(tensors[k], v) and tensors[k].dtype == dtype for k, v in given.items())


# -- the card


def test_the_card_says_what_it_is_and_whom_to_cite(tmp_path: Path):
    artifact.save(sound(), tmp_path, {"data": "digits", "budget": "5m", "scores": {"nested": 1}})
    card = (tmp_path / artifact.CARD).read_text()
    entry = re.search(r"```bibtex\n(.*?)\n```", card, re.DOTALL)
    assert entry
    assert entry[1] == Sound.card.bibtex()
    assert entry[1].startswith("@misc{nobody2026independent,")
    for said in ("| conditions | `label` |", "1 x 8 x 8, ordinal, 5 levels", "| data | digits |", "## Limits", "| budget | 5m |"):
        assert said in card
    assert f"| parameters | {sum(p.numel() for p in sound().parameters()):,} |" in card


# -- a write that fails


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["fsync", "replace", "fdopen"])
def test_a_full_disk_leaves_the_old_model(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    artifact.save(sound(1), tmp_path)
    before = {f.name: f.read_bytes() for f in tmp_path.iterdir()}
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(ValueError, match=r"cannot be written to .*: No space left on device\."):
        artifact.save(sound(2), tmp_path)
    monkeypatch.undo()
    assert {f.name: f.read_bytes() for f in tmp_path.iterdir()} == before


@pytest.mark.parametrize("after", [1, 2])
def test_the_weights_are_the_commit(after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A failure between the three files leaves a folder that loads as the old model, description and all."""
    artifact.save(sound(1), tmp_path, {"run": "old"})
    replace, count = os.replace, iter(range(9))
    monkeypatch.setattr(os, "replace", lambda a, b: replace(a, b) if next(count) < after else full_disk())
    with pytest.raises(ValueError, match="No space left"):
        artifact.save(sound(2), tmp_path, {"run": "new"})
    monkeypatch.undo()
    assert same_model(catalog.load(tmp_path, Sound), sound(1))
    assert artifact.load_tensors(tmp_path / artifact.WEIGHTS)[1]["about"] == {"run": "old"}
    assert {f.name for f in tmp_path.iterdir()} == {artifact.WEIGHTS, artifact.CONFIG, artifact.CARD}


def test_ctrl_c_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    artifact.write_atomic(tmp_path / "a", b"old")
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        artifact.write_atomic(tmp_path / "a", b"new")
    assert [f.read_bytes() for f in tmp_path.iterdir()] == [b"old"]


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"cannot be written to .*file: "):
        artifact.save(sound(), tmp_path / "file")
    with pytest.raises(ValueError, match="Not a directory"):
        artifact.save(sound(), tmp_path / "file" / "below")


# -- files that are no model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return artifact.save(sound(), tmp_path / "m")


def test_nothing_there(tmp_path: Path):
    assert "there is no file" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "nowhere")
    assert "there is no file" in refused(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("length", [0, 3, 8, 9, 100, 2000, -1, -100])
def test_a_truncated_file(folder: Path, length: int):
    weights = folder / artifact.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:length])
    assert "safetensors file" in refused(folder, model=Sound)


@pytest.mark.parametrize("claimed", [0, 1, 2**24 + 1, 2**40, 2**63, 2**64 - 1])
def test_a_header_of_impossible_length(folder: Path, claimed: int):
    weights = folder / artifact.WEIGHTS
    weights.write_bytes(claimed.to_bytes(8, "little") + weights.read_bytes()[8:])
    assert "safetensors file" in refused(folder, model=Sound)


def test_bits_flipped_in_the_header_load_the_same_or_are_refused(folder: Path):
    """Every 13th bit of the header: never a traceback; never the right names with the wrong shapes."""
    weights = folder / artifact.WEIGHTS
    whole = weights.read_bytes()
    size = 8 + int.from_bytes(whole[:8], "little")
    for bit in range(0, 8 * size, 13):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        weights.write_bytes(damaged)
        try:
            found = catalog.load(folder, Sound)
        except ValueError as error:
            assert str(error)[-1] in ".?", f"bit {bit} is refused with {error}, which is no sentence"  # noqa: PT017 (most damage is refused, some is harmless)
        else:
            assert isinstance(found, Sound)


def with_header(folder: Path, header: Mapping[str, Any] | str) -> Path:
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    text += b" " * (-len(text) % 8)
    (folder / artifact.WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text)
    return folder


@pytest.mark.parametrize(
    "header",
    [
        {},
        {"__metadata__": {}},
        {"__metadata__": {"format": "pt"}},
        {"__metadata__": {"nonesuch": "not json"}},
        {"__metadata__": {"nonesuch": "[1, 2]"}},
        {"__metadata__": {"nonesuch": "[" * 100_000 + "]" * 100_000}},
        {"__metadata__": {"nonesuch": "{}"}},
        {"__metadata__": {"nonesuch": '{"format": "1"}'}},
        {"__metadata__": {"nonesuch": '{"format": 1, "model": "vae", "config": 3}'}},
        {"__metadata__": {"nonesuch": '{"format": 1, "model": "vae", "parts": [1]}'}},
        {"__metadata__": {"nonesuch": '{"format": 1, "model": "vae", "config": {}, "spec": {}, "schema": {}}'}},
        {"x": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}},
        "",
        "null",
        "[" * 100_000,
    ],
    ids=lambda h: str(h)[:60],
)
def test_foreign_headers(folder: Path, header: Mapping[str, Any] | str):
    refused(with_header(folder, header))


def test_a_deeply_nested_description(folder: Path):
    text = '{"format": 1, "model": "vae", "parts": {"a": ' * 5000 + "{}" + "}}" * 5000
    refused(with_header(folder, {"__metadata__": {"nonesuch": text}}))
    about = artifact.describe(sound())
    for _ in range(150):  # json reads this deep, and so do we
        about = {**artifact.describe(sound()), "parts": {"a": about}}
    assert "damaged" in refused(with_header(folder, {"__metadata__": {"nonesuch": json.dumps(about)}}), model=Sound)


def test_a_pickle_is_not_opened(folder: Path):
    torch.save({"a": torch.zeros(3)}, folder / artifact.WEIGHTS)
    assert "safetensors file" in refused(folder, model=Sound)


# -- descriptions that do not fit


def test_renamed_weights_are_listed(folder: Path):
    tensors, about = artifact.load_tensors(folder / artifact.WEIGHTS)
    renamed = {("out.wait" if k == "out.weight" else k): v for k, v in tensors.items()}
    renamed["out.bias"] = renamed["out.bias"][1:]
    artifact.save_tensors(folder / artifact.WEIGHTS, renamed, about)
    said = refused(folder, model=Sound)
    for part in ("weights of a Sound", "1 missing (out.weight", "1 unknown (out.wait", "1 of another shape (out.bias"):
        assert part in said


def test_weights_that_do_not_fit_change_nothing():
    model, tensors = sound(1), artifact.export_state(sound(2))
    del tensors["out.bias"]
    with pytest.raises(ValueError, match="1 missing"):
        artifact.fit_state(model, tensors, "it")
    assert same_model(model, sound(1))


def test_an_unknown_field_is_answered_by_the_nearest(folder: Path):
    rewrite(folder, config={"witdh": 16})
    assert "has no field 'witdh'; did you mean 'width'?" in refused(folder, model=Sound)
    rewrite(folder, config={"width": "sixteen"})
    assert "width input should be a valid integer" in refused(folder, model=Sound)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"format": 99}, "newer than 1: upgrade nonesuch"),
        ({"spec": {"channels": 1, "size": [8, 8], "level": 5}}, "did you mean 'levels'?"),
        ({"spec": {"channels": 1, "size": [8]}}, "needs 2 sizes"),
        ({"spec": {"channels": 1, "size": [8, "wide"]}}, "the image spec: size.1"),
        ({"schema": {"label": {"column": "categorie", "names": ["a"]}}}, "did you mean 'category'?"),
        ({"schema": {"label": {"column": "category", "names": ["a", "a"]}}}, "distinct names"),
        ({"schema": {"label": {"column": ["category"], "names": ["a", "a"]}}}, ""),
        ({"schema": 3}, "damaged"),
        ({"config": None}, "damaged"),
        ({"model": None}, "there is no model 'None'"),
        ({"parts": {"extra": 3}}, "damaged"),
        ({"spec": {"channels": 1, "size": [10**9, 10**9], "levels": 5}}, ""),
    ],
)
def test_a_changed_description_is_refused(folder: Path, changes: dict[str, Any], said: str):
    rewrite(folder, **changes)
    assert said in refused(folder, model=Sound)


# -- no code by name


@pytest.mark.parametrize(
    "name",
    ["../evil", "evil", "os.system", "vae.evil", "vae/../../evil", "/tmp/evil", "vae/_ladder", "..", "", "vae/evil.py", "core/x"],
)
def test_no_name_in_a_file_imports_code(folder: Path, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(catalog.importlib, "import_module", lambda n: pytest.fail(f"{n} was imported"))
    rewrite(folder, model=name)
    assert f"there is no model {name!r}" in refused(folder)
    assert "there is no model" in refused(folder, model=Sound)


def test_a_class_from_elsewhere_is_passed_not_named(folder: Path):
    said = refused(folder)
    assert "broken:Sound, which is not in the catalogue; pass load(path, model=Class)" in said
    assert "pass load(path, model=Class)" in refused(folder, model=Normal)
    assert same_model(catalog.load(folder, model=Sound), sound())
