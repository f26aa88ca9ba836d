"""Image URLs on their way: what servers are asked for, through which proxy, and why it failed."""

from __future__ import annotations

import asyncio
import socket
import ssl
from functools import partial
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.images import downloads
from tests.fakes import stack
from tests.integration.image_proxy import image_proxy
from tests.integration.name_server import name_server
from tests.integration.picture_server import (
    CERTIFICATES,
    LOCAL,
    PARAM,
    PICTURE,
    ask,
    picture_server,
    reason,
    user,
)

pytestmark = pytest.mark.timeout(30)
# Paths and queries as stores of pictures sign them.
SIGNED = [
    "/bucket/a%2Cb%7Ec%20d%2Be.png?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=AKID%2F20260101"
    "%2Feu-central-1%2Fs3%2Faws4_request&X-Amz-SignedHeaders=host&X-Amz-Signature=0a%2f",
    "/b/o/pictures%2Fcat.png?alt=media&X-Goog-Credential=a%40b.iam.gserviceaccount.com%2F2026",
    "/c/p.png?sv=2025-01-05&st=2026-01-01T00%3A00%3A00Z&sig=x%2Fy%2Bz%3D&sp=r",
    "/p%28l%29.jpg?Policy=eyJ_&Signature=aB-~cd~_&Key-Pair-Id=K2JC",
    "/a//b/../c/./d;v=1?",
    "/a'(b)*!?c={d}|e^f`[g]\"<h>&i=:@/?j",
    "/%e4%bd%a0%E5%A5%BD?q=%zz%",
]


@pytest.fixture
def trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes gateways trust the tests' authority."""
    context = ssl.create_default_context(cafile=CERTIFICATES / "authority.pem")
    connector = partial(downloads._Connector, ssl=context)
    monkeypatch.setattr(downloads, "_Connector", connector)


async def test_a_server_is_asked_for_what_was_written() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        for target in SIGNED:
            await ask(gateway, pictures.url(target) + "#fragment")
            await ask(gateway, f"\n {pictures.url(target)} ")
    assert [request.raw_path for request in pictures.requests] == [
        target for target in SIGNED for _ in range(2)
    ]


@pytest.mark.parametrize(
    ("written", "asked"),
    [
        ("/ä b?ü=\u00a0", "/%C3%A4%20b?%C3%BC=%C2%A0"),
        ("?a=%2C", "/?a=%2C"),
        ("/a\r\nX-Injected: y\tz", "/aX-Injected:%20yz"),
        ("/a\x00\x0b\x7f", "/a%00%0B%7F"),
    ],
)
async def test_what_a_request_line_cannot_hold_is_escaped(written: str, asked: str) -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        await ask(gateway, pictures.url(written))
    (request,) = pictures.requests
    assert request.raw_path == asked
    assert "X-Injected" not in request.headers


@pytest.mark.parametrize(
    ("location", "asked"),
    [
        ("/to%2C%7E?sig=%2F%3D#x", "/to%2C%7E?sig=%2F%3D"),
        ("to%2C?sig=%2f", "/r/s/to%2C?sig=%2f"),
        ("../to%2C", "/r/to%2C"),
        ("?sig=%2f", "/r/s/redirect?sig=%2f"),
        ("ä b", "/r/s/%C3%A4%20b"),
    ],
)
async def test_a_redirect_is_followed_as_it_was_written(location: str, asked: str) -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        pictures.location = location
        await ask(gateway, pictures.url("/r/s/redirect?a=%2C"))
    assert [request.raw_path for request in pictures.requests] == ["/r/s/redirect?a=%2C", asked]


async def test_a_name_beyond_ascii_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        name_server(monkeypatch, "127.0.0.1") as names,
        picture_server() as pictures,
        stack(allowed_private_hosts=LOCAL) as gateway,
    ):
        assert await ask(gateway, pictures.url(host="bücher.test")) == (200, None)
    assert set(names.questions) == {"xn--bcher-kva.test"}
    assert pictures.requests[0].host.startswith("xn--bcher-kva.test:")


@pytest.mark.parametrize("url", ["ht\ttp://127.0.0.1/", " HTTP://127.1"])
async def test_this_machine_is_not_asked_across_line_ends(url: str) -> None:
    async with stack() as gateway:
        assert await ask(gateway, url) == (403, ("access_denied", PARAM))


async def test_a_url_of_another_form_is_told_what_is_wrong() -> None:
    bare = "the image's URL is base64 alone; write data:image/png;base64, before it"
    forms = "an image's URL must start with data:, file://, http:// or https://; this one "
    sentences = {
        "iVBORw0KGgoAAAANSUhEUgAA": bare,
        "/9j/4AAQSkZJRgABAQ": bare,
        "\nAAAA" + "abc/" * 100: bare,
        "/home/me/cat.png": forms + "has no scheme",
        "s3://bucket/cat.png": forms + "starts with s3:",
        "http:\\\\127.0.0.1/": "the image's URL must have the form http(s)://host/path",
    }
    async with stack() as gateway:
        for url, sentence in sentences.items():
            status, body = await gateway.chat(messages=user(url))
            assert (status, body["error"]["param"]) == (400, PARAM)
            assert body["error"]["message"] == sentence


async def test_a_private_network_cannot_be_explored() -> None:
    """Whether something listens there, or what it answers, changes nothing."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with (
        picture_server() as pictures,
        stack(allowed_private_hosts=("pictures.test",)) as gateway,
    ):
        urls = [pictures.url(), pictures.url("/status/404"), f"https://127.0.0.1:{port}/"]
        answers = [await gateway.chat(messages=user(url)) for url in [*urls, "http://10.0.0.1/"]]
    assert not pictures.requests
    assert {status for status, _ in answers} == {403}
    assert len({body["error"]["message"] for _, body in answers}) == 1


async def test_servers_are_told_who_asks() -> None:
    options: dict[str, Any] = {"allowed_private_hosts": LOCAL}
    async with picture_server() as pictures:
        async with stack(**options) as gateway:
            await ask(gateway, pictures.url())
        async with stack(image_user_agent="pictures/1 (me@example.com)", **options) as gateway:
            await ask(gateway, pictures.url())
    agents = [request.headers["User-Agent"] for request in pictures.requests]
    assert agents[0].startswith("internvl-serving/")
    assert agents[1] == "pictures/1 (me@example.com)"


async def test_an_answer_that_is_no_picture_says_what_it_is() -> None:
    sentences = [
        ("/status/401", "answered with status 401 (Unauthorized): it wants a login"),
        ("/status/403", "answered with status 403 (Forbidden): it wants other rights"),
        ("/status/404", "answered with status 404 (Not Found): there is nothing at this URL"),
        ("/status/503", "answered with status 503 (Service Unavailable)"),
        ("/status/599", "answered with status 599"),
        ("/nowhere", "redirects, but does not say where"),
        ("/redirect?to=ftp://x/", "redirects to what is no URL of an image: the image's URL must"),
        ("/redirect?to=http://u:p@x/", "no URL of an image: the image's URL must not hold a user"),
        ("/loop", "redirects more than 3 times"),
        ("/page", "is that of a web page (HTML), not of a picture"),
        ("/cut", f"the image's server ended after 100 of {len(PICTURE)} bytes of the image"),
        ("/redirect?to=/cut", f"after 100 of {len(PICTURE)} bytes of the image (after 1 redirect)"),
    ]
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        for path, sentence in sentences:
            assert sentence in await reason(gateway, pictures.url(path))


async def test_a_picture_with_the_type_of_a_page_is_taken() -> None:
    async with picture_server() as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        assert await ask(gateway, pictures.url("/typed-as-page")) == (200, None)


async def test_lateness_says_what_was_waited_for() -> None:
    options: dict[str, Any] = {"allowed_private_hosts": LOCAL, "image_fetch_seconds": 0.3}
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    with full, socket.create_connection(full.getsockname()):
        async with picture_server() as pictures, stack(**options) as gateway:
            unanswered = await reason(gateway, pictures.url("/slow"))
            unfinished = await reason(gateway, pictures.url("/cut?waits=1"))
            port = full.getsockname()[1]
            unconnected = await reason(gateway, f"http://127.0.0.1:{port}/")
    late = "the image did not arrive within 0.3 s: "
    assert unanswered == late + "its server had not answered"
    assert unfinished == late + f"only 100 of {len(PICTURE)} bytes had come"
    assert unconnected == late + "there was no connection to its server yet"


async def test_a_server_that_does_not_talk_http_is_told() -> None:
    async def close(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n\r\n")
        writer.close()

    sentences, port = [], 0
    async with stack(allowed_private_hosts=LOCAL) as gateway:
        for answer in (close, greet):
            async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
                port = server.sockets[0].getsockname()[1]
                sentences.append(await reason(gateway, f"http://127.0.0.1:{port}/"))
        refused = await reason(gateway, f"http://127.0.0.1:{port}/")
    assert sentences[0] == "the image's server ended the connection without an answer"
    assert sentences[1] == "the image's server answered with what is not HTTP"
    assert refused == "the image's server refused the connection: nothing listens at its port"


async def test_a_name_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = SecretStr("http://no-such-proxy.invalid:3128")
    async with name_server(monkeypatch, "") as names:
        async with stack() as gateway:
            unknown = await reason(gateway, "http://no-such-host.invalid/a.png")
        async with stack(image_proxy=proxy) as gateway:
            unknown_proxy = await reason(gateway, "http://no-such-host.invalid/a.png")
    assert set(names.questions) == {"no-such-host.invalid", "no-such-proxy.invalid"}
    assert unknown == "the host of the image's URL has no address: no name server knows it"
    assert unknown_proxy == "the proxy for images has no address: no name server knows it"


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize(
    ("certificate", "sentence"),
    [
        ("expired", "the certificate of the image's server has expired"),
        ("self_signed", "the certificate of the image's server is self-signed"),
        ("other_host", "the certificate of the image's server is for another address"),
        ("", "the image's server speaks no TLS at this port; is it an http:// URL?"),
    ],
)
async def test_a_server_that_is_not_trusted_says_why(certificate: str, sentence: str) -> None:
    async with (
        picture_server(certificate) as pictures,
        stack(allowed_private_hosts=LOCAL) as gateway,
    ):
        pictures.scheme = "https"
        assert await reason(gateway, pictures.url()) == sentence


async def test_an_authority_that_is_not_known_is_told() -> None:
    async with picture_server("good") as pictures, stack(allowed_private_hosts=LOCAL) as gateway:
        assert "comes from an authority that is not trusted here" in await reason(
            gateway, pictures.url()
        )


@pytest.mark.usefixtures("trusted")
@pytest.mark.parametrize("certificate", ["", "good"])
async def test_a_proxy_fetches_what_it_can_reach(certificate: str) -> None:
    """It alone knows the name; its own name or address needs no permission."""
    async with (
        picture_server(certificate) as pictures,
        image_proxy(pictures.port) as proxy,
        stack(image_proxy=SecretStr(f"http://me:word@localhost:{proxy.port}")) as gateway,
    ):
        target = "/picture?sig=%2F%7E"
        assert await ask(gateway, pictures.url(target, "pictures.test")) == (200, None)
    (head,) = proxy.heads
    authority = f"pictures.test:{pictures.port}"
    line = f"CONNECT {authority}" if certificate else f"GET http://{authority}{target}"
    assert head.startswith(f"{line} HTTP/1.1\r\n".encode())
    assert b"Proxy-Authorization: Basic bWU6d29yZA==" in head
    (request,) = pictures.requests
    assert request.raw_path == target
    assert request.host == authority
    if certificate:
        assert "Proxy-Authorization" not in request.headers


@pytest.mark.parametrize("host", ["127.0.0.1", "0x7f.1", "2130706433", "169.254.169.254", "[::1]"])
async def test_a_proxy_is_not_asked_for_private_addresses(host: str) -> None:
    async with (
        image_proxy(9) as proxy,
        stack(image_proxy=SecretStr(f"http://127.0.0.1:{proxy.port}")) as gateway,
    ):
        assert await ask(gateway, f"http://{host}/") == (403, ("access_denied", PARAM))
    assert not proxy.heads


async def test_a_proxy_that_fails_is_told_without_its_name() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    async with picture_server() as pictures, image_proxy(pictures.port) as proxy:
        async with stack(image_proxy=SecretStr(f"http://me:word@127.0.0.1:{port}")) as gateway:
            gone = await reason(gateway, "http://pictures.test/")
        url = SecretStr(f"http://127.0.0.1:{proxy.port}")
        async with stack(image_proxy=url) as gateway:
            login = await reason(gateway, "http://pictures.test/status/407")
            proxy.status = 502
            refused = await reason(gateway, "https://pictures.test/")
    assert gone == "the proxy for images refused the connection: nothing listens at its port"
    assert login.endswith(
        "status 407 (Proxy Authentication Required): the proxy for images wants a login"
    )
    assert refused.startswith("asked for the image's server, the proxy for images answered with")
