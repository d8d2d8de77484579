"""The table of limits: each at its bound, and one past it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bodega.v1
import pytest
from bodega.client import BodegaRpcError, Client
from bodega.v1 import admin_pb2, consent_pb2, feedback_pb2, ranking_pb2
from google.protobuf.message import Message

from engine.errors import RequestError
from engine.serving.limits import LIMITS, Many, Number, OneOf, Text, check

FILES = (ranking_pb2, consent_pb2, feedback_pb2, admin_pb2)
MESSAGES = {name: getattr(file, name) for file in FILES for name in file.DESCRIPTOR.message_types_by_name}
# What may not be empty, so that the other fields can be tried alone.
FILLED: dict[str, dict[str, Any]] = {
    "BatchRecommendRequest": {"requests": [{}]},
    "RankRequest": {"item_ids": ["a"]},
    "SimilarRequest": {"item_id": "a"},
    "Grant": {"purpose": "profile"},
    "RecordEventsRequest": {"events": [{"event_id": "1", "event": "view", "source": "web"}]},
    "Event": {"event_id": "1", "event": "view", "source": "web"},
    "LinkUsersRequest": {"user_ids": ["a", "b"]},
    "PromoteSnapshotRequest": {"snapshot_id": "a"},
    "RollbackSnapshotRequest": {"reason": "a"},
    "GetOperationRequest": {"operation_id": "a"},
}


def _cases() -> Iterator[tuple[str, str, Any, Any]]:
    """Kind, field, a value at the bound and one past it."""
    for kind, fields in LIMITS.items():
        for field, limit in fields.items():
            match limit:
                case Text(most, least):
                    yield kind, field, "é" * (most // 2) + "e" * (most % 2), "é" * (most // 2) + "ee"
                    yield kind, field, "e" * max(least, 1), "a\0b"
                    if least:
                        yield kind, field, "e", ""
                case Number(least, most) if most <= 10_000:
                    yield kind, field, most, most + 1
                case Number():
                    yield kind, field, -1e300, float("nan")
                    yield kind, field, 1e300, float("inf")
                case OneOf(words):
                    yield kind, field, words[-1], "nothing"
                case Many(most, least, each):
                    one = "e" if each else FILLED.get(_inner(kind, field), {})
                    yield kind, field, [one] * most, [one] * (most + 1)
                    if least:
                        yield kind, field, [one] * least, [one] * (least - 1)
                    if each:
                        yield kind, field, ["e" * each.most] * max(least, 1), ["e" * (each.most + 1)] * max(least, 1)
                        yield kind, field, ["e"] * max(least, 1), ["e", ""]


def _inner(kind: str, field: str) -> str:
    return MESSAGES[kind].DESCRIPTOR.fields_by_name[field].message_type.name


def _message(kind: str, field: str, value: Any) -> Message:
    return MESSAGES[kind](**FILLED.get(kind, {}) | {field: value})


CASES = list(_cases())
NAMES = [f"{kind}.{field}-{place}" for place, (kind, field, _, _) in enumerate(CASES)]


@pytest.mark.parametrize(
    ("kind", "field", "good", "bad"), CASES, ids=[f"{c[0]}.{c[1]}-{n}" for n, c in enumerate(CASES)]
)
def test_each_limit_holds_at_its_bound_and_refuses_past_it(kind: str, field: str, good: Any, bad: Any) -> None:
    check(_message(kind, field, good))
    with pytest.raises(RequestError) as caught:
        check(_message(kind, field, bad))
    assert caught.value.field == field
    assert caught.value.remedy


def test_every_row_of_the_table_names_a_field_of_the_proto() -> None:
    for kind, fields in LIMITS.items():
        assert set(fields) <= set(MESSAGES[kind].DESCRIPTOR.fields_by_name), kind


def test_every_text_that_a_caller_sends_has_a_limit() -> None:
    by_identity = {"user_id"}
    requests = [kind for kind in MESSAGES if kind.endswith("Request")] + ["Context", "Grant", "Event"]
    for kind in requests:
        for field in MESSAGES[kind].DESCRIPTOR.fields:
            if field.type == field.TYPE_STRING or field.is_repeated:
                assert field.name in LIMITS.get(kind, {}) or field.name in by_identity, f"{kind}.{field.name}"


def test_the_protos_comments_state_the_figures_of_the_table() -> None:
    folder = Path(next(iter(bodega.v1.__path__)))
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.proto")))
    for kind, fields in LIMITS.items():
        body = re.search(rf"^message {kind} \{{\n(.*?)^\}}", text, re.S | re.M)
        assert body is not None
        for field, limit in fields.items():
            line = re.search(rf"^.* {field} = \d+;(.*)$", body[1], re.M)
            assert line is not None
            match limit:
                case Text(most) | Many(most):
                    assert str(most) in line[1], f"{kind}.{field}"
                case Number(_, most) if 4 < most <= 10_000:
                    assert str(int(most)) in line[1], f"{kind}.{field}"


def test_a_fault_inside_names_the_way_to_it() -> None:
    request = consent_pb2.SetConsentRequest(changes=[{"purpose": "train"}, {"purpose": ""}])
    with pytest.raises(RequestError) as caught:
        check(request)
    assert caught.value.field == "changes[1].purpose"
    with pytest.raises(RequestError) as caught:
        check(ranking_pb2.RecommendRequest(context={"region": "x" * 17}))
    assert caught.value.field == "context.region"


def test_limits_hold_over_the_wire(client: Client) -> None:
    assert len(client.recommend(limit=100).items) == 40
    for asked in ({"limit": 101}, {"diversity": 1.5}, {"diversity": float("nan")}, {"basket": ["a"] * 101}):
        with pytest.raises(BodegaRpcError) as caught:
            client.recommend(**asked)
        assert caught.value.reason == "INVALID_ARGUMENT"
        assert caught.value.field.rpartition(".")[2].startswith(next(iter(asked)))


def test_an_unknown_step_of_the_dial_is_refused() -> None:
    with pytest.raises(RequestError) as caught:
        check(ranking_pb2.RecommendRequest(personalization=5))  # type: ignore[arg-type]
    assert caught.value.field == "personalization"
