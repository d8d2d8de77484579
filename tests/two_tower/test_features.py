"""What is known of an item becomes a bag of weighted rows, the same bytes every time."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.two_tower.features import PRICE_BANDS, Bag, describe
from tests.event_logs import catalogue


def rows_of(bag, item):
    return bag.rows[bag.starts[item] : bag.starts[item + 1]]


def weights_of(bag, item):
    return bag.weights[bag.starts[item] : bag.starts[item + 1]]


def shared(bag, one, other):
    return len(set(rows_of(bag, one).tolist()) & set(rows_of(bag, other).tolist()))


@pytest.mark.parametrize("count", [0, 1, 3])
def test_items_without_content_have_an_empty_part(count):
    bag = describe(catalogue([None] * count), 64)
    assert bag.starts.tolist() == [0] * (count + 1) and len(bag.rows) == 0 and bag.size == 64


def test_a_word_that_one_item_alone_has_is_left_out():
    bag = describe(catalogue(["red mug", "red cup", "teapot"]), 1 << 20)
    assert len(rows_of(bag, 0)) == 1 and shared(bag, 0, 1) == 1 and len(rows_of(bag, 2)) == 0


def test_words_are_found_whatever_their_case_marks_and_escapes():
    bag = describe(catalogue(["Tea &amp; Café", "TEA, CAFÉ!", "tea & café"]), 1 << 20)
    # Two words, and the pair of them: `amp` would have been a third word of the first item.
    assert len(rows_of(bag, 0)) == 3
    assert rows_of(bag, 0).tolist() == rows_of(bag, 1).tolist() == rows_of(bag, 2).tolist()


def test_each_field_of_an_item_has_length_one_so_a_long_title_does_not_drown_the_category():
    words = " ".join(f"w{number}" for number in range(40))
    bag = describe(catalogue([words, words], [["a"], ["a"]], ["maker", "maker"], [3.0, 3.0]), 1 << 22)
    # Fields: category, creator, price, words, pairs.
    np.testing.assert_allclose((weights_of(bag, 0) ** 2).sum(), 5, rtol=1e-5)


def test_a_rare_word_weighs_more_than_a_common_one():
    titles = ["mug blue"] * 2 + ["mug"] * 30
    weights = weights_of(describe(catalogue(titles), 1 << 20), 0)
    assert sorted(weights)[0] < 0.5 * sorted(weights)[1]


def test_near_categories_share_the_rows_of_their_common_path():
    paths = [["food", "tea", "green"], ["food", "tea", "black"], ["food", "rice"], ["toys", "tea"], None, []]
    bag = describe(catalogue([None] * 6 + [None] * 6, paths * 2), 1 << 20)
    assert shared(bag, 0, 1) > shared(bag, 0, 2) > 0
    assert len(rows_of(bag, 4)) == len(rows_of(bag, 5)) == 0


def test_prices_fall_into_bands_and_a_missing_or_infinite_one_into_none():
    prices = [None, float("nan"), float("inf")] + [float(number) for number in range(5 * PRICE_BANDS)]
    bag = describe(catalogue([None] * len(prices), prices=prices), 1 << 20)
    counts = np.diff(bag.starts)
    assert counts[:3].tolist() == [0, 0, 0] and (counts[3:] == 1).all()
    assert len(np.unique(bag.rows)) == PRICE_BANDS
    assert (np.unique(bag.rows, return_counts=True)[1] == 5).all()


def test_one_price_for_all_is_one_band():
    bag = describe(catalogue([None] * 4, prices=[2.5] * 4), 1 << 20)
    assert len(np.unique(bag.rows)) == 1


def test_rows_stay_within_the_table_even_when_all_collide():
    bag = describe(catalogue(["a b c d"] * 3, [["x", "y"]] * 3), 2)
    assert set(bag.rows.tolist()) <= {0, 1} and np.isfinite(bag.weights).all()


def test_the_same_catalogue_gives_the_same_bytes():
    rng = np.random.default_rng(1)
    titles = [" ".join(f"w{n}" for n in rng.integers(0, 200, 9)) for _ in range(3000)]
    one, other = (describe(catalogue(titles, creators=["a", "b", None] * 1000), 4096) for _ in range(2))
    for name in ("starts", "rows", "weights"):
        assert getattr(one, name).tobytes() == getattr(other, name).tobytes()


@st.composite
def bags(draw):
    lengths = draw(st.lists(st.integers(0, 4), max_size=7))
    size = draw(st.integers(1, 9))
    rows = draw(st.lists(st.integers(0, size - 1), min_size=sum(lengths), max_size=sum(lengths)))
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    weights = np.arange(1, len(rows) + 1, dtype=np.float32)
    return Bag(starts, np.array(rows, np.int64), weights, size)


def dense(bag):
    table = np.zeros((len(bag.starts) - 1, bag.size), np.float32)
    np.add.at(table, (np.repeat(np.arange(len(table)), np.diff(bag.starts)), bag.rows), bag.weights)
    return table


@settings(deadline=None)
@given(bags(), st.data())
def test_a_bag_taken_packed_or_reversed_is_the_same_matrix(bag, data):
    whole = dense(bag)
    np.testing.assert_array_equal(dense(bag.reversed()), whole.T)
    used = np.unique(bag.rows)
    np.testing.assert_array_equal(dense(bag.packed()), whole[:, used])
    count = len(whole)
    items = np.array(data.draw(st.lists(st.integers(0, count - 1), max_size=5)) if count else [], np.int64)
    np.testing.assert_array_equal(dense(bag.take(items)), whole[items])
