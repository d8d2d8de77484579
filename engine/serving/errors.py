"""The one place that turns an error into a gRPC status with its details, or into a problem inside a batch.

What a caller caused is told in full. What is the deployment's own affair, such as a path, a database's words or a
programming fault, stays in the log under the request id that the caller gets.
"""

from __future__ import annotations

from dataclasses import dataclass

import grpc
from bodega.v1 import common_pb2
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from engine.errors import (
    BodegaError,
    ConsentError,
    JournalUnavailable,
    LedgerUnavailable,
    NotAllowed,
    NotBuilt,
    RequestError,
    SnapshotError,
    UnknownThing,
)

DOMAIN = "bodega"
# Message and details share the 8 KiB that HTTP/2 peers commonly allow for trailers.
_LONGEST = 500


@dataclass(frozen=True, slots=True)
class Fault:
    """What the caller learns of an error."""

    code: grpc.StatusCode
    reason: str
    message: str
    remedy: str
    field: str = ""
    retry_after: float | None = None  # seconds


@dataclass(frozen=True, slots=True)
class _Row:
    """How one branch of the error tree is told. An empty message: the error's own words are for the caller."""

    code: grpc.StatusCode
    message: str = ""
    remedy: str = ""
    retry_after: float | None = None


# The nearest ancestor decides.
_TABLE: dict[type[BaseException], _Row] = {
    RequestError: _Row(grpc.StatusCode.INVALID_ARGUMENT),
    UnknownThing: _Row(grpc.StatusCode.NOT_FOUND),
    NotAllowed: _Row(grpc.StatusCode.PERMISSION_DENIED),
    NotBuilt: _Row(grpc.StatusCode.UNIMPLEMENTED),
    ConsentError: _Row(grpc.StatusCode.INVALID_ARGUMENT),
    LedgerUnavailable: _Row(
        grpc.StatusCode.UNAVAILABLE,
        "The consent ledger does not answer, or has not heard the state that the token names.",
        "Try again; nothing was recorded. An operator finds the cause with AdminService.GetStatus.",
        retry_after=1.0,
    ),
    JournalUnavailable: _Row(
        grpc.StatusCode.UNAVAILABLE,
        "Events cannot be made durable at this moment.",
        "Send them again, under the same event ids; none of this call was taken.",
        retry_after=1.0,
    ),
    SnapshotError: _Row(
        grpc.StatusCode.UNAVAILABLE,
        "No snapshot is served at this moment.",
        "Try again once the night has published one; AdminService.GetStatus says what is missing.",
        retry_after=5.0,
    ),
    BaseException: _Row(
        grpc.StatusCode.INTERNAL,
        "The server failed on this request.",
        "Report the request id to the operator: the log has the cause under it.",
    ),
}


# For calls that come while the server drains.
STOPPING = Fault(
    grpc.StatusCode.UNAVAILABLE,
    "STOPPING",
    "This server is stopping.",
    "Try again: another replica answers, or this one once it is back.",
    retry_after=1.0,
)


def fault_of(error: BaseException) -> Fault:
    """What the caller learns of an error, whatever it is."""
    row = next(_TABLE[kind] for kind in type(error).__mro__ if kind in _TABLE)
    reason = error.reason if isinstance(error, BodegaError) and row is not _TABLE[BaseException] else "INTERNAL"
    if not row.message and isinstance(error, BodegaError):
        field = error.field if isinstance(error, RequestError) else ""
        return Fault(row.code, reason, _cut(error.message), _cut(error.remedy), field, row.retry_after)
    return Fault(row.code, reason, row.message, row.remedy, "", row.retry_after)


def status_of(fault: Fault, request_id: str) -> status_pb2.Status:
    """A fault as google.rpc.Status: ErrorInfo with the remedy, BadRequest with the field, RetryInfo, RequestInfo."""
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=fault.reason, domain=DOMAIN, metadata={"remedy": fault.remedy}),
        error_details_pb2.RequestInfo(request_id=request_id),
    ]
    if fault.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=fault.field, description=fault.message)
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if fault.retry_after is not None:
        details.append(error_details_pb2.RetryInfo(retry_delay=_duration(fault.retry_after)))
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=fault.code.value[0], message=fault.message, details=packed)


def problem_of(fault: Fault) -> common_pb2.Problem:
    """A fault as one result of a batch."""
    return common_pb2.Problem(
        code=fault.code.value[0],
        reason=fault.reason,
        message=fault.message,
        remedy=fault.remedy,
        field=fault.field,
        retry_after=None if fault.retry_after is None else _duration(fault.retry_after),
    )


def _duration(seconds: float) -> duration_pb2.Duration:
    return duration_pb2.Duration(seconds=int(seconds), nanos=round(seconds % 1 * 1e9))


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
