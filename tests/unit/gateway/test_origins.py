"""Which pages of other origins may call, and what their browsers are told."""

from __future__ import annotations

import pytest

from gateway.origins import AllowedOrigins

PAGE = "https://chat.example.com"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}


@pytest.mark.parametrize(
    "entry", ["*", "null", PAGE, "http://localhost:3000", "app://obsidian.md", "http://[::1]:80"]
)
def test_origins_are_taken(entry: str) -> None:
    assert AllowedOrigins([entry]).answer_headers({"Origin": entry})


@pytest.mark.parametrize(
    "entry", ["", "chat.example.com", f"{PAGE}/", "https://*.example.com", "HTTPS://x", "https://"]
)
def test_what_no_browser_sends_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="no origin as browsers write it"):
        AllowedOrigins([entry])


@pytest.mark.parametrize(
    ("entries", "origin", "allowed", "vary"),
    [
        ([], PAGE, None, None),
        ([PAGE], PAGE, PAGE, "Origin"),
        ([PAGE, "http://b"], "http://b", "http://b", "Origin"),
        ([PAGE], "https://evil.example.com", None, "Origin"),
        ([PAGE], f"{PAGE}:444", None, "Origin"),
        ([PAGE], "null", None, "Origin"),
        ([PAGE], None, None, "Origin"),
        (["*"], PAGE, "*", None),
        (["*", PAGE], "null", "*", None),
        (["*"], None, None, None),
    ],
)
def test_answers_name_the_allowed_origin(
    entries: list[str], origin: str | None, allowed: str | None, vary: str | None
) -> None:
    request = {} if origin is None else {"Origin": origin}
    headers = AllowedOrigins(entries).answer_headers(request)
    assert headers.get("Access-Control-Allow-Origin") == allowed
    assert headers.get("Vary") == vary
    assert ("Access-Control-Expose-Headers" in headers) == (allowed is not None)
    assert "Access-Control-Allow-Credentials" not in headers


@pytest.mark.parametrize("asked", ["authorization, x-stainless-lang", "content-type,x-a"])
def test_a_preflight_allows_the_headers_that_are_asked_for(asked: str) -> None:
    request = PREFLIGHT | {"Access-Control-Request-Headers": asked}
    headers = AllowedOrigins([PAGE]).preflight_headers(request)
    assert headers is not None
    assert headers["Access-Control-Allow-Headers"] == asked
    assert headers["Access-Control-Allow-Methods"] == "GET, HEAD, POST"


@pytest.mark.parametrize("asked", ["", "x y", "a;b"])
def test_a_preflight_that_asks_for_no_header_hears_the_usual_ones(asked: str) -> None:
    request = PREFLIGHT | {"Access-Control-Request-Headers": asked}
    headers = AllowedOrigins(["*"]).preflight_headers(request)
    assert headers is not None
    assert "authorization" in headers["Access-Control-Allow-Headers"]


@pytest.mark.parametrize(
    ("entries", "request_headers"),
    [
        ([], PREFLIGHT),
        ([PAGE], PREFLIGHT | {"Origin": "https://evil.example.com"}),
        ([PAGE], {"Origin": PAGE}),
        (["*"], {"Access-Control-Request-Method": "POST"}),
    ],
)
def test_other_requests_get_no_preflight(
    entries: list[str], request_headers: dict[str, str]
) -> None:
    assert AllowedOrigins(entries).preflight_headers(request_headers) is None
