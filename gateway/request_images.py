"""The images of one request: fetched, and named as a vision replica names their embeddings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from gateway.fairness import FetchLanes
from gateway.fields import Options, image_options
from gateway.generation import GenerationRequest, ImageReference
from gateway.images.budget import ImageBudget
from gateway.images.data_urls import Attachments
from gateway.images.fetcher import ImageFetcher
from gateway.memory import HeldFile
from gateway.pools import Pools
from gateway.record import RequestRecord
from gateway.services.pair import ServicePair
from gateway.services.vision import EncodeRequest, ModelInfo
from protos.errors import DeadlineError, ImageTooLargeError, InvalidArgumentError
from protos.identity import EmbeddingId, content_digest, recipe_digest
from protos.process.tracing import span

# Of one request at a time, and of all requests beside the one that each may always have.
CONCURRENT_FETCH_COUNT = 16
SHARED_FETCH_COUNT = 128


@dataclass(frozen=True)
class RequestLimits:
    """What one request may have: images, bytes of all its image files together, hosts of these."""

    max_image_count: int
    max_total_image_byte_count: int
    max_image_host_count: int


@dataclass(frozen=True)
class FetchedImage:
    """An image file as it came: where the request has it, its bytes, and their SHA-256."""

    reference: ImageReference
    file: HeldFile
    content_sha256: bytes


@dataclass(frozen=True)
class NamedImage:
    """An image file with what a vision replica will make of it.

    Attributes:
        reference: where the request has it.
        options: what its options are called in the request and in the contract.
        encoding: the file, and how to encode it.
    """

    reference: ImageReference
    options: Options
    encoding: EncodeRequest

    @classmethod
    def of(cls, index: int, image: FetchedImage, info: ModelInfo) -> NamedImage:
        """Returns a request's image of this index as a replica that runs this encodes it."""
        options = image_options(info.max_tile_count)
        cap: int | None = options.values(image.reference.source).get("max_tile_count")
        recipe = recipe_digest(info.recipe_sha256, cap or info.default_tile_count)
        embedding_id = EmbeddingId(image.content_sha256, recipe)
        encoding = EncodeRequest(image.file, cap, info.recipe_sha256, embedding_id, index)
        return cls(image.reference, options, encoding)

    def param_of(self, field: str) -> str:
        """Returns the JSON path of what a field of EncodeImageRequest was made from, or nothing."""
        param = self.options.param_of(self.reference.source, field)
        return param and self.reference.name_field(param)


class RequestImages:
    """Fetches the images of requests."""

    def __init__(
        self, fetcher: ImageFetcher, pair: ServicePair, pools: Pools, limits: RequestLimits
    ) -> None:
        self._fetcher = fetcher
        self._pair = pair
        self._pools = pools
        self._limits = limits
        self._lanes = FetchLanes(SHARED_FETCH_COUNT, CONCURRENT_FETCH_COUNT)

    async def fetch(
        self,
        request: GenerationRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
    ) -> list[FetchedImage]:
        """Returns the request's images, in their order.

        Raises:
            ServiceError: with the JSON path of the image at fault.
        """
        references = request.images
        if not references:
            return []
        self._check_count(len(references), request.images_field)
        record.image_count = len(references)
        info = await self._pair.vision_info(request.model, deadline)
        with record.timed("fetch"):
            return await self._fetch_all(references, info, attachments, deadline)

    def _check_count(self, count: int, field: str) -> None:
        if count > self._limits.max_image_count:
            raise InvalidArgumentError(
                f"the request has {count} images; the limit is {self._limits.max_image_count}",
                field=field,
            )

    async def _fetch_all(
        self,
        references: Sequence[ImageReference],
        info: ModelInfo,
        attachments: Attachments,
        deadline: float,
    ) -> list[FetchedImage]:
        budget = ImageBudget(
            self._limits.max_total_image_byte_count, self._limits.max_image_host_count
        )
        images: dict[int, FetchedImage] = {}

        async def fetch(index: int, reference: ImageReference) -> None:
            with span("fetch", image_index=index) as fetching:
                file = await self._fetch(reference, info, attachments, budget)
                fetching.set("image_byte_count", file.byte_count)
                digest = await self._pools.hashes.run_if_large(
                    file.byte_count, content_digest, file.content
                )
            images[index] = FetchedImage(reference, file, digest)

        fetching = self._lanes.run(partial(fetch, *entry) for entry in enumerate(references))
        try:
            await asyncio.wait_for(fetching, deadline - asyncio.get_running_loop().time())
        except asyncio.TimeoutError as error:
            raise DeadlineError("the images did not arrive within the request's time") from error
        return [images[index] for index in range(len(references))]

    async def _fetch(
        self,
        reference: ImageReference,
        info: ModelInfo,
        attachments: Attachments,
        budget: ImageBudget,
    ) -> HeldFile:
        param = reference.name_field("url")
        file = await self._fetcher.fetch(reference.source.url, param, attachments, budget)
        if file.byte_count > info.max_image_byte_count:
            raise ImageTooLargeError(
                f"the image file has {file.byte_count} bytes;"
                f" the limit is {info.max_image_byte_count}",
                field=param,
            )
        return file
