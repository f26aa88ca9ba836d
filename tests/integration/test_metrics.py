"""What Prometheus reads over HTTP, of a service that has answered over gRPC."""

from __future__ import annotations

import math
import re
import socket
import threading
import urllib.request
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from llm_service.engines.base import (
    DraftTotals,
    EngineLoad,
    HostCacheLoad,
    Request,
    StepTotals,
    TokenOutput,
)
from llm_service.metrics import Metrics
from protos.errors import NonFiniteError
from protos.internvl.v1 import llm_pb2_grpc
from protos.process.backlog import Backlog
from protos.process.metrics import serving_metrics
from tests.idle_engine import IdleEngine
from tests.integration.llm_calls import END, exchange, serving, start, table, upload
from tests.integration.scrapes import scrape
from tests.real_tokenizers import real_tokenizer
from tests.unit.vision_service.fakes import FakeEngine
from vision_service.batcher import TileBatcher
from vision_service.cache import EmbeddingCache
from vision_service.metrics import Metrics as VisionMetrics

LLM = "internvl_llm_"
ROOT = Path(__file__).parents[2]


class BusyEngine(IdleEngine):
    """Answers two tokens, and says of itself what no other number here is."""

    context_length = 4096

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        yield TokenOutput([40], None)
        yield TokenOutput([END], "stop", cached_token_count=16)

    def load(self) -> EngineLoad:
        return EngineLoad(
            3,
            5,
            700,
            1000,
            StepTotals(11, 1.5, 13),
            preemption_count=17,
            drafts=DraftTotals(19, 7),
            host_cache=HostCacheLoad(19, 100, 23, 29),
        )


async def test_the_engines_load_and_the_answers_are_counted() -> None:
    engine = BusyEngine()
    metrics = Metrics(engine)
    async with serving(engine, real_tokenizer("qwen2_5"), metrics=metrics) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        before = await scrape(metrics.registry, LLM)
        usages = [(await exchange(stub, start()))[-1].usage for _ in range(2)]
        after = await scrape(metrics.registry, LLM)
    assert (after["running_sequences"], after["waiting_sequences"]) == (3, 5)
    assert after["kv_cache_utilization"] == pytest.approx(0.3)
    assert (after["kv_cache_tokens/free"], after["kv_cache_tokens/used"]) == (700, 300)
    assert (after["steps_total"], after["step_seconds_total"]) == (11, 1.5)
    assert after["step_tokens_total"] == 13
    assert "tokens_total/prompt" not in before
    assert after["tokens_total/prompt"] == 2 * usages[0].prompt_token_count
    assert (after["tokens_total/output"], after["tokens_total/cached"]) == (4, 32)
    assert after["first_token_seconds_count"] == after["request_seconds_count"] == 2
    expected = sum(usage.total_seconds for usage in usages)
    assert after["request_seconds_sum"] == pytest.approx(expected)
    expected -= sum(usage.first_token_seconds for usage in usages)
    assert after["output_token_seconds_count"] == 2  # of two tokens each
    assert after["output_token_seconds_sum"] == pytest.approx(expected)
    assert after["backlog_seconds"] == 0
    assert after["preemptions_total"] == 17
    assert (after["host_cache_tokens/free"], after["host_cache_tokens/used"]) == (81, 19)
    assert after["host_cache_loaded_tokens_total"] == 23
    assert after["host_cache_evicted_tokens_total"] == 29
    assert (after["drafted_tokens_total"], after["accepted_draft_tokens_total"]) == (19, 7)


@pytest.mark.parametrize("engine_count", [None, 0])
def test_an_engine_has_no_metric_of_what_it_does_not_count(
    engine_count: int | None,
) -> None:
    class Engine(BusyEngine):
        def load(self) -> EngineLoad:
            return EngineLoad(0, 0, 0, 0, preemption_count=engine_count)

    registry = Metrics(Engine()).registry
    assert registry.get_sample_value(f"{LLM}drafted_tokens_total") is None
    assert registry.get_sample_value(f"{LLM}preemptions_total") == engine_count
    assert registry.get_sample_value(f"{LLM}kv_cache_utilization") == 0
    assert not any("host_cache" in metric.name for metric in registry.collect())


class BrokenEngine(IdleEngine):
    """Gives a token, and then no numbers any more."""

    async def generate(self, request: Request) -> AsyncGenerator[TokenOutput, None]:
        yield TokenOutput([40], None)
        raise NonFiniteError("not finite in float16")


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        (1.0, "not finite in float16"),
        (math.nan, "the embedding of an image has values that are not finite: serve the vision "),
    ],
)
async def test_requests_whose_logits_are_not_finite_are_counted_and_logged_once(
    value: float, sentence: str
) -> None:
    engine = BrokenEngine()
    metrics = Metrics(engine)
    async with serving(engine, real_tokenizer("qwen2_5"), metrics=metrics) as channel:
        stub: llm_pb2_grpc.LLMServiceAsyncStub = llm_pb2_grpc.LLMServiceStub(channel)
        _, data = table(value)
        with capture_logs() as events, pytest.raises(NonFiniteError) as caught:
            await exchange(stub, start(images=["cat"], choice_count=3), *upload(data))
        counted = await scrape(metrics.registry, LLM)
    assert caught.value.message.startswith(sentence)
    assert counted["nonfinite_logits_total"] == counted["refusals_total/NON_FINITE"] == 1
    (event,) = [event for event in events if event["event"] == "nonfinite_logits"]
    assert event["image_token_count"] == 2
    assert event["prompt_token_count"] > 2


def test_without_a_port_none_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("protos.process.metrics.make_server", pytest.fail)
    with serving_metrics(CollectorRegistry(), "127.0.0.1", None):
        pass


def test_a_port_that_is_taken_is_refused() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(OSError, match="in use"),
            serving_metrics(CollectorRegistry(), "127.0.0.1", port),
        ):
            pass


def exposed(registry: CollectorRegistry) -> set[str]:
    """Returns the names under which a registry's metrics are found."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in registry.collect()
    }


def test_the_manual_lists_the_metrics_of_both_services() -> None:
    manual = (ROOT / "docs" / "operating.md").read_text()
    section = re.split(r"^## ", manual, flags=re.MULTILINE)
    (text,) = (part for part in section if part.startswith("Metrics\n"))
    documented = set(re.findall(r"`(internvl_(?:vision|llm)_\w+)`", text))
    vision = VisionMetrics()
    batcher = TileBatcher(FakeEngine(), max_batch_tile_count=1, max_queued_tile_count=1)
    vision.watch(batcher, EmbeddingCache(0), Backlog())
    assert documented == exposed(vision.registry) | exposed(Metrics(BusyEngine()).registry)


def test_readers_that_say_nothing_cost_one_thread() -> None:
    before = threading.active_count()
    with serving_metrics(CollectorRegistry(), "127.0.0.1", 0) as port:
        assert port
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        assert threading.active_count() == before + 1
        for one in silent:
            one.close()
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
            assert answer.status == 200
