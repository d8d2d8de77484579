"""The client of those who run the servers: what a backend's client has, and what changes the snapshot that is served."""

from __future__ import annotations

from bodega.client import Client
from bodega.v1 import admin_pb2


class Operator(Client):
    """Answered where the server listens on loopback, or was started with admin=true."""

    def promote_snapshot(self, snapshot_id: str, *, timeout: float | None = None) -> admin_pb2.PromoteSnapshotResponse:
        """Serve a snapshot that is published already.

        Raises:
            BodegaRpcError: there is none of this id, or the server cannot serve it; nothing changed.
        """
        request = admin_pb2.PromoteSnapshotRequest(snapshot_id=snapshot_id)
        return self._call(self._admin.PromoteSnapshot, request, admin_pb2.PromoteSnapshotResponse, timeout)

    def rollback_snapshot(self, reason: str, *, timeout: float | None = None) -> admin_pb2.RollbackSnapshotResponse:
        """Serve what was served before.

        Raises:
            BodegaRpcError: nothing was served before, or the server cannot serve it; nothing changed.
        """
        request = admin_pb2.RollbackSnapshotRequest(reason=reason)
        return self._call(self._admin.RollbackSnapshot, request, admin_pb2.RollbackSnapshotResponse, timeout)

    def reload_policies(self, *, timeout: float | None = None) -> admin_pb2.ReloadPoliciesResponse:
        """Have the server read its policies again, and say their versions.

        Raises:
            BodegaRpcError: they are wrong, and the old ones stay; or the server lets nobody.
        """
        return self._call(
            self._admin.ReloadPolicies, admin_pb2.ReloadPoliciesRequest(), admin_pb2.ReloadPoliciesResponse, timeout
        )
