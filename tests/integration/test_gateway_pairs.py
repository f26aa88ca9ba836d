"""Two services that run different checkpoints: what the gateway says, serves, and notices."""

from __future__ import annotations

import base64
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import Any

import pytest
import structlog.testing

from protos.checkpoint.fingerprint import CheckpointFingerprint
from tests.fakes import Gateway, ScriptedLLM, ScriptedVision, running_llm, stack

pytestmark = pytest.mark.timeout(30)

BASE = CheckpointFingerprint(b"config", b"projector", b"language model")
TUNED = replace(BASE, language_model_sha256=b"tuned")
LARGER = CheckpointFingerprint(b"its config", b"its projector", b"its language model")


def vision(checkpoint: CheckpointFingerprint = BASE, **fields: Any) -> ScriptedVision:
    return ScriptedVision(model="InternVL2_5-2B", checkpoint=checkpoint, **fields)


def llm(checkpoint: CheckpointFingerprint = BASE) -> ScriptedLLM:
    return ScriptedLLM(checkpoint=checkpoint)


async def ask(gateway: Gateway, image: bytes = b"a cat", **fields: Any) -> tuple[int, Any]:
    """Returns status, and what is said or complained of, of a question about a picture."""
    url = "data:image/png;base64," + base64.b64encode(image).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}]
    status, answer = await gateway.chat(messages=[{"role": "user", "content": content}], **fields)
    return status, answer["choices"][0]["message"]["content"] if status == 200 else answer["error"]


def refusal(differences: str) -> dict[str, Any]:
    sentence = (
        "the vision service serves InternVL2_5-2B, the LLM service scripted, and they differ in"
        f" {differences}: start both with one checkpoint"
    )
    return {"message": sentence, "type": "server_error", "param": None, "code": "model_mismatch"}


@pytest.mark.parametrize(
    ("checkpoint", "differences"),
    [
        (TUNED, "language model"),
        (replace(BASE, projector_sha256=b"its own"), "projector"),
        (replace(BASE, config_sha256=b"its own"), "configuration"),
        (LARGER, "configuration, projector, language model"),
        (replace(LARGER, projector_sha256=b""), "configuration, language model"),
    ],
)
async def test_a_pair_that_does_not_fit_is_told_in_one_sentence(
    checkpoint: CheckpointFingerprint, differences: str
) -> None:
    async with stack(vision(), llm(checkpoint)) as gateway:
        error = refusal(differences)
        assert await ask(gateway) == (503, error)
        assert await ask(gateway, stream=True) == (503, error)
        assert await gateway.get("/health/ready") == (
            503,
            {"status": "not ready", "reasons": {"model": error["message"]}},
        )
        assert (gateway.vision.requests, gateway.llm.starts) == ([], [])


async def test_text_is_the_llm_services_matter_alone() -> None:
    async with stack(vision(), llm(TUNED)) as gateway:
        assert (await gateway.chat())[0] == 200
        assert gateway.vision.info_count == 0


@pytest.mark.parametrize(
    "checkpoint",
    [
        BASE,
        replace(BASE, projector_sha256=b"", language_model_sha256=b""),
        CheckpointFingerprint(),
    ],
)
async def test_a_part_that_one_side_lacks_is_not_compared(
    checkpoint: CheckpointFingerprint,
) -> None:
    """As beside an engine that was built elsewhere, or of a service that is older."""
    for pair in ((vision(), llm(checkpoint)), (vision(checkpoint), llm())):
        async with stack(*pair) as gateway:
            assert await gateway.get("/health/ready") == (200, {"status": "ready"})
            assert await ask(gateway) == (200, "Hello")


async def test_requests_ask_for_nothing_that_is_known() -> None:
    async with stack(vision(), llm()) as gateway:
        for image in (b"a cat", b"a dog", b"a cat"):
            assert await ask(gateway, image) == (200, "Hello")
        assert (gateway.vision.info_count, gateway.llm.info_count) == (1, 1)
        expected = gateway.llm.starts[0].expected_checkpoint
        assert expected.language_model_sha256 == BASE.language_model_sha256


async def test_mismatched_checkpoints_can_be_allowed_with_one_warning() -> None:
    with structlog.testing.capture_logs() as logs:
        async with stack(vision(), llm(TUNED), allow_mismatched_checkpoints=True) as gateway:
            assert await gateway.get("/health/ready") == (200, {"status": "ready"})
            assert await ask(gateway) == (200, "Hello")
            assert await ask(gateway, b"a dog") == (200, "Hello")
            assert await gateway.get("/health/ready") == (200, {"status": "ready"})
    (line,) = [line for line in logs if line["log_level"] == "warning"]
    assert line["event"] == "checkpoints_differ"
    assert line["warning"] == refusal("language model")["message"]


@pytest.mark.parametrize("allowed", [False, True])
async def test_rows_of_another_length_are_never_allowed(allowed: bool) -> None:
    wide = vision(hidden_size=16)
    async with stack(wide, llm(), allow_mismatched_checkpoints=allowed) as gateway:
        status, error = await ask(gateway)
        assert (status, error["code"]) == (503, "model_mismatch")
        _, ready = await gateway.get("/health/ready")
        assert ready["reasons"] == {"model": error["message"]}
        assert gateway.vision.requests == []


async def test_a_service_that_restarts_with_another_checkpoint_is_noticed() -> None:
    async with AsyncExitStack() as exits:
        address = await exits.enter_async_context(running_llm(llm()))
        async with stack(vision(), llm_address=address) as gateway:
            assert await ask(gateway) == (200, "Hello")
            await exits.aclose()
            async with running_llm(llm(TUNED), int(address.rpartition(":")[2])):
                status, error = await ask(gateway)
                while error["code"] == "service_unavailable":
                    status, error = await ask(gateway)
                assert (status, error) == (503, refusal("language model"))
            assert len(gateway.vision.requests) == 1


async def test_an_llm_service_that_is_replaced_is_noticed_without_a_failure() -> None:
    async with stack(vision(), llm()) as gateway:
        assert await ask(gateway) == (200, "Hello")
        gateway.llm.checkpoint = TUNED
        assert await ask(gateway) == (503, refusal("language model"))
        assert (await gateway.chat())[0] == 200
        gateway.vision.checkpoint = TUNED
        assert await ask(gateway) == (200, "Hello")
        assert await gateway.get("/health/ready") == (200, {"status": "ready"})


async def test_that_both_were_replaced_fails_no_request() -> None:
    async with stack(vision(), llm()) as gateway:
        assert await ask(gateway) == (200, "Hello")
        gateway.llm.checkpoint = gateway.vision.checkpoint = TUNED
        gateway.vision.recipe = b"s" * 32
        assert await ask(gateway) == (200, "Hello")
        (start, *_, last) = gateway.llm.starts
        assert start.images[0].recipe_sha256 != last.images[0].recipe_sha256


async def test_a_vision_service_that_is_replaced_is_noticed() -> None:
    async with stack(vision(), llm()) as gateway:
        assert await ask(gateway) == (200, "Hello")
        gateway.vision.recipe, gateway.vision.checkpoint = b"s" * 32, LARGER
        error = refusal("configuration, projector, language model")
        assert await ask(gateway, b"a dog") == (503, error)


async def test_who_asks_for_a_model_by_its_name_is_answered_by_no_other() -> None:
    """As while a replica of one model stands beside a replica of another."""
    async with (
        running_llm(ScriptedLLM(model="a", checkpoint=BASE, texts=["I am a"])) as first,
        running_llm(ScriptedLLM(model="b", checkpoint=TUNED, texts=["I am b"])) as second,
        stack(llm_address=f"ipv4:{first},{second}") as gateway,
    ):
        for number in range(12):
            for name in ("a", "b"):
                _, body = await gateway.chat(
                    model=name, messages=[{"role": "user", "content": f"question {number}"}]
                )
                said = body["choices"][0]["message"]["content"]
                assert (body["model"], said) == (name, f"I am {name}")
        status, body = await gateway.chat(model="c")
        assert (status, body["error"]["code"]) == (404, "model_not_found")


async def test_an_answer_names_who_gave_it() -> None:
    """Of two that are served under one name, the fingerprint tells which."""
    async with (
        running_llm(ScriptedLLM(checkpoint=BASE, texts=["I am a"])) as first,
        running_llm(ScriptedLLM(checkpoint=TUNED, texts=["I am b"], fingerprint=b"b")) as second,
        stack(llm_address=f"ipv4:{first},{second}") as gateway,
    ):
        told = set()
        for number in range(24):
            _, body = await gateway.chat(
                messages=[{"role": "user", "content": f"question {number}"}]
            )
            told.add((body["choices"][0]["message"]["content"], body["system_fingerprint"]))
        assert len(told) == 2


async def test_a_name_that_is_served_no_more_is_not_found() -> None:
    async with stack(llm=ScriptedLLM(model="a", checkpoint=BASE)) as gateway:
        assert (await gateway.chat(model="a"))[0] == 200
        gateway.llm.model, gateway.llm.checkpoint = "b", TUNED
        for _ in range(2):
            status, body = await gateway.chat(model="a")
            assert (status, body["error"]["code"]) == (404, "model_not_found")
        assert (await gateway.chat(model="b"))[0] == 200
