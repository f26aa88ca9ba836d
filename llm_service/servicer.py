"""LLMService over gRPC: reads a prompt, asks for missing images, streams text."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
import structlog

from llm_service import wire
from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines.base import LLMEngine, Prompt, RowsNeededError
from llm_service.generation import (
    TextDelta,
    TextEnd,
    TextEvent,
    choice_params,
    generate_text,
    interleaved,
)
from llm_service.images import Generation, RequestImages
from llm_service.metrics import Metrics
from llm_service.model import ServedModel
from llm_service.prompt import PromptLayout, chat_layout, text_layout, token_layout
from llm_service.tables import TableCache
from protos.errors import ContextLengthError, InvalidArgumentError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.logs import bind_request_id

logger = structlog.get_logger()

MAX_REQUEST_ID_LENGTH = 128
# English has about 4, Chinese 5; only runs of spaces come near this.
MAX_BYTES_PER_TOKEN = 16

Context = grpc.aio.ServicerContext[Any, Any]
PromptMessage = llm_pb2.GenerateStart | llm_pb2.CountTokensRequest


class LLMServicer(llm_pb2_grpc.LLMServiceServicer):
    """Joins the wire with prompt, tables and engine. Holds no state of a request."""

    def __init__(
        self, model: ServedModel, engine: LLMEngine, tables: TableCache, metrics: Metrics
    ) -> None:
        self._model = model
        self._engine = engine
        self._tables = tables
        self._metrics = metrics

    async def Generate(
        self, request_iterator: AsyncIterator[llm_pb2.GenerateRequest], context: Context
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        """Generates from one prompt; see llm.proto."""
        deadline = _deadline(context)
        start = await _read_start(request_iterator)
        clock = _Clock()
        generation = await asyncio.to_thread(self._parse, start, deadline)
        del start  # perhaps megabytes
        with RequestImages(self._model, self._tables, generation) as images:
            async with aclosing(self._answer_from_cache(images, generation, clock)) as responses:
                async for response in responses:
                    yield response
            if clock.has_ticked:
                return
            yield _wanted(images.wanted())
            async with aclosing(wire.table_messages(request_iterator)) as messages:
                await images.receive(messages)
            prompt = await asyncio.to_thread(images.prompt)
        del images  # the tables are in the prompt
        async with aclosing(self._answer(prompt, generation, clock)) as responses:
            async for response in responses:
                yield response

    async def CountTokens(
        self, request: llm_pb2.CountTokensRequest, context: Context
    ) -> llm_pb2.CountTokensResponse:
        """Counts a prompt's tokens; see llm.proto."""
        layout = await asyncio.to_thread(self._layout, request)
        row_counts = list(request.image_row_counts)
        _check_image_count(layout, len(row_counts), "image_row_counts")
        for index, row_count in enumerate(row_counts):
            if not 1 <= row_count <= self._model.max_context_token_count:
                raise InvalidArgumentError(
                    f"an image has 1 to {self._model.max_context_token_count} rows,"
                    f" not {row_count}",
                    field=f"image_row_counts[{index}]",
                )
        layout.check_row_counts(row_counts)
        return llm_pb2.CountTokensResponse(
            prompt_token_count=layout.text_token_count + sum(row_counts),
            image_token_count=sum(row_counts),
        )

    async def GetModelInfo(
        self, request: llm_pb2.LLMServiceGetModelInfoRequest, context: Context
    ) -> llm_pb2.LLMServiceGetModelInfoResponse:
        """Describes the served model; see llm.proto."""
        model = self._model
        return llm_pb2.LLMServiceGetModelInfoResponse(
            model=model.name,
            engine=model.engine_name,
            hidden_size=model.config.hidden_size,
            vocabulary_size=model.config.vocabulary_size,
            max_context_token_count=model.max_context_token_count,
            max_image_count=model.max_image_count,
            fingerprint_sha256=model.fingerprint,
        )

    async def GetLoad(
        self, request: llm_pb2.GetLoadRequest, context: Context
    ) -> llm_pb2.GetLoadResponse:
        """Reports the engine's load; see llm.proto."""
        load = self._engine.load()
        return llm_pb2.GetLoadResponse(
            running_sequence_count=load.running,
            waiting_sequence_count=load.waiting,
            free_kv_token_count=load.free_kv_tokens,
            total_kv_token_count=load.total_kv_tokens,
        )

    async def _answer_from_cache(
        self, images: RequestImages, generation: Generation, clock: _Clock
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        """Yields an empty `wanted` and the answer, or nothing: the missing images are needed.

        Whether the KV cache replaces them is known when the first output comes.
        """
        if not images.may_be_replaced:
            return
        prompt = await asyncio.to_thread(images.prompt)
        async with aclosing(self._answer(prompt, generation, clock)) as responses:
            try:
                first = await anext(responses)
            except RowsNeededError:
                return
            yield _wanted([])
            yield first
            async for response in responses:
                yield response

    async def _answer(
        self, prompt: Prompt, generation: Generation, clock: _Clock
    ) -> AsyncGenerator[llm_pb2.GenerateResponse, None]:
        """Yields all that follows `wanted`."""
        usage = llm_pb2.Usage(
            prompt_token_count=len(prompt.token_ids),
            image_token_count=prompt.prompt_table.shape[0],
        )
        async with aclosing(interleaved(self._choices(prompt, generation))) as events:
            async for index, event in events:
                clock.tick()
                yield self._response(index, event)
                if isinstance(event, TextEnd):
                    usage.output_token_count += event.output_token_count
                    if index == 0:
                        usage.cached_token_count = event.cached_token_count
        usage.first_token_seconds, usage.total_seconds = clock.first, clock.last
        yield llm_pb2.GenerateResponse(usage=usage)
        self._record(usage)

    def _choices(
        self, prompt: Prompt, generation: Generation
    ) -> list[AsyncGenerator[TextEvent, None]]:
        return [
            generate_text(
                self._engine,
                prompt,
                choice_params(generation.params, index),
                Detokenizer(
                    self._model.tokenizer,
                    skip_special_tokens=generation.skip_special_tokens,
                    keep_first_space=generation.params.guide is not None,
                ),
                StopStrings(generation.stop_strings),
                generation.priority,
                generation.deadline,
            )
            for index in range(generation.choice_count)
        ]

    def _response(self, index: int, event: TextEvent) -> llm_pb2.GenerateResponse:
        if isinstance(event, TextDelta):
            logprobs = [wire.token_logprob(one, self._model.tokenizer) for one in event.logprobs]
            delta = llm_pb2.TokenDelta(
                choice_index=index, text=event.text, token_ids=event.token_ids, logprobs=logprobs
            )
            return llm_pb2.GenerateResponse(delta=delta)
        finished = llm_pb2.Finished(
            choice_index=index,
            reason=wire.FINISH_REASONS[event.reason],
            stop_string=event.stop_string,
        )
        return llm_pb2.GenerateResponse(finished=finished)

    def _record(self, usage: llm_pb2.Usage) -> None:
        logger.info(
            "generated",
            prompt_tokens=usage.prompt_token_count,
            output_tokens=usage.output_token_count,
            image_tokens=usage.image_token_count,
            first_token_seconds=round(usage.first_token_seconds, 4),
            total_seconds=round(usage.total_seconds, 4),
        )
        tokens = {
            "prompt": usage.prompt_token_count,
            "image": usage.image_token_count,
            "cached": usage.cached_token_count,
            "output": usage.output_token_count,
        }
        self._metrics.count_answer(tokens, usage.first_token_seconds, usage.total_seconds)

    def _parse(self, start: llm_pb2.GenerateStart, deadline: float | None) -> Generation:
        config = self._model.config
        identities = wire.image_identities(start.images, self._model.max_image_count)
        params = wire.sampling_params(start, self._model.end_token_ids, config.vocabulary_size)
        stop_strings = wire.stop_strings(start.stop)
        choice_count = wire.choice_count(start)
        cache_salt = wire.cache_salt(start)
        layout = self._layout(start)  # last: a long text takes seconds
        _check_image_count(layout, len(identities), "images")
        skip = start.skip_special_tokens if start.HasField("skip_special_tokens") else True
        return Generation(
            layout=layout,
            identities=identities,
            params=params,
            stop_strings=stop_strings,
            skip_special_tokens=skip,
            choice_count=choice_count,
            priority=start.priority,
            cache_salt=cache_salt,
            deadline=deadline,
        )

    def _layout(self, message: PromptMessage) -> PromptLayout:
        self._check_size(message)
        tokenizer = self._model.tokenizer
        match message.WhichOneof("prompt"):
            case "chat":
                return chat_layout(tokenizer, wire.chat_messages(message.chat))
            case "text":
                return text_layout(tokenizer, message.text)
            case "token_ids":
                vocabulary_size = self._model.config.vocabulary_size
                return token_layout(tokenizer, message.token_ids.ids, vocabulary_size)
        raise InvalidArgumentError("one of chat, text, token_ids must be set", field="prompt")

    def _check_size(self, message: PromptMessage) -> None:
        """Refuses what cannot fit before seconds are spent on tokenizing it."""
        limit = MAX_BYTES_PER_TOKEN * self._model.max_context_token_count
        if (size := _prompt_byte_count(message)) > limit:
            raise ContextLengthError(
                f"the prompt has {size} bytes; a context of"
                f" {self._model.max_context_token_count} tokens takes at most {limit}",
                field="messages",
            )


def _prompt_byte_count(message: PromptMessage) -> int:
    match message.WhichOneof("prompt"):
        case "chat":
            return message.chat.ByteSize()
        case "token_ids":
            return message.token_ids.ByteSize()
    return len(message.text.encode())


class _Clock:
    """Seconds from the first message to the first and the latest token."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self.first = self.last = 0.0

    def tick(self) -> None:
        self.last = time.monotonic() - self._started
        self.first = self.first or self.last

    @property
    def has_ticked(self) -> bool:
        """Whether there was a token."""
        return self.last > 0


def _deadline(context: Context) -> float | None:
    seconds = context.time_remaining()
    if seconds is None:
        return None
    return time.monotonic() + seconds


async def _read_start(requests: AsyncIterator[llm_pb2.GenerateRequest]) -> llm_pb2.GenerateStart:
    request = await anext(requests, None)
    if request is None or not request.HasField("start"):
        raise InvalidArgumentError("the first message must be start", field="start")
    request_id = request.start.request_id
    if len(request_id) > MAX_REQUEST_ID_LENGTH:
        raise InvalidArgumentError(
            f"request_id has {len(request_id)} characters, at most {MAX_REQUEST_ID_LENGTH} are"
            " allowed",
            field="request_id",
        )
    if request_id:
        bind_request_id(request_id)
    return request.start


def _check_image_count(layout: PromptLayout, image_count: int, field: str) -> None:
    if layout.image_count != image_count:
        raise InvalidArgumentError(
            f"the prompt has places for {layout.image_count} images, but {field} has {image_count}",
            field=field,
        )


def _wanted(image_indexes: list[int]) -> llm_pb2.GenerateResponse:
    return llm_pb2.GenerateResponse(wanted=llm_pb2.WantedImages(image_indexes=image_indexes))
