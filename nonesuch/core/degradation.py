"""Degradations: known operators that spoil pictures. One is a condition, a measurement to undo, and a test of both.

`degradation(x, seeds)` spoils pictures, `degradation.output(spec)` says what comes out, and a `Linear` one has its `operator`:
A with its adjoint and pseudo-inverse, for restoration with any model as the prior. As a condition, fit(model, data, given=...):

    Downsample(4)     super-resolution        Mask("random")                      inpainting
    Grayscale()       colorization            Compose(Blur(1.0), Noise(0.1))      deblurring
    SecondOrder(4)    real photographs        LowLight(), LowContrast(), Jpeg()   enhancement

A degradation is data: `describe` writes one as JSON, `read` reads it back, and `parse` reads what a person types, by the syntax
of Python's calls with plain values only; nothing is run.
"""

from __future__ import annotations

import ast
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from nonesuch.core._degradations_compose import Compose
from nonesuch.core._degradations_linear import (
    Blur,
    Degradation,
    Downsample,
    Grayscale,
    Linear,
    Noise,
    Operator,
    cubic_matrix,
)
from nonesuch.core._degradations_mask import Mask
from nonesuch.core._degradations_random import Jpeg, LowContrast, LowLight, SecondOrder
from nonesuch.core.given import did_you_mean

__all__ = [
    "Blur",
    "Compose",
    "Degradation",
    "Downsample",
    "Grayscale",
    "Jpeg",
    "Linear",
    "LowContrast",
    "LowLight",
    "Mask",
    "Noise",
    "Operator",
    "SecondOrder",
    "cubic_matrix",
    "describe",
    "name_of",
    "parse",
    "read",
]

CLASSES: dict[str, type[Degradation]] = {
    cls.__name__: cls for cls in (Blur, Compose, Downsample, Grayscale, Jpeg, LowContrast, LowLight, Mask, Noise, SecondOrder)
}
_MAX_PARTS = 32


def name_of(degradation: Degradation) -> str:
    """The class in lower case, which names its column: "downsample"."""
    return ("Compose" if isinstance(degradation, Compose) else type(degradation).__name__).lower()


def describe(degradation: Degradation) -> str:
    """The degradation as JSON, which `read` reads back."""
    return json.dumps(_values(degradation))


def _values(degradation: Degradation) -> dict[str, Any]:
    if isinstance(degradation, Compose):
        return {"degradation": "compose", "parts": [_values(part) for part in degradation.parts]}
    fields = {f.name: getattr(degradation, f.name) for f in dataclasses.fields(degradation)}  # type: ignore[arg-type]
    return {"degradation": name_of(degradation), **{k: v for k, v in fields.items() if v is not None}}


def read(text: str | Mapping[str, Any]) -> Degradation:
    """The degradation that `describe` wrote. Raises ValueError with a sentence for anything else."""
    try:
        values = json.loads(text) if isinstance(text, str) else text
    except (json.JSONDecodeError, RecursionError):
        raise ValueError("this is not the description of a degradation: it is not JSON.") from None
    return _read(values, 0)


def _read(values: Any, depth: int) -> Degradation:
    if not isinstance(values, Mapping) or "degradation" not in values:
        raise ValueError('this is not the description of a degradation: it has no "degradation".')
    cls = _class(str(values["degradation"]))
    fields = {str(k): v for k, v in values.items() if k != "degradation"}
    if cls is not Compose:
        return _made(cls, (), fields)
    parts = fields.get("parts")
    if not isinstance(parts, list) or len(fields) != 1 or len(parts) > _MAX_PARTS or depth > 2:
        raise ValueError(f"the description of a Compose has its parts, a list of at most {_MAX_PARTS}, and nothing else.")
    return Compose(*(_read(part, depth + 1) for part in parts))


def _class(name: str) -> type[Degradation]:
    known = {k.lower(): cls for k, cls in CLASSES.items()}
    if name.lower() not in known:
        near = did_you_mean(name.lower(), known)
        said = next((f"did you mean {k!r}?" for k in CLASSES if k.lower() == near.split("'")[1]), near) if "'" in near else near
        raise ValueError(f"there is no degradation {name!r}; {said}")
    return known[name.lower()]


def _made(cls: type[Degradation], values: tuple[Any, ...], named: dict[str, Any]) -> Degradation:
    """The degradation of these arguments."""
    fields = [f.name for f in dataclasses.fields(cls) if f.name != "known" or "known" in named]  # type: ignore[arg-type]
    if len(values) > len(fields):
        raise ValueError(f"{cls.__name__} takes {len(fields)} values at most ({', '.join(fields) or 'none'}), not {len(values)}.")
    given = dict(zip(fields, values, strict=False))
    if twice := given.keys() & named.keys():
        raise ValueError(f"{cls.__name__} is given {', '.join(sorted(twice))} twice.")
    for name in named:
        if name not in fields:
            raise ValueError(f"{cls.__name__} has no {name!r}; {did_you_mean(name, fields)}")
    try:
        return cls(**given, **named)
    except TypeError:
        said = ", ".join(f"{k}={v!r}" for k, v in {**given, **named}.items())
        raise ValueError(f"{cls.__name__} cannot be made of {said}.") from None


def parse(text: str) -> Degradation:
    """What a person types: Downsample(4), downsample:4, mask:random,0.3, Compose(Blur(1.0), Noise(0.1)), Grayscale.

    Raises ValueError with a sentence for an unknown name, unknown or wrong arguments, and anything but plain values.
    """
    said = text.strip()
    head, colon, tail = said.partition(":")
    if colon and head.strip().isidentifier():
        words = [word.strip() for word in tail.split(",") if word.strip()]
        pairs = [word.partition("=") for word in words]
        named = {k.strip(): _plain(v) for k, equals, v in pairs if equals}
        return _made(_class(head.strip()), tuple(_plain(k) for k, equals, _ in pairs if not equals), named)
    try:
        tree = ast.parse(said, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{text!r} is not a degradation; write one as Downsample(4) or downsample:4.") from None
    return _called(tree, text)


def _plain(word: str) -> Any:
    """A number or a pair, or else the word itself."""
    try:
        return ast.literal_eval(word.strip())
    except (ValueError, SyntaxError, RecursionError, MemoryError):
        return word.strip()


def _called(tree: ast.expr, text: str) -> Degradation:
    match tree:
        case ast.Name(name):
            return _made(_class(name), (), {}) if _class(name) is not Compose else Compose()
        case ast.Call(func=ast.Name(name), args=args, keywords=keywords):
            cls = _class(name)
        case _:
            raise ValueError(f"{text!r} is not a degradation; write one as Downsample(4) or downsample:4.")
    if cls is Compose and not keywords:
        inside = args[0].elts if len(args) == 1 and isinstance(args[0], (ast.List, ast.Tuple)) else args
        return Compose(*(_called(part, text) for part in inside))
    try:
        values = tuple(ast.literal_eval(arg) for arg in args)
        named = {str(k.arg): ast.literal_eval(k.value) for k in keywords}
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"{text!r}: the arguments of {name} are plain values, such as 4, (1, 2) or 'area'.") from None
    return _made(cls, values, named)
