"""A model's name is the path of its file: "diffusion/edm". Nothing registers; a file that is there is in the catalogue."""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nonesuch.core.given import Schema
    from nonesuch.core.image import ImageSpec
    from nonesuch.core.model import Model

FAMILIES = ("autoregressive", "flow", "vae", "diffusion", "energy", "gan")  # in the order of the taxonomy
_MODELS = Path(__file__).parent / "models"


@cache
def names() -> tuple[str, ...]:
    """Every model's name, family by family; imports none of them."""
    return tuple(f"{f}/{p.stem}" for f in FAMILIES for p in sorted((_MODELS / f).glob("[!_]*.py")))


def resolve_name(name: str) -> str:
    """A full name from itself, a family's ("diffusion": the model its package calls DEFAULT), or a file's name alone ("edm")."""
    from nonesuch.core.given import did_you_mean

    found = [n for n in names() if name in (n, n.split("/")[1])]
    if name in FAMILIES:
        found = [f"{name}/{importlib.import_module(f'nonesuch.models.{name}').DEFAULT}"]
    if not found:
        raise ValueError(f"there is no model {name!r}; {did_you_mean(name, [*names(), *FAMILIES])}")
    return found[0]


def get(name: str) -> type[Model]:
    """The class of a model's name. Raises ValueError with the nearest name for an unknown one."""
    from nonesuch.core.model import Model

    full = resolve_name(name)
    module = importlib.import_module(f"nonesuch.models.{full.replace('/', '.')}")
    found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, Model) and c.__module__ == module.__name__]
    assert len(found) == 1, f"{full} must define exactly one model class"
    return found[0]


def build(name: str, spec: ImageSpec, schema: Schema, preset: str | None = None, **config: Any) -> Model:
    """A fresh model of that name: the preset of that name, or the one made for the image's size, with fields replaced."""
    from nonesuch.core.artifact import read_dataclass
    from nonesuch.core.card import choose_preset
    from nonesuch.core.given import did_you_mean
    from nonesuch.core.model import AnySize

    cls = get(name)
    if spec.sizes and not issubclass(cls, AnySize):
        able = ", ".join(n for n in names() if issubclass(get(n), AnySize))
        raise ValueError(
            f"{resolve_name(name)} takes images of one size, and these are of {len(spec.sizes)} (fit 'bucket'); "
            f"fit a model of several sizes ({able}), or open them with fit 'crop'."
        )
    preset = preset or choose_preset(cls.presets, spec)
    if preset not in cls.presets:
        raise ValueError(f"{resolve_name(name)} has no preset {preset!r}; {did_you_mean(preset, cls.presets)}")
    fields = {**cls.presets[preset].config, **config}
    return cls(read_dataclass(cls.Config, fields, f"the config of {resolve_name(name)}"), spec, schema)


def load(path: str | Path, model: type[Model] | None = None) -> Model:
    """Read a checkpoint folder. `model` is the class of one from outside the catalogue; no code is loaded by name."""
    from nonesuch.core import artifact

    def resolve(name: str) -> type[Model]:
        if model is not None and name == artifact.model_name(model):
            return model
        if ":" in name:
            raise ValueError(f"this checkpoint is of {name}, which is not in the catalogue; pass load(path, model=Class).")
        return get(name)

    return artifact.load(path, resolve)


_FOREIGN = {  # a class of diffusers, and the module that knows its layout
    "UNet2DModel": "diffusion._diffusers",
    "DiTTransformer2DModel": "diffusion._diffusers_dit",
    "AutoencoderKL": "vae._diffusers",
}


def from_diffusers(path: str | Path) -> Model:
    """The model of a folder that diffusers wrote: a `UNet2DModel` (DDPM), a `DiTTransformer2DModel` (DiT) or an `AutoencoderKL`.

    path: the folder of a network, or of a pipeline that has one of these. Tensors are renamed and nothing is run. Raises
    ValueError, by name, for a setting that our network does not have, and for a folder that lacks its config or has its weights
    in a pickle.
    """
    from nonesuch.core import foreign

    folder = Path(path)
    found = [f for f in (folder, *sorted(folder.glob("*/"))) if (f / "config.json").is_file()]
    abouts = {f: foreign.table(f / "config.json") for f in found[:1] if f == folder} or {
        f: about for f in found if (about := foreign.table(f / "config.json")).get("_class_name") in _FOREIGN
    }
    if len(abouts) > 1:
        raise ValueError(f"{folder} has several networks; give the folder of one: {', '.join(str(f) for f in abouts)}.")
    if not abouts:
        foreign.table(folder / "config.json")  # which says what is missing
    ((inner, about),) = abouts.items()
    kind = about.get("_class_name", "UNet2DModel")
    if kind not in _FOREIGN:
        raise ValueError(f"{inner / 'config.json'} describes a {kind}; known are {', '.join(_FOREIGN)}.")
    model: Model = importlib.import_module(f"nonesuch.models.{_FOREIGN[kind]}").converted(inner, about)
    return model
