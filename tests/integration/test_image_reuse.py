"""Images whose tables are gone: not wanted while the KV cache replaces them, else wanted once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, nullcontext
from typing import NamedTuple

import grpc
import pytest
import torch

from llm_service.__main__ import load, make_service
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt, Request, RowsNeededError, TokenOutput
from llm_service.metrics import Metrics
from llm_service.settings import Settings, TensorRTLLMOptions, TorchOptions
from protos.errors import ContextLengthError, OverloadedError, ServiceError
from protos.identity import EmbeddingId
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import (
    END,
    HIDDEN_SIZE,
    channel_to,
    chunk,
    exchange,
    header,
    serving,
    start,
    table,
    text_of,
    trailer,
    upload,
)
from tests.random_checkpoint import TEXT_WIDTH, write_random_checkpoint
from tests.real_tokenizers import real_tokenizer
from tests.unit.llm_service.engines.tensorrt_llm.double import installed_double
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)

ROWS_A, A = table(1.0)
ROWS_B, B = table(2.0)
QUESTION = start(images=["a", "b"])


class ForgetfulEngine(IdleEngine):
    """Says "Hello" to each prompt whose images it is given, or has been given and not forgotten.

    Attributes:
        known: ids of the images that need no rows.
        prompts: what it was asked, refused prompts included.
        hold: unset, no prompt gets its first token.
        failures: each call takes one, of those that are left, and raises it instead of its end.
    """

    def __init__(self) -> None:
        self.tokenizer = real_tokenizer("qwen2_5")
        self.known: set[EmbeddingId] = set()
        self.prompts: list[Prompt] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.failures: list[ServiceError] = []
        self.asked = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        prompt = request.prompt
        self.prompts.append(prompt)
        self.asked.set()
        try:
            await self.hold.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        if {image.embedding_id for image in prompt.images if not image.is_held} - self.known:
            raise RowsNeededError("an image has been forgotten")
        self.known |= {image.embedding_id for image in prompt.images}
        yield TokenOutput(self.tokenizer.encode("Hello"), None)
        if self.failures:
            raise self.failures.pop()
        yield TokenOutput([END], "stop")


@pytest.fixture
def engine() -> ForgetfulEngine:
    return ForgetfulEngine()


@pytest.fixture
async def stub(engine: ForgetfulEngine) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    """A service that has answered QUESTION, and whose memory for tables has room for one."""
    async with serving(engine, engine.tokenizer, table_byte_count=len(A)) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        first = await exchange(stub, QUESTION, *upload(A), *upload(B, 1))
        assert wanted_of(first) == [[0, 1]]
        engine.prompts.clear()
        engine.asked.clear()
        yield stub


def wanted_of(responses: list[llm_pb2.GenerateResponse]) -> list[list[int]]:
    """Returns the contents of every `wanted` of a call; the first message must be one."""
    assert responses[0].HasField("wanted")
    return [list(item.wanted.image_indexes) for item in responses if item.HasField("wanted")]


def several(choice_count: int) -> llm_pb2.GenerateRequest:
    """Returns QUESTION with another number of choices."""
    request = llm_pb2.GenerateRequest()
    request.CopyFrom(QUESTION)
    request.start.choice_count = choice_count
    return request


@pytest.mark.parametrize("choice_count", [1, 3])
async def test_an_image_that_the_cache_replaces_is_not_wanted(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine, choice_count: int
) -> None:
    responses = await exchange(stub, several(choice_count))
    assert wanted_of(responses) == [[]]
    assert text_of(responses) == "Hello" * choice_count
    assert responses[-1].usage.image_token_count == 4
    assert len(engine.prompts) == choice_count
    prompt = engine.prompts[0]
    assert [image.is_held for image in prompt.images] == [False, True]
    assert torch.equal(prompt.prompt_table, torch.cat([torch.zeros(2, HIDDEN_SIZE), ROWS_B]))


async def test_a_prompt_without_any_rows_takes_no_memory_for_them(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine
) -> None:
    responses = await exchange(stub, start(images=["a", "a"]))
    assert wanted_of(responses) == [[]]
    rows = engine.prompts[0].prompt_table
    assert rows.shape == (4, HIDDEN_SIZE)
    assert rows.untyped_storage().nbytes() == 4 * HIDDEN_SIZE


@pytest.mark.parametrize("choice_count", [1, 3])
async def test_an_image_that_the_cache_has_dropped_is_wanted_once(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine, choice_count: int
) -> None:
    engine.known.clear()

    async def requests() -> AsyncIterator[llm_pb2.GenerateRequest]:
        yield several(choice_count)
        await asked.wait()
        for request in upload(A):
            yield request

    asked = asyncio.Event()
    responses = []
    async for response in stub.Generate(requests()):
        responses.append(response)
        asked.set()
    assert wanted_of(responses) == [[0]]
    assert text_of(responses) == "Hello" * choice_count
    assert torch.equal(engine.prompts[-1].prompt_table, torch.cat([ROWS_A, ROWS_B]))
    assert all(image.is_held for image in engine.prompts[-1].images)


@pytest.mark.parametrize(("is_known", "wanted"), [(True, []), (False, [0])])
async def test_embeddings_that_come_unasked_are_not_lost(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ForgetfulEngine,
    is_known: bool,
    wanted: list[int],
) -> None:
    """They are on their way while the engine finds out whether it needs them."""
    if not is_known:
        engine.known.clear()
    engine.hold.clear()
    call = stub.Generate()
    for request in (QUESTION, *upload(A), *upload(B, 1)):
        await call.write(request)
    await call.done_writing()
    await asyncio.wait_for(engine.asked.wait(), 5)
    engine.hold.set()
    responses = [response async for response in call]
    assert wanted_of(responses) == [wanted]
    assert text_of(responses) == "Hello"


async def test_cancelling_before_wanted_closes_the_engines_generator(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine
) -> None:
    engine.hold.clear()
    call = stub.Generate(iter([QUESTION]))
    await asyncio.wait_for(engine.asked.wait(), 5)
    call.cancel()
    await asyncio.wait_for(engine.cancelled.wait(), 5)


async def test_what_is_dropped_after_the_first_output_ends_the_call(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine
) -> None:
    engine.failures.append(RowsNeededError("dropped too late"))
    kinds = []

    async def read() -> None:
        async for response in stub.Generate(iter([QUESTION])):
            kinds.append(response.WhichOneof("message"))

    with pytest.raises(grpc.aio.AioRpcError, match="dropped too late") as info:
        await read()
    assert kinds == ["wanted", "delta"]
    assert info.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_other_errors_are_no_reason_to_want_an_image(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ForgetfulEngine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def full(_: Request) -> AsyncGenerator[TokenOutput, None]:
        raise OverloadedError("the queue is full")
        yield

    monkeypatch.setattr(engine, "generate", full)
    call = stub.Generate(iter([QUESTION]))
    with pytest.raises(grpc.aio.AioRpcError, match="the queue is full"):
        await call.read()


async def test_rows_of_an_image_that_has_gone_count_for_the_context(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine
) -> None:
    text = "a b " * 2030
    with pytest.raises(ContextLengthError, match="or more"):
        await exchange(stub, start(text, images=["a"] * 4))
    assert engine.prompts == []


async def test_an_image_of_unknown_size_is_wanted_at_once_and_with_it_all_others(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ForgetfulEngine
) -> None:
    request = start(images=["a", "new"])
    responses = await exchange(stub, request, *upload(A), *upload(B, 1))
    assert wanted_of(responses) == [[0, 1]]
    assert len(engine.prompts) == 1


IMAGE_ROWS = 20
TABLE_BYTE_COUNT = IMAGE_ROWS * TEXT_WIDTH * 4


Make = Callable[..., Settings]


@pytest.fixture(scope="module")
def make_settings(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Makes settings of an engine with a tiny checkpoint, and memory for two images' tables."""
    folder = tmp_path_factory.mktemp("reuse")
    checkpoint = folder / "random"
    write_random_checkpoint(checkpoint)
    document = engine_document(LLMConfig.from_checkpoint(checkpoint))
    engine_folder = write_engine_folder(folder / "engine", document, checkpoint)
    groups = {
        # Blocks as TensorRT-LLM's double has them.
        "torch": TorchOptions(device="cpu", dtype="float32", thread_count=1, block_size=8),
        "tensorrt_llm": TensorRTLLMOptions(engine_folder=engine_folder, max_request_tile_count=1),
    }

    def make(engine: str, **changes: object) -> Settings:
        given: dict[str, object] = {
            "checkpoint": checkpoint,
            "engine": engine,
            engine: groups[engine],
            # 1,024 tokens. 2 layers x key and value x 2 heads x 16 floats a token.
            "kv_cache_byte_count": 1024 * 512,
            "max_table_byte_count": 2 * TABLE_BYTE_COUNT,
        }
        return Settings.model_validate(given | changes)

    return make


@pytest.fixture(params=["torch", "tensorrt_llm"])
def engine_name(request: pytest.FixtureRequest) -> Iterator[str]:
    """An engine that can be imported; TensorRT-LLM is its double."""
    with installed_double() if request.param == "tensorrt_llm" else nullcontext():
        yield request.param


@asynccontextmanager
async def real_service(
    settings: Settings,
) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    """Serves a checkpoint."""
    info, engine = await asyncio.to_thread(load, settings)
    try:
        async with channel_to(make_service(settings, info, engine, Metrics(engine))) as channel:
            yield llm_pb2_grpc.LLMServiceStub(channel)
    finally:
        await engine.close()


def conversation(*texts: str) -> llm_pb2.GenerateRequest:
    """Returns a question about images a and b, the answer, the next question and so on."""
    request = start(texts[0], images="ab")
    request.start.stop.max_token_count = 24
    request.start.stop.ignore_end_tokens = True
    for index, text in enumerate(texts[1:]):
        request.start.chat.messages.add(
            role=llm_pb2.ROLE_USER if index % 2 else llm_pb2.ROLE_ASSISTANT,
            parts=[llm_pb2.ContentPart(text=text)],
        )
    return request


def embedding(index: int) -> list[llm_pb2.GenerateRequest]:
    rows = torch.randn(IMAGE_ROWS, TEXT_WIDTH, generator=torch.Generator().manual_seed(index))
    data = rows.numpy().tobytes()
    announced = header(index, shape=[IMAGE_ROWS, TEXT_WIDTH], byte_count=len(data))
    return [announced, chunk(data, index=index), trailer(data, index)]


EMBEDDINGS = [*embedding(0), *embedding(1)]


class Turn(NamedTuple):
    """What a turn wanted, generated, and found in the KV cache."""

    wanted: list[list[int]]
    token_ids: list[int]
    cached_token_count: int


async def two_turns(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, between: llm_pb2.GenerateRequest | None = None
) -> Turn:
    """Asks both, with another request between them, and returns the second one."""
    first = await exchange(stub, conversation("What is this?"), *EMBEDDINGS)
    assert wanted_of(first) == [[0, 1]]
    if between is not None:
        await exchange(stub, between)
    second = conversation("What is this?", text_of(first), "And that?")
    responses = await exchange(stub, second, *EMBEDDINGS)
    token_ids = [token_id for item in responses for token_id in item.delta.token_ids]
    return Turn(wanted_of(responses), token_ids, responses[-1].usage.cached_token_count)


@pytest.fixture(scope="module")
def expected(make_settings: Make) -> Turn:
    """The second turn of a torch engine that holds every table."""

    async def turns() -> Turn:
        async with real_service(make_settings("torch")) as stub:
            return await two_turns(stub)

    turn = asyncio.run(turns())
    assert turn.wanted == [[]]
    assert len(turn.token_ids) == 24
    assert turn.cached_token_count > 2 * IMAGE_ROWS
    return turn


async def test_a_second_turn_whose_tables_are_held_wants_none(
    make_settings: Make, engine_name: str, expected: Turn
) -> None:
    async with real_service(make_settings(engine_name)) as stub:
        assert await two_turns(stub) == expected


@pytest.mark.parametrize(
    # TensorRT-LLM takes a prompt with its rows, whatever its KV cache holds.
    ("engine_name", "wanted"),
    [("torch", []), ("tensorrt_llm", [0])],
    indirect=["engine_name"],
)
async def test_a_second_turn_without_a_table(
    make_settings: Make, engine_name: str, expected: Turn, wanted: list[int]
) -> None:
    room_for_one = make_settings(engine_name, max_table_byte_count=TABLE_BYTE_COUNT)
    async with real_service(room_for_one) as stub:
        assert await two_turns(stub) == expected._replace(wanted=[wanted])


async def test_an_image_is_wanted_again_when_others_have_taken_its_blocks(
    make_settings: Make, engine_name: str, expected: Turn
) -> None:
    flush = start("x" * 800, cache_salt="another")
    room_for_one = make_settings(engine_name, max_table_byte_count=TABLE_BYTE_COUNT)
    async with real_service(room_for_one) as stub:
        turn = await two_turns(stub, between=flush)
    assert turn.wanted == [[0]]
    assert turn.token_ids == expected.token_ids
