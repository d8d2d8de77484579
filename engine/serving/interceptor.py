"""What happens around every call: decode, limits, the call, errors to statuses, one line of log without any user id."""

from __future__ import annotations

import re
import secrets
import time
import traceback
from collections.abc import Callable
from typing import Any, TypeAlias

import grpc
import structlog
from grpc_status import rpc_status

from engine.errors import RequestError
from engine.serving import limits
from engine.serving.errors import STOPPING, Fault, fault_of, status_of

_log = structlog.get_logger("bodega.calls")
_OURS = "/bodega.v1."
_REQUEST_ID = "x-request-id"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
_SANE_ID = re.compile(r"[A-Za-z0-9_.-]{8,64}")


class Doorman(grpc.ServerInterceptor):  # type: ignore[type-arg]
    """Takes each call as bytes and answers with bytes, so that a fault of decoding is told like any other."""

    def __init__(self) -> None:
        self._wrapped: dict[str, Handler] = {}
        self._stopping = False

    def refuse(self) -> None:
        """Refuse every call that comes from now on; those that came before go on, waiting ones too."""
        self._stopping = True

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """The handler of a method, wrapped where the method is ours."""
        method: str = handler_call_details.method
        if self._stopping and method.startswith(_OURS):
            return grpc.unary_unary_rpc_method_handler(_refuse)
        if method in self._wrapped:
            return self._wrapped[method]
        handler = continuation(handler_call_details)
        if handler is None or not method.startswith(_OURS):
            return handler
        self._wrapped[method] = grpc.unary_unary_rpc_method_handler(_around(method.rpartition("/")[2], handler))
        return self._wrapped[method]


def _around(name: str, handler: Any) -> Callable[[bytes, grpc.ServicerContext], bytes]:
    decode, encode, call = handler.request_deserializer, handler.response_serializer, handler.unary_unary

    def answer(raw: bytes, context: grpc.ServicerContext) -> bytes:
        began = time.perf_counter()
        request_id = _request_id(context)
        try:
            request = _decoded(decode, raw)
            limits.check(request)
            reply: bytes = encode(call(request, context))
        except Exception as error:  # noqa: BLE001 - the table of errors decides, and the log has the place
            fault = fault_of(error)
            _log_failure(name, fault, error, request_id, began)
            context.abort_with_status(rpc_status.to_status(status_of(fault, request_id)))
        _log.debug("call", method=name, request_id=request_id, milliseconds=_since(began), bytes=len(reply))
        return reply

    return answer


def _refuse(raw: bytes, context: grpc.ServicerContext) -> bytes:
    context.abort_with_status(rpc_status.to_status(status_of(STOPPING, _request_id(context))))


def _decoded(decode: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return decode(raw)
    except Exception as error:  # protobuf's own error type differs between its implementations
        raise RequestError(
            f"The request's {len(raw)} bytes are not the message of this method.",
            "Send a message of the proto; text must be UTF-8.",
        ) from error


def _log_failure(name: str, fault: Fault, error: Exception, request_id: str, began: float) -> None:
    facts = {
        "method": name,
        "status": fault.code.name,
        "reason": fault.reason,
        "field": fault.field,
        "request_id": request_id,
        "milliseconds": _since(began),
    }
    if fault.code is not grpc.StatusCode.INTERNAL:
        _log.info("call_refused", **facts)
        return
    # The message may quote the request, and so a person; where it happened does not.
    frames = [f"{each.filename}:{each.lineno} {each.name}" for each in traceback.extract_tb(error.__traceback__)]
    _log.error("call_failed", **facts, error=type(error).__name__, frames=frames[-12:])


def _request_id(context: grpc.ServicerContext) -> str:
    for key, value in context.invocation_metadata():
        if key == _REQUEST_ID and isinstance(value, str) and _SANE_ID.fullmatch(value):
            return value
    return secrets.token_hex(8)


def _since(began: float) -> float:
    return round((time.perf_counter() - began) * 1000, 3)
