"""Weights of public networks as ours: a PixelCNN++ and a gated PixelCNN, from the state dict of their PyTorch modules.

    weight normalisation     w = g v / |v|, the norm over all axes but the first                          (folded)
    input                    their x and a channel of ones among what ours sees of a pixel: the other columns are zero
    first layers             theirs are moved after their bias, ours before: the bias is read from the channel of ones instead
    a block's 1 x 1          theirs reads elu of (u, s, -u, -s), ours those of (u, -u) and of (s, -s)
    mixture                  ours starts from means in a row and scales of 1/4: both are taken off the biases

The functions are equal to rounding, but for one floor: a logistic's log scale is at least -7.85 here, -7 there (at 256 levels).

References:
    PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood (Salimans et al., 2017) arXiv:1701.05517
    Conditional Image Generation with PixelCNN Decoders (van den Oord et al., 2016) arXiv:1606.05328
    Weight Normalization (Salimans, Kingma, 2016) arXiv:1602.07868, Eq. 2
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.models.autoregressive import gated_pixelcnn, pixelcnnpp
from nonesuch.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp

_NORMED = ((".weight_g", ".weight_v"), (".parametrizations.weight.original0", ".parametrizations.weight.original1"))


def folded(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state with every weight normalisation applied, in float32, and without the prefix of a data-parallel module."""
    plain = {name.removeprefix("module."): tensor.detach().float() for name, tensor in state.items()}
    for g, v in _NORMED:
        for name in [n.removesuffix(g) for n in plain if n.endswith(g)]:
            size, direction = plain.pop(name + g), plain.pop(name + v)
            norm = direction.flatten(1).norm(dim=1).view_as(size)
            plain[name + ".weight"] = direction * (size / norm)
    return plain


class _State:
    """Their tensors, each to be taken once, and ours as they come."""

    def __init__(self, theirs: Mapping[str, Tensor], whose: str) -> None:
        self.left, self.whose, self.ours = folded(theirs), whose, dict[str, Tensor]()

    def size(self, name: str, axis: int = 0) -> int:
        return self._known(name).shape[axis]

    def count(self, pattern: str) -> int:
        """How many of pattern.format(0), pattern.format(1), ... there are."""
        return next(i for i in range(len(self.left) + 1) if pattern.format(i) not in self.left)

    def take(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight and bias."""
        pair = self._known(f"{name}.weight"), self._known(f"{name}.bias")
        del self.left[f"{name}.weight"], self.left[f"{name}.bias"]
        return pair

    def _known(self, name: str) -> Tensor:
        if name not in self.left:
            raise ValueError(f"this is no state dict of {self.whose}: it has no {name!r}.")
        return self.left[name]

    def put(self, name: str, weight: Tensor, bias: Tensor | None) -> None:
        self.ours[f"{name}.weight"] = weight
        if bias is not None:
            self.ours[f"{name}.bias"] = bias

    def into(self, model: torch.nn.Module) -> None:
        """Give the model what came; ValueError if their network has more, or other shapes."""
        wanted = {k: v for k, v in model.state_dict().items() if k != "images_seen"}
        odd = sorted(self.left) + sorted(k for k in wanted if k not in self.ours or wanted[k].shape != self.ours[k].shape)
        if odd:
            raise ValueError(f"this is no state dict of {self.whose}: {odd[0]} is missing or differs.")
        model.load_state_dict({**self.ours, "images_seen": torch.tensor(1)})  # fitted, elsewhere; how long is not written down


# -- PixelCNN++ -----------------------------------------------------------------------------------------------------------------


def from_pixelcnnpp(state: Mapping[str, Tensor], size: tuple[int, int] = (32, 32)) -> PixelCNNpp:
    """The model of a state dict of pixel-cnn-pp's `PixelCNN` (github.com/pclucas14/pixel-cnn-pp), for 8-bit images.

    state: what `torch.load(file, weights_only=True)` gives. size: (H, W), multiples of 4. Raises ValueError for another network.
    """
    s = _State(state, "a PixelCNN++ of pixel-cnn-pp")
    if len(size) != 2 or any(side % 4 for side in size):
        raise ValueError(f"their PixelCNN++ halves twice and takes (H, W) in multiples of 4, not {tuple(size)}.")
    width, channels = s.size("u_init.conv.bias"), s.size("u_init.conv.weight", 1) - 1
    blocks = s.count("up_layers.0.u_stream.{}.conv_input.conv.bias")
    mixtures = s.size("nin_out.lin_a.bias") // (3 if channels == 1 else 10)
    if channels not in (1, 3):
        raise ValueError(f"their mixture is for 1 or 3 channels, and this network has {channels}.")
    config = pixelcnnpp.Config(width, blocks, 3, mixtures, 0.5)
    model = PixelCNNpp(config, ImageSpec(channels, tuple(size)), Schema())
    seen = model.sight.size
    for ours, theirs, at in (
        ("enter_above", "u_init", (1, 1)), ("enter_row", "ul_init.0", (0, 1)), ("enter_column", "ul_init.1", (1, 0)),
    ):  # fmt: skip
        w, b = s.take(f"{theirs}.conv")
        weight = w.new_zeros(width, seen, *w.shape[2:])
        weight[:, :: seen // channels] = w[:, :-1]
        weight[:, 1] = w[:, -1]
        weight[:, 1, at[0], at[1]] += b  # the pixel that is here after their move: inside, where the bias is
        s.put(f"streams.{ours}", weight, None if ours == "enter_column" else torch.zeros_like(b))
    for level in range(3):
        for i in range(blocks):
            _block(s, f"streams.down.{level}.{i}.0", f"up_layers.{level}.u_stream.{i}", ())
            _block(s, f"streams.down.{level}.{i}.1", f"up_layers.{level}.ul_stream.{i}", ("beside",))
        for i in range(blocks + (level < 2)):
            _block(s, f"streams.up.{level}.{i}.0", f"down_layers.{2 - level}.u_stream.{i}", ("skip",))
            _block(s, f"streams.up.{level}.{i}.1", f"down_layers.{2 - level}.ul_stream.{i}", ("beside", "skip"))
    for level in range(2):
        s.put(f"streams.halve_above.{level}", *s.take(f"downsize_u_stream.{level}.conv"))
        s.put(f"streams.halve_corner.{level}", *s.take(f"downsize_ul_stream.{level}.conv"))
        s.put(f"streams.double_above.{level}", *s.take(f"upsize_u_stream.{1 - level}.deconv"))
        w, b = s.take(f"upsize_ul_stream.{1 - level}.deconv")  # (in, out, 2, 2)
        s.put(f"streams.double_corner.{level}", w.permute(2, 3, 1, 0).flatten(0, 2), b.repeat(4))
    w, b = s.take("nin_out.lin_a")
    w, b = _mixture(w, b, mixtures, channels)
    s.put("leave.leave.0", torch.cat([w, torch.zeros_like(w)], 1), b)
    s.into(model)
    return model


def _block(s: _State, ours: str, theirs: str, read: tuple[str, ...]) -> None:
    """A gated residual block; `read`: which of ours read what their 1 x 1 layer reads together."""
    w, b = s.take(f"{theirs}.conv_input.conv")
    if read:
        nin, bias = s.take(f"{theirs}.nin_skip.lin_a")
        b = b + bias
        parts = nin.unflatten(1, (2, len(read), -1)).unbind(2)  # (out, sign, width) of each
        for name, part in zip(read, parts, strict=True):
            s.put(f"{ours}.{name}", part.flatten(1), None)
    s.put(f"{ours}.conv1", w, b)
    s.put(f"{ours}.conv2", *s.take(f"{theirs}.conv_out.conv"))


def _mixture(w: Tensor, b: Tensor, K: int, C: int) -> tuple[Tensor, Tensor]:
    """Rows of the last layer, theirs by channel and then kind, in the order of `Logistics`, less its start."""
    kinds = 3 if C == 3 else 2
    row = K + torch.arange(C * kinds * K).view(C, kinds, K).permute(1, 2, 0)  # (kind, K, C)
    order = torch.cat([torch.arange(K), row.flatten()])
    w, b = w[order], b[order].clone()
    b[K : K + K * C] -= ((torch.arange(K) + 0.5) / K * 2 - 1).repeat_interleave(C)
    b[K + K * C : K + 2 * K * C] += math.log(4)
    return w, b


# -- gated PixelCNN -------------------------------------------------------------------------------------------------------------


def from_pytorch_generative(state: Mapping[str, Tensor], size: tuple[int, int] = (28, 28)) -> GatedPixelCNN:
    """The model of a state dict of pytorch-generative's `GatedPixelCNN` (github.com/EugenHotaj/pytorch-generative), binary.

    state: what `torch.load(file, weights_only=True)` gives. size: (H, W). Raises ValueError for another network.
    """
    s = _State({k: v for k, v in state.items() if k.removeprefix("module.") not in ("_c", "_h", "_w")}, "a GatedPixelCNN")
    width, hidden = s.size("_input._hstack_skip.bias"), s.size("_head.1.bias")
    layers, kernel = s.count("_gated_layers.{}._link.bias"), s.size("_input._vstack_1xN.weight", 3)
    if s.size("_input._vstack_1xN.weight", 1) != 1 or s.size("_head.3.bias") != 1:
        raise ValueError("only their network of one channel of black and white is known here.")
    config = gated_pixelcnn.Config(width, layers, kernel, hidden, lag=1)
    model = GatedPixelCNN(config, ImageSpec(1, tuple(size), levels=2), Schema())
    names = {
        "across": "vstack_1xN", "down": "vstack_Nx1", "here": "vstack_1x1", "link": "link", "along": "hstack_1xN",
        "residual": "hstack_residual", "skip": "hstack_skip",
    }  # fmt: skip
    for i in range(layers + 1):
        for ours, theirs in names.items():
            w, b = s.take(f"_gated_layers.{i - 1}._{theirs}" if i else f"_input._{theirs}")
            if i == layers and ours in ("here", "residual"):
                continue  # nothing reads what they make
            if not i and ours in ("across", "here", "along"):  # of x in {0, 1}, which is (sign + one) / 2
                w = torch.cat([w, w], 1) / 2
            s.put(f"stacks.layers.{i}.{ours}", w if ours in ("across", "down", "along") else w.flatten(1), b)
    w, b = s.take("_head.1")
    s.put("leave.enter", w.flatten(1), b)
    w, b = s.take("_head.3")
    to_one = torch.tensor([0.0, 1.0, 0.0])  # the cosine series' second wave: the last level alone
    s.put("leave.leave.0", to_one[:, None] * w.flatten(1), to_one * b)
    s.into(model)
    return model
