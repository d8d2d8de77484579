"""What is popular where the request comes from."""

from __future__ import annotations

from tests.serving.shop import Shop


def test_a_stranger_gets_the_list_of_the_region_and_never_what_is_not_sold_there(shop: Shop) -> None:
    regions: list[list[str]] = [[] for _ in range(40)]
    regions[3], regions[4] = ["DE"], ["FR"]
    shop.publish(
        fallback={-1: [9, 8], ("DE", -1): [3, 9, 8], ("FR", -1): [4, 9, 8]},
        item_columns={"regions": regions},
    )
    with shop.served() as (_, client):
        lists = {
            region: [item.item_id for item in client.recommend("nobody", region=region).items]
            for region in ("", "de-by", "FR", "IT")
        }
    assert lists == {
        "": ["item-0009", "item-0008"],
        "de-by": ["item-0003", "item-0009", "item-0008"],
        "FR": ["item-0004", "item-0009", "item-0008"],
        "IT": ["item-0009", "item-0008"],
    }
