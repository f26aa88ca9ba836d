"""How many tokens are reserved for a request."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gateway.dialects import chat, completions, messages, responses
from gateway.estimates import TokenEstimate
from gateway.generation import GenerationRequest, ImageReference
from gateway.openai.requests import ImageURL
from gateway.services.vision import ModelInfo
from protos.checkpoint.fingerprint import CheckpointFingerprint

VISION = ModelInfo("m", CheckpointFingerprint(), b"r", 8, 256, 448, 12, 24, 1000)
ESTIMATE = TokenEstimate(32768, VISION)


def generation(images: tuple[ImageURL, ...] = (), **fields: Any) -> GenerationRequest:
    values = {path.replace("__", "."): value for path, value in fields.items()}
    references = [ImageReference(image, str) for image in images]
    return GenerationRequest("m", values, str, references, choice_count=fields.get("n", 1))


@pytest.mark.parametrize(
    ("request_", "count"),
    [
        (generation(text="x" * 30), 10),
        (generation(text="\u4e2d" * 10), 10),
        (generation(token_ids__ids=[1] * 7), 7),
        (generation(text="x" * 10**6), 32768),
    ],
)
def test_a_prompt_is_estimated_by_its_bytes(request_: GenerationRequest, count: int) -> None:
    assert ESTIMATE.of_prompt(request_) == count


@pytest.mark.parametrize(
    ("image", "tile_count"),
    [
        (ImageURL(url="x"), 13),
        (ImageURL(url="x", detail="low"), 1),
        (ImageURL(url="x", detail="high"), 25),
        (ImageURL(url="x", max_dynamic_patch=2), 3),
        (ImageURL(url="x", max_dynamic_patch=10**6), 25),
    ],
)
def test_an_image_counts_with_its_most_tiles(image: ImageURL, tile_count: int) -> None:
    assert ESTIMATE.of_prompt(generation((image,))) == 256 * tile_count


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({}, 1024),
        ({"stop__max_token_count": 10, "n": 3}, 30),
        ({"stop__max_token_count": 2**31 - 1}, 32768),
        ({"stop__max_token_count": -5, "n": 0}, 1),
    ],
)
def test_outputs_count_with_their_most_tokens(fields: dict[str, Any], count: int) -> None:
    assert ESTIMATE.of_outputs(generation(**fields)) == count


@pytest.mark.parametrize("dialect", [chat, completions, messages, responses])
def test_every_dialects_examples_can_be_estimated(dialect: Any) -> None:
    parse = dialect.MESSAGES.parse if dialect is messages else dialect.parse
    for example in dialect.EXAMPLES.values():
        for each in parse(json.dumps(example).encode(), False).generations:
            assert ESTIMATE.of_prompt(each) > 0
            assert ESTIMATE.of_outputs(each) > 0
