"""The paths that are served, and what is told to a request that misses them."""

from __future__ import annotations

import difflib
import re

from aiohttp import hdrs, web

HEALTH_PATHS = frozenset({"/health", "/health/live", "/health/ready", "/ping"})
PAGE_PATHS = frozenset({"/", "/docs", "/page/{path}"})
DOCUMENT_PATH = "/openapi.json"
# Of these nobody is asked for a key.
OPEN_PATHS = HEALTH_PATHS | PAGE_PATHS | {DOCUMENT_PATH}
# Asked for all the time, and of no weight.
QUIET_PATHS = OPEN_PATHS | {"/v1/status", "/load"}
VERSION = "/v1"
MAX_SHOWN_LENGTH = 100
UNSAFE = re.compile(r"[^A-Za-z0-9/._~%:@!$&'()*+,;=-]")
# Of difflib's ratios: "/v1/chat/completion" has 0.97, "/v1/images" 0.82 with messages.
LEAST_LIKENESS = 0.85


def guidance(request: web.Request) -> str:
    """Returns what is told to a request of an unknown path, or with a method that its path lacks.

    The query is left out, for keys may stand in it.
    """
    method, path = request.method, request.rel_url.raw_path
    error = request.match_info.http_exception
    if isinstance(error, web.HTTPMethodNotAllowed):
        methods = " or ".join(sorted(error.allowed_methods))
        return f"{_shown(path)} does not take {method}; it takes {methods}"
    served = {each.canonical: _methods(each) for each in request.app.router.resources()}
    guess = _like(path, list(served))
    hint = f"did you mean {served[guess]} {guess}? This" if guess else "this"
    everything = ", ".join(f"{methods} {known}" for known, methods in served.items())
    return f"there is no {method} {_shown(path)}; {hint} server has {everything}"


def _shown(path: str) -> str:
    path = UNSAFE.sub("?", path)
    return path if len(path) <= MAX_SHOWN_LENGTH else f"{path[:MAX_SHOWN_LENGTH]}..."


def _methods(resource: web.AbstractResource) -> str:
    """Returns the methods of a path; HEAD goes without saying."""
    return " or ".join(sorted({route.method for route in resource} - {hdrs.METH_HEAD}))


def _like(path: str, known_paths: list[str]) -> str:
    """Returns the known path that a client has probably meant; empty where none is like it."""
    path = re.sub(r"/{2,}", "/", path[-2 * MAX_SHOWN_LENGTH :]).rstrip("/").lower()
    for known in known_paths:
        if path.endswith(known.removeprefix(VERSION)):  # behind another prefix, or none
            return known
    return next(iter(difflib.get_close_matches(path, known_paths, 1, LEAST_LIKENESS)), "")
