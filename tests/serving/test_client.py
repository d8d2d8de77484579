"""The thin client: what it loads, when it tries again, what its errors hold. And the stubs: what the protos give."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import bodega.v1
import grpc
import pytest
from bodega.client import BodegaRpcError, Client, grant, personalization, recommend_request
from bodega.v1 import common_pb2, consent_pb2, ranking_pb2

PROTO = Path(next(iter(bodega.v1.__path__))).parents[1]


@contextmanager
def flaky(failures: int, code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE) -> Iterator[tuple[Client, list[Any]]]:
    """A server that fails so many times, and what it was asked."""
    asked: list[Any] = []

    def answer(request: bytes, context: grpc.ServicerContext) -> bytes:
        asked.append(request)
        if len(asked) <= failures:
            context.abort(code, "not now")
        return b""

    class Any_(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.server(ThreadPoolExecutor(2))
    server.add_generic_rpc_handlers((Any_(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", timeout=10) as client:
            yield client, asked
    finally:
        server.stop(None)


def test_a_server_away_for_a_moment_is_asked_again() -> None:
    with flaky(2) as (client, asked):
        client.recommend("ana")
        assert len(asked) == 3


def test_a_consent_change_is_sent_again_under_its_one_request_id() -> None:
    with flaky(2) as (client, asked):
        client.set_consent("ana", [grant("train")])
        sent = {consent_pb2.SetConsentRequest.FromString(each).request_id for each in asked}
        assert len(asked) == 3 and len(sent) == 1 and sent != {""}


def test_only_unavailable_is_tried_again_and_only_twice() -> None:
    for failures, code, tries in ((9, grpc.StatusCode.UNAVAILABLE, 3), (9, grpc.StatusCode.INTERNAL, 1)):
        with flaky(failures, code) as (client, asked), pytest.raises(BodegaRpcError) as caught:
            client.recommend("ana")
        assert (caught.value.code, len(asked)) == (code, tries)


def test_a_sick_server_exhausts_the_budget_of_retries() -> None:
    with flaky(10**6) as (client, asked):
        for _ in range(20):
            with pytest.raises(BodegaRpcError):
                client.recommend("ana")
        assert len(asked) < 20 + 10


def test_a_server_that_is_not_there_is_an_error_in_time() -> None:
    with Client("127.0.0.1:1", timeout=0.5) as client, pytest.raises(BodegaRpcError) as caught:
        client.recommend()
    assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert caught.value.reason == caught.value.code.name
    assert caught.value.remedy == caught.value.field == caught.value.request_id == ""


def test_a_request_is_built_from_plain_words() -> None:
    request = recommend_request(
        "ana", surface="email", limit=3, level="purchases", basket=["a"], exclude=["b"], diversity=0.0, seed=7
    )
    assert request.context.surface == "email" and list(request.context.basket_item_ids) == ["a"]
    assert request.personalization == common_pb2.PERSONALIZATION_PURCHASES
    assert request.HasField("diversity") and request.seed == 7
    assert recommend_request() == ranking_pb2.RecommendRequest(context=ranking_pb2.Context())
    with pytest.raises(ValueError, match="ALL"):
        personalization("all")  # type: ignore[arg-type]


def test_a_misspelt_argument_is_refused_before_anything_is_sent() -> None:
    with flaky(0) as (client, asked):
        for call in (
            lambda: recommend_request("ana", minr=True),  # type: ignore[call-arg]
            lambda: client.recommend("ana", global_privacy_controll=True),  # type: ignore[call-arg]
            lambda: client.withdraw("ana", notice_versoin="1"),  # type: ignore[call-arg]
        ):
            with pytest.raises(TypeError, match="Did you mean '(minor|global_privacy_control|notice_version)'"):
                call()
    assert not asked


def test_the_client_loads_neither_the_engine_nor_the_jobs() -> None:
    code = (
        "import sys, bodega.client;"
        "print([m for m in ('engine', 'jobs', 'numpy', 'pyarrow', 'grpc_status', 'sqlalchemy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def _generate(proto: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(proto / "generate.py"), *arguments], capture_output=True, text=True, timeout=120
    )


def test_the_stubs_are_what_the_protos_give() -> None:
    done = _generate(PROTO, "--check")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stale_a_missing_and_an_orphaned_stub_are_each_named(tmp_path: Path) -> None:
    copy = tmp_path / "proto"
    shutil.copytree(PROTO, copy, ignore=shutil.ignore_patterns("__pycache__"))
    package = copy / "bodega" / "v1"
    proto = package / "feedback.proto"
    proto.write_text(proto.read_text().replace("uint32 duplicates", "uint32 repeats"))
    (package / "admin_pb2.pyi").unlink()
    (package / "old_pb2.py").write_text("")
    done = _generate(copy, "--check")
    assert done.returncode == 1
    for name in ("feedback_pb2.py", "feedback_pb2.pyi", "admin_pb2.pyi", "old_pb2.py"):
        assert f"proto/bodega/v1/{name} " in done.stderr
    assert "ranking_pb2" not in done.stderr
    assert _generate(copy).returncode == 0
    assert _generate(copy, "--check").returncode == 0
    assert not (package / "old_pb2.py").exists()


def test_the_contract_passes_the_lint() -> None:
    buf = Path(sys.executable).parent / "buf"
    done = subprocess.run([str(buf), "lint", str(PROTO)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, "")


def test_one_id_in_the_place_of_several_is_a_mistake_and_not_its_letters(client: Client) -> None:
    with pytest.raises(TypeError, match="one string"):
        client.link_users("ab")
