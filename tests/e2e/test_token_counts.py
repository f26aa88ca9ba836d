"""usage.prompt_tokens over HTTP with the real tokenizers, against the published requests.

The texts and tile counts are those of a public server's documented requests; the counts are those
of the template `internvl2_5`. (That document's own figures are 2 to 4 lower: they were taken with
the older template, which has no line feed after <|im_end|>.)
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI
from PIL import Image

from tests.e2e.conftest import TORCH_AND_SLOWLY_TENSORRT_LLM, Engine, make_stack
from tests.random_checkpoint import Family, write_random_checkpoint
from tests.real_tokenizers import FOLDER

pytestmark = pytest.mark.parametrize("engine", TORCH_AND_SLOWLY_TENSORRT_LLM, indirect=True)

PROMPTS = Path(__file__).parents[1] / "data" / "golden" / "prompts.json"
# Sizes that the default tiling cuts into so many tiles, thumbnail included.
SIZES = {13: (1000, 747), 10: (1000, 1000), 3: (360, 640), 9: (1280, 720)}
FAMILIES: dict[Family, str] = {"internlm2": "internlm2_5", "qwen2": "qwen2_5"}
COUNTS = {
    "one_image_zh": {"internlm2": 3385, "qwen2": 3383},
    "two_images_zh": {"internlm2": 5957, "qwen2": 5955},
    "two_images_multi_turn_zh": {"internlm2": 6081, "qwen2": 6084},
    "six_frames_zh": {"internlm2": 4699, "qwen2": 4697},
    "cat": {"internlm2": 2361, "qwen2": 2359},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Family:
    chosen: Family = request.param
    return chosen


@pytest.fixture(scope="module")
def client(
    engine: Engine, family: Family, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[OpenAI]:
    folder = tmp_path_factory.mktemp(family)
    checkpoint = folder / family
    write_random_checkpoint(checkpoint, family=family, tokenizer=FOLDER / FAMILIES[family])
    with (
        make_stack(engine, checkpoint, folder) as stack,
        OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS)
def test_prompt_tokens(client: OpenAI, family: Family, name: str) -> None:
    completion = client.chat.completions.create(
        model=family, messages=conversation(name), max_tokens=1
    )
    assert completion.usage is not None
    assert completion.usage.prompt_tokens == COUNTS[name][family]


def conversation(name: str) -> list[Any]:
    """Returns a golden conversation with its pictures replaced by ones of the right sizes."""
    conversations = json.loads(PROMPTS.read_text(encoding="utf-8"))["conversations"]
    by_name = {entry["name"]: entry for entry in conversations}
    entry = by_name["one_image_zh" if name == "cat" else name]
    tiles = iter([9] if name == "cat" else entry["tiles"])
    messages: list[Any] = entry["messages"]
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "image_url":
                part["image_url"]["url"] = picture(*SIZES[next(tiles)])
    return messages


def picture(width: int, height: int) -> str:
    """Returns a gradient of this size as a data URL."""
    encoded = io.BytesIO()
    Image.linear_gradient("L").resize((width, height)).convert("RGB").save(encoded, "JPEG")
    return f"data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"
