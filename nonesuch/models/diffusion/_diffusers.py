"""DDPMs to and from the folders of diffusers, whose `UNet2DModel` is the paper's network under other names.

    theirs, ours          conv_in enter; down_blocks.i.resnets.j down.i.blocks.j; attentions.j attention.j; downsamplers.0 leave
    to_q, to_k, to_v      one matrix of three, stacked
    cosines before sines  (flip_sin_to_cos) the columns of the first layer of time, exchanged by halves

Read are `config.json`, `diffusion_pytorch_model.safetensors`, and the `scheduler/scheduler_config.json` of a pipeline that the
folder is part of. What is written is such a pipeline, `DDPMPipeline`.

References:
    Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel, 2020) arXiv:2006.11239
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core import foreign
from nonesuch.core.artifact import write_atomic
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.diffusion.ddpm import DDPM, Config

WEIGHTS = "diffusion_pytorch_model.safetensors"

# What a setting must be, or may be; the others of `_TAKEN` are read. A setting in neither is refused by name.
_FIXED: dict[str, tuple[Any, ...]] = {
    "center_input_sample": (False,), "time_embedding_type": ("positional",), "time_embedding_dim": (None,),
    "mid_block_type": ("UNetMidBlock2D",), "mid_block_scale_factor": (1,), "downsample_type": ("conv",),
    "upsample_type": ("conv",), "act_fn": ("silu", "swish"), "resnet_time_scale_shift": ("default",), "add_attention": (True,),
    "class_embed_type": (None,), "num_class_embeds": (None,), "downsample_padding": (0, 1),
}  # fmt: skip
_TAKEN = {
    "sample_size", "in_channels", "out_channels", "freq_shift", "flip_sin_to_cos", "down_block_types", "up_block_types",
    "block_out_channels", "layers_per_block", "dropout", "attention_head_dim", "norm_num_groups", "attn_norm_num_groups",
    "norm_eps", "num_train_timesteps",
}  # fmt: skip
# What diffusers takes for a setting that a config.json, written by an older one, does not have.
_DEFAULTS = {
    "freq_shift": 0, "flip_sin_to_cos": True, "layers_per_block": 2, "attention_head_dim": 8, "norm_num_groups": 32,
    "norm_eps": 1e-5, "dropout": 0.0, "downsample_padding": 1, "in_channels": 3, "out_channels": 3,
    "down_block_types": ("DownBlock2D", *("AttnDownBlock2D",) * 3), "up_block_types": (*("AttnUpBlock2D",) * 3, "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
}  # fmt: skip
_SCHEDULE: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear",), "trained_betas": (None,), "prediction_type": ("epsilon",), "rescale_betas_zero_snr": (False,),
}  # fmt: skip


def converted(folder: Path, about: Mapping[str, Any]) -> DDPM:
    """The model of a folder with this config.json, for 8-bit images, unconditional. Raises ValueError for what DDPM has not."""
    about = _DEFAULTS | foreign.known(about, _FIXED, _TAKEN)
    config = _config(about, _schedule(folder))
    side = about.get("sample_size")
    if not isinstance(side, (int, list, tuple)):
        raise ValueError("its sample_size is not given, and a model needs the size of its images; write it into config.json.")
    size = (side, side) if isinstance(side, int) else tuple(side)
    model = DDPM(config, ImageSpec(about["in_channels"], size), Schema())
    foreign.fill(model, _renamed(foreign.tensors(folder / WEIGHTS), bool(about["flip_sin_to_cos"])))
    model.images_seen.fill_(1)  # fitted, elsewhere; how long is not written down
    return model


def to_diffusers(model: DDPM, path: str | Path) -> None:
    """Write an unconditional DDPM as a folder that diffusers' `DDPMPipeline.from_pretrained` reads, and `from_diffusers`.

    Raises ValueError for a model with conditions, which `UNet2DModel` has in another form.
    """
    from safetensors.torch import save

    c, folder = model.config, Path(path)
    if model.schema:
        raise ValueError(f"diffusers' UNet2DModel has no place for the condition {', '.join(model.schema.columns)}; fit without.")
    down = ["AttnDownBlock2D" if attends else "DownBlock2D" for attends in c.attention]
    up = ["AttnUpBlock2D" if attends else "UpBlock2D" for attends in reversed(c.attention)]
    about = {
        "_class_name": "UNet2DModel", "sample_size": list(model.spec.size), "in_channels": model.spec.channels,
        "out_channels": model.spec.channels, "freq_shift": c.frequency_shift, "flip_sin_to_cos": False,
        "down_block_types": down, "up_block_types": up, "block_out_channels": [c.base * m for m in c.mults],
        "layers_per_block": c.blocks, "downsample_padding": int(c.pad_both), "attention_head_dim": c.head_dim or None,
        "norm_num_groups": c.groups, "norm_eps": c.eps, "dropout": c.dropout,
    }  # fmt: skip
    noise = {
        "_class_name": "DDPMScheduler", "num_train_timesteps": c.timesteps, "beta_start": c.beta_first, "beta_end": c.beta_last,
        "beta_schedule": "linear", "prediction_type": "epsilon", "variance_type": "fixed_small",
        "clip_sample": c.clip and model.spec.kind == "ordinal",
    }  # fmt: skip
    index = {
        "_class_name": "DDPMPipeline", "unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"],
    }  # fmt: skip
    for place in ("unet", "scheduler"):
        (folder / place).mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "unet" / WEIGHTS, save(_their_names(model.unet.state_dict()), {"format": "pt"}))
    for file, content in (("unet/config", about), ("scheduler/scheduler_config", noise), ("model_index", index)):
        write_atomic(folder / f"{file}.json", json.dumps(content, indent=2).encode())


def _config(about: Mapping[str, Any], noise: Mapping[str, Any]) -> Config:
    channels, groups = tuple(about["block_out_channels"]), about["norm_num_groups"]
    down, up = tuple(about["down_block_types"]), tuple(about["up_block_types"])
    attends = {"DownBlock2D": False, "AttnDownBlock2D": True, "UpBlock2D": False, "AttnUpBlock2D": True}
    for block in (*down, *up):
        if block not in attends:
            raise ValueError(f"it has a block of type {block!r}, which DDPM's network does not have.")
    attention = tuple(attends[b] for b in down)
    if attention != tuple(attends[b] for b in reversed(up)):
        raise ValueError(f"down_block_types {down} and up_block_types {up} attend at different resolutions; DDPM's do not.")
    if any(c % channels[0] for c in channels):
        raise ValueError(f"block_out_channels {channels} are not multiples of the first, which DDPM's are.")
    if about.get("attn_norm_num_groups") not in (None, groups) or about["in_channels"] != about["out_channels"]:
        raise ValueError("attn_norm_num_groups must be norm_num_groups, and out_channels in_channels, as DDPM has them.")
    return Config(
        base=channels[0], mults=tuple(c // channels[0] for c in channels), attention=attention, blocks=about["layers_per_block"],
        groups=groups, head_dim=about["attention_head_dim"] or 0, eps=about["norm_eps"], dropout=about["dropout"],
        pad_both=about["downsample_padding"] == 1, frequency_shift=about["freq_shift"], **noise,
    )  # fmt: skip


def _schedule(folder: Path) -> dict[str, Any]:
    """The noise of the scheduler beside a pipeline's network; the paper's where none is written down."""
    file = folder.parent / "scheduler" / "scheduler_config.json"
    if not file.is_file():
        return {}
    about = foreign.table(file)
    for name, fit in _SCHEDULE.items():
        if about.get(name, fit[0]) not in fit:
            raise ValueError(f"{file} has {name} = {about[name]!r}; DDPM takes {fit}.")
    names = {"num_train_timesteps": "timesteps", "beta_start": "beta_first", "beta_end": "beta_last"}
    return {ours: about[theirs] for theirs, ours in names.items() if theirs in about}


_NAMES = [
    (r"^time_embedding\.linear_", "time"), (r"^conv_in\.", "enter."), (r"^conv_norm_out\.", "norm."), (r"^conv_out\.", "leave."),
    (r"^down_blocks\.", "down."), (r"^up_blocks\.", "up."), (r"^mid_block\.", "middle."),
    (r"\.(?:downsamplers|upsamplers)\.0\.(?:conv|Conv2d_0)\.", ".leave."), (r"\.resnets\.", ".blocks."),
    (r"\.attentions\.", ".attention."), (r"\.time_emb_proj\.", ".time."), (r"\.conv_shortcut\.", ".skip."),
    (r"\.group_norm\.", ".norm."), (r"\.(?:to_out\.0|proj_attn)\.", ".out."), (r"\.query\.", ".to_q."), (r"\.key\.", ".to_k."),
    (r"\.value\.", ".to_v."),
]  # fmt: skip


def _renamed(theirs: Mapping[str, Tensor], cosines_first: bool) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in theirs.items():
        for pattern, word in _NAMES:
            name = re.sub(pattern, word, name)
        state[f"unet.{name}"] = tensor.flatten(1) if ".attention." in name and tensor.dim() == 4 else tensor  # 1 x 1 convolutions
    for name in [n for n in state if ".to_q." in n]:
        three = [name.replace(".to_q.", f".to_{c}.") for c in "qkv"]
        if all(n in state for n in three):
            state[name.replace(".to_q.", ".qkv.")] = torch.cat([state.pop(n) for n in three])
    first = state.get("unet.time1.weight")
    if cosines_first and first is not None:
        half = first.shape[1] // 2
        state["unet.time1.weight"] = torch.cat([first[:, half : 2 * half], first[:, :half], first[:, 2 * half :]], 1)
    return state


_BACK = [
    (r"^time(?=[12])", "time_embedding.linear_"), (r"^enter\.", "conv_in."), (r"^norm\.", "conv_norm_out."),
    (r"^leave\.", "conv_out."), (r"\.attention\.(\d+)\.norm\.", r".attention.\1.group_norm."), (r"\.attention\.", ".attentions."),
    (r"^(down\.\d+)\.leave\.", r"\1.downsamplers.0.conv."), (r"^(up\.\d+)\.leave\.", r"\1.upsamplers.0.conv."),
    (r"^down\.", "down_blocks."), (r"^up\.", "up_blocks."), (r"^middle\.", "mid_block."), (r"\.blocks\.", ".resnets."),
    (r"\.time\.", ".time_emb_proj."), (r"\.skip\.", ".conv_shortcut."), (r"\.out\.", ".to_out.0."),
]  # fmt: skip


def _their_names(ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        for pattern, word in _BACK:
            name = re.sub(pattern, word, name)
        for c, part in zip("qkv", tensor.chunk(3), strict=False) if ".qkv." in name else [("", tensor)]:
            state[name.replace(".qkv.", f".to_{c}.")] = part.detach().cpu().float().contiguous()
    return state
