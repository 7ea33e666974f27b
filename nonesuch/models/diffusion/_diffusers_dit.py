"""A DiT with the weights of a folder of diffusers, whose `DiTTransformer2DModel` is the same network under other names.

    theirs, ours           transformer_blocks.i.norm1.linear blocks.i.modulation; attn1 qkv, out; ff.net.0, 2 mlp_in, mlp_out
    norm1.emb of a block   the embedding of time and label: written once a block there, once here, so all must be equal
    a patch's values       channel after channel here; in their last layer pixel after pixel, so its rows are put in order

References:
    Scalable Diffusion Models with Transformers (Peebles, Xie, 2022) arXiv:2212.09748
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nonesuch.core import foreign
from nonesuch.core.given import Category, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.diffusion.dit import Config, DiT

_FIXED: dict[str, tuple[Any, ...]] = {
    "norm_type": ("ada_norm_zero",), "activation_fn": ("gelu-approximate",), "attention_bias": (True,),
    "norm_elementwise_affine": (False,), "upcast_attention": (False,), "norm_num_groups": tuple(range(1, 1025)),
}  # fmt: skip
_TAKEN = {
    "num_attention_heads", "attention_head_dim", "in_channels", "out_channels", "num_layers", "dropout", "sample_size",
    "patch_size", "num_embeds_ada_norm", "norm_eps",
}  # fmt: skip


def converted(folder: Path, about: Mapping[str, Any]) -> DiT:
    """The model of a folder with this config.json, given a label by its number. Raises ValueError for what DiT has not."""
    about = {
        "num_attention_heads": 16, "attention_head_dim": 72, "in_channels": 4, "out_channels": None, "num_layers": 28,
        "dropout": 0.0, "sample_size": 32, "patch_size": 2, "num_embeds_ada_norm": 1000, "norm_eps": 1e-5,
    } | foreign.known(about, _FIXED, _TAKEN)  # fmt: skip
    channels, side = about["in_channels"], about["sample_size"]
    variance = (about["out_channels"] or channels) == 2 * channels
    if not variance and about["out_channels"] not in (None, channels):
        raise ValueError("out_channels must be in_channels, or twice as many where variances are predicted too.")
    config = Config(
        width=about["num_attention_heads"] * about["attention_head_dim"], depth=about["num_layers"],
        num_heads=about["num_attention_heads"], patch=about["patch_size"], eps=about["norm_eps"], dropout=about["dropout"],
        variance=variance,
    )  # fmt: skip
    latents = ImageSpec(channels, (side, side), "hw", "continuous", None)
    schema = Schema({"label": Category(tuple(str(i) for i in range(about["num_embeds_ada_norm"])))})
    model = DiT(config, latents, schema)
    foreign.fill(model, _renamed(foreign.tensors(folder / "diffusion_pytorch_model.safetensors"), config, channels))
    model.images_seen.fill_(1)  # fitted, elsewhere; how long is not written down
    return model


_ENDS = {
    "norm1.linear": "modulation", "attn1.to_out.0": "out", "ff.net.0.proj": "mlp_in", "ff.net.2": "mlp_out",
}  # fmt: skip
_EMBEDDING = {
    "timestep_embedder.linear_1": "time1", "timestep_embedder.linear_2": "time2",
    "class_embedder.embedding_table": "condition.layers.0",
}  # fmt: skip


def _renamed(theirs: Mapping[str, Tensor], config: Config, channels: int) -> dict[str, Tensor]:
    left = {k: v for k, v in theirs.items() if k != "pos_embed.pos_embed"}  # the fixed waves, which some files hold
    try:
        state = {f"network.{ours}": left.pop(name) for name, ours in _outer(config)}
        for block in range(config.depth):
            at, to = f"transformer_blocks.{block}.", f"network.blocks.{block}."
            for end in ("weight", "bias"):
                state |= {f"{to}{ours}.{end}": left.pop(f"{at}{name}.{end}") for name, ours in _ENDS.items()}
                state[f"{to}qkv.{end}"] = torch.cat([left.pop(f"{at}attn1.to_{c}.{end}") for c in "qkv"])
            for name, ours in _embedding():
                value = left.pop(f"{at}norm1.emb.{name}")
                if not torch.equal(state.setdefault(f"network.{ours}", value), value):
                    raise ValueError("its blocks embed time and label differently from one another, which a DiT does not.")
    except KeyError as missing:
        raise ValueError(f"the weights lack {missing}, which the network of its config.json has.") from None
    if left:
        raise ValueError(f"the weights have {sorted(left)[0]!r}, which the network of its config.json has not.")
    state["network.enter.weight"] = state["network.enter.weight"].flatten(1)
    cells = (config.patch**2, channels * (1 + config.variance))
    for end in ("weight", "bias"):
        rows = state[f"network.leave.{end}"]
        if len(rows) == cells[0] * cells[1]:  # others are refused by their shape
            state[f"network.leave.{end}"] = rows.unflatten(0, cells).transpose(0, 1).flatten(0, 1)
    return state


def _outer(config: Config) -> list[tuple[str, str]]:
    pairs = {"pos_embed.proj": "enter", "proj_out_1": "modulation", "proj_out_2": "leave"}
    return [(f"{theirs}.{end}", f"{ours}.{end}") for theirs, ours in pairs.items() for end in ("weight", "bias")]


def _embedding() -> list[tuple[str, str]]:
    ends = {"time1": ("weight", "bias"), "time2": ("weight", "bias"), "condition.layers.0": ("weight",)}
    return [(f"{theirs}.{end}", f"{ours}.{end}") for theirs, ours in _EMBEDDING.items() for end in ends[ours]]
