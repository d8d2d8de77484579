"""What Prometheus scrapes."""

from __future__ import annotations

import socket
import time
import urllib.request

import pytest

from engine.errors import SettingsError
from engine.serving.server import Server
from tests.serving.shop import Shop
from tests.snapshot_builder import build_snapshot


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def scrape(port: int) -> dict[str, float]:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        lines = reply.read().decode().splitlines()
    return {
        name: float(value) for name, _, value in (line.rpartition(" ") for line in lines if not line.startswith("#"))
    }


def test_a_refused_snapshot_raises_the_alert_metric_and_the_old_one_serves_on(shop: Shop) -> None:
    port = free_port()
    shop.publish()
    with shop.served(f"metrics_port={port}") as (server, client):
        before = scrape(port)
        assert before["bodega_ready"] == 1 and before["bodega_snapshot_swaps_total"] == 0
        assert before["bodega_snapshot_age_seconds"] >= 0 and before['bodega_degraded{code="snapshot_refused"}'] == 0
        assert before['bodega_snapshot_refused_total{reason="SNAPSHOT_CORRUPT"}'] == 0, "a rise from nothing is one too"
        registry = server.replica.snapshots.registry
        staged = registry.stage()
        build_snapshot(staged, run="another")
        with (staged / "items.arrow").open("r+b") as file:  # of the same size, so that only its hash tells
            file.seek(600)
            file.write(b"\xff" * 8)
        registry.publish(staged)
        found = before
        for _ in range(100):
            found = scrape(port)
            if found['bodega_degraded{code="snapshot_refused"}']:  # told last
                break
            time.sleep(0.05)
        assert found['bodega_snapshot_refused_total{reason="SNAPSHOT_CORRUPT"}'] >= 1
        assert found['bodega_degraded{code="snapshot_refused"}'] == 1 and found["bodega_ready"] == 1
        assert client.recommend("nobody").items


def test_a_port_that_is_taken_is_told(shop: Shop) -> None:
    shop.publish()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        server = Server(shop.settings("port=0", f"metrics_port={taken.getsockname()[1]}"))
        try:
            with pytest.raises(SettingsError, match="metrics_port"):
                server.start()
        finally:
            server.stop()
