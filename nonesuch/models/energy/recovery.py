"""An energy at every level of noise, trained on the conditionals that one step of noise leaves, and sampled down the levels.

Let y_s = z + s eps be the (standardised) image z under noise of deviation s, and E(y, s | given) the energy of its law:

    p_s(y | given) = exp(-E(y, s | given)) / Z(s, given),        E(x | given) = E(x, s_min | given).                 (1)

To learn p_s itself needs samples of it, from chains that mix between all modes. Recovery likelihood (Gao et al.) instead learns
to undo one step of noise: with r s the next level and t^2 = (r^2 - 1) s^2, Bayes' rule gives, from the same energy,

    y' = y + t eps',     p(y | y') = exp(-E(y, s) - |y - y'|^2 / (2 t^2)) / Z(y'),                                    (2)

nearly Gaussian of width s t / (r s), so that a short Langevin chain from y' samples it: no replay buffer, and no chain grows
old. The gradient of log p(y+ | y') is that of E(y-, s) - E(y+, s) with y- at the chain's end,

    recovery = w(s) (E(y+, s) - E(y-, s)),     w(s) = (1 + s^2) / dimensions.                                         (3)

As r -> infinity Eq. 2 is the marginal; as r -> 1 and the chain becomes one step along grad E, it is denoising score matching
(Vincent). That limit needs no chain and has less variance, and so it stands beside it, on every image of the batch,

    match = | grad E(y, s) + (y - z) / s^2 |^2, scaled to unit variance of the target at each s,                      (4)

while Eq. 3 runs on a share. Both are minimal at the true energy. Score matching learns the shape of each mode quickly and is
blind to how the modes share the probability; the chains see what the energy's own dynamics do and correct it.

Preconditioning. With u = y / sqrt(1 + s^2) and a network g(u, s, given),

    E(y, s) = |y|^2 / (2 (1 + s^2)) + g(u, s) / s,                                                                    (5)

is exact for Gaussian images at g = 0; then y - s^2 grad E = y / (1 + s^2) - s / sqrt(1 + s^2) grad_u g is Karras et al.'s
denoiser (Eq. 7 there, sigma_data = 1) with -grad_u g in the network's place, so grad_u g has a target of unit variance.

Sampling is one Langevin chain (`_langevin`, temperature 1) that starts from N(0, 1 + s_max^2) noise, not from data; step k has
noise level s_k, falling geometrically to s_min, and size eps_k = step_size s_k. The last step is Tweedie's,
E[z | y] = y - s^2 grad E.

Why this one: on 8 x 8 digits it is good within a minute of two cores, where a persistent chain has hardly forgotten its start; no
chain outlives its batch, so none can drift away unseen. It gives no likelihood, for Z is unknown at every level.

References:
| Learning Energy-Based Models by Diffusion Recovery Likelihood (Gao, Song, Poole, Wu, Kingma, 2020) arXiv:2012.08125, Eqs. 4-7
| A Connection Between Score Matching and Denoising Autoencoders (Vincent, 2011)
| Elucidating the Design Space of Diffusion-Based Generative Models (Karras et al., 2022) arXiv:2206.00364, Eqs. 7, 8
| Generative Modeling by Estimating Gradients of the Data Distribution (Song, Ermon, 2019) arXiv:1907.05600 (annealed Langevin)
| Should EBMs Model the Energy or the Score? (Salimans, Ho, 2021)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from nonesuch.core.card import Card, Preset
from nonesuch.core.given import Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Energy, Model, Step
from nonesuch.core.objective import Batch, Objective, Terms
from nonesuch.core.seeds import Seeds
from nonesuch.models.energy._langevin import downhill
from nonesuch.models.energy._network import Frozen, ScalarNetwork
from nonesuch.nn.conv import Linear
from nonesuch.nn.embed import Fourier, GivenEmbedding


@dataclass(frozen=True)
class Config:
    """The network, the levels of noise, the two losses, and the sampling chain."""

    channels_at: tuple[int, ...] = ()  # channels of the convolutional resolutions, each half the one before; none: dense only
    patch: int = 1  # pixels a side of the cells that the first resolution works on
    blocks: int = 1  # residual blocks a resolution
    hidden: int = 256  # width of the residual network on the flattened grid
    depth: int = 3  # its residual blocks
    width: int = 128  # of the vector that carries the noise level and the condition
    dropout: float = 0.5  # of its hidden units, in the score-matching term
    sigma_min: float = 0.08  # deviation of the least noise, where standardised images have 1
    sigma_max: float = 5.0  # and of the most, from which chains start
    match: float = 1.0  # weight of score matching (Eq. 4)
    recovery: float = 0.1  # weight of the recovery likelihood (Eq. 3)
    share: float = 0.25  # share of the batch that the recovery likelihood runs on
    ratio: float = 1.5  # r, between the noise of y' and of y
    chain: int = 8  # Langevin steps of a training chain
    steps: int = 64  # Langevin steps of a sampling chain
    step_size: float = 0.9  # eps in units of the deviation of what is sampled; below 2, or chains diverge
    stride: float = 0.0  # the same of a sampling chain; 0: step_size


_TUNED = {"batch": 128, "lr": 1e-3}
_IMAGES = {"dropout": 0.1, "hidden": 768, "blocks": 2, "patch": 2}  # sane sizes, not tuned
PRESETS = {
    "tiny": Preset({"hidden": 64, "depth": 2, "width": 32, "dropout": 0.0, "steps": 24}, {"batch": 64, "lr": 2e-3}),
    "px16": Preset(
        {"steps": 32, "stride": 1.1},
        {**_TUNED, "batch": 256},
        16,
        "digits given label, test: CAS 0.98, FD 0.54 at 360k images, 90 s of one core",
    ),
    "px32": Preset({**_IMAGES, "channels_at": (64, 128, 256)}, _TUNED, up_to_px=32),
    "px64": Preset({**_IMAGES, "channels_at": (64, 128, 256, 384)}, _TUNED, up_to_px=64),
}


class RecoveryLikelihood(Model, Energy):
    """An energy network over noise levels; images of 1 to 3 axes, or vectors, ordinal or continuous."""

    card = Card(
        "Learning Energy-Based Models by Diffusion Recovery Likelihood",
        "Gao, Ruiqi and Song, Yang and Poole, Ben and Wu, Ying Nian and Kingma, Diederik",
        2020, arxiv="2012.08125", venue="International Conference on Learning Representations, 2021",
        summary="A scalar energy at every noise level, learned by short chains and score matching; annealed Langevin.",
    )  # fmt: skip
    Config = Config
    presets = PRESETS

    center: Tensor
    scale: Tensor

    def __init__(self, config: Config, spec: ImageSpec, schema: Schema) -> None:
        super().__init__(config, spec, schema)
        if spec.kind == "categorical":
            raise ValueError("Langevin dynamics moves real values, and tokens are indices; fit an autoregressive model to them.")
        if not (0 < config.sigma_min < config.sigma_max and config.ratio > 1 and 0 < config.step_size < 2):
            raise ValueError("an energy needs 0 < sigma_min < sigma_max, ratio > 1 and 0 < step_size < 2.")
        if config.match <= 0 and config.recovery <= 0:
            raise ValueError("match and recovery are both 0, so nothing would be learned; set one of them.")
        c = config
        self.network = ScalarNetwork(
            spec.channels, spec.size or (1,), c.patch, c.channels_at, c.blocks, c.hidden, c.depth, c.width, c.dropout
        )
        self.level, self.level_map = Fourier(c.width, 0.5), Linear(c.width, c.width)
        self.condition = GivenEmbedding(schema, c.width)
        self.register_buffer("center", torch.zeros(()))
        self.register_buffer("scale", torch.ones(()))

    def prepare(self, data: Tensor, given: Given) -> None:
        """Standardise by the mean and the deviation of all pixels."""
        self.center.copy_(data.mean())
        self.scale.copy_(data.std(correction=0).clamp_min(1e-3))

    # -- the energy ------------------------------------------------------------------------------------------------------------

    def energy(self, x: Tensor, given: Given | None = None) -> Tensor:
        """E(x | given) (B,) in nats up to a constant, of images x (B, C, *size) in [-1, 1]; float32, differentiable in x.

        It is the energy of images under the least noise, `sigma_min`: -log of their density smoothed by that much.
        """
        y = (x.float() - self.center) / self.scale
        condition = self.schema.given(len(x), given).to(x.device)
        return self.energy_at(y, y.new_full((len(y),), self.config.sigma_min), condition)

    def energy_at(self, y: Tensor, sigma: Tensor, given: Given) -> Tensor:
        """E(y, sigma | given) (B,) of standardised noisy images y (B, C, *size) at noise sigma (B,)."""
        variance = 1 + _as(sigma, y) ** 2
        g = self.potential(y / variance.sqrt(), sigma, given)
        return 0.5 * (y**2 / variance).flatten(1).sum(1) + g / sigma  # Eq. 5

    def potential(self, u: Tensor, sigma: Tensor, given: Given, keys: Seeds | None = None) -> Tensor:
        """The network g(u, sigma | given) (B,) in float32 at u of unit variance."""
        c = self._told(sigma, self.condition(given, len(u), u.device))
        g: Tensor = self.network(self._placed(u).to(self.compute_dtype), c, keys)
        return g

    def _told(self, sigma: Tensor, condition: Tensor) -> Tensor:
        """The network's c (B, width) of noise levels (B,), or of one for all (1,), and embedded conditions (B, width)."""
        return F.silu(self.level_map(self.level(sigma.log() / 2)) + condition)

    def _placed(self, u: Tensor) -> Tensor:
        return u if self.spec.size else u[..., None]  # a vector is a line of one pixel

    @torch.no_grad()
    def _slope(
        self, y: Tensor, sigma: Tensor, c: Tensor, weights: Frozen, told: list[tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """grad_y E (B, C, *size) of `energy_at`, outside of any graph; sigma is (B,), or (1,) for all; `told` by c, if known."""
        variance = 1 + _as(sigma, y) ** 2
        root = variance.sqrt()
        slope = self.network.slope(self._placed(y / root), c, weights, told).view(y.shape)
        return y / variance + slope / (root * _as(sigma, y))

    # -- learning --------------------------------------------------------------------------------------------------------------

    def objectives(self) -> list[Objective]:
        return [Objective("energy", list(self.parameters()), self._terms, second_derivatives=self.config.match > 0)]

    def _terms(self, batch: Batch) -> Terms:
        config, loss, watch = self.config, {}, {}
        z = (batch.x.float() - self.center) / self.scale
        if config.match > 0:
            loss["match"] = config.match * self._match(z, batch.given, batch.keys)
        if config.recovery > 0:
            of = max(1, round(config.share * batch.size))
            n = batch.before(of)
            here = slice(max(1, n))  # one row at least: a term of none has no graph
            gap = batch.mean(self._recovery(z[here], batch.given[here], batch.keys[here])[:n], of)
            loss["recovery"], watch["energy_gap"] = config.recovery * gap, gap.detach()
        return Terms(loss, watch)

    def _match(self, z: Tensor, given: Given, keys: Seeds) -> Tensor:
        """Denoising score matching (Eq. 4), on grad_u g: mean square of its error, for a target of unit variance."""
        sigma = self._sigma(keys, "match/level", z.device)
        s = _as(sigma, z)
        root = (1 + s**2).sqrt()
        y = z + s * keys.normal("match/noise", *z.shape[1:], device=z.device)
        u = (y / root).requires_grad_()
        (slope,) = torch.autograd.grad(self.potential(u, sigma, given, keys).sum(), u, create_graph=True)
        target = (y / root**2 - z) * root / s  # grad_u g at which y - s^2 grad E is z
        return (slope - target).square().mean()

    def _recovery(self, z: Tensor, given: Given, keys: Seeds) -> Tensor:
        """The contrast of Eq. 3 (B,), its negatives from a Langevin chain on Eq. 2 that starts at y'."""
        sigma = self._sigma(keys, "recovery/level", z.device)
        s, shape = _as(sigma, z), z.shape[1:]
        t = s * math.sqrt(self.config.ratio**2 - 1)
        plus = z + s * keys.normal("recovery/noise", *shape, device=z.device)
        noisy = plus + t * keys.normal("recovery/step", *shape, device=z.device)
        steps, eps = self.config.chain, self.config.step_size * t / self.config.ratio
        draws = keys.normal("recovery/chain", steps + 1, *shape, device=z.device)
        with torch.no_grad():
            weights = self.network.frozen(self.compute_dtype)
            c = self._told(sigma, self.condition(given, len(z), z.device))
            told = self.network.told(c, weights)
            slope = partial(self._slope, sigma=sigma, c=c, weights=weights, told=told)
            minus = recover(slope, noisy, t, eps, steps, lambda k: draws[:, k])
        up, down = self.energy_at(torch.cat([plus, minus]), sigma.repeat(2), given + given).chunk(2)
        return (1 + sigma**2) / z[0].numel() * (up - down)  # Eq. 3

    def _sigma(self, keys: Seeds, name: str, device: torch.device) -> Tensor:
        """Noise levels (B,), uniform in the logarithm."""
        low, high = math.log(self.config.sigma_min), math.log(self.config.sigma_max)
        return torch.exp(low + (high - low) * keys.uniform(name, device=device))

    # -- sampling --------------------------------------------------------------------------------------------------------------

    def _sample_steps(
        self, given: Given, seeds: Seeds, size: tuple[int, ...], steps: int | None = None, step_size: float | None = None
    ) -> Iterator[Step]:
        """One annealed chain. steps: Langevin steps (at least 2); step_size: eps in units of each step's noise level."""
        n, b = steps or self.config.steps, step_size or self.config.stride or self.config.step_size
        if n < 2 or not 0 < b < 2:
            raise ValueError(f"Langevin sampling takes steps >= 2 and 0 < step_size < 2, not {n} and {b}.")
        low, high = self.config.sigma_min, self.config.sigma_max
        sigmas = [high * (low / high) ** (k / (n - 1)) for k in range(n)]
        shape, device = (self.spec.channels, *size), self.device
        weights, condition = self.network.frozen(self.compute_dtype), self.condition(given, len(seeds), device)

        def slope(k: int, y: Tensor) -> Tensor:
            sigma = y.new_full((1,), sigmas[k])
            return self._slope(y, sigma, self._told(sigma, condition), weights)

        def noise(k: int) -> Tensor:
            return seeds.normal("langevin", *shape, step=k, device=device)

        start = seeds.normal("start", *shape, device=device) * math.sqrt(1 + high**2)
        for k, y in enumerate(downhill(slope, start, [b * s for s in sigmas[:-1]], noise)):
            yield Step(k + 1, n, self._image(y))
        y = y - low**2 * slope(n - 1, y)  # Tweedie
        yield Step(n, n, self.spec.snap(self._image(y)))

    def _image(self, y: Tensor) -> Tensor:
        x = y * self.scale + self.center
        return x if self.spec.kind == "continuous" else x.clamp(-1, 1)


def recover(
    slope: Callable[[Tensor], Tensor], noisy: Tensor, spread: Tensor, eps: Tensor, steps: int, noise: Callable[[int], Tensor]
) -> Tensor:
    """Draw y (B, ...) from p(y | noisy) of Eq. 2 by `steps` of Langevin from `noisy` = y + spread * normal; slope is grad E."""
    tight = 1 / spread**2
    for y in downhill(lambda _, y: slope(y) + (y - noisy) * tight, noisy, [eps] * steps, noise):
        minus = y
    return minus.detach()


def _as(sigma: Tensor, y: Tensor) -> Tensor:
    """sigma (B,) shaped to broadcast against y (B, ...)."""
    return sigma.view(-1, *[1] * (y.dim() - 1))
