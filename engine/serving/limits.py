"""The limits of every request, as the comments of the protos state them: one table, enforced before any work."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from engine.consent.links import MOST as MOST_LINKED
from engine.errors import RequestError
from engine.schema import EVENTS

MAX_LIST = 100  # items of a list, requests of a batch
DEFAULT_CHANGES = 100  # consent changes a page
DEFAULT_SNAPSHOTS = 20


@dataclass(frozen=True, slots=True)
class Text:
    """Bytes of UTF-8, without NUL."""

    most: int
    least: int = 0

    def fault(self, value: str) -> str:
        """What is wrong with a value, or ''."""
        size = len(value.encode())
        if not self.least <= size <= self.most:
            return f"expected {self.least}..{self.most} bytes, found {size}"
        return "holds a NUL character" if "\0" in value else ""


@dataclass(frozen=True, slots=True)
class Number:
    """An inclusive range; NaN lies in none."""

    least: float
    most: float

    def fault(self, value: float) -> str:
        """What is wrong with a value, or ''."""
        return "" if self.least <= value <= self.most else f"expected {self.least:g}..{self.most:g}, found {value:g}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """A word of a short list."""

    words: tuple[str, ...]

    def fault(self, value: str) -> str:
        """What is wrong with a value, or ''."""
        return "" if value in self.words else f"expected one of {', '.join(filter(None, self.words))}"


@dataclass(frozen=True, slots=True)
class Many:
    """A repeated field: how many, and what holds for each text. Messages inside have a row of their own."""

    most: int
    least: int = 0
    each: Text | None = None

    def fault(self, values: Sequence[Any]) -> str:
        """What is wrong with the values, or ''."""
        if not self.least <= len(values) <= self.most:
            return f"expected {self.least}..{self.most} values, found {len(values)}"
        if self.each is not None:
            for place, value in enumerate(values):
                if fault := self.each.fault(value):
                    return f"value {place}: {fault}"
        return ""


Limit = Text | Number | OneOf | Many

# User ids are checked where their key is derived, so that ids of requests and of logs keep one rule.
_ITEM = Text(256)
_NAMED_ITEM = Text(256, least=1)
_TOKEN = Text(128)
_SURFACE = Text(64)
_REQUEST = Text(128)
_DIAL = Number(0, 4)
_ACTOR = OneOf(("", "person", "guardian", "operator"))
_EVENT = OneOf(EVENTS)
_FINITE = sys.float_info.max

LIMITS: Mapping[str, Mapping[str, Limit]] = {
    "Context": {
        "surface": _SURFACE,
        "region": Text(16),
        "item_id": _ITEM,
        "basket_item_ids": Many(100, each=_NAMED_ITEM),
        "visit_id": Text(64),
    },
    "RecommendRequest": {
        "limit": Number(0, MAX_LIST),
        "personalization": _DIAL,
        "exclude_item_ids": Many(1000, each=_NAMED_ITEM),
        "only_categories": Many(50, each=_NAMED_ITEM),
        "diversity": Number(0, 1),
        "page_token": Text(4096),
        "consent_token": _TOKEN,
    },
    "BatchRecommendRequest": {"requests": Many(MAX_LIST, least=1)},
    "RankRequest": {
        "item_ids": Many(2000, least=1, each=_NAMED_ITEM),
        "personalization": _DIAL,
        "consent_token": _TOKEN,
    },
    "SimilarRequest": {"item_id": _NAMED_ITEM, "limit": Number(0, MAX_LIST)},
    "ExplainRequest": {
        "recommendation_id": Text(64),
        "item_id": _ITEM,
        "consent_token": _TOKEN,
        "personalization": _DIAL,
    },
    "Grant": {"purpose": Text(64, least=1), "source": Text(64)},
    "GetConsentRequest": {"consent_token": _TOKEN},
    "SetConsentRequest": {
        "changes": Many(100),
        "preference": _DIAL,
        "notice_version": Text(64),
        "actor": _ACTOR,
        "request_id": _REQUEST,
    },
    "ListConsentChangesRequest": {"page_size": Number(0, 1000), "page_token": _TOKEN},
    "ExportUserRequest": {"request_id": _REQUEST},
    "EraseUserRequest": {"request_id": _REQUEST, "actor": _ACTOR},
    "LinkUsersRequest": {
        "user_ids": Many(MOST_LINKED, least=2, each=Text(256, least=1)),
        "notice_version": Text(64),
        "actor": _ACTOR,
        "request_id": _REQUEST,
    },
    "UnlinkUserRequest": {"notice_version": Text(64), "actor": _ACTOR, "request_id": _REQUEST},
    "RecordEventsRequest": {"events": Many(1000, least=1)},
    "Event": {
        "event_id": Text(128, least=1),
        "item_id": _ITEM,
        "event": _EVENT,
        "source": Text(64, least=1),
        "session_id": Text(128),
        "value": Number(-_FINITE, _FINITE),
        "recommendation_id": Text(64),
        "position": Number(0, 10_000),
        "flags": Many(8, each=Text(32, least=1)),
        "category": _ITEM,
    },
    "ListSnapshotsRequest": {"page_size": Number(0, 100), "page_token": _TOKEN},
    "PromoteSnapshotRequest": {"snapshot_id": Text(64, least=1), "percent": Number(0, 100)},
    "RollbackSnapshotRequest": {"reason": Text(256, least=1)},
    "GetOperationRequest": {"operation_id": Text(64, least=1)},
}
# A fault in one of these is one result's own, not the whole request's: the servicer checks each.
_APART = {"BatchRecommendRequest": ("requests",), "RecordEventsRequest": ("events",)}


def check(request: Message) -> None:
    """Refuse a request that breaks a limit; messages inside are checked too, but for those that answer for themselves.

    Raises:
        RequestError: names the field, what was expected and what was found.
    """
    _check(request, "")


def _check(message: Message, path: str) -> None:
    kind = message.DESCRIPTOR.name
    limits = LIMITS.get(kind, {})
    apart = _APART.get(kind, ())
    for field, value in message.ListFields():
        limit = limits.get(field.name)
        if limit is not None and (fault := _fault(limit, value)):
            raise _refused(path + field.name, fault)
        if (
            field.message_type is not None
            and field.message_type.full_name.startswith("bodega.")
            and field.name not in apart
        ):
            inner = value if field.is_repeated else (value,)
            for place, each in enumerate(inner):
                _check(each, f"{path}{field.name}{f'[{place}]' if field.is_repeated else ''}.")
    for name in _NEEDED.get(kind, ()):
        # ListFields leaves empty fields out, so what may not be empty is looked at here.
        if fault := limits[name].fault(getattr(message, name)):
            raise _refused(path + name, fault)


def _is_ours(field: FieldDescriptor) -> bool:
    inner = field.message_type
    return inner is not None and inner.full_name.startswith("bodega.")


def _fault(limit: Limit, value: Any) -> str:
    check_value: Callable[[Any], str] = limit.fault
    return check_value(value)


def _needed(limits: Mapping[str, Limit]) -> tuple[str, ...]:
    return tuple(name for name, limit in limits.items() if getattr(limit, "least", 0) == 1 or limit is _EVENT)


_NEEDED = {kind: needed for kind, limits in LIMITS.items() if (needed := _needed(limits))}


def _refused(field: str, fault: str) -> RequestError:
    return RequestError(f"The field {field}: {fault}.", "Keep to the limits in the proto's comments.", field)
