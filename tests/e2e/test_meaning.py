"""The shipped model through three real processes: answers are true, or something is broken.

The same weights are asked in both layouts: as they ship (Qwen2), and rewritten for InternLM2, so
that both decoders, tokenizers and all of the path between picture and answer are tested for
meaning; and as they ship once more through the TensorRT-LLM engine over its double. The first takes
a minute, the others are slow tests. A thousand questions more are asked by the tests of
`models/demo/training`, which draw them.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from openai import AsyncOpenAI
from PIL import Image, ImageDraw, ImageFont

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.e2e.conftest import make_stack
from tests.e2e.questions import Answered, BlindAsker, HTTPAsker, ask_all, conversations, share
from tests.internlm2_layout import write_internlm2


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("torch", "qwen2"), id="qwen2"),
        pytest.param(("torch", "internlm2"), id="internlm2", marks=pytest.mark.slow),
        pytest.param(("tensorrt_llm", "qwen2"), id="tensorrt_llm", marks=pytest.mark.slow),
    ],
)
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    engine, family = request.param
    folder: Path = tmp_path_factory.mktemp("meaning")
    checkpoint = DEMO_CHECKPOINT
    if family == "internlm2":
        checkpoint = folder / "internlm2"
        write_internlm2(DEMO_CHECKPOINT, checkpoint)
    with make_stack(engine, checkpoint, folder) as started:
        yield started


async def ask(stack: Stack, name: str) -> list[Answered]:
    """Asks a set of questions over HTTP."""
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id
        return await ask_all(HTTPAsker(client, model), conversations(name))


def wrong(answers: list[Answered]) -> list[Answered]:
    """Returns what a failed assertion should show."""
    return [answer for answer in answers if not answer.is_right]


@pytest.mark.slow
async def test_held_out_questions_of_every_task(stack: Stack) -> None:
    answers = await ask(stack, "tasks")
    assert len(answers) >= 60
    assert len({answer.question.task for answer in answers}) >= 15
    for language in ("en", "zh"):
        spoken = [answer for answer in answers if answer.question.language == language]
        assert share(spoken) >= 90, wrong(spoken)


def bus_sign() -> str:
    """Returns black text on nothing, as the URL of a PNG whose transparent pixels are black too."""
    picture = Image.new("RGBA", (448, 448))
    font = ImageFont.load_default(size=130)
    ImageDraw.Draw(picture).text((224, 224), "BUS", "black", font, anchor="mm", stroke_width=4)
    file = io.BytesIO()
    picture.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


async def test_black_text_on_transparency_is_read(stack: Stack) -> None:
    image = {"type": "image_url", "image_url": {"url": bus_sign()}}
    question = {"type": "text", "text": "What is written in the picture?"}
    messages: list[Any] = [{"role": "user", "content": [image, question]}]
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:
        model = (await client.models.list()).data[0].id
        answer = await client.chat.completions.create(
            model=model, messages=messages, max_tokens=16, temperature=0
        )
    assert "BUS" in (answer.choices[0].message.content or "")


@pytest.mark.slow
async def test_large_pictures_need_all_their_tiles_in_order(stack: Stack) -> None:
    right = share(await ask(stack, "tiles"))
    shuffled = share(await ask(stack, "tiles_shuffled"))
    assert right >= 80
    assert shuffled <= right - 20


async def test_another_picture_gives_another_answer(stack: Stack) -> None:
    assert share(await ask(stack, "single_swapped")) <= 70


async def test_rows_of_zeros_tell_nothing(stack: Stack) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{stack.llm.port}") as channel:
        info = await llm_pb2_grpc.LLMServiceStub(channel).GetModelInfo(
            llm_pb2.LLMServiceGetModelInfoRequest()
        )
        answers = await ask_all(BlindAsker(channel, info.hidden_size), conversations("single"))
    assert share(answers) <= 70


async def test_a_follow_up_needs_the_turn_before(stack: Stack) -> None:
    answers = await ask(stack, "forgotten")
    assert len(answers) >= 20
    assert share(answers) <= 70, answers


async def test_a_cut_answer_goes_on_to_the_same_end(stack: Stack) -> None:
    question: dict[str, Any] = {"role": "user", "content": "Hello, who are you?"}
    async with AsyncOpenAI(base_url=f"{stack.url}/v1", api_key="none") as client:

        async def said(*messages: Any, **options: Any) -> str:
            answer = await client.chat.completions.create(model="", messages=messages, **options)
            return answer.choices[0].message.content or ""

        whole = await said(question)
        for count in (1, 2, 3):
            cut = await said(question, max_tokens=count)
            rest = await said(question, {"role": "assistant", "content": cut})
            assert (cut + rest, bool(rest)) == (whole, True)
