"""LLMService over gRPC: messages become calls of the generator, and its results messages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc

from llm_service import wire
from llm_service.generator import Generation, Generator
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.calls import Places
from protos.process.logs import bind_request_id, bind_trace_id
from protos.process.threads import in_thread_if_large
from protos.process.tracing import current_span

SERVICE_NAME = llm_pb2.DESCRIPTOR.services_by_name["LLMService"].full_name
# A text of the longest kind takes the tokenizer a second: other requests' prompts come in between.
COUNTED_AT_A_TIME = 2
MAX_COUNTING_CALL_COUNT = 64
Context = grpc.aio.ServicerContext[Any, Any]


class LLMServicer(llm_pb2_grpc.LLMServiceServicer):
    """The wire, and nothing else. The methods are described in llm.proto."""

    def __init__(self, generator: Generator) -> None:
        self._generator = generator
        self._info = generator.info
        self._counting_places = Places(MAX_COUNTING_CALL_COUNT)
        self._counting_turns = asyncio.Semaphore(COUNTED_AT_A_TIME)

    def register(self, server: grpc.aio.Server) -> None:
        llm_pb2_grpc.add_LLMServiceServicer_to_server(self, server)
        generate = grpc.stream_stream_rpc_method_handler(
            self.Generate, wire.read_request, llm_pb2.GenerateResponse.SerializeToString
        )
        server.add_registered_method_handlers(SERVICE_NAME, {"Generate": generate})

    async def Generate(
        self, request_iterator: AsyncIterator[wire.ReadRequest], context: Context
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        generation = await self._generation(request_iterator, _deadline(context))
        uploads = wire.table_messages(request_iterator)
        events = self._generator.generate(generation, uploads)
        async with aclosing(uploads), aclosing(events):
            async for event in events:
                yield wire.response(event, self._info.tokenizer)

    async def CountTokens(
        self, request: llm_pb2.CountTokensRequest, context: Context
    ) -> llm_pb2.CountTokensResponse:
        row_counts = wire.image_row_counts(request, self._info)
        async with self._counting_turn():
            source = await asyncio.to_thread(wire.prompt_source, request, self._info)
            count = await self._generator.count_tokens(
                source, row_counts, wants_ids=request.return_tokens
            )
            return await asyncio.to_thread(wire.count_response, count, self._info.tokenizer)

    async def Detokenize(
        self, request: llm_pb2.DetokenizeRequest, context: Context
    ) -> llm_pb2.DetokenizeResponse:
        async with self._counting_turn():
            token_ids = await asyncio.to_thread(wire.detokenized_ids, request, self._info)
            text = await self._generator.detokenize(token_ids)
        return wire.detokenize_response(text)

    async def CheckGuide(
        self, request: llm_pb2.CheckGuideRequest, context: Context
    ) -> llm_pb2.CheckGuideResponse:
        guide = await asyncio.to_thread(wire.checked_guide, request, self._info)
        if guide is not None:
            await self._generator.check_guide(guide)
        return llm_pb2.CheckGuideResponse()

    async def GetModelInfo(
        self, request: llm_pb2.LLMServiceGetModelInfoRequest, context: Context
    ) -> llm_pb2.LLMServiceGetModelInfoResponse:
        return wire.model_info_response(self._info)

    async def GetLoad(
        self, request: llm_pb2.GetLoadRequest, context: Context
    ) -> llm_pb2.GetLoadResponse:
        return wire.load_response(self._generator.load())

    @asynccontextmanager
    async def _counting_turn(self) -> AsyncIterator[None]:
        """Waits for a turn to count or to write tokens; OverloadedError where many wait."""
        with self._counting_places.taken():
            async with self._counting_turns:
                yield

    async def _generation(
        self, requests: AsyncIterator[wire.ReadRequest], deadline: float | None
    ) -> Generation:
        opening = wire.opening(await anext(requests, None))
        arrival = time.monotonic()
        if request_id := opening.start.request_id:
            bind_request_id(request_id)
            bind_trace_id(current_span().trace_id)
        return await in_thread_if_large(
            opening.byte_count, wire.generation, opening, self._info, arrival, deadline
        )


def _deadline(context: Context) -> float | None:
    seconds = context.time_remaining()
    if seconds is None:
        return None
    return time.monotonic() + seconds
