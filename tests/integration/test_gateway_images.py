"""Images by URL through the gateway: what is fetched, and what never is."""

from __future__ import annotations

import asyncio
import base64
import socket
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import ResolveResult
from aiohttp.resolver import AsyncResolver

from gateway.images import fetcher
from tests.fakes import chat_body, happening, stack
from tests.integration.name_server import name_server
from tests.integration.picture_server import LOCAL, PARAM, PICTURE, ask, picture_server, user

pytestmark = pytest.mark.timeout(30)


async def test_a_picture_is_fetched() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        assert await ask(gateway, pictures.url()) == (200, None)
    assert gateway.vision.requests[0].image == PICTURE


async def test_fetches_carry_no_cookies_and_use_no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    resolve_to(monkeypatch, "127.0.0.1")
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        for _ in range(2):
            assert await ask(gateway, pictures.url(host="pictures.invalid")) == (200, None)
    assert len(pictures.requests) == 2
    assert not any("Cookie" in request.headers for request in pictures.requests)


async def test_pictures_are_fetched_at_once() -> None:
    """Each picture comes only when both are asked for."""
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        url = pictures.url("/together")
        assert await ask(gateway, url, url) == (200, None)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "127.0.0.1.",
        "①②⑦.⓪.⓪.①",
        "localhost",
        "0.0.0.0",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::7f00:1]",
    ],
)
async def test_this_machine_is_not_asked_in_any_spelling(host: str) -> None:
    async with picture_server() as pictures, stack() as gateway:
        answer = await ask(gateway, pictures.url(host=host))
    assert answer == (403, ("access_denied", PARAM))
    assert not pictures.requests


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0177.0.0.1", "127.0.0.1."])
async def test_old_spellings_are_refused_even_of_allowed_addresses(host: str) -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        answer = await ask(gateway, pictures.url(host=host))
    assert answer == (403, ("access_denied", PARAM))


@pytest.mark.parametrize("to", ["http://127.0.0.2/", "//[::1]/", "http://127.1/"])
async def test_a_redirect_is_checked_like_the_url(to: str) -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        answer = await ask(gateway, pictures.url(f"/redirect?to={to}"))
    assert answer == (403, ("access_denied", PARAM))


async def test_redirects_are_followed_three_times() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        once = "/redirect?to=/picture"
        assert await ask(gateway, pictures.url(once)) == (200, None)
        pictures.requests.clear()
        answer = await ask(gateway, pictures.url("/loop"))
    assert answer == (400, ("image_fetch_failed", PARAM))
    assert len(pictures.requests) == 4


@pytest.mark.parametrize("to", ["file:///etc/hostname", "ftp://127.0.0.1/", "data:,x", "http://"])
async def test_a_redirect_to_another_scheme_is_refused(to: str) -> None:
    options: dict[str, Any] = {"allowed_private_hosts": LOCAL, "file_root": (Path("/etc"),)}
    async with picture_server() as pictures, stack(**options) as gateway:
        status, error = await ask(gateway, pictures.url(f"/redirect?to={to}"))
    assert (status, error[1]) == (400, PARAM)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/missing", "image_fetch_failed"),
        ("/nowhere", "image_fetch_failed"),
        ("/empty", "invalid_image"),
        ("/endless", "image_too_large"),
        ("/slow", "image_fetch_failed"),
    ],
)
async def test_what_is_no_picture_is_refused(path: str, code: str) -> None:
    options: dict[str, Any] = {
        "allowed_private_hosts": LOCAL,
        "image_fetch_seconds": 0.5,
        "max_image_byte_count": 1_000_000,
    }
    async with picture_server() as pictures, stack(**options) as gateway:
        answer = await ask(gateway, pictures.url(path))
    assert answer == (400, (code, PARAM))


async def test_a_picture_too_large_is_refused() -> None:
    options: dict[str, Any] = {"allowed_private_hosts": LOCAL}
    async with picture_server() as pictures:
        async with stack(max_image_byte_count=len(PICTURE), **options) as gateway:
            assert await ask(gateway, pictures.url()) == (200, None)
        async with stack(max_image_byte_count=len(PICTURE) - 1, **options) as gateway:
            answer = await ask(gateway, pictures.url())
    assert answer == (400, ("image_too_large", PARAM))


async def test_the_vision_services_limit_holds_too() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        gateway.vision.max_image_byte_count = len(PICTURE) - 1
        answer = await ask(gateway, pictures.url())
    assert answer == (400, ("image_too_large", PARAM))
    assert not gateway.vision.requests


async def test_pictures_of_a_request_have_a_limit_together() -> None:
    options: dict[str, Any] = {
        "allowed_private_hosts": LOCAL,
        "max_total_image_byte_count": 2 * len(PICTURE) + 10,
    }
    data = "data:image/png;base64," + base64.b64encode(PICTURE).decode()
    async with picture_server() as pictures, stack(**options) as gateway:
        assert await ask(gateway, pictures.url(), data) == (200, None)
        status, error = await ask(gateway, pictures.url(), data, data)
    assert (status, error[0]) == (400, "image_too_large")


async def test_a_packed_body_is_not_unpacked() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        await ask(gateway, pictures.url("/gzip"))
    assert pictures.requests[0].headers["Accept-Encoding"] == "identity"
    assert gateway.vision.requests[0].image.startswith(b"\x1f\x8b")


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Makes every name stand for these addresses."""

    async def resolve(
        self: AsyncResolver, host: str, port: int = 0, family: int = 0
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    monkeypatch.setattr(AsyncResolver, "resolve", resolve)


async def test_a_name_is_dialled_by_the_address_that_was_checked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No DNS knows the name: only the address that the check saw can lead to the server."""
    resolve_to(monkeypatch, "127.0.0.1")
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        assert await ask(gateway, pictures.url(host="pictures.invalid")) == (200, None)
    assert pictures.requests[0].host == f"pictures.invalid:{pictures.port}"


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["::1"]])
async def test_a_name_with_a_private_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    resolve_to(monkeypatch, *addresses)
    async with picture_server() as pictures, stack() as gateway:
        answer = await ask(gateway, pictures.url(host="pictures.invalid"))
    assert answer == (403, ("access_denied", PARAM))
    assert not pictures.requests


async def test_an_allowed_name_may_have_a_private_address(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1")
    names = ("pictures.invalid",)
    async with picture_server() as pictures, stack(allowed_private_hosts=names) as gateway:
        assert await ask(gateway, pictures.url(host="Pictures.invalid")) == (200, None)
        assert (await ask(gateway, pictures.url(host="other.invalid")))[0] == 403


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("http://user:word@127.0.0.1/", "invalid_value"),
        ("http://user@127.0.0.1/", "invalid_value"),
        ("http://", "invalid_value"),
        ("http:/picture", "invalid_value"),
        ("http://127.0.0.1:99999/", "invalid_value"),
        ("http://a\\@127.0.0.1/", "invalid_value"),
        ("http://127.0.0.1:9/", "image_fetch_failed"),
        ("http://" + "a" * 70 + ".invalid/", "invalid_value"),
        ("ftp://127.0.0.1/", "invalid_value"),
        ("picture.png", "invalid_value"),
        ("", "invalid_value"),
        ("data:image/png;base64,!!!!", "invalid_image"),
        ("data:image/png;base64,", "invalid_image"),
        ("data:image/png,", "invalid_image"),
    ],
)
async def test_a_url_that_cannot_be_read_is_refused(url: str, code: str) -> None:
    async with stack(allowed_private_hosts=LOCAL) as gateway:
        assert await ask(gateway, url) == (400, (code, PARAM))


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,cGlj\ndHVy\r\nZQ==\n",
        "\n data:image/png;base64, cGljdHVyZQ",
        "DATA:image/png;charset=utf-8;base64,cGljdHVyZQ%3D%3D",
        "data:,pict%75re",
    ],
)
async def test_a_data_url_may_be_written_as_browsers_read_it(url: str) -> None:
    async with stack() as gateway:
        assert await ask(gateway, url) == (200, None)
    assert gateway.vision.requests[0].image == b"picture"


async def test_the_second_picture_is_named() -> None:
    good = "data:image/png;base64,aGk="
    async with stack() as gateway:
        _, error = await ask(gateway, good, "data:image/png;base64,aGkhb")
    assert error == ("invalid_image", "messages[0].content[1].image_url.url")


async def test_files_are_read_below_the_root_only(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a.png").write_bytes(PICTURE)
    (tmp_path / "b.png").write_bytes(PICTURE)
    async with stack(file_root=(tmp_path / "root",)) as gateway:
        assert await ask(gateway, f"file://{tmp_path}/root/a.png") == (200, None)
        denied = await ask(gateway, f"file://{tmp_path}/b.png")
    assert gateway.vision.requests[0].image == PICTURE
    assert denied == (403, ("access_denied", PARAM))


@pytest.mark.parametrize("header", [None, "X-Forwarded-For", "Forwarded", "Via"])
async def test_the_roots_are_told_to_this_machine_only(header: str | None, tmp_path: Path) -> None:
    """A proxy on this machine brings the requests of others."""
    body = chat_body(messages=user("\nfile:///etc/hostname"))
    headers = {header: "192.0.2.1"} if header else {}
    async with stack(file_root=(tmp_path, Path("/usr"))) as gateway:
        path = "/v1/chat/completions"
        async with gateway.http.post(path, json=body, headers=headers) as response:
            message = (await response.json())["error"]["message"]
    assert response.status == 403
    assert "which its option file_root names" in message
    assert (f": {tmp_path}, /usr" in message) == (header is None)


async def test_without_a_root_no_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    async with stack() as gateway:
        assert await ask(gateway, f"file://{tmp_path}/a.png") == (403, ("access_denied", PARAM))


async def test_a_name_of_one_part_is_resolved(monkeypatch: pytest.MonkeyPatch) -> None:
    """As the names of services in Docker."""
    async with (
        name_server(monkeypatch, "127.0.0.1") as names,
        picture_server() as pictures,
        stack(allowed_private_hosts=LOCAL) as gateway,
    ):
        assert await ask(gateway, pictures.url(host="pictures")) == (200, None)
        assert await ask(gateway, *[pictures.url(host="pictures")] * 3) == (200, None)
    assert set(names.questions) == {"pictures"}
    assert len(names.questions) <= 2  # for addresses of both kinds


async def test_a_name_of_this_machine_needs_no_name_server(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with (
        name_server(monkeypatch) as names,
        picture_server() as pictures,
        stack(allowed_private_hosts=("localhost",)) as gateway,
    ):
        assert await ask(gateway, pictures.url(host="localhost")) == (200, None)
    assert not names.questions


@pytest.mark.slow
async def test_a_silent_name_server_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    async with name_server(monkeypatch) as names, stack(image_fetch_seconds=5) as gateway:
        slow = [
            asyncio.create_task(
                ask(gateway, *[f"http://{request}-{name}.example/" for name in range(16)])
            )
            for request in range(4)
        ]
        while len(set(names.questions)) < 64:  # noqa: ASYNC110 - not all of them make an event
            await asyncio.sleep(0.01)
        start = time.monotonic()
        for _ in range(5):
            assert (await gateway.chat())[0] == 200
            assert await ask(gateway, "data:image/png;base64,aGk=") == (200, None)
        assert time.monotonic() - start < 4
        assert not any(request.done() for request in slow)
        answers = await asyncio.gather(*slow)
    assert {(status, error[0]) for status, error in answers} == {(400, "image_fetch_failed")}


async def test_hosts_of_a_request_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        name_server(monkeypatch, "127.0.0.1"),
        picture_server() as pictures,
        stack(allowed_private_hosts=LOCAL, max_image_host_count=2) as gateway,
    ):
        urls = [pictures.url(host=host) for host in ("a.test", "b.test", "a.test")]
        assert await ask(gateway, *urls) == (200, None)
        status, body = await gateway.chat(
            messages=user(*urls, pictures.url(host="c.test")),
        )
        redirected = pictures.url(f"/redirect?to={pictures.url(host='c.test')}", "a.test")
        _, error = await ask(gateway, *urls, redirected)
    assert (status, body["error"]["code"]) == (400, "invalid_value")
    assert body["error"]["message"] == "the image URLs lead to 3 hosts; the limit is 2"
    assert error[0] == "invalid_value"


async def test_silent_servers_hold_up_the_images_of_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All shared connections wait for them, and a request's own connection is enough."""
    async with (
        name_server(monkeypatch, "127.0.0.1"),
        picture_server() as pictures,
        stack(allowed_private_hosts=LOCAL, image_fetch_seconds=20) as gateway,
    ):
        slow = [
            asyncio.create_task(ask(gateway, *[pictures.url("/slow", f"{index}.test")] * 64))
            for index in range(10)
        ]
        try:
            while len(pictures.requests) < 128 + 10:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            asking = ask(gateway, *[pictures.url()] * 8)
            assert await asyncio.wait_for(asking, 10) == (200, None)
            assert not any(request.done() for request in slow)
        finally:
            for request in slow:
                request.cancel()
            await asyncio.gather(*slow, return_exceptions=True)


async def test_a_file_system_that_hangs_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    reading, released = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()

    def hang(*_: object, **__: object) -> bytes:
        loop.call_soon_threadsafe(reading.set)
        released.wait()
        return b""

    monkeypatch.setattr(fetcher, "read_file_url", hang)
    async with stack(file_root=(tmp_path,), image_fetch_seconds=1) as gateway:
        slow = asyncio.create_task(ask(gateway, *[f"file://{tmp_path}/a.png"] * 64))
        await happening(reading)
        assert await ask(gateway, "data:image/png;base64,aGk=") == (200, None)
        assert not slow.done()
        status, error = await slow
        released.set()
    assert (status, error[0]) == (400, "image_fetch_failed")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("file:///" + "a/" * 10_000_000, "URL has 20000008 characters; the limit is 16384"),
        ("http://127.0.0.1/" + "a" * 20_000, "URL has 20017 characters; the limit is 16384"),
        ("file:///" + "a/" * 3000, "path has 6001 bytes; the limit is 4096"),
        ("file:///" + "../" * 300, "path leads through 301 folders; the limit is 256"),
    ],
)
async def test_long_urls_are_refused_before_anything_is_done_with_them(
    url: str, sentence: str, tmp_path: Path
) -> None:
    limits: dict[str, Any] = {"max_body_byte_count": 1 << 26, "max_text_byte_count": 1 << 26}
    async with stack(file_root=(tmp_path,), **limits) as gateway:
        status, body = await gateway.chat(messages=user(url))
    assert status == 400
    assert sentence in body["error"]["message"]
    assert body["error"]["param"] == PARAM
