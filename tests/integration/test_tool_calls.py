"""Calls of tools over real gRPC: with a scripted engine behind it, and with real ones."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import pytest_asyncio
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]

from llm_service.checkpoint import LLMConfig
from llm_service.engines import guide_trial, guides
from llm_service.engines.base import Request, TokenOutput
from llm_service.pieces import tokenized
from llm_service.sampling import Guide, ToolCallGuide
from llm_service.settings import Settings, TensorRTLLMOptions, TorchOptions
from llm_service.tools.base import ToolCall, ToolDefinition
from llm_service.tools.plugin import PluginFormat
from protos.errors import ContextLengthError, InvalidArgumentError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.status import from_rpc_error
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import (
    END,
    chunk,
    exchange,
    header,
    serving,
    start,
    text_of,
    trailer,
)
from tests.integration.real_services import running_llm
from tests.random_checkpoint import TEXT_WIDTH, write_random_checkpoint
from tests.real_tokenizers import real_tokenizer
from tests.tool_schemas import arguments_schema
from tests.unit.llm_service.engines.tensorrt_llm.double import installed_double
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)

if TYPE_CHECKING:
    Stub = llm_pb2_grpc.LLMServiceAsyncStub

# Of the TensorRT-LLM engine: 16 sequences at a time, each with a tile.
BUILD = {
    "max_batch_size": 16,
    "max_input_len": 4096,
    "max_seq_len": 4096,
    "max_prompt_embedding_table_size": 16 * 256,
}
MANY = [llm_pb2.ToolDefinition(name=str(i)) for i in range(129)]
CITY = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 3}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = llm_pb2.ToolDefinition(name="weather", parameters=json.dumps(CITY))
CLOCK = llm_pb2.ToolDefinition(name="clock", description="The time.")
AUTO, REQUIRED = llm_pb2.TOOL_CHOICE_AUTO, llm_pb2.TOOL_CHOICE_REQUIRED
NO_CHOICE = llm_pb2.TOOL_CHOICE_UNSPECIFIED
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "STOP"}}\n</tool_call>'


def asking(
    *tools: llm_pb2.ToolDefinition,
    choice: llm_pb2.ToolChoice.ValueType = AUTO,
    names: Iterable[str] = (),
    single: bool = False,
    images: Iterable[str] = (),
    **fields: Any,
) -> llm_pb2.GenerateRequest:
    request = start("Warm?", images, **fields)
    request.start.chat.tools.extend(tools)
    calls = llm_pb2.ToolCallGuide(choice=choice, names=names, single=single)
    request.start.guided.tool_calls.CopyFrom(calls)
    return request


def calls_of(
    responses: Iterable[llm_pb2.GenerateResponse], choice_index: int = 0
) -> list[tuple[str, str]]:
    """Returns names and arguments of one choice's calls, as their pieces add up."""
    calls: list[tuple[str, str]] = []
    for response in responses:
        if response.delta.choice_index != choice_index:
            continue
        for piece in response.delta.tool_calls:
            assert bool(piece.name) == (piece.call_index == len(calls))
            if piece.name:
                calls.append((piece.name, ""))
            name, arguments = calls[piece.call_index]
            calls[piece.call_index] = (name, arguments + piece.arguments)
    return calls


class ScriptedEngine(IdleEngine):
    """Gives out a text's tokens one by one, for each choice the next of several texts."""

    def __init__(self) -> None:
        self.texts = [""]
        self.encode: Callable[[str], list[int]] = real_tokenizer("qwen2_5").encode
        self.finish: Any = "stop"
        self.requests: list[Request] = []

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        text = self.texts[len(self.requests) % len(self.texts)]
        self.requests.append(request)
        *ids, last = [*self.encode(text), *([END] * (self.finish == "stop"))]
        for token_id in ids:
            yield TokenOutput([token_id], None)
        yield TokenOutput([last], self.finish)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def stub(engine: ScriptedEngine) -> AsyncIterator[Stub]:
    async with serving(engine, real_tokenizer("qwen2_5")) as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


async def test_calls_follow_the_text_piece_by_piece(stub: Stub, engine: ScriptedEngine) -> None:
    engine.texts = [f"Let me see.\n{CALL}\n{CALL}"]
    responses = await exchange(stub, asking(WEATHER))
    assert text_of(responses) == "Let me see."
    assert calls_of(responses) == 2 * [("weather", '{"city": "STOP"}')]
    first = [p for r in responses for p in r.delta.tool_calls if p.call_index == 0]
    assert len(first) > 3
    ids = [token_id for r in responses for token_id in r.delta.token_ids]
    assert ids == [*real_tokenizer("qwen2_5").encode(engine.texts[0]), END]
    assert responses[-1].usage.output_token_count == len(ids)


async def test_internlm2_calls_in_its_own_format_under_the_newer_template(
    engine: ScriptedEngine,
) -> None:
    """As InternVL2.5-8B: its tokenizer has the marks, and its template is internvl2_5."""
    tokenizer = real_tokenizer("internlm2_5")
    call = PluginFormat.envelope.pieces(ToolCall("weather", '{"city": "STOP"}'))
    (said,) = tokenized(tokenizer, ["Let me see.", *call, *call], has_beginning=False)
    engine.encode = lambda _: [*said]
    async with serving(engine, tokenizer) as channel:
        responses = await exchange(llm_pb2_grpc.LLMServiceStub(channel), asking(WEATHER))
    assert text_of(responses) == "Let me see."
    assert calls_of(responses) == 2 * [("weather", '{"city": "STOP"}')]
    # Of the turn that defines the tool.
    assert engine.requests[0].prompt.token_ids.count(tokenizer.special_id("<|plugin|>")) == 1


async def test_without_a_guide_of_calls_they_are_text(stub: Stub, engine: ScriptedEngine) -> None:
    engine.texts = [CALL]
    request = start()
    request.start.chat.tools.append(WEATHER)
    responses = await exchange(stub, request)
    assert (text_of(responses), calls_of(responses)) == (CALL, [])


async def test_stop_strings_end_the_text_and_no_call(stub: Stub, engine: ScriptedEngine) -> None:
    stop = llm_pb2.StopConditions(strings=["STOP", "weather", "see it"])
    engine.texts = [f"Let me see\n{CALL}"]
    responses = await exchange(stub, asking(WEATHER, stop=stop))
    assert text_of(responses) == "Let me see"
    assert calls_of(responses) == [("weather", '{"city": "STOP"}')]
    engine.texts = [f"a STOP\n{CALL}"]
    responses = await exchange(stub, asking(WEATHER, stop=stop))
    assert (text_of(responses), calls_of(responses)) == ("a ", [])
    (finished,) = (r.finished for r in responses if r.HasField("finished"))
    assert finished.stop_string == "STOP"


async def test_a_cut_answer_has_the_pieces_so_far(stub: Stub, engine: ScriptedEngine) -> None:
    engine.texts, engine.finish = [CALL.partition("STOP")[0] + "ST"], "length"
    responses = await exchange(stub, asking(WEATHER, choice=REQUIRED))
    assert calls_of(responses) == [("weather", '{"city": "ST')]
    (finished,) = (r.finished for r in responses if r.HasField("finished"))
    assert finished.reason == llm_pb2.FINISH_REASON_LENGTH


async def test_each_choice_has_its_own_calls(stub: Stub, engine: ScriptedEngine) -> None:
    engine.texts = ["No.", CALL, f"So:\n{CALL}\n{CALL}"]
    responses = await exchange(stub, asking(WEATHER, choice_count=3))
    assert [len(calls_of(responses, index)) for index in range(3)] == [0, 1, 2]
    texts = [
        "".join(r.delta.text for r in responses if r.delta.choice_index == index)
        for index in range(3)
    ]
    assert texts == ["No.", "", "So:"]


async def test_what_tools_may_be_called_reaches_the_engine(
    stub: Stub, engine: ScriptedEngine
) -> None:
    engine.texts = ["{}"]
    request = asking(WEATHER, CLOCK, names=["clock"], single=True)
    request.start.guided.regex = "{}"
    await exchange(stub, request)
    guide = engine.requests[0].params.guide
    assert isinstance(guide, ToolCallGuide)
    assert guide.instead == Guide("regex", "{}")
    assert not guide.is_required
    assert guide.calls.is_single
    assert guide.calls.callable_tools == {1: ToolDefinition("clock")}
    request.start.guided.tool_calls.choice = REQUIRED
    await exchange(stub, request)
    guide = engine.requests[1].params.guide
    assert isinstance(guide, ToolCallGuide)
    assert (guide.is_required, guide.instead) == (True, None)


async def test_tools_count_as_prompt(stub: Stub, engine: ScriptedEngine) -> None:
    engine.texts = ["Hi"]
    responses = await exchange(stub, asking(WEATHER, CLOCK))
    chat = asking(WEATHER, CLOCK).start.chat
    count = await stub.CountTokens(llm_pb2.CountTokensRequest(chat=chat))
    assert count.prompt_token_count == responses[-1].usage.prompt_token_count
    bare = await stub.CountTokens(llm_pb2.CountTokensRequest(chat=start("Warm?").start.chat))
    assert count.prompt_token_count > bare.prompt_token_count + 100


def tool(parameters: str = "", name: str = "a") -> llm_pb2.ToolDefinition:
    return llm_pb2.ToolDefinition(name=name, parameters=parameters)


def of_text() -> llm_pb2.GenerateRequest:
    request = asking()
    request.start.text = "Hi"
    return request


@pytest.mark.parametrize(
    ("field", "sentence", "request_"),
    [
        ("chat.tools", "has 129 tools; at most 128", asking(*MANY)),
        ("chat.tools[1].name", "0 characters; it must have 1", asking(tool(), tool(name=""))),
        ("chat.tools[0].name", "129 characters", asking(tool(name="é" * 129))),
        ("chat.tools[1].name", "two tools 'a'", asking(tool(), tool())),
        ("chat.tools[0].parameters", "no JSON: Expecting", asking(tool("{"))),
        ("chat.tools[0].parameters", "no JSON: ", asking(tool('{"a": "\\ud800"}'))),
        ("chat.tools[0].parameters", "no JSON: ", asking(tool("[" * 50_000))),
        ("chat.tools[0].parameters", "no JSON: ", asking(tool('{"a": NaN}'))),
        ("chat.tools[0].parameters", "must be an object", asking(tool("[]"))),
        ("chat.tools[0].parameters.type", "must be object", asking(tool('{"type": "array"}'))),
        ("guided.tool_calls.choice", "is 0; it must be auto", asking(tool(), choice=NO_CHOICE)),
        ("guided.tool_calls.names[1]", "'b' is none", asking(tool(), names="ab")),
        ("guided.tool_calls", "the prompt defines none", asking()),
        ("guided.tool_calls", "the prompt defines none", of_text()),
    ],
)  # fmt: skip
async def test_refusals(
    stub: Stub, field: str, sentence: str, request_: llm_pb2.GenerateRequest
) -> None:
    with pytest.raises(InvalidArgumentError, match=sentence) as info:
        await exchange(stub, request_)
    assert info.value.field == field


async def test_long_definitions_count_as_prompt(stub: Stub) -> None:
    large = llm_pb2.ToolDefinition(name="large", description="x" * 70_000)
    with pytest.raises(ContextLengthError) as info:
        await exchange(stub, asking(large))
    assert info.value.field == "chat.messages"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tools") / "random"
    write_random_checkpoint(folder)
    return folder


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["torch", "tensorrt_llm"])
async def real(
    request: pytest.FixtureRequest, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stub]:
    """An LLM service of random weights; of TensorRT-LLM the double."""
    folder = tmp_path_factory.mktemp("engine")
    document = engine_document(LLMConfig.from_checkpoint(checkpoint), build=BUILD)
    options: dict[str, Any] = {
        "torch": TorchOptions(device="cpu", dtype="float32", thread_count=1),
        "tensorrt_llm": TensorRTLLMOptions(
            engine_folder=write_engine_folder(folder, document, checkpoint),
            max_request_tile_count=1,
        ),
    }
    name = request.param
    settings = Settings.model_validate(
        {"checkpoint": checkpoint, "engine": name, name: options[name]}
        | {"kv_cache_byte_count": 2**24}
    )
    with installed_double() if name == "tensorrt_llm" else nullcontext():
        async with (
            running_llm(settings) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield llm_pb2_grpc.LLMServiceStub(channel)


def sampled(seed: int) -> dict[str, Any]:
    return {
        "sampling": llm_pb2.SamplingParams(temperature=1, seed=seed),
        "stop": llm_pb2.StopConditions(max_token_count=400),
    }


async def required_call(stub: Stub, seed: int) -> None:
    """Has a call made to one of two tools of random schemas; it fits its tool's."""
    schemas = {f"tool_{i}": arguments_schema(2 * seed + i) for i in range(2)}
    tools = [
        llm_pb2.ToolDefinition(name=name, parameters=json.dumps(schema), strict=True)
        for name, schema in schemas.items()
    ]
    request = asking(*tools, choice=REQUIRED, single=True, **sampled(seed))
    responses = await exchange(stub, request)
    assert text_of(responses) == ""
    ((name, arguments),) = calls_of(responses)
    Draft202012Validator(schemas[name]).validate(json.loads(arguments))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "count", [10, pytest.param(500, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]
)
async def test_every_required_call_fits_its_tool(
    real: Stub, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Tries guides in this process, at a tenth of the time: they are some that the trial survives.
    monkeypatch.setattr(guides, "_trials", lambda tried: list(map(guide_trial.refusal, tried)))
    for first in range(0, count, 10):
        await asyncio.gather(*(required_call(real, first + i) for i in range(10)))


@pytest.mark.slow
@pytest.mark.asyncio(loop_scope="module")
async def test_calls_about_a_picture_several_choices_and_a_guide(real: Stub) -> None:
    data = bytes(256 * TEXT_WIDTH * 4)
    request = asking(
        *(WEATHER, CLOCK),
        names=["weather"],
        images=["cat"],
        choice_count=2,
        guided=llm_pb2.GuidedDecoding(regex="(yes|no)"),
        **sampled(0),
    )
    announced = header(rows=256, shape=[256, TEXT_WIDTH], byte_count=len(data))
    called = said = 0
    for seed in range(12):
        request.start.sampling.seed = seed
        responses = await exchange(real, request, announced, chunk(data), trailer(data))
        for index in range(2):
            text = "".join(r.delta.text for r in responses if r.delta.choice_index == index)
            calls = calls_of(responses, index)
            assert bool(calls) != (text in ("yes", "no"))
            said += bool(text)
            for name, arguments in calls:
                assert name == "weather"
                called += 1
                if arguments.endswith("}"):
                    Draft202012Validator(CITY).validate(json.loads(arguments))
    assert called
    assert said


@pytest.mark.asyncio(loop_scope="module")
async def test_a_strict_schema_that_cannot_be_enforced_is_refused(real: Stub) -> None:
    bad = json.dumps({"properties": {"a": {"type": "array", "uniqueItems": True}}})
    strict = llm_pb2.ToolDefinition(name="bad", parameters=bad, strict=True)
    asked = asking(WEATHER, strict, **sampled(0))
    with pytest.raises(InvalidArgumentError, match="uniqueItems") as info:
        await exchange(real, asked)
    assert info.value.field == "chat.tools[1].parameters.properties.a.uniqueItems"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await real.CheckGuide(checking(asked))
    checked = from_rpc_error(error.value)
    assert (checked.field, checked.message) == (info.value.field, info.value.message)


def checking(request: llm_pb2.GenerateRequest) -> llm_pb2.CheckGuideRequest:
    start = request.start
    return llm_pb2.CheckGuideRequest(guided=start.guided, tools=start.chat.tools)


@pytest.mark.asyncio(loop_scope="module")
async def test_guides_of_tools_are_checked_alone(real: Stub) -> None:
    await real.CheckGuide(checking(asking(WEATHER, CLOCK)))
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await real.CheckGuide(checking(asking(WEATHER, names=["clock"])))
    assert from_rpc_error(error.value).field == "guided.tool_calls.names[0]"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await real.CheckGuide(llm_pb2.CheckGuideRequest(tools=[tool("[]")]))
    assert from_rpc_error(error.value).field == "chat.tools[0].parameters"
