"""Every error status with its details, and what a caller never learns."""

from __future__ import annotations

import gzip
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
import structlog
from bodega.client import BodegaRpcError, Client, grant
from bodega.v1 import (
    admin_pb2,
    consent_pb2,
    feedback_pb2,
    ranking_pb2,
)
from google.protobuf.message import Message

from engine import errors
from engine.consent import consent_token
from engine.serving.errors import fault_of
from engine.serving.recommend import Recommender
from engine.serving.server import Server
from tests.serving.shop import Shop, item

Code = grpc.StatusCode


@pytest.fixture
def channel(server: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
        yield channel


def call(channel: grpc.Channel, method: str, request: Message | bytes, **options: Any) -> bytes:
    """A call by bytes, so that a request may be anything."""
    raw = request if isinstance(request, bytes) else request.SerializeToString()
    return channel.unary_unary(f"/bodega.v1.{method}")(raw, timeout=20, **options)


def refusal(channel: grpc.Channel, method: str, request: Message | bytes, **options: Any) -> BodegaRpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, method, request, **options)
    return BodegaRpcError(caught.value)


def refused(act: Callable[[], object]) -> BodegaRpcError:
    with pytest.raises(BodegaRpcError) as caught:
        act()
    return caught.value


NOT_BUILT: list[tuple[str, Message]] = [
    ("RankingService/Rank", ranking_pb2.RankRequest(item_ids=["a"])),
    ("ConsentService/ExportUser", consent_pb2.ExportUserRequest(user_id="ana")),
    ("AdminService/GetOperation", admin_pb2.GetOperationRequest(operation_id="x")),
]


@pytest.mark.parametrize(("method", "request_"), NOT_BUILT, ids=[method for method, _ in NOT_BUILT])
def test_what_is_not_built_says_so_with_reason_and_remedy(
    channel: grpc.Channel, method: str, request_: Message
) -> None:
    error = refusal(channel, method, request_)
    assert (error.code, error.reason) == (Code.UNIMPLEMENTED, "NOT_BUILT")
    assert "not built yet" in error.message and error.remedy and error.request_id


def test_every_method_of_the_contract_answers(channel: grpc.Channel) -> None:
    for file in (ranking_pb2, consent_pb2, feedback_pb2, admin_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                try:
                    call(channel, f"{service.name}/{method.name}", b"")
                except grpc.RpcError as error:
                    told = BodegaRpcError(error)
                    assert told.code in (Code.INVALID_ARGUMENT, Code.UNIMPLEMENTED, Code.PERMISSION_DENIED), (
                        method.full_name
                    )
                    assert (
                        told.reason in ("INVALID_ARGUMENT", "NOT_BUILT", "BAD_CONSENT", "NOT_ALLOWED") and told.remedy
                    )


def test_a_bad_user_id_names_the_field_and_the_remedy(client: Client) -> None:
    decomposed = "e\u0301"
    for user in ("a\0b", "x" * 257, "é" * 129, decomposed):
        for act in (client.recommend, client.get_consent, client.withdraw):
            error = refused(lambda act=act, user=user: act(user))
            assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT", "user_id")
            assert "NFC" in error.remedy and error.retry_after is None
            assert user not in error.message
    assert refused(lambda: client.get_consent("")).field == "user_id"


def test_a_bad_user_id_is_refused_even_where_it_would_not_be_used(client: Client) -> None:
    assert refused(lambda: client.recommend("a\0b", minor=True, level="none")).field == "user_id"


def test_an_unknown_surface_names_the_near_one(client: Client) -> None:
    error = refused(lambda: client.recommend(surface="hme"))
    assert (error.code, error.reason, error.field) == (Code.NOT_FOUND, "NOT_FOUND", "context.surface")
    assert "Did you mean 'home'?" in error.remedy


def test_an_unknown_item_is_not_found(client: Client) -> None:
    error = refused(lambda: client.similar("item-9999"))
    assert (error.code, error.field) == (Code.NOT_FOUND, "item_id")
    assert "item-9999" in error.message


@pytest.mark.parametrize("token", ["garbage", "AQ", "é", "A" * 18])
def test_a_token_that_is_not_ours_is_refused(client: Client, token: str) -> None:
    for act in (client.recommend, client.get_consent):
        error = refused(lambda act=act: act("ana", consent_token=token))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "consent_token")


def test_an_unknown_purpose_or_source_names_the_change_and_the_near_one(client: Client) -> None:
    error = refused(lambda: client.set_consent("ana", [grant("train"), grant("profle")]))
    assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "changes[1]")
    assert "Did you mean 'profile'?" in error.remedy
    assert refused(lambda: client.set_consent("ana", [grant("train", "wbe")])).field == "changes[0]"
    assert not client.get_consent("ana").grants


def test_nothing_to_record_is_refused(client: Client) -> None:
    error = refused(lambda: client.set_consent("ana"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_CONSENT")
    assert error.remedy


def test_a_request_id_used_for_something_else_is_refused(client: Client) -> None:
    client.set_consent("ana", [grant("train")], request_id="one")
    error = refused(lambda: client.withdraw("ana", "train", request_id="one"))
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "BAD_CONSENT")


def test_a_ledger_that_is_gone_is_unavailable_to_consent_and_says_when_to_retry(shop: Shop, client: Client) -> None:
    (shop.out / "consent.db").rename(shop.out / "away.db")
    for act in (
        lambda: client.get_consent("ana"),
        lambda: client.set_consent("ana", [grant("train")]),
        lambda: client.consent_changes("ana"),
    ):
        error = refused(act)
        assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE", 1.0)
        assert str(shop.out) not in str(error)


def test_a_state_that_the_ledger_has_not_heard_is_unavailable(client: Client) -> None:
    error = refused(lambda: client.get_consent("ana", consent_token=consent_token(99)))
    assert (error.code, error.reason) == (Code.UNAVAILABLE, "LEDGER_UNAVAILABLE")


def test_before_the_first_snapshot_lists_are_unavailable(shop: Shop) -> None:
    with shop.served() as (_, client):
        for act in (client.recommend, lambda: client.similar(item(0))):
            error = refused(act)
            assert (error.code, error.reason, error.retry_after) == (Code.UNAVAILABLE, "NO_SNAPSHOT", 5.0)
        assert client.set_consent("ana", [grant("train")]).sequence == 1


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xc3\x28", b"\x0a", bytes(range(256))])
def test_bytes_that_are_no_message_are_refused(channel: grpc.Channel, raw: bytes) -> None:
    error = refusal(channel, "RankingService/Recommend", raw)
    assert (error.code, error.reason) == (Code.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert error.remedy


def test_a_message_of_5_mb_is_refused_and_the_server_goes_on(channel: grpc.Channel, client: Client) -> None:
    big = ranking_pb2.RecommendRequest(user_id="x" * 5_000_000)
    assert refusal(channel, "RankingService/Recommend", big).code is Code.RESOURCE_EXHAUSTED
    assert client.recommend().items


def test_a_compressed_bomb_is_refused_at_its_true_size(channel: grpc.Channel, client: Client) -> None:
    bomb = b"\0" * 50_000_000
    assert len(gzip.compress(bomb)) < 100_000
    error = refusal(channel, "RankingService/Recommend", bomb, compression=grpc.Compression.Gzip)
    assert error.code is Code.RESOURCE_EXHAUSTED
    assert client.recommend().items


def test_20_kb_of_metadata_is_refused(channel: grpc.Channel, client: Client) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(channel, "RankingService/Recommend", b"", metadata=[("padding", "x" * 20_000)])
    assert caught.value.code() in (Code.RESOURCE_EXHAUSTED, Code.INTERNAL, Code.UNAVAILABLE)
    assert client.recommend().items


def test_what_nobody_foresaw_is_internal_and_gives_nothing_away(
    client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Recommender, ask: Any) -> None:
        raise ZeroDivisionError(f"a secret about {ask.user_id}")

    monkeypatch.setattr(Recommender, "recommend", fail)
    with structlog.testing.capture_logs() as logs:
        error = refused(lambda: client.recommend("ana-the-regular"))
    assert (error.code, error.reason) == (Code.INTERNAL, "INTERNAL")
    assert "secret" not in str(error) and "Zero" not in str(error)
    failure = next(log for log in logs if log["event"] == "call_failed")
    assert failure["request_id"] == error.request_id
    assert failure["error"] == "ZeroDivisionError"
    assert any("test_grpc_errors" in frame for frame in failure["frames"])
    assert "ana-the-regular" not in str(logs)


def test_the_callers_request_id_is_kept_where_it_is_sane(channel: grpc.Channel) -> None:
    request = ranking_pb2.RecommendRequest(limit=101)
    for sent, kept in (("trace-0123456789", True), ("short", False), ("no spaces please", False)):
        error = refusal(channel, "RankingService/Recommend", request, metadata=[("x-request-id", sent)])
        assert (error.request_id == sent) is kept
        assert error.request_id


def test_no_log_line_ever_holds_a_user_id(client: Client) -> None:
    with structlog.testing.capture_logs() as logs:
        client.set_consent("ana-the-regular", [grant("profile")])
        client.recommend("ana-the-regular")
        refused(lambda: client.recommend("ana-the-regular", surface="nowhere"))
        refused(lambda: client.set_consent("ana-the-regular", [grant("nothing")]))
    assert len(logs) >= 4
    assert "ana-the-regular" not in str(logs)


def test_a_deadline_of_a_millisecond_ends_the_call_and_nothing_else(client: Client) -> None:
    for _ in range(20):
        try:
            client.recommend("ana", timeout=0.001)
        except BodegaRpcError as error:
            assert error.code is Code.DEADLINE_EXCEEDED
    assert client.recommend("ana").items


def _tree(kind: type[errors.BodegaError]) -> Iterator[type[errors.BodegaError]]:
    yield kind
    for child in kind.__subclasses__():
        yield from _tree(child)


@pytest.mark.parametrize("kind", sorted(_tree(errors.BodegaError), key=lambda kind: kind.__name__))
def test_each_error_of_the_tree_has_a_status(kind: type[errors.BodegaError]) -> None:
    words = ("/secret/path.db is wrong.", "Mend /secret/path.db.")
    of_a_file = {errors.FileRefused: ("bad_page", "d"), errors.ContractError: ("a", "b", "c", "d")}
    error = kind("/secret/path.db", *of_a_file[kind]) if kind in of_a_file else kind(*words)
    fault = fault_of(error)
    assert fault.code is not Code.OK and fault.reason and fault.message and fault.remedy
    callers_own = issubclass(kind, (errors.RequestError, errors.ConsentError))
    callers_own = callers_own and not issubclass(kind, errors.LedgerUnavailable)
    assert ("secret" in fault.message + fault.remedy) is callers_own
    assert (fault.retry_after is not None) is (fault.code is Code.UNAVAILABLE)


def test_a_long_message_is_cut_to_fit_the_trailers() -> None:
    fault = fault_of(errors.RequestError("x" * 10_000, "y" * 10_000))
    assert len(fault.message) + len(fault.remedy) <= 1000
