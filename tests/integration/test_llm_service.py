"""The LLM service over real gRPC, with a scripted engine behind it."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from functools import partial
from typing import Any

import grpc
import pytest
import structlog
import torch
from google.protobuf.descriptor import Descriptor
from structlog.testing import capture_logs

from llm_service.engines.base import (
    EngineLoad,
    FinishReason,
    Prompt,
    Request,
    TokenLogprob,
    TokenOutput,
)
from llm_service.sampling import Guide, SamplingParams
from llm_service.servicer import SERVICE_NAME
from llm_service.table_arena import TableArena
from llm_service.tables import TableUpload
from llm_service.tokenizer import Tokenizer
from protos.errors import (
    ContextLengthError,
    DataLossError,
    DeadlineError,
    EngineDeadError,
    InvalidArgumentError,
    InvalidTensorError,
    ModelMismatchError,
    OverloadedError,
    ServiceError,
)
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2
from protos.status import from_rpc_error
from protos.wire_format import read_chunk, serialized
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import (
    CONTEXT,
    END,
    HIDDEN_SIZE,
    chunk,
    embedding_id,
    exchange,
    header,
    serving,
    start,
    table,
    text_of,
    trailer,
    upload,
)
from tests.real_tokenizers import real_tokenizer
from tests.request_lines import request_line


class ScriptedEngine(IdleEngine):
    """Gives out fixed tokens; remembers what it was asked and whether it was closed early."""

    def __init__(self) -> None:
        self.tokenizer = real_tokenizer("qwen2_5")
        self.text = "Hello, world!"
        self.finish: FinishReason = "stop"
        self.error: ServiceError | None = None
        self.never_ends = False
        self.queue_seconds: float | None = None  # it does not tell when it begins
        self.delay_seconds = 0.0
        self.requests: list[Request] = []
        self.cancelled = asyncio.Event()
        self.closings = asyncio.Semaphore(0)

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        self.requests.append(request)
        params = request.params
        if self.error is not None:
            raise self.error
        ids = self.tokenizer.encode(self.text)
        if self.queue_seconds is not None:
            await asyncio.sleep(self.queue_seconds)
            request.account.start(time.monotonic())
        await asyncio.sleep(self.delay_seconds)
        try:
            for token_id in ids[: None if self.finish == "stop" else -1]:
                yield TokenOutput([token_id], None, logprobs=logprobs_of(token_id, params))
            while self.never_ends:
                await asyncio.sleep(0.01)
                yield TokenOutput([ids[0]], None)
        except (GeneratorExit, asyncio.CancelledError):
            self.cancelled.set()
            self.closings.release()
            raise
        last = END if self.finish == "stop" else ids[-1]
        logprobs = logprobs_of(last, params)
        yield TokenOutput([last], self.finish, cached_token_count=16, logprobs=logprobs)

    @property
    def prompts(self) -> list[Prompt]:
        return [request.prompt for request in self.requests]

    @property
    def params(self) -> list[SamplingParams]:
        return [request.params for request in self.requests]

    def load(self) -> EngineLoad:
        return EngineLoad(1, 2, 3, 4)


def logprobs_of(token_id: int, params: SamplingParams) -> tuple[TokenLogprob, ...]:
    if params.logprob_count is None:
        return ()
    alternatives = ((token_id, -0.5), (END, -1.5))
    return (TokenLogprob(token_id, -0.5, alternatives[: params.logprob_count]),)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def stub(channel: grpc.aio.Channel) -> llm_pb2_grpc.LLMServiceAsyncStub:
    return llm_pb2_grpc.LLMServiceStub(channel)


@pytest.fixture
async def channel(engine: ScriptedEngine) -> AsyncIterator[grpc.aio.Channel]:
    async with serving(engine, engine.tokenizer) as channel:
        yield channel


async def test_text_only_conversation(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    wanted, *deltas, finished, usage = await exchange(stub, start())
    assert wanted.WhichOneof("message") == "wanted"
    assert list(wanted.wanted.image_indexes) == []
    assert text_of(deltas) == "Hello, world!"
    assert finished.finished.reason == llm_pb2.FINISH_REASON_STOP
    assert usage.usage.prompt_token_count == len(engine.prompts[0].token_ids)
    assert deltas[0].delta.prompt_token_count == usage.usage.prompt_token_count
    assert not any(delta.delta.HasField("prompt_token_count") for delta in deltas[1:])
    assert usage.usage.output_token_count == 5  # four of the text and the end token
    assert 0 < usage.usage.first_token_seconds <= usage.usage.total_seconds


async def test_length_is_reported_as_such(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.finish = "length"
    responses = await exchange(stub, start())
    assert responses[-2].finished.reason == llm_pb2.FINISH_REASON_LENGTH
    assert text_of(responses) == "Hello, world!"
    assert responses[-1].usage.output_token_count == 4


async def test_wanted_image_arrives_and_stays_for_the_second_turn(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    rows, data = table(1.5)
    first = await exchange(stub, start(images=["a"]), *upload(data))
    assert list(first[0].wanted.image_indexes) == [0]
    assert torch.equal(engine.prompts[0].prompt_table, rows)
    assert first[-1].usage.image_token_count == 2

    second = await exchange(stub, start(images=["a"]))
    assert list(second[0].wanted.image_indexes) == []
    assert torch.equal(engine.prompts[1].prompt_table, rows)


async def test_the_log_tells_when_the_engine_was_given_the_prompt(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    _, data = table(1.5)
    engine.delay_seconds = 0.1

    async def slow_upload() -> AsyncIterator[llm_pb2.GenerateRequest]:
        yield start(images=["a"])
        await asyncio.sleep(0.2)
        for message in upload(data):
            yield message

    with capture_logs() as events:
        async for _ in stub.Generate(slow_upload()):
            pass
    line = await request_line(events, "Generate")
    assert line["prompt_seconds"] >= 0.2
    assert line["first_token_seconds"] - line["prompt_seconds"] >= 0.1


async def test_the_line_of_a_call_has_its_counts_and_stages(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.queue_seconds, engine.delay_seconds = 0.1, 0.2
    with capture_logs() as events:
        *_, usage = await exchange(stub, start())
    line = await request_line(events, "Generate")
    assert (line["route"], line["status"], line["error"]) == ("Generate", "OK", None)
    told = {name: line[f"{name}_token_count"] for name in ("prompt", "image", "cached", "output")}
    assert told == {name: getattr(usage.usage, f"{name}_token_count") for name in told}
    assert (line["image_count"], line["finish_reasons"]) == (0, ["stop"])
    assert "images_seconds" not in line
    assert line["queue_seconds"] >= 0.1
    assert line["prefill_seconds"] >= 0.1
    stages = [line[f"{name}_seconds"] for name in ("prompt", "queue", "prefill")]
    assert sum(stages) == pytest.approx(line["first_token_seconds"], abs=1e-5)
    assert line["first_token_seconds"] + line["decode_seconds"] <= line["total_seconds"] + 1e-5
    for name in ("queue", "prefill", "first_token"):
        seconds = getattr(usage.usage, f"{name}_seconds")
        assert seconds == pytest.approx(line[f"{name}_seconds"], abs=1e-5)


async def test_an_engine_that_does_not_tell_when_it_began_leaves_that_out(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    with capture_logs() as events:
        *_, usage = await exchange(stub, start())
    line = await request_line(events, "Generate")
    assert not {"queue_seconds", "prefill_seconds"} & set(line)
    assert {"prompt_seconds", "first_token_seconds", "decode_seconds"} <= set(line)
    assert not usage.usage.HasField("queue_seconds")
    assert not usage.usage.HasField("prefill_seconds")


async def test_the_line_of_a_call_that_was_given_up_says_where_it_waited(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.queue_seconds = 60.0
    with capture_logs() as events:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in stub.Generate(iter([start()]), timeout=0.3):
                pass
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        line = await request_line(events, "Generate")
    assert line["status"] == "DEADLINE_EXCEEDED"
    assert 0.1 < line["queue_seconds"] <= line["total_seconds"]
    assert not {"prefill_seconds", "output_token_count", "finish_reasons"} & set(line)
    assert line["prompt_token_count"] == len(engine.prompts[0].token_ids)


async def test_the_line_of_a_stream_that_is_left_says_so_under_its_id(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.queue_seconds, engine.never_ends = 0.0, True
    with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        call = stub.Generate(iter([start(request_id="mine")]))
        async for response in call:
            if response.delta.text:
                break
        call.cancel()
        line = await request_line(events, "Generate")
    assert (line["status"], line["error"], line["request_id"]) == ("CANCELLED", None, "mine")
    assert {"queue_seconds", "prefill_seconds", "decode_seconds"} <= set(line)


async def test_interleaved_uploads_of_several_images(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    (rows_a, a), (rows_b, b) = table(1.0), table(2.0, rows=3)
    responses = await exchange(
        stub,
        start(images=["a", "b"]),
        header(0, 2),
        header(1, 3),
        chunk(b[:40], index=1),
        chunk(a, index=0),
        chunk(b[40:], offset=40, index=1),
        trailer(b, index=1),
        trailer(a, index=0),
    )
    assert list(responses[0].wanted.image_indexes) == [0, 1]
    prompt = engine.prompts[0]
    assert torch.equal(prompt.prompt_table, torch.cat([rows_a, rows_b]))
    assert [image.row_count for image in prompt.images] == [2, 3]


async def test_equal_images_are_wanted_once(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    rows, data = table(1.0)
    responses = await exchange(stub, start(images=["a", "b", "a"]), *upload(data), *upload(data, 1))
    assert list(responses[0].wanted.image_indexes) == [0, 1]
    assert engine.prompts[0].prompt_table.shape == (6, HIDDEN_SIZE)
    assert torch.equal(engine.prompts[0].prompt_table[4:], rows)


async def test_bf16_bytes_are_read_as_bf16(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    rows = torch.arange(2 * HIDDEN_SIZE, dtype=torch.bfloat16).view(2, HIDDEN_SIZE)
    data = rows.view(torch.uint8).numpy().tobytes()
    spec = header(0, 2, dtype=tensor_pb2.DATA_TYPE_BF16, byte_count=len(data))
    await exchange(stub, start(images=["a"]), spec, chunk(data), trailer(data))
    assert torch.equal(engine.prompts[0].prompt_table, rows)


async def test_stop_string_cuts_the_text_and_ends_the_engine(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    stop = llm_pb2.StopConditions(strings=["o, wor"])
    responses = await exchange(stub, start(stop=stop))
    assert text_of(responses) == "Hell"
    assert responses[-2].finished.stop_string == "o, wor"
    await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_cancelled_call_closes_the_engines_generator(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.never_ends = True
    call = stub.Generate(iter([start()]))
    async for response in call:
        if response.delta.text:
            break
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_sampling_reaches_the_engine_and_unset_fields_keep_defaults(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    sampling = llm_pb2.SamplingParams(temperature=0.5, top_k=7, seed=0)
    stop = llm_pb2.StopConditions(max_token_count=9, min_token_count=2, token_ids=[5])
    await exchange(stub, start(sampling=sampling, stop=stop))
    assert engine.params[0] == SamplingParams(
        temperature=0.5,
        top_k=7,
        seed=0,
        max_tokens=9,
        min_tokens=2,
        stop_token_ids=frozenset({5, END}),
    )


async def test_end_tokens_can_be_ignored(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    await exchange(stub, start(stop=llm_pb2.StopConditions(ignore_end_tokens=True)))
    assert engine.params[0].stop_token_ids == frozenset()


def biased(*biases: tuple[int, float]) -> llm_pb2.GenerateRequest:
    entries = [llm_pb2.LogitBias(token_id=token_id, bias=bias) for token_id, bias in biases]
    return start(sampling=llm_pb2.SamplingParams(logit_bias=entries))


async def test_bias_and_guide_and_salt_reach_the_engine(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    request = biased((3, -100), (1, 0.5))
    request.start.guided.regex = "Hel+o.*"
    request.start.cache_salt = "tenant"
    await exchange(stub, request)
    assert engine.params[0].logit_bias == ((3, -100.0), (1, 0.5))
    assert engine.params[0].guide == Guide("regex", "Hel+o.*")
    assert engine.prompts[0].cache_salt == "tenant"


async def test_a_priority_reaches_the_engine_where_it_is_allowed(engine: ScriptedEngine) -> None:
    async with serving(engine, engine.tokenizer, allows_priority=True) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        await exchange(stub, start(priority=-2, choice_count=2))
    assert [request.priority for request in engine.requests] == [-2, -2]
    assert engine.requests[0].account is engine.requests[1].account


async def test_a_priority_is_refused_where_it_is_not_allowed(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    with pytest.raises(InvalidArgumentError, match="--allow-priority") as refusal:
        await exchange(stub, start(priority=1))
    assert refusal.value.field == "priority"
    assert not engine.requests
    await exchange(stub, start(priority=0))


async def test_the_calls_deadline_reaches_the_engine(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    before = time.monotonic()
    async for _ in stub.Generate(iter([start()]), timeout=1000):
        pass
    await exchange(stub, start())
    given, none = (request.deadline for request in engine.requests)
    assert given is not None
    assert before < given < time.monotonic() + 1100  # gRPC rounds up on the wire
    assert none is None


@pytest.mark.parametrize(
    ("guided", "guide"),
    [
        (
            llm_pb2.GuidedDecoding(json_object=llm_pb2.JSONObjectGuide()),
            Guide("json_object"),
        ),
        (llm_pb2.GuidedDecoding(json_schema="{}"), Guide("json_schema", "{}")),
        (llm_pb2.GuidedDecoding(grammar='start: "a"'), Guide("grammar", 'start: "a"')),
    ],
    ids=["json_object", "json_schema", "grammar"],
)
async def test_every_kind_of_guide_reaches_the_engine(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ScriptedEngine,
    guided: llm_pb2.GuidedDecoding,
    guide: Guide,
) -> None:
    await exchange(stub, start(guided=guided))
    assert engine.params[0].guide == guide


async def test_logprobs_name_their_tokens_bytes(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    _, *deltas, _, _ = await exchange(stub, start(logprobs=llm_pb2.LogprobOptions(top_count=2)))
    assert engine.params[0].logprob_count == 2
    for response in deltas:
        (token_id,) = response.delta.token_ids
        (logprob,) = response.delta.logprobs
        assert (logprob.token_id, logprob.logprob) == (token_id, -0.5)
        tops = [(top.token_id, top.logprob) for top in logprob.top]
        assert tops == [(token_id, -0.5), (END, -1.5)]
        assert logprob.top[1].token == b"<|im_end|>"
    shown = b"".join(response.delta.logprobs[0].token for response in deltas[:-1])
    assert shown == b"Hello, world!"


async def test_no_logprobs_unless_asked_for(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    responses = await exchange(stub, start())
    assert engine.params[0].logprob_count is None
    assert not any(response.delta.logprobs for response in responses)


async def test_choices_come_by_their_index_and_cost_together(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    sampling = llm_pb2.SamplingParams(temperature=1, seed=7)
    responses = await exchange(stub, start(choice_count=3, sampling=sampling))
    assert [params.seed for params in engine.params] == [7, 8, 9]
    for index in range(3):
        texts = [r.delta.text for r in responses if r.delta.choice_index == index]
        assert "".join(texts) == "Hello, world!"
    ends = [r.finished.choice_index for r in responses if r.HasField("finished")]
    assert sorted(ends) == [0, 1, 2]
    usage = responses[-1].usage
    told = [each.delta for each in responses if each.delta.HasField("prompt_token_count")]
    assert [delta.prompt_token_count for delta in told] == [usage.prompt_token_count]
    assert usage.output_token_count == 3 * 5
    assert usage.prompt_token_count == len(engine.prompts[0].token_ids)
    assert usage.cached_token_count == 16  # the first choice's, not the three's


async def test_cancelled_call_closes_every_choice(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    engine.never_ends = True
    call = stub.Generate(iter([start(choice_count=3)]))
    async for _ in call:
        if len(engine.prompts) == 3:
            break
    call.cancel()
    for _ in range(3):
        await asyncio.wait_for(engine.closings.acquire(), 5)


async def test_an_answer_that_goes_on_keeps_the_space_before_its_first_word() -> None:
    engine = ScriptedEngine()
    engine.tokenizer, engine.text = real_tokenizer("internlm2_5"), " Hi"
    said = llm_pb2.ContentPart(text="Oh,")
    open_turn = llm_pb2.ChatMessage(role=llm_pb2.ROLE_ASSISTANT, parts=[said])
    async with serving(engine, engine.tokenizer) as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        texts = []
        for ending in (llm_pb2.CHAT_ENDING_UNSPECIFIED, llm_pb2.CHAT_ENDING_NEW_TURN):
            request = start()
            request.start.chat.messages.append(open_turn)
            request.start.chat.ending = ending
            texts.append(text_of(await exchange(stub, request)))
    assert texts == [" Hi", "Hi"]
    open_ids, new_turn_ids = (prompt.token_ids for prompt in engine.prompts)
    assert new_turn_ids[: len(open_ids)] == open_ids


@pytest.mark.parametrize(("regex", "text"), [("", "Hi"), (" Hi", " Hi")])
async def test_only_a_guided_text_keeps_sentencepieces_first_space(regex: str, text: str) -> None:
    engine = ScriptedEngine()
    engine.tokenizer, engine.text = real_tokenizer("internlm2_5"), " Hi"
    guided = llm_pb2.GuidedDecoding(regex=regex) if regex else None
    async with serving(engine, engine.tokenizer) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        assert text_of(await exchange(stub, start(guided=guided))) == text


async def test_a_long_guide_does_not_count_as_prompt(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    guided = llm_pb2.GuidedDecoding(regex="H" * 70_000)
    assert text_of(await exchange(stub, start(guided=guided))) == "Hello, world!"


START = llm_pb2.GenerateStart.DESCRIPTOR


def is_path(field: str, message: Descriptor) -> bool:
    """Whether this is a path of fields, the last of which may be a oneof."""
    *names, last = re.sub(r"\[\d+\]", "", field).split(".")
    for name in names:
        found = message.fields_by_name.get(name)
        if found is None or found.message_type is None:
            return False
        message = found.message_type
    return last in message.fields_by_name or last in message.oneofs_by_name


A = table(1.0)[1]
BIG = bytes((1 << 20) + 32)
OLD_CHUNK = b"\x1a\x06\x12\x04\x12\x02\0\0"  # field 3, where chunks were once


@pytest.mark.parametrize(
    ("error", "field", "sentence", "requests"),
    [
        (InvalidArgumentError, "start", "first message must start a request", [chunk(A)]),
        (
            InvalidArgumentError,
            "choice_count",
            "0 choices; it must ask for 1 to 16",
            [start(choice_count=0)],
        ),
        (
            InvalidArgumentError,
            "choice_count",
            "17 choices; it must ask for 1 to 16",
            [start(choice_count=17)],
        ),
        (
            InvalidArgumentError,
            "logprobs.top_count",
            "alternatives to a token is 21; it must be 0 to 20",
            [start(logprobs=llm_pb2.LogprobOptions(top_count=21))],
        ),
        (
            InvalidArgumentError,
            "guided",
            "the guide is empty",
            [start(guided=llm_pb2.GuidedDecoding())],
        ),
        (
            InvalidArgumentError,
            "cache_salt",
            "129 characters; it must have at most 128",
            [start(cache_salt="x" * 129)],
        ),
        (
            InvalidArgumentError,
            "sampling.logit_bias[0].bias",
            "token 1 is 100.5",
            [biased((1, 100.5))],
        ),
        (
            InvalidArgumentError,
            "sampling.logit_bias",
            "1025 biased tokens; at most 1024",
            [biased(*((token_id, 1) for token_id in range(1025)))],
        ),
        (
            InvalidArgumentError,
            "sampling.logit_bias[1].token_id",
            "token id is 151674; it must be 0 to 151673",
            [biased((1, 1), (151674, 1))],
        ),
        (
            InvalidArgumentError,
            "sampling.logit_bias[2].token_id",
            "1 has a bias already",
            [biased((1, 1), (2, 1), (1, 1))],
        ),
        (
            InvalidArgumentError,
            "sampling.top_p",
            "top-p is 1.5; it must be 0 to 1",
            [start(sampling=llm_pb2.SamplingParams(top_p=1.5))],
        ),
        (
            InvalidArgumentError,
            "stop.strings[0]",
            "a stop string has 0 characters; it must have 1 to 256",
            [start(stop=llm_pb2.StopConditions(strings=[""]))],
        ),
        (
            InvalidArgumentError,
            "stop.strings",
            "17 stop strings; at most 16",
            [start(stop=llm_pb2.StopConditions(strings=["x"] * 17))],
        ),
        (
            InvalidArgumentError,
            "stop.token_ids[0]",
            "token id is 151674; it must be 0 to 151673",
            [start(stop=llm_pb2.StopConditions(token_ids=[151674]))],
        ),
        (
            InvalidArgumentError,
            "request_id",
            "129 characters; it must have at most 128",
            [start(request_id="x" * 129)],
        ),
        (InvalidArgumentError, "images", "5 images; at most 4", [start(images="abcde")]),
        (
            InvalidArgumentError,
            "images[0].recipe_sha256",
            "0 bytes; a SHA-256 has 32",
            [
                llm_pb2.GenerateRequest(
                    start=llm_pb2.GenerateStart(
                        text="<image>",
                        images=[tensor_pb2.EmbeddingId(content_sha256=b"x" * 32)],
                    )
                )
            ],
        ),
        (
            InvalidArgumentError,
            "images",
            "places for 2 images, but the request has 1",
            [
                llm_pb2.GenerateRequest(
                    start=llm_pb2.GenerateStart(
                        text="a <image> <image>", images=[embedding_id("a")]
                    )
                )
            ],
        ),
        (
            InvalidArgumentError,
            "logprobs.prompt",
            "the request has 1 images; log probabilities are those of a prompt without any",
            [start(images=["a"], logprobs=llm_pb2.LogprobOptions(prompt=True))],
        ),
        (
            InvalidArgumentError,
            "prompt",
            "the request has no prompt",
            [llm_pb2.GenerateRequest(start=llm_pb2.GenerateStart())],
        ),
        (
            InvalidArgumentError,
            "chat.messages[0].role",
            "role is 0; it must be system, user, assistant or tool",
            [
                llm_pb2.GenerateRequest(
                    start=llm_pb2.GenerateStart(
                        chat=llm_pb2.ChatPrompt(messages=[llm_pb2.ChatMessage()])
                    )
                )
            ],
        ),
        (
            InvalidArgumentError,
            "chat.messages[0].parts[0]",
            "neither text nor an image",
            [
                llm_pb2.GenerateRequest(
                    start=llm_pb2.GenerateStart(
                        chat=llm_pb2.ChatPrompt(
                            messages=[
                                llm_pb2.ChatMessage(
                                    role=llm_pb2.ROLE_USER, parts=[llm_pb2.ContentPart()]
                                )
                            ]
                        )
                    )
                )
            ],
        ),
        (ContextLengthError, "chat.messages", "length is 4096", [start("a b " * 4096)]),
        (
            ContextLengthError,
            "chat.messages",
            "prompt is too long: .* or more, .* This model's maximum context length is 4096 tokens",
            [start(images=["a"]), header(0, 4090)],
        ),
        (
            InvalidTensorError,
            "embedding_header.spec.shape",
            r"\[4097, 8\]; it must be \[1 to 4096 rows, 8\]",
            [start(images=["a"]), header(0, 4097)],
        ),
        (
            InvalidTensorError,
            "embedding_header.spec.dtype",
            "BF16, FP16 or FP32",
            [start(images=["a"]), header(dtype=tensor_pb2.DATA_TYPE_UNSPECIFIED)],
        ),
        (
            InvalidTensorError,
            "embedding_header.spec.byte_count",
            "announced with 63 bytes; it must have 64",
            [start(images=["a"]), header(byte_count=63)],
        ),
        (
            ModelMismatchError,
            "embedding_header.spec.shape",
            "rows of 9 values, this model needs 8",
            [start(images=["a"]), header(shape=[2, 9], byte_count=72)],
        ),
        (
            InvalidTensorError,
            "embedding_header.image_index",
            "no image 1; the request has 1",
            [start(images=["a"]), header(1)],
        ),
        (
            InvalidTensorError,
            "embedding_chunk.image_index",
            "image 0 has not been announced",
            [start(images=["a"]), chunk(A)],
        ),
        (
            InvalidTensorError,
            "embedding_header",
            "has been announced already",
            [start(images=["a"]), header(), header()],
        ),
        (
            InvalidTensorError,
            "embedding_chunk.offset",
            "starts at byte 4; it must start at 0",
            [start(images=["a"]), header(), chunk(A[4:], offset=4)],
        ),
        (
            InvalidTensorError,
            "embedding_chunk.data",
            "ends at byte 68, but the embedding at 64",
            [start(images=["a"]), header(), chunk(A + b"more")],
        ),
        (
            InvalidTensorError,
            "embedding_chunk.data",
            "has 1048608 bytes; it must have 1 to 1048576",
            [start(images=["a"]), header(), chunk(BIG)],
        ),
        (
            InvalidTensorError,
            "embedding_chunk.data",
            "has 0 bytes; it must have 1 to 1048576",
            [start(images=["a"]), header(), chunk(b"")],
        ),
        (
            InvalidTensorError,
            "embedding_trailer",
            "ended after 32 of 64 bytes",
            [start(images=["a"]), header(), chunk(A[:32]), trailer(A[:32])],
        ),
        (
            DataLossError,
            "",
            "CRC-32",
            [start(images=["a"]), header(), chunk(A), trailer(A[:-1] + b"x")],
        ),
        (
            InvalidTensorError,
            "images",
            r"ended before the embeddings of images \[0\]",
            [start(images=["a"]), header(), chunk(A)],
        ),
        (
            InvalidArgumentError,
            "start",
            "not by another start",
            [start(images=["a"]), start()],
        ),
        (
            InvalidArgumentError,
            "message",
            "not by a message unknown here",
            [start(images=["a"]), llm_pb2.GenerateRequest.FromString(OLD_CHUNK)],
        ),
    ],
)
async def test_refusals(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    error: type[ServiceError],
    field: str,
    sentence: str,
    requests: list[llm_pb2.GenerateRequest],
) -> None:
    with pytest.raises(error, match=sentence) as info:
        await exchange(stub, *requests)
    assert type(info.value) is error
    assert info.value.field == field
    assert not field or any(
        map(partial(is_path, field), (START, llm_pb2.GenerateRequest.DESCRIPTOR))
    )
    assert not re.search(r"[a-z][._][a-z]", info.value.message)


async def test_chunks_are_read_where_grpc_put_them(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ScriptedEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    messages: list[object] = []
    add = TableUpload.add

    def noting(upload: TableUpload, offset: int, data: memoryview) -> None:
        messages.append(data.obj)
        add(upload, offset, data)

    monkeypatch.setattr(TableUpload, "add", noting)
    chunks = [chunk(A[:40]), chunk(A[40:], 40)]
    await exchange(stub, start(images=["a"]), header(), *chunks, trailer(A))
    assert messages == [one.SerializeToString() for one in chunks]
    assert torch.equal(engine.prompts[0].prompt_table, table(1.0)[0])


def generate_of_bytes(
    channel: grpc.aio.Channel, *messages: llm_pb2.GenerateRequest | bytes
) -> grpc.aio.StreamStreamCall[Any, llm_pb2.GenerateResponse]:
    """Returns a Generate call that sends these, bytes as they are."""
    call = channel.stream_stream(
        f"/{SERVICE_NAME}/Generate",
        request_serializer=serialized,
        response_deserializer=llm_pb2.GenerateResponse.FromString,
    )
    return call(iter(messages))


async def test_a_chunk_in_another_layout_is_read_by_protobuf(
    channel: grpc.aio.Channel, engine: ScriptedEngine
) -> None:
    data_first = b"\x1a" + bytes([len(A)]) + A + b"\x10\0\x78\1"  # and a field that nobody knows
    message = b"\x2a" + bytes([len(data_first)]) + data_first
    assert read_chunk(message) is None
    call = generate_of_bytes(channel, start(images=["a"]), header(), message, trailer(A))
    assert [one.WhichOneof("message") async for one in call][-1] == "usage"
    assert torch.equal(engine.prompts[0].prompt_table, table(1.0)[0])


async def test_a_message_that_is_none_is_refused(channel: grpc.aio.Channel) -> None:
    broken = chunk(A).SerializeToString()[:-1]
    with pytest.raises(grpc.aio.AioRpcError) as info:
        async for _ in generate_of_bytes(channel, start(images=["a"]), header(), broken):
            pass
    assert from_rpc_error(info.value).message == "the message is not valid protobuf"


async def test_finished_uploads_give_their_memory_back(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    rows = 4000  # 128,000 bytes each: eight fit into TABLE_BYTES, nine do not
    _, data = table(1.0, rows)
    for index in range(9):
        await exchange(stub, start(images=[f"image {index}"]), *upload(data, rows=rows))


async def timed_out(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, requests: AsyncIterator[llm_pb2.GenerateRequest]
) -> str:
    """Returns the sentence of a call that is ended for want of time."""
    with pytest.raises(grpc.aio.AioRpcError) as info:
        async for _ in stub.Generate(requests):
            pass
    error = from_rpc_error(info.value)
    assert type(error) is DeadlineError
    return error.message


async def test_stalled_upload_is_ended(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_service.images.UPLOAD_IDLE_SECONDS", 0.05)

    async def stalled() -> AsyncIterator[llm_pb2.GenerateRequest]:
        yield start(images=["a"])
        yield header()
        await asyncio.Event().wait()

    sentence = await timed_out(stub, stalled())
    assert sentence == "an embedding made no progress for 0.05 seconds"


async def nothing_comes() -> AsyncIterator[llm_pb2.GenerateRequest]:
    yield start(images=["a"])
    await asyncio.Event().wait()


async def crumbs_come() -> AsyncIterator[llm_pb2.GenerateRequest]:
    """Sends a table so slowly that it takes two seconds, and never stops for long."""
    yield start(images=["a"])
    yield header(rows=2)
    for offset in range(64):
        yield chunk(b"x", offset)
        await asyncio.sleep(0.03)


@pytest.mark.parametrize("requests", [nothing_comes, crumbs_come])
async def test_an_upload_has_its_time(
    engine: ScriptedEngine, requests: Callable[[], AsyncIterator[llm_pb2.GenerateRequest]]
) -> None:
    async with serving(engine, engine.tokenizer, upload_seconds=0.2) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        sentence = await timed_out(stub, requests())
    assert sentence == "the embeddings did not arrive within 0.2 seconds"


async def test_a_table_in_crumbs_is_refused(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    crumbs = [chunk(b"x", offset) for offset in range(66)]
    with pytest.raises(InvalidTensorError, match="96 bytes has more than 64 chunks") as info:
        await exchange(stub, start(images=["a"]), header(rows=3), *crumbs)
    assert info.value.field == "embedding_chunk.data"


async def test_an_image_is_taken_once(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    """Nobody keeps a call busy by sending the one image, over and over, and never the other."""
    requests = [start(images=["a", "b"]), *upload(A), *upload(A)]
    with pytest.raises(InvalidTensorError, match="image 0 has been announced already"):
        await exchange(stub, *requests)


async def test_long_text_is_refused_before_it_is_tokenized(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", None)
    with pytest.raises(ContextLengthError, match="has 70[0-9]{3} bytes, and at most 65536"):
        await exchange(stub, start("x" * 70_000))


async def test_arriving_tables_are_bounded_and_given_back(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    """An upload that breaks off returns its share of the memory for arriving tables."""
    rows = 4000  # 128,000 bytes each: eight fit into TABLE_BYTES, nine do not
    for _ in range(9):
        with pytest.raises(InvalidTensorError, match="ended before"):
            await exchange(stub, start(images=["a"]), header(0, rows))


async def test_a_table_without_memory_gives_its_share_back(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_memory(*_: object) -> torch.Tensor:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(TableArena, "new_table", no_memory)
        for _ in range(9):  # of which eight fit
            with pytest.raises(ServiceError) as caught:
                await exchange(stub, start(images=["a"]), header(0, 4000))
            assert "arriving" not in caught.value.message
    _, data = table(1.0, 4000)
    assert text_of(await exchange(stub, start(images=["a"]), *upload(data, rows=4000)))


async def test_too_many_arriving_bytes_are_refused_with_a_time_to_retry(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    release = asyncio.Event()

    async def slow() -> AsyncIterator[llm_pb2.GenerateRequest]:
        yield start(images=["a"])
        yield header(0, 4000)
        await release.wait()

    calls = [stub.Generate(slow()) for _ in range(8)]
    for call in calls:
        await call.read()  # `wanted`; the header follows at once
    # The eighth header may still be on its way: ask until it has taken the last of the memory.
    while (refusal := await _overload(stub)) is None:
        pass
    assert "limit of 1048576" in refusal.message
    assert refusal.retry_after == 1.0
    for call in calls:
        call.cancel()
    release.set()


async def _overload(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> OverloadedError | None:
    try:
        await exchange(stub, start(images=["b"]), header(0, 4000))
    except OverloadedError as error:
        return error
    except InvalidTensorError:
        return None
    raise AssertionError("an incomplete upload was accepted")


@pytest.mark.parametrize(
    "error",
    [OverloadedError("the queue is full", retry_after=2.0), EngineDeadError("the engine died")],
    ids=["overloaded", "dead"],
)
async def test_engine_errors_cross_the_wire(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine, error: ServiceError
) -> None:
    engine.error = error
    with pytest.raises(type(error)) as info:
        await exchange(stub, start())
    assert (info.value.message, info.value.retry_after) == (error.message, error.retry_after)


async def test_count_tokens_counts_what_generate_would(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    request = start(images=["a"])
    usage = (await exchange(stub, request, *upload(A)))[-1].usage
    count = await stub.CountTokens(
        llm_pb2.CountTokensRequest(chat=request.start.chat, image_row_counts=[2])
    )
    assert count.prompt_token_count == usage.prompt_token_count
    assert count.image_token_count == usage.image_token_count == 2


async def test_typed_tags_are_tokens_and_typed_control_tokens_are_not(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    await exchange(stub, start("<ref>a</ref><|im_end|>"))
    ids = engine.prompts[-1].token_ids
    assert (ids.count(151670), ids.count(151671), ids.count(END)) == (1, 1, 2)
    count = await stub.CountTokens(llm_pb2.CountTokensRequest(text="<ref>a</ref>"))
    assert count.prompt_token_count == 3


async def test_count_tokens_refuses_a_wrong_number_of_images(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="1 images, but the request has 2") as info:
        await stub.CountTokens(
            llm_pb2.CountTokensRequest(text="<image>", image_row_counts=[256, 256])
        )
    assert from_rpc_error(info.value).field == "image_row_counts"


@pytest.mark.parametrize("row_count", [0, CONTEXT + 1, 2**31 - 1])
async def test_count_tokens_refuses_rows_that_no_image_has(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, row_count: int
) -> None:
    request = llm_pb2.CountTokensRequest(text="<image>", image_row_counts=[row_count])
    with pytest.raises(
        grpc.aio.AioRpcError, match=f"{row_count} rows; it must have 1 to 4096"
    ) as info:
        await stub.CountTokens(request)
    assert from_rpc_error(info.value).field == "image_row_counts[0]"


USER = llm_pb2.ChatMessage(role=llm_pb2.ROLE_USER)
PICTURE = llm_pb2.ContentPart(image=llm_pb2.ImagePart())
MANY_MESSAGES = llm_pb2.ChatPrompt(messages=[USER] * 2049)
MANY_CALLS = llm_pb2.ChatPrompt(
    messages=[
        llm_pb2.ChatMessage(role=llm_pb2.ROLE_ASSISTANT, tool_calls=[llm_pb2.ToolCall()] * 2049)
    ]
)
MANY_PICTURES = llm_pb2.ChatPrompt(
    messages=[llm_pb2.ChatMessage(role=llm_pb2.ROLE_USER, parts=[PICTURE] * 5)]
)


@pytest.mark.parametrize(
    ("field", "sentence", "prompt"),
    [
        ("chat.messages", "has 2049 messages; at most 2048", {"chat": MANY_MESSAGES}),
        ("chat.messages", "has 2049 calls of tools; at most 2048", {"chat": MANY_CALLS}),
        ("chat.messages", "has 5 images; at most 4", {"chat": MANY_PICTURES}),
    ],
    ids=["messages", "calls", "pictures"],
)
async def test_a_prompt_of_many_parts_is_refused_before_it_is_tokenized(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    monkeypatch: pytest.MonkeyPatch,
    field: str,
    sentence: str,
    prompt: dict[str, Any],
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", None)
    with pytest.raises(InvalidArgumentError, match=sentence) as info:
        await exchange(stub, llm_pb2.GenerateRequest(start=llm_pb2.GenerateStart(**prompt)))
    assert info.value.field == field
    with pytest.raises(grpc.aio.AioRpcError, match=sentence) as caught:
        await stub.CountTokens(llm_pb2.CountTokensRequest(**prompt))
    assert from_rpc_error(caught.value).field == field


async def test_a_text_of_many_places_is_refused_before_it_is_tokenized(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tokenizer, "encode", None)
    prompt = llm_pb2.GenerateStart(text="<image>" * 5, images=[embedding_id("a")])
    with pytest.raises(InvalidArgumentError, match="has 5 images; at most 4") as info:
        await exchange(stub, llm_pb2.GenerateRequest(start=prompt))
    assert info.value.field == "text"


async def test_without_images_their_places_in_a_text_are_text(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    text = "<image>" * 5
    request = llm_pb2.GenerateRequest(start=llm_pb2.GenerateStart(text=text))
    (*_, usage) = await exchange(stub, request)
    assert engine.prompts[0].token_ids == engine.tokenizer.encode(text)
    assert usage.usage.image_token_count == 0
    count = await stub.CountTokens(llm_pb2.CountTokensRequest(text=text))
    assert count.prompt_token_count == len(engine.prompts[0].token_ids)


async def test_rows_of_many_images_are_not_counted(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    request = llm_pb2.CountTokensRequest(text="<image>", image_row_counts=[1] * 5)
    with pytest.raises(grpc.aio.AioRpcError, match="has 5 images; at most 4") as caught:
        await stub.CountTokens(request)
    assert from_rpc_error(caught.value).field == "image_row_counts"


async def test_few_prompts_are_counted_at_a_time(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two take their turns, others wait, more are refused, and a generation waits for none."""
    release = threading.Event()
    counting = threading.Semaphore(0)
    encode = Tokenizer.encode

    def held(tokenizer: Tokenizer, text: str) -> list[int]:
        if text == "held":
            counting.release()
            release.wait(30)
        return encode(tokenizer, text)

    monkeypatch.setattr(Tokenizer, "encode", held)
    request = llm_pb2.CountTokensRequest(text="held")
    calls = [stub.CountTokens(request) for _ in range(70)]
    codes = [asyncio.ensure_future(call.code()) for call in calls]
    done: set[asyncio.Future[grpc.StatusCode]] = set()
    while len(done) < 6:
        done, _ = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
    assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
    assert text_of(await exchange(stub, start())) == "Hello, world!"
    assert counting.acquire(timeout=5)
    assert counting.acquire(timeout=5)
    assert not counting.acquire(blocking=False)
    release.set()
    ends = await asyncio.gather(*codes)
    assert ends.count(grpc.StatusCode.OK) == 64


async def test_model_info_and_load(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    info = await stub.GetModelInfo(llm_pb2.LLMServiceGetModelInfoRequest())
    assert (info.model, info.engine, info.hidden_size) == ("tiny", "torch", HIDDEN_SIZE)
    assert info.vocabulary_size == 151674
    assert len(info.fingerprint_sha256) == 32
    assert (list(info.aliases), info.created_unix_seconds) == (["small", "toy"], 1_700_000_000)
    load = await stub.GetLoad(llm_pb2.GetLoadRequest())
    assert (load.running_sequence_count, load.waiting_sequence_count) == (1, 2)
    assert (load.free_kv_token_count, load.total_kv_token_count) == (3, 4)
