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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from engine.errors import RequestError, SettingsError

KEY_BYTES = 16
MAX_ID_BYTES = 256
_SECRET_BYTES = 32
_BLOCK = 64  # of SHA-256, bytes; no secret is longer
_SEAL = b"bodega seal"
_ALONE = bytes(KEY_BYTES)
_LINKED = b"bodega person"


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
        # HMAC as RFC 2104 writes it: for short texts half the time of the library's own, which the tests hold it against.
        key, sha = self.secret.ljust(_BLOCK, b"\0"), hashlib.sha256
        inner, outer = (bytes(octet ^ pad for octet in key) for pad in (0x36, 0x5C))
        return [sha(outer + sha(inner + user_id.encode()).digest()).digest()[:KEY_BYTES] for user_id in user_ids]

    def of_person(self, person: bytes) -> bytes:
        """The key of ids that were put together, from the 16 bytes that they share in the ledger."""
        return hashlib.blake2b(person, digest_size=KEY_BYTES, key=self.secret, person=_LINKED).digest()


@dataclass(frozen=True, slots=True)
class UserKeys:
    """The two keys of a deployment."""

    stable: UserKey
    rotating: UserKey

    def pseudonyms(self, user_ids: Sequence[str]) -> list[bytes]:
        """Key and seal of checked ids, 16 bytes each: what a stored log row says of its person.

        The seal is the stable key under a mask that the rotating secret alone can make, so that a night finds the ledger's
        entry of a stored row, and shredding that secret cuts the row off from the ledger for good. The mask is keyed BLAKE2b
        (RFC 7693) as a pseudorandom function.
        """
        stable, rotating = b"".join(self.stable.derive_many(user_ids)), self.rotating.derive_many(user_ids)
        seals = self.unsealed(b"".join(rotating), stable)
        places = range(0, len(seals), KEY_BYTES)
        return [key + seals[at : at + KEY_BYTES] for key, at in zip(rotating, places, strict=True)]

    def filed_under(self, user_id: str, person: bytes) -> tuple[bytes, ...]:
        """The rotating keys under which a night may have filed somebody; the first that is found holds.

        What was made of linked ids together lies under the person that they share, and is found by nobody who shares it no
        longer. What was made before they were linked lies under the id.

        Args:
            user_id: checked by `derive`.
            person: of the id in the ledger; zeros: it is linked with none.
        """
        own = self.rotating.derive(user_id)
        return (self.rotating.of_person(person), own) if person != _ALONE else (own,)

    def unsealed(self, keys: bytes, seals: bytes) -> bytes:
        """The stable keys under seals, and the seals of stable keys: all are runs of 16 bytes a person."""
        keyed = hashlib.blake2b(digest_size=KEY_BYTES, key=self.rotating.secret, person=_SEAL)
        masks = b"".join([_mask(keyed, keys[at : at + KEY_BYTES]) for at in range(0, len(keys), KEY_BYTES)])
        return (int.from_bytes(masks) ^ int.from_bytes(seals)).to_bytes(len(keys))

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


def _mask(keyed: hashlib.blake2b, key: bytes) -> bytes:
    made = keyed.copy()  # takes half the time of starting from the secret
    made.update(key)
    return made.digest()


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
