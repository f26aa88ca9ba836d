"""How many tokens a prompt has: nothing is generated, and no image is encoded."""

from __future__ import annotations

import asyncio

from gateway.generation import GenerationRequest
from gateway.images.data_urls import Attachments
from gateway.record import RequestRecord
from gateway.request_images import FetchedImage, NamedImage, RequestImages
from gateway.services.llm import TokenCount
from gateway.services.pair import ServicePair
from gateway.services.vision import ModelInfo
from gateway.tasks import owning

# Of one request at a time; more would fill the vision service's queue for everybody else.
CONCURRENT_PLAN_COUNT = 8
# How the paths of GenerateStart's fields begin that make up the prompt.
PROMPT = ("chat.", "text", "token_ids.")


class TokenCounter:
    """Counts the tokens of prompts, with the help of both services."""

    def __init__(self, images: RequestImages, pair: ServicePair) -> None:
        self._images = images
        self._pair = pair

    async def count(
        self,
        request: GenerationRequest,
        attachments: Attachments,
        deadline: float,
        record: RequestRecord,
        *,
        return_tokens: bool = False,
        omit_beginning_token: bool = False,
    ) -> TokenCount:
        """Returns how many tokens a request's prompt has.

        Args:
            request: whose prompt it is; its other fields are passed over.
            attachments: the images that came with it; they are taken out.
            deadline: when it must be over, in the event loop's time.
            record: filled on the way.
            return_tokens: whether the tokens themselves are wanted, too.
            omit_beginning_token: whether a text's beginning token is left out.

        Raises:
            NotFoundError: no replica answers to the model's name.
            ServiceError: with the JSON path of the field at fault.
        """
        info = await self._pair.llm_info(request.model, deadline)
        record.model = info.model
        images = await self._images.fetch(request, attachments, deadline, record)
        prompt = {path: value for path, value in request.fields.items() if path.startswith(PROMPT)}
        fields = {
            **prompt,
            "image_row_counts": await self._row_counts(request.model, images, deadline),
            "return_tokens": return_tokens,
            "omit_beginning_token": omit_beginning_token,
        }
        return await self._pair.llm.count_tokens(fields, request.name_field, deadline)

    async def _row_counts(
        self, model: str, images: list[FetchedImage], deadline: float
    ) -> list[int]:
        """Returns how many rows each image's embedding would have."""
        if not images:
            return []
        info = await self._pair.vision_info(model, deadline)
        slots = asyncio.Semaphore(CONCURRENT_PLAN_COUNT)

        async def plan(index: int, image: FetchedImage) -> int:
            async with slots:
                return await self._row_count(NamedImage.of(index, image, info), info, deadline)

        plans = [asyncio.create_task(plan(*entry)) for entry in enumerate(images)]
        async with owning(*plans):
            return await asyncio.gather(*plans)

    async def _row_count(self, image: NamedImage, info: ModelInfo, deadline: float) -> int:
        encoding = image.encoding
        plan = await self._pair.vision.plan_tiles_of_file(
            encoding.file,
            encoding.max_tile_count,
            info.recipe_sha256,
            image.param_of,
            deadline,
        )
        encoding.file.let_go()
        return plan.token_count
