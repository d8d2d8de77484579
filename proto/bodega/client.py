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

import os
import uuid
from collections.abc import Iterable
from typing import Any, Literal, TypeVar, Unpack, cast

import grpc
from google.protobuf.message import Message

from bodega.channel import open_channel
from bodega.requests import (
    KEPT,
    PURPOSES,
    Asked,
    Did,
    Level,
    Recorded,
    event,
    grant,
    personalization,
    recommend_request,
    refuse_unknown,
)
from bodega.rpc_error import BodegaRpcError
from bodega.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    consent_pb2,
    consent_pb2_grpc,
    feedback_pb2,
    feedback_pb2_grpc,
    ranking_pb2,
    ranking_pb2_grpc,
)

__all__ = [
    "PURPOSES",
    "Asked",
    "BodegaRpcError",
    "Client",
    "Did",
    "Level",
    "Recorded",
    "event",
    "grant",
    "personalization",
    "recommend_request",
]

Reply = TypeVar("Reply", bound=Message)


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
        self._channel = open_channel(address, tls)
        self._timeout = timeout
        self._ranking = ranking_pb2_grpc.RankingServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._consent = consent_pb2_grpc.ConsentServiceStub(self._channel)  # type: ignore[no-untyped-call]
        self._feedback = feedback_pb2_grpc.FeedbackServiceStub(self._channel)  # type: ignore[no-untyped-call]
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

    def explain(
        self,
        user_id: str = "",
        *,
        recommendation_id: str = "",
        item_id: str = "",
        surface: str = "",
        region: str = "",
        visit_id: str = "",
        level: Level | None = None,
        consent_token: str = "",
        timeout: float | None = None,
    ) -> ranking_pb2.ExplainResponse:
        """Why a list is what it is, or why an item stands where it does in it or not at all; and what the person can do about it.

        Args:
            recommendation_id: of a list that the same replica made within the hour; '' explains a list made now.
            item_id: '' explains the list as a whole.

        Raises:
            BodegaRpcError: with code NOT_FOUND where there is no such list or item.
        """
        request = ranking_pb2.ExplainRequest(
            user_id=user_id,
            recommendation_id=recommendation_id,
            context=ranking_pb2.Context(surface=surface, region=region, visit_id=visit_id),
            item_id=item_id,
            consent_token=consent_token,
            personalization=personalization(level),
        )
        return self._call(self._ranking.Explain, request, ranking_pb2.ExplainResponse, timeout)

    def record_events(
        self, events: Iterable[feedback_pb2.Event], *, timeout: float | None = None
    ) -> feedback_pb2.RecordEventsResponse:
        """Tell what people did; what is accepted survives the server and counts in the next list. Sent again, it counts once.

        Args:
            events: 1..1000, made with `event`.

        Returns:
            How many were accepted, how many were there already, and what was wrong with the others.

        Raises:
            BodegaRpcError: the server cannot make them durable now; none was accepted.
        """
        request = feedback_pb2.RecordEventsRequest(events=events)
        return self._call(self._feedback.RecordEvents, request, feedback_pb2.RecordEventsResponse, timeout)

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
            **_proof(recorded),
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

    def link_users(
        self, user_ids: Iterable[str], *, timeout: float | None = None, **recorded: Unpack[Recorded]
    ) -> consent_pb2.LinkUsersResponse:
        """Put ids of one person together, who consents to it; what is decided under one of them is so under each.

        Args:
            user_ids: 2..16.
            recorded: see `Recorded`.

        Raises:
            BodegaRpcError: an id is wrong, they would be more than 16 with those linked already, or the ledger cannot be written.
        """
        refuse_unknown(recorded, Recorded)
        if isinstance(user_ids, str):
            raise TypeError("user_ids is one string: pass a list of ids.")
        request = consent_pb2.LinkUsersRequest(user_ids=user_ids, **_proof(recorded))
        if (occurred_at := recorded.get("occurred_at")) is not None:
            request.occurred_at.FromDatetime(occurred_at)
        return self._call(self._consent.LinkUsers, request, consent_pb2.LinkUsersResponse, timeout)

    def unlink_user(
        self, user_id: str, *, timeout: float | None = None, **recorded: Unpack[Recorded]
    ) -> consent_pb2.UnlinkUserResponse:
        """Take an id from those that it is linked with; nothing that was made of their events together is used from then on.

        Args:
            recorded: see `Recorded`.

        Raises:
            BodegaRpcError: the ledger cannot be written: nothing was recorded.
        """
        refuse_unknown(recorded, Recorded)
        request = consent_pb2.UnlinkUserRequest(user_id=user_id, **_proof(recorded))
        if (occurred_at := recorded.get("occurred_at")) is not None:
            request.occurred_at.FromDatetime(occurred_at)
        return self._call(self._consent.UnlinkUser, request, consent_pb2.UnlinkUserResponse, timeout)

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


def _proof(recorded: Recorded) -> dict[str, Any]:
    """What each recording call says alike."""
    return {
        "notice_version": recorded.get("notice_version", ""),
        "actor": recorded.get("actor", "person"),
        "request_id": recorded.get("request_id") or uuid.uuid4().hex,
    }
