"""FeedbackService: each event is checked alone, and acknowledged once it would survive this process."""

from __future__ import annotations

import time

import grpc
from bodega.v1 import feedback_pb2, feedback_pb2_grpc

from engine.consent.vocabulary import unknown_name
from engine.errors import BodegaError, NotBuilt, RequestError
from engine.live import LiveEvent
from engine.schema import EVENTS
from engine.serving import limits
from engine.serving.errors import fault_of, problem_of
from engine.serving.replica import Replica

_DAY_US = 86_400_000_000


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    """What people did."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def RecordEvents(
        self, request: feedback_pb2.RecordEventsRequest, context: grpc.ServicerContext
    ) -> feedback_pb2.RecordEventsResponse:
        """Take events; those that are wrong are named, and the others are taken all the same."""
        live = self._replica.live
        if live is None or not self._replica.settings.live.enabled:
            raise NotBuilt("This deployment takes no events.", "Set live.enabled=true, or write to the activity log.")
        received = time.time_ns() // 1000
        events, rejected = [], []
        for index, each in enumerate(request.events):
            try:
                limits.check(each)
                events.append(self._event(each, received))
            except BodegaError as error:
                rejected.append(feedback_pb2.RejectedEvent(index=index, problem=problem_of(fault_of(error))))
        new = live.record(events) if events else []
        return feedback_pb2.RecordEventsResponse(accepted=sum(new), duplicates=len(new) - sum(new), rejected=rejected)

    def _event(self, each: feedback_pb2.Event, received: int) -> LiveEvent:
        """One event as the journal keeps it.

        Raises:
            RequestError: something is wrong with it.
        """
        settings, sources = self._replica.settings.live, self._replica.vocabulary.sources
        if each.source not in sources:
            told = unknown_name("source", each.source, sources)
            raise RequestError(told.message, told.remedy, "source")
        if not each.item_id and not (each.event == "dismiss_category" and each.category):
            raise RequestError(f"The event '{each.event}' names no item.", "Send item_id.", "item_id")
        ts = each.time.seconds * 1_000_000 + each.time.nanos // 1000 if each.HasField("time") else received
        oldest, newest = received - int(settings.oldest_days * _DAY_US), received + int(settings.ahead_seconds * 1e6)
        if not oldest <= ts <= newest:
            raise RequestError(
                f"The time lies more than {settings.oldest_days:g} days back, or {settings.ahead_seconds:g} s ahead.",
                "Write old events to the activity log, and mind the clock that the others come from.",
                "time",
            )
        return LiveEvent(
            event_id=each.event_id,
            user_id=each.user_id,
            item_id=each.item_id,
            event=EVENTS.index(each.event),
            ts=ts,
            received=received,
            source=each.source,
            value=each.value if each.HasField("value") else None,
            session_id=each.session_id,
            recommendation_id=each.recommendation_id,
            position=each.position,
            flags=tuple(each.flags),
            category=each.category,
            key=self._replica.filed_under(self._replica.live.keys, each.user_id)[0] if each.user_id else b"",
        )
