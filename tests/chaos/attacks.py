"""The attacks by name: each is what one client alone may send, and says what came of it."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp
import grpc

from gateway.local.ports import LOOPBACK
from protos.identity import content_digest, recipe_digest
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2, vision_pb2, vision_pb2_grpc
from tests import hostile_pictures
from tests.chaos.clients import CHAT, Plan, about_a_picture
from tests.chaos.ledger import check_error, parsed
from tests.chaos.stack import MODEL, REQUEST_SECONDS
from tests.e2e.questions import zero_rows

MIB = 1024 * 1024
PATIENCE_SECONDS = 2 * REQUEST_SECONDS
# Far less than the engine takes for thousands of tokens.
LEAVING_SECONDS = 10.0
JSON = {"Content-Type": "application/json"}
GENERATE = "/internvl.v1.LLMService/Generate"
UNARY_METHODS = (
    "/internvl.v1.LLMService/GetModelInfo",
    "/internvl.v1.LLMService/GetLoad",
    "/internvl.v1.LLMService/CountTokens",
    "/internvl.v1.VisionService/GetModelInfo",
    "/internvl.v1.VisionService/PlanTiles",
)
MALFORMED = b"\x0a\xff\xff\xff\xff\xff\xff"
# What a call of gRPC may end with, and nobody is alarmed.
TYPED_CODES = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
# Each token may be any number of symbols, nested in any way.
AMBIGUOUS_GRAMMAR = 'start: s\ns: "a" | s s | s s s\n'


@dataclass(frozen=True)
class Target:
    """What is attacked.

    Attributes:
        port: of the gateway.
        vision, llm: addresses of the services, reached past the gateway.
        http: sends to the gateway.
    """

    port: int
    vision: str
    llm: str
    http: aiohttp.ClientSession

    async def post(self, body: bytes, **headers: str) -> str:
        """Sends a chat request; returns its status, once it has ended as a request may.

        Raises:
            ViolationError: by an error that no client can read.
        """
        try:
            async with self.http.post(
                CHAT, data=io.BytesIO(body), headers=JSON | headers
            ) as response:
                answer = await response.read()
        except aiohttp.ClientError as error:  # refused before the body was read
            return type(error).__name__
        if response.status != 200:
            check_error(parsed(answer))
        return str(response.status)

    async def post_all(self, bodies: Sequence[bytes]) -> str:
        """Sends chat requests at once, and returns how many ended in which way."""
        return counted(await asyncio.gather(*map(self.post, bodies)))


Attacking = Coroutine[Any, Any, str]
# What takes long to prepare is ready when the coroutine is there: only the attack is measured.
Attack = Callable[[Target], Attacking]


def counted(ways: Iterable[str]) -> str:
    """Returns "3 x 200, 1 x 429"."""
    return ", ".join(f"{count} x {way}" for way, count in sorted(Counter(ways).items()))


def chat(content: Any = "Hello!", **fields: Any) -> bytes:
    """Returns the body of a chat request."""
    messages = [{"role": "user", "content": content}]
    return json.dumps({"model": MODEL, "messages": messages, "max_tokens": 4} | fields).encode()


def about_urls(urls: Sequence[str]) -> bytes:
    """Returns a chat request about pictures."""
    return chat([{"type": "image_url", "image_url": {"url": url}} for url in urls])


def about_file(file: bytes) -> bytes:
    """Returns a chat request about a picture in its body."""
    return about_urls([f"data:image/png;base64,{base64.b64encode(file).decode()}"])


def progressive_scans(target: Target) -> Attacking:
    """Four JPEGs of 160 KB, each a minute's work for a decoder."""
    sizes = (6320, 6312, 6304, 6296)
    files = [hostile_pictures.progressive_jpeg(edge=edge) for edge in sizes]
    return target.post_all([about_file(file) for file in files])


def fill_bytes(target: Target) -> Attacking:
    """A JPEG of 14 MB of fill bytes."""
    return target.post(about_file(hostile_pictures.filled_jpeg(14 * MIB)))


def run_lengths(target: Target) -> Attacking:
    """A BMP whose 14 MB of run lengths move nowhere."""
    return target.post(about_file(hostile_pictures.run_length_bmp(14 * MIB)))


def empty_chunks(target: Target) -> Attacking:
    """A PNG of a million empty chunks."""
    return target.post(about_file(hostile_pictures.chunky_png(12 * MIB)))


def pixel_bombs(target: Target) -> Attacking:
    """Four PNGs 2 pixels wide and 20,000,000 high, and four WebPs of 34 bytes."""
    high = [hostile_pictures.png(2, 20_000_000 - index) for index in range(4)]
    return target.post_all(
        [about_file(file) for file in (*high, *[hostile_pictures.short_webp()] * 4)]
    )


def host_names(target: Target) -> Attacking:
    """Three requests of 5 KB with 64 host names each, which no name server knows."""
    names = [[f"http://n{index}.r{one}.invalid/" for index in range(64)] for one in range(3)]
    return target.post_all([about_urls(one) for one in names])


async def tarpit_fetches(target: Target) -> str:
    """Two requests with 64 pictures each, on a server that never answers."""
    async with _tarpit() as port:
        urls = [[f"http://{LOOPBACK}:{port}/{one}-{i}" for i in range(64)] for one in range(2)]
        return await target.post_all([about_urls(one) for one in urls])


@asynccontextmanager
async def _tarpit() -> AsyncIterator[int]:
    """Runs a server that takes connections and says nothing; yields its port."""
    kept: list[asyncio.StreamWriter] = []

    async def keep(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)

    server = await asyncio.start_server(keep, LOOPBACK, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in kept:
            writer.close()


def gzip_body(target: Target) -> Attacking:
    """58 KB that unpack to 60 MB."""
    body = gzip.compress(chat("x" * 60_000_000))
    return target.post(body, **{"Content-Encoding": "gzip"})


def unknown_keys(target: Target) -> Attacking:
    """33 MB of keys that nobody knows."""
    keys = b"".join(b',"k%d":0' % index for index in range(2_900_000))
    return target.post(chat()[:-1] + keys + b"}")


def logit_bias_keys(target: Target) -> Attacking:
    """7.9 MB of a logit bias."""
    keys = b",".join(b'"%d":1' % index for index in range(700_000))
    return target.post(chat()[:-1] + b',"logit_bias":{' + keys + b"}}")


def deep_nesting(target: Target) -> Attacking:
    """A megabyte of brackets."""
    return target.post(chat(metadata=0)[:-2] + b"[" * MIB)


def long_path(target: Target) -> Attacking:
    """A file's path of a million folders."""
    return target.post_all([about_urls(["file:///" + "a/" * 1_000_000])] * 2)


async def idle_sockets(target: Target) -> str:
    """A thousand connections that say nothing, and a thousand that never end their head."""
    opened = []
    try:
        for index in range(2000):
            with suppress(OSError):
                reader, writer = await asyncio.open_connection(LOOPBACK, target.port)
                opened.append(writer)
                if index % 2:
                    writer.write(b"GET /health/live HTTP/1.1\r\nx-slow: ")
        await asyncio.sleep(3)
        return f"{len(opened)} connections"
    finally:
        for writer in opened:
            writer.transport.abort()


async def slow_bodies(target: Target) -> str:
    """A hundred bodies that come a byte at a time: more than there are places."""
    opened = [await _sent(target, _head(100_000)) for _ in range(100)]
    for _ in range(6):
        for writer in opened:
            writer.write(b" ")
        await asyncio.sleep(0.5)
    for writer in opened:
        writer.transport.abort()
    return f"{len(opened)} bodies"


def large_bodies(target: Target) -> Attacking:
    """Eight requests of 56 MB."""
    file = base64.b64encode(bytes(14 * MIB)).decode()
    body = about_urls([f"data:image/png;base64,{file}"] * 3)
    return target.post_all([body] * 8)


def ambiguous_grammar(target: Target) -> Attacking:
    """Sixteen choices of a grammar that may be read in more ways than one can count."""
    guide = {"grammar": AMBIGUOUS_GRAMMAR}
    body = chat(structured_outputs=guide, n=16, max_tokens=200, temperature=1, ignore_eos=True)
    return target.post(body)


def slow_schemas(target: Target) -> Attacking:
    """Two dozen schemas that take long to compile."""

    def body(index: int) -> bytes:
        number = {"type": "integer", "multipleOf": 999_983 + 2 * index}
        schema = {"type": "object", "properties": {"a": number}, "required": ["a"]}
        named = {"name": "slow", "schema": schema}
        return chat(response_format={"type": "json_schema", "json_schema": named})

    return target.post_all([body(index) for index in range(24)])


def many_choices(target: Target) -> Attacking:
    """Sixteen requests of sixteen choices each: four times as many as the engine has places."""
    return target.post_all([chat(n=16, max_tokens=20, ignore_eos=True, temperature=1)] * 16)


async def deaf_readers(target: Target) -> str:
    """Ten clients that ask for megabytes of log probabilities, and read none of them."""
    body = chat(n=4, max_tokens=200, ignore_eos=True, logprobs=True, top_logprobs=20, stream=True)
    opened = [await _sent(target, _head(len(body)) + body) for _ in range(10)]
    await asyncio.sleep(5)
    for writer in opened:
        writer.transport.abort()
    return f"{len(opened)} clients"


async def full_pipeline(target: Target) -> str:
    """A client that sends forty long requests in a row on one connection, and goes away."""
    body = chat(max_tokens=4000, ignore_eos=True, stream=True)
    writer = await _sent(target, (_head(len(body)) + body) * 40)
    await asyncio.sleep(2)
    writer.transport.abort()
    async with grpc.aio.insecure_channel(target.llm) as channel:
        await asyncio.wait_for(_idle(channel), LEAVING_SECONDS)
    return "the engine has let go"


async def _idle(channel: grpc.aio.Channel) -> None:
    """Waits until no sequence runs; bystanders' short ones come and go."""
    stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
    while (await stub.GetLoad(llm_pb2.GetLoadRequest())).running_sequence_count:  # noqa: ASYNC110
        await asyncio.sleep(0.01)


async def _sent(target: Target, data: bytes) -> asyncio.StreamWriter:
    """Opens a connection to the gateway, sends, and reads nothing."""
    reader, writer = await asyncio.open_connection(LOOPBACK, target.port, limit=1)
    writer.write(data)
    return writer


def _head(byte_count: int) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {byte_count}\r\n\r\n".encode()


async def silent_calls(target: Target) -> str:
    """Three hundred Generate calls that never send their first message."""
    async with grpc.aio.insecure_channel(target.llm) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        calls = [stub.Generate() for _ in range(300)]
        ends = asyncio.gather(*(_code(call) for call in calls))
        codes = await asyncio.wait_for(ends, PATIENCE_SECONDS)
    assert set(codes) <= TYPED_CODES, counted(code.name for code in codes)
    return counted(code.name for code in codes)


async def _code(call: Any) -> grpc.StatusCode:
    """Returns what a streaming call ended with; what it answers before is not looked at."""
    with suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    code: grpc.StatusCode = await call.code()
    return code


async def malformed_messages(target: Target) -> str:
    """Bytes that are no protobuf, to each method."""
    codes = [await _answer_to_malformed(target, method) for method in [*UNARY_METHODS, GENERATE]]
    assert set(codes) == {grpc.StatusCode.INVALID_ARGUMENT}, counted(code.name for code in codes)
    return counted(code.name for code in codes)


async def _answer_to_malformed(target: Target, method: str) -> grpc.StatusCode:
    async with grpc.aio.insecure_channel(target.vision if "Vision" in method else target.llm) as to:
        if method == GENERATE:
            return await _code(to.stream_stream(method, bytes)(iter([MALFORMED])))
        return await to.unary_unary(method, bytes)(MALFORMED, timeout=PATIENCE_SECONDS).code()


async def poisoned_rows(target: Target) -> str:
    """Rows of zeros under the id of a picture that somebody asks about a moment later."""
    asked = about_a_picture(random.Random(0))
    picture = Plan(0, asked, is_fresh=True).picture()
    code = await _poison(target, picture)
    question = asked.turns[0]
    url = {"url": f"data:image/png;base64,{base64.b64encode(picture).decode()}"}
    parts = [{"type": "text", "text": question.question}, {"type": "image_url", "image_url": url}]
    async with target.http.post(CHAT, data=chat(parts, max_tokens=96), headers=JSON) as response:
        text = (await response.json())["choices"][0]["message"]["content"]
    assert question.is_answered_by(text), f"{text!r} instead of {question.answer!r}"
    return code.name


async def _poison(target: Target, picture: bytes) -> grpc.StatusCode:
    """Uploads zeros as a picture's embedding; returns how the call ended."""
    async with (
        grpc.aio.insecure_channel(target.vision) as vision,
        grpc.aio.insecure_channel(target.llm) as llm,
    ):
        info = await vision_pb2_grpc.VisionServiceStub(vision).GetModelInfo(
            vision_pb2.VisionServiceGetModelInfoRequest()
        )
        name = tensor_pb2.EmbeddingId(
            content_sha256=content_digest(picture),
            recipe_sha256=recipe_digest(info.recipe_sha256, info.default_tile_count),
        )
        start = llm_pb2.GenerateStart(text="<image>", images=[name])
        start.stop.max_token_count = 1
        messages = [llm_pb2.GenerateRequest(start=start), *zero_rows(0, info.hidden_size)]
        return await _code(llm_pb2_grpc.LLMServiceStub(llm).Generate(iter(messages)))


ATTACKS: tuple[Attack, ...] = (
    gzip_body,
    logit_bias_keys,
    deep_nesting,
    poisoned_rows,
    pixel_bombs,
)
# They wait for limits in time, are much work even where all is well, or are like another one.
LONG_ATTACKS: tuple[Attack, ...] = (
    unknown_keys,
    long_path,
    malformed_messages,
    empty_chunks,
    fill_bytes,
    run_lengths,
    progressive_scans,
    host_names,
    tarpit_fetches,
    idle_sockets,
    slow_bodies,
    deaf_readers,
    full_pipeline,
    large_bodies,
    many_choices,
    ambiguous_grammar,
    slow_schemas,
    silent_calls,
)
