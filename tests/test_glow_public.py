"""Glow's published form, and weights of glow-pytorch's Glow as ours: the same latents, densities and pictures as their network,
restated here in plain convolutions and dense matrices.
"""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from of_flows import continuous, log_abs_det, normals, shake
from safetensors.torch import save_file
from torch import Tensor

import nonesuch as ns
from nonesuch import catalog
from nonesuch.core.given import Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds
from nonesuch.models.flow._affine import StepsAndPriors
from nonesuch.models.flow._public import _renamed, from_glow_pytorch

State = dict[str, Tensor]


def made(channels: int, flows: int, blocks: int, hidden: int = 32, affine: bool = True, lu: bool = True) -> State:
    """A state dict as theirs, float32, with networks that speak and ActNorms of both signs."""
    state: State = {}
    for i in range(blocks):
        c = channels * 2 ** (i + 2)
        layers = {"prior": (c, 2 * c) if i + 1 == blocks else (c // 2, c)}
        for k in range(flows):
            at = f"blocks.{i}.flows.{k}"
            state[f"{at}.actnorm.loc"] = 0.3 * normals(f"{at}.loc", 1, c, 1, 1)
            scale = (0.2 * normals(f"{at}.scale", 1, c, 1, 1)).exp()
            state[f"{at}.actnorm.scale"] = scale * normals(f"{at}.sign", 1, c, 1, 1).sign()
            state[f"{at}.actnorm.initialized"] = torch.tensor(1, dtype=torch.uint8)
            rotation = torch.linalg.qr(normals(f"{at}.w", c, c))[0]
            if not lu and i + 1 < blocks:  # their last block has LU whatever is asked
                state[f"{at}.invconv.weight"] = rotation[:, :, None, None]
            else:
                p, lower, upper = torch.linalg.lu(rotation)
                above = torch.ones(c, c).triu(1)
                state |= {
                    f"{at}.invconv.w_p": p, f"{at}.invconv.u_mask": above, f"{at}.invconv.l_mask": above.T.contiguous(),
                    f"{at}.invconv.s_sign": upper.diagonal().sign(), f"{at}.invconv.l_eye": torch.eye(c),
                    f"{at}.invconv.w_l": lower + 0.1 * normals(f"{at}.junk", c, c).triu(), # beyond the mask: must not be read
                    f"{at}.invconv.w_s": upper.diagonal().abs().log(), f"{at}.invconv.w_u": upper.triu(1),
                }  # fmt: skip
            net = f"{at}.coupling.net"
            for n, inner, side in ((0, c // 2, 3), (2, hidden, 1)):
                state[f"{net}.{n}.weight"] = normals(f"{net}{n}", hidden, inner, side, side) * math.sqrt(2 / inner) / side
                state[f"{net}.{n}.bias"] = 0.2 * normals(f"{net}{n}b", hidden)
            layers[f"flows.{k}.coupling.net.4"] = (hidden, c if affine else c // 2)
        for name, (inner, out) in layers.items():
            at = f"blocks.{i}.{name}"
            state[f"{at}.conv.weight"] = 0.05 * normals(f"{at}w", out, inner, 3, 3) / math.sqrt(inner)
            state[f"{at}.conv.bias"] = 0.3 * normals(f"{at}b", out)
            state[f"{at}.scale"] = 0.1 * normals(f"{at}s", 1, out, 1, 1)
    return state


class Theirs:
    """Their network, of a state in any dtype."""

    def __init__(self, state: State, dtype: torch.dtype) -> None:
        self.state = {name: tensor.to(dtype) for name, tensor in state.items()}
        self.blocks = 1 + max(int(name.split(".")[1]) for name in state)
        self.flows = 1 + max(int(name.split(".")[3]) for name in state if ".flows." in name)

    def ends(self, layer: str, x: Tensor) -> Tensor:
        s = self.state
        y = F.conv2d(F.pad(x, (1, 1, 1, 1), value=1.0), s[f"{layer}.conv.weight"], s[f"{layer}.conv.bias"])
        return y * torch.exp(3 * s[f"{layer}.scale"])

    def matrix(self, at: str) -> Tensor:
        s = self.state
        if f"{at}.weight" in s:
            return s[f"{at}.weight"][:, :, 0, 0]
        lower = s[f"{at}.w_l"] * s[f"{at}.l_mask"] + s[f"{at}.l_eye"]
        upper = s[f"{at}.w_u"] * s[f"{at}.u_mask"] + torch.diag(s[f"{at}.s_sign"] * s[f"{at}.w_s"].exp())
        return s[f"{at}.w_p"] @ lower @ upper

    def coupling(self, at: str, kept: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """s and t."""
        h = F.conv2d(kept, self.state[f"{at}.0.weight"], self.state[f"{at}.0.bias"], padding=1).relu()
        h = F.conv2d(h, self.state[f"{at}.2.weight"], self.state[f"{at}.2.bias"]).relu()
        out = self.ends(f"{at}.4", h)
        if out.shape == moved.shape:  # without scales
            return torch.ones_like(moved), out
        log_s, t = out.chunk(2, 1)
        return (log_s + 2).sigmoid(), t

    def prior(self, i: int, stay: Tensor) -> tuple[Tensor, Tensor]:
        return self.ends(f"blocks.{i}.prior", stay).chunk(2, 1)

    def __call__(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor]:
        """eps of every scale (B, c, h, w), the log det of all of them by x, and log p(x), (B,)."""
        eps, log_det, log_p, log_sds = [], *torch.zeros(3, len(x), dtype=x.dtype)
        for i in range(self.blocks):
            x = F.pixel_unshuffle(x, 2)
            for k in range(self.flows):
                at = f"blocks.{i}.flows.{k}"
                scale, w = self.state[f"{at}.actnorm.scale"], self.matrix(f"{at}.invconv")
                x = F.conv2d(scale * (x + self.state[f"{at}.actnorm.loc"]), w[:, :, None, None])
                log_det = log_det + (scale.abs().log().sum() + torch.linalg.slogdet(w)[1]) * x[0, 0].numel()
                kept, moved = x.chunk(2, 1)
                s, t = self.coupling(f"{at}.coupling.net", kept, moved)
                x = torch.cat([kept, (moved + t) * s], 1)
                log_det = log_det + s.log().flatten(1).sum(1)
            stay, z = x.chunk(2, 1) if i + 1 < self.blocks else (x * 0, x)
            mean, log_sd = self.prior(i, stay)
            eps.append((z - mean) / log_sd.exp())
            log_p = log_p + torch.distributions.Normal(mean, log_sd.exp()).log_prob(z).flatten(1).sum(1)
            log_sds = log_sds + log_sd.flatten(1).sum(1)
            x = stay
        return eps, log_det - log_sds, log_p + log_det

    def reverse(self, eps: list[Tensor]) -> Tensor:
        x = torch.zeros_like(eps[-1])
        for i in reversed(range(self.blocks)):
            mean, log_sd = self.prior(i, x)
            z = eps[i] * log_sd.exp() + mean
            x = z if i + 1 == self.blocks else torch.cat([x, z], 1)
            for k in reversed(range(self.flows)):
                at = f"blocks.{i}.flows.{k}"
                kept, moved = x.chunk(2, 1)
                s, t = self.coupling(f"{at}.coupling.net", kept, moved)
                x = F.conv2d(torch.cat([kept, moved / s - t], 1), self.matrix(f"{at}.invconv").inverse()[:, :, None, None])
                x = x / self.state[f"{at}.actnorm.scale"] - self.state[f"{at}.actnorm.loc"]
            x = F.pixel_shuffle(x, 2)
        return x


def flat(eps: list[Tensor]) -> Tensor:
    """(B, values) in our order, channels innermost."""
    return torch.cat([e.movedim(1, -1).flatten(1) for e in eps], 1)


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted.double()).norm() / wanted.double().norm())


NETWORKS = [
    pytest.param({"channels": 3, "flows": 4, "blocks": 3}, (16, 24), id="affine"),
    pytest.param({"channels": 3, "flows": 4, "blocks": 2, "lu": False}, (8, 8), id="no LU"),
    pytest.param({"channels": 1, "flows": 3, "blocks": 2, "affine": False}, (4, 12), id="additive"),
    pytest.param({"channels": 2, "flows": 2, "blocks": 1, "hidden": 8}, (2, 2), id="one place"),
]


# -- parity ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(("network", "size"), NETWORKS)
def test_latents_of_every_scale_log_det_and_inverse_are_theirs(network: dict[str, int], size: tuple[int, int]):
    state = made(**network)
    model = from_glow_pytorch({f"module.{name}": tensor for name, tensor in state.items()}, size)
    x = normals("x", 8, network["channels"], *size) / 4
    eps, log_det, _ = Theirs(state, torch.float32)(x)
    assert min(float(e.std()) for e in eps) > 0.1
    z, ours = model.flow(x, None, torch.float32)
    for part, wanted in zip(z.split([e[0].numel() for e in eps], 1), eps, strict=True):
        assert error(part, flat([wanted])) <= 1e-5
    assert error(ours, log_det) <= 1e-5
    noise = [0.7 * normals(f"eps{i}", *e.shape) for i, e in enumerate(eps)]
    assert error(model.flow.inverse(flat(noise), None, torch.float32), Theirs(state, torch.float32).reverse(noise)) <= 1e-5
    assert error(model.flow.inverse(flat(eps), None, torch.float32), x) <= 1e-5
    half, log_det_of_half = model.flow(x, None, torch.bfloat16)
    assert error(half, flat(eps)) <= 1e-2
    assert error(log_det_of_half, log_det) <= 1e-2


@torch.no_grad()
@pytest.mark.parametrize(("network", "size"), NETWORKS)
def test_in_double_precision_they_agree_to_its_rounding(network: dict[str, int], size: tuple[int, int]):
    state = {name: tensor.double() for name, tensor in made(**network).items()}
    ours = from_glow_pytorch(state, size)
    exact = _renamed(state, network["blocks"], network["flows"])  # before they are rounded to the model's float32
    flow = ours.flow.double()
    flow.load_state_dict({name.removeprefix("flow."): tensor for name, tensor in exact.items()})
    x = normals("x", 2, network["channels"], *size).double()
    eps, log_det, _ = Theirs(state, torch.float64)(x)
    found, ours_log_det = flow(x, None, torch.float64)
    torch.testing.assert_close(found, flat(eps), atol=1e-11, rtol=1e-11)
    torch.testing.assert_close(ours_log_det, log_det, atol=1e-9, rtol=1e-11)


# -- the model ------------------------------------------------------------------------------------------------------------------

SMALL: dict[str, int] = {"channels": 3, "flows": 2, "blocks": 2, "hidden": 16}


def small(bits: int = 5) -> tuple[ns.Model, Theirs]:
    state = made(**SMALL)
    return from_glow_pytorch(state, (8, 8), bits), Theirs(state, torch.float32)


@torch.no_grad()
def test_the_bound_on_pictures_is_that_of_their_loss():
    model, theirs = small()
    k = Seeds.of(0, 6).integers("k", 32, 3, 8, 8)
    u = Seeds.of(1, 6).uniform("dequantize", 3, 8, 8)
    wanted = theirs(k / 32 - 0.5 + u / 32)[2] - 3 * 8 * 8 * math.log(32)
    found = model.log_prob(model.spec.from_levels(k), seeds=1)
    assert found.kind == "bound"
    torch.testing.assert_close(found.nats, wanted, atol=0, rtol=1e-5)


@torch.no_grad()
def test_samples_are_theirs_of_the_same_noise():
    model, theirs = small()
    noise = model.prior(16, seeds=2)
    parts = zip(noise.split([4 * 4 * 6, 2 * 2 * 24], 1), [(4, 4, 6), (2, 2, 24)], strict=True)
    wanted = ((theirs.reverse([e.view(-1, *s).movedim(-1, 1) for e, s in parts]) + 0.5) * 32).floor().clamp(0, 31)
    found = model.spec.to_levels(model.sample(16, seeds=2))
    assert (found == wanted).float().mean() > 0.999  # all but those that rounding carries over an edge
    assert wanted.unique().numel() > 16
    assert (model.decode(noise).abs() <= 1).all()


def test_decode_of_encode_is_the_picture_and_levels_are_the_first_bits():
    for bits in (1, 5, 8):
        model = small(bits)[0]
        values = Seeds.of(0, 8).integers("v", 256, 3, 8, 8)
        x = model.spec.from_values(values)
        assert torch.equal(model.spec.to_levels(x), values >> (8 - bits))
        back = model.decode(model.encode(x, seeds=1))
        assert (back - x).abs().max() <= model.spec.step * 0.51
        assert (model.spec.snap(back) == x).float().mean() > 0.995
        assert (model.spec.to_values(x) - values).abs().max() <= 128 >> bits


def test_a_file_is_read_and_the_model_saved_and_loaded(tmp_path: Path):
    state = made(**SMALL)
    save_file(state, tmp_path / "theirs.safetensors")
    model = ns.from_glow_pytorch(tmp_path / "theirs.safetensors", (8, 8))
    ns.save(model, tmp_path / "ours")
    again = ns.load(tmp_path / "ours")
    expected = from_glow_pytorch(state, (8, 8)).state_dict()
    for found in (model, again):
        assert all(torch.equal(tensor, expected[name]) for name, tensor in found.state_dict().items())
    assert again.config.published
    again.compute_dtype = torch.float32
    torch.testing.assert_close(again.sample(2, seeds=1), model.sample(2, seeds=1), atol=1e-6, rtol=0)


def test_the_published_form_learns():
    spec = ImageSpec(1, (4, 4), levels=8)
    x = spec.from_levels(Seeds.of(0, 512).integers("k", 3, 1, 4, 4) + 2)  # three levels of eight: log2(3) bits
    recipe = {"published": True, "dequantize": 0, "scales": 2, "steps": 3, "hidden": 24}
    model = catalog.build("flow/glow", spec, Schema(), "tiny", **recipe)
    model.prepare(x, ns.Given(512))
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    losses = []
    for i in range(120):
        batch = ns.core.objective.Batch(x[i % 4 * 128 :][:128], ns.Given(128), Seeds.of(i, 128))
        loss = sum(model.objectives()[0].terms(batch).loss.values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert math.log2(3) - 0.02 < sum(losses[-10:]) / 10 < losses[0] - 0.1
    edges = [p for name, p in model.named_parameters() if "edge" in name]
    assert len(edges) == 8
    assert all(p.abs().max() > 0 for p in edges)


@pytest.mark.parametrize("width", [0, 8])
@pytest.mark.parametrize(("channels", "size"), [(2, (4, 4)), (3, (3, 5)), (1, (6,)), (1, (2, 2, 2)), (5, (1,))])
def test_the_published_flow_inverts_and_its_log_det_is_autograds(width: int, channels: int, size: tuple[int, ...]):
    net = shake(StepsAndPriors(channels, size, 3, 2, 12, width, published=True), 1.5).double()
    x, c = normals("x", 2, channels, *size).double(), normals("c", 2, width).double() if width else None
    z, log_det = net(x, c, torch.float64)
    torch.testing.assert_close(net.inverse(z, c, torch.float64), x, atol=1e-9, rtol=1e-9)
    first = c[:1] if c is not None else None
    expected = log_abs_det(lambda v: net(v, first, torch.float64)[0], x[:1])
    torch.testing.assert_close(log_det[:1], expected, atol=1e-9, rtol=1e-9)


def test_the_published_form_of_continuous_pictures_has_a_density():
    model = shake(catalog.build("flow/glow", continuous(2, (2, 2)), Schema(), "tiny", published=True, dequantize=0))
    model.images_seen.fill_(1)
    x = normals("x", 3, 2, 2, 2)
    normal = torch.distributions.Normal(0.0, 1.0).log_prob(model.encode(x)).sum(1)
    torch.testing.assert_close(model.log_prob(x).nats, normal + log_abs_det(lambda v: model.encode(v), x), atol=1e-3, rtol=1e-4)


# -- what is refused ------------------------------------------------------------------------------------------------------------


def changed(**tensors: Tensor | None) -> State:
    """A good state with some tensors in the place of its own, or with none."""
    state = made(**SMALL) | {name.replace("__", "."): tensor for name, tensor in tensors.items() if tensor is not None}
    return {name: tensor for name, tensor in state.items() if tensors.get(name.replace(".", "__"), tensor) is not None}


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"more": torch.zeros(1)}, "more is missing, unknown or of another shape"),
        ({"blocks__1__prior__scale": None}, r"blocks\.1\.prior\.scale is missing"),
        ({"blocks__0__flows__0__actnorm__loc": None}, "it has no 'blocks.0.flows.0.actnorm.loc'"),
        (
            {"blocks__0__flows__1__coupling__net__2__weight": torch.zeros(16, 16, 3, 3)},
            r"net\.2\.weight is missing, unknown or of",
        ),
        ({"blocks__1__flows__0__actnorm__scale": torch.zeros(1, 24, 1, 1)}, "cannot be inverted: flow.scales.1.mixes.log_scale"),
        ({"blocks__0__prior__conv__bias": torch.full((12,), math.nan)}, "cannot be inverted: flow.priors.0"),
        ({"blocks__1__flows__1__invconv__w_p": torch.ones(24, 24)}, "w_p is no permutation"),
        ({"blocks__1__flows__1__actnorm__initialized": torch.tensor(0)}, "has seen no data yet"),
    ],
)
def test_another_network_is_refused_by_name(tensors: dict[str, Tensor | None], said: str):
    with pytest.raises(ValueError, match=said):
        from_glow_pytorch(changed(**tensors), (8, 8))


def test_sizes_bits_and_files_are_refused_in_a_sentence(tmp_path: Path):
    state = made(**SMALL)
    with pytest.raises(ValueError, match=r"halves 2 times and takes \(H, W\) in multiples of 4, not \(8, 6\)"):
        from_glow_pytorch(state, (8, 6))
    with pytest.raises(ValueError, match="bits must be from 1 to 8, not 9"):
        from_glow_pytorch(state, (8, 8), 9)
    with pytest.raises(ValueError, match="no state dict of glow-pytorch's Glow"):
        from_glow_pytorch({})
    (tmp_path / "model.pt").write_bytes(b"")
    with pytest.raises(ValueError, match="pickles are never read here"):
        from_glow_pytorch(tmp_path / "model.pt")
    (tmp_path / "broken.safetensors").write_bytes(b"no header")
    for name in ("broken", "absent"):
        with pytest.raises(ValueError, match="cannot be read as a safetensors file"):
            from_glow_pytorch(tmp_path / f"{name}.safetensors")
    with pytest.raises(ValueError, match="set dequantize to 0, or published to False"):
        catalog.build("flow/glow", ImageSpec(1, (4, 4), levels=4), Schema(), "tiny", published=True)
