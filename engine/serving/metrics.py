"""What operators alert on, for Prometheus: read from the replica at each scrape, so that no request pays for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from engine.errors import NoSnapshot, SettingsError, SnapshotCorrupt, SnapshotError, SnapshotTooNew
from engine.serving.replica import PROBLEMS, Replica

_REASONS = tuple(kind.reason for kind in (SnapshotCorrupt, SnapshotTooNew, NoSnapshot, SnapshotError))
_HOST = "127.0.0.1"  # plain text: an agent on this machine scrapes it


def serve_metrics(replica: Replica, port: int) -> Callable[[], None]:
    """Answer scrapes at `/metrics` on loopback.

    Returns:
        what ends it.

    Raises:
        SettingsError: the port cannot be bound.
    """
    registry = CollectorRegistry()
    registry.register(_Replica(replica))
    try:
        server, thread = start_http_server(port, _HOST, registry)
    except (OSError, OverflowError) as error:
        raise SettingsError(f"metrics_port={port} cannot be bound: {error}.", "Choose a free port.") from error

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop


class _Replica(Collector):
    """The figures of one process."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def collect(self) -> Iterator[Metric]:
        """Alert on bodega_snapshot_refused_total rising, on bodega_snapshot_age_seconds, and on bodega_degraded."""
        snapshots = self._replica.snapshots
        yield GaugeMetricFamily(
            "bodega_snapshot_age_seconds",
            "Since what is served was written; 0 before the first.",
            snapshots.age_seconds,
        )
        yield CounterMetricFamily("bodega_snapshot_swaps", "Snapshots taken up after the first.", snapshots.swaps)
        refused = CounterMetricFamily("bodega_snapshot_refused", "Snapshots refused, by reason.", labels=["reason"])
        # From the start with nothing, so that a rule can be written, and a first rise be seen.
        for reason, count in sorted({**dict.fromkeys(_REASONS, 0), **snapshots.refusals}.items()):
            refused.add_metric([reason], count)
        yield refused
        degraded = GaugeMetricFamily("bodega_degraded", "What ails this process now, by stable code.", labels=["code"])
        ailing = {code for code, _ in self._replica.problems()}
        for code in PROBLEMS:
            degraded.add_metric([code], code in ailing)
        yield degraded
        yield GaugeMetricFamily(
            "bodega_consent_silence_seconds",
            "Since the consent ledger was heard; past consent_bound_seconds no reply is personal.",
            self._replica.ledger.silence,
        )
        yield GaugeMetricFamily("bodega_ready", "Whether lists can be served.", float(self._replica.ready))
        live = self._replica.live
        waiting, lost = live.unlogged
        journal = live.journal
        yield GaugeMetricFamily(
            "bodega_journal_bytes", "Events on disk here, shipped or not.", 0.0 if journal is None else journal.size
        )
        yield GaugeMetricFamily("bodega_served_unlogged", "Lists that wait for the log of served lists.", waiting)
        yield CounterMetricFamily("bodega_served_lost", "Lists that never reached it.", lost)
