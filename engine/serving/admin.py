"""AdminService: message -> replica call -> message."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version

import grpc
import structlog
from bodega.v1 import admin_pb2, admin_pb2_grpc

from engine.errors import (
    NoSnapshot,
    NotAllowed,
    NotBuilt,
    PolicyError,
    RequestError,
    SettingsError,
    SnapshotError,
    UnknownThing,
)
from engine.serving.errors import fault_of, problem_of
from engine.serving.limits import DEFAULT_SNAPSHOTS
from engine.serving.replica import Replica
from engine.serving.translate import snapshot_message, timestamp

_log = structlog.get_logger("bodega.admin")


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """What is served, and which snapshot it shall be."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetStatusResponse:
        """What this process serves, and what ails it."""
        replica, served = self._replica, self._replica.served
        problems = dict(replica.problems())
        messages = []
        for _, problem in sorted(problems.items()):
            messages.append(problem_of(fault_of(problem)))
            # Operators are told the cause that other callers are not.
            messages[-1].message, messages[-1].remedy, messages[-1].reason = (
                problem.message,
                problem.remedy,
                problem.reason,
            )
        return admin_pb2.GetStatusResponse(
            version=_version(),
            snapshot=snapshot_message(served.snapshot.manifest, True) if served is not None else None,
            consent_sequence=replica.ledger.sequence,
            consent_staleness_seconds=replica.ledger.silence,
            degraded=sorted(problems),
            started_at=timestamp(replica.started_at),
            ready=replica.ready,
            problems=messages,
            policies=replica.held.versions,
            snapshot_age_seconds=replica.snapshots.age_seconds,
            snapshot_swaps=replica.snapshots.swaps,
            snapshots_refused=dict(replica.snapshots.refusals),
        )

    def ListSnapshots(
        self, request: admin_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListSnapshotsResponse:
        """Snapshots of the registry, newest first. A page token is the last id of the page before."""
        served = self._replica.served
        manifests = self._replica.snapshots.registry.list()
        names = [manifest.snapshot_id for manifest in manifests]
        if request.page_token and request.page_token not in names:
            raise RequestError("The page token names no snapshot here.", "Begin again without it.", "page_token")
        start = names.index(request.page_token) + 1 if request.page_token else 0
        end = start + (request.page_size or DEFAULT_SNAPSHOTS)
        page = manifests[start:end]
        return admin_pb2.ListSnapshotsResponse(
            snapshots=[snapshot_message(each, served is not None and each.snapshot_id == served.name) for each in page],
            next_page_token=page[-1].snapshot_id if page and end < len(manifests) else "",
        )

    def PromoteSnapshot(
        self, request: admin_pb2.PromoteSnapshotRequest, context: grpc.ServicerContext
    ) -> admin_pb2.PromoteSnapshotResponse:
        """Serve a snapshot that the registry has; in effect here once this returns, elsewhere at the next look."""
        self._require_administered()
        if request.percent not in (0, 100):
            raise NotBuilt(
                f"A rollout to {request.percent} percent is declared and not built yet.", "Promote for all: percent 0."
            )
        with _told("snapshot_id"):
            served = self._replica.promote(request.snapshot_id)
        self._replica.audit("snapshot_promoted", {"snapshot": served.name})
        return admin_pb2.PromoteSnapshotResponse(snapshot=snapshot_message(served.snapshot.manifest, True))

    def RollbackSnapshot(
        self, request: admin_pb2.RollbackSnapshotRequest, context: grpc.ServicerContext
    ) -> admin_pb2.RollbackSnapshotResponse:
        """Serve what was served before; consent and erasures are today's, whatever its age."""
        self._require_administered()
        with _told():
            served = self._replica.rollback()
        self._replica.audit("snapshot_rolled_back", {"snapshot": served.name, "because": request.reason})
        return admin_pb2.RollbackSnapshotResponse(snapshot=snapshot_message(served.snapshot.manifest, True))

    def ReloadPolicies(
        self, request: admin_pb2.ReloadPoliciesRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ReloadPoliciesResponse:
        """Read the policies again; lists that are under way end under the old ones."""
        self._require_administered()
        held = self._replica.held
        try:
            held.reload(self._replica.settings.default_surface)
        except (PolicyError, SettingsError) as error:
            raise RequestError(f"{error.message} The policies that hold stay.", error.remedy) from error
        self._replica.remember_policies()
        return admin_pb2.ReloadPoliciesResponse(policies=held.versions)

    def GetOperation(
        self, request: admin_pb2.GetOperationRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetOperationResponse:
        """Not built yet."""
        raise NotBuilt("GetOperation is declared and not built yet.", "Nothing starts an operation yet.")

    def _require_administered(self) -> None:
        if not self._replica.settings.administered:
            raise NotAllowed(
                "This server does not let callers change what it serves.",
                "Use `bodega snapshot` beside it, or start it with admin=true where only operators reach it.",
            )


@contextmanager
def _told(field: str = "") -> Iterator[None]:
    """Tell an operator why a snapshot is not served; other callers never learn it."""
    try:
        yield
    except NoSnapshot as error:
        raise UnknownThing(error.message, error.remedy, field) from error
    except SnapshotError as error:
        told = RequestError(error.message, error.remedy, field)
        told.reason = error.reason
        raise told from error


def _version() -> str:
    try:
        return version("bodega")
    except PackageNotFoundError:
        return "unknown"
