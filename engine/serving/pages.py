"""Page tokens: what was shown so far, and what the next page must keep to, signed for one person and one place.

A page is the best of what was not shown yet. So nothing is shown twice and nothing is passed over, whatever snapshot, consent or
event came in between; the seed goes along, so that what the policy draws belongs to one list.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.errors import RequestError
from engine.identity import UserKey
from engine.snapshot import ItemTable

_VERSION = 1
_MARK = 5  # bytes of an item: two of a thousand items are alike once in a million lists
_SIGNATURE = 16
_HEAD = struct.Struct("<BQ")
_MOST_BYTES = 4096  # of a token, by the proto
MOST_SHOWN = (_MOST_BYTES * 3 // 4 - _HEAD.size - _SIGNATURE) // _MARK


@dataclass(frozen=True, slots=True)
class Page:
    """seed: of what is drawn. shown: marks of the items of the pages before, 5 bytes each."""

    seed: int = 0
    shown: bytes = b""

    def then(self, items: Iterable[str]) -> Page:
        """The page after one that shows these."""
        return Page(self.seed, self.shown + b"".join(_mark(item) for item in items))

    def among(self, items: ItemTable, codes: NDArray[np.int32]) -> frozenset[int]:
        """Which of some items were shown."""
        if not self.shown:
            return frozenset()
        marks = {self.shown[at : at + _MARK] for at in range(0, len(self.shown), _MARK)}
        return frozenset(code for code in codes.tolist() if _mark(items.id_of(code)) in marks)


def token_of(page: Page, key: UserKey, owner: bytes, place: str) -> str:
    """A page as a token; '' where more was shown than one can hold, which is the end.

    Args:
        key: the deployment's stable one, which all replicas share. owner: the person's key; b'': a stranger. place: the surface.
    """
    body = _HEAD.pack(_VERSION, page.seed) + page.shown
    if len(page.shown) > MOST_SHOWN * _MARK:
        return ""
    return base64.urlsafe_b64encode(_signature(key, owner, place, body) + body).decode().rstrip("=")


def page_of(token: str, key: UserKey, owner: bytes, place: str) -> Page:
    """The page that a token stands for.

    Raises:
        RequestError: it is not one of this deployment, or of another person or surface.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    signature, body = raw[:_SIGNATURE], raw[_SIGNATURE:]
    sound = len(body) >= _HEAD.size and (len(body) - _HEAD.size) % _MARK == 0 and body[0] == _VERSION
    if not sound or not hmac.compare_digest(signature, _signature(key, owner, place, body)):
        raise RequestError(
            "The page token is none of this list.",
            "Send the next_page_token of the last reply, for the same person and surface; or none, to begin anew.",
            "page_token",
        )
    _, seed = _HEAD.unpack_from(body)
    return Page(seed, body[_HEAD.size :])


def _signature(key: UserKey, owner: bytes, place: str, body: bytes) -> bytes:
    own = hmac.digest(key.secret, b"bodega page token", "sha256")
    told = b"\0".join([len(owner).to_bytes(2), owner, place.encode(), body])
    return hmac.digest(own, told, "sha256")[:_SIGNATURE]


def _mark(item: str) -> bytes:
    return hashlib.blake2b(item.encode(), digest_size=_MARK).digest()
