"""CheckGuide over real gRPC, in front of the torch engine."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest

from llm_service.engines.guides import MAX_COMPILING_COUNT, GuideCompiler
from llm_service.sampling import Guide
from llm_service.settings import Settings
from protos.errors import InvalidArgumentError, OverloadedError, ServiceError
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.settings import MIB
from protos.status import from_rpc_error
from tests.integration.llm_calls import exchange, start
from tests.integration.real_services import running_llm
from tests.random_checkpoint import write_random_checkpoint


@asynccontextmanager
async def service(checkpoint: Path) -> AsyncIterator[llm_pb2_grpc.LLMServiceAsyncStub]:
    """Yields a stub of an LLM service with a tiny model."""
    settings = Settings(checkpoint=checkpoint, kv_cache_byte_count=16 * MIB)
    async with running_llm(settings) as address, grpc.aio.insecure_channel(address) as channel:
        yield llm_pb2_grpc.LLMServiceStub(channel)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint")
    write_random_checkpoint(folder)
    return folder


class Compilations:
    """Counts what is compiled, and holds it while the gate is closed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.guides: list[Guide] = []
        self.gate = threading.Event()
        self.gate.set()
        compile_ = GuideCompiler._compile

        def held(compiler: GuideCompiler, guide: Guide) -> object:
            self.guides.append(guide)
            self.gate.wait(30)
            return compile_(compiler, guide)

        monkeypatch.setattr(GuideCompiler, "_compile", held)


def question(regex: str) -> llm_pb2.CheckGuideRequest:
    return llm_pb2.CheckGuideRequest(guided=llm_pb2.GuidedDecoding(regex=regex))


async def refusal(
    stub: llm_pb2_grpc.LLMServiceAsyncStub, request: llm_pb2.CheckGuideRequest
) -> ServiceError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.CheckGuide(request)
    return from_rpc_error(caught.value)


SCHEMA = {"properties": {"a": {"anyOf": [{"type": "null"}, {"uniqueItems": True}]}}}
REFUSED = {
    "a place in a schema": llm_pb2.GuidedDecoding(json_schema=json.dumps(SCHEMA)),
    "no schema": llm_pb2.GuidedDecoding(json_schema="{"),
    "an expression": llm_pb2.GuidedDecoding(regex="(("),
    "a grammar": llm_pb2.GuidedDecoding(grammar='start: "a'),
    "too long": llm_pb2.GuidedDecoding(regex="a" * 65_537),
    "empty": llm_pb2.GuidedDecoding(),
}


async def test_what_generate_refuses_is_refused_in_the_same_words(checkpoint: Path) -> None:
    async with service(checkpoint) as stub:
        for name, guided in REFUSED.items():
            checked = await refusal(stub, llm_pb2.CheckGuideRequest(guided=guided))
            with pytest.raises(InvalidArgumentError) as generated:
                await exchange(stub, start(guided=guided))
            assert type(checked) is type(generated.value) is InvalidArgumentError, name
            assert (checked.field, checked.message) == (
                generated.value.field,
                generated.value.message,
            )
            assert checked.field.startswith("guided"), name
        first = await refusal(
            stub, llm_pb2.CheckGuideRequest(guided=REFUSED["a place in a schema"])
        )
        assert first.field == "guided.json_schema.properties.a.anyOf[1].uniqueItems"


async def test_what_is_checked_is_compiled_once_for_all_requests(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations = Compilations(monkeypatch)
    async with service(checkpoint) as stub:
        await asyncio.gather(*(stub.CheckGuide(question("[ab]{3}")) for _ in range(5)))
        guided = llm_pb2.GuidedDecoding(regex="[ab]{3}")
        responses = await exchange(stub, start(guided=guided))
        assert len("".join(response.delta.text for response in responses)) == 3
        assert compilations.guides == [Guide("regex", "[ab]{3}")]


async def test_where_nothing_is_asked_for_there_is_nothing_to_refuse(checkpoint: Path) -> None:
    async with service(checkpoint) as stub:
        assert await stub.CheckGuide(llm_pb2.CheckGuideRequest()) == llm_pb2.CheckGuideResponse()
        any_object = llm_pb2.GuidedDecoding(json_object=llm_pb2.JSONObjectGuide())
        await stub.CheckGuide(llm_pb2.CheckGuideRequest(guided=any_object))


async def test_many_checks_wait_more_are_refused_and_others_go_on(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compilations = Compilations(monkeypatch)
    async with service(checkpoint) as stub:
        await stub.CheckGuide(question("kept"))
        compilations.gate.clear()
        waiting = [
            asyncio.ensure_future(stub.CheckGuide(question(f"a{{{count}}}")))
            for count in range(MAX_COMPILING_COUNT)
        ]
        error: ServiceError | None = None
        while not isinstance(error, OverloadedError):  # until all of them wait
            late = asyncio.ensure_future(stub.CheckGuide(question("late")))
            await asyncio.wait({late}, timeout=0.2)
            if late.done():
                error = from_rpc_error(late.exception())  # type: ignore[arg-type]
            late.cancel()
        assert error.message == "16 guides wait to be compiled, and at most 16 may"
        assert error.retry_after
        # One that is known, and one that has no guide, wait for none of them.
        await stub.CheckGuide(question("kept"))
        stop = llm_pb2.StopConditions(max_token_count=1)
        assert (await exchange(stub, start(stop=stop)))[-1].usage.output_token_count == 1
        for call in waiting:
            call.cancel()
        compilations.gate.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        await stub.CheckGuide(question("after"))
    # Those that were given up before their turn took none.
    assert len(compilations.guides) <= 4
