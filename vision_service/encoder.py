"""The image encoder: the way of one image from its file to its embedding."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
import torch
from isal import isal_zlib

from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.errors import (
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ModelMismatchError,
    NonFiniteError,
)
from protos.identity import EmbeddingId, content_digest, recipe_digest
from protos.process.backlog import Backlog, refuse_wait
from protos.process.call_record import call_record
from protos.signature import EmbeddingKey
from vision_service.batcher import TileBatcher
from vision_service.cache import EmbeddingCache
from vision_service.embedding import ImageEmbedding, Timings, embedding_claim, tensor_bytes
from vision_service.engines.base import dtype_name, not_finite
from vision_service.metrics import Metrics
from vision_service.preprocessor import Preprocessor
from vision_service.tiling import Grid

logger = structlog.get_logger()

Proof = TypeVar("Proof", int, bytes)  # checksum or signature


@dataclass(frozen=True)
class ModelInfo:
    """What the service runs and accepts: the fields of GetModelInfoResponse, explained there."""

    model: str
    engine: str
    recipe_sha256: bytes
    hidden_size: int
    tokens_per_tile: int
    tile_size: int
    dtype: torch.dtype
    default_tile_count: int
    max_tile_count: int
    max_image_byte_count: int
    max_image_pixel_count: int
    checkpoint: CheckpointFingerprint


@dataclass(frozen=True)
class ImageRequest:
    """An image to encode.

    Attributes:
        image: the encoded file.
        tile_cap: most tiles without the thumbnail; None for the default.
        expected_recipe_sha256: the recipe that the embedding must be made by; None for any.
        max_queue_seconds: longest wait for its turn; None for any.
    """

    image: bytes
    tile_cap: int | None = None
    expected_recipe_sha256: bytes | None = None
    max_queue_seconds: float | None = None


@dataclass(frozen=True)
class PlanRequest:
    """An image of which only the upright size is known, or its file; the rest as of ImageRequest.

    Attributes:
        image_width: in pixels; 0 where the file is there.
        image_height: likewise.
        image: the encoded file; empty where the size is known.
    """

    image_width: int
    image_height: int
    image: bytes = b""
    tile_cap: int | None = None
    expected_recipe_sha256: bytes | None = None


@dataclass(frozen=True)
class TilePlan:
    """How an image would be cut, and how many rows its embedding would have."""

    grid: Grid
    token_count: int


@dataclass(frozen=True)
class EncodedImage:
    """What a request gets.

    Attributes:
        embedding: of its image.
        cache_hit: whether it was in the cache.
        timings: where the request's time went: nowhere with a cache hit, and of an encode that
            others began only what was left of it.
    """

    embedding: ImageEmbedding
    cache_hit: bool
    timings: Timings


class ImageEncoder:
    """Encodes images: cache, then preprocessor, batcher, checksum and signature.

    Attributes:
        info: what the service runs.
        backlog: the tiles of the images that are being encoded, from before they are decoded. How
            many an image will have is known only then; until then it counts as a typical one.
    """

    def __init__(
        self,
        info: ModelInfo,
        preprocessor: Preprocessor,
        batcher: TileBatcher,
        cache: EmbeddingCache,
        metrics: Metrics,
        key: EmbeddingKey | None = None,
    ) -> None:
        self.info = info
        self._preprocessor = preprocessor
        self._batcher = batcher
        self._cache = cache
        self._metrics = metrics
        self._key = key
        self.backlog = Backlog()
        metrics.watch(batcher, cache, self.backlog)

    async def encode(self, request: ImageRequest) -> EncodedImage:
        """Returns the embedding of the request's image.

        Raises:
            ModelMismatchError: the expected recipe is another than the service's.
            InvalidArgumentError: the tile cap is out of its range.
            InvalidImageError: no bytes, or not an image that is decoded here.
            ImageTooLargeError: too many bytes or pixels.
            OverloadedError: a queue is full or longer than the request may wait, or no memory left.
            NonFiniteError: the embedding has values that are no numbers.
            EngineDeadError: the engine failed.
        """
        record, arrival = call_record(), time.monotonic()
        record.note(image_byte_count=len(request.image))
        self._check_recipe(request.expected_recipe_sha256)
        tile_cap = self._checked_cap(request.tile_cap)
        self._check_byte_count(len(request.image))
        digest = await asyncio.to_thread(content_digest, request.image)
        id_ = EmbeddingId(digest, recipe_digest(self.info.recipe_sha256, tile_cap))

        def encode() -> Coroutine[Any, Any, ImageEmbedding]:
            refuse_wait(self.backlog.seconds(), request.max_queue_seconds)
            return self._encode(id_, request.image, tile_cap)

        embedding, cache_hit = await self._cache.get_or_encode(id_, encode)
        self._metrics.count_image(cache_hit=cache_hit)
        timings = embedding.timings.since(arrival)
        record.note(tile_count=embedding.grid.tile_count, cache_hit=cache_hit)
        record.stages += timings.stages()
        return EncodedImage(embedding, cache_hit, timings)

    async def plan(self, request: PlanRequest) -> TilePlan:
        """Returns what `encode` would make of an image; decodes none.

        Raises:
            ModelMismatchError: the expected recipe is another than the service's.
            InvalidArgumentError: the tile cap is out of its range, or there is a size and a file.
            InvalidImageError, ImageTooLargeError: the size is; of a file, as of `encode`.
            OverloadedError: of a file, the queue is full.
        """
        self._check_recipe(request.expected_recipe_sha256)
        tile_cap = self._checked_cap(request.tile_cap)
        if request.image:
            grid = await self._grid_of_file(request, tile_cap)
        else:
            grid = self._grid_of_size(request.image_width, request.image_height, tile_cap)
        return TilePlan(grid, grid.tile_count * self.info.tokens_per_tile)

    async def _grid_of_file(self, request: PlanRequest, tile_cap: int) -> Grid:
        if request.image_width or request.image_height:
            raise InvalidArgumentError(
                "the request has an image's size and its file; it must have one of them",
                field="image",
            )
        self._check_byte_count(len(request.image))
        return await self._preprocessor.plan(request.image, tile_cap)

    def _grid_of_size(self, width: int, height: int, tile_cap: int) -> Grid:
        try:
            return self._preprocessor.grid(width, height, tile_cap)
        except (InvalidImageError, ImageTooLargeError) as error:
            is_small = isinstance(error, InvalidImageError)
            error.field = "image_width" if (width < height) == is_small else "image_height"
            raise

    async def _encode(self, id_: EmbeddingId, image: bytes, tile_cap: int) -> ImageEmbedding:
        with self.backlog.job() as job:
            job.enter()
            begun_at = time.monotonic()
            tiled, preprocess_seconds = await self._preprocessor.tile(image, tile_cap)
            worker_wait_seconds = time.monotonic() - begun_at - preprocess_seconds
            job.measure(len(tiled.tiles))
            encoded = await self._batcher.encode(torch.from_numpy(tiled.tiles))
            job.finish(len(tiled.tiles))
        if not encoded.is_finite:
            raise self._not_finite(len(encoded.embeddings))
        rows = encoded.embeddings.flatten(0, 1)  # [tiles x tokens_per_tile, hidden]
        timings = Timings(
            begun_at,
            worker_wait_seconds,
            preprocess_seconds,
            encoded.queue_seconds,
            encoded.forward_seconds,
        )
        self._metrics.count_encode(timings)
        return ImageEmbedding(
            id=id_,
            rows=rows,
            checksumming=_on_thread(isal_zlib.crc32, tensor_bytes(rows)),
            grid=tiled.grid,
            image_width=tiled.width,
            image_height=tiled.height,
            timings=timings,
            signing=self._signing(id_, rows),
        )

    def _not_finite(self, tile_count: int) -> NonFiniteError:
        dtype = self.info.dtype
        logger.error("nonfinite_embedding", tile_count=tile_count, dtype=dtype_name(dtype))
        remedy = "bfloat16 or float32 can hold it"
        return NonFiniteError(not_finite("the embedding of the image is", dtype, remedy))

    def _signing(self, id_: EmbeddingId, rows: torch.Tensor) -> asyncio.Future[bytes] | None:
        if (key := self._key) is None:
            return None
        return _on_thread(lambda: key.sign(embedding_claim(id_, rows)))

    def _check_recipe(self, expected: bytes | None) -> None:
        actual = self.info.recipe_sha256
        if expected is not None and expected != actual:
            raise ModelMismatchError(
                f"the expected recipe is {expected.hex()}, "
                f"but this service encodes by {actual.hex()}",
                field="expected_recipe_sha256",
            )

    def _checked_cap(self, tile_cap: int | None) -> int:
        if tile_cap is None:
            return self.info.default_tile_count
        if not 1 <= tile_cap <= self.info.max_tile_count:
            raise InvalidArgumentError(
                f"the tile cap is {tile_cap}; it must be 1 to {self.info.max_tile_count}",
                field="max_tile_count",
            )
        return tile_cap

    def _check_byte_count(self, byte_count: int) -> None:
        if not byte_count:
            raise InvalidImageError("the image is empty: 0 bytes", field="image")
        if byte_count > self.info.max_image_byte_count:
            raise ImageTooLargeError(
                f"the image file has {byte_count} bytes; "
                f"the limit is {self.info.max_image_byte_count}",
                field="image",
            )


def _on_thread(compute: Callable[..., Proof], *arguments: object) -> asyncio.Future[Proof]:
    """Has what ends an embedding computed while its rows are being sent."""
    return asyncio.get_running_loop().run_in_executor(None, compute, *arguments)
