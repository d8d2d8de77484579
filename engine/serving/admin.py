"""AdminService: message -> replica call -> message."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import grpc
from bodega.v1 import admin_pb2, admin_pb2_grpc

from engine.errors import LedgerUnavailable, NotBuilt, RequestError
from engine.serving.errors import fault_of, problem_of
from engine.serving.limits import DEFAULT_SNAPSHOTS
from engine.serving.replica import Replica
from engine.serving.translate import snapshot_message, timestamp


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """What is served."""

    def __init__(self, replica: Replica) -> None:
        self._replica = replica

    def GetStatus(
        self, request: admin_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetStatusResponse:
        """What this process serves, and what ails it."""
        replica, served = self._replica, self._replica.served
        problems = dict(replica.problems())
        sequence = 0
        try:
            sequence = replica.consent()[0].sequence()
        except LedgerUnavailable as error:
            problems.setdefault("ledger_unavailable", error)
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
            consent_sequence=sequence,
            consent_staleness_seconds=replica.ledger_silence if "ledger_unavailable" in problems else 0.0,
            degraded=sorted(problems),
            started_at=timestamp(replica.started_at),
            ready=replica.ready,
            problems=messages,
            policies=[f"{chain.name}@{chain.version}" for chain in replica.policies.values()],
        )

    def ListSnapshots(
        self, request: admin_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ListSnapshotsResponse:
        """Snapshots on this disk, newest first. A page token is the last id of the page before."""
        served = self._replica.served
        manifests = self._replica.registry.list()
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
        """Not built yet."""
        raise NotBuilt(
            "PromoteSnapshot is declared and not built yet.", "Run `bodega snapshot promote` beside the server."
        )

    def RollbackSnapshot(
        self, request: admin_pb2.RollbackSnapshotRequest, context: grpc.ServicerContext
    ) -> admin_pb2.RollbackSnapshotResponse:
        """Not built yet."""
        raise NotBuilt(
            "RollbackSnapshot is declared and not built yet.", "Run `bodega snapshot rollback` beside the server."
        )

    def ReloadPolicies(
        self, request: admin_pb2.ReloadPoliciesRequest, context: grpc.ServicerContext
    ) -> admin_pb2.ReloadPoliciesResponse:
        """Not built yet."""
        raise NotBuilt("ReloadPolicies is declared and not built yet.", "Restart the server, which drains first.")

    def GetOperation(
        self, request: admin_pb2.GetOperationRequest, context: grpc.ServicerContext
    ) -> admin_pb2.GetOperationResponse:
        """Not built yet."""
        raise NotBuilt("GetOperation is declared and not built yet.", "Nothing starts an operation yet.")


def _version() -> str:
    try:
        return version("bodega")
    except PackageNotFoundError:
        return "unknown"
