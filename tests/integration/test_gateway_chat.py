"""Chat requests over HTTP against scripted services: what goes in, what comes out."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from typing import Any

import pytest
import structlog.testing

from protos.errors import InvalidArgumentError, ServiceError
from protos.identity import content_digest, recipe_digest
from protos.internvl.v1 import llm_pb2
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, chat_body, embedding_of, stack
from tests.request_lines import gateway_lines

CAT, DOG = b"a cat", b"a dog"


def picture(image: bytes, **options: Any) -> dict[str, Any]:
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    return {"type": "image_url", "image_url": {"url": url, **options}}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def user(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(parts)}]


async def events(gateway: Gateway, **body: Any) -> list[Any]:
    """Returns the data of a stream's events: JSON, or the string [DONE]."""
    async with gateway.http.post(
        "/v1/chat/completions", json=chat_body(stream=True, **body)
    ) as response:
        assert response.status == 200
        assert response.content_type == "text/event-stream"
        lines = (await response.text()).split("\n\n")
    assert lines.pop() == ""
    data = [line.removeprefix("data: ") for line in lines]
    return [item if item == "[DONE]" else json.loads(item) for item in data]


async def test_an_answer_is_openais_object() -> None:
    async with stack() as gateway:
        status, answer = await gateway.chat()
    assert status == 200
    assert answer.pop("id").startswith("chatcmpl-")
    assert answer.pop("created") > 0
    assert re.fullmatch("fp_[0-9a-f]{10}", answer.pop("system_fingerprint"))
    assert answer == {
        "object": "chat.completion",
        "model": "scripted",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "stop",
            }
        ],
        "usage": {
            "prompt_tokens": 30,
            "completion_tokens": 3,
            "total_tokens": 33,
            "prompt_tokens_details": {"cached_tokens": 16, "image_tokens": 0},
        },
    }


async def test_the_output_limit_is_told() -> None:
    async with stack(llm=ScriptedLLM(reason=llm_pb2.FINISH_REASON_LENGTH)) as gateway:
        _, answer = await gateway.chat()
    assert answer["choices"][0]["finish_reason"] == "length"


async def test_a_stream_is_role_texts_finish_done() -> None:
    async with stack() as gateway:
        *chunks, done = await events(gateway)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(choice["delta"], choice["finish_reason"]) for choice in choices] == [
        ({"role": "assistant", "content": "", "refusal": None}, None),
        ({"content": "Hel"}, None),
        ({"content": "lo"}, None),
        ({}, "stop"),
    ]
    assert len({chunk["id"] for chunk in chunks}) == 1
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert not any("usage" in chunk for chunk in chunks)


async def test_a_stream_with_usage_ends_with_it_and_has_null_before() -> None:
    async with stack() as gateway:
        *chunks, last, done = await events(gateway, stream_options={"include_usage": True})
    assert done == "[DONE]"
    assert [chunk["usage"] for chunk in chunks] == [None] * 4
    assert last["choices"] == []
    assert last["usage"]["total_tokens"] == 33


async def test_a_stream_comes_as_it_is_made() -> None:
    async with (
        stack(llm=ScriptedLLM(stalls=True)) as gateway,
        gateway.http.post("/v1/chat/completions", json=chat_body(stream=True)) as response,
    ):
        seen = b""
        while b'"lo"' not in seen:
            seen += await response.content.readany()
        assert b'finish_reason":"stop' not in seen
        gateway.llm.released.set()
        assert (await response.content.read()).endswith(b"data: [DONE]\n\n")


async def test_only_what_the_client_set_reaches_the_llm_service() -> None:
    async with stack() as gateway:
        await gateway.chat()
    (start,) = gateway.llm.starts
    assert start.sampling == llm_pb2.SamplingParams()
    assert start.stop == llm_pb2.StopConditions()
    assert not start.HasField("skip_special_tokens")
    assert not start.HasField("choice_count")
    assert not start.HasField("logprobs")
    assert not start.HasField("guided")
    assert not start.HasField("priority")
    assert not start.HasField("cache_salt")


async def test_every_option_reaches_the_llm_service() -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(
            temperature=0,
            top_p=0.5,
            top_k=7,
            min_p=0.25,
            seed=0,
            repetition_penalty=1.5,
            presence_penalty=-0.5,
            frequency_penalty=0,
            max_completion_tokens=9,
            min_tokens=0,
            stop=["a", "b"],
            stop_token_ids=[5],
            ignore_eos=False,
            skip_special_tokens=False,
            logit_bias={"5": -100, "0": 1.5},
            n=2,
            logprobs=True,
            top_logprobs=3,
            priority=-4,
            cache_salt="tenant",
            structured_outputs={"regex": "a+"},
        )
    assert status == 200
    (start,) = gateway.llm.starts
    assert start.sampling == llm_pb2.SamplingParams(
        temperature=0,
        top_p=0.5,
        top_k=7,
        min_p=0.25,
        seed=0,
        repetition_penalty=1.5,
        presence_penalty=-0.5,
        frequency_penalty=0,
        logit_bias=[
            llm_pb2.LogitBias(token_id=5, bias=-100),
            llm_pb2.LogitBias(token_id=0, bias=1.5),
        ],
    )
    assert start.stop == llm_pb2.StopConditions(
        max_token_count=9,
        min_token_count=0,
        strings=["a", "b"],
        token_ids=[5],
        ignore_end_tokens=False,
    )
    assert start.HasField("skip_special_tokens")
    assert not start.skip_special_tokens
    assert start.choice_count == 2
    assert start.logprobs == llm_pb2.LogprobOptions(top_count=3)
    assert start.priority == 4  # vLLM's lowest comes first, the contract's highest
    assert start.cache_salt == "tenant"
    assert start.guided == llm_pb2.GuidedDecoding(regex="a+")


SCHEMA = {"type": "object", "properties": {"size": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("body", "guided"),
    [
        (
            {"response_format": {"type": "json_object"}},
            llm_pb2.GuidedDecoding(json_object=llm_pb2.JSONObjectGuide()),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "size", "schema": SCHEMA, "strict": True},
                }
            },
            llm_pb2.GuidedDecoding(
                json_schema=json.dumps(SCHEMA | {"additionalProperties": False})
            ),
        ),
        (
            {"structured_outputs": {"grammar": 'start: "a"'}},
            llm_pb2.GuidedDecoding(grammar='start: "a"'),
        ),
    ],
    ids=["json_object", "json_schema", "grammar"],
)
async def test_every_format_reaches_the_llm_service(
    body: dict[str, Any], guided: llm_pb2.GuidedDecoding
) -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(**body)
    assert status == 200
    assert gateway.llm.starts[0].guided == guided


def named(token: bytes, shown: str, logprob: float = -0.5) -> dict[str, Any]:
    return {"token": shown, "bytes": list(token), "logprob": logprob}


NEVER = named(b"never", "never", -9999.0)
# A part of a character is shown as its bytes, and JSON has no infinity.
TOKENS = [named(b"Hel", "Hel"), named(b"\xf0\x9f", "\\xf0\\x9f"), named(b"lo", "lo")]
LOGPROBS = [token | {"top_logprobs": [token, NEVER]} for token in TOKENS]


async def test_logprobs_are_openais() -> None:
    async with stack() as gateway:
        _, answer = await gateway.chat(logprobs=True, top_logprobs=2)
    assert answer["choices"][0]["logprobs"] == {"content": LOGPROBS, "refusal": None}


async def test_logprobs_without_alternatives() -> None:
    async with stack() as gateway:
        _, answer = await gateway.chat(logprobs=True)
    contents = answer["choices"][0]["logprobs"]["content"]
    assert contents == [token | {"top_logprobs": []} for token in TOKENS]


async def test_a_stream_has_the_logprobs_of_each_token_also_without_text() -> None:
    async with stack() as gateway:
        role, *deltas, finish, _ = await events(gateway, logprobs=True, top_logprobs=2)
    assert [delta["choices"][0]["delta"]["content"] for delta in deltas] == ["Hel", "", "lo"]
    contents = [delta["choices"][0]["logprobs"]["content"] for delta in deltas]
    assert contents == [[logprob] for logprob in LOGPROBS]
    assert role["choices"][0]["logprobs"] is finish["choices"][0]["logprobs"] is None


async def test_choices_are_collected_by_their_index() -> None:
    async with stack() as gateway:
        status, answer = await gateway.chat(n=3)
    assert status == 200
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in answer["choices"]} == {"Hello"}
    assert answer["usage"]["completion_tokens"] == 9


async def test_choices_interleave_in_a_stream() -> None:
    async with stack() as gateway:
        *chunks, done = await events(gateway, n=2)
    assert done == "[DONE]"
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [(choice["index"], choice["delta"].get("content")) for choice in choices] == [
        (0, ""),
        (1, ""),
        (0, "Hel"),
        (1, "Hel"),
        (0, "lo"),
        (1, "lo"),
        (1, None),
        (0, None),
    ]
    assert [choice["finish_reason"] for choice in choices] == [None] * 6 + ["stop"] * 2


@pytest.mark.parametrize(
    ("body", "field", "param"),
    [
        ({"n": 2**31 - 1}, "choice_count", "n"),
        ({"logprobs": True, "top_logprobs": 21}, "logprobs.top_count", "top_logprobs"),
        ({"logit_bias": {"9": 1}}, "sampling.logit_bias[0].token_id", "logit_bias.9"),
        (
            {"structured_outputs": {"regex": "(("}},
            "guided.regex",
            "structured_outputs.regex",
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {}},
                }
            },
            "guided.json_schema",
            "response_format.json_schema.schema",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_what_the_llm_service_refuses_is_named_as_the_client_named_it(
    body: dict[str, Any], field: str, param: str, stream: bool
) -> None:
    sentence = "a sentence that speaks of the field as the service does"
    refusal = InvalidArgumentError(sentence, field=field)
    async with stack(llm=ScriptedLLM(failures=[refusal])) as gateway:
        status, answer = await gateway.chat(stream=stream, **body)
    assert status == 400
    assert answer["error"]["param"] == param
    assert answer["error"]["message"] == sentence


async def test_roles_and_parts_reach_the_llm_service() -> None:
    messages = [
        {"role": "developer", "content": "Be brief."},
        *user(text("First"), picture(CAT), text("what?")),
        {"role": "assistant", "content": [text("A cat.")]},
        *user(text("Sure?")),
    ]
    async with stack() as gateway:
        status, _ = await gateway.chat(messages=messages)
    assert status == 200
    sent = gateway.llm.starts[0].chat.messages
    assert [message.role for message in sent] == [
        llm_pb2.ROLE_SYSTEM,
        llm_pb2.ROLE_USER,
        llm_pb2.ROLE_ASSISTANT,
        llm_pb2.ROLE_USER,
    ]
    assert [part.WhichOneof("part") for part in sent[1].parts] == ["text", "image", "text"]
    assert [part.text for part in sent[1].parts] == ["First", "", "what?"]
    assert sent[2].parts[0].text == "A cat."


async def test_an_embedding_is_named_and_piped() -> None:
    vision = ScriptedVision(embedding_byte_count=96_000, chunk_byte_count=1000)
    async with stack(vision) as gateway:
        status, answer = await gateway.chat(messages=user(picture(CAT), text("?")))
    assert status == 200
    assert answer["usage"]["prompt_tokens_details"]["image_tokens"] == 256
    name = (content_digest(CAT), recipe_digest(vision.recipe, 12))
    assert gateway.llm.held == {name: embedding_of(CAT, 96_000)}
    (request,) = vision.requests
    assert request.image == CAT
    assert not request.HasField("max_tile_count")
    assert request.expected_recipe_sha256 == vision.recipe


@pytest.mark.parametrize(
    ("options", "cap"),
    [
        ({"detail": "low"}, 1),
        ({"detail": "high"}, 24),
        ({"detail": "auto"}, None),
        ({"max_dynamic_patch": 6}, 6),
        ({"detail": "low", "max_dynamic_patch": 6}, 6),
    ],
)
async def test_detail_is_a_tile_cap(options: dict[str, Any], cap: int | None) -> None:
    async with stack() as gateway:
        status, _ = await gateway.chat(messages=user(picture(CAT, **options)))
    assert status == 200
    (request,) = gateway.vision.requests
    assert (request.max_tile_count if request.HasField("max_tile_count") else None) == cap
    assert gateway.llm.starts[0].images[0].recipe_sha256 == recipe_digest(b"r" * 32, cap or 12)


async def test_a_second_turn_asks_the_vision_service_for_new_images_only() -> None:
    async with stack() as gateway:
        await gateway.chat(messages=user(picture(CAT)))
        await gateway.chat(messages=user(picture(CAT), picture(DOG), picture(DOG)))
    assert [request.image for request in gateway.vision.requests] == [CAT, DOG]
    assert len(gateway.llm.starts[1].images) == 3
    assert gateway.vision.info_count == 1


async def test_held_images_need_no_vision_service() -> None:
    vision = ScriptedVision()
    async with stack(vision) as gateway:
        await gateway.chat(messages=user(picture(CAT)))
        vision.failures = [ServiceError("must not be called")] * 9
        status, _ = await gateway.chat(messages=user(picture(CAT)))
    assert status == 200


@pytest.mark.timeout(30)  # one after the other would wait for ever
async def test_images_of_a_request_are_encoded_at_once() -> None:
    async with stack(ScriptedVision(together_count=8)) as gateway:
        images = [picture(bytes([index])) for index in range(8)]
        status, _ = await gateway.chat(messages=user(*images))
    assert status == 200
    assert len(gateway.llm.held) == 8


async def test_more_images_than_slots_all_arrive() -> None:
    async with stack() as gateway:
        images = [picture(bytes([index])) for index in range(20)]
        status, _ = await gateway.chat(messages=user(*images))
    assert status == 200
    assert len(gateway.llm.held) == 20


async def test_text_needs_no_vision_service() -> None:
    async with stack(closed=["vision"]) as gateway:
        status, _ = await gateway.chat()
    assert status == 200


async def test_request_ids_go_through() -> None:
    async with stack() as gateway:
        headers = {"x-request-id": "abc-1"}
        body = chat_body(messages=user(picture(CAT)))
        async with gateway.http.post(
            "/v1/chat/completions", json=body, headers=headers
        ) as response:
            assert response.headers["x-request-id"] == "abc-1"
            assert (await response.json())["id"] == "chatcmpl-abc-1"
    assert gateway.llm.request_ids == ["abc-1"]
    assert gateway.vision.request_ids == ["abc-1"]


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, "<script>"])
async def test_a_strange_request_id_is_replaced(given: str) -> None:
    async with stack() as gateway:
        headers = {"x-request-id": given}
        async with gateway.http.get("/health/live", headers=headers) as response:
            made = response.headers["x-request-id"]
    assert made != given
    assert len(made) == 32


async def test_the_deadline_goes_to_the_services() -> None:
    async with stack(request_seconds=50) as gateway:
        await gateway.chat()
    assert 0 < gateway.llm.time_remaining[0] <= 50


async def test_models_are_listed_by_all_their_names() -> None:
    async with stack(llm=ScriptedLLM(aliases=["gpt-4o", "Open/VL"])) as gateway:
        _, models = await gateway.get("/v1/models")
        assert [model["id"] for model in models["data"]] == ["scripted", "gpt-4o", "Open/VL"]
        for model in models["data"]:
            assert (model["created"], model["max_model_len"]) == (1_700_000_000, 32768)
            assert await gateway.get(f"/v1/models/{model['id']}") == (200, model)
        status, body = await gateway.get("/v1/models/Open/Other")
    assert (status, body["error"]["code"]) == (404, "model_not_found")
    assert "'scripted' and 'gpt-4o' and 'Open/VL'" in body["error"]["message"]


@pytest.mark.parametrize(
    ("asked", "said"), [("scripted", "scripted"), ("gpt-4o", "gpt-4o"), ("", "scripted")]
)
async def test_an_answer_says_the_name_that_was_asked_for(asked: str, said: str) -> None:
    async with stack(llm=ScriptedLLM(aliases=["gpt-4o"])) as gateway:
        _, answer = await gateway.chat(model=asked)
        *chunks, _ = await events(gateway, model=asked)
    assert {piece["model"] for piece in (answer, *chunks)} == {said}
    assert {chunk["system_fingerprint"] for chunk in chunks} == {answer["system_fingerprint"]}


async def test_a_request_without_a_model_means_the_one_served() -> None:
    async with stack() as gateway:
        body = {"messages": [{"role": "user", "content": "Hi"}]}
        async with gateway.http.post("/v1/chat/completions", json=body) as response:
            assert (await response.json())["model"] == "scripted"


async def test_a_model_that_was_exchanged_is_found() -> None:
    async with stack() as gateway:
        assert (await gateway.chat())[0] == 200
        gateway.llm.model = "other"
        assert (await gateway.chat(model="other"))[0] == 200
        status, body = await gateway.chat(model="scripted")
    assert (status, body["error"]["code"], body["error"]["param"]) == (
        404,
        "model_not_found",
        "model",
    )


async def test_ready_asks_both_services() -> None:
    async with stack() as gateway:
        assert await gateway.get("/health/ready") == (200, {"status": "ready"})
        assert await gateway.get("/health/live") == (200, {"status": "live"})


@pytest.mark.parametrize("down", ["vision", "llm"])
async def test_ready_says_which_service_is_down(down: str) -> None:
    async with stack(closed=[down]) as gateway:
        status, body = await gateway.get("/health/ready")
        assert (await gateway.get("/health/live"))[0] == 200
    assert status == 503
    assert list(body["reasons"]) == [down]
    assert down in body["reasons"][down].lower()


async def test_ready_compares_the_models() -> None:
    async with stack(ScriptedVision(hidden_size=16)) as gateway:
        status, body = await gateway.get("/health/ready")
    assert status == 503
    assert "16" in body["reasons"]["model"]
    assert "8" in body["reasons"]["model"]


async def test_one_line_in_the_log_and_no_content() -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack() as gateway:
            await gateway.chat(messages=user(picture(CAT), text("tell me a secret")))
    (line,) = gateway_lines(logs)
    assert line["status"] == 200
    assert line["image_count"] == 1
    assert line["encoded_image_count"] == 1
    assert line["encoded_tile_count"] == 3
    assert line["prompt_token_count"] == 286
    assert line["output_token_count"] == 3
    assert 0 < line["first_token_seconds"] <= line["total_seconds"]
    content = ("secret", "Hel", base64.b64encode(CAT).decode())
    assert not any(word in repr(logs) for word in content)


async def test_many_requests_at_once() -> None:
    async with stack() as gateway:
        answers = await asyncio.gather(
            *(gateway.chat(messages=user(picture(bytes([i])), text("?"))) for i in range(24))
        )
    assert {status for status, _ in answers} == {200}
    assert len({answer["id"] for _, answer in answers}) == 24


async def test_unknown_fields_are_named_in_the_answers_head_and_in_the_log() -> None:
    """A client learns that it asked for what this server never heard of; the values stay unsaid."""
    body = chat_body(wizardry="a secret", name_of_spell={"b": 1}, asks_nothing={})
    with structlog.testing.capture_logs() as logs:
        async with stack() as gateway:
            for stream in (False, True):
                async with gateway.http.post(
                    "/v1/chat/completions", json=body | {"stream": stream}
                ) as response:
                    assert response.status == 200
                    assert response.headers["x-internvl-ignored"] == "wizardry, name_of_spell"
                    await response.read()
            async with gateway.http.post("/v1/chat/completions", json=chat_body()) as response:
                assert "x-internvl-ignored" not in response.headers
    lines = [line["ignored_fields"] for line in gateway_lines(logs)]
    assert lines == ["wizardry, name_of_spell"] * 2 + [None]
    assert "secret" not in str(logs)


async def test_strict_fields_are_refused() -> None:
    async with stack(strict_fields=True) as gateway:
        status, answer = await gateway.chat(wizardry=1)
        assert (await gateway.chat(wizardry=None, user="somebody"))[0] == 200
    assert (status, answer["error"]["param"]) == (400, "wizardry")
    assert (
        answer["error"]["message"] == "this server does not know the field 'wizardry'; leave it out"
    )


async def test_a_history_of_other_servers_reaches_the_llm_service() -> None:
    messages = [
        {"role": "system", "content": "Be short.", "name": "rules"},
        {"role": "user", "content": [text("Sunny?"), {"type": "image_url", "image_url": URL}]},
        {
            "role": "assistant",
            "content": None,
            "reasoning_content": "hm",
            "tool_calls": [{"id": "1", "function": {"name": "weather", "arguments": {}}}],
        },
        {"role": "tool", "tool_call_id": "1", "content": "sunny"},
        {"role": "developer", "content": "Be kind."},
        {"role": "assistant", "content": "It is"},
    ]
    async with stack() as gateway:
        status, _ = await gateway.chat(
            model="scripted", messages=messages, continue_final_message=True, seed=2**64 - 1
        )
    assert status == 200
    (start,) = gateway.llm.starts
    call = llm_pb2.ToolCall(name="weather", arguments="{}")
    assert start.chat == llm_pb2.ChatPrompt(
        messages=[
            turn(llm_pb2.ROLE_SYSTEM, "Be short."),
            turn(llm_pb2.ROLE_USER, "Sunny?", llm_pb2.ImagePart()),
            llm_pb2.ChatMessage(role=llm_pb2.ROLE_ASSISTANT, tool_calls=[call]),
            turn(llm_pb2.ROLE_TOOL, "sunny"),
            turn(llm_pb2.ROLE_SYSTEM, "Be kind."),
            turn(llm_pb2.ROLE_ASSISTANT, "It is"),
        ],
        ending=llm_pb2.CHAT_ENDING_CONTINUED,
    )
    assert start.sampling.seed == -1


URL = "data:image/png;base64," + base64.b64encode(CAT).decode()


def turn(role: llm_pb2.Role.ValueType, *parts: str | llm_pb2.ImagePart) -> llm_pb2.ChatMessage:
    """Returns a message as the LLM service gets it."""
    return llm_pb2.ChatMessage(
        role=role,
        parts=[
            llm_pb2.ContentPart(text=part)
            if isinstance(part, str)
            else llm_pb2.ContentPart(image=part)
            for part in parts
        ],
    )


async def test_a_bare_image_url_is_named_as_the_client_wrote_it() -> None:
    async with stack() as gateway:
        bare = {"type": "image_url", "image_url": "ftp://example.com/a.png"}
        status, answer = await gateway.chat(messages=user(bare))
    assert (status, answer["error"]["param"]) == (400, "messages[0].content[0].image_url")


async def test_json_that_is_cut_or_marked_is_answered() -> None:
    body = '\ufeff{"model": "scripted", "messages": [{"role": "user", "content": "a \\ud83d"}]}'
    async with stack() as gateway:
        async with gateway.http.post("/v1/chat/completions", data=body.encode()) as response:
            assert response.status == 200
        async with gateway.http.post("/v1/chat/completions", data=b'{"a": 1,\n}') as response:
            assert response.status == 400
            message = (await response.json())["error"]["message"]
    assert gateway.llm.starts[0].chat.messages[0].parts[0].text == "a \ufffd"
    assert message == "the body is not valid JSON: trailing comma, at line 2, column 1"
