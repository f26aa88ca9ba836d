"""The document tells the truth: of its paths, its examples, and of whatever schemathesis sends."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from pydantic import TypeAdapter

from gateway.access.new_keys import new_key
from gateway.app import DIALECTS, OPERATIONS
from gateway.openapi.document import document
from tests.fakes import stack

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
checks = pytest.importorskip("schemathesis.specs.openapi.checks")
CHECKS = [
    schemathesis.checks.not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    checks.unsupported_method,
]
DOCUMENT = document(OPERATIONS)
schema = schemathesis.openapi.from_dict(DOCUMENT)
# The thousands of requests at the bounds of the fields are a test of their own.
schema.config.phases.update(phases=["examples", "fuzzing"])
at_its_bounds = schemathesis.pytest.from_fixture("bounded_schema")
GUARDED = document(OPERATIONS, asks_for_keys=True)
guarded_schema = schemathesis.openapi.from_dict(GUARDED)
KEY = new_key()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with served() as url:
        yield url


@pytest.fixture(scope="module")
def guarded_url() -> Iterator[str]:
    with served(api_key=KEY) as url:
        yield url


@contextmanager
def served(**settings: Any) -> Iterator[str]:
    """Serves scripted services behind a gateway, on a thread: schemathesis asks from this one."""
    ready: Future[str] = Future()
    leaving = threading.Event()

    async def serve() -> None:
        async with stack(**settings) as gateway:
            ready.set_result(gateway.url)
            await asyncio.to_thread(leaving.wait)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    try:
        yield ready.result(timeout=30)
    finally:
        leaving.set()
        thread.join()


@pytest.fixture(scope="module")
def bounded_schema() -> Any:
    """Makes its requests when they are asked for, and not while tests are collected."""
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    schema.config.phases.update(phases=["coverage"])
    return schema


async def test_the_document_is_served_and_cached() -> None:
    async with stack() as gateway, gateway.http.get("/openapi.json") as response:
        assert await response.json() == DOCUMENT
        headers = {"If-None-Match": response.headers["ETag"]}
        async with gateway.http.get("/openapi.json", headers=headers) as again:
            assert again.status == 304


@pytest.mark.parametrize(
    ("dialect", "name"),
    [(dialect, name) for dialect in DIALECTS for name in dialect.operation.examples],
    ids=lambda value: value if isinstance(value, str) else value.path,
)
async def test_an_example_is_answered_as_the_document_says(dialect: Any, name: str) -> None:
    body = dialect.operation.examples[name]
    async with stack() as gateway, gateway.http.post(dialect.path, json=body) as response:
        text = await response.text()
        assert response.status == 200, text
    described, values = dialect.operation.answer, [text]
    if body.get("stream"):
        described = dialect.operation.event
        values = [line[6:] for line in text.splitlines() if line.startswith("data: {")]
    assert values
    for value in values:
        TypeAdapter(described).validate_json(value, strict=True, extra="forbid")


@schema.parametrize()
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_whatever_is_sent_is_answered_as_the_document_says(case: Any, url: str) -> None:
    check(case, url)


@pytest.mark.slow
@at_its_bounds.parametrize()
@settings(deadline=None, suppress_health_check=list(HealthCheck))
def test_the_bounds_of_all_fields_are_those_of_the_document(case: Any, url: str) -> None:
    check(case, url)


def check(case: Any, url: str) -> None:
    response = case.call(base_url=url)
    case.validate_response(response, checks=CHECKS)
    if response.status_code == 400:
        error = response.json()["error"]
        assert error["message"]


@guarded_schema.include(path=["/v1/models", "/v1/tiles", "/v1/status", "/detokenize"]).parametrize()
@settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck))
def test_with_keys_nothing_is_answered_but_to_who_has_one(case: Any, guarded_url: str) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    response = case.call(base_url=guarded_url, headers=headers)
    case.validate_response(response, checks=[*CHECKS, checks.ignored_auth], headers=headers)
    if "x-api-key" not in response.request.headers:  # of schemathesis' making, and another one
        assert response.status_code != 401


async def test_a_gateway_with_keys_serves_its_own_document() -> None:
    async with stack(api_key=KEY) as gateway:
        assert await gateway.get("/openapi.json") == (200, GUARDED)
