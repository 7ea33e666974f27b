"""Weights of a public Glow as ours: the state dict of glow-pytorch's `Glow` (github.com/rosinality/glow-pytorch).

Theirs is the published form of ours (`_affine`, Eq. 4), under other names and with these differences, which weights take in:

    ActNorm              a scale d of any sign: log |d|, and the signs go to the columns of U
    1 x 1 convolution    P as a matrix; or, without LU, W itself, which is decomposed here
    last layers, priors  times exp(3 s): folded into weight and bias. They see their input framed by ones, so that a place beyond
                         the picture gives output o the sum over c of W_oc: our edge
    couplings            (raw, t) in this order, ours (t, raw); without scales, raw = 38 throughout, where the sigmoid is 1
    last prior           of zeros framed by ones: a bias and an edge

Tensors are rearranged in float64 and nothing is run; weights in pickles are refused.

References:
    Glow: Generative Flow with Invertible 1x1 Convolutions (Kingma, Dhariwal, 2018) arXiv:1807.03039
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.flow.glow import Config, Glow

_ALWAYS = 38.0  # log sigmoid(38 + 2) = -4e-18


def from_glow_pytorch(state: Mapping[str, Tensor] | str | Path, size: tuple[int, int] = (64, 64), bits: int = 5) -> Glow:
    """The model of a state dict of glow-pytorch's `Glow`, for pictures of which the first `bits` of 8 are kept.

    state: what `torch.load(file, weights_only=True)` gives, or a .safetensors file of it. size: (H, W), which halve as often as
    the network does. bits: its `--n_bits`, 1 to 8. Raises ValueError, by name, for a network or a file that is another.
    """
    found = state if isinstance(state, Mapping) else _read(Path(state))
    theirs = {name.removeprefix("module."): tensor.detach().cpu().double() for name, tensor in found.items()}
    scales, steps = _count(theirs, "blocks.{}.flows.0.actnorm.loc"), _count(theirs, "blocks.0.flows.{}.actnorm.loc")
    channels, hidden = _size(theirs, "actnorm.loc") // 4, _size(theirs, "coupling.net.0.bias")
    if len(size) != 2 or any(side < 1 or side % 2**scales for side in size):
        raise ValueError(f"this network halves {scales} times and takes (H, W) in multiples of {2**scales}, not {tuple(size)}.")
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must be from 1 to 8, not {bits}.")
    wanted = _shapes(theirs, channels, hidden, scales, steps)
    if odd := sorted(set(wanted) ^ set(theirs)) or sorted(k for k in wanted if wanted[k] != theirs[k].shape):
        raise ValueError(f"this is no state dict of glow-pytorch's Glow: {odd[0]} is missing, unknown or of another shape.")
    wide = 256 >> bits  # values of 8 bits that share a level, which is read as their middle
    spec = ImageSpec(channels, tuple(size), levels=2**bits, value_range=((wide - 1) / 2, 255 - (wide - 1) / 2))
    model = Glow(Config(scales=scales, steps=steps, hidden=hidden, published=True), spec, Schema())
    ours = _renamed(theirs, scales, steps)
    if bad := sorted(k for k, v in ours.items() if not v.isfinite().all()):
        raise ValueError(f"this network cannot be inverted: {bad[0]} has a scale of zero, or what is not a number.")
    model.load_state_dict({**ours, "images_seen": torch.tensor(1)})  # fitted, elsewhere; how long is not written down
    return model


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.suffix != ".safetensors":
        raise ValueError(
            f"{file} is no .safetensors file, and pickles are never read here: "
            f"give the mapping that torch.load(file, weights_only=True) returns."
        )
    try:
        return load_file(str(file))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} cannot be read as a safetensors file: {error}.") from None


# -- what their network has -----------------------------------------------------------------------------------------------------


def _count(theirs: Mapping[str, Tensor], pattern: str) -> int:
    """How many of pattern.format(0), pattern.format(1), ... there are."""
    return next(i for i in range(len(theirs) + 1) if pattern.format(i) not in theirs)


def _size(theirs: Mapping[str, Tensor], name: str) -> int:
    """Values of a tensor of the first flow."""
    if (name := f"blocks.0.flows.0.{name}") not in theirs:
        raise ValueError(f"this is no state dict of glow-pytorch's Glow: it has no {name!r}.")
    return theirs[name].numel()


def _shapes(theirs: Mapping[str, Tensor], channels: int, hidden: int, scales: int, steps: int) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors that such a network has."""
    found: dict[str, tuple[int, ...]] = {}
    last = theirs.get("blocks.0.flows.0.coupling.net.4.conv.bias")
    scaled = last is None or len(last.flatten()) != 2 * channels
    for i in range(scales):
        c = channels * 2 ** (i + 2)
        layers = {"prior": (c, 2 * c) if i + 1 == scales else (c // 2, c)}
        for flow in (f"blocks.{i}.flows.{k}" for k in range(steps)):
            found |= {f"{flow}.actnorm.{n}": (1, c, 1, 1) for n in ("loc", "scale")} | {f"{flow}.actnorm.initialized": ()}
            if f"{flow}.invconv.weight" in theirs:
                found[f"{flow}.invconv.weight"] = (c, c, 1, 1)
            else:
                found |= {f"{flow}.invconv.{n}": (c, c) for n in ("w_p", "w_l", "w_u", "u_mask", "l_mask", "l_eye")}
                found |= {f"{flow}.invconv.{n}": (c,) for n in ("w_s", "s_sign")}
            net = f"{flow}.coupling.net"
            found |= {f"{net}.0.weight": (hidden, c // 2, 3, 3), f"{net}.2.weight": (hidden, hidden, 1, 1)}
            found |= {f"{net}.{n}.bias": (hidden,) for n in (0, 2)}
            layers[f"flows.{flow.rpartition('.')[2]}.coupling.net.4"] = (hidden, c if scaled else c // 2)
        for layer, (inner, out) in layers.items():
            at = f"blocks.{i}.{layer}"
            found |= {f"{at}.conv.weight": (out, inner, 3, 3), f"{at}.conv.bias": (out,), f"{at}.scale": (1, out, 1, 1)}
    return found


# -- what ours makes of it ------------------------------------------------------------------------------------------------------


def _renamed(theirs: Mapping[str, Tensor], scales: int, steps: int) -> dict[str, Tensor]:
    """Our state of theirs, whose shapes are known."""
    ours: dict[str, Tensor] = {}
    for i in range(scales):
        mixes = [_mix(theirs, f"blocks.{i}.flows.{k}") for k in range(steps)]
        ours |= {f"flow.scales.{i}.mixes.{name}": torch.stack([m[name] for m in mixes]) for name in mixes[0]}
        for k in range(steps):
            net = _network(theirs, f"blocks.{i}.flows.{k}.coupling.net")
            ours |= {f"flow.scales.{i}.nets.{k}.{name}": tensor for name, tensor in net.items()}
        weight, bias = _last(theirs, f"blocks.{i}.prior")
        prior = {"bias": bias} if i + 1 == scales else {"seen.weight": weight, "seen.bias": bias}
        ours |= {f"flow.priors.{i}.{name}": t for name, t in (prior | {"edge.weight": weight.sum(1, keepdim=True)}).items()}
    return ours


def _mix(theirs: Mapping[str, Tensor], flow: str) -> dict[str, Tensor]:
    """One of our `Mixes`: their ActNorm and 1 x 1 convolution."""
    if not theirs[f"{flow}.actnorm.initialized"]:
        raise ValueError(f"{flow}.actnorm has seen no data yet (initialized is 0): train the network before.")
    shift, scale = theirs[f"{flow}.actnorm.loc"].flatten(), theirs[f"{flow}.actnorm.scale"].flatten()
    if f"{flow}.invconv.weight" in theirs:
        p, lower, upper = torch.linalg.lu(theirs[f"{flow}.invconv.weight"].flatten(1))
        log_diagonal, sign = upper.diagonal().abs().log(), upper.diagonal().sign()
    else:
        p, lower, upper, log_diagonal, sign = (theirs[f"{flow}.invconv.{n}"] for n in ("w_p", "w_l", "w_u", "w_s", "s_sign"))
    order, one = p.argmax(1), torch.eye(len(p), dtype=p.dtype)
    if not torch.equal(p, one[order]) or len(order.unique()) < len(order):
        raise ValueError(f"{flow}.invconv.w_p is no permutation.")
    flips = scale.sign()  # of columns
    return {
        "shift": shift, "log_scale": scale.abs().log(), "lower": lower.tril(-1), "upper": upper.triu(1) * flips,
        "log_diagonal": log_diagonal, "sign": sign * flips, "order": order,
    }  # fmt: skip


def _last(theirs: Mapping[str, Tensor], layer: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a layer that is multiplied by exp(3 s) afterwards."""
    factor = (3 * theirs[f"{layer}.scale"].flatten()).exp()
    return theirs[f"{layer}.conv.weight"] * factor.view(-1, 1, 1, 1), theirs[f"{layer}.conv.bias"] * factor


def _network(theirs: Mapping[str, Tensor], net: str) -> dict[str, Tensor]:
    """One of our coupling networks."""
    layers = {"enter": "0", "mix": "2"}
    found = {f"{ours}.{part}": theirs[f"{net}.{n}.{part}"] for ours, n in layers.items() for part in ("weight", "bias")}
    weight, bias = _last(theirs, f"{net}.4")
    if len(weight) == found["enter.weight"].shape[1]:  # as many as it sees: no scales
        weight, bias = torch.cat([weight, torch.zeros_like(weight)]), torch.cat([bias, torch.full_like(bias, _ALWAYS)])
    else:
        weight, bias = weight.roll(len(weight) // 2, 0), bias.roll(len(bias) // 2, 0)
    return found | {"leave.weight": weight, "leave.bias": bias, "edge.weight": weight.sum(1, keepdim=True)}
