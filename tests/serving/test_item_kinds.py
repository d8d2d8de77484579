"""Item kinds over gRPC: what is no product has its places in everybody's list, though nobody's candidates hold it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.serving.shop import CATEGORIES, ITEMS, Shop, allow, ids

TOYS = CATEGORIES.index("toys")
MARKETS = [
    code for code in range(ITEMS) if code % len(CATEGORIES) == TOYS
]  # stands for what happens in the neighbourhood


def toys_in(items: Sequence[str]) -> int:
    return sum(int(name[-4:]) % len(CATEGORIES) == TOYS for name in items)


@pytest.mark.parametrize("user", ["ana", ""])
def test_a_kind_has_its_places_and_no_more(shop: Shop, user: str) -> None:
    others = [code for code in range(ITEMS) if code not in MARKETS]
    shop.publish(fallback={-1: others, TOYS: MARKETS})
    kind = "{kind:event,categories:[toys],least:0.2,most:0.3}"
    rules = f"[{{name:exclusions}},{{name:kinds,kinds:[{kind}]}},{{name:consent}}]"
    with shop.served() as (_, client):
        allow(client, "ana")
        plain = toys_in(ids(client.recommend(user, limit=20)))
    with shop.served(f"policy.home.rules={rules}") as (_, client):
        for limit in (10, 20):
            reply = client.recommend(user, limit=limit)
            assert limit * 0.2 <= toys_in(ids(reply)) <= limit * 0.3
            assert len(set(ids(reply))) == limit
        told = client.explain(user)
        assert next(each.weight for each in told.parameters if each.name == "kinds") > 0 or plain >= 4
        only = client.recommend(user, limit=8, only_categories=["books"])
        assert toys_in(ids(only)) == 0, "who asks for one category gets no other"
