"""The gRPC server: built from settings, bound, watched, drained."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import FrameType
from typing import Any

import grpc
import structlog
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
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from engine.errors import SettingsError
from engine.serving.admin import AdminServicer
from engine.serving.consent import ConsentServicer
from engine.serving.feedback import FeedbackServicer
from engine.serving.interceptor import Doorman
from engine.serving.metrics import serve_metrics
from engine.serving.ranking import RankingServicer
from engine.serving.replica import Replica
from engine.serving.settings import ServeSettings

_log = structlog.get_logger("bodega.server")
_RANKING = ranking_pb2.DESCRIPTOR.services_by_name["RankingService"].full_name
_CONSENT = consent_pb2.DESCRIPTOR.services_by_name["ConsentService"].full_name
_FEEDBACK = feedback_pb2.DESCRIPTOR.services_by_name["FeedbackService"].full_name
_ADMIN = admin_pb2.DESCRIPTOR.services_by_name["AdminService"].full_name
_SETTLE_SECONDS = 0.2
_PATIENCE_SECONDS = 30.0  # until it answers without a snapshot: probes and consent do not wait for a fetch
_WHOLE = ""  # the health service's name for the process


class Server:
    """One process's server. `start`, then `stop`; or `run`, which waits for a signal between the two.

    Raises:
        SettingsError, ConsentError, PolicyError: a setting is wrong; nothing was bound.
    """

    def __init__(self, settings: ServeSettings, again: Callable[[], ServeSettings] | None = None) -> None:
        """
        Args:
            again: reads the settings anew, so that policies can be reloaded.
        """
        settings.check()
        self.settings = settings
        self.replica = Replica(settings, again)
        self.port = 0
        self._health = health.HealthServicer()
        self._doorman = Doorman()
        self._grpc = grpc.server(
            ThreadPoolExecutor(settings.threads, thread_name_prefix="bodega-call"),
            interceptors=[self._doorman],
            options=_options(settings),
            maximum_concurrent_rpcs=settings.concurrent_rpcs,
        )
        self._add_services()
        self._stop_metrics: Callable[[], None] = lambda: None

    def start(self) -> int:
        """Bind, look for ledger and snapshot, and begin to answer; before a snapshot that takes long to fetch is here, too.

        Returns:
            the port.

        Raises:
            SettingsError: the address cannot be bound.
        """
        self.port = self._bind()
        self._tell_health()
        self.replica.watch(self._tell_health, _PATIENCE_SECONDS)
        self.replica.remember_policies()
        self._grpc.start()
        if self.settings.metrics_port:
            self._stop_metrics = serve_metrics(self.replica, self.settings.metrics_port)
        _log.info(
            "listening",
            address=f"{_bracketed(self.settings.host)}:{self.port}",
            tls=bool(self.settings.tls.cert),
            ready=self.replica.ready,
            degraded=[code for code, _ in self.replica.problems()],
        )
        return self.port

    def stop(self) -> None:
        """Refuse what comes, finish what is under way within `drain_seconds`, and let go of everything."""
        self._health.enter_graceful_shutdown()
        self._grpc.stop(self.settings.drain_seconds).wait()
        self._stop_metrics()
        self.replica.close()
        _log.info("stopped")

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; a second signal ends the drain."""
        told = threading.Event()

        def on_signal(number: int, _frame: FrameType | None) -> None:
            if told.is_set():
                self._grpc.stop(0)
            told.set()
            self.replica.wait_no_longer()

        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, on_signal)
        self.start()
        told.wait()
        _log.info("draining", seconds=self.settings.drain_seconds)
        # gRPC ends calls that arrive while it shuts down with CANCELLED, which no client tries again: for a moment,
        # those on their way are refused as UNAVAILABLE instead.
        self._health.enter_graceful_shutdown()
        self._doorman.refuse()
        time.sleep(_SETTLE_SECONDS)
        self.stop()

    def _add_services(self) -> None:
        ranking_pb2_grpc.add_RankingServiceServicer_to_server(RankingServicer(self.replica), self._grpc)  # type: ignore[no-untyped-call]
        consent_pb2_grpc.add_ConsentServiceServicer_to_server(ConsentServicer(self.replica), self._grpc)  # type: ignore[no-untyped-call]
        feedback_pb2_grpc.add_FeedbackServiceServicer_to_server(FeedbackServicer(self.replica), self._grpc)  # type: ignore[no-untyped-call]
        admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(self.replica), self._grpc)  # type: ignore[no-untyped-call]
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._grpc)
        shown = self.settings.reflection
        if self.settings.loopback if shown is None else shown:
            names = (_RANKING, _CONSENT, _FEEDBACK, _ADMIN, health.SERVICE_NAME, reflection.SERVICE_NAME)
            reflection.enable_server_reflection(names, self._grpc)

    def _bind(self) -> int:
        settings = self.settings
        address = f"{_bracketed(settings.host)}:{settings.port}"
        try:
            if settings.tls.cert:
                pair = (Path(settings.tls.key).read_bytes(), Path(settings.tls.cert).read_bytes())
                port = self._grpc.add_secure_port(address, grpc.ssl_server_credentials([pair]))
            else:
                port = self._grpc.add_insecure_port(address)
        except (RuntimeError, OSError, ValueError) as error:
            raise SettingsError(
                f"{address} cannot be bound: {error}.", "Choose a free port, and PEM files that belong together."
            ) from error
        if port == 0:
            raise SettingsError(f"{address} cannot be bound.", "Choose a free port.")
        return int(port)

    def _tell_health(self) -> None:
        up, down = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
        ready, consent, events = self.replica.ready, self.replica.ledger.available, self.replica.live.ready
        for name, good in (
            (_WHOLE, ready),
            (_RANKING, ready),
            (_CONSENT, consent),
            (_ADMIN, True),
            (_FEEDBACK, events),
        ):
            self._health.set(name, up if good else down)


def _options(settings: ServeSettings) -> list[tuple[str, Any]]:
    return [
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_metadata_size", settings.max_metadata_bytes),
        ("grpc.absolute_max_metadata_size", settings.max_metadata_bytes),
        ("grpc.so_reuseport", 0),  # a second server on the port is a mistake, and is to be told
        ("grpc.max_concurrent_streams", settings.concurrent_rpcs),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        ("grpc.http2.max_ping_strikes", 3),
        ("grpc.max_connection_idle_ms", 30 * 60_000),
    ]


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
