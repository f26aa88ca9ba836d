"""The three processes with the TensorRT-LLM engine over its double: answers as torch gives them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

import tests.doubles
from llm_service.checkpoint import LLMConfig
from models.demo.stack import Stack
from tests.e2e.conftest import GATEWAY_ARGUMENTS, SERVICE_ARGUMENTS, picture_url
from tests.random_checkpoint import write_random_checkpoint
from tests.unit.llm_service.tensorrt_llm.engine_folders import engine_document, write_engine_folder

TEXT: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Tell me a story."}]
PICTURES: list[ChatCompletionMessageParam] = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": picture_url("shapes.png")}},
            {"type": "image_url", "image_url": {"url": picture_url("boat.jpg")}},
            {"type": "text", "text": "What is on the pictures?"},
        ],
    }
]


@pytest.fixture(scope="module")
def tensorrt_client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenAI]:
    """A client of a second stack, over the same checkpoint."""
    folder = tmp_path_factory.mktemp("tensorrt-llm")
    checkpoint = folder / "random-internvl"
    write_random_checkpoint(checkpoint)
    document = engine_document(
        LLMConfig.from_checkpoint(checkpoint),
        build={"max_input_len": 8000, "max_prompt_embedding_table_size": 4 * 26 * 256},
    )
    engine = write_engine_folder(folder / "engine", document, checkpoint)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", next(iter(tests.doubles.__path__)))
        with (
            Stack(
                checkpoint,
                folder,
                gateway_arguments=GATEWAY_ARGUMENTS,
                service_arguments=SERVICE_ARGUMENTS,
                llm_arguments=("--engine", "tensorrt_llm", "--engine-folder", str(engine)),
            ) as stack,
            OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client,
        ):
            yield client


@pytest.mark.parametrize("messages", [TEXT, PICTURES])
def test_answers_are_those_of_the_torch_engine(
    client: OpenAI, tensorrt_client: OpenAI, messages: list[ChatCompletionMessageParam]
) -> None:
    answers = [
        one.chat.completions.create(
            model=one.models.list().data[0].id, messages=messages, max_tokens=40, temperature=0
        )
        for one in (client, tensorrt_client)
    ]
    torch, tensorrt = answers
    assert tensorrt.choices[0].message.content == torch.choices[0].message.content != ""
    assert tensorrt.choices[0].finish_reason == torch.choices[0].finish_reason
    assert torch.usage is not None
    assert tensorrt.usage is not None
    assert tensorrt.usage.prompt_tokens == torch.usage.prompt_tokens
    assert tensorrt.usage.completion_tokens == torch.usage.completion_tokens
