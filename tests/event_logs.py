"""Small logs and catalogues for the tests of two_tower and ranking."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from engine import schema
from engine.kernels.encode_user import UserTower
from engine.two_tower.histories import Histories

DAY = 86_400_000_000
NOON = 20_000 * DAY + DAY // 2  # microseconds since the epoch


def histories(events: Iterable[dict[str, object]], users: int | None = None) -> Histories:
    """Histories of events given as dicts: user, item, days (ago, at NOON), weight, group, event."""
    rows = [{"weight": 1.0, "group": 0, "event": "purchase", "days": 0.0} | event for event in events]
    rows.sort(key=lambda row: (row["user"], -row["days"], row["item"]))  # type: ignore[operator]
    column = lambda name, kind: np.array([row[name] for row in rows], kind)  # noqa: E731
    owner = column("user", np.int64)
    count = users if users is not None else int(owner.max(initial=-1)) + 1
    return Histories(
        pa.array([number.to_bytes(16, "big") for number in range(count)], schema.USER_KEY),
        np.searchsorted(owner, np.arange(count + 1)).astype(np.int64),
        column("item", np.int32),
        (NOON - column("days", np.float64) * DAY).astype(np.int64),
        column("weight", np.float32),
        column("group", np.uint8),
        np.array([schema.EVENTS.index(row["event"]) for row in rows], np.uint8),  # type: ignore[arg-type]
    )


def without(past: Histories, gone: np.ndarray) -> Histories:
    """The same people, less some events."""
    kept = np.concatenate([[0], np.cumsum(~gone)])
    return Histories(
        past.keys,
        kept[past.starts].astype(np.int64),
        past.item[~gone],
        past.ts[~gone],
        past.weight[~gone],
        past.group[~gone],
        past.event[~gone],
    )


def random_log(
    rng: np.random.Generator, users: int, items: int, events: int, groups: int = 1, days: float = 200.0
) -> Histories:
    """Purchases and, in odd groups, views at random."""
    group = rng.integers(0, groups, events)
    return histories(
        (
            {"user": user, "item": item, "days": ago, "weight": weight, "group": bit, "event": kind}
            for user, item, ago, weight, bit, kind in zip(
                rng.integers(0, users, events).tolist(),
                rng.integers(0, items, events).tolist(),
                (rng.random(events) * days).tolist(),
                rng.choice([0.25, 1.0, 2.0], events).tolist(),
                group.tolist(),
                np.where(group % 2, "view", "purchase").tolist(),
                strict=True,
            )
        ),
        users,
    )


def clustered_log(users: int = 240, clusters: int = 8, each: int = 12, events: int = 14, seed: int = 0) -> Histories:
    """People who want items of one cluster of `each` items alone, in a random order, a day apart."""
    rng = np.random.default_rng(seed)
    rows = []
    for user in range(users):
        mine = rng.permutation(each)[: min(events, each)] + each * (user % clusters)
        rows += [{"user": user, "item": int(item), "days": float(len(mine) - n)} for n, item in enumerate(mine)]
    return histories(rows, users)


def catalogue(
    titles: list[str | None],
    categories: list[list[str] | None] | None = None,
    creators: list[str | None] | None = None,
    prices: list[float | None] | None = None,
) -> pa.Table:
    """A catalogue with these columns and nulls elsewhere."""
    count = len(titles)
    given = {
        "item_id": [f"i{number:06d}" for number in range(count)],
        "title": titles,
        "categories": categories,
        "creator": creators,
        "price": prices,
    }
    return pa.table(
        [
            pa.nulls(count, field.type) if given.get(field.name) is None else pa.array(given[field.name], field.type)
            for field in schema.CATALOGUE
        ],
        schema=schema.CATALOGUE,
    )


def random_tower(rng: np.random.Generator, width: int = 5, half_lives: tuple[float, ...] = (3.0, 30.0)) -> UserTower:
    """A user tower of random weights."""
    decays = len(half_lives)
    draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)  # noqa: E731
    return UserTower(
        (np.log(2) / np.array(half_lives)).astype(np.float32),
        draw(decays),
        draw(2 * width, decays * width),
        draw(2 * width),
        draw(width, 2 * width),
        draw(width),
        draw(width),
        draw(width),
    )
