"""Blocks against closed forms and torch's own layers: in one, two and three dimensions, in the dtype of the input."""

import math
from typing import TypeVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nonesuch.core.given import Category, Given, Image, Number, Schema, Text
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.nn.attention import Attention
from nonesuch.nn.conv import Conv, Dropout, Linear, channels_last, depth_to_space, downsample, space_to_depth, upsample, zero
from nonesuch.nn.embed import Fourier, GivenEmbedding, sinusoidal
from nonesuch.nn.norm import ChannelNorm, LayerNorm, rms_norm
from nonesuch.nn.transformer import Block
from nonesuch.nn.unet import PixelAttention, ResBlock, UNet

Module = TypeVar("Module", bound=nn.Module)
ODD = {1: (7,), 2: (5, 7), 3: (3, 5, 4)}
EVEN = {1: (8,), 2: (4, 6), 3: (4, 2, 6)}


def noise(*shape: int, name: str = "x") -> Tensor:
    return Seeds.of(0, shape[0]).normal(name, *shape[1:])


def awake(module: Module) -> Module:
    """The module with every weight drawn, those that start at zero too."""
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(noise(1, *p.shape, name=name)[0] / math.sqrt(max(1, p[0].numel())))
    return module


# -- changes of resolution


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("factor", [1, 2, 3])
def test_space_to_depth_is_a_bijection_of_cells(dims: int, factor: int):
    size = [factor * s for s in (2, 3, 4)[:dims]]
    x = torch.arange(2 * 3 * math.prod(size)).view(2, 3, *size)
    y = space_to_depth(x, factor)
    assert y.shape == (2, 3 * factor**dims, *[s // factor for s in size])
    assert torch.equal(depth_to_space(y, factor), x)
    cell = x[(0, 0, *[slice(0, factor)] * dims)].flatten()  # the first cell of the first channel, in reading order
    assert torch.equal(y[(0, slice(0, factor**dims), *[0] * dims)], cell)


def test_two_dimensions_agree_with_torch():
    x = noise(2, 3, 6, 8)
    assert torch.equal(space_to_depth(x), F.pixel_unshuffle(x, 2))
    assert torch.equal(depth_to_space(noise(2, 12, 3, 4)), F.pixel_shuffle(noise(2, 12, 3, 4), 2))


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_down_is_the_mean_of_a_cell_and_up_its_copy(dims: int):
    x = noise(2, 3, *EVEN[dims])
    means = space_to_depth(x).view(2, 3, 2**dims, *[s // 2 for s in EVEN[dims]]).mean(2)
    assert torch.allclose(downsample(x), means, atol=1e-6)
    assert torch.allclose(downsample(upsample(x)), x, atol=1e-6)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_channels_last_changes_the_layout_and_no_value(dims: int):
    x = noise(2, 3, *ODD[dims])
    assert torch.equal(channels_last(x), x)
    assert dims == 1 or channels_last(x).stride(1) == 1


# -- layers against torch's


@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize(("kernel", "stride", "groups"), [(1, 1, 1), (3, 1, 1), (5, 1, 2), (3, 2, 1), (1, 1, 2)])
def test_a_convolution_is_torchs_and_so_is_its_gradient(dims: int, kernel: int, stride: int, groups: int):
    mine = awake(Conv(dims, 4, 6, kernel, stride, groups))
    theirs = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1](4, 6, kernel, stride, kernel // 2, groups=groups)
    theirs.load_state_dict(mine.state_dict())
    x = noise(2, 4, *ODD[dims])
    a, b = mine(x), theirs(x)
    assert torch.allclose(a, b, atol=1e-5)
    assert stride > 1 or a.shape[2:] == x.shape[2:]
    grads = [torch.autograd.grad(y.square().sum(), m.weight)[0] for y, m in ((a, mine), (b, theirs))]
    assert torch.allclose(*grads, rtol=1e-4, atol=1e-4)


def test_layer_norms_are_torchs():
    width = 6
    theirs = awake(nn.LayerNorm(width))
    mine, over_channels = LayerNorm(width), ChannelNorm(width)
    mine.load_state_dict(theirs.state_dict())
    over_channels.norm.load_state_dict(theirs.state_dict())
    x = noise(3, 4, 5, width) * 7 + 2
    assert torch.allclose(mine(x), theirs(x), atol=1e-5)
    assert torch.allclose(over_channels(x.movedim(-1, 1)), theirs(x).movedim(-1, 1), atol=1e-5)
    plain = ChannelNorm(width, affine=False)(x.movedim(-1, 1))
    assert torch.allclose(plain, F.layer_norm(x, (width,)).movedim(-1, 1), atol=1e-5)
    assert not list(LayerNorm(width, affine=False).parameters())


@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_rms_norm_has_rms_one(scale: float):
    x = noise(3, 4, 64) * scale
    assert torch.allclose(rms_norm(x).square().mean(-1), torch.ones(3, 4), rtol=2e-2 if scale < 1 else 1e-4)
    assert torch.allclose(rms_norm(x, 1e-6), F.rms_norm(x, (64,), eps=1e-6), atol=1e-5)


def test_statistics_of_half_precision_are_taken_in_float32():
    x = (noise(2, 256) * 1e4).bfloat16()
    assert torch.equal(rms_norm(x), rms_norm(x.float()).bfloat16())


# -- attention


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_softmax_of_its_equation(causal: bool):
    layer, x = awake(Attention(12, 3, causal)), noise(2, 5, 12)
    q, k, v = layer.qkv(x).view(2, 5, 3, 3, 4).double().permute(2, 0, 3, 1, 4)
    q, k = (F.rms_norm(h, (4,), eps=1e-6) for h in (q, k))
    scores = q @ k.transpose(-1, -2) / math.sqrt(4)
    if causal:
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -math.inf)
    wanted = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    assert torch.allclose(layer(x), layer.out(wanted.float()), atol=1e-5)


def test_a_causal_position_sees_no_later_one():
    layer, x = awake(Attention(8, 2, causal=True)), noise(1, 6, 8)
    changed = x.clone()
    changed[:, 4:] += 1
    assert torch.equal(layer(x)[:, :4], layer(changed)[:, :4])
    assert not torch.allclose(layer(x)[:, 4:], layer(changed)[:, 4:])


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="the width 10 must be a multiple of num_heads 4"):
        Attention(10, 4)


# -- networks in one, two and three dimensions


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_unet_keeps_odd_sizes_and_reaches_every_pixel(dims: int):
    net = awake(UNet(dims, 2, 3, 8, (1, 2, 2), 1, (False, True, True), 10, num_heads=2))
    x, c = noise(2, 2, *ODD[dims]).requires_grad_(), noise(2, 10, name="c").requires_grad_()
    y = net(x, c)
    assert y.shape == (2, 3, *ODD[dims])
    dx, dc = torch.autograd.grad(y[0, 0].sum(), [x, c], retain_graph=True)
    assert (dx[0] != 0).all()
    assert (dc[0] != 0).all()
    assert (dx[1] == 0).all()  # an image does not depend on the one beside it
    assert (dc[1] == 0).all()
    for (name, p), g in zip(net.named_parameters(), torch.autograd.grad(y.square().sum(), list(net.parameters())), strict=True):
        assert g.shape == p.shape
        assert g.abs().sum() > 0, f"{name} has no gradient"


@pytest.mark.parametrize("size", [(1, 1), (1, 5), (2, 2)])
def test_a_unet_of_a_picture_smaller_than_its_levels(size: tuple[int, int]):
    net = awake(UNet(2, 1, 1, 8, (1, 1, 1), 1, (False, False, True), 4))
    assert net(noise(2, 1, *size), noise(2, 4)).shape == (2, 1, *size)


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_a_residual_block_is_its_equation(dims: int):
    block, x, c = awake(ResBlock(dims, 4, 6, 5)), noise(2, 4, *ODD[dims]), noise(2, 5, name="c")
    over = lambda v: v.view(2, -1, *[1] * dims)  # noqa: E731
    scale, shift = block.modulation(c).chunk(2, 1)
    h = block.norm2(block.conv1(F.silu(block.norm1(x)))) * (1 + over(scale)) + over(shift)
    assert torch.allclose(block(x, c), block.skip(x) + block.conv2(F.silu(h)), atol=1e-5)


def test_blocks_start_as_the_identity():
    torch.manual_seed(0)
    x, c = noise(2, 8, 5, 4), noise(2, 6, name="c")
    block, tokens = ResBlock(2, 8, 8, 6), Block(8, 2)
    with torch.no_grad():
        for layer in (*block.modules(), *tokens.modules()):
            if getattr(layer, "gain", 1.0) == 0:
                nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    assert torch.equal(block(x, c), x)
    assert torch.equal(tokens(x.flatten(2).transpose(1, 2), c[:, :8].repeat(1, 2)[:, :8]), x.flatten(2).transpose(1, 2))
    assert zero(Linear(2, 2)).gain == 0


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_attention_between_pixels_does_not_care_for_their_order(dims: int):
    layer, x = awake(PixelAttention(8, 2)), noise(2, 8, *ODD[dims])
    flipped = layer(x.flip(-1)).flip(-1)
    assert torch.allclose(layer(x), flipped, atol=1e-5)


# -- precision


def networks() -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    c = noise(2, 10, name="c")
    return {
        "conv": (Conv(2, 4, 4), (noise(2, 4, 5, 6),)),
        "pointwise": (Conv(2, 4, 4, 1), (noise(2, 4, 5, 6),)),
        "linear": (Linear(10, 4), (c,)),
        "norm": (ChannelNorm(4), (noise(2, 4, 5, 6),)),
        "attention": (Attention(10, 2), (noise(2, 7, 10),)),
        "block": (Block(10, 2), (noise(2, 7, 10), c)),
        "resblock": (ResBlock(2, 4, 8, 10), (noise(2, 4, 5, 6), c)),
        "unet": (UNet(2, 4, 4, 8, (1, 2), 1, (False, True), 10), (noise(2, 4, 5, 6), c)),
    }


@pytest.mark.parametrize("name", networks())
def test_the_dtype_is_that_of_the_input(name: str):
    module, (x, *rest) = networks()[name]
    module = awake(module)
    wide, half = module(x, *rest), module(x.bfloat16(), *rest)
    assert (wide.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    assert all(p.dtype == torch.float32 for p in module.parameters())
    assert (wide - half.float()).norm() <= 0.03 * wide.norm()
    grads = torch.autograd.grad(half.float().square().mean(), list(module.parameters()), allow_unused=True)
    assert all(g is None or g.dtype == torch.float32 for g in grads)


@pytest.mark.parametrize("name", networks())
def test_train_and_eval_are_the_same(name: str):
    module, arguments = networks()[name]
    module = awake(module)
    assert torch.equal(module.train()(*arguments), module.eval()(*arguments))


# -- dropout


def test_dropout_belongs_to_the_picture_and_keeps_the_mean():
    drop, x = Dropout(0.25, "d"), torch.ones(64, 1000)
    y = drop(x, Seeds.of(0, 64))
    assert torch.equal(drop(x[5:9], Seeds.of(0, 64)[5:9]), y[5:9])
    assert abs((y == 0).double().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 64_000)
    assert abs(y.mean() - 1) < 0.02
    assert drop(x, None) is x
    assert Dropout(0.0, "d")(x, Seeds.of(0, 64)) is x
    assert not torch.equal(Dropout(0.25, "e")(x, Seeds.of(0, 64)), y)


def test_shared_dropout_drops_the_same_units_at_all_positions():
    y = Dropout(0.5, "d", shared=True)(torch.ones(4, 9, 50), Seeds.of(0, 4))
    assert torch.equal(y, y[:, :1].expand_as(y))
    assert not torch.equal(y[0], y[1])


# -- vectors for times and conditions


def test_sinusoids_are_their_closed_form():
    t = torch.tensor([0.0, 0.5, 3.0])
    y = sinusoidal(t, 7, 100.0)
    frequencies = [1.0, 100 ** (-1 / 3), 100 ** (-2 / 3)]
    wanted = [[math.cos(v * f) for f in frequencies] + [math.sin(v * f) for f in frequencies] + [0.0] for v in t.tolist()]
    assert torch.allclose(y, torch.tensor(wanted), atol=1e-6)


def test_fourier_features_have_the_kernel_of_a_gaussian():
    """E[f(a) f(b)] over normal frequencies and uniform phases is exp(-(2 pi bandwidth (a - b))^2 / 2)."""
    features, a, b = Fourier(20_000, 0.25), torch.tensor([0.3]), torch.tensor([0.3, 0.5, 1.3])
    found = (features(a) * features(b)).mean(1)
    assert torch.allclose(found, torch.exp(-((2 * math.pi * 0.25 * (a - b)) ** 2) / 2), atol=0.03)


MANY = Schema({"kind": Category(("a", "b")), "age": Number(50, 10), "title": Text(6)})


def told(schema: Schema = MANY, **given: object) -> Given:
    return schema.given(1, given or None)


def test_each_value_and_each_missing_value_has_its_own_vector():
    embed = awake(GivenEmbedding(MANY, 9))
    asked = [
        {}, {"kind": "a"}, {"kind": "b"}, {"age": 50}, {"age": 60}, {"title": "a"}, {"title": "b"}, {"title": ""},
        {"title": "ab"}, {"title": "ba"}, {"title": "🐈"}, {"kind": "a", "age": 50},
    ]  # fmt: skip
    vectors = torch.cat([embed(told(**g), 1, torch.device("cpu")) for g in asked])
    distance = torch.cdist(vectors, vectors) + 9 * torch.eye(len(asked))
    assert distance.min() > 1e-3
    assert torch.isfinite(vectors).all()


def test_columns_add_up_and_rows_are_alone():
    embed = awake(GivenEmbedding(MANY, 9))
    where = torch.device("cpu")
    rows = [told(kind="a"), told(kind="b", age=60), told(title="é")]
    together = embed(rows[0] + rows[1] + rows[2], 3, where)
    assert torch.allclose(together, torch.cat([embed(r, 1, where) for r in rows]), atol=1e-5)
    none, kind, age, both = (embed(told(**g), 1, where) for g in ({}, {"kind": "b"}, {"age": 60}, {"kind": "b", "age": 60}))
    assert torch.allclose(both - none, (kind - none) + (age - none), atol=1e-5)


def test_conditions_have_gradients_where_they_are_said():
    embed = awake(GivenEmbedding(MANY, 9))
    names = [n for n, _ in embed.named_parameters()]
    for given in (told(), told(kind="a", age=60, title="ab")):
        total = embed(given, 1, torch.device("cpu")).square().sum()
        grads = dict(zip(names, torch.autograd.grad(total, list(embed.parameters())), strict=True))
        assert all(torch.isfinite(g).all() for g in grads.values())
        row = 2 if int(given.columns["kind"][0]) < 0 else 0
        assert grads["layers.0.weight"].abs().sum(1).nonzero().flatten().tolist() == [row]
    assert all(g.abs().sum() > 0 for g in grads.values())


def test_no_condition_embeds_to_nothing():
    embed = GivenEmbedding(Schema(), 5)
    assert not list(embed.parameters())
    assert torch.equal(embed(Given(3), 3, torch.device("cpu")), torch.zeros(3, 5))


def test_a_column_of_images_is_refused():
    with pytest.raises(ValueError, match="cannot be given images, and 'sketch'"):
        GivenEmbedding(Schema({"sketch": Image(ImageSpec(1, (2, 2)))}), 5)
