"""What a client is told when something fails, and that nothing goes on for a client that left."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
import structlog.testing
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.dialects import chat
from gateway.events import TextDelta
from gateway.openai.answers import StreamedAnswer
from gateway.services.llm import Generation
from gateway.services.messages import EmbeddingPiece
from gateway.services.routing import OFFER_COUNT
from protos.errors import (
    ContextLengthError,
    DataLossError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidImageError,
    OverloadedError,
    PlaceholderMismatchError,
    ServiceError,
    UnavailableError,
)
from protos.internvl.v1 import tensor_pb2, vision_pb2
from protos.process.settings import MIB
from tests.fakes import (
    Gateway,
    ScriptedLLM,
    ScriptedVision,
    VisionContext,
    chat_body,
    happening,
    running_llm,
    stack,
)
from tests.request_lines import gateway_lines

CHAT = "/v1/chat/completions"
pytestmark = pytest.mark.timeout(30)  # most of these would otherwise wait for ever when they fail


def image_messages(*images: bytes, url: str = "") -> list[dict[str, Any]]:
    urls = [
        url or "data:image/png;base64," + base64.b64encode(image).decode()
        for image in images or (b"a cat",)
    ]
    parts = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("failure", "status", "param", "code", "retry_after"),
    [
        (InvalidArgumentError("x", field="sampling.top_p"), 400, "top_p", "invalid_value", None),
        (InvalidArgumentError("x", field="stop.strings[0]"), 400, "stop", "invalid_value", None),
        (
            PlaceholderMismatchError("x", field="chat.messages[0].parts"),
            400,
            "messages[0].content",
            "placeholder_mismatch",
            None,
        ),
        (ContextLengthError("40000 > 32768"), 400, None, "context_length_exceeded", None),
        (OverloadedError("x", retry_after=2.5), 429, None, "rate_limit_exceeded", "3"),
        (OverloadedError("x"), 429, None, "rate_limit_exceeded", "1"),
        (DataLossError("x"), 500, None, "checksum_mismatch", None),
        (ServiceError("x"), 500, None, "server_error", None),
    ],
)
async def test_a_failure_before_the_first_token_is_an_http_status(
    failure: ServiceError,
    status: int,
    param: str | None,
    code: str,
    retry_after: str | None,
    stream: bool,
) -> None:
    # Of every offer of the call: a full queue, or a service that is gone, is not asked alone.
    llm = ScriptedLLM(failures=[failure] * OFFER_COUNT)
    async with stack(llm=llm) as gateway:
        body = chat_body(stream=stream)
        async with gateway.http.post(CHAT, json=body) as response:
            assert response.status == status
            assert response.content_type == "application/json"
            assert response.headers.get("Retry-After") == retry_after
            error = (await response.json())["error"]
    assert (error["message"], error["param"], error["code"]) == (failure.message, param, code)


async def test_a_failure_in_the_stream_is_an_event_and_the_end() -> None:
    """Read from the socket: the answer ends whole, so that the connection can be used again."""
    llm = ScriptedLLM(late_failure=EngineDeadError("x"))
    async with stack(llm=llm) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        body = json.dumps(chat_body(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n0\r\n\r\n")).decode()  # the last chunk
        writer.close()
        await writer.wait_closed()
    assert answer.startswith("HTTP/1.1 200")
    assert '"content":"lo"' in answer
    assert "[DONE]" not in answer
    last = [line for line in answer.splitlines() if line.startswith("data: ")][-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "engine_dead")
    assert error["message"] == "the engine of the LLM service failed"


async def test_a_late_failure_without_stream_is_an_http_status() -> None:
    async with stack(llm=ScriptedLLM(late_failure=ServiceError("x"))) as gateway:
        status, body = await gateway.chat()
    assert (status, body["error"]["code"]) == (500, "server_error")


@pytest.mark.parametrize(("down", "name"), [("vision", "vision"), ("llm", "LLM")])
async def test_a_service_that_is_down_is_named(down: str, name: str) -> None:
    async with stack(closed=[down]) as gateway:
        body = chat_body(messages=image_messages())
        async with gateway.http.post(CHAT, json=body) as response:
            assert response.status == 503
            assert response.headers["Retry-After"] == "1"
            message = (await response.json())["error"]["message"]
    assert message == f"the {name} service is unavailable"


async def test_models_need_the_llm_service() -> None:
    async with stack(closed=["llm"]) as gateway:
        status, body = await gateway.get("/v1/models")
    assert (status, body["error"]["code"]) == (503, "service_unavailable")


async def test_a_service_that_comes_back_is_found() -> None:
    llm = ScriptedLLM()
    async with running_llm(llm) as address:
        port = int(address.rpartition(":")[2])
    async with stack(llm_address=address) as gateway:
        assert (await gateway.chat())[0] == 503
        async with running_llm(llm, port):
            while (await gateway.chat())[0] == 503:
                continue
            assert (await gateway.chat())[0] == 200


async def test_a_service_that_comes_back_with_another_model_is_noticed() -> None:
    llm = ScriptedLLM()
    async with stack(llm=llm) as gateway:
        assert (await gateway.chat())[0] == 200
        llm.failures = [UnavailableError("x")] * 3
        assert (await gateway.chat())[0] == 503
        llm.model = "other"
        assert (await gateway.chat())[0] == 404


async def test_an_unavailable_service_is_tried_again() -> None:
    vision = ScriptedVision(failures=[UnavailableError("x")])
    llm = ScriptedLLM(failures=[UnavailableError("x")])
    async with stack(vision, llm) as gateway:
        status, _ = await gateway.chat(messages=image_messages(b"x" * 2_000_000))
    assert status == 200
    assert len(vision.requests) == 2
    assert len(llm.starts) == 2


async def test_once_the_service_has_answered_nothing_is_tried_again() -> None:
    llm = ScriptedLLM(failure_after_wanted=UnavailableError("x"))
    llm.failure_signal.set()
    async with stack(llm=llm) as gateway:
        status, _ = await gateway.chat()
    assert status == 503
    assert len(llm.starts) == 1


async def test_a_vision_failure_ends_the_generation() -> None:
    vision = ScriptedVision(failures=[InvalidImageError("not an image", field="image")])
    async with stack(vision) as gateway:
        status, body = await gateway.chat(messages=image_messages(b"bad"))
        await happening(gateway.llm.cancelled)
    assert status == 400
    assert body["error"]["code"] == "invalid_image"
    assert body["error"]["message"] == "not an image"
    assert body["error"]["param"] == "messages[0].content[0].image_url.url"


async def test_a_refused_tile_cap_is_named() -> None:
    vision = ScriptedVision(failures=[InvalidArgumentError("x", field="max_tile_count")])
    async with stack(vision) as gateway:
        _, body = await gateway.chat(messages=image_messages())
    assert body["error"]["param"] == "messages[0].content[0].image_url.max_dynamic_patch"


async def test_a_full_vision_service_is_429() -> None:
    vision = ScriptedVision(failures=[OverloadedError("x", retry_after=4)] * OFFER_COUNT)
    async with stack(vision) as gateway:
        body = chat_body(messages=image_messages())
        async with gateway.http.post(CHAT, json=body) as response:
            assert (response.status, response.headers["Retry-After"]) == (429, "4")


async def test_both_services_are_told_how_long_a_request_may_wait() -> None:
    async with stack(max_queue_seconds=2.5, spill_queue_seconds=9) as gateway:
        assert (await gateway.chat(messages=image_messages()))[0] == 200
        assert (await gateway.chat())[0] == 200
        (request,) = gateway.vision.requests
        assert request.max_queue_seconds == 2.5
        assert [start.max_queue_seconds for start in gateway.llm.starts] == [2.5, 2.5]


async def test_one_bad_image_ends_the_encoding_of_the_others() -> None:
    vision = ScriptedVision(failures=[InvalidImageError("x")], together_count=2, stalls=True)
    async with stack(vision) as gateway:
        status, _ = await gateway.chat(messages=image_messages(b"bad", b"good"))
        assert status == 400
        await happening(vision.cancelled)


class FailingLater(ScriptedVision):
    """Fails a bad image while a good one's embedding waits to be read."""

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        if request.image == b"bad":
            await asyncio.sleep(0.3)
            raise InvalidImageError("x")
        async with aclosing(super().EncodeImage(request, context)) as responses:
            async for response in responses:
                yield response


async def test_one_bad_image_is_told_of_while_the_others_are_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A write that is cut off ends its call: who reads there is told before anybody else."""
    send = Generation.send

    async def slow_to_end(self: Generation, image_index: int, piece: EmbeddingPiece) -> None:
        try:
            await send(self, image_index, piece)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)
            raise

    monkeypatch.setattr(Generation, "send", slow_to_end)
    vision = FailingLater(embedding_byte_count=8 * MIB)
    async with stack(vision, ScriptedLLM(reading_seconds=5)) as gateway:
        status, body = await gateway.chat(messages=image_messages(b"bad", b"good"))
    assert (status, body["error"]["code"]) == (400, "invalid_image")


async def test_a_failure_of_the_llm_service_ends_an_encoding_that_would_never_end() -> None:
    vision = ScriptedVision(stalls=True)
    llm = ScriptedLLM(failure_after_wanted=ServiceError("x"), failure_signal=vision.stalled)
    async with stack(vision, llm) as gateway:
        status, body = await gateway.chat(messages=image_messages())
        assert (status, body["error"]["message"]) == (500, "x")
        await happening(vision.cancelled)


@pytest.mark.parametrize("failure", [OverloadedError("x"), UnavailableError("x")], ids=repr)
async def test_a_call_that_was_refused_is_offered_once_more(failure: ServiceError) -> None:
    async with stack(
        ScriptedVision(failures=[failure]), ScriptedLLM(failures=[failure])
    ) as gateway:
        assert (await gateway.chat(messages=image_messages()))[0] == 200
        assert [len(gateway.vision.requests), len(gateway.llm.starts)] == [2, 2]
        first, second = gateway.vision.requests
        assert first.image == second.image


async def test_what_has_begun_is_never_sent_once_more() -> None:
    llm = ScriptedLLM(late_failure=UnavailableError("x"))
    async with stack(llm=llm) as gateway:
        assert (await gateway.chat())[0] == 503
        assert len(llm.starts) == 1


async def test_another_model_behind_the_vision_service_fails_nothing() -> None:
    async with stack() as gateway:
        assert (await gateway.chat(messages=image_messages(b"1")))[0] == 200
        gateway.vision.recipe = b"s" * 32
        assert (await gateway.chat(messages=image_messages(b"2")))[0] == 200
        assert gateway.vision.requests[-1].expected_recipe_sha256 == gateway.vision.recipe


OLD_CHUNK = vision_pb2.EncodeImageResponse.FromString(b"\x12\x02\x12\0")  # field 2 once was one
CHUNK = vision_pb2.EncodeImageResponse(embedding_chunk=tensor_pb2.EmbeddingChunk(data=b"x"))
NOT_COMPLETE = "the vision service ended the call before an embedding was complete"


@dataclass
class BrokenVision(ScriptedVision):
    """Sends a header and these responses, and ends the call."""

    responses: Sequence[vision_pb2.EncodeImageResponse] = ()

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        async with aclosing(super().EncodeImage(request, context)) as responses:
            yield await anext(responses)
        for response in self.responses:
            yield response


@pytest.mark.parametrize(
    ("responses", "sentence"),
    [
        ([OLD_CHUNK], "the vision service speaks another version of the contract"),
        ([vision_pb2.EncodeImageResponse()], "the vision service speaks another version"),
        ([], NOT_COMPLETE),
        ([CHUNK], NOT_COMPLETE),
    ],
)
async def test_a_vision_service_that_breaks_the_contract_is_named(
    responses: list[vision_pb2.EncodeImageResponse], sentence: str
) -> None:
    async with stack(BrokenVision(responses=responses)) as gateway:
        status, body = await gateway.chat(messages=image_messages())
    assert status == 500
    assert body["error"]["message"].startswith(sentence)


async def test_an_embedding_of_another_image_is_never_passed_on() -> None:
    async with stack(ScriptedVision(wrong_id=True)) as gateway:
        status, body = await gateway.chat(messages=image_messages())
    assert (status, body["error"]["code"]) == (500, "checksum_mismatch")
    assert not gateway.llm.held


@pytest.mark.parametrize("stage", ["fetch", "encode", "generate"])
async def test_the_deadline_is_504_at_every_stage(stage: str) -> None:
    vision = ScriptedVision(stalls=stage == "encode")
    llm = ScriptedLLM(stalls=stage == "generate")
    async with (
        silent_server() as (url, _, _),
        stack(vision, llm, request_seconds=0.3, allowed_private_hosts=("127.0.0.1",)) as gateway,
    ):
        messages = image_messages(url=url if stage == "fetch" else "")
        status, body = await gateway.chat(messages=messages)
    assert (status, body["error"]["code"]) == (504, "deadline_exceeded")


async def test_the_stage_that_hangs_is_named() -> None:
    async with stack(ScriptedVision(stalls=True), request_seconds=0.3) as gateway:
        _, body = await gateway.chat(messages=image_messages())
    assert body["error"]["message"] == "the images were not encoded within the request's time"


async def test_a_body_that_does_not_come_is_408() -> None:
    async with stack(body_seconds=0.1) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n".encode())
        answer = (await reader.readuntil(b"}}")).decode()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith("HTTP/1.1 408")
    assert json.loads(answer.partition("\r\n\r\n")[2])["error"]["code"] == "request_timeout"


@pytest.mark.parametrize(
    ("field", "value", "param"),
    [
        ("messages", [1] * 30_000, "messages[0]"),
        ("messages", [{"role": "user", "content": "x"}] * 5000, "messages"),
        ("stop", [1] * 30_000, "stop[0]"),
        ("stop_token_ids", ["x"] * 30_000, "stop_token_ids[0]"),
    ],
)
async def test_long_lists_are_refused_at_their_first_fault(
    field: str, value: list[Any], param: str
) -> None:
    async with stack() as gateway:
        status, body = await gateway.chat(**{field: value})
    assert (status, body["error"]["param"]) == (400, param)


async def test_a_client_that_reads_no_answer_is_cut_off_after_the_deadline() -> None:
    """More text than the sockets' buffers hold: the place gets free."""
    llm = ScriptedLLM(texts=["x" * 100_000] * 500)
    async with stack(llm=llm, request_seconds=0.1, max_request_count=1) as gateway:
        port = int(gateway.url.rpartition(":")[2])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1000)
        body = json.dumps(chat_body(stream=True)).encode()
        head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        while await _status(gateway) != 429:
            continue
        while await _status(gateway) == 429:
            continue
        writer.transport.abort()


async def _status(gateway: Gateway) -> int:
    """Returns the status of an answer; 0 where the connection was cut off at its deadline."""
    try:
        return (await gateway.chat(n=2))[0]
    except aiohttp.ServerDisconnectedError:
        return 0


@asynccontextmanager
async def silent_server() -> AsyncIterator[tuple[str, asyncio.Event, asyncio.Event]]:
    """Serves a picture that never comes; yields its URL, and the events `asked` and `left`."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def never(_: web.Request) -> web.Response:
        asked.set()
        try:
            await asyncio.Event().wait()
        finally:
            left.set()
        return web.Response()

    app = web.Application()
    app.router.add_get("/", never)
    server = TestServer(app, host="127.0.0.1")
    await server.start_server(shutdown_timeout=0.1)
    try:
        yield str(server.make_url("/")), asked, left
    finally:
        await server.close()


async def leave(gateway: Gateway, asked: asyncio.Event, **body: Any) -> None:
    """Sends a request, and breaks the connection off when the event has come."""
    request = asyncio.create_task(gateway.read_chat(**body))
    await happening(asked)
    request.cancel()
    await asyncio.gather(request, return_exceptions=True)


async def test_a_client_that_leaves_ends_the_fetch() -> None:
    async with (
        silent_server() as (url, asked, left),
        stack(allowed_private_hosts=("127.0.0.1",)) as gateway,
    ):
        await leave(gateway, asked, messages=image_messages(url=url))
        await happening(left)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_encoding(stream: bool) -> None:
    async with stack(ScriptedVision(stalls=True)) as gateway:
        await leave(gateway, gateway.vision.stalled, messages=image_messages(), stream=stream)
        await happening(gateway.vision.cancelled)
        await happening(gateway.llm.cancelled)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_generation(stream: bool) -> None:
    async with stack(llm=ScriptedLLM(stalls=True)) as gateway:
        await leave(gateway, gateway.llm.stalled, stream=stream)
        await happening(gateway.llm.cancelled)


async def test_a_client_that_leaves_is_logged_as_499() -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(llm=ScriptedLLM(stalls=True)) as gateway:
            await leave(gateway, gateway.llm.stalled)
            await happening(gateway.llm.cancelled)
    assert [line["status"] for line in gateway_lines(logs)] == [499]


async def test_an_unknown_model_is_404_before_anything_is_fetched() -> None:
    async with stack() as gateway:
        status, body = await gateway.chat(model="gpt-4", messages=image_messages())
    assert status == 404
    error = body["error"]
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "'gpt-4'" in error["message"]
    assert gateway.vision.info_count == 0


async def test_300_images_are_refused_before_any_is_fetched() -> None:
    async with (
        silent_server() as (url, asked, _),
        stack(allowed_private_hosts=("127.0.0.1",)) as gateway,
    ):
        messages = image_messages(*[b""] * 300, url=url)
        status, body = await gateway.chat(messages=messages)
    assert status == 400
    assert body["error"]["param"] == "messages"
    assert body["error"]["message"] == "the request has 300 images; the limit is 64"
    assert not asked.is_set()


async def test_messages_too_long_for_any_context_are_refused() -> None:
    async with stack() as gateway:
        messages = [{"role": "user", "content": "a" * 5_000_000}]
        status, body = await gateway.chat(messages=messages)
    assert (status, body["error"]["code"]) == (400, "context_length_exceeded")
    assert not gateway.llm.starts


async def test_a_body_too_large_is_413() -> None:
    async with stack(max_body_byte_count=1000) as gateway:
        status, body = await gateway.chat(user="x" * 1000)
    assert (status, body["error"]["code"]) == (413, "request_too_large")
    assert "1000" in body["error"]["message"]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not valid JSON: it is empty"),
        (b"{", "not valid JSON: it ends within an object, at line 1, column 1"),
        (b"\xff\xfe", "not UTF-8: the byte 0xff at line 1, column 1"),
    ],
)
async def test_a_body_that_is_not_json_is_400(data: bytes, reason: str) -> None:
    async with stack() as gateway, gateway.http.post(CHAT, data=data) as response:
        assert response.status == 400
        assert (await response.json())["error"]["message"] == f"the body is {reason}"


async def test_a_malformed_field_is_400_with_its_path() -> None:
    async with stack() as gateway:
        messages = [{"role": "user", "content": "Hi"}, {"role": "wizard", "content": "Hi"}]
        status, body = await gateway.chat(messages=messages)
    assert (status, body["error"]["param"]) == (400, "messages[1].role")


async def test_an_unsupported_field_is_400_with_its_name() -> None:
    async with stack() as gateway:
        status, body = await gateway.chat(best_of=4)
    error = body["error"]
    assert (status, error["param"], error["code"]) == (400, "best_of", "unsupported_field")


async def test_other_paths_and_methods() -> None:
    async with stack() as gateway:
        status, body = await gateway.get("/v1/embeddings")
        assert (status, body["error"]["code"]) == (404, "path_not_found")
        async with gateway.http.get(CHAT) as response:
            assert (response.status, response.headers["Allow"]) == (405, "POST")
            assert (await response.json())["error"]["code"] == "method_not_allowed"


async def test_a_request_too_many_is_429() -> None:
    async with stack(llm=ScriptedLLM(stalls=True), max_request_count=1) as gateway:
        first = asyncio.create_task(gateway.chat())
        await happening(gateway.llm.stalled)
        status, body = await gateway.chat()
        gateway.llm.released.set()
        assert (await first)[0] == 200
    assert (status, body["error"]["code"]) == (429, "rate_limit_exceeded")


async def test_a_bug_is_500_without_its_text(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("the secret of line 7")

    monkeypatch.setattr(chat, "parse_chat_request", broken)
    with structlog.testing.capture_logs() as logs:
        async with stack() as gateway:
            status, body = await gateway.chat()
    assert (status, body["error"]["code"]) == (500, "server_error")
    assert "secret" not in body["error"]["message"]
    assert [line["event"] for line in logs] == ["bug", "request"]


async def test_a_bug_in_the_stream_breaks_the_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: StreamedAnswer, event: object) -> bytes:
        if isinstance(event, TextDelta) and event.text == "lo":
            raise RuntimeError
        return b"data: x\n\n"

    monkeypatch.setattr(StreamedAnswer, "event", broken)
    with structlog.testing.capture_logs() as logs:
        async with (
            stack() as gateway,
            gateway.http.post(CHAT, json=chat_body(stream=True)) as response,
        ):
            with pytest.raises(aiohttp.ClientPayloadError):
                await response.read()
    (line,) = gateway_lines(logs)
    assert (line["status"], line["error"]) == (500, "INTERNAL")
