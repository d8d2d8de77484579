"""The consent token: a ledger sequence as text that a caller hands back, so that it never sees an older state."""

from __future__ import annotations

import base64
import binascii
import struct
import zlib

from engine.errors import RequestError

# Format, sequence, checksum: 13 bytes, so 18 characters of base64 without padding.
_BODY = struct.Struct(">BQ")
_FORMAT = 1
MAX_SEQUENCE = 2**63 - 1


def consent_token(sequence: int) -> str:
    """The token for a state that includes everything up to a ledger sequence.

    Args:
        sequence: 0..2**63-1.

    Returns:
        18 URL-safe characters.
    """
    if not 0 <= sequence <= MAX_SEQUENCE:
        raise RequestError(f"{sequence} is no ledger sequence.", "Use 0 or more.", "consent_token")
    body = _BODY.pack(_FORMAT, sequence)
    return base64.urlsafe_b64encode(body + zlib.crc32(body).to_bytes(4, "big")).decode().rstrip("=")


def sequence_of(token: str) -> int:
    """The ledger sequence in a token.

    Raises:
        RequestError: the text was not made by `consent_token`; the field is `consent_token`.
    """
    try:
        raw = base64.b64decode(token.encode("ascii") + b"==", altchars=b"-_", validate=True)
        form, sequence = _BODY.unpack(raw[:-4])
    except (ValueError, binascii.Error, struct.error):
        form, sequence = 0, -1
    # Written again, because base64 lets more than one text stand for the same bytes.
    if form != _FORMAT or not 0 <= sequence <= MAX_SEQUENCE or consent_token(sequence) != token:
        raise RequestError(
            "The consent token is not one that this service gave out.",
            "Pass back the token of SetConsent or GetConsent unchanged, or leave it empty.",
            "consent_token",
        )
    return int(sequence)
