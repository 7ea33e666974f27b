"""Two public PixelCNNs as functions of their state dicts, and the modules themselves where their sources are at hand.

Each network is restated plainly, under its own parameters' names: one pass over a whole picture, as its authors write it. It says
what their weights mean, for parity, and stands for them where their repositories are not on the machine.

    gated PixelCNN   github.com/EugenHotaj/pytorch-generative      Conditional Image Generation with PixelCNN Decoders (2016)
    PixelCNN++       github.com/pclucas14/pixel-cnn-pp             PixelCNN++ (Salimans et al., 2017)
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import math
import sys
import types
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.seeds import Seeds

State = dict[str, Tensor]


def _drawn(shapes: Mapping[str, tuple[int, ...]]) -> State:
    """Weights of these shapes, as large as torch draws them (variance 1 / (3 fan-in)), biases small but not zero."""
    keys, state = Seeds((0,), (0,)), State()
    for name, shape in shapes.items():
        z = keys.normal(name, *shape)[0]
        weight = name.endswith((".weight", ".weight_v"))
        state[name] = z / math.sqrt(3 * math.prod(shape[1:])) if weight else 0.6 + 0.1 * z if name.endswith("_g") else 0.1 * z
    return state


# -- gated PixelCNN, of pytorch-generative --------------------------------------------------------------------------------------


def gated_state(width: int = 128, layers: int = 10, kernel: int = 7, hidden: int = 32) -> State:
    """Random weights of the published size (3.4 M) under its names."""
    shapes: dict[str, tuple[int, ...]] = {}
    for i in range(-1, layers):
        name, c, k = (f"_gated_layers.{i}.", width, 3) if i >= 0 else ("_input.", 1, kernel)
        shapes |= {
            f"{name}_vstack_1xN.weight": (width, c, 1, k), f"{name}_vstack_Nx1.weight": (2 * width, width, k // 2 + 1, 1),
            f"{name}_vstack_1x1.weight": (2 * width, c, 1, 1), f"{name}_link.weight": (2 * width, 2 * width, 1, 1),
            f"{name}_hstack_1xN.weight": (2 * width, c, 1, k // 2 + 1),
            f"{name}_hstack_residual.weight": (width, width, 1, 1), f"{name}_hstack_skip.weight": (width, width, 1, 1),
        }  # fmt: skip
    shapes |= {"_head.1.weight": (hidden, width, 1, 1), "_head.3.weight": (1, hidden, 1, 1)}
    return _drawn(shapes | {n.replace(".weight", ".bias"): (s[0],) for n, s in shapes.items()})


def gated_pixelcnn(s: State, x: Tensor) -> Tensor:
    """The log odds of white (B, 1, H, W) of binary pictures x in {0, 1}."""
    h, w = x.shape[2:]
    layers = sum(name.endswith("_link.bias") for name in s) - 1

    def conv(name: str, x: Tensor, pad: tuple[int, int] = (0, 0)) -> Tensor:
        return F.conv2d(x, s[f"{name}.weight"], s[f"{name}.bias"], padding=pad)

    def gate(x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        return torch.tanh(a) * torch.sigmoid(b)

    down, right, total = x, x, torch.zeros(())
    for i in range(-1, layers):
        name = f"_gated_layers.{i}." if i >= 0 else "_input."
        half = s[f"{name}_vstack_1xN.weight"].shape[3] // 2
        above = conv(f"{name}_vstack_1xN", down, (0, half))
        above = conv(f"{name}_vstack_Nx1", above, (half + 1, 0))[:, :, :h]  # the window ends in the row before
        before = conv(f"{name}_hstack_1xN", right, (0, half + (i < 0)))[..., :w]
        gated = gate(conv(f"{name}_link", above) + before)
        total = total + conv(f"{name}_hstack_skip", gated)
        right = conv(f"{name}_hstack_residual", gated) + (right if i >= 0 else 0)
        down = gate(above + conv(f"{name}_vstack_1x1", down))
    return conv("_head.3", conv("_head.1", total.relu()).relu())


# -- PixelCNN++, of pixel-cnn-pp ------------------------------------------------------------------------------------------------


def pixelcnnpp_state(width: int = 64, blocks: int = 2, channels: int = 1, mixtures: int = 10) -> State:
    """Random weights under its names: weight-normalised, as torch.nn.utils.weight_norm keeps them."""
    f, shapes = width, dict[str, tuple[int, ...]]()

    def block(name: str, rows: int, columns: int, beside: int) -> None:
        shapes[f"{name}.conv_input.conv"], shapes[f"{name}.conv_out.conv"] = (
            (f, 2 * f, rows, columns),
            (2 * f, 2 * f, rows, columns),
        )
        if beside:
            shapes[f"{name}.nin_skip.lin_a"] = f, 2 * f * beside

    for level in range(3):
        for i in range(blocks + (level > 0)):
            block(f"down_layers.{level}.u_stream.{i}", 2, 3, 1)
            block(f"down_layers.{level}.ul_stream.{i}", 2, 2, 2)
        for i in range(blocks):
            block(f"up_layers.{level}.u_stream.{i}", 2, 3, 0)
            block(f"up_layers.{level}.ul_stream.{i}", 2, 2, 1)
    for i in range(2):
        shapes |= {f"downsize_u_stream.{i}.conv": (f, f, 2, 3), f"downsize_ul_stream.{i}.conv": (f, f, 2, 2)}
        shapes |= {f"upsize_u_stream.{i}.deconv": (f, f, 2, 3), f"upsize_ul_stream.{i}.deconv": (f, f, 2, 2)}
    enter = channels + 1
    shapes |= {"u_init.conv": (f, enter, 2, 3), "ul_init.0.conv": (f, enter, 1, 3), "ul_init.1.conv": (f, enter, 2, 1)}
    shapes["nin_out.lin_a"] = (3 if channels == 1 else 10) * mixtures, f
    named: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        one = (shape[0], *[1] * (len(shape) - 1))
        named |= {f"{name}.bias": shape[:1], f"{name}.weight_g": one, f"{name}.weight_v": shape}
    return _drawn(named)


def pixelcnnpp(s: State, x: Tensor) -> Tensor:
    """The mixture's parameters (B, 3 K or 10 K, H, W) of pictures x in [-1, 1]; `s` has plain weights, its norms applied."""
    blocks = sum(n.startswith("up_layers.0.u_stream.") and n.endswith("conv_out.conv.bias") for n in s)

    def conv(name: str, x: Tensor, pad: tuple[int, int, int, int], stride: int = 1) -> Tensor:
        return F.conv2d(F.pad(x, pad), s[f"{name}.weight"], s[f"{name}.bias"], stride)

    above, corner = (1, 1, 1, 0), (1, 0, 1, 0)

    def elu(x: Tensor) -> Tensor:
        return F.elu(torch.cat([x, -x], 1))

    def nin(name: str, x: Tensor) -> Tensor:
        return F.linear(x.movedim(1, -1), s[f"{name}.weight"], s[f"{name}.bias"]).movedim(-1, 1)

    def block(name: str, x: Tensor, pad: tuple[int, int, int, int], beside: Tensor | None = None) -> Tensor:
        h = conv(f"{name}.conv_input.conv", elu(x), pad)
        if beside is not None:
            h = h + nin(f"{name}.nin_skip.lin_a", elu(beside))
        a, b = conv(f"{name}.conv_out.conv", elu(h), pad).chunk(2, 1)
        return x + a * b.sigmoid()

    def double(name: str, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, s[f"{name}.deconv.weight"], s[f"{name}.deconv.bias"], 2, output_padding=1)

    h, w = x.shape[2:]
    x = F.pad(x, (0, 0, 0, 0, 0, 1), value=1.0)
    u = F.pad(conv("u_init.conv", x, above), (0, 0, 1, 0))[:, :, :h]
    ul = F.pad(conv("ul_init.0.conv", x, (1, 1, 0, 0)), (0, 0, 1, 0))[:, :, :h]
    ul = ul + F.pad(conv("ul_init.1.conv", x, (0, 0, 1, 0)), (1, 0))[..., :w]
    kept = [(u, ul)]
    for level in range(3):
        for i in range(blocks):
            u = block(f"up_layers.{level}.u_stream.{i}", u, above)
            ul = block(f"up_layers.{level}.ul_stream.{i}", ul, corner, u)
            kept.append((u, ul))
        if level < 2:
            u = conv(f"downsize_u_stream.{level}.conv", u, above, 2)
            ul = conv(f"downsize_ul_stream.{level}.conv", ul, corner, 2)
            kept.append((u, ul))
    u, ul = kept.pop()
    for level in range(3):
        for i in range(blocks + (level > 0)):
            before_u, before_ul = kept.pop()
            u = block(f"down_layers.{level}.u_stream.{i}", u, above, before_u)
            ul = block(f"down_layers.{level}.ul_stream.{i}", ul, corner, torch.cat([u, before_ul], 1))
        if level < 2:
            u, ul = (
                double(f"upsize_u_stream.{level}", u)[:, :, :-1, 1:-1],
                double(f"upsize_ul_stream.{level}", ul)[:, :, :-1, :-1],
            )
    return nin("nin_out.lin_a", F.elu(ul))


class Plain(nn.Module):
    """A restated network as a module that can be cast, laid out and compiled."""

    def __init__(self, network: str, state: State) -> None:
        super().__init__()
        self.network = {"gated_pixelcnn": gated_pixelcnn, "pixelcnnpp": pixelcnnpp}[network]
        self.names = list(state)
        self.values = nn.ParameterList(state.values())

    def forward(self, x: Tensor) -> Tensor:
        return self.network(dict(zip(self.names, self.values, strict=True)), x)


# -- the modules themselves -----------------------------------------------------------------------------------------------------


def real_gated(sources: Path, state: State) -> nn.Module | None:
    """pytorch-generative's module with these weights, from a clone in `sources`; None where there is none."""
    folder = sources / "pytorch-generative"
    if not (folder / "pytorch_generative").is_dir():
        return None
    # its trainer, which is not used, imports what writes logs; it need not be installed
    sys.modules.setdefault("torch.utils.tensorboard", types.ModuleType("torch.utils.tensorboard"))
    sys.path.insert(0, str(folder))
    net: nn.Module = importlib.import_module("pytorch_generative.models").GatedPixelCNN()
    net.load_state_dict(state)
    return net.eval()


class _Python3(importlib.machinery.SourceFileLoader):
    """pixel-cnn-pp is written for Python 2, of which one statement is left in what is imported."""

    def get_data(self, path: str) -> bytes:
        return super().get_data(path).replace(b"print e", b"print(e)")

    def path_stats(self, path: str) -> Mapping[str, object]:
        raise OSError("never from a cache")


def real_pixelcnnpp(sources: Path, state: State, width: int, blocks: int) -> nn.Module | None:
    """pixel-cnn-pp's module of one channel with these weights, from a clone in `sources`; None where there is none."""
    folder = sources / "pixel-cnn-pp"
    if not (folder / "model.py").is_file():
        return None
    for name in ("utils", "layers", "model"):
        loader = _Python3(name, str(folder / f"{name}.py"))
        spec = importlib.util.spec_from_loader(name, loader)
        assert spec is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        loader.exec_module(sys.modules[name])
    net: nn.Module = sys.modules["model"].PixelCNN(nr_resnet=blocks, nr_filters=width, input_channels=1)
    net.load_state_dict(state)
    return net.eval()
