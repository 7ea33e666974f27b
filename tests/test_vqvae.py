"""VQ-VAE: quantisation, gradients through it, running means, the bound, and convolutions as products, each against the truth."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from nonesuch import catalog
from nonesuch.core import artifact
from nonesuch.core.given import Category, Given, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.objective import Batch
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Images
from nonesuch.models.vae import _patches
from nonesuch.models.vae._codebook import Codebook, perplexity, straight_through
from nonesuch.models.vae._normal import Normal
from nonesuch.models.vae._patches import Double, Halve
from nonesuch.models.vae.vqvae import VQVAE
from nonesuch.train.ranks import Ranks
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

SCHEMA = Schema({"label": Category(("a", "b"))})
SPEC = ImageSpec(1, (6, 5), levels=4)


def normal(name: str, *shape: int) -> Tensor:
    return Seeds((3,), (0,)).normal(name, *shape)[0]


def built(spec: ImageSpec = SPEC, preset: str = "tiny", **config: Any) -> VQVAE:
    """A model whose every weight counts, as after training."""
    model = catalog.build("vae/vqvae", spec, SCHEMA, preset, **config)
    assert isinstance(model, VQVAE)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.add_(0.3 * normal(name, *p.shape))
    model.images_seen.fill_(1)
    return model


def pictures(n: int, spec: ImageSpec = SPEC) -> Tensor:
    assert spec.levels is not None
    return spec.from_levels(Seeds.of(1, n).integers("x", spec.levels, *spec.shape))


def batch_of(n: int, spec: ImageSpec = SPEC) -> Batch:
    return Batch(pictures(n, spec), Given(n, {"label": torch.arange(n) % 2}), Seeds.of(5, n), 0, 100)


# -- the codebook


def test_every_vector_gets_the_code_nearest_to_it():
    book, z = Codebook(40, 7, 0.99, 0.0), normal("z", 300, 7)
    naive = (z[:, None].double() - book.vectors.double()).square().sum(-1).argmin(1)
    assert torch.equal(book.nearest(z), naive)
    assert torch.equal(book.nearest(book.vectors), torch.arange(40))


def test_the_gradient_passes_quantisation_as_if_nothing_had_been_replaced():
    z, q, w = normal("z", 9, 4).requires_grad_(), normal("q", 9, 4).requires_grad_(), normal("w", 9, 4)
    through = straight_through(z, q)
    assert torch.equal(through, q)  # to the bit
    grad_z, grad_q = torch.autograd.grad((through.square() * w).sum(), [z, q], allow_unused=True)
    assert grad_q is None
    torch.testing.assert_close(grad_z, 2 * w * q.detach())


def test_the_three_terms_reach_whom_the_paper_says():
    """Eq. 3: the decoder learns by the first term, the encoder by the first and the last, the codes by the middle one only."""
    model, batch = built(codebook="gradient", prior="uniform"), batch_of(8)
    loss = model.objectives()[0].terms(batch).loss
    assert [*loss] == ["reconstruction", "codebook", "commitment"]
    parts = {"encoder": model.encoder, "decoder": model.decoder, "codes": model.codebook}
    reached = {}
    for term, value in loss.items():
        for part, module in parts.items():
            found = torch.autograd.grad(value, list(module.parameters()), retain_graph=True, allow_unused=True)
            reached[term, part] = any(g is not None and bool((g != 0).any()) for g in found)
    assert {k for k, v in reached.items() if v} == {
        ("reconstruction", "encoder"), ("reconstruction", "decoder"), ("codebook", "codes"), ("commitment", "encoder"),
    }  # fmt: skip
    z = model._z(batch.x)
    q = model._vectors(model._codes(batch.x))
    torch.testing.assert_close(loss["commitment"], 0.25 * (z - q).square().mean())
    torch.testing.assert_close(loss["codebook"], (z - q).square().mean())
    (grad,) = torch.autograd.grad(loss["codebook"], [model.codebook.vectors])  # type: ignore[list-item]
    expected = torch.zeros_like(grad).index_add_(0, model._codes(batch.x).flatten(), 2 * (q - z) / z.numel())
    torch.testing.assert_close(grad, expected)


def test_the_straight_through_gradient_of_the_encoder_is_the_paper_s():
    """d -log p / d encoder is that of <g, z_e>, where g is the gradient the decoder sends to z_q."""
    model, batch = built(), batch_of(6)
    weights = list(model.encoder.parameters())
    found = torch.autograd.grad(model.objectives()[0].terms(batch).loss["reconstruction"], weights)
    z = model._z(batch.x)
    q = model._vectors(model._codes(batch.x)).requires_grad_()
    nll = -model.pixels.log_prob(model._features(q), batch.x).mean() / SPEC.numel
    (g,) = torch.autograd.grad(nll, q)
    for a, b in zip(found, torch.autograd.grad((g * z).sum(), weights), strict=True):
        torch.testing.assert_close(a, b)


def test_running_means_end_at_k_means():
    """The same vectors at every step: the codes become the means of their clusters, as in one step of k-means (Eq. 8)."""
    book, z = Codebook(5, 3, 0.9, 0.0), normal("z", 200, 3)
    book.start(z)
    k = book.nearest(z)
    expected = torch.stack([z[k == j].mean(0) for j in range(5)])
    batch = batch_of(20)
    for _ in range(250):
        book.follow(book.tally(z, k), z, batch)
    torch.testing.assert_close(book.vectors, expected, atol=1e-5, rtol=0)


def test_one_step_of_the_running_means_is_equations_6_to_8():
    book, z, batch = Codebook(4, 3, 0.8, 0.0), normal("z", 60, 3), batch_of(20)
    before, k = book.vectors.clone(), book.nearest(z)
    book.follow(book.tally(z, k), z, batch)
    for j in range(4):  # the first count is that of an even use, 60 / 4
        count = 0.8 * 15 + 0.2 * int((k == j).sum())
        total = 0.8 * 15 * before[j] + 0.2 * z[k == j].sum(0)
        torch.testing.assert_close(book.vectors[j], total / count)


def test_an_unused_code_is_put_where_a_vector_of_the_batch_is():
    book, z, batch = Codebook(6, 3, 0.9, 0.05), normal("z", 60, 3), batch_of(20)
    with torch.no_grad():
        book.vectors[2:] = 100.0
    for _ in range(40):
        book.follow(book.tally(z, book.nearest(z)), z, batch)
    assert (book.vectors.abs() < 10).all()
    assert len(book.nearest(z).unique()) == 6


@pytest.mark.parametrize("restart", [0.0, 0.9])
def test_two_processes_move_the_codes_as_one_does(restart: float):
    z, whole = normal("z", 60, 3).double(), batch_of(20)
    one, books = Codebook(16, 3, 0.9, restart).double(), [Codebook(16, 3, 0.9, restart).double() for _ in range(2)]
    for _ in range(3):
        one.follow(one.tally(z, one.nearest(z)), z, whole)
        rows = [range(rank, 20, 2) for rank in range(2)]
        parts = [z.view(20, 3, 3)[list(r)].flatten(0, 1) for r in rows]
        keys = [whole.keys[list(r)] for r in rows]
        tallies = [b.tally(p, b.nearest(p)) for b, p in zip(books, parts, strict=True)]
        mine = [Batch(whole.x[list(r)], whole.given[list(r)], key, 0, 100, r, 20) for r, key in zip(rows, keys, strict=True)]
        drawn = [b._drawn(p, m, 3) for b, p, m in zip(books, parts, mine, strict=True)]
        for rank, book in enumerate(books):
            sums = iter([tallies, drawn])  # what each process hears of the other, in the order it asks

            def total(own: Tensor, sums: Any = sums, rank: int = rank) -> Tensor:
                said = next(sums)
                assert torch.equal(said[rank], own)
                return said[0] + said[1]

            batch = Batch(mine[rank].x, mine[rank].given, mine[rank].keys, 0, 100, rows[rank], 20, total)
            book.follow(tallies[rank], parts[rank], batch)
            for a, b in zip(one.buffers(), book.buffers(), strict=True):
                torch.testing.assert_close(a, b, atol=1e-12, rtol=0)
    assert restart == 0 or len({tuple(v.tolist()) for v in one.vectors} & {tuple(v.tolist()) for v in z}) > 0


def test_the_codebook_follows_what_it_is_told_at_each_step_of_a_run():
    label = torch.arange(24) % 2
    images = Images(SPEC, SCHEMA, SPEC.to_levels(pictures(24)).to(torch.uint8), Given(24, {"label": label}))
    run = Run(built(restart=0.0), images, Recipe(images=240, batch=12), ranks=Ranks())
    run.model.prepare(images.x, images.given)
    book = run.model.codebook
    assert isinstance(book, Codebook)
    batch, before = run.batch(), {k: v.clone() for k, v in book.state_dict().items()}
    assert isinstance(run.model, VQVAE)
    z = run.model._z(batch.x).detach()
    k = book.nearest(z)
    run.step()
    expected = Codebook(book.codes, book.width, book.decay, 0.0)
    expected.load_state_dict(before)
    expected.follow(expected.tally(z, k), z, batch)
    for a, b in zip(expected.buffers(), book.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.equal(before["vectors"], book.vectors)


def test_perplexity_counts_codes_in_even_use():
    assert float(perplexity(torch.tensor([3.0, 0.0, 3.0, 3.0]))) == pytest.approx(3)
    assert float(perplexity(torch.tensor([5.0, 0.0]))) == pytest.approx(1)
    p = torch.tensor([0.7, 0.2, 0.1])
    assert float(perplexity(8 * p)) == pytest.approx(2 ** float(-(p * p.log2()).sum()))


# -- the bound, codes and samples


@torch.no_grad()
def test_the_bound_is_one_term_of_a_sum_that_is_exact():
    """Two codes a picture of two pixels: p(x) by summing over all maps of codes, and the bound below it."""
    spec = ImageSpec(1, (1, 3), levels=3)
    model = built(spec, codes=3)
    assert model.grid == (1, 2)
    x = spec.from_levels(torch.cartesian_prod(*[torch.arange(3)] * 3).view(-1, 1, 1, 3))
    codes = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    for label in (0, 1):
        given = Given(len(codes), {"label": torch.full((len(codes),), label)})
        prior = model.prior_over_codes.log_prob(codes, given, torch.float32).double()
        assert float(prior.exp().sum()) == pytest.approx(1, abs=1e-6)
        features = model._features(model._vectors(codes))
        each = torch.stack([model.pixels.log_prob(features, one.expand(len(codes), -1, -1, -1)) for one in x]).double()
        exact = (each + prior).logsumexp(1)
        assert float(exact.exp().sum()) == pytest.approx(1, abs=1e-5)
        bound = model.log_prob(x, {"label": "ab"[label]})
        assert bound.kind == "bound"
        assert (bound.nats < exact).all()
        chosen = (model._codes(x) * torch.tensor([3, 1])).sum(1)
        torch.testing.assert_close(bound.nats, (each + prior)[torch.arange(len(x)), chosen], atol=1e-5, rtol=0)


@torch.no_grad()
def test_codes_are_numbers_below_k_that_any_model_of_tokens_may_learn():
    model = built(codes=11)
    assert model.latent_spec == ImageSpec(1, (3, 3), "hw", "categorical", 11, dtype="int64")
    k = model.encode(pictures(40))
    drawn = model.prior(40, {"label": "a"})
    for z in (k, drawn):
        assert z.dtype == torch.int64
        assert 0 <= int(z.min()) <= int(z.max()) < 11
        assert len(z.unique()) > 3
    tokens = catalog.build("autoregressive/image_transformer", model.latent_spec, SCHEMA, "tiny")
    tokens.images_seen.fill_(1)
    assert model.decode(tokens.sample(2)).shape == (2, *SPEC.shape)
    with pytest.raises(ValueError, match="integers in"):
        model.decode(torch.full_like(k, 11))
    torch.testing.assert_close(model.decode(k), model.pixels.mean(model._features(model._vectors(k))))


@torch.no_grad()
def test_drawing_codes_one_by_one_is_drawing_from_the_prior():
    """Each code's logits, kept keys and values and all, are those of the whole pass over the codes that were drawn."""
    model = built(prior_depth=2)
    prior, seeds, given = model.prior_over_codes, Seeds.of(2, 5), Given(5, {"label": torch.tensor([0, 1, -1, 0, 1])})
    k = prior.draw(given, seeds, torch.float32, torch.device("cpu"))
    logits = prior(k, given, torch.float32)
    for i in range(model.places):
        assert torch.equal(seeds.categorical(logits[:, i], "codes", step=i), k[:, i])
    changed = k.clone()
    changed[:, 4:] = 0
    torch.testing.assert_close(prior(changed, given, torch.float32)[:, :5], logits[:, :5])  # and nothing looks ahead
    assert not torch.equal(prior(changed, given, torch.float32)[:, 5:], logits[:, 5:])


def test_the_prior_cannot_move_the_codes_it_learns():
    model, batch = built(), batch_of(6)
    autoencoder, prior = model.objectives()
    loss = prior.terms(batch).loss["prior"]
    assert all(g is None for g in torch.autograd.grad(loss, autoencoder.parameters, allow_unused=True))
    expected = -model.prior_over_codes.log_prob(model._codes(batch.x), batch.given, torch.float32).mean() / SPEC.numel
    torch.testing.assert_close(loss, expected)


@torch.no_grad()
def test_a_uniform_prior_costs_log_k_a_code_and_has_no_objective():
    model = built(prior="uniform", codes=7)
    assert [o.name for o in model.objectives()] == ["autoencoder"]
    k = model.encode(pictures(3))
    features = model._features(model._vectors(k))
    nats = model.pixels.log_prob(features, pictures(3)) - model.places * math.log(7)
    torch.testing.assert_close(model.log_prob(pictures(3)).nats, nats.double())
    assert 5.5 < float(perplexity(torch.bincount(model.prior(200).flatten(), minlength=7).float())) <= 7


def test_a_checkpoint_carries_the_codebook(tmp_path: Any):
    model = built()
    with torch.no_grad():
        model.codebook.vectors.add_(1.0)
    again = artifact.load(artifact.save(model, tmp_path), catalog.get)
    assert torch.equal(model.encode(pictures(9)), again.encode(pictures(9)))


@torch.no_grad()
@pytest.mark.parametrize("levels", [2, 5, 256])
def test_the_normal_s_probabilities_are_of_the_levels(levels: int):
    spec = ImageSpec(1, (3,), "l", levels=levels)
    pixels = Normal(spec)
    x = spec.from_levels(torch.arange(levels)).view(-1, 1, 1).expand(-1, 1, 3)
    features = torch.tensor([-9.0, 0.3, 4.0]).view(1, 1, 3).expand(levels, -1, -1)
    for log_s in (-3.0, -0.7, 1.0):
        pixels.log_s.data.fill_(log_s)
        each = torch.stack([pixels.log_prob(features[..., i : i + 1], x[..., i : i + 1]) for i in range(3)])
        torch.testing.assert_close(each.exp().sum(1), torch.ones(3, dtype=torch.float64))
        assert each.isfinite().all()
    if levels == 256:  # where a level is small, the density times its width is its probability
        inner = slice(100, 156)
        trained, scored = pixels.loss(features[inner], x[inner]), -pixels.log_prob(features[inner], x[inner]).mean() / 3
        torch.testing.assert_close(trained.double(), scored, rtol=1e-3, atol=0)


# -- convolutions as products


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(("channels", "out", "size"), [(3, 5, (6, 5)), (5, 1, (8, 8)), (2, 2, (1, 7)), (8, 64, (4, 3))])
def test_gradients_by_products_are_torch_s(
    channels: int, out: int, size: tuple[int, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    layer = Double(channels, out, size).double()
    for name, p in layer.named_parameters():
        p.data.copy_(normal(name, *p.shape))
    x = normal("x", 2, channels, *[-(-s // 2) for s in size]).to(dtype).requires_grad_()
    found = []
    for products in (True, False):
        monkeypatch.setattr(_patches, "by_products", lambda x, products=products: products)
        y = layer(x)
        grads = torch.autograd.grad(y, [x, *layer.parameters()], normal("g", *y.shape).to(dtype))
        found.append([y, *grads])
    assert found[0][0].shape[2:] == size
    tolerance = 1e-12 if dtype == torch.float64 else 1e-2
    for a, b in zip(*found, strict=True):
        assert bool((a.double() - b.double()).norm() <= tolerance * b.double().norm())


def test_the_layers_are_those_of_torch():
    """The way without products against torch.nn's layers of the same weights, in float64."""
    halve, double = Halve(2, 3, (6, 5)).double(), Double(2, 3, (6, 5)).double()
    down = torch.nn.Conv2d(2, 3, (4, 3), 2, 1).double()
    up = torch.nn.ConvTranspose2d(2, 3, 3, 2, 1, (1, 0)).double()
    for ours, theirs in ((halve, down), (double, up)):
        for name, p in ours.named_parameters():
            p.data.copy_(normal(name, *p.shape))
        theirs.weight.data.copy_(ours.weight.movedim(-1, 1))
        theirs.bias.data.copy_(ours.bias)  # type: ignore[union-attr]
    x, z = normal("x", 2, 2, 6, 5).double(), normal("z", 2, 2, 3, 3).double()
    torch.testing.assert_close(halve(x), down(x))
    torch.testing.assert_close(double(z), up(z))


def test_three_axes_and_one_are_welcome():
    for spec in (ImageSpec(1, (4, 4, 6), "dhw", levels=3), ImageSpec(2, (7,), "l", levels=3), ImageSpec(5, (), "", levels=3),
                 ImageSpec(1, (6, 6), kind="categorical", levels=5, dtype="int64")):  # fmt: skip
        model = built(spec)
        x = spec.from_levels(Seeds.of(1, 3).integers("x", 3, *spec.shape))
        assert model.decode(model.encode(x)).shape == x.shape
        assert model.log_prob(x).nats.isfinite().all()
        assert model.sample(2).shape == (2, *spec.shape)


def test_what_it_cannot_do_is_refused():
    with pytest.raises(ValueError, match="grid of levels"):
        built(ImageSpec(1, (4, 4), kind="continuous", levels=None))
    with pytest.raises(ValueError, match="at least one halving"):
        built(widths=())
    with pytest.raises(ValueError, match="ordered levels"):
        built(ImageSpec(1, (4, 4), kind="categorical", levels=5), likelihood="normal")
    with pytest.raises(ValueError, match="sampling takes temperature"):
        built().sample(1, temperature=-1.0)
