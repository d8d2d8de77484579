"""FeedbackService: declared; today's state is a room of its own that is not built yet."""

from __future__ import annotations

import grpc
from bodega.v1 import feedback_pb2, feedback_pb2_grpc

from engine.errors import NotBuilt


class FeedbackServicer(feedback_pb2_grpc.FeedbackServiceServicer):
    """What people did."""

    def RecordEvents(
        self, request: feedback_pb2.RecordEventsRequest, context: grpc.ServicerContext
    ) -> feedback_pb2.RecordEventsResponse:
        """Not built yet: an event that is not kept must not be acknowledged."""
        raise NotBuilt(
            "RecordEvents is declared and not built yet; no event was kept.",
            "Write events to the activity log: the next night reads them.",
        )
