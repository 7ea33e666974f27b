"""A degradation is a condition: batches that spoil their own pictures, networks that read them, checkpoints that say how."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

import nonesuch as ns
from nonesuch import catalog, testing
from nonesuch.core.degradation import Blur, Downsample, Mask, Noise, read
from nonesuch.core.given import Category, Given, Image, Schema
from nonesuch.core.image import ImageSpec
from nonesuch.core.model import Denoiser, Model, guided
from nonesuch.core.seeds import Seeds
from nonesuch.data.dataset import Data, Images
from nonesuch.data.loader import Batches
from nonesuch.data.open import open as open_data
from nonesuch.nn.condition import ImageCondition, resized
from nonesuch.testing._subject import Subject, pictured
from nonesuch.train.recipe import Recipe
from nonesuch.train.run import Run

DIFFUSION = ("diffusion/edm", "diffusion/ddpm", "diffusion/dit")
SIZES = ((4, 8), (8, 4))


@pytest.fixture(scope="module")
def digits() -> Data:
    return open_data("digits")


def several(n: int = 24) -> Images:
    """Noise of two sizes."""
    spec, random = ImageSpec(1, SIZES[0], levels=17, sizes=SIZES), np.random.default_rng(0)
    levels = torch.from_numpy(random.integers(0, 17, (n, 32))).byte()
    return Images(spec, Schema({}), levels, Given(n, {}), bucket=torch.arange(n) % 2)


def tiny(name: str, images: Images) -> Model:
    return catalog.build(name, images.spec, images.schema, "tiny")


def trained(name: str, images: Images, rounds: int) -> Run:
    model = tiny(name, images)
    model.prepare(images.x, images.given)
    run = Run(model, images, Recipe(images=32 * rounds, batch=32, lr=3e-3, hide=0.2, warmup=0.1, average_share=0.05))
    for _ in range(rounds):
        run.step()
    return run


# -- batches


@pytest.mark.parametrize("augment", [(), ("flip", "shift")])
def test_a_batch_spoils_its_own_pictures(digits: Data, augment: tuple[str, ...]):
    images, degradation = digits.train.select(["label", Noise(0.3)]), Noise(0.3)
    batches = Batches(images, 16, 5, hide=0.4, augment=augment)
    for clock in (0, 16, 320, 1408):  # the last is of the second epoch
        batch = batches.at(clock)
        y, there = batch.given.columns["noise"], batch.given.columns["label"] >= 0
        assert torch.equal(y[there], degradation(batch.x, batch.keys)[there])
        assert y[~there].isnan().all()
        assert 0 < there.sum() < 16


def test_each_sight_is_spoiled_anew_and_every_way_alike(digits: Data):
    few = digits.train[:8].select([Noise(0.3)])
    batches = Batches(few, 8, 0)
    first, second = batches.at(0), batches.at(8)
    place = [int((second.x == x).flatten(1).all(1).nonzero()) for x in first.x]
    assert torch.equal(second.x[place], first.x)
    apart = (second.given.columns["noise"][place] - first.given.columns["noise"]).std()
    assert apart == pytest.approx(0.3 * 2**0.5, rel=0.1)
    with Batches(few, 8, 0, workers=2) as ahead:
        for clock in (0, 8, 800):
            assert torch.equal(ahead.at(clock).given.columns["noise"], batches.at(clock).given.columns["noise"])
    part = Batches(few, 8, 0, rows=range(1, 8, 2)).at(8)  # another process's rows of the same batch
    assert torch.equal(part.given.columns["noise"], second.given.columns["noise"][1::2])


def test_all_else_sees_one_fixed_draw(digits: Data):
    images = digits.train.select(["label", Noise(0.3), Downsample(2)])
    y = images.given[10:14].columns["noise"]
    assert torch.equal(images[10:14].given.columns["noise"], y)
    assert torch.equal(images[torch.tensor([13, 10])].given.columns["noise"], y[[3, 0]])
    assert torch.equal(images.given[10:14].columns["downsample"], Downsample(2)(images.x[10:14]))
    assert torch.equal(images.select(["downsample"]).given[10:14].columns["downsample"], Downsample(2)(images.x[10:14]))
    assert list(images.given.columns) == ["label", "noise", "downsample"]
    assert set(images.select(["label"]).given.columns) == {"label"}


def test_pictures_of_several_sizes_are_spoiled_each_at_its_own():
    images = several().select([Downsample(2)])
    assert images.schema["downsample"].spec.sizes == ((2, 4), (4, 2))  # type: ignore[union-attr]
    seen = set()
    for clock in range(0, 48, 4):
        batch = Batches(images, 4, 0, hide=0.5).at(clock)
        y = batch.given.columns["downsample"]
        assert y.shape[2:] == (batch.x.shape[2] // 2, batch.x.shape[3] // 2)
        seen.add(tuple(y.shape[2:]))
    assert seen == {(2, 4), (4, 2)}
    model = catalog.build("diffusion", images.spec, images.schema, "tiny")
    run = Run(model, images, Recipe(images=64, batch=4, hide=0.3))
    model.prepare_sizes([part.x for part in several().by_size()])  # type: ignore[attr-defined]
    for _ in range(4):
        run.step()
    y = Downsample(2)(images.inside(images.rows((8, 4))))[:2]
    x = guided(model, 1.5).sample(2, {"downsample": y}, size=(8, 4), steps=2)
    assert x.shape == (2, 1, 8, 4)


# -- the schema


def test_what_does_not_fit_is_said_before_training(digits: Data):
    for given, said in (
        (Downsample(16), "leaves nothing"),
        ([Noise(0.1), Noise(0.2)], "two columns 'noise'"),
        (["labl", Noise(0.1)], "did you mean 'label'"),
    ):
        with pytest.raises(ValueError, match=said):
            ns.fit("diffusion", digits, given=given, budget=100)
    for name in ("vae", "flow", "gan", "energy", "autoregressive"):
        with pytest.raises(ValueError, match="cannot be given images"):
            ns.fit(name, digits, given=Blur(1.0), budget=100, preset="tiny")


def test_a_checkpoint_says_what_made_its_condition(digits: Data, tmp_path: Path):
    def fitted(factor: int, budget: int, out: Path) -> Model:
        return ns.fit("diffusion", digits, given=["label", Downsample(factor)], budget=budget, preset="tiny", out=out)

    model = fitted(2, 256, tmp_path / "run")
    loaded = ns.load(tmp_path / "run")
    column = loaded.schema["downsample"]
    assert isinstance(column, Image)
    assert read(column.made_by or "") == Downsample(2)
    assert column == model.schema["downsample"]
    y = Downsample(2)(digits.test.x[:3])
    assert torch.equal(model.sample(3, {"downsample": y, "label": 3}), loaded.sample(3, {"downsample": y, "label": 3}))
    assert torch.equal(model.sample(3, {"downsample": y[0]}), loaded.sample(3, {"downsample": [y[0]] * 3}))
    with pytest.raises(ValueError, match="another run"):
        fitted(4, 256, tmp_path / "run")
    with pytest.raises(ValueError, match=r"made by Downsample\(factor=4"):
        ns.fit(model, digits, given=["label", Downsample(4)], budget=64)
    with pytest.raises(ValueError, match="takes \\(batch, 1, 4, 4\\)"):
        model.sample(1, {"downsample": torch.zeros(1, 1, 8, 8)})
    with pytest.raises(ValueError, match="cannot be drawn as trained"):
        model.sample(1, "as trained")
    named = ns.bits_per_dim(model, digits.test[:8], "downsample")
    told = ns.bits_per_dim(model, digits.test.x[:8], {"downsample": Downsample(2)(digits.test.x[:8])})
    assert named.value == pytest.approx(told.value, rel=1e-5)


def test_a_run_with_a_made_condition_resumes_bit_for_bit(digits: Data):
    images = digits.train[:64].select([Mask("random")])

    def begun(rounds: int) -> Run:
        run = Run(tiny("diffusion", images), images, Recipe(images=320, batch=32, hide=0.2))
        for _ in range(rounds):
            run.step()
        return run

    whole, half, again = begun(4), begun(2), begun(0)
    again.restore(half.state())
    again.images, again.rounds = half.images, half.rounds
    for _ in range(2):
        again.step()
    state = whole.state()
    assert all(torch.equal(v, state[k]) for k, v in again.state().items())


# -- networks


def test_channels_of_a_condition():
    schema = Schema({
        "small": Image(ImageSpec(2, (4, 3))), "label": Category(("a", "b")), "same": Image(ImageSpec(1, (8, 6), levels=5)),
    })  # fmt: skip
    read_in = ImageCondition(schema, ImageSpec(3, (8, 6)))
    small, same = (2 * Seeds.of(i, 2).uniform("x", *shape) - 1 for i, shape in enumerate(((2, 4, 3), (1, 8, 6))))
    given = schema.given(2, {"small": [small[0], None], "same": same})
    out = read_in(given)
    assert out.shape == (2, read_in.channels, 8, 6) == (2, 5, 8, 6)
    assert torch.allclose(out[0, :2], resized(small, (8, 6))[0])
    assert (out[1, :3] == 0).all()
    assert (out[0, 2] == 1).all()
    assert torch.equal(out[:, 3:4], same)
    assert (out[:, 4] == 1).all()
    flat = torch.full((1, 1, 4, 3), 0.3)
    assert torch.allclose(resized(flat, (9, 7)), torch.tensor(0.3))
    ramp = torch.arange(8.0).view(1, 1, 8, 1)
    assert torch.allclose(resized(ramp, (16, 1))[0, 0, 4:12, 0], torch.arange(4, 12) / 2 - 0.25, atol=1e-5)
    assert torch.allclose(resized(small, (2, 3)), Downsample((2, 1))(small), atol=1e-6)
    assert resized(torch.zeros(1, 1, 2, 3, 4), (4, 6, 8)).shape == (1, 1, 4, 6, 8)
    assert ImageCondition(Schema({"label": Category(("a",))}), ImageSpec(1, (4, 4))).channels == 0


def test_conditions_that_no_network_reads():
    with pytest.raises(ValueError, match="not to other axes"):
        ImageCondition(Schema({"scan": Image(ImageSpec(1, (4, 4, 4), "dhw"))}), ImageSpec(1, (4, 4)))
    with pytest.raises(ValueError, match="of categories"):
        ImageCondition(Schema({"map": Image(ImageSpec(1, (4, 4), kind="categorical", levels=3))}), ImageSpec(1, (4, 4)))


@pytest.mark.parametrize(
    ("name", "rounds", "t"),
    [("diffusion/edm", 80, 0.8), *(pytest.param(name, 800, 0.4, marks=pytest.mark.slow) for name in DIFFUSION[1:])],
)
def test_a_denoiser_listens_to_its_picture(name: str, rounds: int, t: float, digits: Data):
    """Told the picture with a little noise, it errs far less at strong noise than untold, and more if told a wrong one."""
    run = trained(name, digits.train.select([Noise(0.1)]), rounds)
    with run.averaged() as model, torch.no_grad():
        assert isinstance(model, Denoiser)
        x, times = digits.test.x[:64], torch.full((64,), t)
        alpha, sigma = (v.view(-1, 1, 1, 1) for v in model.schedule(times))
        x_t = alpha * x + sigma * Seeds.of(1, 64).normal("eps", *x.shape[1:])
        told = (Noise(0.1)(x), None, Noise(0.1)(x.roll(1, 0)))
        given = [model.schema.given(64, None if y is None else {"noise": y}) for y in told]
        right, untold, wrong = (float((model.denoise(x_t, times, g) - x).square().mean()) for g in given)
    assert right < 0.6 * untold
    assert untold < wrong


@pytest.mark.parametrize("name", DIFFUSION)
def test_guidance_and_missing_conditions(name: str, digits: Data):
    images = digits.train[:64].select(["label", Mask("half")])
    model = trained(name, images, 3).model
    y = Mask("half")(digits.test.x[:4])
    said = {"mask": y, "label": [1, 2, 3, None]}
    told, untold = model.sample(4, said, steps=4), model.sample(4, steps=4)
    none = {"mask": [None] * 4, "label": [None] * 4}
    for found, meant in (
        (guided(model, 1.0).sample(4, said, steps=4), told),
        (guided(model, 0.0).sample(4, said, steps=4), untold),
        (model.sample(4, none, steps=4), untold),
    ):
        assert ((found - meant).abs() > 1e-4).float().mean() < 0.02  # a rounding may fall the other way
    assert isinstance(model, Denoiser)
    t, other = torch.full((4,), 0.5), y.clone()
    other[2, 0, 0] = 1.0  # another picture for row 2: its result alone is another
    with torch.no_grad():
        found = [model.denoise(digits.test.x[:4], t, model.schema.given(4, {"mask": v})) for v in (y, other)]
    changed = (found[0] - found[1]).abs().flatten(1).max(1).values
    assert changed[2] > 1e-4 > changed[[0, 1, 3]].max()


@pytest.mark.slow
@pytest.mark.parametrize("name", DIFFUSION)
def test_the_contract_holds_with_a_column_of_images(name: str):
    subject = Subject(lambda spec, schema: catalog.build(name, spec, schema, "tiny"), name=name)
    subject.__dict__["schema"] = pictured()
    kind, only = catalog.get(name), {"conditions_may_be_missing_or_as_trained", "unconditional_works_too"}  # of models that must
    for check, capability in testing.CHECKS:
        if check.__name__ not in only and (capability is None or issubclass(kind, capability)):
            check(subject)


# -- files


def test_a_hole_in_a_file_is_where_alpha_is_low(digits: Data, tmp_path: Path):
    from nonesuch.cli._words import images_of

    column = digits.train.select([Mask("half")]).schema["mask"]
    assert isinstance(column, Image)
    values = np.full((8, 8, 2), 200, np.uint8)
    values[4:, :, 1] = 0
    Pillow.fromarray(values, "LA").save(tmp_path / "a.png")
    (y,) = images_of(column, "mask", str(tmp_path / "a.png"))
    assert torch.allclose(y, Mask("half")(torch.full((1, 1, 8, 8), 200 / 127.5 - 1))[0])
