"""Every path of exact top-K gives the reference's bits."""

import numpy as np
import pytest

from engine.errors import KernelError
from engine.kernels.top_k import cpu, cuda, reference, top_k


def case(users, items, width, seed=0, most_seen=7):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(0, min(most_seen, items) + 1, users)
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    seen = np.concatenate([rng.choice(items, n, replace=False) for n in lengths] or [np.empty(0)]).astype(np.int32)
    draw = lambda n: rng.standard_normal((n, width)).astype(np.float32)  # noqa: E731
    return draw(users), draw(items), starts, seen


def same(found, expected):
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_array_equal(found[1].view(np.int32), expected[1].view(np.int32))


PATHS = [cpu.top_k, lambda *a: cuda.top_k(*a, device="cpu")]


@pytest.mark.parametrize("path", PATHS, ids=["cpu", "device text on the cpu"])
@pytest.mark.parametrize(
    ("users", "items", "width", "k"),
    [(5, 123, 7, 10), (1, 1, 1, 1), (3, 4, 2, 9), (0, 5, 3, 2), (300, 777, 33, 50), (2, 40_000, 5, 20)],
)
def test_every_path_equals_the_reference(path, users, items, width, k):
    u, v, starts, seen = case(users, items, width)
    same(path(u, v, k, starts, seen), reference.top_k(u, v, k, starts, seen))


@pytest.mark.parametrize("path", PATHS, ids=["cpu", "device text on the cpu"])
def test_ties_go_to_the_lower_row_even_when_all_vectors_are_copies(path):
    u, v, starts, seen = case(9, 400, 6)
    v[:] = v[0]
    ids, _ = path(u, v, 5, starts, seen)
    same(path(u, v, 5, starts, seen), reference.top_k(u, v, 5, starts, seen))
    hidden = set(seen[: starts[1]].tolist())
    assert ids[0].tolist() == [row for row in range(400) if row not in hidden][:5]


@pytest.mark.parametrize("path", PATHS, ids=["cpu", "device text on the cpu"])
@pytest.mark.parametrize("scale", [1e-30, 1e-42, 1e19], ids=["small", "subnormal", "huge"])
def test_norms_of_any_size_keep_the_answer_exact(path, scale):
    u, v, starts, seen = case(11, 250, 12)
    v = (v * scale).astype(np.float32)
    u = (u * (scale if scale > 1 else 1)).astype(np.float32)
    with np.errstate(over="ignore"):
        same(path(u, v, 7, starts, seen), reference.top_k(u, v, 7, starts, seen))


def test_heavy_tailed_norms_and_all_negative_scores_stay_exact():
    rng = np.random.default_rng(3)
    u, v, starts, seen = case(20, 900, 16)
    v *= rng.pareto(1.1, (900, 1)).astype(np.float32) + 1
    same(top_k(u, v, 30, starts, seen), reference.top_k(u, v, 30, starts, seen))
    u, v = -np.abs(u), np.abs(v)
    same(top_k(u, v, 30, starts, seen), reference.top_k(u, v, 30, starts, seen))


def test_a_person_who_has_seen_everything_gets_padding():
    u, v, _, _ = case(2, 6, 3)
    starts, seen = np.array([0, 6, 6]), np.arange(6, dtype=np.int32)
    ids, scores = top_k(u, v, 4, starts, seen)
    assert ids[0].tolist() == [-1] * 4 and np.isneginf(scores[0]).all() and (ids[1] >= 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("users", "items", "width", "k"), [(5, 123, 7, 10), (300, 777, 33, 50), (5000, 140_000, 64, 100)]
)
def test_a_cuda_device_gives_the_bits_of_the_cpu(users, items, width, k):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    u, v, starts, seen = case(users, items, width)
    same(top_k(u, v, k, starts, seen, device="cuda"), top_k(u, v, k, starts, seen))


def test_an_empty_catalogue_gives_padding():
    ids, scores = top_k(np.ones((3, 2), np.float32), np.empty((0, 2), np.float32), 5)
    assert (ids == -1).all() and np.isneginf(scores).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(users=np.ones((2, 3))), "float32"),
        (dict(users=np.ones((2, 4), np.float32)), "wide"),
        (dict(k=0), "k is 0"),
        (dict(items=np.full((4, 3), np.nan, np.float32)), "NaN"),
        (dict(starts=np.array([0, 2])), "one part per user"),
        (dict(starts=np.array([0, 0, 1]), seen=np.array([9], np.int32)), "row 9 of 4"),
    ],
)
def test_a_bad_array_is_named_at_the_door(change, words):
    good = dict(
        users=np.ones((2, 3), np.float32),
        items=np.ones((4, 3), np.float32),
        k=1,
        starts=np.array([0, 0, 0]),
        seen=np.empty(0, np.int32),
    )
    with pytest.raises(KernelError, match=words):
        top_k(**{**good, **change})
