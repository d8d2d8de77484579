"""Co-visit counts equal the reference's, and neighbours are what they say."""

import numpy as np
import pytest

from engine.errors import KernelError
from engine.kernels.co_visits import add, co_visits, cpu, neighbours, reference


def people(users, items, seed):
    rng = np.random.default_rng(seed)
    sets = [rng.choice(items, rng.integers(0, min(items, 9) + 1), replace=False) for _ in range(users)]
    starts = np.concatenate([[0], np.cumsum([len(s) for s in sets])]).astype(np.int64)
    return starts, np.concatenate([*sets, np.empty(0)]).astype(np.int32)


def dense(codes, counts, items):
    table = np.zeros(items * items)
    table[codes] = counts
    return table.reshape(items, items)


@pytest.mark.parametrize(("users", "items"), [(0, 5), (1, 1), (7, 23), (200, 41)])
@pytest.mark.parametrize("at_once", [1, 50, 10**7])
def test_counts_equal_the_reference_however_the_work_is_cut(monkeypatch, users, items, at_once):
    monkeypatch.setattr(cpu, "PAIRS_AT_ONCE", at_once)
    starts, item = people(users, items, users)
    codes, counts = co_visits(starts, item, items)
    assert (np.diff(codes) > 0).all()
    np.testing.assert_array_equal(dense(codes, counts, items), reference.co_visits(starts, item, items))


def test_counts_of_shards_add_up():
    a, b = people(30, 17, 1), people(20, 17, 2)
    whole = dense(*add(*co_visits(*a, 17), *co_visits(*b, 17)), 17)
    np.testing.assert_array_equal(whole, reference.co_visits(*a, 17) + reference.co_visits(*b, 17))


def test_neighbours_are_the_nearest_by_cosine_and_never_the_item_itself():
    starts, item = people(400, 13, 5)
    near, likeness = neighbours(*co_visits(starts, item, 13), 13, keep=20)
    counts = reference.co_visits(starts, item, 13)
    for row in range(13):
        cosine = counts[row] / np.sqrt(counts[row, row] * np.diag(counts))
        cosine[row] = 0
        cosine[counts[row] < 2] = 0
        found = near[row][near[row] >= 0]
        assert row not in found and len(found) == (cosine > 0).sum()
        np.testing.assert_allclose(likeness[row][: len(found)], np.sort(cosine)[::-1][: len(found)], rtol=1e-6)


def test_a_pair_that_one_person_alone_has_is_no_neighbour():
    near, _ = neighbours(*co_visits(np.array([0, 2]), np.array([0, 1], np.int32), 3), 3, keep=2)
    assert (near == -1).all()


def test_an_item_out_of_range_is_named():
    with pytest.raises(KernelError, match="row 9 of 3"):
        co_visits(np.array([0, 1]), np.array([9], np.int32), 3)
