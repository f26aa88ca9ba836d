"""Costs: what the defaults let through, and what waits."""

from __future__ import annotations

import pytest

from vision_service.decoding.cost import DECODING_BYTE_COUNT, CostModel
from vision_service.decoding.headers import Header
from vision_service.settings import MAX_RESIZING_THREAD_COUNT, Settings

TILE_SIZE, MAX_TILE_COUNT = 448, 12
DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}
MODEL = CostModel(
    TILE_SIZE,
    DEFAULTS["max_image_pixel_count"],
    DEFAULTS["max_decode_seconds"],
    thread_count=MAX_RESIZING_THREAD_COUNT,
)


def memory(header: Header) -> int:
    cost = MODEL.cost(header, DEFAULTS["max_image_byte_count"], MAX_TILE_COUNT)
    return cost.memory_byte_count


@pytest.mark.parametrize("image_format", DECODING_BYTE_COUNT)
@pytest.mark.parametrize(("width", "height"), [(16_000, 8000), (2000, 64_000)])
def test_the_largest_image_of_each_format_fits(image_format: str, width: int, height: int) -> None:
    assert width * height == DEFAULTS["max_image_pixel_count"]
    assert memory(Header(image_format, width, height)) <= DEFAULTS["max_decode_byte_count"]


@pytest.mark.parametrize("component_count", [3, 4])
def test_the_largest_progressive_jpeg_fits(component_count: int) -> None:
    coefficients = 2 * component_count * 16_000 * 8000
    header = Header("JPEG", 16_000, 8000, coefficient_byte_count=coefficients)
    assert memory(header) <= DEFAULTS["max_decode_byte_count"]


def test_three_photos_of_a_phone_fit_together() -> None:
    cost = MODEL.cost(Header("JPEG", 12_000, 9000), 20_000_000, MAX_TILE_COUNT)
    assert 3 * cost.memory_byte_count <= DEFAULTS["max_decode_byte_count"]
    assert cost.is_large
    assert 20 < cost.cpu_seconds < 40
