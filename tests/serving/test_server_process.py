"""The server as a process: start, health, drain, kill -9, swaps under load."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from bodega.client import BodegaRpcError, Client
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from engine.serving.__main__ import main
from engine.serving.server import Server
from engine.snapshot import Registry
from tests.serving.shop import Process, Shop, allow, ids, item

UP, DOWN = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
SERVICES = ("Ranking", "Consent", "Feedback", "Admin")


def health(address: str, service: str = "") -> int:
    with grpc.insecure_channel(address) as channel:
        name = f"bodega.v1.{service}Service" if service else ""
        return health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=name), timeout=20).status


def eventually(holds: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.02)


def test_before_the_first_snapshot_the_server_says_not_serving_and_why(shop: Shop) -> None:
    with shop.process("watch_seconds=0.05") as process, process.client() as client:
        assert health(process.address) == health(process.address, "Ranking") == DOWN
        assert health(process.address, "Consent") == health(process.address, "Admin") == UP
        status = client.status()
        assert not status.ready and not status.HasField("snapshot")
        assert list(status.degraded) == ["no_snapshot"]
        assert "jobs.nightly" in status.problems[0].remedy
        shop.publish()
        eventually(lambda: health(process.address) == UP)
        assert client.recommend().items
        assert client.status().ready


def test_a_folder_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    process = Process([f"out={tmp_path}/later", "port=0", "log.format=json", "watch_seconds=0.05"])
    try:
        with process.client() as client:
            assert list(client.status().degraded) == ["events_unavailable", "ledger_unavailable", "no_snapshot"]
            assert "does not exist" in client.status().problems[1].message
            assert health(process.address, "Consent") == DOWN
            Shop(tmp_path / "later").publish()
            eventually(lambda: health(process.address) == UP)
    finally:
        process.kill()


def test_sigterm_finishes_what_is_under_way_and_loses_no_reply(shop: Shop) -> None:
    shop.publish()
    with shop.process() as process:
        replies, failures, stop = [0], [], threading.Event()

        def ask() -> None:
            with process.client() as client:
                while not stop.is_set():
                    try:
                        assert client.recommend(limit=5).items
                        replies[0] += 1
                    except BodegaRpcError as error:
                        failures.append(error)
                        return

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        eventually(lambda: replies[0] > 50)
        process.send_sigterm()
        code = process.wait()
        stop.set()
        for thread in threads:
            thread.join()
    assert code == 0
    # What was refused was refused before any work: the connection was closed, no reply was cut.
    assert {error.code for error in failures} <= {grpc.StatusCode.UNAVAILABLE}
    assert [json.loads(line)["event"] for line in process.lines[-2:]] == ["draining", "stopped"]


def test_what_was_acknowledged_survives_kill_9(shop: Shop) -> None:
    shop.publish()
    with shop.process() as process, process.client() as client:
        allow(client, "ana")
        token = client.withdraw("ana", "profile", "partner").consent_token
        process.kill()
    with shop.process() as process, process.client() as client:
        reply = client.recommend("ana", consent_token=token)
        assert reply.provenance.reason == "grants_missing"
        assert len(client.consent_changes("ana").changes) == 2


def test_snapshots_swap_under_load_without_an_error_or_a_mixed_list(shop: Shop) -> None:
    first_of = {shop.publish(first).snapshot_id: item(first) for first in (0, 1, 2, 3)}
    registry = Registry(shop.out / "snapshots")
    with shop.process("watch_seconds=0.02") as process, process.client() as admin:
        allow(admin, "ana")
        seen: set[str] = set()
        faults: list[str] = []
        stop = threading.Event()

        def ask() -> None:
            with process.client() as client:
                while not stop.is_set():
                    try:
                        reply = client.recommend("ana", limit=3, diversity=0)
                    except BodegaRpcError as error:
                        faults.append(str(error))
                        return
                    name = reply.provenance.snapshot_id
                    seen.add(name)
                    if ids(reply)[0] != first_of[name]:
                        faults.append(f"{name} gave {ids(reply)[0]}")

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(12):
            name = list(first_of)[turn % 4]
            registry.promote(name)
            eventually(lambda name=name: admin.status().snapshot.snapshot_id == name)
        stop.set()
        for thread in threads:
            thread.join()
    assert not faults
    assert seen == set(first_of)


@pytest.mark.parametrize(
    ("override", "code", "words"),
    [
        ("prot=1", 2, "Did you mean 'port'?"),
        ("policy=defalt", 2, "Did you mean 'default'?"),
        ("host=0.0.0.0", 2, "insecure=true"),
        ("consent.sources=[web]", 4, "Unknown source 'app'"),
        ("policy.home.rules=[{name: consnt}]", 2, "Did you mean 'consent'?"),
    ],
)
def test_a_bad_setting_ends_the_start_with_its_code_and_the_near_miss(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, code: int, words: str
) -> None:
    assert main([f"out={tmp_path}", override]) == code
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(shop: Shop, server: Server) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine.serving", f"out={shop.out}", f"port={server.port}"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 2
    assert "free port" in done.stderr


def test_cfg_job_prints_the_settings_and_stops(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "engine.serving", f"out={tmp_path}", "--cfg", "job"],
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0
    assert "port: 50051" in done.stdout and "sources:" in done.stdout


def test_serving_loads_no_heavy_library(shop: Shop) -> None:
    code = (
        "import sys, engine.serving.server, engine.serving.__main__;"
        "print([m for m in ('torch', 'ray', 'cupy', 'triton', 'polars', 'pandas', 'jobs') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_reflection_lists_the_services_on_loopback_alone(shop: Shop, server: Server) -> None:
    def listed(port: int) -> set[str]:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            request = reflection_pb2.ServerReflectionRequest(list_services="")
            (reply,) = stub.ServerReflectionInfo(iter([request]), timeout=20)
            return {each.name for each in reply.list_services_response.service}

    assert {f"bodega.v1.{name}Service" for name in SERVICES} <= listed(server.port)
    for overrides in (["reflection=false"], ["host=0.0.0.0", "insecure=true"]):
        with shop.served(*overrides) as (other, _), pytest.raises(grpc.RpcError) as caught:
            listed(other.port)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_with_tls_plain_text_is_refused(shop: Shop, tmp_path: Path) -> None:
    openssl = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    subprocess.run([*openssl, "-keyout", str(key), "-out", str(cert), *names], check=True, capture_output=True)
    shop.publish()
    with shop.served("host=0.0.0.0", f"tls.cert={cert}", f"tls.key={key}") as (server, plain):
        with Client(f"localhost:{server.port}", tls=cert, timeout=20) as client:
            assert client.recommend().items
        with pytest.raises(BodegaRpcError) as caught:
            plain.recommend(timeout=5)
        assert caught.value.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
