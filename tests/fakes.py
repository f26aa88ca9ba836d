"""Scripted VisionService and LLMService behind real gRPC, and a gateway in front of them."""

from __future__ import annotations

import asyncio
import io
import json
import math
import ssl
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import grpc
from blockbuster import blockbuster_ctx

from gateway.app import running_gateway
from gateway.metrics import Metrics
from gateway.services.messages import checkpoint_fingerprint
from gateway.settings import Settings
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import (
    InvalidArgumentError,
    InvalidImageError,
    ModelMismatchError,
    ServiceError,
)
from protos.identity import content_digest, recipe_digest
from protos.internvl.v1 import (
    checkpoint_pb2,
    llm_pb2,
    llm_pb2_grpc,
    tensor_pb2,
    vision_pb2,
    vision_pb2_grpc,
)
from protos.process.server import Service, running_server
from protos.process.settings import MIB
from protos.transport import CHUNK_BYTE_COUNT
from tests.https import client_context

MODEL = "scripted"
HIDDEN_SIZE = 8
ROW_BYTE_COUNT = 2 * HIDDEN_SIZE
SOON_SECONDS = 5.0
ENCODE_TIMINGS = vision_pb2.EncodeTimings(
    preprocess_seconds=0.0111, queue_seconds=0.0002, forward_seconds=0.2905
)
VisionContext = grpc.aio.ServicerContext[
    vision_pb2.EncodeImageRequest, vision_pb2.EncodeImageResponse
]
LLMContext = grpc.aio.ServicerContext[llm_pb2.GenerateRequest, llm_pb2.GenerateResponse]


async def happening(event: asyncio.Event) -> None:
    """Waits for what must come soon, as the end of a call that is cancelled; else fails."""
    await asyncio.wait_for(event.wait(), SOON_SECONDS)


def embedding_of(image: bytes, byte_count: int) -> bytes:
    """Returns the bytes that the scripted vision service answers with."""
    return (content_digest(image) * (byte_count // 32 + 1))[:byte_count]


def closest_grid(aspect_ratio: float, cap: int) -> tuple[int, int]:
    """Returns columns and rows of the smallest grid that is closest to an aspect ratio."""
    grids = [(columns, rows) for columns in range(1, cap + 1) for rows in range(1, cap + 1)]
    return min(
        (grid for grid in grids if math.prod(grid) <= cap),
        key=lambda grid: (abs(aspect_ratio - grid[0] / grid[1]), math.prod(grid)),
    )


@dataclass
class ScriptedVision(vision_pb2_grpc.VisionServiceServicer):
    """Answers every image with its digest, repeated; fails or stalls as told.

    Each call takes one of `failures`, until none is left. Calls wait until `together_count` have
    come. `stalls` waits for ever after the header.
    """

    embedding_byte_count: int = 20 * ROW_BYTE_COUNT
    chunk_byte_count: int = CHUNK_BYTE_COUNT
    recipe: bytes = b"r" * 32
    model: str = MODEL
    checkpoint: CheckpointFingerprint = CheckpointFingerprint()
    hidden_size: int = HIDDEN_SIZE
    max_image_byte_count: int = 20 * MIB
    failures: list[ServiceError] = field(default_factory=list)
    together_count: int = 1
    stalls: bool = False
    wrong_id: bool = False
    cache_hit: bool = False
    backlog_seconds: float = 0.0

    requests: list[vision_pb2.EncodeImageRequest] = field(default_factory=list)
    planned: list[vision_pb2.PlanTilesRequest] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    info_count: int = 0
    together: asyncio.Event = field(default_factory=asyncio.Event)
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetModelInfo(
        self, request: vision_pb2.VisionServiceGetModelInfoRequest, context: Any
    ) -> vision_pb2.VisionServiceGetModelInfoResponse:
        self.info_count += 1
        return vision_pb2.VisionServiceGetModelInfoResponse(
            model=self.model,
            checkpoint=checkpoint_pb2.CheckpointFingerprint(**vars(self.checkpoint)),
            recipe_sha256=self.recipe,
            hidden_size=self.hidden_size,
            tokens_per_tile=256,
            tile_size=448,
            default_tile_count=12,
            max_tile_count=24,
            max_image_byte_count=self.max_image_byte_count,
        )

    async def PlanTiles(
        self, request: vision_pb2.PlanTilesRequest, context: Any
    ) -> vision_pb2.PlanTilesResponse:
        cap = request.max_tile_count if request.HasField("max_tile_count") else 12
        if not 1 <= cap <= 24:
            raise InvalidArgumentError(f"the tile cap is {cap}", field="max_tile_count")
        if request.expected_recipe_sha256 not in (b"", self.recipe):
            raise ModelMismatchError("another recipe", field="expected_recipe_sha256")
        if request.image:
            return self._plan_of_file(request)
        if request.image_width < 1:
            raise InvalidImageError("the image is too narrow", field="image_width")
        if request.image_height < 1:
            raise InvalidImageError("the image is too low", field="image_height")
        columns, rows = closest_grid(request.image_width / request.image_height, cap)
        tile_count = columns * rows + (columns * rows > 1)
        return vision_pb2.PlanTilesResponse(
            grid_column_count=columns,
            grid_row_count=rows,
            tile_count=tile_count,
            token_count=256 * tile_count,
        )

    def _plan_of_file(self, request: vision_pb2.PlanTilesRequest) -> vision_pb2.PlanTilesResponse:
        """Has one tile of four rows for each byte of the file."""
        self.planned.append(request)
        if self.failures:
            raise self.failures.pop(0)
        tile_count = len(request.image)
        return vision_pb2.PlanTilesResponse(
            grid_column_count=1,
            grid_row_count=tile_count,
            tile_count=tile_count,
            token_count=4 * tile_count,
        )

    async def GetLoad(
        self, request: vision_pb2.VisionServiceGetLoadRequest, context: Any
    ) -> vision_pb2.VisionServiceGetLoadResponse:
        return vision_pb2.VisionServiceGetLoadResponse(backlog_seconds=self.backlog_seconds)

    async def EncodeImage(
        self, request: vision_pb2.EncodeImageRequest, context: VisionContext
    ) -> AsyncGenerator[vision_pb2.EncodeImageResponse, None]:
        self.requests.append(request)
        metadata = dict(context.invocation_metadata() or ())
        self.request_ids.append(str(metadata["x-request-id"]))
        failure = self.failures.pop(0) if self.failures else None
        if len(self.requests) >= self.together_count:
            self.together.set()
        await self.together.wait()
        if failure:
            raise failure
        if request.expected_recipe_sha256 != self.recipe:
            raise ModelMismatchError("another recipe", field="expected_recipe_sha256")
        try:
            yield self._header(request)
            if self.stalls:
                self.stalled.set()
                await asyncio.Event().wait()
            data = embedding_of(request.image, self.embedding_byte_count)
            for offset in range(0, len(data), self.chunk_byte_count):
                piece = data[offset : offset + self.chunk_byte_count]
                response = vision_pb2.EncodeImageResponse()
                response.embedding_chunk.image_index = request.image_index
                response.embedding_chunk.offset = offset
                response.embedding_chunk.data = piece
                yield response
            timings = None if self.cache_hit else ENCODE_TIMINGS
            trailer = vision_pb2.EncodeImageTrailer(crc32=zlib.crc32(data), timings=timings)
            yield vision_pb2.EncodeImageResponse(trailer=trailer)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def _header(self, request: vision_pb2.EncodeImageRequest) -> vision_pb2.EncodeImageResponse:
        cap = request.max_tile_count if request.HasField("max_tile_count") else 12
        spec = tensor_pb2.TensorSpec(
            dtype=tensor_pb2.DATA_TYPE_BF16,
            shape=[self.embedding_byte_count // ROW_BYTE_COUNT, HIDDEN_SIZE],
            byte_count=self.embedding_byte_count,
        )
        name = tensor_pb2.EmbeddingId(
            content_sha256=b"x" * 32 if self.wrong_id else content_digest(request.image),
            recipe_sha256=recipe_digest(self.recipe, cap),
        )
        header = vision_pb2.EncodeImageHeader(
            id=name,
            spec=spec,
            tile_count=3,
            grid_column_count=2,
            grid_row_count=1,
            image_width=900,
            image_height=400,
            cache_hit=self.cache_hit,
        )
        return vision_pb2.EncodeImageResponse(header=header)


@dataclass
class ScriptedLLM(llm_pb2_grpc.LLMServiceServicer):
    """Says its texts to everybody, once it has the images it does not hold; fails as told.

    `calls` are made after the texts, where tools may be called: each is a name and the pieces of
    its arguments. A prompt whose log probabilities are wanted has the tokens of `prompt`.

    Each call takes one of `failures`, until none is left. `failure_after_wanted` comes when
    `failure_signal` is set, `late_failure` after the texts; `stalls` waits there for `released`.
    `reading_seconds` is the pause after each chunk.
    """

    texts: Sequence[str] = ("Hel", "", "lo")
    calls: Sequence[tuple[str, Sequence[str]]] = ()
    prompt: Sequence[bytes] = (b"On", b"ce")
    stop_string: str | None = None
    guide_failure: ServiceError | None = None
    reason: llm_pb2.FinishReason.ValueType = llm_pb2.FINISH_REASON_STOP
    model: str = MODEL
    aliases: Sequence[str] = ()
    checkpoint: CheckpointFingerprint = CheckpointFingerprint()
    hidden_size: int = HIDDEN_SIZE
    failures: list[ServiceError] = field(default_factory=list)
    failure_after_wanted: ServiceError | None = None
    late_failure: ServiceError | None = None
    failure_signal: asyncio.Event = field(default_factory=asyncio.Event)
    stalls: bool = False
    reading_seconds: float = 0.0
    fingerprint: bytes = b""
    backlog_seconds: float = 0.0

    starts: list[llm_pb2.GenerateStart] = field(default_factory=list)
    counts: list[llm_pb2.CountTokensRequest] = field(default_factory=list)
    guides: list[llm_pb2.CheckGuideRequest] = field(default_factory=list)
    request_ids: list[str] = field(default_factory=list)
    time_remaining: list[float] = field(default_factory=list)
    held: dict[tuple[bytes, bytes], bytes] = field(default_factory=dict)
    info_count: int = 0
    stalled: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    released: asyncio.Event = field(default_factory=asyncio.Event)

    async def GetModelInfo(
        self, request: llm_pb2.LLMServiceGetModelInfoRequest, context: Any
    ) -> llm_pb2.LLMServiceGetModelInfoResponse:
        self.info_count += 1
        return llm_pb2.LLMServiceGetModelInfoResponse(
            model=self.model,
            aliases=self.aliases,
            hidden_size=self.hidden_size,
            max_context_token_count=32768,
            created_unix_seconds=1_700_000_000,
            fingerprint_sha256=self.fingerprint,
            eos_token="<|im_end|>",
            checkpoint=checkpoint_pb2.CheckpointFingerprint(**vars(self.checkpoint)),
        )

    async def CountTokens(
        self, request: llm_pb2.CountTokensRequest, context: Any
    ) -> llm_pb2.CountTokensResponse:
        self.counts.append(request)
        image_token_count = sum(request.image_row_counts)
        response = llm_pb2.CountTokensResponse(
            prompt_token_count=30 + image_token_count, image_token_count=image_token_count
        )
        if request.return_tokens:
            response.token_ids.extend(range(response.prompt_token_count))
            response.tokens.extend(b"%d" % token_id for token_id in response.token_ids)
        return response

    async def Detokenize(
        self, request: llm_pb2.DetokenizeRequest, context: Any
    ) -> llm_pb2.DetokenizeResponse:
        return llm_pb2.DetokenizeResponse(text=" ".join(map(str, request.token_ids.ids)))

    async def CheckGuide(
        self, request: llm_pb2.CheckGuideRequest, context: Any
    ) -> llm_pb2.CheckGuideResponse:
        self.guides.append(request)
        if self.guide_failure:
            raise self.guide_failure
        return llm_pb2.CheckGuideResponse()

    async def GetLoad(
        self, request: llm_pb2.GetLoadRequest, context: Any
    ) -> llm_pb2.GetLoadResponse:
        return llm_pb2.GetLoadResponse(backlog_seconds=self.backlog_seconds)

    async def Generate(
        self, requests: AsyncIterator[llm_pb2.GenerateRequest], context: LLMContext
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        try:
            first = await anext(requests, None)
            if first is None:  # the caller has gone
                return
            start = first.start
            self._note(start, context)
            if self.failures:
                raise self.failures.pop(0)
            if not 1 <= choice_count(start) <= 16:
                raise InvalidArgumentError("the number of choices", field="choice_count")
            if checkpoint_fingerprint(start.expected_checkpoint).differences(self.checkpoint):
                raise ModelMismatchError("another checkpoint")
            wanted = self._wanted(start)
            yield llm_pb2.GenerateResponse(wanted=llm_pb2.WantedImages(image_indexes=wanted))
            if self.failure_after_wanted:
                await self.failure_signal.wait()
                # A status that comes while the other end writes may be lost: read what is written.
                await anext(requests, None)
                raise self.failure_after_wanted
            await self._receive(start, requests)
            async for response in self._answer(start):
                yield response
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    def _note(self, start: llm_pb2.GenerateStart, context: LLMContext) -> None:
        self.starts.append(start)
        self.request_ids.append(str(dict(context.invocation_metadata() or ())["x-request-id"]))
        self.time_remaining.append(context.time_remaining() or 0.0)

    def _wanted(self, start: llm_pb2.GenerateStart) -> list[int]:
        first: dict[tuple[bytes, bytes], int] = {}
        for index, image in enumerate(start.images):
            first.setdefault((image.content_sha256, image.recipe_sha256), index)
        return [index for key, index in first.items() if key not in self.held]

    async def _receive(
        self, start: llm_pb2.GenerateStart, requests: AsyncIterator[llm_pb2.GenerateRequest]
    ) -> None:
        """Reads embeddings to the half-close, as strictly as the contract has them."""
        tables: dict[int, bytearray] = {}
        async for request in requests:
            if request.HasField("embedding_header"):
                tables[request.embedding_header.image_index] = bytearray()
            elif request.HasField("embedding_chunk"):
                await self._receive_chunk(tables, request.embedding_chunk)
            else:
                index = request.embedding_trailer.image_index
                if zlib.crc32(tables[index]) != request.embedding_trailer.crc32:
                    raise ServiceError("the scripted LLM got a wrong checksum")
                image = start.images[index]
                self.held[image.content_sha256, image.recipe_sha256] = bytes(tables[index])

    async def _receive_chunk(
        self, tables: dict[int, bytearray], message: tensor_pb2.EmbeddingChunk
    ) -> None:
        table = tables[message.image_index]
        if message.offset != len(table):
            raise ServiceError("the scripted LLM got a chunk out of order")
        table += message.data
        await asyncio.sleep(self.reading_seconds)

    async def _answer(
        self, start: llm_pb2.GenerateStart
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        choices = range(choice_count(start))
        usage = self._usage(start, len(choices))
        told = False
        if start.logprobs.prompt:
            yield llm_pb2.GenerateResponse(prompt_logprobs=self._prompt_logprobs(start))
        for text in self.texts:
            for index in choices:
                logprobs = scripted_logprobs(start, text)
                delta = llm_pb2.TokenDelta(
                    choice_index=index, text=text, token_ids=[1], logprobs=logprobs
                )
                if not told:
                    delta.prompt_token_count = usage.prompt_token_count
                    told = True
                yield llm_pb2.GenerateResponse(delta=delta)
        if start.guided.HasField("tool_calls"):
            for delta in self._call_deltas(choices):
                yield llm_pb2.GenerateResponse(delta=delta)
        if self.late_failure:
            raise self.late_failure
        if self.stalls:
            self.stalled.set()
            await self.released.wait()
        for index in reversed(choices):
            finished = llm_pb2.Finished(
                choice_index=index, reason=self.reason, stop_string=self.stop_string
            )
            yield llm_pb2.GenerateResponse(finished=finished)
        yield llm_pb2.GenerateResponse(usage=usage)

    def _call_deltas(self, choices: range) -> Iterator[llm_pb2.TokenDelta]:
        for call_index, (name, pieces) in enumerate(self.calls):
            for position, piece in enumerate(pieces):
                call = llm_pb2.ToolCallDelta(
                    call_index=call_index, name="" if position else name, arguments=piece
                )
                for index in choices:
                    yield llm_pb2.TokenDelta(choice_index=index, token_ids=[1], tool_calls=[call])

    def _prompt_logprobs(self, start: llm_pb2.GenerateStart) -> llm_pb2.PromptLogprobs:
        first, *others = self.prompt
        tokens = [llm_pb2.TokenLogprob(token_id=1, token=first)]
        for token in others:
            tokens += scripted_logprobs(start, token.decode())
        return llm_pb2.PromptLogprobs(tokens=tokens)

    def _usage(self, start: llm_pb2.GenerateStart, choice_count: int) -> llm_pb2.Usage:
        return llm_pb2.Usage(
            prompt_token_count=30 + 256 * len(start.images),
            output_token_count=len(self.texts) * choice_count,
            cached_token_count=16,
            image_token_count=256 * len(start.images),
        )


def choice_count(start: llm_pb2.GenerateStart) -> int:
    """Returns how many answers a request asks for."""
    return start.choice_count if start.HasField("choice_count") else 1


def scripted_logprobs(start: llm_pb2.GenerateStart, text: str) -> list[llm_pb2.TokenLogprob]:
    """Returns what is said of a delta's one token: an empty text's is a part of a character."""
    if not start.HasField("logprobs"):
        return []
    token = text.encode() or b"\xf0\x9f"
    top = [
        llm_pb2.TokenLogprob(token_id=1, logprob=-0.5, token=token),
        llm_pb2.TokenLogprob(token_id=2, logprob=-math.inf, token=b"never"),
    ]
    return [
        llm_pb2.TokenLogprob(
            token_id=1, logprob=-0.5, token=token, top=top[: start.logprobs.top_count]
        )
    ]


@asynccontextmanager
async def running_vision(vision: ScriptedVision, **options: Any) -> AsyncIterator[str]:
    """Serves the scripted vision service, and yields its address; options of `running_server`."""

    def register(server: grpc.aio.Server) -> None:
        vision_pb2_grpc.add_VisionServiceServicer_to_server(vision, server)

    service = Service("internvl.v1.VisionService", register, lambda: True, 32 * MIB)
    async with running_server(service, "127.0.0.1", 0, 0, **options) as port:
        yield f"127.0.0.1:{port}"


@asynccontextmanager
async def running_llm(llm: ScriptedLLM, port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Serves the scripted LLM service, and yields its address; options of `running_server`."""

    def register(server: grpc.aio.Server) -> None:
        llm_pb2_grpc.add_LLMServiceServicer_to_server(llm, server)

    service = Service("internvl.v1.LLMService", register, lambda: True)
    async with running_server(service, "127.0.0.1", port, 0, **options) as bound_port:
        yield f"127.0.0.1:{bound_port}"


@dataclass(frozen=True)
class Gateway:
    """A running gateway, the services behind it, and an HTTP client of it.

    Attributes:
        tls: how its clients speak TLS; None: they do not.
    """

    url: str
    http: aiohttp.ClientSession
    vision: ScriptedVision
    llm: ScriptedLLM
    tls: ssl.SSLContext | None

    async def chat(self, **body: Any) -> tuple[int, Any]:
        """Returns status and JSON body of a chat completion of `chat_body(**body)`."""
        data = io.BytesIO(json.dumps(chat_body(**body)).encode())
        async with self.http.post("/v1/chat/completions", data=data) as response:
            return response.status, await response.json()

    async def read_chat(self, **body: Any) -> bytes:
        """Returns the body of a chat completion, stream or not, read to its end."""
        async with self.http.post("/v1/chat/completions", json=chat_body(**body)) as response:
            return await response.read()

    async def get(self, path: str) -> tuple[int, Any]:
        """Returns status and JSON body of a path."""
        async with self.http.get(path) as response:
            return response.status, await response.json()


def chat_body(**fields: Any) -> dict[str, Any]:
    """Returns the smallest chat request, with fields added."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], **fields}


@asynccontextmanager
async def stack(
    vision: ScriptedVision | None = None,
    llm: ScriptedLLM | None = None,
    *,
    closed: Sequence[str] = (),
    metrics: Metrics | None = None,
    service_options: Mapping[str, Any] | None = None,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    """Runs a gateway in front of scripted services; `closed` names services that are down.

    A blocking call of the gateway within the event loop fails the request. `service_options` are
    those of `running_server`, for both services.
    """
    service_options = service_options or {}
    vision = vision or ScriptedVision()
    llm = llm or ScriptedLLM()
    async with AsyncExitStack() as exits:
        addresses = {
            "vision": await exits.enter_async_context(running_vision(vision, **service_options)),
            "llm": await exits.enter_async_context(running_llm(llm, **service_options)),
        }
        # Port 9 (discard) of this machine: nothing listens there.
        addresses |= dict.fromkeys(closed, "127.0.0.1:9")
        options: dict[str, Any] = {
            "port": 0,
            "drain_seconds": 0,
            "vision_address": addresses["vision"],
            "llm_address": addresses["llm"],
        }
        own_settings = Settings(**options | settings)
        exits.enter_context(blockbuster_ctx("gateway"))
        port = await exits.enter_async_context(running_gateway(own_settings, metrics))
        certificate = own_settings.tls_certificate_file
        tls = client_context(certificate) if certificate else None
        url = f"{'https' if tls else 'http'}://127.0.0.1:{port}"
        connector = aiohttp.TCPConnector(ssl=tls or True)
        http = await exits.enter_async_context(aiohttp.ClientSession(url, connector=connector))
        yield Gateway(url, http, vision, llm, tls)
