"""What a call is made of: plain words into messages, with every name checked before anything is sent."""

from __future__ import annotations

import difflib
import uuid
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal, TypedDict, Unpack

from bodega.v1 import common_pb2, consent_pb2, feedback_pb2, ranking_pb2

Level = Literal["none", "session", "purchases", "full"]
KEPT = ("profile", "train", "sensitive")  # purposes that every deployment has
PURPOSES = ("profile", "train", "measure", "sensitive", "location", "cross_source")


class Asked(TypedDict, total=False):
    """What a list is asked for, beside the person."""

    surface: str  # home, email, item_page, basket; left out: the server's default
    limit: int  # items wanted, 1..100; left out: the surface's default
    level: Level | None  # how far this list may go at most; None: the person's own preference
    region: str  # ISO 3166-2, or a prefix of it
    item_id: str  # the item looked at
    basket: Iterable[str]  # item ids
    visit_id: str  # names the visit; random, never a user id
    global_privacy_control: bool  # Sec-GPC as received
    minor: bool  # known to be a minor
    exclude: Iterable[str]  # item ids
    only_categories: Iterable[str]  # any of these
    diversity: float | None  # 0..1, in place of the surface's strength
    consent_token: str  # of the person's last `set_consent`: no older state is used
    page_token: str  # of the last reply
    seed: int | None  # for a repeatable list


class Recorded(TypedDict, total=False):
    """What is kept with a change of consent, as proof."""

    notice_version: str  # the text that the person saw
    actor: str  # person, guardian, operator
    request_id: str  # the same one again records nothing new; one is made where it is left out
    occurred_at: datetime | None  # when the person said so, with a time zone; for the record only


class Did(TypedDict, total=False):
    """What is told of an event, beside who did what with which item."""

    source: str  # where: web, app, store ...; left out: web
    event_id: str  # the same one again counts once; one is made where it is left out
    time: datetime | None  # with a time zone; None: now
    session_id: str
    value: float | None
    recommendation_id: str  # of the list that it came from
    position: int  # in that list, 1-based
    flags: Iterable[str]  # gift, ...
    category: str  # what dismiss_category names; left out: the item's own


def event(user_id: str, name: str, item_id: str = "", **did: Unpack[Did]) -> feedback_pb2.Event:
    """One event; '' is an anonymous visitor.

    Args:
        name: view, click, cart, purchase, return, like, dismiss, dismiss_category, gift, impression.
        did: see `Did`.

    Raises:
        TypeError: an argument is none of them.
    """
    refuse_unknown(did, Did)
    made = feedback_pb2.Event(
        event_id=did.get("event_id") or uuid.uuid4().hex,
        user_id=user_id,
        item_id=item_id,
        event=name,
        source=did.get("source", "web"),
        session_id=did.get("session_id", ""),
        value=did.get("value"),
        recommendation_id=did.get("recommendation_id", ""),
        position=did.get("position", 0),
        flags=did.get("flags", ()),
        category=did.get("category", ""),
    )
    if (time := did.get("time")) is not None:
        made.time.FromDatetime(time)
    return made


def recommend_request(user_id: str = "", **asked: Unpack[Asked]) -> ranking_pb2.RecommendRequest:
    """A request for one list; the limits of each field stand in ranking.proto.

    Args:
        user_id: '' for a stranger.
        asked: see `Asked`.

    Raises:
        TypeError: an argument is none of them.
    """
    refuse_unknown(asked, Asked)
    context = ranking_pb2.Context(
        surface=asked.get("surface", ""),
        region=asked.get("region", ""),
        item_id=asked.get("item_id", ""),
        basket_item_ids=asked.get("basket", ()),
        visit_id=asked.get("visit_id", ""),
        global_privacy_control=asked.get("global_privacy_control", False),
        minor=asked.get("minor", False),
    )
    return ranking_pb2.RecommendRequest(
        user_id=user_id,
        context=context,
        limit=asked.get("limit", 0),
        personalization=personalization(asked.get("level")),
        exclude_item_ids=asked.get("exclude", ()),
        only_categories=asked.get("only_categories", ()),
        diversity=asked.get("diversity"),
        consent_token=asked.get("consent_token", ""),
        page_token=asked.get("page_token", ""),
        seed=asked.get("seed"),
    )


def refuse_unknown(given: Mapping[str, object], known: type) -> None:
    """A misspelt `minor` that is passed over would profile a child."""
    for name in given:
        if name not in known.__annotations__:
            near = difflib.get_close_matches(name, known.__annotations__, 1)
            hint = f"Did you mean '{near[0]}'?" if near else f"Known: {', '.join(known.__annotations__)}."
            raise TypeError(f"There is no argument '{name}'. {hint}")


def grant(purpose: str, source: str = "", *, granted: bool = True) -> consent_pb2.Grant:
    """One change of consent; source '' means every source."""
    return consent_pb2.Grant(purpose=purpose, source=source, granted=granted)


def personalization(level: Level | None) -> common_pb2.Personalization.ValueType:
    """A step of the dial as the proto names it; None is unspecified.

    Raises:
        ValueError: there is no such step.
    """
    return common_pb2.Personalization.Value(f"PERSONALIZATION_{level.upper() if level else 'UNSPECIFIED'}")
