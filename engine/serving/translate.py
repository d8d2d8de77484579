"""Answers of the engine as messages of the proto."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime

from bodega.v1 import admin_pb2, common_pb2, ranking_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from engine.consent.changes import moment
from engine.policy import Effect
from engine.serving.recommend import Answer, Ask, Line
from engine.snapshot import Manifest

_MODES = ranking_pb2.Provenance.Mode


def ask_of(request: ranking_pb2.RecommendRequest) -> Ask:
    """What a request asks. The seed is accepted and changes nothing: lists draw nothing yet."""
    context = request.context
    return Ask(
        user_id=request.user_id,
        surface=context.surface,
        region=context.region,
        item_id=context.item_id,
        basket=tuple(context.basket_item_ids),
        global_privacy_control=context.global_privacy_control,
        minor=context.minor,
        limit=request.limit,
        level=request.personalization,
        exclude=tuple(request.exclude_item_ids),
        only_categories=tuple(request.only_categories),
        diversity=request.diversity if request.HasField("diversity") else None,
        page_token=request.page_token,
        consent_token=request.consent_token,
    )


def recommend_response(answer: Answer, degraded: Sequence[str]) -> ranking_pb2.RecommendResponse:
    """A list as a reply, under a new random id."""
    return ranking_pb2.RecommendResponse(
        recommendation_id=secrets.token_urlsafe(12),
        items=[_item(line) for line in answer.lines],
        provenance=_provenance(answer, degraded),
        withheld=[_withheld(effect) for effect in answer.withheld],
    )


def similar_response(answer: Answer, degraded: Sequence[str]) -> ranking_pb2.SimilarResponse:
    """Items like an item as a reply, under a new random id."""
    return ranking_pb2.SimilarResponse(
        recommendation_id=secrets.token_urlsafe(12),
        items=[_item(line) for line in answer.lines],
        provenance=_provenance(answer, degraded),
        withheld=[_withheld(effect) for effect in answer.withheld],
    )


def snapshot_message(manifest: Manifest, serving: bool) -> admin_pb2.Snapshot:
    """A snapshot as operators see it."""
    return admin_pb2.Snapshot(
        snapshot_id=manifest.snapshot_id,
        created_at=timestamp(manifest.created_at),
        users=manifest.counts.get("users", 0),
        items=manifest.counts.get("items", 0),
        bytes=sum(entry.bytes for entry in manifest.files.values()),
        metrics=dict(manifest.metrics),
        serving=serving,
        as_of=timestamp(manifest.as_of),
    )


def timestamp(time: datetime) -> Timestamp:
    """A time with a zone as the proto's."""
    stamp = Timestamp()
    stamp.FromDatetime(time)
    return stamp


def level(code: int) -> common_pb2.Personalization.ValueType:
    """A step of the dial; the engine and the proto share their numbers."""
    return common_pb2.Personalization.Value(common_pb2.Personalization.Name(code))  # type: ignore[arg-type]


def _item(line: Line) -> ranking_pb2.Recommendation:
    why = line.why
    reason = ranking_pb2.Reason(code=why.code, text=why.text, evidence_item_ids=why.evidence)
    return ranking_pb2.Recommendation(
        item_id=line.item_id, score=line.score, lane=line.lane, reasons=[reason], propensity=1.0
    )


def _provenance(answer: Answer, degraded: Sequence[str]) -> ranking_pb2.Provenance:
    age = Duration()
    age.FromTimedelta(datetime.now(UTC) - answer.manifest.created_at)
    return ranking_pb2.Provenance(
        mode=_MODES.Value(f"MODE_{answer.mode}"),
        reason=answer.reason,
        personalization=level(answer.level),
        profile=answer.profile,
        snapshot_id=answer.manifest.snapshot_id,
        snapshot_age=age,
        consent_sequence=answer.sequence,
        policy=answer.policy,
        global_privacy_control_honoured=answer.global_privacy_control,
        degraded=degraded,
        made_at=timestamp(moment(answer.made_us)),
    )


def _withheld(effect: Effect) -> ranking_pb2.Withheld:
    return ranking_pb2.Withheld(rule=effect.rule, count=effect.count, reason=effect.reason)
