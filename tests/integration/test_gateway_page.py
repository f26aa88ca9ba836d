"""The page over HTTP: what is sent, to whom in which form, and what cannot be had."""

from __future__ import annotations

import asyncio
import gzip

import pytest
import structlog.testing
from multidict import CIMultiDictProxy

from gateway.local.health import page_url
from gateway.page.files import INDEX, page_files
from gateway.page.handlers import CONTENT_SECURITY_POLICY
from tests.fakes import Gateway, stack
from tests.integration.test_gateway_connections import answer_to
from tests.request_lines import gateway_lines

LIBRARY = "/page/libraries/marked.esm.js"
FONT = "/page/libraries/inter-latin.woff2"
PLAIN = {"Accept-Encoding": "identity"}
TYPES = {
    "/": "text/html; charset=utf-8",
    "/page/index.html": "text/html; charset=utf-8",
    "/page/page.css": "text/css; charset=utf-8",
    "/page/dom.js": "text/javascript; charset=utf-8",
    LIBRARY: "text/javascript; charset=utf-8",
    "/page/libraries/marked.license.txt": "text/plain; charset=utf-8",
    FONT: "font/woff2",
}
TRICKS = (
    "/page/",
    "/page/..",
    "/page/../app.py",
    "/page/%2e%2e/files.py",
    "/page/..%2ffiles.py",
    "/page/libraries/../../files.py",
    "/page/libraries",
    "/page//etc/passwd",
    "/page/%2Fetc%2Fpasswd",
    "/page/dom.js%00",
    "/page/DOM.js",
    "/page/dom.js/",
    "/page/..\\files.py",
    "/index.html",
    "/static/dom.js",
)


def check_headers(headers: CIMultiDictProxy[str]) -> None:
    assert headers["Content-Security-Policy"] == CONTENT_SECURITY_POLICY
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["Cross-Origin-Opener-Policy"] == "same-origin"
    assert headers["Permissions-Policy"].startswith("camera=(self)")
    assert headers["Cache-Control"] == "no-cache"
    assert headers["Vary"] == "Accept-Encoding"
    assert headers["ETag"].startswith('"')


async def test_each_file_is_sent_as_what_it_is() -> None:
    async with stack() as gateway:
        for path, kind in TYPES.items():
            expected = page_files()[path.removeprefix("/page/") if path != "/" else INDEX]
            async with gateway.http.get(path, headers=PLAIN) as response:
                assert (response.status, response.headers["Content-Type"]) == (200, kind)
                assert await response.read() == expected.plain.data
                assert "Content-Encoding" not in response.headers
                check_headers(response.headers)


async def test_gzip_where_it_is_taken_and_saves_anything() -> None:
    data = page_files()["libraries/marked.esm.js"].plain.data
    request = f"GET {LIBRARY} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept-Encoding: "
    async with stack() as gateway:
        answer = await answer_to(gateway, f"{request}br, gzip;q=0.5\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert b"Content-Encoding: gzip" in head
        assert f"Content-Length: {len(body)}".encode() in head
        assert gzip.decompress(body) == data
        answer = await answer_to(gateway, f"{request}br, gzip;q=0\r\n\r\n".encode())
        assert answer.partition(b"\r\n\r\n")[2] == data
        async with gateway.http.get(FONT, headers={"Accept-Encoding": "gzip"}) as response:
            assert "Content-Encoding" not in response.headers


@pytest.mark.parametrize("accepted", ["identity", "gzip"])
async def test_what_a_browser_has_still_is_not_sent_again(accepted: str) -> None:
    headers = {"Accept-Encoding": accepted}
    async with stack() as gateway:
        async with gateway.http.head("/", headers=headers) as response:
            assert (response.status, await response.read()) == (200, b"")
            assert int(response.headers["Content-Length"]) > 0
            check_headers(response.headers)
            tag = response.headers["ETag"]
        for known in (tag, f'"old", W/{tag}', "*"):
            headers["If-None-Match"] = known
            async with gateway.http.get("/", headers=headers) as response:
                assert (response.status, await response.read()) == (304, b"")
                assert response.headers["ETag"] == tag
                check_headers(response.headers)
        headers["If-None-Match"] = '"old"'
        async with gateway.http.get("/", headers=headers) as response:
            assert response.status == 200


async def test_no_other_file_can_be_had() -> None:
    async with stack() as gateway:
        for path in TRICKS:
            request = f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
            answer = await answer_to(gateway, request.encode())
            assert answer.split()[1] in (b"404", b"400"), path
            assert b"application/json" in answer, path
            assert b"marked.esm.js" not in answer  # nor is a list of them


async def test_without_the_page_its_paths_are_unknown() -> None:
    async with stack(page=False) as gateway:
        for path in ("/", LIBRARY):
            status, answer = await gateway.get(path)
            assert (status, answer["error"]["code"]) == (404, "path_not_found")
            assert "/page/{path}" not in answer["error"]["message"]
        assert (await gateway.get("/v1/models"))[0] == 200


async def test_a_page_is_spoken_of_where_there_is_one() -> None:
    async with stack() as gateway:
        assert await asyncio.to_thread(page_url, gateway.url) == f"{gateway.url}/"
    assert await asyncio.to_thread(page_url, gateway.url) == ""
    async with stack(page=False) as gateway:
        assert await asyncio.to_thread(page_url, gateway.url) == ""


async def test_a_page_of_another_origin_changes_the_answer_in_a_second_way() -> None:
    headers = PLAIN | {"Origin": "https://chat.example.com"}
    async with (
        stack(allowed_origins=("https://chat.example.com",)) as gateway,
        gateway.http.get("/", headers=headers) as response,
    ):
        assert response.headers.getall("Vary") == ["Accept-Encoding", "Origin"]


async def levels(gateway: Gateway, path: str) -> list[str]:
    with structlog.testing.capture_logs() as logs:
        async with gateway.http.get(path) as response:
            await response.read()
    return [line["log_level"] for line in gateway_lines(logs)]


async def test_the_log_has_a_line_of_each_only_when_it_is_to_have_all() -> None:
    async with stack() as gateway:
        for path in ("/", LIBRARY, "/v1/status"):
            assert await levels(gateway, path) == ["debug"]
        assert await levels(gateway, "/v1/tiles?width=9&height=9") == ["info"]
