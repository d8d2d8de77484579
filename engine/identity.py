"""User keys: how a raw user id becomes 16 bytes that say nothing about it.

The *stable* key names a person in the consent ledger and never changes; the *rotating* key names the same person in
every artefact of a night, and shredding it makes old artefacts anonymous. Both are HMAC-SHA-256 (RFC 2104), cut to 128
bits.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from engine.errors import RequestError, SettingsError

KEY_BYTES = 16
MAX_ID_BYTES = 256
_SECRET_BYTES = 32


@dataclass(frozen=True, slots=True, repr=False)
class UserKey:
    """One secret and what it derives. Its repr shows the id alone, so that a log line cannot leak the secret."""

    secret: bytes

    @property
    def key_id(self) -> str:
        """Eight hex digits that name the secret without giving it away."""
        return hashlib.sha256(b"bodega key id" + self.secret).hexdigest()[:8]

    def __repr__(self) -> str:
        return f"UserKey({self.key_id})"

    def derive(self, user_id: str) -> bytes:
        """The 16-byte key of one raw user id.

        Raises:
            RequestError: the id is empty, longer than 256 bytes, holds NUL, or is not NFC-normalised.
        """
        fault = fault_in_id(user_id)
        if fault:
            raise RequestError(
                f"The user id is {fault}.", f"Send 1..{MAX_ID_BYTES} bytes of NFC text without NUL.", "user_id"
            )
        return hmac.digest(self.secret, user_id.encode(), "sha256")[:KEY_BYTES]

    def derive_many(self, user_ids: Iterable[str]) -> list[bytes]:
        """Keys of ids that were checked before, in order; for a column's distinct values, not for its rows."""
        secret = self.secret
        return [hmac.digest(secret, user_id.encode(), "sha256")[:KEY_BYTES] for user_id in user_ids]


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The two keys of a deployment."""

    stable: UserKey
    rotating: UserKey

    @classmethod
    def load(cls, folder: str | Path, create: bool = False) -> UserKeys:
        """Read `stable.key` and `rotating.key` (32 bytes as hex) from a folder.

        Args:
            folder: where the secrets lie; readable by their owner alone.
            create: make missing secrets, for a first run on one machine.

        Raises:
            SettingsError: a secret is missing, malformed, readable by others or the same as the other.
        """
        stable, rotating = (UserKey(_secret(Path(folder) / f"{name}.key", create)) for name in ("stable", "rotating"))
        if stable.secret == rotating.secret:
            raise SettingsError(
                f"stable.key and rotating.key in {folder} hold the same secret.",
                "Make a new rotating.key: one secret for both cannot be shredded without losing the ledger.",
            )
        return cls(stable, rotating)


def fault_in_id(user_id: str) -> str:
    """What is wrong with an id, or '' when nothing is. Ids are never repaired: a repair could merge two people."""
    if not user_id:
        return "empty"
    if "\0" in user_id:
        return "holding a NUL character"
    try:
        size = len(user_id.encode())
    except UnicodeEncodeError:
        return "not valid Unicode"
    if size > MAX_ID_BYTES:
        return f"{size} bytes long"
    return "" if unicodedata.is_normalized("NFC", user_id) else "not NFC-normalised"


def _secret(path: Path, create: bool) -> bytes:
    try:
        if create and not path.exists():
            _make(path)
        found = path.read_text()
        shared = path.stat().st_mode & 0o077
    except FileNotFoundError as error:
        raise SettingsError(
            f"The key file {path} is missing.", "Run `bodega keys` to make it, or mount the deployment's."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The key file {path} cannot be read: {error}", "Check the path and its owner.") from error
    if shared:
        raise SettingsError(f"The key file {path} is readable by others.", f"chmod 600 {path}")
    try:
        secret = bytes.fromhex(found.strip())
    except ValueError:
        secret = b""
    if len(secret) != _SECRET_BYTES:
        raise SettingsError(
            f"The key file {path} does not hold {_SECRET_BYTES} bytes as hex.", "Restore it from backup."
        )
    return secret


def _make(path: Path) -> None:
    """A new secret, which appears whole or not at all; where another process was first, its own stays."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(secrets.token_hex(_SECRET_BYTES))
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            path.hardlink_to(draft)
    finally:
        draft.unlink()
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
