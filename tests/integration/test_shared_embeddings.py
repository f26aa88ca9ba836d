"""Embeddings in shared memory: how a vision service lends them, and an LLM service reads them."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import torch
from structlog.testing import capture_logs

from llm_service.metrics import Metrics
from protos.errors import AccessDeniedError, DataLossError, InvalidTensorError, ServiceError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc, tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.process.server import running_server
from protos.process.settings import MIB
from protos.process.shared_memory import ALIGNMENT, Marker, Slot, SlotReader, SlotWriter, sharing
from protos.signature import EmbeddingKey
from tests.integration.llm_calls import (
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
from tests.integration.scrapes import scrape
from tests.integration.test_llm_service import ScriptedEngine
from tests.integration.test_signed_embeddings import KEY, claim
from tests.integration.test_vision_service import CHECKPOINT, CONFIG, running
from tests.request_lines import request_line
from tests.unit.vision_service.fakes import FakeEngine, encoded, picture
from vision_service import __main__ as vision_main
from vision_service import wire
from vision_service.settings import Settings

IMAGE = encoded(picture(900, 400))  # 2x1 tiles and a thumbnail
ROWS, DATA = table(1.5)


@pytest.fixture
async def reader(tmp_path: Path) -> AsyncIterator[SlotReader]:
    async with sharing(tmp_path, SlotReader.open) as reader:
        assert reader is not None
        yield reader


@pytest.fixture
async def vision(tmp_path: Path) -> AsyncIterator[vision_pb2_grpc.VisionServiceAsyncStub]:
    """A vision service that has room for two embeddings of IMAGE."""
    settings = Settings(
        checkpoint=CHECKPOINT,
        preprocess_worker_count=1,
        shared_memory_folder=tmp_path,
        shared_memory_byte_count=4 * ALIGNMENT,
    )
    async with (
        vision_main.shared_memory(settings) as memory,
        vision_main.open_service(settings, CONFIG, FakeEngine(), memory) as service,
        running_server(service, "127.0.0.1", 0, drain_seconds=0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield vision_pb2_grpc.VisionServiceStub(channel)


class Lending:
    """A call of EncodeImage with a reader's marker, read to its trailer."""

    def __init__(self, vision: vision_pb2_grpc.VisionServiceAsyncStub, marker: Marker) -> None:
        memory = tensor_pb2.SharedMemory(file=marker.file, nonce=marker.nonce)
        request = vision_pb2.EncodeImageRequest(image=IMAGE, image_index=5, shared_memory=memory)
        self.call = vision.EncodeImage(request)
        self.responses: list[vision_pb2.EncodeImageResponse] = []

    async def begin(self) -> list[str | None]:
        """Returns the kinds of its messages."""
        while not self.responses or not self.responses[-1].HasField("trailer"):
            response = await self.call.read()
            assert isinstance(response, vision_pb2.EncodeImageResponse)
            self.responses.append(response)
        return [response.WhichOneof("message") for response in self.responses]

    @property
    def slot(self) -> Slot:
        place = self.responses[1].shared_embedding
        assert place.image_index == 5
        return Slot(place.file, place.offset, place.nonce)

    def read(self, reader: SlotReader) -> bytes:
        """Returns the rows as a reader finds them now."""
        data = bytearray(self.responses[0].header.spec.byte_count)
        list(reader.read(self.slot, memoryview(data)))
        return bytes(data)

    async def is_given_back(self, reader: SlotReader) -> None:
        """Waits until the slot is lent no more."""
        for _ in range(100):
            try:
                self.read(reader)
            except DataLossError:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the slot is still lent")


SHARED = ["header", "shared_embedding", "trailer"]
CHUNKED = ["header", "embedding_chunk", "trailer"]


async def test_rows_are_lent_until_the_call_ends(
    vision: vision_pb2_grpc.VisionServiceAsyncStub, reader: SlotReader
) -> None:
    chunked = Lending(vision, Marker("", b""))
    with capture_logs() as logs:
        assert await chunked.begin() == CHUNKED
        await request_line(logs, "EncodeImage")
    lending = Lending(vision, reader.marker)  # from the cache
    with capture_logs() as logs:
        assert await lending.begin() == SHARED
        assert lending.read(reader) == chunked.responses[1].embedding_chunk.data
        assert lending.responses[-1].trailer.crc32 == chunked.responses[-1].trailer.crc32
        await asyncio.sleep(0.1)
        assert not lending.call.done()
        lending.call.cancel()
        await lending.is_given_back(reader)
        line = await request_line(logs, "EncodeImage")
    assert {log["event"] for log in logs} <= {"request", "shared_memory_unreadable"}
    assert line["status"] == "OK"  # its caller has ended it, but had all of it
    assert line["transfer_seconds"] >= 0.1


async def test_who_sees_other_memory_gets_chunks(
    vision: vision_pb2_grpc.VisionServiceAsyncStub, reader: SlotReader
) -> None:
    for marker in (
        replace(reader.marker, nonce=secrets.token_bytes(32)),
        replace(reader.marker, file=f"internvl-{secrets.token_hex(16)}"),
        replace(reader.marker, file="../../etc/passwd"),
    ):
        assert await Lending(vision, marker).begin() == CHUNKED


async def test_without_room_there_are_chunks(
    vision: vision_pb2_grpc.VisionServiceAsyncStub, reader: SlotReader
) -> None:
    lent = [Lending(vision, reader.marker) for _ in range(2)]
    for lending in lent:
        assert await lending.begin() == SHARED
    assert lent[0].slot.offset != lent[1].slot.offset
    assert await Lending(vision, reader.marker).begin() == CHUNKED
    lent[0].call.cancel()
    await lent[0].is_given_back(reader)
    again = Lending(vision, reader.marker)
    assert await again.begin() == SHARED
    assert again.slot.offset == lent[0].slot.offset
    assert again.read(reader) == lent[1].read(reader)


async def test_a_lease_ends_by_itself(
    vision: vision_pb2_grpc.VisionServiceAsyncStub,
    reader: SlotReader,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(wire, "LEASE_SECONDS", 0.2)
    lending = Lending(vision, reader.marker)
    assert await lending.begin() == SHARED
    lending.read(reader)
    assert await lending.call.code() is grpc.StatusCode.OK
    await lending.is_given_back(reader)


async def test_a_call_that_is_cancelled_is_no_error_of_the_service(
    tmp_path: Path, reader: SlotReader
) -> None:
    async with sharing(tmp_path, lambda folder: SlotWriter.open(folder, MIB)) as memory:
        settings = Settings(checkpoint=CHECKPOINT, preprocess_worker_count=1)
        async with (
            vision_main.open_service(settings, CONFIG, FakeEngine(), memory) as service,
            running_server(service, "127.0.0.1", 0, drain_seconds=0) as port,
            grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
        ):
            lending = Lending(vision_pb2_grpc.VisionServiceStub(channel), reader.marker)
            assert await lending.begin() == SHARED
            lending.call.cancel()
            await lending.is_given_back(reader)
            values = await scrape(service.metrics.registry, "internvl_vision_")
    assert values["images_total/encoded"] == 1
    assert not any(value for name, value in values.items() if name.startswith("refusals_total"))


async def test_a_service_without_shared_memory_sends_chunks(reader: SlotReader) -> None:
    async with running(FakeEngine()) as client:
        assert await Lending(client.stub, reader.marker).begin() == CHUNKED


def shared(slot: Slot, index: int = 0) -> llm_pb2.GenerateRequest:
    place = tensor_pb2.SharedEmbedding(
        image_index=index, file=slot.file, offset=slot.offset, nonce=slot.nonce
    )
    return llm_pb2.GenerateRequest(shared_embedding=place)


@pytest.fixture
def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
def metrics(engine: ScriptedEngine) -> Metrics:
    return Metrics(engine)


@pytest.fixture
async def llm(
    engine: ScriptedEngine, reader: SlotReader, metrics: Metrics
) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    async with serving(engine, engine.tokenizer, metrics=metrics, memory=reader) as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


@pytest.fixture
async def slot(tmp_path: Path, reader: SlotReader) -> AsyncIterator[Slot]:
    """DATA, lent."""
    async with sharing(tmp_path, lambda folder: SlotWriter.open(folder, MIB)) as writer:
        assert writer is not None
        async with writer.lent(memoryview(DATA), reader.marker) as slot:
            assert slot is not None
            yield slot


async def test_rows_are_read_from_where_they_lie(
    llm: llm_pb2_grpc.LLMServiceAsyncStub,
    engine: ScriptedEngine,
    reader: SlotReader,
    slot: Slot,
    metrics: Metrics,
) -> None:
    images = ["a", "b"]
    responses = await exchange(
        llm, start(images=images), header(), shared(slot), trailer(DATA), *upload(DATA, 1)
    )
    assert text_of(responses) == "Hello, world!"
    assert torch.equal(engine.prompts[0].prompt_table, torch.cat([ROWS, ROWS]))
    wanted, read, first = (responses[0].wanted, responses[1].embedding_read, responses[2])
    assert list(wanted.image_indexes) == [0, 1]
    assert wanted.shared_memory.file == reader.marker.file
    assert wanted.shared_memory.nonce == reader.marker.nonce
    assert responses[1].HasField("embedding_read")
    assert read.image_index == 0
    assert first.HasField("delta")
    values = await scrape(metrics.registry, "internvl_llm_")
    assert values["embeddings_total/shared"] == values["embeddings_total/chunks"] == 1


@pytest.mark.parametrize("way", ["shared", "chunks"])
async def test_an_embedding_counts_once_whichever_of_equal_images_it_is_sent_as(
    llm: llm_pb2_grpc.LLMServiceAsyncStub, slot: Slot, metrics: Metrics, way: str
) -> None:
    rows = shared(slot, 1) if way == "shared" else chunk(DATA, index=1)
    images = ["a", "a"]
    responses = await exchange(llm, start(images=images), header(1), rows, trailer(DATA, 1))
    assert list(responses[0].wanted.image_indexes) == [0]
    values = await scrape(metrics.registry, "internvl_llm_")
    counts = {name: values.get(f"embeddings_total/{name}", 0) for name in ("shared", "chunks")}
    assert counts == {"shared": 0, "chunks": 0} | {way: 1}


@pytest.mark.parametrize(
    ("error", "complaint", "change"),
    [
        (DataLossError, "not in the shared memory", {"nonce": secrets.token_bytes(32)}),
        (DataLossError, "not in the shared memory", {"nonce": b""}),
        (DataLossError, "not in the shared memory", {"file": f"internvl-{secrets.token_hex(16)}"}),
        (DataLossError, "not in the shared memory", {"file": "../../etc/passwd"}),
        (DataLossError, "not in the shared memory", {"offset": ALIGNMENT}),
        (DataLossError, "not in the shared memory", {"offset": -1}),
        (DataLossError, "not in the shared memory", {"offset": (1 << 63) - 1}),
    ],
)
async def test_rows_that_are_not_there_are_refused(
    llm: llm_pb2_grpc.LLMServiceAsyncStub,
    slot: Slot,
    error: type[ServiceError],
    complaint: str,
    change: dict[str, object],
) -> None:
    wrong = replace(slot, **change)  # type: ignore[arg-type]
    with pytest.raises(error, match=complaint) as caught:
        await exchange(llm, start(images=["a"]), header(), shared(wrong), trailer(DATA))
    assert "No such file" not in caught.value.message


async def test_rows_beyond_what_was_lent_are_refused_and_nothing_is_told_of_them(
    llm: llm_pb2_grpc.LLMServiceAsyncStub, slot: Slot
) -> None:
    for rows in (1, 3, ALIGNMENT // len(DATA) * 4):
        with pytest.raises(DataLossError, match="not in the shared memory") as caught:
            await exchange(llm, start(images=["a"]), header(rows=rows), shared(slot), trailer(DATA))
        assert "CRC" not in caught.value.message


async def test_rows_of_another_checksum_are_refused(
    llm: llm_pb2_grpc.LLMServiceAsyncStub, slot: Slot
) -> None:
    with pytest.raises(DataLossError, match="CRC-32"):
        await exchange(llm, start(images=["a"]), header(), shared(slot), trailer(DATA[1:]))


async def test_rows_come_one_way_alone(llm: llm_pb2_grpc.LLMServiceAsyncStub, slot: Slot) -> None:
    half = len(DATA) // 2
    for sent in (
        [chunk(DATA[:half]), shared(slot)],
        [shared(slot), shared(slot)],
        [shared(slot), chunk(DATA[half:], half)],
    ):
        with pytest.raises(InvalidTensorError):
            await exchange(llm, start(images=["a"]), header(), *sent, trailer(DATA))


async def test_rows_must_be_announced(llm: llm_pb2_grpc.LLMServiceAsyncStub, slot: Slot) -> None:
    with pytest.raises(InvalidTensorError, match="has not been announced") as caught:
        await exchange(llm, start(images=["a"]), shared(slot))
    assert caught.value.field == "shared_embedding.image_index"


async def test_a_service_without_shared_memory_says_so(engine: ScriptedEngine, slot: Slot) -> None:
    async with serving(engine, engine.tokenizer) as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        responses = await exchange(stub, start(images=["a"]), *upload(DATA))
        assert not responses[0].wanted.HasField("shared_memory")
        with pytest.raises(InvalidTensorError, match="shares no memory") as caught:
            await exchange(stub, start(images=["b"]), header(), shared(slot), trailer(DATA))
    assert caught.value.field == "shared_embedding"


async def test_signatures_hold_for_what_is_read(
    engine: ScriptedEngine, reader: SlotReader, slot: Slot
) -> None:
    signed = trailer(DATA, signature=KEY.sign(claim()))
    others = trailer(DATA, signature=EmbeddingKey(b"o" * 32).sign(claim()))
    async with serving(engine, engine.tokenizer, key=KEY, memory=reader) as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        with pytest.raises(AccessDeniedError):
            await exchange(stub, start(images=["a"]), header(), shared(slot), others)
        responses = await exchange(stub, start(images=["a"]), header(), shared(slot), signed)
    assert text_of(responses) == "Hello, world!"
