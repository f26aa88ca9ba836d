"""Rows that no vision service made reach no image: signatures from the one service to the other."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import torch
from structlog.testing import capture_logs

from gateway.services.messages import (
    EmbeddingHeader,
    embedding_piece,
    embedding_request,
    encode_response,
)
from protos.errors import AccessDeniedError, DataLossError
from protos.identity import EmbeddingId
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, vision_pb2
from protos.signature import EmbeddingClaim, EmbeddingKey
from protos.wire_format import serialized
from tests.fakes import ScriptedLLM, ScriptedVision, chat_body, stack
from tests.integration.llm_calls import (
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
)
from tests.integration.test_llm_service import ScriptedEngine
from tests.integration.test_vision_service import running
from tests.unit.vision_service.fakes import FakeEngine, encoded, picture

KEY = EmbeddingKey(b"k" * 32)
ROWS, DATA = table(1.5)
POISON = table(6.66)[1]
Requests = list[llm_pb2.GenerateRequest]


def claim(name: str = "a", data: bytes = DATA, **fields: Any) -> EmbeddingClaim:
    """Returns what a vision service would claim of an image's rows."""
    id_ = embedding_id(name)
    values: dict[str, Any] = {
        "id": EmbeddingId(id_.content_sha256, id_.recipe_sha256),
        "dtype": "float32",
        "shape": (2, HIDDEN_SIZE),
        "rows_sha256": hashlib.sha256(data).digest(),
    }
    return EmbeddingClaim(**(values | fields))


def signed(signature: bytes, data: bytes = DATA) -> Requests:
    return [header(), chunk(data[:30]), chunk(data[30:], 30), trailer(data, signature=signature)]


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def stub(engine: ScriptedEngine) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    """An LLM service that has the key."""
    async with serving(engine, engine.tokenizer, key=KEY) as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


async def test_signed_rows_are_taken(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, engine: ScriptedEngine
) -> None:
    responses = await exchange(stub, start(images=["a"]), *signed(KEY.sign(claim())))
    assert text_of(responses) == "Hello, world!"
    assert torch.equal(engine.prompts[0].prompt_table, ROWS)


@pytest.mark.parametrize(
    ("complaint", "signature"),
    [
        ("is not signed", b""),
        ("has another signature", b"x" * 32),
        ("has another signature", KEY.sign(claim())[:31]),
        ("has another signature", EmbeddingKey(b"l" * 32).sign(claim())),
        ("has another signature", KEY.sign(claim("b"))),
        ("has another signature", KEY.sign(claim(data=POISON))),
        ("has another signature", KEY.sign(claim(dtype="bfloat16"))),
        ("has another signature", KEY.sign(claim(shape=(1, 2 * HIDDEN_SIZE)))),
    ],
    ids=["none", "made-up", "cut", "other-key", "other-image", "other-rows", "dtype", "shape"],
)
async def test_rows_without_their_signature_are_refused_and_forgotten(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ScriptedEngine,
    complaint: str,
    signature: bytes,
) -> None:
    with pytest.raises(AccessDeniedError, match=f"{complaint}.*--embedding-key-file") as info:
        await exchange(stub, start(images=["a"]), *signed(signature))
    assert info.value.field == "embedding_trailer.signature"
    # Not kept for anybody else: the image is wanted still, and comes from whom it should.
    responses = await exchange(stub, start(images=["a"]), *signed(KEY.sign(claim())))
    assert list(responses[0].wanted.image_indexes) == [0]
    (prompt,) = engine.prompts
    assert torch.equal(prompt.prompt_table, ROWS)


async def test_refused_rows_give_their_memory_back(
    stub: llm_pb2_grpc.LLMServiceAsyncStub,
) -> None:
    rows = 4000  # 128,000 bytes each: eight fit into the memory for arriving tables, nine do not
    _, data = table(1.0, rows)
    for _ in range(9):
        requests = [header(0, rows), chunk(data), trailer(data)]
        with pytest.raises(AccessDeniedError):
            await exchange(stub, start(images=["a"]), *requests)


async def test_a_wrong_checksum_is_told_first(stub: llm_pb2_grpc.LLMServiceAsyncStub) -> None:
    requests = [header(), chunk(DATA), trailer(POISON, signature=KEY.sign(claim()))]
    with pytest.raises(DataLossError):
        await exchange(stub, start(images=["a"]), *requests)


async def test_without_a_key_a_signature_is_ignored(engine: ScriptedEngine) -> None:
    async with serving(engine, engine.tokenizer) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        responses = await exchange(stub, start(images=["a"]), *signed(b"anything"))
    assert text_of(responses) == "Hello, world!"


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "embedding.key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o400)
    return path


async def test_a_vision_service_with_the_key_signs_what_it_sends(key_file: Path) -> None:
    """Once when the rows are made, and the same when they come from the cache."""
    image = encoded(picture(448, 448))
    async with running(FakeEngine(256, 64), embedding_key_file=key_file) as client:
        found = [await client.encode(image) for _ in range(2)]
    assert [one.header.cache_hit for one in found] == [False, True]
    for one in found:
        id_ = EmbeddingId(one.header.id.content_sha256, one.header.id.recipe_sha256)
        rows_sha256 = hashlib.sha256(one.data).digest()
        vouched = EmbeddingClaim(id_, "float32", tuple(one.header.spec.shape), rows_sha256)
        assert KEY.has_signed(vouched, one.trailer.signature)


async def test_rows_are_hashed_once_however_often_they_are_sent(
    key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    signed_ids = []
    sign = EmbeddingKey.sign

    def counted(key: EmbeddingKey, claim: EmbeddingClaim) -> bytes:
        signed_ids.append(claim.id)
        return sign(key, claim)

    monkeypatch.setattr(EmbeddingKey, "sign", counted)
    async with running(FakeEngine(256, 64), embedding_key_file=key_file) as client:
        for _ in range(3):
            await client.encode(encoded(picture(448, 448)))
    assert len(signed_ids) == 1


async def test_a_vision_service_without_a_key_sends_no_signature() -> None:
    async with running(FakeEngine(256, 64)) as client:
        found = await client.encode(encoded(picture(448, 448)))
    assert found.trailer.signature == b""


async def test_rows_go_from_the_one_service_to_the_other_and_nowhere_else(
    key_file: Path, engine: ScriptedEngine
) -> None:
    """What the vision service signs, the gateway passes on and the LLM service takes."""
    image = encoded(picture(448, 448))
    vision = FakeEngine(256, HIDDEN_SIZE)
    async with (
        running(vision, embedding_key_file=key_file) as client,
        serving(engine, engine.tokenizer, key=KEY) as channel,
    ):
        responses = [
            one async for one in client.stub.EncodeImage(vision_pb2.EncodeImageRequest(image=image))
        ]
        id_ = responses[0].header.id
        wanted = EmbeddingId(id_.content_sha256, id_.recipe_sha256)
        pieces = [
            embedding_piece(encode_response(one.SerializeToString()), wanted) for one in responses
        ]
        assert isinstance(pieces[0], EmbeddingHeader)
        messages = [
            llm_pb2.GenerateRequest.FromString(serialized(embedding_request(0, piece)))
            for piece in pieces
        ]
        request = start(images=["a"])
        request.start.images[0].CopyFrom(id_)
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        assert text_of(await exchange(stub, request, *messages)) == "Hello, world!"


async def test_a_client_is_not_blamed_for_services_without_a_common_key() -> None:
    """It reads that the server is at fault; the log says how to mend it."""
    denied = AccessDeniedError("the embedding is not signed", field="embedding_trailer.signature")
    llm = ScriptedLLM(failures=[denied])
    with capture_logs() as events:
        async with stack(llm=llm, vision=ScriptedVision()) as gateway:
            status, answer = await gateway.chat(**chat_body())
    assert status == 500
    assert answer["error"]["type"] == "server_error"
    assert answer["error"]["param"] is None
    assert "sign" not in json.dumps(answer)
    (event,) = [event for event in events if event["event"] == "denied"]
    assert event["details"] == "the embedding is not signed"
