"""CountTokens that returns tokens, and Detokenize, over real gRPC."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from llm_service.engines.base import Request, TokenOutput
from llm_service.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from protos.errors import InvalidArgumentError, ServiceError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.status import from_rpc_error
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import CONFIG, CONTEXT, END, serving
from tests.real_tokenizers import FAMILIES, real_tokenizer

TEXT = "Grüße, 世界! 🦄\n\n<ref>a cat</ref>  and <|im_end|>"


@asynccontextmanager
async def service(family: str = "qwen2_5") -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    """Yields a stub of a service with a released model's tokenizer."""
    async with serving(Engine(), real_tokenizer(family)) as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


class Engine(IdleEngine):
    """Is not asked to generate."""

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        raise NotImplementedError
        yield


async def tokens_of(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, **fields: object
) -> llm_pb2.CountTokensResponse:
    request = llm_pb2.CountTokensRequest(return_tokens=True, **fields)  # type: ignore[arg-type]
    response = await stub.CountTokens(request)
    assert response.prompt_token_count == len(response.token_ids) == len(response.tokens)
    return response


async def text_of(stub: llm_pb2_grpc.LLMServiceAsyncStub, ids: object) -> str:
    token_ids = llm_pb2.TokenIds(ids=ids)  # type: ignore[arg-type]
    return (await stub.Detokenize(llm_pb2.DetokenizeRequest(token_ids=token_ids))).text


async def refusal(call: grpc.aio.UnaryUnaryCall[Any, Any]) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return from_rpc_error(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
async def test_the_tokens_of_a_text_are_the_models_and_their_bytes_the_text(family: str) -> None:
    tokenizer = real_tokenizer(family)
    async with service(family) as stub:
        whole = await tokens_of(stub, text=TEXT)
        bare = await tokens_of(stub, text=TEXT, omit_beginning_token=True)
        assert list(bare.token_ids) == tokenizer.encode(TEXT)
        assert b"".join(bare.tokens).decode().lstrip(" ") == TEXT
        assert b"<ref>" in bare.tokens
        beginning = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        assert list(whole.token_ids) == [*beginning, *bare.token_ids]
        assert await text_of(stub, bare.token_ids) == TEXT
        named = "" if tokenizer.bos_id is None else "<s>"
        assert (await text_of(stub, whole.token_ids)).replace(" ", "") == named + TEXT.replace(
            " ", ""
        )


@pytest.mark.parametrize(
    ("family", "names"), [("internlm2_5", ("<s>", "</s>")), ("qwen2_5", ("", "<|im_end|>"))]
)
async def test_the_tokenizers_own_tokens_have_ids(family: str, names: tuple[str, str]) -> None:
    tokenizer = real_tokenizer(family)
    async with service(family) as stub:
        info = await stub.GetModelInfo(llm_pb2.LLMServiceGetModelInfoRequest())
        assert (info.bos_token, info.eos_token) == names
        for name in filter(None, (*names, IMAGE_CONTEXT, "<ref>")):
            alone = await tokens_of(stub, text=name, omit_beginning_token=True)
            assert list(alone.token_ids) == [tokenizer.special_id(name)]
            assert await text_of(stub, alone.token_ids) == name
        # In a text, and as a prompt, it stays text.
        for fields in ({"text": f"{names[1]}."}, {"text": names[1]}):
            spoken = await tokens_of(stub, **fields)
            assert tokenizer.special_id(names[1]) not in spoken.token_ids


async def test_tokens_come_only_when_asked_for_and_are_as_many_as_are_counted() -> None:
    async with service() as stub:
        counted = await stub.CountTokens(llm_pb2.CountTokensRequest(text=TEXT))
        assert not counted.token_ids
        assert not counted.tokens
        returned = await tokens_of(stub, text=TEXT)
        assert returned.prompt_token_count == counted.prompt_token_count


async def test_the_rows_of_pictures_are_context_tokens() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    user = llm_pb2.ChatMessage(
        role=llm_pb2.ROLE_USER,
        parts=[
            llm_pb2.ContentPart(image=llm_pb2.ImagePart()),
            llm_pb2.ContentPart(text="?"),
            llm_pb2.ContentPart(image=llm_pb2.ImagePart()),
        ],
    )
    async with service() as stub:
        chat = llm_pb2.ChatPrompt(messages=[user])
        response = await tokens_of(stub, chat=chat, image_row_counts=[2, 3])
        assert response.image_token_count == 5
        names = list(response.tokens)
        start, context, end = (name.encode() for name in (IMAGE_START, IMAGE_CONTEXT, IMAGE_END))
        first = names.index(start)
        assert names[first : first + 4] == [start, context, context, end]
        assert names.count(context) == 5
        assert list(response.token_ids).count(tokenizer.special_id(IMAGE_CONTEXT)) == 5
        assert [names[0], names[-3]] == [b"<|im_start|>", b"<|im_start|>"]
        # They are a prompt again.
        again = llm_pb2.TokenIds(ids=response.token_ids)
        repeated = await tokens_of(stub, token_ids=again, image_row_counts=[2, 3])
        assert repeated == response


async def test_the_largest_pictures_are_returned_too_or_refused_by_name() -> None:
    async with service() as stub:
        text = "<image>" * 4
        many = await tokens_of(stub, text=text, image_row_counts=[CONTEXT] * 4)
        assert many.image_token_count == 4 * CONTEXT
        ids = llm_pb2.TokenIds(ids=[0] * 5000)
        with_text = llm_pb2.CountTokensRequest(token_ids=ids, return_tokens=True)
        assert len((await stub.CountTokens(with_text)).tokens) == 5000


async def test_more_tokens_than_a_message_holds_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with service() as stub:
        request = llm_pb2.CountTokensRequest(
            text="<image>", image_row_counts=[CONTEXT], return_tokens=True
        )
        monkeypatch.setattr("llm_service.generator.MAX_RETURNED_TOKEN_COUNT", CONTEXT + 1)
        error = await refusal(stub.CountTokens(request))
        assert (type(error), error.field) == (InvalidArgumentError, "return_tokens")
        assert error.message.startswith(f"the prompt has {CONTEXT + 2} tokens")
        monkeypatch.undo()
        monkeypatch.setattr("llm_service.wire.DEFAULT_MAX_MESSAGE_BYTE_COUNT", 18 * CONTEXT)
        error = await refusal(stub.CountTokens(request))
        assert (type(error), error.field) == (InvalidArgumentError, "return_tokens")
        assert "may be sent" in error.message


async def test_bytes_that_are_no_character_are_replaced() -> None:
    tokenizer = real_tokenizer("qwen2_5")
    first, *rest = tokenizer.encode("𓂀")
    async with service() as stub:
        assert await text_of(stub, []) == ""
        assert await text_of(stub, [first]) == "\ufffd"
        assert await text_of(stub, [first, *tokenizer.encode("a")]) == "\ufffda"
        assert await text_of(stub, [first, *rest, END]) == "𓂀<|im_end|>"
        # The model's vocabulary is larger than the tokenizer's: those ids have no text.
        assert await text_of(stub, [CONFIG.vocabulary_size - 1]) in ("", "</box>")


HOSTILE: dict[str, tuple[list[int], str, str]] = {
    "beyond": (
        [1, CONFIG.vocabulary_size],
        "token_ids.ids[1]",
        "is 151674; it must be 0 to 151673",
    ),
    "negative": ([-1], "token_ids.ids[0]", "is -1; it must be 0 to 151673"),
    "virtual": ([2**31 - 1], "token_ids.ids[0]", "it must be 0 to 151673"),
    "many": (
        [0] * (CONTEXT + 1),
        "token_ids.ids",
        f"has {CONTEXT + 1} token ids; at most {CONTEXT}",
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_ids_that_are_none_are_refused_by_their_place(name: str) -> None:
    ids, field, sentence = HOSTILE[name]
    async with service() as stub:
        request = llm_pb2.DetokenizeRequest(token_ids=llm_pb2.TokenIds(ids=ids))
        error = await refusal(stub.Detokenize(request))
        assert (type(error), error.field) == (InvalidArgumentError, field)
        assert sentence in error.message


async def test_a_text_that_is_larger_than_a_message_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("llm_service.wire.DEFAULT_MAX_MESSAGE_BYTE_COUNT", 100)
    async with service() as stub:
        request = llm_pb2.DetokenizeRequest(token_ids=llm_pb2.TokenIds(ids=[END] * 20))
        error = await refusal(stub.Detokenize(request))
        assert (type(error), error.field) == (InvalidArgumentError, "token_ids.ids")


async def test_few_texts_are_written_at_a_time_and_with_those_that_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    release = threading.Event()
    writing = threading.Semaphore(0)
    token_bytes = Tokenizer.token_bytes

    def held(tokenizer: Tokenizer, token_id: int) -> bytes:
        writing.release()
        release.wait(30)
        return token_bytes(tokenizer, token_id)

    monkeypatch.setattr(Tokenizer, "token_bytes", held)
    async with service() as stub:
        request = llm_pb2.DetokenizeRequest(token_ids=llm_pb2.TokenIds(ids=[END]))
        calls = [stub.Detokenize(request) for _ in range(70)]
        codes = [asyncio.ensure_future(call.code()) for call in calls]
        done: set[asyncio.Future[grpc.StatusCode]] = set()
        while len(done) < 6:
            done, _ = await asyncio.wait(codes, return_when=asyncio.FIRST_COMPLETED)
        assert {code.result() for code in done} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        counting = stub.CountTokens(llm_pb2.CountTokensRequest(text="a"))
        assert await counting.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert writing.acquire(timeout=5)
        assert writing.acquire(timeout=5)
        assert not writing.acquire(blocking=False)
        release.set()
        ends = await asyncio.gather(*codes)
        assert ends.count(grpc.StatusCode.OK) == 64
