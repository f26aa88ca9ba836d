"""GET /openapi.json."""

from __future__ import annotations

import hashlib
import json

from aiohttp import ETag, web

from gateway.openapi.document import Operations, document
from gateway.paths import DOCUMENT_PATH


def document_route(operations: Operations, *, asks_for_keys: bool) -> web.RouteDef:
    """Returns the route of the document, which is made here, once."""
    described = document(operations, asks_for_keys=asks_for_keys)
    data = json.dumps(described, ensure_ascii=False, separators=(",", ":")).encode()
    etag = ETag(hashlib.sha256(data).hexdigest()[:32])

    async def answer(request: web.Request) -> web.Response:
        known = {tag.value for tag in request.if_none_match or ()}
        if known & {etag.value, "*"}:
            response = web.Response(status=304)
        else:
            response = web.Response(body=data, content_type="application/json", charset="utf-8")
        response.etag = etag
        return response

    return web.get(DOCUMENT_PATH, answer)
