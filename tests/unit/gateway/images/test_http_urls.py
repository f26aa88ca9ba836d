"""http(s) URLs: read as browsers do, and their targets left as they are."""

from __future__ import annotations

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.http_urls import join, read_http_url
from protos.errors import InvalidArgumentError


@pytest.mark.parametrize(
    ("url", "host", "port", "target"),
    [
        ("http://a.test/b%2Cc%7E?d=%2F#e", "a.test", 80, "/b%2Cc%7E?d=%2F"),
        ("HTTPS://A.test", "a.test", 443, "/"),
        ("https://a.test:8443?b?c", "a.test", 8443, "/?b?c"),
        ("http://a.test/b?", "a.test", 80, "/b?"),
        ("http://a.test#@b.test/", "a.test", 80, "/"),
        ("http://a.test?@b.test/", "a.test", 80, "/?@b.test/"),
        ("http://b\u00fccher.test/\u00fc", "xn--bcher-kva.test", 80, "/%C3%BC"),
        ("http://\u2460\u2461\u2466.0.0.1/", "127.0.0.1", 80, "/"),
        ("http://127\u30020\u30020\u30021/", "127.0.0.1", 80, "/"),
        ("http://[::1]:80/", "::1", 80, "/"),
        ("\n\x00 ht\ttp://a.te\nst/b\r\n", "a.test", 80, "/b"),
        ("http://a_b.test./?\\", "a_b.test.", 80, "/?\\"),
    ],
)
def test_a_url_has_its_parts(url: str, host: str, port: int, target: str) -> None:
    read = read_http_url(url)
    assert (read.raw_host, read.port, read.raw_path_qs) == (host, port, target)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http:\\\\127.0.0.1/", "form http"),
        ("http:/127.0.0.1/", "form http"),
        ("http:127.0.0.1", "form http"),
        ("http:///127.0.0.1/", "form http"),
        ("ftp://a.test/", "form http"),
        ("http://b.test\\@127.0.0.1/", "user name"),
        ("http://b.test:80@127.0.0.1/", "user name"),
        ("http://@127.0.0.1/", "user name"),
        ("http://%31%32%37.0.0.1/", "must not hold '%'"),
        ("http://127.0.0.1%2f.test/", "must not hold '%'"),
        ("http://[fe80::1%25eth0]/", "must not hold '%'"),
        ("http://a.test\\.b/", "must not hold '%' or '.'"),
        ("http://a.test/a\\b", "write %5C"),
        ("http://a.test :80/", "malformed"),
        ("http://a.test:99999/", "malformed"),
        ("http://a.test:http/", "malformed"),
        ("http://a..test/", "malformed"),
        ("http://xn--/", "malformed"),
        ("http://a\uff0fb.test/", "malformed"),
        ("http://a\uff20b.test/", "malformed"),
        ("http://" + "a" * 64 + ".test/", "malformed"),
        ("http://a.test/\ud800", "malformed"),
    ],
)
def test_what_could_mean_another_host_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence):
        read_http_url(url)


@given(st.text(st.characters(codec="utf-8"), max_size=40))
def test_a_target_never_leaves_its_line(text: str) -> None:
    try:
        url = read_http_url(f"http://a.test/{text}")
    except InvalidArgumentError:
        assert "\\" in text
        return
    assert url.raw_host == "a.test"
    assert all("!" <= character <= "~" for character in url.raw_path_qs)
    if text.isascii() and text.isprintable() and not {" ", "#"} & set(text):
        assert url.raw_path_qs == f"/{text}"


@pytest.mark.parametrize(
    ("location", "there"),
    [
        ("https://b.test/%2c?%2f#x", "https://b.test/%2c?%2f"),
        ("//b.test/%2c", "http://b.test/%2c"),
        ("/%2c/../%7E", "http://a.test:81/%2c/../%7E"),
        ("b%2C", "http://a.test:81/v%2C/b%2C"),
        ("./b;c", "http://a.test:81/v%2C/b;c"),
        ("../b?%2c/..", "http://a.test:81/b?%2c/.."),
        ("?b", "http://a.test:81/v%2C/w?b"),
        ("#b", "http://a.test:81/v%2C/w"),
        (" /\udcff\u00fc ", "http://a.test:81/%FF%C3%BC"),
    ],
)
def test_a_redirect_leads_where_it_says(location: str, there: str) -> None:
    url = read_http_url("http://a.test:81/v%2C/w?x=/y/z")
    assert str(join(url, location)) == str(yarl.URL(there, encoded=True))


@pytest.mark.parametrize(
    "location", ["ftp://b.test/", "data:,x", "\\\\b.test/", "http://u@b.test/"]
)
def test_a_redirect_elsewhere_is_refused(location: str) -> None:
    with pytest.raises(InvalidArgumentError):
        join(read_http_url("http://a.test/"), location)
