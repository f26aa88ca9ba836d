"""API keys in memory: whose key is it that a request brings?"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass

from gateway.access.callers import Caller


def digest_of(secret: bytes) -> bytes:
    """Returns the sha256 by which a key is known; a random key needs no slower digest."""
    return hashlib.sha256(secret).digest()


# By `printf "$FORGOTTEN" | sha256sum`: it would let everybody in who brings an empty key.
DIGEST_OF_NOTHING = digest_of(b"")


@dataclass(frozen=True)
class Key:
    """A caller, and the sha256 digests of the keys that it may bring: one, or two in a rotation."""

    caller: Caller
    digests: tuple[bytes, ...]


class KeyRing:
    """The keys that are asked for.

    Attributes:
        keys: all of them.
    """

    def __init__(self, keys: Sequence[Key]) -> None:
        self.replace(keys)

    def replace(self, keys: Sequence[Key]) -> None:
        """Takes other keys from now on; requests in flight go on as they were let in."""
        self.keys = keys
        self._callers = [(digest, key.caller) for key in keys for digest in key.digests]

    def find(self, secret: bytes) -> Caller | None:
        """Returns whose key it is.

        It is compared with all, whatever it is, so that the time tells nothing of any.
        """
        digest = digest_of(secret)
        found = [caller for known, caller in self._callers if hmac.compare_digest(known, digest)]
        return found[0] if found else None
