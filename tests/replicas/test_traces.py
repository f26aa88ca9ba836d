"""Two gateways, two vision and two LLM services, and a collector: each request is one trace."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator

import pytest
import pytest_asyncio

from tests.replicas.fleet import Fleet, Kind, Program, running_fleet, scripted
from tests.replicas.scripted import Manner
from tests.replicas.talks import Answer, Callers, about_a_picture, callers_of
from tests.traces.catalog import catalog, check, check_points
from tests.traces.receiver import Receiver, Span, receiving

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(180)]
REPLICA_COUNT = 2
TALK_COUNT = 24
HTTP_SPAN = "POST /v1/chat/completions"
ENCODE, GENERATE = "internvl.v1.VisionService/EncodeImage", "internvl.v1.LLMService/Generate"
WHOLE = {
    HTTP_SPAN: "",
    "body": HTTP_SPAN,
    "gateway chat": HTTP_SPAN,
    "fetch": "gateway chat",
    "llm generate": "gateway chat",
    "vision encode": "llm generate",
    ENCODE: "vision encode",
    "vision vit": ENCODE,
    GENERATE: "llm generate",
    "llm decode": GENERATE,
}
CANARY = "canary-c0ffee"


@pytest.fixture(scope="module")
def receiver() -> Iterator[Receiver]:
    with pytest.MonkeyPatch.context() as patch, receiving() as receiver:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        patch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "500")
        yield receiver


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(
    addresses: None, receiver: Receiver, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Fleet]:
    option = f"--otlp-endpoint={receiver.endpoint}"
    kinds: tuple[Kind, Kind] = ("vision", "llm")
    programs: dict[Kind, list[Program]] = {}
    for kind in kinds:
        program = scripted(kind)
        programs[kind] = [Program(program.module, [*program.arguments, option])] * REPLICA_COUNT
    async with running_fleet(
        tmp_path_factory.mktemp("traced"),
        programs,
        gateway_count=REPLICA_COUNT,
        gateway_arguments=[option],
    ) as fleet:
        yield fleet


@pytest_asyncio.fixture(loop_scope="module")
async def callers(fleet: Fleet) -> AsyncIterator[Callers]:
    async with callers_of(fleet.urls) as callers:
        yield callers


async def traces_of(receiver: Receiver, request_ids: list[str]) -> list[list[Span]]:
    """Returns the whole traces of requests, once all of their spans have come."""
    found: dict[str, str] = {}
    while len(found) < len(request_ids):
        await asyncio.sleep(0.1)
        for span in receiver.named(HTTP_SPAN):
            if (request_id := span.attributes["internvl.request_id"]) in request_ids:
                found[request_id] = span.trace_id
    await asyncio.sleep(1.0)  # the other processes' last batches
    assert len(set(found.values())) == len(request_ids), "one trace a request"
    return [receiver.trace(found[request_id]) for request_id in request_ids]


def tree(spans: list[Span]) -> dict[str, str]:
    """Returns the parent's name of each span by its own."""
    names = {span.span_id: span.name for span in spans}
    return {span.name: names.get(span.parent_id, "") for span in spans}


async def test_each_request_is_one_tree_across_the_processes(
    receiver: Receiver, callers: Callers
) -> None:
    talks = [about_a_picture(f"{CANARY}.{index}") for index in range(TALK_COUNT)]
    answers = await callers.go_on(talks, "first")
    traces = await traces_of(receiver, [answer.request_id for answer in answers])
    for spans in traces:
        check(spans)
        assert tree(spans) == WHOLE
        assert len(spans) == len(WHOLE)
    spans = [span for trace in traces for span in trace]
    processes = {(s.resource["service.instance.id"], catalog().entry(s)["process"]) for s in spans}
    assert len(processes) == len(dict(processes)) == 3 * REPLICA_COUNT, "each has spans of its own"
    for name in (HTTP_SPAN, ENCODE, GENERATE):
        replicas = {s.resource["service.instance.id"] for s in spans if s.name == name}
        assert len(replicas) == REPLICA_COUNT, name
    check_points(receiver.points)


async def test_a_second_turn_needs_no_vision(receiver: Receiver, callers: Callers) -> None:
    talk = about_a_picture("second")
    await callers.go_on([talk], "first")
    talk.say({"type": "text", "text": CANARY})
    (answer,) = await callers.go_on([talk], "second", stream=False)
    (spans,) = await traces_of(receiver, [answer.request_id])
    assert {"vision encode", ENCODE}.isdisjoint(tree(spans))
    call = next(span for span in spans if span.name == "llm generate")
    counts = [call.attributes[f"internvl.{name}"] for name in ("image_count", "wanted_image_count")]
    assert counts == [1, 0]


async def test_a_refusing_replica_and_the_one_that_answers_stand_below_one_call(
    receiver: Receiver, callers: Callers
) -> None:
    manner = Manner(word_count=2, seconds=1.0, place_count=1)
    talks = [about_a_picture(f"full.{index}", "one picture", manner) for index in range(2)]
    answers: list[Answer] = []
    # The other replica is found by lot, which may fall on the full one each time: then 429.
    while [answer.status for answer in answers] != [200, 200]:
        asking = (callers.ask(one.messages, one.name) for one in talks)
        answers = [*await asyncio.gather(*asking)]
        assert {answer.status for answer in answers} <= {200, 429}
    traces = await traces_of(receiver, [answer.request_id for answer in answers])
    refused = 0
    for spans in traces:
        check(spans)
        (call,) = [span for span in spans if span.name == "llm generate"]
        served = [span for span in spans if span.name == GENERATE]
        reasons = [span.attributes.get("error.type") for span in served]
        assert reasons == ["QUEUE_FULL"] * (len(served) - 1) + [None]
        assert {span.parent_id for span in served} == {call.span_id}
        retries = [event.attributes for event in call.events if event.name == "retry"]
        assert [one["internvl.reason"] for one in retries] == reasons[:-1]
        refused += len(retries)
    assert refused, "nobody was refused: nothing was shown"


async def test_logs_and_traces_have_one_id_and_no_content_left(
    receiver: Receiver, fleet: Fleet, callers: Callers
) -> None:
    (answer,) = await callers.go_on([about_a_picture("logged")], "only")
    (spans,) = await traces_of(receiver, [answer.request_id])
    for kind in (fleet.gateways, fleet.vision, fleet.llm):
        lines = [
            event
            for replica in kind
            for event in replica.events("request")
            if event.get("request_id") == answer.request_id
        ]
        assert {line["trace_id"] for line in lines} == {spans[0].trace_id}
    sent = b"".join(receiver.raw)
    assert b"What is this" not in sent
    assert b"picture of" not in sent
