"""The two kinds of place that snapshots are published in, behind one face."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest
from obstore.store import from_url

from engine.snapshot import Registry
from tests.snapshot.object_server import BUCKET, ObjectServer


class Place:
    """A folder or a prefix of a bucket, and what a test looks at or breaks in it."""

    def __init__(self, where: str, cache: Path, server: ObjectServer | None = None) -> None:
        self.where, self.cache, self.server = where, cache, server

    @property
    def kind(self) -> str:
        return "bucket" if self.server else "folder"

    def registry(self, cache: Path | None = None) -> Registry:
        """A registry that has seen nothing yet, as of a new process."""
        return Registry(self.where, cache or self.cache)

    def pointer(self) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.read("current.json"))
        return record

    def path_of(self, name: str, file: str) -> str:
        """Where a file of a snapshot lies, below the root."""
        return f"{self.pointer()['places'][name] if self.server else name}/{file}"

    def read(self, path: str) -> bytes:
        if self.server:
            return bytes(obstore.get(self._client(), path).bytes())
        return (Path(self.where) / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        if self.server:
            obstore.put(self._client(), path, data)
        else:
            target = Path(self.where) / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.unlink(missing_ok=True)  # its files are read-only
            target.write_bytes(data)

    def delete(self, path: str) -> None:
        if self.server:
            obstore.delete(self._client(), path)
        else:
            (Path(self.where) / path).unlink()

    def everything(self) -> set[str]:
        """Every file here that is no lock."""
        if self.server:
            return {each["path"] for page in obstore.list(self._client()) for each in page}
        root = Path(self.where)
        files = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
        return files - {".lock"}

    def _client(self) -> Any:
        return from_url(self.where, client_options={"allow_http": True})


@pytest.fixture(scope="session")
def object_server() -> Iterator[ObjectServer]:
    server = ObjectServer.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        import boto3

        boto3.client("s3", endpoint_url=server.environment["AWS_ENDPOINT_URL"]).create_bucket(Bucket=BUCKET)
    yield server
    server.stop()


@pytest.fixture
def bucket(object_server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (object_server.environment | {"HOME": str(tmp_path / "home")}).items():
        monkeypatch.setenv(name, value)
    object_server.asked.clear()
    yield Place(f"s3://{BUCKET}/{tmp_path.name}", tmp_path / "cache", object_server)
    object_server.faults.clear()
    object_server.watch = None


@pytest.fixture
def folder(tmp_path: Path) -> Place:
    return Place(str(tmp_path / "snapshots"), tmp_path / "cache")


@pytest.fixture(params=["folder", "bucket"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found
