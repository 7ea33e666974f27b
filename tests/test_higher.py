"""The convolution and the rectifier of `nn/higher.py` against torch's own, to the third derivative, and against differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.nn import conv, higher, native


def noise(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def pair(dims: int, groups: int, stride: int, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, nn.Module]:
    """Ours, and the ordinary convolution with the same weights."""
    both = [module(dims, 4, 6, 3, stride, groups) for module in (higher.Conv, conv.Conv)]
    for layer in both:
        layer.to(dtype)
        with torch.no_grad():
            layer.weight.copy_(noise(*layer.weight.shape, seed=1) / 3)
            layer.bias.copy_(noise(6, seed=2))
    return both[0], both[1]


@pytest.mark.parametrize(("dims", "groups", "stride"), [(1, 1, 1), (2, 2, 1), (2, 1, 2), (3, 1, 1)])
def test_first_and_second_derivatives_against_differences(dims: int, groups: int, stride: int):
    layer, _ = pair(dims, groups, stride)
    inputs = (noise(2, 4, *(4, 3, 2)[:dims]), layer.weight.detach().clone(), layer.bias.detach().clone())
    for v in inputs:
        v.requires_grad_()

    def call(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(layer, {"weight": weight, "bias": bias}, (x,))

    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradgradcheck(call, inputs)


def test_the_gradient_of_a_penalty_on_the_gradient_is_torchs():
    found = []
    for layer in pair(2, 2, 1):
        x = noise(3, 4, 5, 5).requires_grad_()
        h = layer(x)
        y = (higher.leaky_relu(h, 0.2) if isinstance(layer, higher.Conv) else F.leaky_relu(h, 0.2)).square().sum((1, 2, 3))
        (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
        penalty = (slope.square().sum() - y.mean()) * y.mean().sin()
        found.append(torch.autograd.grad(penalty, [x, *layer.parameters()]))
    for ours, torchs in zip(*found, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-12, atol=1e-12)


def test_in_bf16_the_numbers_are_those_of_the_ordinary_layer():
    found = []
    for layer in pair(2, 2, 1, torch.float32):
        x = conv.channels_last(noise(3, 4, 8, 8).bfloat16()).requires_grad_()
        y = layer(x)
        found.append([y, *torch.autograd.grad((y.float() ** 2).sum(), [x, *layer.parameters()])])
    for ours, torchs in zip(*found, strict=True):
        assert ours.dtype == torchs.dtype
        assert torch.equal(ours, torchs)


def test_where_only_the_input_counts_no_gradient_of_weights_is_formed():
    layer, _ = pair(2, 1, 1)
    x = noise(2, 4, 5, 5).requires_grad_()
    with higher.of_input_only():
        y = layer(x).square().sum()
        dx, dw = torch.autograd.grad(y, [x, layer.weight], allow_unused=True, retain_graph=True)
        assert dw is None
    again, dw = torch.autograd.grad(y, [x, layer.weight])
    assert torch.equal(dx, again)
    assert math.isfinite(float(dw.sum()))


def test_the_rectifier_and_its_derivatives():
    x = torch.tensor([-2.0, -0.5, 0.25, 3.0], dtype=torch.float64, requires_grad=True)
    assert torch.equal(higher.leaky_relu(x, 0.2), F.leaky_relu(x, 0.2))
    assert torch.autograd.gradcheck(lambda v: higher.leaky_relu(v, 0.2), (x,))
    assert torch.autograd.gradgradcheck(lambda v: higher.leaky_relu(v**3, 0.2), (x,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_large_rectifiers_in_one_pass_are_torchs_bit_for_bit(dtype: torch.dtype, layout: torch.memory_format):
    if native.library() is None:
        pytest.skip("needs a C++ compiler")
    x, g = (noise(5, 33, 81, 83, seed=s, dtype=torch.float32).to(dtype).contiguous(memory_format=layout) for s in (1, 2))
    x[0, 0, 0, :3] = torch.tensor([0.0, math.inf, math.nan])
    assert native.sides(x, g)
    assert not native.sides(x, g.transpose(2, 3))
    assert not native.sides(x[:1], g[:1])
    for given in (x, g):
        law = torch.where(x > 0, given.float(), given.float() * 0.2).to(dtype)
        assert torch.equal(native.sided(x, given, 0.2).nan_to_num(7.0), law.nan_to_num(7.0))
    leaf = x.clone().requires_grad_()
    y = higher.leaky_relu(leaf, 0.2)
    assert torch.equal(y.nan_to_num(7.0), F.leaky_relu(x, 0.2).nan_to_num(7.0))
    (dx,) = torch.autograd.grad(y, leaf, g)
    assert torch.equal(dx, native.sided(x, g, 0.2))
