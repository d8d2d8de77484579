"""The thin client that backends install: typed calls with deadlines, careful retries, and errors that name the remedy.

    from bodega.client import Client

    with Client("127.0.0.1:50051") as shop:
        token = shop.set_consent("ana", [grant("profile")]).consent_token
        reply = shop.recommend("ana", surface="home", limit=10, consent_token=token)
        print([item.item_id for item in reply.items])

It needs grpcio and protobuf alone, and holds no state but its channel: consent tokens are returned, and passed back by
the caller.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from bodega.requests import (
    KEPT,
    PURPOSES,
    Asked,
    Level,
    Recorded,
    grant,
    personalization,
    recommend_request,
    refuse_unknown,
)
from bodega.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    consent_pb2,
    consent_pb2_grpc,
    ranking_pb2,
    ranking_pb2_grpc,
)

__all__ = [
    "PURPOSES",
    "Asked",
    "BodegaRpcError",
    "Client",
    "Level",
    "Recorded",
    "grant",
    "personalization",
    "recommend_request",
]

Reply = TypeVar("Reply", bound=Message)

_MAX_MESSAGE = 4 * 2**20
_DETAILS = "grpc-status-details-bin"
# Each of these may be sent twice: the reads change nothing, and the others carry a request id.
_IDEMPOTENT = {
    "bodega.v1.RankingService": ("Recommend", "BatchRecommend", "Similar"),
    "bodega.v1.ConsentService": ("GetConsent", "SetConsent", "ListConsentChanges", "EraseUser"),
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


class BodegaRpcError(Exception):
    """A call that the server refused or that did not reach it.

    Attributes:
        code: gRPC status.
        message: what is wrong, naming the thing.
        reason: stable code of the error table; the status' name where the server gave no details.
        remedy: what to do about it; may be empty.
        field: the request's field at fault; may be empty.
        retry_after: seconds after which trying again may help; None where it would not.
        request_id: names the call in the server's log; may be empty.
    """

    def __init__(self, error: grpc.RpcError) -> None:
        call = cast(grpc.Call, error)
        self.code: grpc.StatusCode = call.code()
        self.message: str = call.details() or ""
        self.reason, self.remedy, self.field, self.request_id = self.code.name, "", "", ""
        self.retry_after: float | None = None
        for key, value in call.trailing_metadata() or ():
            if key == _DETAILS:
                self._read(status_pb2.Status.FromString(cast(bytes, value)))
        super().__init__(f"{self.reason}: {self.message}" + (f" Remedy: {self.remedy}" if self.remedy else ""))

    def _read(self, status: status_pb2.Status) -> None:
        info, fields = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        retry, request = error_details_pb2.RetryInfo(), error_details_pb2.RequestInfo()
        for detail in status.details:
            if detail.Unpack(info):
                self.reason, self.remedy = info.reason, info.metadata.get("remedy", "")
            elif detail.Unpack(fields) and fields.field_violations:
                self.field = fields.field_violations[0].field
            elif detail.Unpack(retry):
                self.retry_after = retry.retry_delay.ToTimedelta().total_seconds()
            elif detail.Unpack(request):
                self.request_id = request.request_id


class Client:
    """One channel to one deployment. Safe to share between threads; make one a process, not one a call.

    Args:
        address: host:port, or any gRPC target.
        tls: None speaks plain text, for loopback; True trusts the system's authorities; a path names a PEM file;
            channel credentials are used as they are.
        timeout: deadline of a call in seconds, retries included; each method takes another.
    """

    def __init__(
        self,
        address: str,
        *,
        tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials | None = None,
        timeout: float = 1.0,
    ) -> None:
        options: list[tuple[str, Any]] = [
            ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
            ("grpc.enable_retries", 1),
            ("grpc.max_receive_message_length", _MAX_MESSAGE),
        ]
        credentials = _credentials(tls)
        if credentials is None:
            self._channel = grpc.insecure_channel(address, options)
        else:
            self._channel = grpc.secure_channel(address, credentials, options)
        self._timeout = timeout
        self._ranking = ranking_pb2_grpc.RankingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._consent = consent_pb2_grpc.ConsentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._admin = admin_pb2_grpc.AdminServiceStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the channel; calls under way end as cancelled."""
        self._channel.close()

    def recommend(
        self, user_id: str = "", *, timeout: float | None = None, **asked: Unpack[Asked]
    ) -> ranking_pb2.RecommendResponse:
        """The list for one person; '' is a stranger.

        Args:
            asked: see `Asked`.

        Raises:
            BodegaRpcError: the server refused, or was not reached in time.
        """
        return self._call(
            self._ranking.Recommend, recommend_request(user_id, **asked), ranking_pb2.RecommendResponse, timeout
        )

    def batch_recommend(
        self, requests: Iterable[ranking_pb2.RecommendRequest], *, timeout: float | None = None
    ) -> list[ranking_pb2.BatchRecommendResult]:
        """Lists for 1..100 people, in order; each result has a `response` or a `problem`.

        Args:
            requests: made with `recommend_request`.

        Raises:
            BodegaRpcError: the batch as a whole was refused or not answered in time.
        """
        request = ranking_pb2.BatchRecommendRequest(requests=requests)
        reply = self._call(self._ranking.BatchRecommend, request, ranking_pb2.BatchRecommendResponse, timeout)
        return list(reply.results)

    def similar(
        self, item_id: str, *, limit: int = 0, surface: str = "", region: str = "", timeout: float | None = None
    ) -> ranking_pb2.SimilarResponse:
        """Items like an item, nearest first; personal to nobody.

        Raises:
            BodegaRpcError: with code NOT_FOUND where the snapshot lacks the item.
        """
        context = ranking_pb2.Context(surface=surface, region=region)
        request = ranking_pb2.SimilarRequest(item_id=item_id, limit=limit, context=context)
        return self._call(self._ranking.Similar, request, ranking_pb2.SimilarResponse, timeout)

    def get_consent(
        self, user_id: str, *, consent_token: str = "", timeout: float | None = None
    ) -> consent_pb2.GetConsentResponse:
        """What a person allows now. What is not listed is not granted.

        Raises:
            BodegaRpcError: with code UNAVAILABLE where the ledger cannot be read or is older than the token.
        """
        request = consent_pb2.GetConsentRequest(user_id=user_id, consent_token=consent_token)
        return self._call(self._consent.GetConsent, request, consent_pb2.GetConsentResponse, timeout)

    def set_consent(
        self,
        user_id: str,
        changes: Iterable[consent_pb2.Grant] = (),
        *,
        preference: Level | Literal[""] | None = None,
        timeout: float | None = None,
        **recorded: Unpack[Recorded],
    ) -> consent_pb2.SetConsentResponse:
        """Record changes; when it returns, the server enforces them. Pass the reply's token with later requests.

        Args:
            changes: made with `grant`; a withdrawal wins over a grant of the same.
            preference: how far lists may go at most; '' takes the stored one back, None leaves it.
            recorded: see `Recorded`.

        Raises:
            BodegaRpcError: a purpose or source is unknown, or the ledger cannot be written: nothing was recorded.
        """
        refuse_unknown(recorded, Recorded)
        request = consent_pb2.SetConsentRequest(
            user_id=user_id,
            changes=changes,
            notice_version=recorded.get("notice_version", ""),
            actor=recorded.get("actor", "person"),
            request_id=recorded.get("request_id") or uuid.uuid4().hex,
        )
        if preference is not None:
            request.preference = personalization(preference or None)
        if (occurred_at := recorded.get("occurred_at")) is not None:
            request.occurred_at.FromDatetime(occurred_at)
        return self._call(self._consent.SetConsent, request, consent_pb2.SetConsentResponse, timeout)

    def withdraw(
        self,
        user_id: str,
        purpose: str = "",
        source: str = "",
        *,
        timeout: float | None = None,
        **recorded: Unpack[Recorded],
    ) -> consent_pb2.SetConsentResponse:
        """Withdraw a purpose, for one source or all; every purpose where none is named, a deployment's own included.

        Args:
            recorded: see `Recorded`.

        Raises:
            BodegaRpcError: as `set_consent`.
        """
        refuse_unknown(recorded, Recorded)
        named = [purpose]
        if not purpose:
            held = self.get_consent(user_id, timeout=timeout).grants
            named = list(dict.fromkeys((*KEPT, *(each.purpose for each in held))))
        return self.set_consent(
            user_id, [grant(each, source, granted=False) for each in named], timeout=timeout, **recorded
        )

    def erase_user(
        self, user_id: str, *, actor: str = "person", request_id: str = "", timeout: float | None = None
    ) -> consent_pb2.EraseUserResponse:
        """Forget a person; when it returns, no list uses anything of them. Pass the reply's token with later requests.

        Args:
            actor: person, guardian or operator.
            request_id: the same one again gives the same receipt; one is made where it is left out.

        Returns:
            The receipt; someone the server does not know gets one too. `deadlines` says what is done and what is not.

        Raises:
            BodegaRpcError: with code UNAVAILABLE where the ledger cannot be written: nothing was erased.
        """
        request = consent_pb2.EraseUserRequest(user_id=user_id, actor=actor, request_id=request_id or uuid.uuid4().hex)
        return self._call(self._consent.EraseUser, request, consent_pb2.EraseUserResponse, timeout)

    def consent_changes(
        self, user_id: str, *, page_size: int = 0, page_token: str = "", timeout: float | None = None
    ) -> consent_pb2.ListConsentChangesResponse:
        """What was recorded of a person, oldest first, a page at a time.

        Raises:
            BodegaRpcError: the ledger cannot be read, or the page token is not the server's.
        """
        request = consent_pb2.ListConsentChangesRequest(user_id=user_id, page_size=page_size, page_token=page_token)
        return self._call(self._consent.ListConsentChanges, request, consent_pb2.ListConsentChangesResponse, timeout)

    def status(self, *, timeout: float | None = None) -> admin_pb2.GetStatusResponse:
        """What the server serves, and what ails it.

        Raises:
            BodegaRpcError: it was not reached in time.
        """
        return self._call(self._admin.GetStatus, admin_pb2.GetStatusRequest(), admin_pb2.GetStatusResponse, timeout)

    def _call(self, method: Any, request: Message, kind: type[Reply], timeout: float | None) -> Reply:
        try:
            return cast(Reply, method(request, timeout=self._timeout if timeout is None else timeout))
        except grpc.RpcError as error:
            raise BodegaRpcError(error) from error


def _credentials(tls: bool | str | os.PathLike[str] | grpc.ChannelCredentials | None) -> grpc.ChannelCredentials | None:
    if tls is None or tls is False:
        return None
    if isinstance(tls, grpc.ChannelCredentials):
        return tls
    return grpc.ssl_channel_credentials(None if tls is True else Path(tls).read_bytes())
