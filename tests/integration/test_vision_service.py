"""The vision service over real gRPC: what it answers, and how each refusal crosses the wire."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
import signal
import struct
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from blockbuster import blockbuster_ctx
from grpc_health.v1 import health_pb2, health_pb2_grpc
from PIL import Image
from prometheus_client import CollectorRegistry
from safetensors.torch import load_file
from structlog.testing import capture_logs

from protos.errors import (
    EngineDeadError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ModelMismatchError,
    NonFiniteError,
    OverloadedError,
    ServiceError,
)
from protos.identity import content_digest, recipe_digest
from protos.internvl.v1 import tensor_pb2, vision_pb2, vision_pb2_grpc
from protos.process.server import running_server
from protos.status import from_rpc_error
from protos.transport import CHUNK_BYTE_COUNT, MAX_CHUNK_BYTE_COUNT
from tests import hostile_pictures as hostile
from tests.integration.scrapes import scrape
from tests.request_lines import request_line, request_lines
from tests.unit.vision_service.checkpoints import (
    SMALL_6B,
    changed,
    random_tensors,
    write_checkpoint,
)
from tests.unit.vision_service.fakes import FakeEngine, encoded, picture
from tests.unit.vision_service.reference import plain_embeddings, reference_tiles
from vision_service import __main__ as vision_main
from vision_service.batcher import EncodedTiles, TileBatcher
from vision_service.checkpoint import IMAGENET_MEAN, IMAGENET_STD, VisionConfig
from vision_service.engines.base import VisionEngine
from vision_service.engines.create import create_engine
from vision_service.settings import Settings, TorchOptions

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CHECKPOINT = GOLDEN / "tiny-qwen2"
CONFIG = VisionConfig.from_checkpoint(CHECKPOINT)
IMAGE_B = (GOLDEN / "images" / "image_b.png").read_bytes()  # 900x400: 2x1 tiles and a thumbnail
TORCH_ON_THE_CPU = TorchOptions(device="cpu", dtype="float32", thread_count=1)
TOKENS_PER_TILE = 256
HIDDEN_SIZE = 64


@pytest.fixture(autouse=True)
async def blocking_calls_fail() -> AsyncIterator[None]:
    """A blocking call of the service in the event loop fails the test.

    gRPC waits for its thread when its last object is freed, wherever the garbage collector does
    that: so there is one all the time.
    """
    async with grpc.aio.insecure_channel("127.0.0.1:9"):
        with blockbuster_ctx("vision_service"):
            yield


class Client:
    """The service's stubs on one channel, and its metrics where they are asked for."""

    def __init__(self, channel: grpc.aio.Channel, metrics: CollectorRegistry | None = None) -> None:
        self.metrics = metrics or CollectorRegistry()
        self.stub = vision_pb2_grpc.VisionServiceStub(channel)
        self.health = health_pb2_grpc.HealthStub(channel)

    async def encode(self, image: bytes, **fields: Any) -> EncodedImage:
        request = vision_pb2.EncodeImageRequest(image=image, **fields)
        return EncodedImage([response async for response in self.stub.EncodeImage(request)])

    async def refusal(self, image: bytes, **fields: Any) -> ServiceError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.encode(image, **fields)
        return from_rpc_error(caught.value)

    async def plan(self, width: int, height: int, **fields: Any) -> vision_pb2.PlanTilesResponse:
        request = vision_pb2.PlanTilesRequest(image_width=width, image_height=height, **fields)
        return await self.stub.PlanTiles(request)

    async def plan_of(self, image: bytes, **fields: Any) -> vision_pb2.PlanTilesResponse:
        return await self.stub.PlanTiles(vision_pb2.PlanTilesRequest(image=image, **fields))

    async def info(self) -> vision_pb2.VisionServiceGetModelInfoResponse:
        return await self.stub.GetModelInfo(vision_pb2.VisionServiceGetModelInfoRequest())


class EncodedImage:
    """A whole response stream, taken apart."""

    def __init__(self, responses: list[vision_pb2.EncodeImageResponse]) -> None:
        kinds = [response.WhichOneof("message") for response in responses]
        assert kinds == ["header", *["embedding_chunk"] * (len(kinds) - 2), "trailer"]
        self.header = responses[0].header
        self.chunks = [response.embedding_chunk for response in responses[1:-1]]
        self.trailer = responses[-1].trailer
        self.data = b"".join(chunk.data for chunk in self.chunks)

    @property
    def rows(self) -> torch.Tensor:
        values = torch.frombuffer(bytearray(self.data), dtype=torch.float32)
        return values.view(*self.header.spec.shape)


@asynccontextmanager
async def running(
    engine: VisionEngine, config: VisionConfig = CONFIG, **options: Any
) -> AsyncIterator[Client]:
    """Runs the service on a free port over this engine."""
    # Each worker takes time to start; to find out how many threads there may be reads files.
    options = {"preprocess_worker_count": 1, "preprocess_thread_count": 2, **options}
    settings = Settings(checkpoint=CHECKPOINT, **options)
    async with (
        vision_main.open_service(settings, config, engine) as service,
        running_server(service, "127.0.0.1", 0, drain_seconds=0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        yield Client(channel, service.metrics.registry)


@contextmanager
def held(engine: FakeEngine) -> Iterator[None]:
    """Keeps the engine in its next call until the block ends."""
    engine.gate.clear()
    try:
        yield
    finally:
        engine.gate.set()


@pytest.fixture(scope="module")
def torch_engine() -> VisionEngine:
    settings = Settings(checkpoint=CHECKPOINT, torch=TORCH_ON_THE_CPU)
    return create_engine(settings, CONFIG)


@pytest.fixture
async def client(torch_engine: VisionEngine) -> AsyncIterator[Client]:
    async with running(torch_engine, max_tile_count=24) as client:
        yield client


@pytest.fixture
def fake_engine() -> FakeEngine:
    return FakeEngine(TOKENS_PER_TILE, HIDDEN_SIZE)


async def test_an_image_becomes_the_golden_embedding(client: Client) -> None:
    found = await client.encode(IMAGE_B)
    expected = load_file(CHECKPOINT / "golden.safetensors")["embeds.image_b"].flatten(0, 1)
    torch.testing.assert_close(found.rows, expected, rtol=0, atol=1e-4)
    header = found.header
    assert (header.tile_count, header.grid_column_count, header.grid_row_count) == (3, 2, 1)
    assert (header.image_width, header.image_height, header.cache_hit) == (900, 400, False)
    assert header.spec.dtype == tensor_pb2.DATA_TYPE_FP32
    assert list(header.spec.shape) == [3 * TOKENS_PER_TILE, HIDDEN_SIZE]


@pytest.fixture
def changed_checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Any]:
    """Writes a small checkpoint with the test's changes to its config.json, which it returns."""
    document: dict[str, Any] = changed(SMALL_6B, **request.param)
    write_checkpoint(tmp_path, document)
    return document


@pytest.mark.parametrize(
    ("changed_checkpoint", "size", "tile_count"),
    [
        ({"use_thumbnail": False, "min_dynamic_patch": 2}, (30, 30), 4),
        ({"ps_version": "v1", "force_image_size": 56}, (90, 60), 7),
        ({"dynamic_image_size": False}, (90, 60), 1),
    ],
    indirect=["changed_checkpoint"],
)
async def test_the_options_of_the_checkpoint_hold(
    tmp_path: Path, changed_checkpoint: dict[str, Any], size: tuple[int, int], tile_count: int
) -> None:
    config = await asyncio.to_thread(VisionConfig.from_checkpoint, tmp_path)
    settings = Settings(checkpoint=tmp_path, torch=TORCH_ON_THE_CPU, preprocess_thread_count=2)
    engine = await asyncio.to_thread(create_engine, settings, config)
    image = picture(*size)
    async with running(engine, config) as client:
        found = await client.encode(encoded(image), max_tile_count=6)
        info = await client.info()
    tiles = reference_tiles(image, 6, config.tile_size, config.tile_policy)
    assert found.header.tile_count == len(tiles) == tile_count
    weights = random_tensors(changed_checkpoint)
    expected = [
        plain_embeddings(pixel_values(tile), weights, changed_checkpoint, layer_count=2)
        for tile in tiles
    ]
    torch.testing.assert_close(found.rows, torch.cat(expected), rtol=1e-4, atol=1e-4)
    assert (info.tile_size, info.tokens_per_tile) == (config.tile_size, len(expected[0]))


def pixel_values(tile: Image.Image) -> torch.Tensor:
    values = torch.from_numpy(np.asarray(tile).transpose(2, 0, 1) / 255).float()
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    return (values - mean.view(3, 1, 1)) / std.view(3, 1, 1)


async def test_chunks_are_contiguous_and_the_checksum_is_theirs(fake_engine: FakeEngine) -> None:
    async with running(fake_engine, max_tile_count=24) as client:
        found = await client.encode(encoded(picture(2400, 1600)), max_tile_count=24)
    assert found.header.tile_count == 25
    sizes = [len(chunk.data) for chunk in found.chunks]
    assert sizes[:-1] == [CHUNK_BYTE_COUNT] * (len(sizes) - 1)
    assert len(sizes) > 1
    assert max(sizes) <= MAX_CHUNK_BYTE_COUNT
    assert [chunk.offset for chunk in found.chunks] == [
        sum(sizes[:index]) for index in range(len(sizes))
    ]
    assert len(found.data) == found.header.spec.byte_count
    assert zlib.crc32(found.data) == found.trailer.crc32


@pytest.mark.parametrize("index", [0, 7, -1])
async def test_chunks_say_the_callers_index(fake_engine: FakeEngine, index: int) -> None:
    async with running(fake_engine) as client:
        found = await client.encode(encoded(picture(20, 20)), image_index=index)
    assert [chunk.image_index for chunk in found.chunks] == [index]


async def test_the_id_is_the_one_that_a_client_derives(client: Client) -> None:
    info = await client.info()
    for cap in (None, 1, 24):
        found = await client.encode(IMAGE_B, max_tile_count=cap)
        assert found.header.id.content_sha256 == content_digest(IMAGE_B)
        effective = info.default_tile_count if cap is None else cap
        assert found.header.id.recipe_sha256 == recipe_digest(info.recipe_sha256, effective)


async def test_model_info_describes_checkpoint_and_limits(client: Client) -> None:
    info = await client.info()
    assert (info.model, info.engine) == ("tiny-qwen2", "torch")
    assert len(info.recipe_sha256) == 32
    assert (info.hidden_size, info.tokens_per_tile, info.tile_size) == (64, 256, 448)
    assert info.dtype == tensor_pb2.DATA_TYPE_FP32
    assert (info.default_tile_count, info.max_tile_count) == (12, 24)
    assert info.max_image_byte_count == 48 * 1024 * 1024
    assert info.max_image_pixel_count == 128_000_000


async def test_the_tile_cap_of_the_request_holds(client: Client) -> None:
    found = await client.encode(IMAGE_B, max_tile_count=1)
    assert (found.header.tile_count, len(found.rows)) == (1, TOKENS_PER_TILE)


async def test_the_second_time_comes_from_the_cache(client: Client) -> None:
    first, second = await client.encode(IMAGE_B), await client.encode(IMAGE_B)
    assert (first.header.cache_hit, second.header.cache_hit) == (False, True)
    assert (first.data, first.trailer.crc32) == (second.data, second.trailer.crc32)
    assert first.trailer.timings.forward_seconds > 0
    assert first.trailer.timings.preprocess_seconds > 0
    assert second.trailer.timings == vision_pb2.EncodeTimings()


async def test_the_log_tells_where_an_encodings_time_went(client: Client) -> None:
    with capture_logs() as events:
        await client.encode(IMAGE_B)
        await client.encode(IMAGE_B)
    first, second = request_lines(events, "EncodeImage")
    stages = ("worker_wait_seconds", "preprocess_seconds", "forward_seconds")
    assert all(first[stage] > 0 for stage in stages)
    assert not any(second[stage] for stage in stages)  # it came from the cache


async def test_who_joins_an_encoding_is_told_of_its_own_wait_alone(
    fake_engine: FakeEngine,
) -> None:
    image = encoded(picture(30, 30))
    async with running(fake_engine) as client:
        with capture_logs() as events, held(fake_engine):
            first = asyncio.create_task(client.encode(image))
            await asyncio.to_thread(fake_engine.entered.wait)
            await asyncio.sleep(0.3)
            joining = asyncio.create_task(client.encode(image))
            await asyncio.sleep(0.3)
            fake_engine.gate.set()
            whole, joined = (one.trailer.timings for one in await asyncio.gather(first, joining))
    assert whole.forward_seconds >= 0.6
    assert 0.1 < joined.forward_seconds <= whole.forward_seconds - 0.2
    assert joined.preprocess_seconds == joined.queue_seconds == 0
    lines = request_lines(events, "EncodeImage")
    assert [line["cache_hit"] for line in lines] == [False, False]
    for line in lines:
        stages = ("worker_wait", "preprocess", "queue", "forward", "transfer")
        assert sum(line[f"{name}_seconds"] for name in stages) <= line["total_seconds"] + 1e-5


async def test_a_refused_image_has_its_line(client: Client) -> None:
    with capture_logs() as events:
        await client.refusal(b"no image")
        line = await request_line(events, "EncodeImage")
    assert (line["status"], line["error"]) == ("INVALID_ARGUMENT", "INVALID_IMAGE")
    assert (line["image_byte_count"], "tile_count" in line) == (8, False)


async def test_requests_in_flight_share_engine_calls(fake_engine: FakeEngine) -> None:
    pictures = [encoded(picture(448, 448, seed)) for seed in range(6)]
    async with running(fake_engine) as client:
        with held(fake_engine):
            requests = [asyncio.create_task(client.encode(image)) for image in pictures]
            await asyncio.to_thread(fake_engine.entered.wait)
        await asyncio.gather(*requests)
    assert sum(fake_engine.batch_tile_counts) == 6


async def test_an_image_that_would_wait_too_long_is_refused_and_others_are_served(
    fake_engine: FakeEngine,
) -> None:
    """What is in the cache, or on its way for another request, is never refused."""
    pictures = [encoded(picture(64, 64, seed)) for seed in range(9)]

    async def until_waiting(client: Client, tile_count: int) -> None:
        for _ in range(3000):
            if client.metrics.get_sample_value("internvl_vision_waiting_tiles") == tile_count:
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"there were never {tile_count} tiles")

    async with running(fake_engine) as client:
        with held(fake_engine):  # by which the service learns its pace
            requests = [asyncio.create_task(client.encode(image)) for image in pictures[:3]]
            await until_waiting(client, 3)
            await asyncio.sleep(0.2)
        await asyncio.gather(*requests)
        with held(fake_engine):
            requests = [asyncio.create_task(client.encode(image)) for image in pictures[3:7]]
            await until_waiting(client, 4)
            before = await scrape(client.metrics, "internvl_vision_")
            error = await client.refusal(pictures[7], max_queue_seconds=0.05)
            after = await scrape(client.metrics, "internvl_vision_")
            assert (await client.encode(pictures[0], max_queue_seconds=0)).header.cache_hit
            joined = client.encode(pictures[3], max_queue_seconds=0)
            patient = client.encode(pictures[8], max_queue_seconds=3600)
            requests += map(asyncio.create_task, (joined, patient))
            await until_waiting(client, 5)
        await asyncio.gather(*requests)
        assert (await client.encode(pictures[7], max_queue_seconds=0)).data
        served = await scrape(client.metrics, "internvl_vision_")
    assert isinstance(error, OverloadedError)
    assert error.retry_after is not None
    assert before["backlog_seconds"] <= error.retry_after + 0.05 <= after["backlog_seconds"]
    assert before["backlog_seconds"] > 0.1
    assert after["refusals_total/QUEUE_FULL"] == 1
    assert (served["images_total/cache"], served["images_total/encoded"]) == (1, 10)
    assert served["tiles_total/encoded"] == 9
    assert served["tiles_total/padding"] == len(fake_engine.batch_tile_counts)
    for stage in ("preprocess", "queue", "forward"):
        assert served[f"stage_seconds_count/{stage}"] == 9
    assert served["cache_bytes"] == 9 * TOKENS_PER_TILE * HIDDEN_SIZE * 4
    assert served["waiting_tiles"] == served["backlog_seconds"] == 0


@pytest.mark.parametrize("seconds", [-0.5, math.nan])
async def test_a_longest_wait_that_is_no_time_is_refused(client: Client, seconds: float) -> None:
    error = await client.refusal(IMAGE_B, max_queue_seconds=seconds)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == "max_queue_seconds"


async def test_a_matching_recipe_is_accepted(client: Client) -> None:
    recipe = (await client.info()).recipe_sha256
    assert (await client.encode(IMAGE_B, expected_recipe_sha256=recipe)).data


async def test_another_recipe_is_refused(client: Client) -> None:
    error = await client.refusal(IMAGE_B, expected_recipe_sha256=bytes(32))
    assert isinstance(error, ModelMismatchError)
    assert bytes(32).hex() in error.message
    assert error.field == "expected_recipe_sha256"


@pytest.mark.parametrize("cap", [0, -1, 25])
async def test_a_tile_cap_out_of_range_is_refused(client: Client, cap: int) -> None:
    error = await client.refusal(IMAGE_B, max_tile_count=cap)
    assert isinstance(error, InvalidArgumentError)
    assert error.message == f"the tile cap is {cap}; it must be 1 to 24"
    assert error.field == "max_tile_count"


@pytest.mark.parametrize(
    "cap", [None, *(pytest.param(cap, marks=pytest.mark.slow) for cap in (1, 3, 24))]
)
@pytest.mark.parametrize("size", [(900, 400), (400, 900), (448, 448), (1, 1), (3000, 7)])
async def test_a_plan_is_what_becomes_of_the_picture(
    fake_engine: FakeEngine, size: tuple[int, int], cap: int | None
) -> None:
    fields = {} if cap is None else {"max_tile_count": cap}
    async with running(fake_engine, max_tile_count=24) as client:
        plan = await client.plan(*size, **fields)
        header = (await client.encode(encoded(picture(*size)), **fields)).header
    assert plan == vision_pb2.PlanTilesResponse(
        grid_column_count=header.grid_column_count,
        grid_row_count=header.grid_row_count,
        tile_count=header.tile_count,
        token_count=header.spec.shape[0],
    )


@pytest.mark.parametrize(
    ("width", "height", "cap", "field", "complaint"),
    [
        (0, 5, None, "image_width", "is 0x5 pixels; each edge must be 1 or more"),
        (5, -1, None, "image_height", "is 5x-1 pixels; each edge must be 1 or more"),
        (0, 0, None, "image_height", "is 0x0 pixels; each edge must be 1 or more"),
        (70_000, 9, None, "image_width", "the limit of an edge is 65535"),
        (9, 70_000, None, "image_height", "the limit of an edge is 65535"),
        (2**31 - 1, 2**31 - 1, None, "image_width", "pixels; the limit is 128000000"),
        (5, 5, 25, "max_tile_count", "the tile cap is 25; it must be 1 to 24"),
        (5, 5, 0, "max_tile_count", "the tile cap is 0; it must be 1 to 24"),
    ],
)
async def test_what_cannot_be_cut_is_not_planned(
    client: Client, width: int, height: int, cap: int | None, field: str, complaint: str
) -> None:
    fields = {} if cap is None else {"max_tile_count": cap}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.plan(width, height, **fields)
    error = from_rpc_error(caught.value)
    assert isinstance(error, InvalidArgumentError)
    assert error.field == field
    assert complaint in error.message


def turned(image: Image.Image, name: str) -> bytes:
    """Returns a file that is shown on its side."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(image, name, exif=exif)


PLANNED = {
    "a photo on its side": turned(picture(600, 200), "JPEG"),
    "a scan on its side": turned(picture(600, 200), "TIFF"),
    "one pixel": encoded(picture(1, 1)),
    "a profile of 30 MB": IMAGE_B[:33]
    + hostile.chunk(b"iCCP", b"screen\0\0" + bytes(30 * hostile.MEGABYTE))
    + IMAGE_B[33:],
}


@pytest.mark.parametrize("cap", [None, 5])
@pytest.mark.parametrize("name", PLANNED)
async def test_a_file_is_planned_as_it_is_encoded(
    fake_engine: FakeEngine, name: str, cap: int | None
) -> None:
    fields = {} if cap is None else {"max_tile_count": cap}
    async with running(fake_engine) as client:
        plan = await client.plan_of(PLANNED[name], **fields)
        assert fake_engine.batch_tile_counts == []
        header = (await client.encode(PLANNED[name], **fields)).header
    assert plan == vision_pb2.PlanTilesResponse(
        grid_column_count=header.grid_column_count,
        grid_row_count=header.grid_row_count,
        tile_count=header.tile_count,
        token_count=header.spec.shape[0],
    )


async def test_pixels_that_are_missing_do_not_hinder_a_plan(client: Client) -> None:
    assert (await client.plan_of(IMAGE_B[:20_000])).tile_count == 3


@pytest.mark.parametrize(
    ("image", "fields"),
    [
        pytest.param(b"no image", {}, id="no image"),
        pytest.param(b"<html><body>Not found", {}, id="a page"),
        pytest.param(IMAGE_B[:20], {}, id="no size"),
        pytest.param(b"\xff\xd8\xff", {}, id="a beginning"),
        pytest.param(hostile.filled_jpeg(), {}, id="fill bytes"),
        pytest.param(hostile.run_length_bmp(), {}, id="runs"),
        pytest.param(bytes(48 * 2**20 + 1), {}, id="too many bytes"),
        pytest.param(IMAGE_B, {"max_tile_count": 25}, id="a tile cap"),
        pytest.param(IMAGE_B, {"expected_recipe_sha256": bytes(32)}, id="another recipe"),
    ],
)
async def test_a_file_is_not_planned_for_the_reason_that_it_is_not_encoded(
    client: Client, image: bytes, fields: dict[str, Any]
) -> None:
    refusal = await client.refusal(image, **fields)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await client.plan_of(image, **fields)
    error = from_rpc_error(caught.value)
    assert (type(error), error.message, error.field) == (
        type(refusal),
        refusal.message,
        refusal.field,
    )


async def test_a_plan_is_of_a_size_or_of_a_file(client: Client) -> None:
    with pytest.raises(grpc.aio.AioRpcError, match="must have one of them") as caught:
        await client.plan_of(IMAGE_B, image_width=3)
    assert from_rpc_error(caught.value).field == "image"


@pytest.mark.parametrize(
    ("image", "complaint"),
    [
        pytest.param(b"", "the image is empty: 0 bytes", id="empty"),
        pytest.param(b"no image", "not a JPEG, PNG, WEBP, BMP, GIF, TIFF", id="no image"),
        pytest.param(IMAGE_B[:20_000], "damaged or cut short", id="truncated"),
        pytest.param(b"<html><body>Not found", "is an HTML page; send a JPEG", id="a page"),
    ],
)
async def test_what_is_no_image_is_refused(client: Client, image: bytes, complaint: str) -> None:
    error = await client.refusal(image)
    assert isinstance(error, InvalidImageError)
    assert complaint in error.message
    assert error.field == "image"


async def test_files_of_phones_and_editors_are_encoded(fake_engine: FakeEngine) -> None:
    """A profile of 3 MB, a text with a wrong checksum, a photo of 48 megapixels."""
    png = encoded(picture(60, 40))
    profile = hostile.chunk(b"iCCP", b"screen\0\0" + zlib.compress(os.urandom(3_000_000), 0))
    text = hostile.chunk(b"tEXt", b"Comment\0made by an editor")[:-4] + b"\0\0\0\0"
    photo = encoded(Image.linear_gradient("L").resize((8064, 6048)), "JPEG")
    async with running(fake_engine) as client:
        plain = await client.encode(png)
        for chunk in (profile, text):
            found = await client.encode(png[:33] + chunk + png[33:])
            assert torch.equal(found.rows, plain.rows)
        assert (await client.encode(photo)).header.tile_count > 1


async def test_a_wrong_checksum_is_named(client: Client) -> None:
    png = encoded(picture(60, 40))
    error = await client.refusal(png[:29] + b"\0\0\0\0" + png[33:])
    assert isinstance(error, InvalidImageError)
    assert error.message == "the image file is damaged: the checksum of its IHDR chunk is wrong"


async def test_too_many_pixels_are_refused(client: Client) -> None:
    header = b"IHDR" + struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    error = await client.refusal(png + struct.pack(">I", zlib.crc32(header)) + b"\0\0\0\0IDAT")
    assert isinstance(error, ImageTooLargeError)
    assert "128000000" in error.message


async def test_too_many_bytes_are_refused(fake_engine: FakeEngine) -> None:
    async with running(fake_engine, max_image_byte_count=1000) as client:
        error = await client.refusal(bytes(1001))
    assert isinstance(error, ImageTooLargeError)
    assert error.message == "the image file has 1001 bytes; the limit is 1000"


async def test_a_full_queue_is_refused_with_a_time_to_retry(fake_engine: FakeEngine) -> None:
    strips = [encoded(picture(8 * 64, 64, seed)) for seed in range(8)]  # 8x1 tiles and a thumbnail
    async with running(fake_engine, max_queued_tile_count=65) as client:
        with held(fake_engine):
            calls = [asyncio.create_task(client.encode(strip)) for strip in strips]
            await asyncio.wait(calls, return_when=asyncio.FIRST_EXCEPTION)
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
    (refused,) = [outcome for outcome in outcomes if not isinstance(outcome, EncodedImage)]
    assert isinstance(refused, grpc.aio.AioRpcError)
    error = from_rpc_error(refused)
    assert isinstance(error, OverloadedError)
    assert error.retry_after is not None
    assert error.message == "63 tiles wait for the engine and this image has 9; the limit is 65"


async def test_a_cancelled_call_never_reaches_the_engine(
    fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    queued, left = asyncio.Event(), asyncio.Event()

    class WatchedBatcher(TileBatcher):
        async def encode(self, tiles: torch.Tensor) -> EncodedTiles:
            if len(tiles) == 1:
                return await super().encode(tiles)
            queued.set()
            try:
                return await super().encode(tiles)
            finally:
                left.set()

    monkeypatch.setattr(vision_main, "TileBatcher", WatchedBatcher)
    async with running(fake_engine) as client:
        with held(fake_engine):
            first = asyncio.create_task(client.encode(encoded(picture(448, 448))))
            await asyncio.to_thread(fake_engine.entered.wait)
            call = client.stub.EncodeImage(vision_pb2.EncodeImageRequest(image=IMAGE_B))
            await queued.wait()
            call.cancel()
            await left.wait()
        await first
        # The same picture again is a new encode, not the cancelled one.
        assert (await client.encode(IMAGE_B)).header.tile_count == 3
    assert sum(fake_engine.batch_tile_counts) == 1 + 3


async def test_an_embedding_that_is_not_finite_is_an_error_and_is_not_kept(
    fake_engine: FakeEngine,
) -> None:
    async with running(fake_engine) as client:
        fake_engine.poison = 0.0
        black = encoded(Image.new("RGB", (448, 448)))
        with capture_logs() as events:
            refusals = [await client.refusal(black) for _ in range(2)]
        for refusal in refusals:
            assert isinstance(refusal, NonFiniteError)
            assert refusal.message == "the embedding of the image is not finite in float32"
        found = [event for event in events if event["event"] == "nonfinite_embedding"]
        assert [(event["tile_count"], event["dtype"]) for event in found] == [(1, "float32")] * 2
        fake_engine.poison = -1.0
        assert not (await client.encode(black)).rows.any()


async def test_a_dead_engine_fails_calls_and_ends_the_service(
    fake_engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_engine.error = RuntimeError("out of order")
    async with running(fake_engine) as client:
        assert isinstance(await client.refusal(IMAGE_B), EngineDeadError)
        assert isinstance(await client.refusal(IMAGE_B), EngineDeadError)
    # `run` returns False, whereupon the process exits with 1.
    monkeypatch.setattr(vision_main, "place_engine", lambda *_: fake_engine)
    monkeypatch.setattr(vision_main, "serve", lambda service, _: serve_one(service))
    settings = Settings(checkpoint=CHECKPOINT, preprocess_thread_count=2)
    assert await vision_main.run(settings) is False


async def serve_one(service: Any) -> bool:
    """Stands in for `serve`: one call, then the service's own word on its engine."""
    async with (
        running_server(service, "127.0.0.1", 0, drain_seconds=0) as port,
        grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):
        await Client(channel).refusal(IMAGE_B)
    healthy: bool = service.is_healthy()
    return healthy


async def test_health_is_serving_when_the_service_is_up(client: Client) -> None:
    for name in ("", "internvl.v1.VisionService"):
        answer = await client.health.Check(health_pb2.HealthCheckRequest(service=name))
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def started_process(*arguments: str) -> subprocess.Popen[str]:
    options = ("--torch.device", "cpu", "--torch.thread-count", "1", *arguments)
    command = [sys.executable, "-m", "vision_service", *options]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("place", ["none", pytest.param("own", marks=pytest.mark.slow)])
def test_the_process_serves_and_ends_on_sigterm(place: str) -> None:
    options = ("--checkpoint", str(CHECKPOINT), "--port", "0", "--engine-process", place)
    with started_process(*options) as process:
        assert process.stderr is not None
        log = list(itertools.takewhile(lambda line: '"serving"' not in line, process.stderr))
        process.send_signal(signal.SIGTERM)
        log += process.stderr
    assert process.returncode == 0
    assert any('"draining"' in line for line in log)


def test_the_process_ends_when_its_engines_does() -> None:
    options = ("--checkpoint", str(CHECKPOINT), "--port", "0", "--engine-process", "own")
    with started_process(*options) as process:
        assert process.stderr is not None
        assert any('"serving"' in line for line in process.stderr)
        try:
            (host,) = children(process.pid, "protos.process.engine_host")
            os.kill(host, signal.SIGKILL)
            log = process.stderr.read()
        finally:
            process.kill()
    assert process.returncode == 1
    assert '"engine_healthy": false' in log


def children(pid: int, program: str) -> list[int]:
    """Returns the children of a process that run a module."""
    threads = Path(f"/proc/{pid}/task").glob("*/children")
    numbers = [number for file in threads for number in file.read_text(encoding="utf-8").split()]
    lines = {int(number): Path(f"/proc/{number}/cmdline").read_bytes() for number in numbers}
    return [number for number, line in lines.items() if program.encode() in line]


def test_a_missing_checkpoint_is_one_sentence(tmp_path: Path) -> None:
    with started_process("--checkpoint", str(tmp_path / "nowhere")) as process:
        assert process.stderr is not None
        log = process.stderr.read()
    assert process.returncode == 2
    assert log == f"--checkpoint: there is no folder {tmp_path}/nowhere\n"
