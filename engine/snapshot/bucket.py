"""Published snapshots in an object store.

prefix/20260131-0123456789ab/89abcdef01234567/   one upload of a snapshot; its manifest comes last
prefix/current.json                              the pointer, which also says where each snapshot's upload lies

The pointer is moved by a conditional put and nothing else decides anything: an upload that it names is whole, one that it
does not name is work in progress or waste. A place is never used twice, so that whoever is late in removing one can
never hit what came after it.
"""

from __future__ import annotations

import configparser
import hashlib
import logging
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import from_url

from engine.errors import NoSnapshot, SettingsError, SnapshotCorrupt, SnapshotError
from engine.snapshot.cache import Cache
from engine.snapshot.layout import MANIFEST, corrupt
from engine.snapshot.manifest import Manifest
from engine.snapshot.pointer import ID, POINTER, Pointer
from engine.snapshot.reader import Snapshot, read_manifest

if TYPE_CHECKING:
    from obstore.store import ObjectStore

_log = logging.getLogger(__name__)
_FILES_AT_ONCE = 4
_PIECE = 4 << 20  # bytes
_TRIES = 6  # of a move whose answer is lost
_PAUSE = 0.1  # seconds before the second try; doubles
_RETRIES = {"max_retries": 4, "retry_timeout": timedelta(seconds=30), "backoff": {"max_backoff": timedelta(seconds=5)}}
_CLIENT = {"connect_timeout": "5s", "read_timeout": "30s"}
Version = dict[str, Any] | None  # the pointer's ETag and generation; None: there is none


class Bucket:
    """Publishes from any number of machines. Keys and endpoint come from the environment or the standard files.

    Steps of publishing, in order, each a method that a test can break: `_upload_shards`, `_upload_manifest`,
    `_require_whole`, `_put_pointer`. All but the last leave the pointer as it was, and the last is one request.

    Args:
        uri: s3://bucket/prefix, gs://bucket/prefix or az://container/prefix; no keys and no query.

    Raises:
        SettingsError: the URI is of no store that knows conditional puts, or carries a key.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri.rstrip("/")
        parts = urlsplit(uri)
        if "@" in uri or parts.query or parts.fragment:
            raise SettingsError(
                f"The {parts.scheme}:// URI of the snapshots carries keys or options.",
                "Name bucket and prefix alone: keys, region and endpoint come from the environment (AWS_...).",
            )
        if parts.scheme not in ("s3", "s3a", "gs", "az", "abfs", "abfss") or not parts.netloc:
            raise SettingsError(
                f"{uri} is no store of snapshots.", "Name a folder, or s3://bucket/prefix, gs://... or az://..."
            )
        # Whole requests are bounded for what is small; of a large file, each read is.
        self._small = self._client(parts.scheme, "20s", _RETRIES)
        self._large = self._client(parts.scheme, "6h", _RETRIES)
        self._once = self._client(parts.scheme, "20s", {"max_retries": 0})  # for what `move` itself tries again

    def __str__(self) -> str:
        return self._uri

    def locked(self) -> AbstractContextManager[None]:
        """Nothing: the conditional put decides."""
        return nullcontext()

    def read(self) -> tuple[bytes | None, Version]:
        """The pointer's text and version, None before the first publish."""
        try:
            with self._told("read"):
                found = obstore.get(self._small, POINTER)
                of = {"e_tag": found.meta["e_tag"], "version": found.meta["version"]}
                return bytes(found.bytes()), {key: value for key, value in of.items() if value is not None}
        except FileNotFoundError:
            return None, None

    def move(self, pointer: Pointer, version: Version, mark: str) -> bool:
        """Put the pointer if it still has the version that was read; False: somebody was faster.

        A put whose answer is lost is looked up by its mark, and put again under the same condition until one of the two
        is certain: it stands, or it never will.

        Raises:
            SnapshotError: the store does not answer; the pointer may or may not have moved.
        """
        text = pointer.marked(mark).to_json().encode()
        for attempt in range(_TRIES):
            try:
                self._put_pointer(text, version)
                return True
            except (PreconditionError, AlreadyExistsError):
                return self._stands(mark)
            except (PermissionDeniedError, UnauthenticatedError) as error:
                raise SnapshotError(
                    f"{self} does not let its pointer be moved: {_first_line(error)}.", "Mend the rights of the key."
                ) from error
            except (BaseError, OSError) as error:
                _log.warning("Moving the pointer of %s: %s", self, _first_line(error))
                time.sleep(_PAUSE * 2**attempt)
                try:
                    if self._stands(mark):
                        return True
                except SnapshotError:
                    continue
        raise SnapshotError(
            f"{self} does not say whether its pointer moved.",
            "Run again once the store answers: what is published already is not published twice.",
        )

    def place(self, staged: Path, manifest: Manifest, pointer: Pointer | None, before: str) -> str:
        """Upload a staged snapshot, unless the pointer names a whole upload of it, or this publisher made one `before`.

        Returns:
            its place.
        """
        name = manifest.snapshot_id
        known = pointer.places.get(name) if pointer else None
        if known or before:
            try:
                self._require_whole(known or before, manifest)
                if known:  # publishing again is how a damaged copy is mended, so that it has to be looked at
                    self._require_sound(known, manifest)
                return known or before
            except SnapshotCorrupt as error:
                _log.warning("Snapshot %s is uploaded again: %s", name, error)
        place = f"{name}/{secrets.token_hex(8)}"
        self._upload_shards(staged, place, manifest)
        self._upload_manifest(staged, place)
        self._require_whole(place, manifest)
        return place

    def names(self, pointer: Pointer | None) -> set[str]:
        """Ids of the snapshots that the pointer knows."""
        return set(pointer.places) if pointer else set()

    def manifest(self, name: str, pointer: Pointer | None) -> Manifest:
        """The manifest of one of them."""
        text = self._get(name, self._place_of(name, pointer), MANIFEST)
        manifest = Manifest.from_json(text, f"{self}/{name}/{MANIFEST}")
        if manifest.snapshot_id != name:
            raise corrupt(Path(name), f"it holds {manifest.snapshot_id}")
        return manifest

    def check(self, name: str, pointer: Pointer | None) -> None:
        """Refuse one whose manifest or sizes are not right; whoever serves it looks at the hashes."""
        self._require_whole(self._place_of(name, pointer), self.manifest(name, pointer))

    def open(self, name: str, pointer: Pointer | None, cache: Cache | None, verify: bool) -> Snapshot:
        """Fetch one into the cache, where it is not there already, and map it; it is kept there while it is open."""
        if cache is None:
            raise SettingsError(f"{self} needs a cache to open snapshots from.", "Set cache= to a folder on this disk.")
        return cache.open(name, _Source(self, name, self._place_of(name, pointer)), verify)

    def found(self) -> dict[str, str]:
        """Whole uploads by id, newest of each, for a pointer that was lost."""
        newest: dict[str, tuple[datetime, str]] = {}
        for place, objects in self._uploads().items():
            written = objects.get(MANIFEST)
            name = place.partition("/")[0]
            if written is not None and (name not in newest or written > newest[name][0]):
                newest[name] = (written, place)
        return {name: place for name, (_, place) in newest.items()}

    def remove(self, names: Iterable[str], places: Iterable[str]) -> list[str]:
        """Delete uploads that the pointer no longer names. Replicas that fetched one keep it."""
        for place in places:
            self._delete(place)
        return list(names)

    def sweep(self, pointer: Pointer | None, grace: timedelta) -> list[str]:
        """Delete uploads that the pointer does not name and that nobody has written to for `grace`."""
        wanted = set(pointer.places.values()) if pointer else set()
        before = datetime.now(UTC) - grace
        removed = []
        for place, objects in sorted(self._uploads().items()):
            if place not in wanted and max(objects.values()) <= before:
                self._delete(place)
                removed.append(place)
        return removed

    def pieces(self, name: str, place: str, file: str) -> Iterator[bytes]:
        """One file of an upload as it comes.

        Raises:
            NoSnapshot: it is gone, as when a sweep took it.
            SnapshotError: the store does not answer.
        """
        try:
            with self._told("read"):
                for piece in obstore.get(self._large, f"{place}/{file}").stream(_PIECE):
                    yield bytes(piece)
        except FileNotFoundError as error:
            raise NoSnapshot(f"{self} has no {name}/{file}.", "Serve another: `bodega snapshot list`.") from error

    def _upload_shards(self, staged: Path, place: str, manifest: Manifest) -> None:
        def upload(name: str) -> None:
            with self._told("written"):
                obstore.put(self._large, f"{place}/{name}", staged / name, chunk_size=2 * _PIECE, max_concurrency=4)

        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            waits = [pool.submit(upload, name) for name in manifest.files]
            try:
                for wait in waits:
                    wait.result()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise

    def _upload_manifest(self, staged: Path, place: str) -> None:
        read_manifest(staged)
        with self._told("written"):
            obstore.put(self._small, f"{place}/{MANIFEST}", (staged / MANIFEST).read_bytes())

    def _require_whole(self, place: str, manifest: Manifest) -> None:
        with self._told("read"):
            here = {
                each["path"].rpartition("/")[2]: each["size"]
                for page in obstore.list(self._small, f"{place}/")
                for each in page
            }
        for name, entry in manifest.files.items():
            if here.get(name) != entry.bytes:
                raise corrupt(Path(place, name), f"expected {entry.bytes} bytes, found {here.get(name, 'none')}")
        if MANIFEST not in here:
            raise corrupt(Path(place, MANIFEST), "it is missing")

    def _require_sound(self, place: str, manifest: Manifest) -> None:
        def check(name: str) -> None:
            seen = hashlib.sha256()
            for piece in self.pieces(manifest.snapshot_id, place, name):
                seen.update(piece)
            if seen.hexdigest() != manifest.files[name].sha256:
                raise corrupt(Path(place, name), "its SHA-256 differs from the manifest's")

        if Manifest.from_json(self._get(manifest.snapshot_id, place, MANIFEST)).files != manifest.files:
            raise corrupt(Path(place, MANIFEST), "it is another snapshot's")
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(check, manifest.files))

    def _put_pointer(self, text: bytes, version: Version) -> None:
        mode: Any = version or "create"
        obstore.put(self._once, POINTER, text, mode=mode)

    def _stands(self, mark: str) -> bool:
        text, _ = self.read()
        return text is not None and mark in Pointer.parse(text, f"{self}/{POINTER}").moves

    def _place_of(self, name: str, pointer: Pointer | None) -> str:
        place = pointer.places.get(name) if pointer else None
        if place is None:
            here = ", ".join(sorted(self.names(pointer), reverse=True)[:5])
            raise NoSnapshot(f"{self} has no snapshot '{name}'.", f"Name one of: {here or 'none yet'}.")
        return place

    def _get(self, name: str, place: str, file: str) -> bytes:
        return b"".join(self.pieces(name, place, file))

    def _uploads(self) -> dict[str, dict[str, datetime]]:
        """By place, when each of its objects was written."""
        uploads: dict[str, dict[str, datetime]] = {}
        with self._told("listed"):
            for page in obstore.list(self._small):
                for each in page:
                    name, _, rest = each["path"].partition("/")
                    nonce, _, file = rest.partition("/")
                    if ID.fullmatch(name) and file:
                        uploads.setdefault(f"{name}/{nonce}", {})[file] = each["last_modified"]
        return uploads

    def _delete(self, place: str) -> None:
        """The manifest first, so that nothing that is half gone looks whole."""
        with self._told("written"):
            paths = [each["path"] for page in obstore.list(self._small, f"{place}/") for each in page]
            for path in sorted(paths, key=lambda path: not path.endswith(MANIFEST)):
                try:
                    obstore.delete(self._small, path)
                except FileNotFoundError:
                    continue

    @contextmanager
    def _told(self, verb: str) -> Iterator[None]:
        """Raises SnapshotError for what a store refuses, FileNotFoundError as it is where the bucket is there."""
        try:
            yield
        except FileNotFoundError as error:
            if "NoSuchBucket" not in str(error):
                raise
            raise SnapshotError(f"{self} has no such bucket.", "Make it, or mend the name.") from error
        except (BaseError, OSError) as error:
            raise SnapshotError(
                f"{self} cannot be {verb}: {_first_line(error)}.",
                "Check that the store answers, the keys and endpoint in the environment, and their rights.",
            ) from error

    def _client(self, scheme: str, timeout: str, retries: dict[str, Any]) -> ObjectStore:
        config: dict[str, Any] = {}
        options: dict[str, Any] = {**_CLIENT, "timeout": timeout}
        if scheme in ("s3", "s3a"):
            config = _shared_credentials()
            endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
            options["allow_http"] = endpoint.startswith("http://")
        try:
            return from_url(self._uri, config=config or None, client_options=options, retry_config=retries)  # type: ignore[call-overload,no-any-return]
        except (BaseError, ValueError) as error:
            raise SettingsError(f"{self} cannot be opened: {_first_line(error)}.", "Name bucket and prefix.") from error


class _Source:
    """One upload as the cache fetches it."""

    def __init__(self, bucket: Bucket, name: str, place: str) -> None:
        self._of = (bucket, name, place)

    def text(self) -> bytes:
        return b"".join(self.pieces(MANIFEST))

    def pieces(self, name: str) -> Iterable[bytes]:
        bucket, snapshot, place = self._of
        return bucket.pieces(snapshot, place, name)


def _shared_credentials() -> dict[str, Any]:
    """The keys of ~/.aws/credentials, where the environment has none: the client knows all other ways by itself."""
    if "AWS_ACCESS_KEY_ID" in os.environ:
        return {}
    path = Path(os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")).expanduser()
    files = configparser.ConfigParser(interpolation=None)
    try:
        files.read(path)
        section = dict(files[os.environ.get("AWS_PROFILE", "default")])
    except (KeyError, OSError, configparser.Error):
        return {}
    known = {"aws_access_key_id": "access_key_id", "aws_secret_access_key": "secret_access_key"}
    known |= {"aws_session_token": "session_token"}
    return {ours: section[theirs] for theirs, ours in known.items() if theirs in section}


def _first_line(error: BaseException) -> str:
    """What a store said, without the tree of causes that its client adds."""
    return " ".join(str(error).split("Debug source:")[0].split())[:300].rstrip(".")
