"""Clients that leave and services that die: nothing hangs, nothing leaks, everything comes back."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from openai import APIError, InternalServerError, OpenAI, Stream
from openai.types.chat import ChatCompletionChunk

from gateway.local.processes import ServiceProcess
from gateway.local.stack import Stack
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.e2e.conftest import TORCH_AND_SLOWLY_TENSORRT_LLM, picture_url

pytestmark = pytest.mark.parametrize("engine", TORCH_AND_SLOWLY_TENSORRT_LLM, indirect=True)

TEXT: list[Any] = [{"role": "user", "content": "Tell me a long story."}]
PICTURE: list[Any] = [
    {
        "role": "user",
        "content": [{"type": "image_url", "image_url": {"url": picture_url("shapes.png")}}],
    }
]
LONG = 20_000
PATIENCE_SECONDS = 30.0


@pytest.fixture
def llm_load(stack: Stack) -> Iterator[Callable[[], llm_pb2.GetLoadResponse]]:
    with grpc.insecure_channel(f"127.0.0.1:{stack.llm.port}") as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        yield lambda: stub.GetLoad(llm_pb2.GetLoadRequest(), wait_for_ready=True)


def long_stream(client: OpenAI, model: str) -> Stream[ChatCompletionChunk]:
    stream = client.chat.completions.create(
        model=model, messages=TEXT, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
    )
    next(iter(stream))
    return stream


def answer(client: OpenAI, model: str, messages: list[Any]) -> str:
    completion = client.chat.completions.create(model=model, messages=messages, max_tokens=4)
    return completion.choices[0].message.content or ""


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def restart(service: ServiceProcess) -> None:
    service.start()
    service.wait_serving()


def works_again(client: OpenAI, model: str, messages: list[Any]) -> bool:
    try:
        answer(client, model, messages)
    except InternalServerError:
        return False
    return True


def test_closed_connection_frees_the_sequence(
    client: OpenAI, model: str, llm_load: Callable[[], llm_pb2.GetLoadResponse]
) -> None:
    stream = long_stream(client, model)
    # The TensorRT-LLM engine knows it from the executor's statistics, a moment later.
    eventually(lambda: llm_load().running_sequence_count == 1)
    stream.close()
    eventually(lambda: llm_load().running_sequence_count == 0)
    load = llm_load()
    assert load.free_kv_token_count == load.total_kv_token_count


def test_killed_llm_service_mid_stream(stack: Stack, client: OpenAI, model: str) -> None:
    response = client.chat.completions.with_streaming_response.create(
        model=model, messages=TEXT, max_tokens=LONG, stream=True, extra_body={"ignore_eos": True}
    )
    with response as raw:
        lines = raw.iter_lines()
        next(lines)
        stack.llm.kill()
        try:
            events = [line.removeprefix("data: ") for line in lines if line]
            errors = [json.loads(event)["error"] for event in events if '"error"' in event]
            assert len(errors) == 1
            assert "LLM service" in errors[0]["message"]
            assert "error" in json.loads(events[-1])  # and no [DONE] after it
            with pytest.raises(InternalServerError) as info:
                answer(client, model, TEXT)
            assert info.value.status_code == 503
            assert stack.gateway.returncode is None
        finally:
            restart(stack.llm)
    eventually(lambda: works_again(client, model, PICTURE))


@pytest.mark.slow
def test_killed_llm_service_reaches_a_reader_as_an_exception(
    stack: Stack, client: OpenAI, model: str
) -> None:
    stream = long_stream(client, model)
    stack.llm.kill()
    try:
        with pytest.raises(APIError, match="LLM service"):
            list(stream)
    finally:
        restart(stack.llm)
    eventually(lambda: works_again(client, model, TEXT))


def test_killed_vision_service_leaves_text_chat(stack: Stack, client: OpenAI, model: str) -> None:
    fresh: list[Any] = [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": picture_url("frame1.jpg")}}],
        }
    ]
    stack.vision.kill()
    try:
        answer(client, model, TEXT)
        with pytest.raises(InternalServerError, match="vision service") as info:
            answer(client, model, fresh)
        assert info.value.status_code == 503
    finally:
        restart(stack.vision)
    eventually(lambda: works_again(client, model, fresh))


def test_second_turn_needs_no_vision_service(stack: Stack, client: OpenAI, model: str) -> None:
    """The LLM service holds the first turn's rows: the picture is not encoded again."""
    first = answer(client, model, PICTURE)
    stack.vision.kill()
    try:
        turns = [
            *PICTURE,
            {"role": "assistant", "content": "Shapes."},
            {"role": "user", "content": "Which?"},
        ]
        answer(client, model, turns)
        assert answer(client, model, PICTURE) == first
    finally:
        restart(stack.vision)
    eventually(lambda: works_again(client, model, PICTURE))


def test_sigterm_ends_every_process_with_status_zero(
    tmp_path_factory: pytest.TempPathFactory, stack: Stack
) -> None:
    for service in (stack.vision, stack.llm, stack.gateway):
        service.stop()
        try:
            assert service.returncode == 0, service.module
        finally:
            restart(service)
