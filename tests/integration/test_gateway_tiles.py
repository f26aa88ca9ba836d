"""GET /v1/tiles: what the vision service would do with a picture, and what it refuses."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest_asyncio

from tests.fakes import MODEL, Gateway, stack

PLAN = {
    "object": "tiles",
    "column_count": 3,
    "row_count": 2,
    "tile_count": 7,
    "token_count": 1792,
    "tile_size": 448,
    "tile_cap": 12,
    "default_tile_cap": 12,
    "max_tile_cap": 24,
}
ONE = {"column_count": 1, "row_count": 1, "tile_count": 1, "token_count": 256}
SIZE = "width=1200&height=800"


async def test_a_plan_is_that_of_the_vision_service() -> None:
    async with stack() as gateway:
        assert await gateway.get(f"/v1/tiles?{SIZE}") == (200, PLAN)
        assert await gateway.get(f"/v1/tiles?{SIZE}&detail=auto&model={MODEL}") == (200, PLAN)
        for query in ("detail=low", "max_dynamic_patch=1", "detail=high&max_dynamic_patch=1"):
            assert await gateway.get(f"/v1/tiles?{SIZE}&{query}") == (
                200,
                PLAN | ONE | {"tile_cap": 1},
            )
        for query in ("detail=high", "detail=original", "max_dynamic_patch=24"):
            status, plan = await gateway.get(f"/v1/tiles?{SIZE}&{query}")
            assert (status, plan["tile_cap"]) == (200, 24)
            assert plan["tile_count"] == plan["column_count"] * plan["row_count"] + 1
        async with gateway.http.head(f"/v1/tiles?{SIZE}") as response:
            assert (response.status, await response.read()) == (200, b"")


REFUSED = {
    "": ("width", "the width is missing"),
    "width=1200": ("height", "the height is missing"),
    "width=x&height=1": ("width", "the width is a string; it must be a whole number"),
    "width=&height=1": ("width", "the width is a string; it must be a whole number"),
    "width=1.5&height=1": ("width", "the width is a string; it must be a whole number"),
    "width=0&height=1": ("width", "the width is 0; it must be at least 1"),
    "width=1&height=-3": ("height", "the height is -3; it must be at least 1"),
    "width=1&height=2147483648": (
        "height",
        "the height is 2147483648; it must be below 2147483648",
    ),
    f"{SIZE}&detail=best": (
        "detail",
        "an image's detail is 'best'; it must be 'auto', 'low', 'high' or 'original'",
    ),
    f"{SIZE}&max_dynamic_patch=0": (
        "max_dynamic_patch",
        "the tile cap is 0; it must be at least 1",
    ),
    f"{SIZE}&max_dynamic_patch=99": ("max_dynamic_patch", "the tile cap is 99"),
    f"{SIZE}&url=x": (
        "url",
        "there is no parameter 'url'; there are width, height, detail, max_dynamic_patch, model",
    ),
    f"{SIZE}&width=3": ("width", "the query has 'width' 2 times; give it once"),
}


@pytest_asyncio.fixture
async def gateway() -> AsyncIterator[Gateway]:
    async with stack() as running:
        yield running


async def test_a_query_is_read_strictly(gateway: Gateway) -> None:
    for query, (param, sentence) in REFUSED.items():
        status, answer = await gateway.get(f"/v1/tiles?{query}")
        error = answer["error"]
        assert (status, error["param"], error["message"]) == (400, param, sentence), query


async def test_an_unknown_model_is_not_found(gateway: Gateway) -> None:
    status, answer = await gateway.get(f"/v1/tiles?{SIZE}&model=other")
    assert (status, answer["error"]["param"]) == (404, "model")


async def test_without_the_vision_service_there_is_no_plan() -> None:
    async with stack(closed=["vision"]) as gateway:
        status, answer = await gateway.get(f"/v1/tiles?{SIZE}")
    assert (status, answer["error"]["message"]) == (503, "the vision service is unavailable")
