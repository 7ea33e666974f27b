"""The checks of a capability: likelihoods, decoders and encoders, denoisers, energies, completion, guidance."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from nonesuch.core.given import Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import AnySize, Completer, Decoder, Denoiser, Encoder, Energy, Guidable, Likelihood, Model, guided
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.core.translator import Translator
from nonesuch.testing._subject import SCHEMA, SPEC, Subject, alike, needs, refused, stripes

# -- capabilities


def _likelihood(model: Model) -> Likelihood:
    assert isinstance(model, Likelihood)
    return model


def _all_images(spec: ImageSpec) -> Tensor:
    assert spec.levels is not None
    grid = torch.cartesian_prod(*[torch.arange(spec.levels)] * spec.numel)
    return spec.from_levels(grid.view(-1, *spec.shape))


@needs(Likelihood)
def probabilities_sum_to_one_or_less(s: Subject) -> None:
    for levels in (2, 4):
        spec = ImageSpec(1, (2, 2), levels=levels)
        model = s.run(spec, rounds=8).model
        everything = _all_images(spec)
        exact = _likelihood(model).log_prob(everything[:1]).kind == "exact"
        for given in (None, {"label": "dots"}):
            # The mean of many draws of a bound is below log P; exp of a noisy mean is biased by exp(variance / 2), taken off.
            count = 1 if exact else 64
            draws = torch.stack([_likelihood(model).log_prob(everything, given, seeds=i).nats.double() for i in range(count)])
            noise = torch.zeros(()) if exact else draws.var(0) / count
            total = float((draws.mean(0) - noise / 2).exp().sum())
            assert total < 1 + (1e-5 if exact else 0.02), f"the probabilities of all {len(everything)} images sum to {total:.6f}"
            assert not exact or total > 1 - 1e-5, f"the probabilities of all {len(everything)} images sum to {total:.6f}"


@needs(Likelihood)
def uniform_noise_costs_log2_levels(s: Subject) -> None:
    """Gibbs' inequality: no model codes noise in fewer bits than its entropy."""
    found = _likelihood(s.fitted).log_prob(s.noise, seeds=1)
    if found.kind in ("exact", "bound"):
        bits = -found.nats.double() / SPEC.numel / math.log(2)
        assert SPEC.levels is not None
        floor = math.log2(SPEC.levels) - 3 * float(bits.std()) / math.sqrt(len(bits))
        assert float(bits.mean()) >= floor, (
            f"uniform noise costs {float(bits.mean()):.3f} bits/dim, below its entropy {math.log2(SPEC.levels):.3f}"
        )


@needs(Likelihood)
def training_images_are_likelier_than_noise(s: Subject) -> None:
    model = _likelihood(s.fitted)
    known, noise = model.log_prob(s.images.x, s.images.given).nats.mean(), model.log_prob(s.noise).nats.mean()
    assert known > noise, "the model finds noise as likely as what it was trained on"


@needs(Likelihood)
def log_prob_is_per_image_and_pure(s: Subject) -> None:
    x, model, state = s.images.x[:6], _likelihood(s.fitted), torch.get_rng_state()
    whole = model.log_prob(x, seeds=3).nats
    assert whole.shape == (6,) and whole.dtype in (torch.float32, torch.float64) and torch.isfinite(whole).all(), (
        "log_prob is not a finite number an image"
    )
    alone = torch.cat([model.log_prob(x[i : i + 1], seeds=Seeds.of(3, 1, start=i)).nats for i in range(6)])
    assert torch.allclose(whole, alone, rtol=1e-3, atol=1e-2), "an image's log_prob depends on those beside it"
    assert torch.equal(state, torch.get_rng_state()), "log_prob moves the global generator"


@needs(Likelihood)
def unfit_images_are_refused(s: Subject) -> None:
    model, x = _likelihood(s.fitted), s.images.x[:2]
    refused(lambda: model.log_prob(x[..., :4]), "a wrong shape")
    refused(lambda: model.log_prob(torch.full_like(x, math.nan)), "NaN")
    refused(lambda: model.log_prob(x, method="no such method"), "an unknown method")
    fresh = _likelihood(s.build(SPEC, SCHEMA))
    assert "fitted" in refused(lambda: fresh.log_prob(x), "log_prob of an unfitted model")


@needs(Decoder)
def decoding_is_differentiable_and_refuses_nan(s: Subject) -> None:
    model = s.fitted
    assert isinstance(model, Decoder)
    z = model.prior(3, {"label": "rows"}, seeds=0)
    assert z.shape == (3, *model.latent_spec.shape), "prior does not draw latents of latent_spec"
    if model.latent_spec.kind == "categorical":  # numbers of codes: nothing to differentiate in, and no NaN
        assert model.decode(z, {"label": "rows"}).shape == (3, *SPEC.shape), "decode does not make images of latents"
        refused(lambda: model.decode(torch.full_like(z, model.latent_spec.levels or 0)), "a code that there is not")
        return
    z.requires_grad_()
    x = model.decode(z, {"label": "rows"})
    assert x.shape == (3, *SPEC.shape) and bool((torch.autograd.grad(x.square().sum(), z)[0] != 0).any()), (
        "decode has no gradient in z"
    )
    refused(lambda: model.decode(torch.full_like(z, math.nan)), "a latent of NaN")


@needs(Encoder)
def decoding_undoes_encoding(s: Subject) -> None:
    model, x, given = s.fitted, s.images.x, s.images.given
    assert isinstance(model, Encoder)
    with torch.no_grad():
        back = model.decode(model.encode(x, given), given)
    error, spread = float((back - x).abs().mean()), float((x - x.roll(1, 0)).abs().mean())
    assert error < 0.5 * spread, f"decode(encode(x)) is off by {error:.3f}, images among themselves by {spread:.3f}"


@needs(Denoiser)
def denoising_is_a_posterior_mean(s: Subject) -> None:
    model, x = s.fitted, s.images.x[:4]
    assert isinstance(model, Denoiser)
    t = torch.zeros(4)
    alpha, _ = model.schedule(t)
    assert torch.allclose(model.denoise(alpha.view(-1, 1, 1, 1) * x, t), x, atol=0.25), (
        "without noise the denoiser does not return its input"
    )
    x_t = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(model.denoise(x_t, t + 0.5, model.schema.given(4, {"label": "rows"})).sum(), x_t)
    assert torch.isfinite(grad).all() and bool((grad != 0).any()), "denoise has no gradient in x_t"


@needs(Energy)
def energy_ranks_images(s: Subject) -> None:
    model = s.fitted
    assert isinstance(model, Energy) and not isinstance(model, Likelihood), "an energy has no likelihood"
    x = s.images.x.clone().requires_grad_()
    known = model.energy(x, s.images.given)
    assert known.shape == (len(x),) and known.dtype == torch.float32, "energy is not a float32 an image"
    assert bool((torch.autograd.grad(known.sum(), x)[0] != 0).any()), "energy has no gradient in x"
    with torch.no_grad():
        assert known.mean() < model.energy(s.noise).mean(), "noise has less energy than what the model was trained on"


@needs(Completer)
def completing_keeps_what_is_known(s: Subject) -> None:
    model, x = s.fitted, s.images.x[:4]
    assert isinstance(model, Completer)
    known = torch.zeros_like(x, dtype=torch.bool)
    known[..., :4, :] = True
    full = model.complete(x, known, seeds=2)
    assert torch.equal(full[known], x[known]), "completion changes what is known"
    assert torch.allclose(full, SPEC.snap(full), atol=1e-5), "completion leaves the grid of levels"
    assert torch.equal(full, model.complete(torch.where(known, x, -x), known, seeds=2)), "completion looks at what is not known"


@needs(Guidable)
def guidance_of_one_is_none(s: Subject) -> None:
    model = s.fitted
    same = guided(model, 1.0).sample(4, {"label": "rows"}, seeds=1)
    assert alike(same, model.sample(4, {"label": "rows"}, seeds=1)), "guidance at scale 1 changes the samples"
    assert not torch.equal(guided(model, 4.0).sample(4, {"label": "rows"}, seeds=1), same), "guidance at scale 4 changes nothing"
    refused(lambda: guided(s.run(schema=Schema(), rounds=1).model, 2.0), "guiding an unconditional model")


@needs()
def only_guidable_models_are_guided(s: Subject) -> None:
    if not isinstance(s.fitted, Guidable):
        refused(lambda: guided(s.fitted, 2.0), "guiding a model without denoiser or next-token logits")


@needs(Translator)
def translation_looks_no_farther_than_it_says(s: Subject) -> None:
    model = s.fitted
    assert isinstance(model, Translator)
    column, ratio = model.schema[model.column], model.ratio
    assert isinstance(column, Image)
    middle = -(-(model.reach + 1) // model.multiple) * model.multiple
    size = (2 * middle + 1,) * len(column.spec.size)
    y = Seeds.of(4, 1).uniform("y", column.spec.channels, *size) * 2 - 1
    other = y.clone()
    other[(..., *[middle] * len(size))] *= -1
    x, changed = (model.translate(v, {"label": "rows"}, seeds=1) for v in (y, other))
    assert x.shape == (1, SPEC.channels, *[n * ratio for n in size]), "a picture of another size is not translated as such"
    assert not torch.equal(x, changed), "a pixel of the picture changes nothing"
    for axis in range(2, x.dim()):
        for end in (
            x.narrow(axis, 0, ratio) - changed.narrow(axis, 0, ratio),
            x.narrow(axis, ratio * (size[0] - 1), ratio) - changed.narrow(axis, ratio * (size[0] - 1), ratio),
        ):
            assert float(end.abs().max()) == 0, f"a pixel looks farther than the {model.reach} it says"


@needs(AnySize)
def several_sizes_are_learned_drawn_and_scored(s: Subject) -> None:
    spec = replace(SPEC, sizes=(SPEC.size, (8, 16), (16, 8)))
    try:
        model = s.build(spec, SCHEMA)
    except ValueError:  # a configuration of it may be for one size
        return
    assert isinstance(model, AnySize)
    parts = [stripes(spec=spec.of_size(size)) for size in spec.sizes]
    model.prepare_sizes([part.x for part in parts])
    model.images_seen.fill_(1)
    for part in parts:
        batch = Batch(part.x, part.given, Seeds.of(1, len(part)), 24, 24 * s.rounds)
        for objective in model.objectives():
            loss = sum(objective.terms(batch).loss.values())
            assert torch.isfinite(torch.as_tensor(loss)), f"{objective.name} has no finite loss on images of {part.spec.size}"
        if isinstance(model, Likelihood):
            assert model.log_prob(part.x[:3]).nats.isfinite().all(), f"images of {part.spec.size} have no finite log_prob"
        for size in (part.spec.size, (model.multiple, 3 * model.multiple)):
            x = model.sample(3, size=size, seeds=5)
            assert x.shape == (3, spec.channels, *size) and x.isfinite().all(), (
                f"{size} was asked for, and {tuple(x.shape)} drawn"
            )
            alone = model.sample(1, size=size, seeds=Seeds((5,), (2,)))
            assert alike(alone, x[2:]), f"an image of {size} depends on those drawn with it"
    if model.multiple > 1:
        refused(lambda: model.sample(1, size=(model.multiple + 1, model.multiple)), "a size of no multiple")
