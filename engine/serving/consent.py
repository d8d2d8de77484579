"""ConsentService: message -> ledger call -> message."""

from __future__ import annotations

from datetime import UTC, datetime

import grpc
from bodega.v1 import consent_pb2, consent_pb2_grpc

from engine.consent.changes import ALONE, Change, Erasure, RecordedChange
from engine.consent.erasure import MODEL_BOUND
from engine.consent.tokens import consent_token, sequence_of
from engine.consent.vocabulary import Vocabulary
from engine.errors import ConsentError, LedgerUnavailable, NotBuilt, RequestError
from engine.identity import UserKeys
from engine.serving.limits import DEFAULT_CHANGES
from engine.serving.replica import Replica
from engine.serving.translate import level, timestamp

_NIGHTS = "events up to the erasure count for nothing"


class ConsentServicer(consent_pb2_grpc.ConsentServiceServicer):
    """What a person allows."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def GetConsent(
        self, request: consent_pb2.GetConsentRequest, context: grpc.ServicerContext
    ) -> consent_pb2.GetConsentResponse:
        """The standing of one person."""
        least = sequence_of(request.consent_token) if request.consent_token else 0
        with self._replica.ledger.at_work() as (ledger, keys):
            # Read before the standing, which then includes at least as much.
            if least and ledger.sequence() < least:
                raise LedgerUnavailable("The ledger has not heard the state of the token yet.", "Try again.")
            key = keys.stable.derive(request.user_id)
            standing = ledger.standing(key)
            linked = len(ledger.links.others(key)) if standing.person != ALONE else 0
        return consent_pb2.GetConsentResponse(
            grants=[_grant(change) for change in standing.grants],
            preference=level(standing.preference),
            consent_token=consent_token(max(standing.sequence, least)),
            as_of=timestamp(datetime.now(UTC)),
            linked_ids=linked,
        )

    def SetConsent(
        self, request: consent_pb2.SetConsentRequest, context: grpc.ServicerContext
    ) -> consent_pb2.SetConsentResponse:
        """Record changes; this replica enforces them before this returns, every other one within the bound."""
        changes, occurred_at = _changes(request, self._replica.vocabulary), _occurred_at(request)
        with self._replica.ledger.at_work() as (ledger, keys):
            recorded = ledger.record(
                keys.stable.derive(request.user_id),
                changes,
                request.preference if request.HasField("preference") else None,
                request.notice_version,
                request.actor or "person",
                request.request_id,
                occurred_at,
            )
            self._replica.ledger.enforce(recorded.sequence)
        return consent_pb2.SetConsentResponse(
            consent_token=consent_token(recorded.sequence),
            sequence=recorded.sequence,
            receipt_id=recorded.receipt_id,
        )

    def ListConsentChanges(
        self, request: consent_pb2.ListConsentChangesRequest, context: grpc.ServicerContext
    ) -> consent_pb2.ListConsentChangesResponse:
        """A page of one person's history."""
        after = _page_start(request.page_token)
        with self._replica.ledger.at_work() as (ledger, keys):
            key = keys.stable.derive(request.user_id)
            page = ledger.changes(key, after, request.page_size or DEFAULT_CHANGES)
            more = page and ledger.changes(key, page[-1].sequence, 1)
        return consent_pb2.ListConsentChangesResponse(
            changes=[_change(each) for each in page],
            next_page_token=consent_token(page[-1].sequence) if more else "",
        )

    def ExportUser(
        self, request: consent_pb2.ExportUserRequest, context: grpc.ServicerContext
    ) -> consent_pb2.ExportUserResponse:
        """Not built yet."""
        raise NotBuilt("ExportUser is declared and not built yet.", "Use GetConsent and ListConsentChanges.")

    def EraseUser(
        self, request: consent_pb2.EraseUserRequest, context: grpc.ServicerContext
    ) -> consent_pb2.EraseUserResponse:
        """Forget a person; as with SetConsent, whichever snapshot is or will be served."""
        with self._replica.ledger.at_work() as (ledger, keys):
            key = keys.stable.derive(request.user_id)
            filed_under = self._replica.filed_under(keys, request.user_id)
            erasure = ledger.erase(key, request.actor or "person", request.request_id)
            self._replica.ledger.enforce(erasure.sequence)
            # Nothing uses it from here on; it need not lie in memory until it expires either.
            self._replica.live.forget(filed_under)
        return consent_pb2.EraseUserResponse(
            receipt_id=erasure.receipt_id,
            erased_at=timestamp(erasure.erased_at),
            deadlines=_receipt(erasure),
            consent_token=consent_token(erasure.sequence),
            sequence=erasure.sequence,
        )

    def LinkUsers(
        self, request: consent_pb2.LinkUsersRequest, context: grpc.ServicerContext
    ) -> consent_pb2.LinkUsersResponse:
        """Put ids together; as with SetConsent."""
        occurred_at = _occurred_at(request)
        with self._replica.ledger.at_work() as (ledger, keys):
            named = [_key(keys, user_id, f"user_ids[{place}]") for place, user_id in enumerate(request.user_ids)]
            recorded = ledger.links.link(
                named, request.notice_version, request.actor or "person", request.request_id, occurred_at
            )
            self._replica.ledger.enforce(recorded.sequence)
        return consent_pb2.LinkUsersResponse(
            consent_token=consent_token(recorded.sequence),
            sequence=recorded.sequence,
            receipt_id=recorded.receipt_id,
        )

    def UnlinkUser(
        self, request: consent_pb2.UnlinkUserRequest, context: grpc.ServicerContext
    ) -> consent_pb2.UnlinkUserResponse:
        """Take an id out; as with SetConsent, nothing that was made of it with others is used any more."""
        occurred_at = _occurred_at(request)
        with self._replica.ledger.at_work() as (ledger, keys):
            recorded = ledger.links.unlink(
                keys.stable.derive(request.user_id),
                request.notice_version,
                request.actor or "person",
                request.request_id,
                occurred_at,
            )
            self._replica.ledger.enforce(recorded.sequence)
        return consent_pb2.UnlinkUserResponse(
            consent_token=consent_token(recorded.sequence),
            sequence=recorded.sequence,
            receipt_id=recorded.receipt_id,
        )


def _key(keys: UserKeys, user_id: str, field: str) -> bytes:
    try:
        return keys.stable.derive(user_id)
    except RequestError as error:
        raise RequestError(error.message, error.remedy, field) from error


def _changes(request: consent_pb2.SetConsentRequest, vocabulary: Vocabulary) -> list[Change]:
    changes = [Change(each.purpose, each.source, each.granted) for each in request.changes]
    for place, change in enumerate(changes):
        try:
            vocabulary.mask(change.purpose, change.source)
        except ConsentError as error:  # the ledger would refuse it too, without knowing which field it was
            if not change.granted:
                continue  # the ledger knows whether it is held under a name that was retired
            raise RequestError(error.message, error.remedy, f"changes[{place}]") from error
    return changes


def _occurred_at(
    request: consent_pb2.SetConsentRequest | consent_pb2.LinkUsersRequest | consent_pb2.UnlinkUserRequest,
) -> datetime | None:
    if not request.HasField("occurred_at"):
        return None
    try:
        return request.occurred_at.ToDatetime(UTC)
    except (ValueError, OverflowError) as error:
        raise RequestError("occurred_at is out of range.", "Send a time of this era.", "occurred_at") from error


def _page_start(token: str) -> int:
    try:
        return sequence_of(token) if token else 0
    except RequestError as error:
        raise RequestError(
            "The page token is not one of this service.", "Begin again without it.", "page_token"
        ) from error


def _receipt(erased: Erasure) -> list[consent_pb2.ErasureDeadline]:
    """What the erasure means for each copy. What is not `done` is not claimed."""
    at, model = timestamp(erased.erased_at), timestamp(erased.erased_at + MODEL_BOUND)
    lines = (
        ("serving", at, True, "No reply uses what any snapshot holds of the person, whichever is served later."),
        (
            "consent",
            at,
            True,
            "Every grant is withdrawn and the history removed, of linked ids as well; the erasure itself is kept.",
        ),
        ("lists", None, False, f"The next night makes none: {_NIGHTS}."),
        ("snapshots", None, False, "Those published before still hold the record, unread, until they are removed."),
        (
            "model",
            model,
            False,
            "Due by then from a night that trains from nothing after the erasure; nothing here starts or checks it.",
        ),
        ("logs", None, False, f"Not purged by this version: remove the rows there. In every night {_NIGHTS}."),
        ("backups", None, False, "Not known here: remove the person where they are kept."),
    )
    return [consent_pb2.ErasureDeadline(copy=copy, by=by, done=done, text=text) for copy, by, done, text in lines]


def _grant(change: Change) -> consent_pb2.Grant:
    return consent_pb2.Grant(purpose=change.purpose, source=change.source, granted=change.granted)


def _change(recorded: RecordedChange) -> consent_pb2.ConsentChange:
    return consent_pb2.ConsentChange(
        sequence=recorded.sequence,
        grant=_grant(recorded.change) if recorded.change is not None else None,
        notice_version=recorded.notice_version,
        actor=recorded.actor,
        recorded_at=timestamp(recorded.recorded_at),
        occurred_at=timestamp(recorded.occurred_at) if recorded.occurred_at is not None else None,
        receipt_id=recorded.receipt_id,
        preference=level(recorded.preference) if recorded.preference is not None else None,
    )
