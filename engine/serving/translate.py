"""Answers of the engine as messages of the proto."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import repeat

from bodega.v1 import admin_pb2, common_pb2, ranking_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from engine.consent.changes import moment
from engine.policy import Effect
from engine.serving.asking import Answer, Ask, Line
from engine.serving.explaining import Explained, Weight
from engine.serving.reasons import Why
from engine.snapshot import Manifest

_MODES = ranking_pb2.Provenance.Mode


def ask_of(request: ranking_pb2.RecommendRequest) -> Ask:
    """What a request asks. What the policy draws goes by the seed, else by the visit: without either nothing is drawn."""
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
        seed=request.seed if request.HasField("seed") else _seed_of(context.visit_id),
    )


def recommend_response(answer: Answer, degraded: Sequence[str]) -> ranking_pb2.RecommendResponse:
    """A list as a reply, under a new random id."""
    return ranking_pb2.RecommendResponse(
        recommendation_id=secrets.token_urlsafe(12),
        items=[
            _item(line, chance) for line, chance in zip(answer.lines, answer.propensity or repeat(1.0), strict=False)
        ],
        provenance=_provenance(answer, degraded),
        withheld=[_withheld(effect) for effect in answer.withheld],
        next_page_token=answer.next_page,
    )


def explain_response(explained: Explained, degraded: Sequence[str]) -> ranking_pb2.ExplainResponse:
    """What decided a list, or an item's place in it."""
    why = explained.why
    return ranking_pb2.ExplainResponse(
        effects=[
            ranking_pb2.RuleEffect(
                rule=act.rule,
                effect=act.effect,
                rank_before=act.before,
                rank_after=act.after,
                reason=act.reason,
                count=act.count,
            )
            for act in explained.acts
        ],
        parameters=_parameters(explained.weights),
        would_change_it=explained.would_change,
        parameters_since=timestamp(explained.since) if explained.since is not None else None,
        history=[
            ranking_pb2.ParameterSet(parameters=_parameters(weights), since=timestamp(since))
            for since, weights in explained.before
        ],
        reasons=[_reason(why)] if why is not None else [],
        provenance=_provenance(explained.answer, degraded),
    )


def _parameters(weights: Sequence[Weight]) -> list[ranking_pb2.Parameter]:
    return [ranking_pb2.Parameter(name=each.name, weight=each.weight, description=each.description) for each in weights]


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


def _seed_of(visit: str) -> int:
    return int.from_bytes(hashlib.blake2b(visit.encode(), digest_size=8).digest()) if visit else 0


def _item(line: Line, chance: float = 1.0) -> ranking_pb2.Recommendation:
    return ranking_pb2.Recommendation(
        item_id=line.item_id, score=line.score, lane=line.lane, reasons=[_reason(line.why)], propensity=chance
    )


def _reason(why: Why) -> ranking_pb2.Reason:
    return ranking_pb2.Reason(code=why.code, text=why.text, evidence_item_ids=why.evidence, causal=why.causal)


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
        today_events=answer.today,
    )


def _withheld(effect: Effect) -> ranking_pb2.Withheld:
    return ranking_pb2.Withheld(rule=effect.rule, count=effect.count, reason=effect.reason)
