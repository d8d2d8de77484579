"""What a refused call raises: the server's words, and the remedy."""

from __future__ import annotations

from typing import cast

import grpc
from google.rpc import error_details_pb2, status_pb2

_DETAILS = "grpc-status-details-bin"


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
