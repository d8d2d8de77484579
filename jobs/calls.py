"""What the commands that look at a deployment or call a server share: options, the connection, a reply as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from engine.errors import BodegaError, SettingsError

if TYPE_CHECKING:
    from jobs.operator import Operator

PORT = 50051
Out = Annotated[Path, typer.Option(help="Folder of the deployment, as out=DIR of the jobs.")]
Address = Annotated[str, typer.Option(envvar="BODEGA_ADDRESS", help="host:port of the server.")]
Tls = Annotated[str, typer.Option(envvar="BODEGA_TLS", help="'system', or a PEM file of authorities; '': plain text.")]
Timeout = Annotated[float, typer.Option(help="Seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
HERE = f"127.0.0.1:{PORT}"
OUT = Path(".bodega/out")
Store = Annotated[str, typer.Option(envvar="BODEGA_SNAPSHOTS", help="Folder or s3://bucket/prefix; '': OUT/snapshots.")]


class Level(StrEnum):
    """How far a list may go."""

    none = "none"
    session = "session"
    purchases = "purchases"
    full = "full"


@contextmanager
def connected(address: str, tls: str, timeout: float) -> Iterator[Operator]:
    """A client of the server there.

    Raises:
        SettingsError: the file of authorities is not there. BodegaError: the server refused a call, or gave no answer.
    """
    import grpc
    from bodega.client import BodegaRpcError

    from jobs.operator import Operator

    if tls not in ("", "system") and not Path(tls).is_file():
        raise SettingsError(f"--tls: there is no file {tls}.", "Name a PEM file, or 'system'.")
    trust: Any = {"": None, "system": True}.get(tls, tls)
    try:
        client = Operator(address, tls=trust, timeout=timeout)
        with client:
            yield client
    except BodegaRpcError as error:
        if error.code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED) and not error.remedy:
            raise BodegaError(
                f"No answer from {address}: {error.message}.",
                "Start a server with `bodega serve out=DIR`, or name another with --address.",
            ) from error
        raise BodegaError(f"{error.message} ({error.reason})", error.remedy) from error


def print_message(message: Any) -> None:
    """Print a reply as JSON, under the names of the proto."""
    from google.protobuf.json_format import MessageToJson

    print(MessageToJson(message, preserving_proto_field_name=True))
