"""The client's channel: what is tried again, how long, and by which authorities a server is known."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import grpc

_MAX_MESSAGE = 4 * 2**20
# Each of these may be sent twice: the reads change nothing, and the others carry ids by which they count once.
_IDEMPOTENT = {
    "bodega.v1.RankingService": ("Recommend", "BatchRecommend", "Similar", "Explain"),
    "bodega.v1.ConsentService": (
        "GetConsent",
        "SetConsent",
        "ListConsentChanges",
        "EraseUser",
        "LinkUsers",
        "UnlinkUser",
    ),
    "bodega.v1.FeedbackService": ("RecordEvents",),
    "bodega.v1.AdminService": ("GetStatus",),
}
_SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": service, "method": m} for service, methods in _IDEMPOTENT.items() for m in methods],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.02s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 3,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # The budget: when about one call in ten or more fails, retries stop, so that they cannot hold a sick server down.
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}


def open_channel(address: str, tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials | None) -> grpc.Channel:
    """A channel that is connected when it is first used; arguments as `Client` has them."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
        ("grpc.enable_retries", 1),
        ("grpc.max_receive_message_length", _MAX_MESSAGE),
    ]
    credentials = _credentials(tls)
    if credentials is None:
        return grpc.insecure_channel(address, options)
    return grpc.secure_channel(address, credentials, options)


def _credentials(tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    if tls is None or tls is False:
        return None
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    return grpc.ssl_channel_credentials(None if tls is True else Path(tls).read_bytes())
