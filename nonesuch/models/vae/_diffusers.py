"""An autoencoder with the weights of a folder of diffusers, whose `AutoencoderKL` is the same network under other names.

    theirs, ours      down_blocks.i.resnets.j stages.i.j; the samplers after them stages.i.(blocks); quant_conv after;
                      mid_block.resnets.0, attentions.0, resnets.1 middle.0, 1, 2; post_quant_conv before
    to_q, to_k, to_v  one matrix of three, stacked

References:
    High-Resolution Image Synthesis with Latent Diffusion Models (Rombach et al., 2021) arXiv:2112.10752
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core import foreign
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.vae.autoencoder_kl import AutoencoderKL, Config

_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"), "shift_factor": (None, 0, 0.0), "latents_mean": (None,), "latents_std": (None,),
    "use_quant_conv": (True,), "use_post_quant_conv": (True,), "mid_block_add_attention": (True, False),
    "force_upcast": (True, False),
}  # fmt: skip
_TAKEN = {
    "in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block",
    "latent_channels", "norm_num_groups", "sample_size", "scaling_factor",
}  # fmt: skip
_NAMES = [
    (r"\.conv_in\.", ".enter."), (r"\.conv_out\.", ".leave."), (r"\.conv_norm_out\.", ".norm."), (r"\.conv_shortcut\.", ".skip."),
    (r"\.(?:down|up)_blocks\.(\d+)\.resnets\.(\d+)\.", r".stages.\1.\2."), (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."), (r"\.group_norm\.", ".norm."), (r"\.(?:to_out\.0|proj_attn)\.", ".out."),
    (r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."), (r"\.value\.", ".to_v."), (r"^quant_conv\.", "after."),
    (r"^post_quant_conv\.", "before."),
]  # fmt: skip


def converted(folder: Path, about: Mapping[str, Any]) -> AutoencoderKL:
    """The model of a folder with this config.json, for 8-bit images. Raises ValueError, by name, for what it does not have."""
    about = foreign.known(about, _FIXED, _TAKEN)
    channels = tuple(about.get("block_out_channels", (64,)))
    if any(c % channels[0] for c in channels) or about.get("in_channels", 3) != about.get("out_channels", 3):
        raise ValueError("block_out_channels must be multiples of the first, and out_channels in_channels.")
    kinds = {*about.get("down_block_types", ()), *about.get("up_block_types", ())}
    if odd := sorted(kinds - {"DownEncoderBlock2D", "UpDecoderBlock2D"}):
        raise ValueError(f"it has a block of type {odd[0]!r}, which this autoencoder does not have.")
    attention, side = about.get("mid_block_add_attention", True), about.get("sample_size", 32)
    config = Config(
        base=channels[0], mults=tuple(c // channels[0] for c in channels), blocks=about.get("layers_per_block", 1),
        latents=about.get("latent_channels", 4), groups=about.get("norm_num_groups", 32), attention=attention,
        scaling=about.get("scaling_factor", 0.18215),
    )  # fmt: skip
    model = AutoencoderKL(
        config, ImageSpec(about.get("in_channels", 3), (side, side) if isinstance(side, int) else tuple(side)), Schema()
    )
    theirs = foreign.tensors(folder / "diffusion_pytorch_model.safetensors")
    foreign.fill(model, _renamed(theirs, config), but=("images_seen", "pixels.log_s", "told.weight"))
    model.images_seen.fill_(1)  # fitted, elsewhere; how long is not written down
    return model


def _renamed(theirs: Mapping[str, Tensor], config: Config) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    last = f".middle.{1 + config.attention}."
    for name, tensor in theirs.items():
        for pattern, word in _NAMES:
            name = re.sub(pattern, word, name)
        name = name.replace(".mid_block.resnets.1.", last)
        for pattern, place in ((r"\.down_blocks\.(\d+)\.downsamplers\.0\.conv\.", config.blocks),
                               (r"\.up_blocks\.(\d+)\.upsamplers\.0\.conv\.", config.blocks + 1)):  # fmt: skip
            name = re.sub(pattern, rf".stages.\1.{place}.", name)
        linear = name.startswith(("after.", "before.")) or ".middle.1." in name  # 1 x 1 convolutions, in older files everywhere
        state[name] = tensor.flatten(1) if linear and tensor.dim() == 4 and tensor.shape[-1] == 1 else tensor
    for name in [n for n in state if ".to_q." in n]:
        three = [name.replace(".to_q.", f".to_{c}.") for c in "qkv"]
        state[name.replace(".to_q.", ".qkv.")] = torch.cat([state.pop(n) for n in three])
    return state
