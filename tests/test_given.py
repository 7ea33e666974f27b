"""Conditions: what a caller says is coded and read back, what is missing says so, and draws follow training's frequencies."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from nonesuch.core.given import AS_TRAINED, Category, Column, Given, Image, Number, Schema, Text, did_you_mean
from nonesuch.core.image import ImageSpec
from nonesuch.core.seeds import Seeds

GREY = ImageSpec(1, (2, 3), levels=5)
CAT = Category(("cat", "dog", "3"), (0.2, 0.5, 0.3))
AGE = Number(50.0, 12.0, tuple(np.quantile(np.arange(20.0, 85.0), np.linspace(0, 1, 33)).tolist()))
SCHEMA = Schema({"kind": CAT, "age": AGE, "title": Text(12), "sketch": Image(GREY, "blur")})


def text(codes: Tensor) -> str:
    """What a row of a Text column says."""
    return bytes((codes[codes > 0] - 1).tolist()).decode("utf-8", "replace")


def same(a: Given, b: Given) -> bool:
    return a.n == b.n and all(torch.equal(v.nan_to_num(9e9), b.columns[k].nan_to_num(9e9)) for k, v in a.columns.items())


# -- reading what a caller says


@pytest.mark.parametrize(
    "value",
    [["dog", "cat", None], ("dog", "cat", None), np.array(["dog", "cat", None], dtype=object)],
    ids=["list", "tuple", "numpy"],
)
def test_a_value_an_image(value: Any):
    assert SCHEMA.given(3, {"kind": value}).columns["kind"].tolist() == [1, 0, -1]


@pytest.mark.parametrize("value", [3, 3.0, "3", np.int64(3), np.float32(3), np.str_("3"), torch.tensor(3), np.array(3)])
def test_one_value_for_all_whatever_its_type(value: Any):
    assert SCHEMA.given(2, {"kind": value}).columns["kind"].tolist() == [2, 2]


@pytest.mark.parametrize("value", [[38, 62.0], torch.tensor([38, 62]), np.array([38.0, 62.0]), ["38", torch.tensor(62)]])
def test_numbers_are_standardised(value: Any):
    assert SCHEMA.given(2, {"age": value}).columns["age"].tolist() == [-1, 1]


def test_labels_in_a_tensor_are_names():
    schema = Schema({"label": Category(tuple(map(str, range(10))))})
    assert schema.given(3, {"label": torch.tensor([7, 0, 3])}).columns["label"].tolist() == [7, 0, 3]
    assert schema.given(3, {"label": np.array([7, 0, 3])}).columns["label"].tolist() == [7, 0, 3]


def test_none_and_nan_are_missing_numbers():
    assert SCHEMA.given(2, {"age": [None, math.nan]}).columns["age"].isnan().all()


@pytest.mark.parametrize("said", ["a cat", "naïve", "日本", "🐈‍⬛", "é" * 3, "a\nb", "\udcff\udc80"])
def test_texts_are_their_bytes(said: str):
    row = SCHEMA.given(1, {"title": said}).columns["title"][0]
    whole = said.encode("utf-8", "surrogateescape")
    assert row.shape == (12,)
    assert [int(v) - 1 for v in row if v > 0] == list(whole[:12])
    assert (row[len(whole) :] == 0).all()
    assert row.max() <= 256


def test_a_long_text_is_cut_and_an_empty_one_is_not_a_missing_one():
    codes = SCHEMA.given(3, {"title": ["a text of more than twelve bytes", "", None]}).columns["title"]
    assert text(codes[0]) == "a text of mo"
    assert SCHEMA["title"].present(codes).tolist() == [True, True, False]


def test_an_emoji_cut_in_its_middle_keeps_its_first_bytes():
    codes = SCHEMA.given(1, {"title": "0123456789🐈"}).columns["title"][0]
    assert [int(v) - 1 for v in codes] == list("0123456789🐈".encode()[:12])


def test_a_zero_byte_is_not_the_end():
    assert text(SCHEMA.given(1, {"title": "a\0b"}).columns["title"][0]) == "a\0b"


@pytest.mark.parametrize(
    "spec",
    [
        GREY,
        ImageSpec(2, (4,), "l", levels=5),
        ImageSpec(1, (2, 2, 2), "dhw", levels=5),
        ImageSpec(3, (), "", "continuous", None),
    ],
    ids=lambda s: s.axes or "vector",
)
def test_pictures_as_conditions_on_any_axes(spec: ImageSpec):
    schema, x = Schema({"sketch": Image(spec)}), spec.snap(torch.rand(3, *spec.shape))
    assert torch.equal(schema.given(3, {"sketch": x}).columns["sketch"], x)
    assert torch.equal(schema.given(3, {"sketch": x.numpy()}).columns["sketch"], x)
    assert torch.equal(schema.given(3, {"sketch": x[0]}).columns["sketch"], x[:1].expand(3, *spec.shape))
    assert torch.equal(schema.given(3, {"sketch": x[0].numpy()}).columns["sketch"], x[:1].expand(3, *spec.shape))
    some = schema.given(3, {"sketch": [x[0], None, x[2]]})
    assert schema["sketch"].present(some.columns["sketch"]).tolist() == [True, False, True]
    assert torch.equal(some.columns["sketch"][2], x[2])


def test_a_condition_read_already_is_taken_as_it_is():
    given = SCHEMA.given(2, {"kind": "dog"})
    assert SCHEMA.given(2, given) is given


# -- what is missing


def test_what_is_not_said_is_missing_in_band():
    given = SCHEMA.given(2, {"kind": "dog"})
    assert same(SCHEMA.given(2), SCHEMA.missing(2))
    assert same(SCHEMA.given(2, {}), SCHEMA.missing(2))
    assert [SCHEMA[k].present(v).tolist() for k, v in given.columns.items()] == [[True, True], *[[False, False]] * 3]


def test_hiding_a_row_hides_all_its_columns_and_no_other_row():
    x = torch.zeros(4, *GREY.shape)
    given = SCHEMA.given(4, {"kind": "dog", "age": [20, 30, 40, 50], "title": "seen", "sketch": x})
    hidden = SCHEMA.hide(given, torch.tensor([False, True, True, False]))
    assert same(hidden[[1, 2]], SCHEMA.missing(2))
    assert same(hidden[[0, 3]], given[[0, 3]])
    assert same(given, SCHEMA.given(4, {"kind": "dog", "age": [20, 30, 40, 50], "title": "seen", "sketch": x}))


# -- refusals


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"kind": "cot"}, "kind=cot is not one of its categories; did you mean 'cat'?"),
        ({"kind": 4}, "known: cat, dog, 3."),
        ({"kinds": "cat"}, "no column 'kinds'; did you mean 'kind'?"),
        ({"zzz": "cat"}, "known: kind, age, title, sketch."),
        ({"kind": ["cat"]}, "kind has 1 values for 3 images"),
        ({"age": torch.zeros(4)}, "age has 4 values for 3 images"),
        ({"sketch": torch.zeros(2, 1, 2, 3)}, "sketch has 2 values for 3 images"),
        ({"age": "old"}, "age takes numbers"),
        ({"age": [1, [2], 3]}, "age takes numbers"),
        ({"age": math.inf}, "age takes finite numbers"),
        ({"sketch": torch.zeros(1, 9, 9)}, "sketch has shape"),
        ({"sketch": torch.full((1, 2, 3), 7.0)}, "sketch must lie in"),
        ("dog", "given takes a dictionary"),
        (3, "given takes a dictionary"),
        (np.array([1, 2, 3]), "given takes a dictionary"),
        (torch.tensor([1, 2, 3]), "given takes a dictionary"),
        ("as traind", "given takes a dictionary"),
    ],
)
def test_what_cannot_be_meant_is_refused(given: Any, sentence: str):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (the sentence is compared below, with its brackets)
        SCHEMA.given(3, given)
    assert sentence in str(caught.value)


def test_an_unconditional_model_says_so():
    with pytest.raises(ValueError, match=r"unconditional and cannot be given kind; fit it with given=\.\.\."):
        Schema().given(2, {"kind": "dog"})
    assert not Schema()
    assert SCHEMA
    assert Schema().given(2).columns == {}


def test_a_condition_of_other_rows_or_columns_is_refused():
    with pytest.raises(ValueError, match="has 3 rows"):
        SCHEMA.given(2, SCHEMA.missing(3))
    with pytest.raises(ValueError, match="wanted"):
        SCHEMA.given(2, Given(2))


@pytest.mark.parametrize("arguments", [(("a", "a"),), (("a", "b"), (1.0,)), ((1, "1"),)])
def test_categories_need_distinct_names_and_as_many_frequencies(arguments: tuple[Any, ...]):
    with pytest.raises(ValueError, match="distinct names"):
        Category(*arguments)


def test_the_nearest_name_or_all_of_them():
    assert did_you_mean("diffusoin", ["diffusion", "flow"]) == "did you mean 'diffusion'?"
    assert did_you_mean("zzz", ["diffusion", "flow"]) == "known: diffusion, flow."
    assert did_you_mean("zzz", []) == "known: none."


# -- drawn as trained


def test_categories_are_drawn_as_often_as_in_training():
    n = 6000
    drawn = Schema({"kind": CAT}).given(n, AS_TRAINED, seeds=3).columns["kind"]
    found = torch.bincount(drawn, minlength=3)
    assert stats.chisquare(found.numpy(), n * np.array(CAT.frequencies)).pvalue > 1e-3
    rare = Category(("never", "always"), (0.0, 1.0)).draw(Seeds.of(0, n), "kind")
    assert (rare == 1).all()


def test_numbers_are_drawn_from_the_quantiles_of_training():
    drawn = AGE.draw(Seeds.of(5, 4000), "age") * AGE.std + AGE.mean
    assert drawn.min() >= 20
    assert drawn.max() <= 84
    assert stats.kstest(drawn.numpy(), "uniform", (20, 64)).pvalue > 1e-3


def test_a_skewed_number_keeps_its_quantiles():
    values = stats.expon.ppf((np.arange(5000) + 0.5) / 5000)
    column = Number(float(values.mean()), float(values.std()), tuple(np.quantile(values, np.linspace(0, 1, 33)).tolist()))
    drawn = (column.draw(Seeds.of(1, 8000), "x") * column.std + column.mean).numpy()
    for q in (0.125, 0.5, 0.75, 0.9375):  # knots of the table, where the interpolation is exact
        below, deviation = (drawn <= np.quantile(values, q)).mean(), math.sqrt(q * (1 - q) / 8000)
        assert abs(below - q) < 4 * deviation


def test_a_number_without_quantiles_is_drawn_standard_normal():
    drawn = Number(7.0, 3.0).draw(Seeds.of(2, 4000), "x")
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3


def test_draws_belong_to_the_seed_and_columns_are_independent():
    schema = Schema({"a": CAT, "b": CAT})
    whole = schema.given(500, AS_TRAINED, seeds=4)
    assert same(whole[100:110], schema.given(10, AS_TRAINED, seeds=Seeds.of(4, 10, start=100)))
    table = torch.zeros(3, 3)
    table.index_put_((whole.columns["a"], whole.columns["b"]), torch.ones(500), accumulate=True)
    assert stats.chi2_contingency(table.numpy()).pvalue > 1e-3
    assert not same(whole, schema.given(500, AS_TRAINED, seeds=5))


@pytest.mark.parametrize(("column", "word"), [(Text(), "texts"), (Image(GREY), "images")])
def test_what_cannot_be_drawn_says_so(column: Column, word: str):
    with pytest.raises(ValueError, match=f"cannot be drawn as trained; give the {word}"):
        Schema({"c": column}).given(2, AS_TRAINED)


# -- rows


@pytest.fixture
def rows() -> Given:
    return SCHEMA.given(3, {"kind": ["cat", "dog", None], "age": [1, 2, 3], "title": ["a", None, "c"]})


def test_rows_are_picked_repeated_and_joined(rows: Given):
    assert len(rows) == 3
    assert rows[1:].columns["kind"].tolist() == [1, -1]
    assert rows[[2, 0]].columns["kind"].tolist() == [-1, 0]
    assert rows[torch.tensor([True, False, True])].columns["kind"].tolist() == [0, -1]
    assert len(rows[torch.tensor([0, 0, 1, 2])]) == 4
    assert rows.repeat(2).columns["kind"].tolist() == [0, 0, 1, 1, -1, -1]
    assert rows.repeat(2).columns["title"].shape == (6, 12)
    assert same(rows[:1] + rows[1:], rows)
    assert same(rows.to("cpu"), rows)


def test_rows_without_columns_are_counted():
    assert [len(g) for g in (Given(5)[1:3], Given(5).repeat(3), Given(2) + Given(3))] == [2, 15, 5]


def test_columns_are_selected_in_the_order_asked_for():
    assert list(SCHEMA.select(["age", "kind"]).columns) == ["age", "kind"]
    with pytest.raises(ValueError, match="did you mean 'title'"):
        SCHEMA.select(["titel"])


def test_the_first_category_is_the_label():
    assert Schema({"age": AGE, "kind": CAT, "other": CAT}).category() == ("kind", CAT)
    with pytest.raises(ValueError, match="no column of categories"):
        Schema({"age": AGE}).category()
