"""A model as a folder: `model.safetensors`, `config.json` and `README.md`, the model card. Never pickle, no code on load.

`config.json` nests the parts: {"model": catalogue name, "config", "spec", "schema", "parts": {name: the same again}}, and a
part's weights carry its name as prefix. It stands again in the header of the safetensors file, so that renaming that one file
into place is the commit: a kill at any moment leaves the old model or the new one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core.card import Card
from nonesuch.core.given import Category, Column, Image, Number, Schema, Text, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Model

FORMAT = 1
WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
_MAX_HEADER_BYTES = 16 << 20
_COLUMNS: dict[str, type] = {"category": Category, "number": Number, "text": Text, "image": Image}


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that a reader, or a kill, sees the old content or the new: temporary file, fsync, rename, fsync."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    sync_folder(path.parent)


def write_synced(path: Path, data: bytes) -> None:
    """Write a file that is on the disk when this returns; for files in a folder that is renamed into place afterwards."""
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk, where the system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write tensors and a JSON description as one safetensors file, atomically."""
    write_atomic(path, tensor_bytes(tensors, about))


def tensor_bytes(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """The content of a safetensors file of these tensors and a JSON description."""
    from safetensors.torch import save as to_bytes

    plain: dict[str, Tensor] = {}
    written: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = tensor.detach().cpu().contiguous()
        if (start := plain[name].untyped_storage().data_ptr()) in written:  # tied weights: the format has no shared memory
            plain[name] = plain[name].clone()
        written.add(start)
    return to_bytes(plain, {"nonesuch": json.dumps(about)})


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_tensors` wrote. Raises ValueError with a sentence for anything else."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file {path}; a checkpoint is the folder that nonesuch fit or nonesuch.save wrote.")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if not 0 < size <= min(_MAX_HEADER_BYTES, path.stat().st_size):
        raise ValueError(f"{path} is not a safetensors file: its header claims {size} bytes.")
    try:
        with safe_open(str(path), "pt") as opened:
            about = json.loads((opened.metadata() or {}).get("nonesuch", "null"))
            tensors = {k: opened.get_tensor(k) for k in opened.keys()}
    except (SafetensorError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read as a safetensors file: {error}.") from None
    if not isinstance(about, dict):
        raise ValueError(f"{path} was not written by nonesuch: its header has no description.")
    return tensors, about


# -- descriptions: specs, schemas and models as JSON


def describe(model: Model) -> dict[str, Any]:
    """All that is needed to build the model again, as JSON values."""
    config = dict(model.config) if isinstance(model.config, Mapping) else dataclasses.asdict(model.config)
    parts = {name: describe(part) for name, part in model.parts.items() if isinstance(part, Model)}
    return {
        "format": FORMAT,
        "model": model_name(type(model)),
        "config": config,
        "spec": dataclasses.asdict(model.spec),
        "schema": {name: _describe_column(column) for name, column in model.schema.columns.items()},
        "parts": parts,
    }


def model_name(cls: type) -> str:
    """A model's name: the path of its file below `models/`, or module:class for one written elsewhere."""
    module = cls.__module__
    home = "nonesuch.models."
    return module.removeprefix(home).replace(".", "/") if module.startswith(home) else f"{module}:{cls.__qualname__}"


def build(about: Mapping[str, Any], resolve: Callable[[str], type[Model]]) -> Model:
    """The model a description speaks of, with fresh weights; `resolve` turns a catalogue name into its class."""
    try:
        if about["format"] > FORMAT:
            raise ValueError(f"this checkpoint has format {about['format']}, newer than {FORMAT}: upgrade nonesuch.")
        cls = resolve(str(about["model"]))
        parts = {str(k): build(v, resolve) for k, v in about.get("parts", {}).items()}
        config = read_dataclass(cls.Config, about["config"], f"the config of {about['model']}")
        return cls(config, read_spec(about["spec"]), read_schema(about["schema"]), **parts)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the checkpoint's description is damaged: {type(error).__name__} {_first_line(error)}.") from None
    except (RuntimeError, MemoryError, OverflowError) as error:  # nested without end, or sizes that no memory holds
        said = _first_line(error) or type(error).__name__
        raise ValueError(f"the checkpoint's description cannot be built: {said}.") from error


def _first_line(error: Exception) -> str:
    """The first line of what an exception says, for a sentence."""
    return str(error).strip().split("\n")[0].rstrip(".")


def read_dataclass(cls: type, values: Mapping[str, Any], what: str) -> Any:
    """A dataclass from JSON values, types checked; unknown fields are answered with the nearest known one."""
    from pydantic import TypeAdapter, ValidationError

    known = [f.name for f in dataclasses.fields(cls)]
    for key in values:
        if key not in known:
            raise ValueError(f"{what} has no field {key!r}; {did_you_mean(key, known)}")
    try:
        return TypeAdapter(cls).validate_python(dict(values))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{what}: {where} {first['msg'].lower()}, not {first['input']!r}.") from None


def read_spec(values: Mapping[str, Any]) -> ImageSpec:
    """An ImageSpec from JSON values."""
    spec: ImageSpec = read_dataclass(ImageSpec, values, "the image spec")
    return spec


def read_schema(values: Mapping[str, Any]) -> Schema:
    """A Schema from JSON values."""
    columns: dict[str, Column] = {}
    for name, described in values.items():
        kind = described.get("column")
        if kind not in _COLUMNS:
            raise ValueError(f"the column {name!r} is of unknown kind {kind!r}; {did_you_mean(kind, _COLUMNS)}")
        fields = {k: v for k, v in described.items() if k != "column"}
        if kind == "image":
            fields["spec"] = read_spec(fields["spec"])
        columns[name] = read_dataclass(_COLUMNS[kind], fields, f"the column {name!r}")
    return Schema(columns)


def _describe_column(column: Column) -> dict[str, Any]:
    kind = next(name for name, cls in _COLUMNS.items() if isinstance(column, cls))
    return {"column": kind, **dataclasses.asdict(column)}


# -- models on disk


def export_state(model: Model) -> dict[str, Tensor]:
    """The tensors of a checkpoint: everything but transient buffers."""
    hidden = {
        f"{prefix}{'.' if prefix else ''}{name}"
        for prefix, m in model.named_modules()
        if isinstance(m, Model)
        for name in m.transient
    }
    return {k: v for k, v in model.state_dict().items() if k not in hidden}


def save(
    model: Model, path: Path | str, about: Mapping[str, Any] | None = None, remarks: Mapping[str, Any] | None = None
) -> Path:
    """Write the model as a folder; `about` is carried in the description and the card: data, recipe, scores.

    remarks: more for the card alone, such as what depends on the machine's speed: two runs alike have the same weights' file.

    Raises ValueError if the folder cannot be written; what stood there is then unharmed.
    """
    folder = Path(path)
    described = {**describe(model), "about": dict(about or {})}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / CARD, _model_card(model, described, remarks or {}).encode())
        write_atomic(folder / CONFIG, json.dumps(described, indent=2).encode())
        save_tensors(folder / WEIGHTS, export_state(model), described)
    except OSError as error:
        raise ValueError(f"the model cannot be written to {folder}: {error.strerror or error}.") from None
    return folder


def load(path: Path | str, resolve: Callable[[str], type[Model]]) -> Model:
    """Read a folder (or its model.safetensors) written by `save`; nothing else is opened and no code is run."""
    path = Path(path)
    tensors, about = load_tensors(path / WEIGHTS if path.is_dir() or not path.suffix else path)
    model = build(about, resolve)
    fit_state(model, tensors, str(path))
    return model


def fit_state(model: Model, tensors: Mapping[str, Tensor], what: str) -> None:
    """Put the tensors into the model if names and shapes all agree; otherwise raise ValueError and change nothing."""
    wanted = export_state(model)
    missing, extra = sorted(wanted.keys() - tensors.keys()), sorted(tensors.keys() - wanted.keys())
    wrong = [k for k in wanted.keys() & tensors.keys() if wanted[k].shape != tensors[k].shape]
    if missing or extra or wrong:
        shown = [
            f"{n} {word} ({', '.join(k[:3])}...)"
            for n, word, k in (
                (len(missing), "missing", missing),
                (len(extra), "unknown", extra),
                (len(wrong), "of another shape", wrong),
            )
            if n
        ]
        raise ValueError(f"{what} does not hold the weights of a {type(model).__name__}: {'; '.join(shown)}.")
    with torch.no_grad():
        for k, v in wanted.items():
            v.copy_(tensors[k])


def _model_card(model: Model, described: Mapping[str, Any], remarks: Mapping[str, Any]) -> str:
    card: Card = model.card
    about = {**described.get("about", {}), **remarks}
    spec = model.spec
    count = sum(p.numel() for p in model.parameters())
    size = f"{' x '.join(map(str, spec.size))}{f', the usual of {len(spec.sizes)} sizes' if spec.sizes else ''}"
    conditions = ", ".join(f"`{k}`" for k in model.schema.columns) or "none"
    return "\n".join(
        [
            "---",
            "library_name: nonesuch",
            "tags: [generative, image]",
            "---",
            "",
            f"# {type(model).__name__}: {described['model']}",
            "",
            card.summary or card.title,
            "",
            "| | |",
            "|---|---|",
            f"| images | {spec.channels} x {size}, {spec.kind}, {spec.levels or 'no'} levels |",
            f"| conditions | {conditions} |",
            f"| parameters | {count:,} |",
            f"| images seen in training | {int(model.images_seen):,} |",
            *[f"| {k} | {v} |" for k, v in about.items() if isinstance(v, (str, int, float))],
            "",
            "## Use",
            "",
            "```python",
            "import nonesuch as ns",
            'model = ns.load("this folder")',
            "model.sample(16, seeds=0)",
            "```",
            "",
            "## Limits",
            "",
            "It draws what its training images suggest, and may repeat some of them: `nonesuch score` compares the distance of",
            "samples and of held-out images to the nearest training image. It knows nothing outside its training data.",
            "",
            "## Citation",
            "",
            "```bibtex",
            card.bibtex(),
            "```",
            "",
        ]
    )
