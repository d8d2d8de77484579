"""Paging: nothing twice and nothing passed over, whatever is published meanwhile; a token is good for its own list alone."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from bodega.client import BodegaRpcError
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import RequestError
from engine.identity import UserKey
from engine.serving.pages import MOST_SHOWN, Page, page_of, token_of
from tests.serving.shop import ITEMS, Shop, allow, ids

KEY, OWNER = UserKey(b"k" * 32), b"o" * 16
pages = st.builds(Page, st.integers(0, 2**64 - 1), st.binary(max_size=200).map(lambda raw: raw[: len(raw) // 5 * 5]))


@given(pages, st.text(max_size=20))
def test_a_page_comes_back_from_its_token(page, place):
    assert page_of(token_of(page, KEY, OWNER, place), KEY, OWNER, place) == page


@given(pages, st.integers(0, 10_000), st.integers(0, 255))
def test_a_token_that_was_touched_is_refused(page, at, octet):
    token = token_of(page, KEY, OWNER, "home")
    raw = bytearray(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    at %= len(raw)
    if raw[at] == octet:
        return
    raw[at] = octet
    touched = base64.urlsafe_b64encode(bytes(raw)).decode().rstrip("=")
    with pytest.raises(RequestError) as told:
        page_of(touched, KEY, OWNER, "home")
    assert told.value.field == "page_token"


@pytest.mark.parametrize("token", ["", "x", "====", "ü", "A" * 4096, "\0"])
def test_garbage_is_refused_by_name(token):
    with pytest.raises(RequestError):
        page_of(token, KEY, OWNER, "home")


@pytest.mark.parametrize(
    ("key", "owner", "place"),
    [(UserKey(b"x" * 32), OWNER, "home"), (KEY, b"p" * 16, "home"), (KEY, b"", "home"), (KEY, OWNER, "email")],
)
def test_a_token_is_no_good_for_another(key, owner, place):
    with pytest.raises(RequestError):
        page_of(token_of(Page(7), KEY, OWNER, "home"), key, owner, place)


def test_a_token_stays_within_the_proto_and_then_the_list_ends():
    full = Page(1).then(f"item-{n}" for n in range(MOST_SHOWN))
    assert 0 < len(token_of(full, KEY, OWNER, "home")) <= 4096
    assert token_of(full.then(["one more"]), KEY, OWNER, "home") == ""


def walk(client, user, limit, between=lambda: None, **asked):
    """Every page to the end."""
    seen, token = [], ""
    while True:
        reply = client.recommend(user, limit=limit, page_token=token, **asked)
        seen.append(ids(reply))
        token = reply.next_page_token
        if not token:
            return seen
        between()


@pytest.mark.parametrize("user", ["", "ana"])
def test_pages_show_everything_once(shop: Shop, user):
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
        paged = [item for page in walk(client, user, 7) for item in page]
        whole = ids(client.recommend(user, limit=100))
    assert len(set(paged)) == len(paged)
    assert set(paged) == set(whole)


def test_a_snapshot_swapped_between_pages_neither_repeats_nor_skips(shop: Shop):
    shop.publish()
    with shop.served() as (server, client):
        allow(client, "ana")
        firsts = iter(range(1, 50))

        def swap() -> None:
            shop.publish(first=next(firsts))
            server.replica.look()

        paged = [item for page in walk(client, "ana", 6, swap) for item in page]
        whole = ids(client.recommend("ana", limit=100))
    assert len(set(paged)) == len(paged)
    assert set(whole) <= set(paged)  # whatever can be shown in the end was shown
    assert len(paged) <= ITEMS


def test_somebody_elses_token_is_refused(shop: Shop):
    shop.publish()
    with shop.served() as (_, client):
        allow(client, "ana")
        token = client.recommend("ana", limit=5).next_page_token
        for user in ("", "ben"):
            with pytest.raises(BodegaRpcError) as told:
                client.recommend(user, limit=5, page_token=token)
            assert told.value.field == "page_token"


def test_marks_find_what_was_shown(shop: Shop):
    shop.publish()
    with shop.served() as (server, _), server.replica.lease() as served:
        items = served.snapshot.items
        page = Page().then(items.id_of(code) for code in (3, 5))
        assert page.among(items, np.arange(10, dtype=np.int32)) == {3, 5}
