"""The pages over HTTP: GET /, GET /docs and GET /page/{path}."""

from __future__ import annotations

from aiohttp import hdrs, web

from gateway.page.files import DOCS, INDEX, PageFile, page_files

# Scripts, styles and fonts come from here alone, and none stands in the HTML or in an answer's
# text: what a model says can neither run nor call anybody.
CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob:; media-src blob:; object-src 'none';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    hdrs.CACHE_CONTROL: "no-cache",  # kept, and asked for each time whether it is the same still
    hdrs.VARY: hdrs.ACCEPT_ENCODING,
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": (
        "camera=(self), clipboard-write=(self), display-capture=(), geolocation=(), microphone=(),"
        " payment=(), usb=()"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def page_routes() -> list[web.RouteDef]:
    """Returns the pages' routes; HEAD is served beside GET."""
    return [web.get("/", index), web.get("/docs", docs), web.get("/page/{path:.+}", file)]


async def index(request: web.Request) -> web.Response:
    """GET /: the page."""
    return _answer(request, INDEX)


async def docs(request: web.Request) -> web.Response:
    """GET /docs: the page about the API."""
    return _answer(request, DOCS)


async def file(request: web.Request) -> web.Response:
    """GET /page/{path}: what the page is made of."""
    return _answer(request, request.match_info["path"])


def _answer(request: web.Request, path: str) -> web.Response:
    known = page_files().get(path)
    if known is None:
        raise web.HTTPNotFound
    return _response(request, known)


def _response(request: web.Request, file: PageFile) -> web.Response:
    body = file.body(request.headers.get(hdrs.ACCEPT_ENCODING, ""))
    tags = {tag.value for tag in request.if_none_match or ()}
    if tags & {body.etag.value, "*"}:
        response = web.Response(status=304, headers=HEADERS)
    else:
        response = web.Response(
            body=body.data, headers=HEADERS, content_type=file.content_type, charset=file.charset
        )
        if body.coding:
            response.headers[hdrs.CONTENT_ENCODING] = body.coding
    response.etag = body.etag
    return response
