"""nonesuch: deep generative models of images, every family under one contract.

    import nonesuch as ns
    model = ns.fit("diffusion", "digits", given="label", budget="1m")
    model.sample(16, given={"label": 3}, seeds=0)

Names are resolved on first use, so that importing this package loads neither torch nor any model.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Blur": "core.degradation",
    "Category": "core.given",
    "Compose": "core.degradation",
    "Degradation": "core.degradation",
    "Downsample": "core.degradation",
    "Given": "core.given",
    "Grayscale": "core.degradation",
    "Image": "core.given",
    "ImageSpec": "core.image",
    "Jpeg": "core.degradation",
    "LowContrast": "core.degradation",
    "LowLight": "core.degradation",
    "Mask": "core.degradation",
    "Model": "core.model",
    "Noise": "core.degradation",
    "Number": "core.given",
    "Origin": "applications.provenance",
    "Private": "train.recipe",
    "Recipe": "train.recipe",
    "Schema": "core.given",
    "Score": "evaluate.score",
    "SecondOrder": "core.degradation",
    "Seeds": "core.seeds",
    "Text": "core.given",
    "audit": "applications.audit",
    "augment": "applications.augment",
    "bits_per_dim": "evaluate.likelihood",
    "check_model": "testing",
    "classify": "evaluate.likelihood",
    "compare": "evaluate.compare",
    "explore": "applications.explore",
    "fit": "train.fit",
    "from_diffusers": "catalog",
    "from_glow_pytorch": "models.flow._public",
    "from_pixelcnnpp": "models.autoregressive._public",
    "from_pytorch_generative": "models.autoregressive._public",
    "guided": "core.model",
    "load": "train.device",
    "pair": "data.pair",
    "psnr": "evaluate.restoration",
    "read_origin": "applications.provenance",
    "restore": "applications.restore",
    "save": "core.artifact",
    "ssim": "evaluate.restoration",
    "style": "applications.style",
    "synthesize": "applications.dataset",
    "to_diffusers": "models.diffusion._diffusers",
    "translate": "applications.translate",
}
_MODULES = ("applications", "catalog", "core", "data", "evaluate", "nn", "train")

__all__ = sorted([*_PUBLIC, *_MODULES])


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(f"nonesuch.{_PUBLIC[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"nonesuch.{name}")
    raise AttributeError(f"module 'nonesuch' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC, *_MODULES])
