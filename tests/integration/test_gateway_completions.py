"""Text completions over HTTP: the openai client, lm-eval's reading, failures, and tokens alone."""

from __future__ import annotations

import asyncio
import json
from operator import itemgetter
from typing import Any

import openai
import pytest

from gateway.batches import CONCURRENT_CHOICE_COUNT
from gateway.release import release
from protos.errors import InvalidArgumentError, InvalidImageError, OverloadedError, ServiceError
from tests.fakes import MODEL, SOON_SECONDS, Gateway, ScriptedLLM, ScriptedVision, happening, stack
from tests.integration.picture_server import LOCAL, PICTURE, picture_server

PATH = "/v1/completions"


def connect(gateway: Gateway) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key="none", max_retries=0)


async def idle(gateway: Gateway) -> None:
    """Waits until no request is in flight."""
    while (await gateway.get("/load"))[1] != {"server_load": 0}:  # noqa: ASYNC110 - no event here
        await asyncio.sleep(0.02)


async def begun(llm: ScriptedLLM, count: int) -> None:
    """Waits until so many generations have begun."""
    while len(llm.starts) < count:  # noqa: ASYNC110 - no event here
        await asyncio.sleep(0.01)


async def post(gateway: Gateway, path: str = PATH, **body: Any) -> tuple[int, Any]:
    async with gateway.http.post(path, json=body) as response:
        return response.status, await response.json()


async def test_the_openai_client_completes_many_prompts() -> None:
    async with stack() as gateway, connect(gateway) as client:
        answer = await client.completions.create(
            model=MODEL, prompt=["Once", "Twice", "Once"], n=2, max_tokens=5, echo=True
        )
    assert [choice.index for choice in answer.choices] == list(range(6))
    texts = [choice.text for choice in answer.choices]
    assert texts == ["OnceHello"] * 2 + ["TwiceHello"] * 2 + ["OnceHello"] * 2
    assert {choice.finish_reason for choice in answer.choices} == {"stop"}
    assert answer.usage
    assert answer.usage.prompt_tokens == 90
    assert answer.usage.completion_tokens == 18
    assert sorted(start.text for start in gateway.llm.starts) == ["Once", "Once", "Twice"]
    assert {start.stop.max_token_count for start in gateway.llm.starts} == {5}


async def test_the_openai_client_streams() -> None:
    async with stack() as gateway, connect(gateway) as client:
        stream = await client.completions.create(
            model=MODEL,
            prompt=[[1, 2], [3]],
            stream=True,
            stream_options={"include_usage": True},
            logprobs=2,
            echo=True,
        )
        chunks = [chunk async for chunk in stream]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    texts = {0: "", 1: ""}
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == {0: "OnceHello", 1: "OnceHello"}
    assert chunks[-1].usage
    assert chunks[-1].usage.total_tokens == 66
    assert sorted(list(start.token_ids.ids) for start in gateway.llm.starts) == [[1, 2], [3]]
    assert all(start.logprobs.prompt for start in gateway.llm.starts)


def loglikelihood(choice: dict[str, Any], context_length: int) -> tuple[float, bool]:
    """Returns what lm-eval's local-completions reads of a choice with one token of an answer."""
    logprobs = choice["logprobs"]["token_logprobs"][context_length:-1]
    tops = choice["logprobs"]["top_logprobs"][context_length:-1]
    is_greedy = all(
        logprob == max(top.values()) for logprob, top in zip(logprobs, tops, strict=True)
    )
    return sum(logprobs), is_greedy


async def test_lm_eval_reads_loglikelihoods() -> None:
    llm = ScriptedLLM(texts=["!"], prompt=[b"The", b" cat", b" sat", b" down"])
    async with stack(llm=llm) as gateway:
        status, answer = await post(
            gateway,
            model=MODEL,
            prompt=[[5, 6, 7, 8], [5, 6, 7, 8]],
            temperature=0,
            max_tokens=1,
            logprobs=1,
            seed=1234,
            echo=True,
        )
    assert status == 200
    choices = sorted(answer["choices"], key=itemgetter("index"))
    assert [loglikelihood(choice, 2) for choice in choices] == [(-1.0, True)] * 2
    assert choices[0]["logprobs"]["token_logprobs"][0] is None
    assert len(choices[0]["logprobs"]["tokens"]) == 5


async def test_the_prompts_alone_are_echoed() -> None:
    async with stack() as gateway:
        _, answer = await post(gateway, prompt=[1, 2], echo=True, logprobs=0, max_tokens=0)
        assert gateway.llm.starts[0].stop.max_token_count == 1
    (choice,) = answer["choices"]
    assert choice["text"] == "Once"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5]
    assert answer["usage"]["completion_tokens"] == 0


async def test_one_of_several_prompts_is_refused_by_name() -> None:
    class Picky(ScriptedLLM):
        async def Generate(self, requests: Any, context: Any) -> Any:
            async def seen() -> Any:
                async for request in requests:
                    if request.start.text == "bad":
                        raise InvalidArgumentError("this text is bad", field="text")
                    yield request

            async for response in super().Generate(seen(), context):
                yield response

    async with stack(llm=Picky()) as gateway:
        status, answer = await post(gateway, prompt=["a", "b", "bad"])
        assert status == 400
        assert answer["error"]["param"] == "prompt[2]"
        status, answer = await post(gateway, prompt="bad")
        assert answer["error"]["param"] == "prompt"


@pytest.mark.parametrize("stream", [False, True])
async def test_an_overload_of_one_prompt_is_a_429(stream: bool) -> None:
    failures: list[ServiceError] = [OverloadedError("full", retry_after=3) for _ in range(100)]
    async with stack(llm=ScriptedLLM(failures=failures)) as gateway:
        body = {"prompt": ["a", "b"], "stream": stream}
        async with gateway.http.post(PATH, json=body) as response:
            assert response.status == 429
            assert response.headers["Retry-After"] == "3"


async def test_a_late_failure_ends_the_stream_with_an_error() -> None:
    llm = ScriptedLLM(late_failure=ServiceError("lost"))
    body = {"prompt": ["a", "b"], "stream": True}
    async with stack(llm=llm) as gateway, gateway.http.post(PATH, json=body) as response:
        text = await response.text()
    assert response.status == 200
    *_, last, end = text.split("\n\n")
    assert end == ""
    assert json.loads(last.removeprefix("data: "))["error"]["message"] == "lost"


async def test_leaving_ends_all_generations() -> None:
    llm = ScriptedLLM(stalls=True)
    async with stack(llm=llm) as gateway:
        async with gateway.http.post(PATH, json={"prompt": ["a", "b"], "stream": True}) as response:
            await response.content.readline()
            await happening(llm.stalled)
            response.close()
        await happening(llm.cancelled)
        await asyncio.wait_for(idle(gateway), SOON_SECONDS)


async def test_so_many_prompts_run_at_a_time() -> None:
    llm = ScriptedLLM(stalls=True)
    prompts = [str(number) for number in range(CONCURRENT_CHOICE_COUNT + 5)]
    async with stack(llm=llm) as gateway:
        asked = asyncio.create_task(post(gateway, prompt=prompts))
        await asyncio.wait_for(begun(llm, CONCURRENT_CHOICE_COUNT), SOON_SECONDS)
        await asyncio.sleep(0.2)
        assert len(llm.starts) == CONCURRENT_CHOICE_COUNT
        assert (await gateway.get("/load"))[1] == {"server_load": 1}
        llm.released.set()
        status, answer = await asked
    assert status == 200
    assert len(answer["choices"]) == len(prompts)


async def test_an_image_in_a_prompt_is_text() -> None:
    async with stack() as gateway:
        status, _ = await post(gateway, prompt="<image>\nWhat?", echo=True)
        assert status == 200
        assert gateway.llm.starts[0].text == "<image>\nWhat?"
        assert not gateway.llm.starts[0].images


@pytest.mark.parametrize(
    ("fields", "header"), [({"wizardry": 1}, "wizardry"), ({"user": "me"}, None)]
)
async def test_fields_that_are_ignored_are_named(
    fields: dict[str, Any], header: str | None
) -> None:
    body = {"prompt": "a", **fields}
    async with stack() as gateway, gateway.http.post(PATH, json=body) as response:
        assert response.status == 200
        assert response.headers.get("x-internvl-ignored") == header


async def test_a_text_is_tokenized() -> None:
    async with stack() as gateway:
        status, answer = await post(
            gateway, "/tokenize", prompt="Hi", add_special_tokens=False, return_token_strs=True
        )
        (asked,) = gateway.llm.counts
    assert (status, answer) == (
        200,
        {
            "count": 30,
            "max_model_len": 32768,
            "tokens": list(range(30)),
            "token_strs": [str(number) for number in range(30)],
        },
    )
    assert asked.text == "Hi"
    assert asked.omit_beginning_token
    assert asked.return_tokens


async def test_a_chat_with_pictures_is_tokenized_without_encoding_them() -> None:
    async with stack(allowed_private_hosts=LOCAL) as gateway, picture_server() as pictures:
        parts = [
            {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}},
            {"type": "image_url", "image_url": {"url": pictures.url(), "detail": "low"}},
            {"type": "text", "text": "?"},
        ]
        tools = [{"type": "function", "function": {"name": "look"}}]
        status, answer = await post(
            gateway,
            "/tokenize",
            messages=[{"role": "user", "content": parts}],
            tools=tools,
            add_generation_prompt=True,
        )
        (asked,) = gateway.llm.counts
        plans = gateway.vision.planned
        assert not gateway.vision.requests
        assert not gateway.llm.starts
    assert status == 200
    assert answer["count"] == 30 + 4 * 2 + 4 * len(PICTURE)
    assert answer["token_strs"] is None
    assert list(asked.image_row_counts) == [8, 4 * len(PICTURE)]
    assert [part.WhichOneof("part") for part in asked.chat.messages[0].parts] == [
        "image",
        "image",
        "text",
    ]
    assert asked.chat.tools[0].name == "look"
    assert not asked.omit_beginning_token
    caps = {
        plan.image: plan.max_tile_count if plan.HasField("max_tile_count") else None
        for plan in plans
    }
    assert caps == {b"hi": None, PICTURE: 1}


async def test_a_picture_that_cannot_be_counted_is_named() -> None:
    vision = ScriptedVision(failures=[InvalidImageError("no picture", field="image")])
    async with stack(vision) as gateway:
        part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}}
        messages = [{"role": "user", "content": [part]}]
        status, answer = await post(gateway, "/tokenize", messages=messages)
    assert status == 400
    assert answer["error"]["param"] == "messages[0].content[0].image_url.url"


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/tokenize", {}, 400, "prompt"),
        ("/tokenize", {"prompt": "a", "model": "other"}, 404, "model"),
        ("/tokenize", {"messages": [{"role": "user"}]}, 400, "messages[0].content"),
        ("/detokenize", {"tokens": [1], "model": "other"}, 404, "model"),
        ("/detokenize", {"tokens": "x"}, 400, "tokens"),
        (PATH, {"prompt": "a", "model": "other"}, 404, "model"),
        (PATH, {"prompt": ["a", "b"], "model": "other"}, 404, "model"),
    ],
)
async def test_errors_name_the_field(
    path: str, body: dict[str, Any], status: int, param: str
) -> None:
    async with stack() as gateway:
        found, answer = await post(gateway, path, **body)
    assert (found, answer["error"]["param"]) == (status, param)


async def test_tokens_become_text() -> None:
    async with stack() as gateway:
        assert await post(gateway, "/detokenize", tokens=[1, 2]) == (200, {"prompt": "1 2"})


async def test_wrong_tokens_are_named() -> None:
    class Strict(ScriptedLLM):
        async def Detokenize(self, request: Any, context: Any) -> Any:
            raise InvalidArgumentError("a token id is 9", field="token_ids.ids[1]")

    async with stack(llm=Strict()) as gateway:
        status, answer = await post(gateway, "/detokenize", tokens=[1, 9])
    assert (status, answer["error"]["param"]) == (400, "tokens[1]")


async def test_questions_about_tokens_have_the_limits_of_all_requests() -> None:
    async with stack(llm=ScriptedLLM(stalls=True), max_request_count=1) as gateway:
        asked = asyncio.create_task(post(gateway, prompt="a"))
        await happening(gateway.llm.stalled)
        for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [1]})):
            status, answer = await post(gateway, path, **body)
            assert (status, answer["error"]["type"]) == (429, "rate_limit_error")
        gateway.llm.released.set()
        await asked


async def test_the_tokenizers_own_tokens() -> None:
    async with stack() as gateway:
        assert await gateway.get("/tokenizer_info") == (
            200,
            {"bos_token": None, "eos_token": "<|im_end|>", "model_max_length": 32768},
        )
    async with stack(closed=["llm"]) as gateway:
        assert (await gateway.get("/tokenizer_info"))[0] == 503


async def test_the_version() -> None:
    async with stack() as gateway:
        assert await gateway.get("/version") == (200, {"version": release().version})


async def test_a_page_of_another_origin_is_refused() -> None:
    async with stack() as gateway:
        for path in (PATH, "/tokenize", "/detokenize"):
            headers = {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"}
            async with gateway.http.post(path, json={"prompt": "a"}, headers=headers) as response:
                assert response.status == 403
