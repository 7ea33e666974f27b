"""Weights of public PixelCNNs as ours: the same outputs as their networks, restated, and the same pixels as their loop."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks._pixelcnns import gated_pixelcnn, gated_state, pixelcnnpp, pixelcnnpp_state
from nonesuch.core.seeds import Seeds
from nonesuch.models.autoregressive._public import folded, from_pixelcnnpp, from_pytorch_generative
from nonesuch.models.autoregressive.gated_pixelcnn import GatedPixelCNN
from nonesuch.models.autoregressive.pixelcnnpp import PixelCNNpp


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def tokens(model: PixelCNNpp | GatedPixelCNN, n: int) -> Tensor:
    return Seeds.of(4, n).integers("k", model.spec.levels or 0, model.raster.length, model.raster.values)


@torch.no_grad()
def outputs(model: PixelCNNpp | GatedPixelCNN, k: Tensor) -> Tensor:
    return model.outputs(k, model._condition(model.schema.missing(len(k))))


def odds(model: GatedPixelCNN, k: Tensor) -> Tensor:
    """Our log odds of white, as theirs (B, 1, H, W)."""
    log_p = model.head.logits(outputs(model, k).flatten(0, 1), k.flatten(0, 1), 0)
    return (log_p[:, 1] - log_p[:, 0]).view(len(k), 1, *model.spec.size)


def theirs_of(state: dict[str, Tensor], k: Tensor, model: PixelCNNpp) -> tuple[Tensor, ...]:
    """Log weights (B, T, K), means, log scales (B, T, C, K) and slopes (B, T, 3, K) or none, as their loss reads them."""
    channels, mixtures = model.spec.channels, model.config.mixtures
    out = pixelcnnpp(folded(state), model.raster.picture(k)).movedim(1, -1).flatten(1, 2)
    rest = out[..., mixtures:].unflatten(-1, (channels, -1, mixtures))
    return out[..., :mixtures].log_softmax(-1), rest[..., 0, :], rest[..., 1, :], *rest[..., 2:, :].tanh().unbind(-2)


def ours_of(model: PixelCNNpp, k: Tensor) -> tuple[Tensor, ...]:
    parts = model.head._parts(outputs(model, k))
    found = parts.log_weight, parts.mean.transpose(-1, -2), parts.log_scale.transpose(-1, -2)
    if model.spec.channels == 1:
        return found
    return *found, torch.stack([parts.slope[..., i, j] for i, j in ((1, 0), (2, 0), (2, 1))], -2)


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated:FutureWarning")
def test_weight_normalisation_is_folded_as_torch_folds_it(old: bool):
    normed = torch.nn.utils.weight_norm if old else torch.nn.utils.parametrizations.weight_norm
    net = torch.nn.Sequential(normed(torch.nn.ConvTranspose2d(3, 4, (2, 3))), normed(torch.nn.Linear(6, 2)))
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.add_(Seeds.of(1, 1).normal(name, *p.shape)[0])
        net(torch.zeros(1, 3, 5, 4))  # what is computed on the way in
        state = folded({f"module.{name}": tensor for name, tensor in net.state_dict().items()})
    assert state.keys() == {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert torch.allclose(state["0.weight"], net[0].weight)
    assert torch.allclose(state["1.weight"], net[1].weight)


@pytest.mark.parametrize(("channels", "size", "blocks"), [(1, (8, 12), 2), (3, (8, 4), 1)])
def test_a_pixelcnnpp_computes_what_theirs_does(channels: int, size: tuple[int, int], blocks: int):
    state = pixelcnnpp_state(32, blocks, channels, 5)
    model = from_pixelcnnpp(state, size)
    k = tokens(model, 4)
    wanted = theirs_of(state, k, model)
    for found, want in zip(ours_of(model, k), wanted, strict=True):
        assert error(found, want) <= 1e-5
    model.compute_dtype = torch.bfloat16
    for found, want in zip(ours_of(model, k), wanted, strict=True):
        assert error(found, want) <= 1e-2


@pytest.mark.parametrize("channels", [1, 3])
def test_its_likelihood_is_that_of_the_mixture_written_down(channels: int):
    state = pixelcnnpp_state(16, 1, channels, 5)
    model = from_pixelcnnpp(state, (4, 4))
    k = tokens(model, 3)
    k[0, 0] = torch.tensor([0, 255, 0])[:channels]
    weight, mean, scale, *slopes = (t.double() for t in theirs_of(state, k, model))
    x = (k.double() / 127.5 - 1)[..., None]  # (B, T, C, 1)
    if slopes:
        mean = mean.clone()
        mean[..., 1, :] += slopes[0][..., 0, :] * x[..., 0, :]
        mean[..., 2, :] += slopes[0][..., 1, :] * x[..., 0, :] + slopes[0][..., 2, :] * x[..., 1, :]
    upper, lower = (torch.sigmoid((x + d - mean) / scale.exp()) for d in (1 / 255, -1 / 255))
    mass = torch.where(k[..., None] == 255, 1.0, upper) - torch.where(k[..., None] == 0, 0.0, lower)
    nats = (weight + mass.log().sum(-2)).logsumexp(-1).sum(1)
    assert torch.allclose(model.log_prob(model.raster.picture(k)).nats.double(), nats, rtol=1e-5)


def test_its_pixels_are_those_of_their_loop():
    state = pixelcnnpp_state(16, 1, 1, 5)
    model, n = from_pixelcnnpp(state, (4, 8)), 6
    u = Seeds.of(2, n).uniform("value", 32, 1, 2)[:, :, 0]
    k = torch.zeros(n, 32, 1, dtype=torch.int64)
    for i in range(32):
        weight, mean, scale = (t[:, i] for t in theirs_of(state, k, model))
        which = (u[:, i, :1] > weight.exp().cumsum(-1)).sum(-1, keepdim=True)
        mean, scale = mean[:, 0].gather(1, which)[:, 0], scale[:, 0].gather(1, which)[:, 0].exp()
        x = mean + scale * (u[:, i, 1].log() - torch.log1p(-u[:, i, 1]))
        k[:, i, 0] = ((x.clamp(-1, 1) + 1) * 127.5).round().long()
    assert torch.equal(model.raster.tokens(model.sample(n, seeds=2)), k)


def test_a_gated_pixelcnn_computes_what_theirs_does():
    state = gated_state(32, 3)
    model = from_pytorch_generative({**state, "_c": torch.tensor(1)}, (9, 7))
    k = tokens(model, 4)
    wanted = gated_pixelcnn(state, model.raster.picture(k) / 2 + 0.5)
    assert error(odds(model, k), wanted) <= 1e-5
    model.compute_dtype = torch.bfloat16
    assert error(odds(model, k), wanted) <= 1e-2


def test_its_pixels_are_those_of_their_loop_too():
    state = gated_state(16, 2)
    model, n = from_pytorch_generative(state, (5, 6)), 8
    u = Seeds.of(2, n).uniform("value", 30)
    x = -torch.ones(n, 1, 5, 6)  # what is not drawn yet, as they mark it
    for i in range(30):
        p = torch.sigmoid(gated_pixelcnn(state, x).flatten(1)[:, i])
        x.view(n, 30)[:, i] = (u[:, i] > 1 - p).float()
    assert torch.equal(model.sample(n, seeds=2), 2 * x - 1)
    assert 0.2 < x.mean() < 0.8


def test_another_state_dict_is_refused_by_name():
    state = pixelcnnpp_state(8, 1, 1, 2)
    with pytest.raises(ValueError, match="it has no 'u_init"):
        from_pixelcnnpp(gated_state(8, 1))
    with pytest.raises(ValueError, match="_input"):
        from_pytorch_generative(state)
    with pytest.raises(ValueError, match="multiples of 4"):
        from_pixelcnnpp(state, (8, 6))
    with pytest.raises(ValueError, match="more_of_it is missing or differs"):
        from_pixelcnnpp({**state, "more_of_it": torch.zeros(1)})
    with pytest.raises(ValueError, match="1 or 3 channels"):
        from_pixelcnnpp(pixelcnnpp_state(8, 1, 2, 2))
    colour = {
        n: t.repeat(1, 3, 1, 1) if n.startswith("_input") and t.shape[1:2] == (1,) else t for n, t in gated_state(8, 1).items()
    }
    with pytest.raises(ValueError, match="one channel"):
        from_pytorch_generative(colour)
