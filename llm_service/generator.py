"""The use case of the LLM service: from a checked request to text, usage, log and metrics."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

import structlog

from llm_service.backlog import SequenceBacklog
from llm_service.call_reader import CallReader
from llm_service.choices import (
    PromptLogprobs,
    TextDelta,
    TextEnd,
    TextEvent,
    choice_request,
    generate_text,
    interleaved,
    prompt_first,
)
from llm_service.clock import RequestClock, running_clock
from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines.base import EngineLoad, LLMEngine, Prompt, Request, RowsNeededError
from llm_service.engines.pacing import UNPACED, Pacing
from llm_service.images import RequestImages
from llm_service.metrics import Metrics
from llm_service.model import ModelInfo
from llm_service.prompt import PromptLayout, PromptSource, prompt_layout
from llm_service.sampling import OutputGuide, SamplingParams, ToolCallGuide
from llm_service.tables import TableCache, TableMessage
from llm_service.tokenizer import IMAGE_CONTEXT
from protos.errors import InvalidArgumentError, NonFiniteError
from protos.identity import EmbeddingId
from protos.process.call_record import call_record
from protos.process.shared_memory import Marker
from protos.process.threads import in_thread_if_large

logger = structlog.get_logger()

# They and their bytes are one message.
MAX_RETURNED_TOKEN_COUNT = 131_072


@dataclass(frozen=True)
class Generation:
    """What one call asks for, every field within its limits.

    Attributes:
        prompt: what is to be continued.
        byte_count: of the message that holds the prompt.
        embedding_ids: the prompt's images, in order.
        params: how tokens are chosen and when to stop.
        stop_strings: strings that end the text.
        skip_special_tokens: whether the text leaves special tokens out.
        choice_count: answers to generate, >= 1.
        priority: sequences with a higher one run first.
        cache_salt: what separates the prompt's KV cache from others'.
        arrival: when the call's first message had been read, on the clock of `time.monotonic`.
        deadline: when the call must be over, on the same clock; None: whenever.
        max_queue_seconds: longest wait for its turn; None: any.
    """

    prompt: PromptSource
    byte_count: int
    embedding_ids: Sequence[EmbeddingId]
    params: SamplingParams
    stop_strings: Sequence[str]
    skip_special_tokens: bool
    choice_count: int
    priority: int
    cache_salt: str
    arrival: float
    deadline: float | None
    max_queue_seconds: float | None


@dataclass(frozen=True)
class Load:
    """The service's load at one moment: the engine's, and the seconds until a newcomer's turn."""

    engine: EngineLoad
    backlog_seconds: float


@dataclass(frozen=True)
class Wanted:
    """The images whose embeddings are needed, by index; of equal ones the first.

    Attributes:
        image_indexes: their indexes.
        marker: shows who makes the embeddings that it shares memory with this service; None: no.
    """

    image_indexes: Sequence[int]
    marker: Marker | None = None


@dataclass(frozen=True)
class EmbeddingRead:
    """The image whose embedding has been read from shared memory, by index."""

    image_index: int


@dataclass(frozen=True)
class Usage:
    """What a request cost.

    Attributes:
        prompt_token_count: tokens of the prompt, virtual tokens included.
        image_token_count: the virtual tokens among them.
        cached_token_count: prompt tokens whose KV cache the first choice reused.
        output_token_count: tokens generated over all choices.
        first_token_seconds: from the request's arrival to its first token.
        total_seconds: from there to its last token.
        queue_seconds: from when the engine was given the prompt until it began with it; None where
            it does not tell.
        prefill_seconds: from there to the first token, likewise.
    """

    prompt_token_count: int
    image_token_count: int
    cached_token_count: int
    output_token_count: int
    first_token_seconds: float
    total_seconds: float
    queue_seconds: float | None = None
    prefill_seconds: float | None = None


# In this order: one Wanted, what is read, events of choices with the choice's index, of which those
# of the prompt come first, one Usage.
Event = Wanted | EmbeddingRead | tuple[int, TextEvent] | Usage


@dataclass(frozen=True)
class TokenCount:
    """A prompt's tokens.

    Attributes:
        prompt_token_count: all of them, virtual tokens included.
        image_token_count: the virtual tokens among them.
        token_ids: all of them where they are wanted, each virtual token as the context token.
    """

    prompt_token_count: int
    image_token_count: int
    token_ids: Sequence[int] = ()


class Generator:
    """Joins prompt, tables and engine. Holds no state of a request.

    Attributes:
        info: what the service runs.
    """

    def __init__(
        self,
        info: ModelInfo,
        engine: LLMEngine,
        tables: TableCache,
        metrics: Metrics,
        pacing: Pacing = UNPACED,
    ) -> None:
        self.info = info
        self._pacing = pacing
        self._engine = engine
        self._tables = tables
        self._metrics = metrics
        self._backlog = SequenceBacklog(engine)
        metrics.watch_backlog(self._backlog.seconds)

    async def generate(
        self, generation: Generation, uploads: AsyncIterator[TableMessage]
    ) -> AsyncGenerator[Event, None]:
        """Yields one Wanted, what is read of it, the text of all choices as it is made, the Usage.

        Args:
            generation: what to generate.
            uploads: the embeddings that the caller sends; read until no image is missing.

        Raises:
            InvalidArgumentError: of the prompt, the embeddings, or as the engine has it.
            OverloadedError: its turn would come too late; before the first event.
            ServiceError: whatever else the engine or the upload of an embedding raises.
        """
        self._backlog.refuse(generation.max_queue_seconds)
        layout = await in_thread_if_large(generation.byte_count, self._layout, generation.prompt)
        layout.check_image_count(len(generation.embedding_ids), "images")
        call_record().note(image_count=len(generation.embedding_ids))
        with (
            self._backlog.place(generation.choice_count, generation.max_queue_seconds) as place,
            running_clock(generation.arrival, place) as clock,
        ):
            with RequestImages(self.info, self._tables, layout, generation.embedding_ids) as images:
                async with aclosing(self._answer_from_cache(images, generation, clock)) as events:
                    async for event in events:
                        yield event
                if clock.has_ticked:
                    return
                wanted = images.wanted()
                if not wanted:
                    place.take_in_time()
                yield Wanted(wanted, self._marker)
                if wanted:
                    async with aclosing(self._receive(images, uploads)) as read:
                        async for event in read:
                            yield event
                place.take()
                prompt = await _prompt(images, generation)
            del images  # the tables are in the prompt
            async with aclosing(self._answer(prompt, generation, clock)) as events:
                async for event in events:
                    yield event

    async def count_tokens(
        self, source: PromptSource, row_counts: Sequence[int], *, wants_ids: bool = False
    ) -> TokenCount:
        """Counts a prompt's tokens.

        Args:
            source: the prompt.
            row_counts: rows of each of its images' embeddings, in order.
            wants_ids: whether the tokens are wanted themselves.

        Raises:
            InvalidArgumentError: the prompt is malformed, its images are others, or its tokens are
                wanted and more than MAX_RETURNED_TOKEN_COUNT.
        """
        layout = await asyncio.to_thread(self._layout, source)
        layout.check_image_count(len(row_counts), "image_row_counts")
        layout.check_row_counts(row_counts)
        image_token_count = sum(row_counts)
        count = TokenCount(layout.text_token_count + image_token_count, image_token_count)
        if not wants_ids:
            return count
        _check_returned(count.prompt_token_count)
        context_id = self.info.tokenizer.special_id(IMAGE_CONTEXT)
        ids = await asyncio.to_thread(layout.written_ids, row_counts, context_id)
        return replace(count, token_ids=ids)

    async def detokenize(self, token_ids: Sequence[int]) -> str:
        """Returns the text of token ids, with the names of special tokens."""
        detokenizer = Detokenizer(self.info.tokenizer, skip_special_tokens=False)
        text = await asyncio.to_thread(detokenizer.push, token_ids)
        return text + detokenizer.finish()

    async def check_guide(self, guide: OutputGuide) -> None:
        """Says what is wrong with a guide; errors as of LLMEngine.check_guide."""
        await self._engine.check_guide(guide)

    def load(self) -> Load:
        """Returns the service's load at this moment."""
        return Load(self._engine.load(), self._backlog.seconds())

    async def _receive(
        self, images: RequestImages, uploads: AsyncIterator[TableMessage]
    ) -> AsyncGenerator[EmbeddingRead, None]:
        wanted_count, shared_count = len(images.wanted()), 0
        with call_record().timed("images"):
            async with aclosing(images.receive(uploads)) as read:
                async for index in read:
                    shared_count += 1
                    yield EmbeddingRead(index)
        # Of equal images another than the wanted one may be sent, and some that nobody wants.
        self._metrics.count_embeddings(shared_count, max(0, wanted_count - shared_count))

    @property
    def _marker(self) -> Marker | None:
        return memory.marker if (memory := self._tables.memory) is not None else None

    def _layout(self, source: PromptSource) -> PromptLayout:
        info = self.info
        return prompt_layout(info.tokenizer, info.template, source, info.config.vocabulary_size)

    async def _answer_from_cache(
        self, images: RequestImages, generation: Generation, clock: RequestClock
    ) -> AsyncGenerator[Event, None]:
        """Yields an empty Wanted and the answer, or nothing: the missing images are needed.

        Whether the KV cache replaces them is known when the first output comes.
        """
        if not images.may_be_replaced:
            return
        clock.place.take_in_time()
        prompt = await _prompt(images, generation)
        async with aclosing(self._answer(prompt, generation, clock)) as events:
            try:
                first = await anext(events)
            except RowsNeededError:
                clock.place.leave()  # for as long as the images take
                return
            yield Wanted([])
            yield first
            async for event in events:
                yield event

    async def _answer(
        self, prompt: Prompt, generation: Generation, clock: RequestClock
    ) -> AsyncGenerator[Event, None]:
        """Yields all that follows Wanted."""
        request = Request(
            prompt,
            generation.params,
            generation.priority,
            generation.deadline,
            pacing=self._pacing,
        )
        clock.ask(request.account)
        call_record().note(
            prompt_token_count=len(prompt.token_ids), image_token_count=len(prompt.prompt_table)
        )
        ends: dict[int, TextEnd] = {}
        join = prompt_first if generation.params.wants_prompt_logprobs else interleaved
        try:
            async with aclosing(join(self._choices(request, generation))) as events:
                async for index, event in events:
                    if isinstance(event, PromptLogprobs):
                        yield index, event
                        continue
                    if not clock.has_ticked and isinstance(event, TextDelta):
                        event = replace(event, prompt_token_count=len(prompt.token_ids))
                    clock.tick(index)
                    if isinstance(event, TextEnd):
                        ends[index] = event
                    yield index, event
        except NonFiniteError as error:
            self._record_nonfinite(prompt)
            raise await asyncio.to_thread(_explained, error, prompt) from error
        usage = _usage(prompt, ends, clock)
        self._record(usage, ends)
        yield usage

    def _choices(
        self, request: Request, generation: Generation
    ) -> list[AsyncGenerator[TextEvent, None]]:
        return [
            self._choice(choice_request(request, index), generation)
            for index in range(generation.choice_count)
        ]

    def _choice(self, request: Request, generation: Generation) -> AsyncGenerator[TextEvent, None]:
        tokenizer, guide = self.info.tokenizer, request.params.guide
        skip = generation.skip_special_tokens
        calls, is_free = None, guide is None
        if isinstance(guide, ToolCallGuide):
            calls = CallReader(guide, tokenizer, skip_special_tokens=skip)
            is_free = guide.allows_text
        detokenizer = Detokenizer(
            tokenizer,
            skip_special_tokens=skip,
            keep_first_space=not is_free or generation.prompt.goes_on,
            symbols=calls.symbols if calls else {},
        )
        stop_strings = StopStrings(generation.stop_strings)
        return generate_text(self._engine, request, detokenizer, stop_strings, calls)

    def _record_nonfinite(self, prompt: Prompt) -> None:
        logger.error(
            "nonfinite_logits",
            prompt_token_count=len(prompt.token_ids),
            image_token_count=prompt.prompt_table.shape[0],
        )
        self._metrics.count_nonfinite()

    def _record(self, usage: Usage, ends: Mapping[int, TextEnd]) -> None:
        """Tells metrics and log of a complete answer."""
        tokens = {
            "prompt": usage.prompt_token_count,
            "image": usage.image_token_count,
            "cached": usage.cached_token_count,
            "output": usage.output_token_count,
        }
        record = call_record()
        record.is_answered = True
        record.note(
            cached_token_count=usage.cached_token_count,
            output_token_count=usage.output_token_count,
            first_token_seconds=round(usage.first_token_seconds, 6),
            finish_reasons=[ends[index].reason for index in sorted(ends)],
        )
        longest_output_count = max(end.output_token_count for end in ends.values())
        self._metrics.count_answer(
            tokens, usage.first_token_seconds, usage.total_seconds, longest_output_count
        )


async def _prompt(images: RequestImages, generation: Generation) -> Prompt:
    return await in_thread_if_large(images.copied_byte_count, images.prompt, generation.cache_salt)


def _usage(prompt: Prompt, ends: Mapping[int, TextEnd], clock: RequestClock) -> Usage:
    """Returns what an answer cost whose choices have ended so."""
    seconds = {stage.name: stage.seconds for stage in clock.stages()}
    return Usage(
        prompt_token_count=len(prompt.token_ids),
        image_token_count=prompt.prompt_table.shape[0],
        cached_token_count=ends[0].cached_token_count,
        output_token_count=sum(end.output_token_count for end in ends.values()),
        first_token_seconds=clock.first_token_seconds,
        total_seconds=clock.total_seconds,
        queue_seconds=seconds.get("queue"),
        prefill_seconds=seconds.get("prefill"),
    )


def _check_returned(token_count: int) -> None:
    if token_count > MAX_RETURNED_TOKEN_COUNT:
        raise InvalidArgumentError(
            f"the prompt has {token_count} tokens; the tokens of one that has more than"
            f" {MAX_RETURNED_TOKEN_COUNT} are not returned",
            field="return_tokens",
        )


def _explained(error: NonFiniteError, prompt: Prompt) -> NonFiniteError:
    """Returns the error, or a better one where what came with the prompt is at fault."""
    if prompt.prompt_table.isfinite().all():
        return error
    return NonFiniteError(
        "the embedding of an image has values that are not finite: serve the vision service that"
        " makes them with --torch.dtype bfloat16 or float32"
    )
