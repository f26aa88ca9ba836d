"""Who sends a request: the key in its headers, and what is told to a client without one."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from aiohttp import hdrs

from gateway.access.callers import Caller
from gateway.access.keyring import KeyRing
from protos.errors import UnauthenticatedError

if TYPE_CHECKING:
    from multidict import MultiMapping

# Where Anthropic's clients put their key; those of OpenAI have it in Authorization.
KEY_HEADER = "x-api-key"
SCHEME = "bearer"
# What is longer is no key, and not worth a digest.
MAX_KEY_LENGTH = 512

AuthenticationFault = Literal["missing", "malformed", "unknown", "expired"]
FAULTS: tuple[AuthenticationFault, ...] = get_args(AuthenticationFault)
SENTENCES: Mapping[AuthenticationFault, str] = MappingProxyType(
    {
        "missing": "an API key is needed: send it as Authorization: Bearer KEY, or as x-api-key",
        "malformed": (
            "the headers hold no API key, or several: send one, as Authorization: Bearer KEY or as"
            " x-api-key, or the same as both"
        ),
        "unknown": "the API key is not one of this server's",
        "expired": "the API key has expired",
    }
)


class InvalidKeyError(UnauthenticatedError):
    """A request has no key of ours.

    Attributes:
        fault: what is wrong.
        caller: whose key has expired.
    """

    reason = "INVALID_API_KEY"

    def __init__(self, fault: AuthenticationFault, caller: Caller | None = None) -> None:
        super().__init__(SENTENCES[fault])
        self.fault = fault
        self.caller = caller


def authenticated(ring: KeyRing, headers: MultiMapping[str]) -> Caller:
    """Returns whose key is in a request's headers.

    Raises:
        InvalidKeyError: there is none, or not one, or it is nobody's, or no longer.
    """
    secret, fault = _presented(headers)
    caller = ring.find(secret.encode("utf-8", "surrogateescape"))  # takes its time for none, too
    if fault is not None:
        raise InvalidKeyError(fault)
    if caller is None:
        raise InvalidKeyError("unknown")
    expires = caller.policy.expires
    if expires is not None and datetime.now(timezone.utc) >= expires:
        raise InvalidKeyError("expired", caller)
    return caller


def _presented(headers: MultiMapping[str]) -> tuple[str, AuthenticationFault | None]:
    """Returns the key that is presented, or what is wrong with it; an absurd one is nobody's."""
    authorizations = headers.getall(hdrs.AUTHORIZATION, [])
    keys = headers.getall(KEY_HEADER, [])
    if not authorizations and not keys:
        return "", "missing"
    if len(authorizations) > 1 or len(keys) > 1:
        return "", "malformed"
    secrets = {*map(_bearer, authorizations), *keys}
    secret = secrets.pop()
    if secrets or not secret:
        return "", "malformed"
    return (secret, None) if len(secret) <= MAX_KEY_LENGTH else ("", None)


def _bearer(authorization: str) -> str:
    """Returns the key in a value of Authorization; empty if there is none."""
    scheme, _, secret = authorization.partition(" ")
    return secret.lstrip(" ") if scheme.lower() == SCHEME else ""
