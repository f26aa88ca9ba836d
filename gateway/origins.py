"""Web pages of other origins (CORS): which may call, and what their browsers are told.

The answer to a preflight says nothing of private networks: browsers have given the header for it up
and ask the person instead. Nor does it allow credentials: an API key travels in a header that the
page sets itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from aiohttp import hdrs

ANY = "*"
# What browsers say of requests that pages of other origins make; they let no page change it. They
# say it to https and to this machine, which is where pages of strangers find a gateway.
FETCH_SITE = "Sec-Fetch-Site"
FOREIGN = ("cross-site", "same-site")
# "null" is what pages without an origin send, e.g. those of file://.
ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^\s/?#@,*]+|null|\*")
METHODS = "GET, HEAD, POST"
USUAL_HEADERS = "authorization, content-type, x-api-key, x-request-id"
HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+( *, *[A-Za-z0-9!#$%&'*+.^_`|~-]+)*")
LIMITED = ("requests", "tokens", "images")
EXPOSED_HEADERS = ", ".join(
    [
        *("x-request-id", "request-id", "retry-after", "retry-after-ms"),
        *("x-internvl-ignored", "server-timing"),
        *(f"x-ratelimit-{what}-{of}" for of in LIMITED for what in ("limit", "remaining", "reset")),
    ]
)
# How long a browser keeps the answer to a preflight; Chrome at most two hours.
PREFLIGHT_SECONDS = 7200


class AllowedOrigins:
    """The origins whose pages may call; their names are compared as browsers send them."""

    def __init__(self, entries: Sequence[str]) -> None:
        """Takes "*" for all, and origins, e.g. "https://chat.example.com".

        Raises:
            ValueError: an entry is no origin.
        """
        for entry in entries:
            if not ORIGIN.fullmatch(entry):
                raise ValueError(
                    f"{entry!r} is not '*', and no origin as browsers write it,"
                    " e.g. 'https://chat.example.com' or 'http://localhost:3000'"
                )
        self._entries = frozenset(entries)

    def answer_headers(self, request_headers: Mapping[str, str]) -> dict[str, str]:
        """Returns what an answer must have, so that a page of an allowed origin may read it."""
        if not self._entries:
            return {}
        origin = request_headers.get(hdrs.ORIGIN, "")
        headers: dict[str, str] = {} if ANY in self._entries else {hdrs.VARY: hdrs.ORIGIN}
        if self._allows(origin):
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = ANY if ANY in self._entries else origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = EXPOSED_HEADERS
        return headers

    def preflight_headers(self, request_headers: Mapping[str, str]) -> dict[str, str] | None:
        """Returns what the answer to an OPTIONS request must have besides.

        None: it is no preflight, or of an origin that is not allowed.
        """
        is_preflight = hdrs.ACCESS_CONTROL_REQUEST_METHOD in request_headers
        if not (is_preflight and self._allows(request_headers.get(hdrs.ORIGIN, ""))):
            return None
        asked = request_headers.get(hdrs.ACCESS_CONTROL_REQUEST_HEADERS, "").strip()
        return {
            hdrs.ACCESS_CONTROL_ALLOW_METHODS: METHODS,
            # All that are asked for: clients send headers of their own, e.g. x-stainless-lang.
            hdrs.ACCESS_CONTROL_ALLOW_HEADERS: asked
            if HEADER_NAMES.fullmatch(asked)
            else USUAL_HEADERS,
            hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_SECONDS),
        }

    def is_foreign(self, request_headers: Mapping[str, str]) -> bool:
        """Says whether a page of another origin asks, and of none that may.

        Some requests need no preflight: a text/plain body of JSON is one.
        """
        site = request_headers.get(FETCH_SITE, "")
        return site in FOREIGN and not self._allows(request_headers.get(hdrs.ORIGIN, ""))

    def _allows(self, origin: str) -> bool:
        return bool(origin) and (ANY in self._entries or origin in self._entries)
