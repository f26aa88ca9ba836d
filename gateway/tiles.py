"""GET /v1/tiles: how a picture would be cut, and what it would cost, before there is one."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Annotated, Any

from aiohttp import web
from pydantic import Field, ValidationError

from gateway.admission import visiting
from gateway.app_keys import PAIR
from gateway.fields import image_options
from gateway.openai.refusals import refusal, shown
from gateway.openai.requests import ImageURL
from protos.errors import InvalidArgumentError, ServiceError

ANSWER_SECONDS = 5.0
MAX_NAME_LENGTH = 64
NUMBERS = frozenset({"width", "height", "max_dynamic_patch"})
PARAMETERS = ("width", "height", "detail", "max_dynamic_patch", "model")
WHOLE_NUMBER = re.compile(r"-?[0-9]{1,18}")
# By the service's fields. What its tile cap was made from depends on the request.
SIZES = {"image_width": "width", "image_height": "height"}
Edge = Annotated[int, Field(ge=1, lt=2**31)]


class PlannedImage(ImageURL):
    """A picture of which only the size is known, and how finely it is looked at.

    Attributes:
        width, height: in pixels, upright.
        model: what a chat request would say; empty for any.
    """

    url: str = ""
    width: Edge
    height: Edge
    model: str = ""


async def tiles(request: web.Request) -> web.Response:
    """GET /v1/tiles: columns and rows of the grid, and the tokens that it costs."""
    with visiting(request):
        return await _tiles(request)


async def _tiles(request: web.Request) -> web.Response:
    image = read_query(list(request.query.items()))
    deadline = asyncio.get_running_loop().time() + ANSWER_SECONDS
    pair = request.app[PAIR]
    info = await pair.vision_info(image.model, deadline)
    options = image_options(info.max_tile_count)
    cap: int | None = options.values(image).get("max_tile_count")
    try:
        plan = await pair.vision.plan_tiles(
            image.width, image.height, cap, info.recipe_sha256, deadline
        )
    except ServiceError as error:
        error.field = SIZES.get(error.field) or options.param_of(image, error.field)
        raise
    return web.json_response(
        {
            "object": "tiles",
            "column_count": plan.grid_column_count,
            "row_count": plan.grid_row_count,
            "tile_count": plan.tile_count,
            "token_count": plan.token_count,
            "tile_size": info.tile_size,
            "tile_cap": cap or info.default_tile_count,
            "default_tile_cap": info.default_tile_count,
            "max_tile_cap": info.max_tile_count,
        }
    )


def read_query(query: Sequence[tuple[str, str]]) -> PlannedImage:
    """Returns the picture that a query's names and values describe.

    Raises:
        InvalidArgumentError: a parameter is unknown, missing, malformed or given twice.
    """
    names = [name for name, _ in query]
    for name in names:
        if name not in PARAMETERS:
            raise InvalidArgumentError(
                f"there is no parameter {shown(name)}; there are {', '.join(PARAMETERS)}",
                field=name[:MAX_NAME_LENGTH],
            )
        if names.count(name) > 1:
            raise InvalidArgumentError(
                f"the query has '{name}' {names.count(name)} times; give it once", field=name
            )
    try:
        return PlannedImage.model_validate({name: _value(name, value) for name, value in query})
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0]) from None


def _value(name: str, text: str) -> Any:
    return int(text) if name in NUMBERS and WHOLE_NUMBER.fullmatch(text) else text
