"""From settings to a running executor: installation, MPI, the first request."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError, LLMEngine, Prompt, Request
from llm_service.engines.create import create_engine
from llm_service.sampling import Guide, SamplingParams
from llm_service.settings import Settings
from protos.errors import UnsupportedFieldError
from protos.process.server import STOP_SIGNALS
from tests.unit.llm_service.engines.tensorrt_llm.double import spoil_log_probs
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)
from tests.unit.llm_service.engines.torch.tiny import (
    QWEN2,
    random_tensors,
    tiny_tokenizer,
    write_checkpoint,
)

Create = Callable[..., LLMEngine]
ENDS = frozenset({54, 60})


@pytest.fixture
def create(tmp_path: Path) -> Create:
    """Calls create_engine on an engine of the tiny checkpoint."""
    checkpoint = write_checkpoint(tmp_path / "tiny", QWEN2, random_tensors(QWEN2))
    config = LLMConfig.from_checkpoint(checkpoint)

    def created(
        world_size: int = 1, pp: int = 1, mpi_mode: str = "leader", **options: Any
    ) -> LLMEngine:
        document = engine_document(config, tp=world_size, pp=pp)
        folder = write_engine_folder(tmp_path / "engine", document, checkpoint)
        group = {"engine_folder": folder, "max_request_tile_count": 1, "mpi_mode": mpi_mode}
        given = {"checkpoint": checkpoint, "engine": "tensorrt_llm", "tensorrt_llm": group}
        settings = Settings.model_validate(given | options)
        return create_engine(settings, config, tiny_tokenizer())

    return created


@pytest.fixture
def configs(bindings: Any, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The configurations of the executors that are made."""
    made: list[Any] = []
    check = bindings.Executor._check_world

    def recorded(executor: Any, config: Any, world_size: int) -> None:
        made.append(config)
        check(executor, config, world_size)

    monkeypatch.setattr(bindings.Executor, "_check_world", recorded)
    return made


def test_refuses_a_machine_without_tensorrt_llm(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_llm", None)
    with pytest.raises(EngineStartError, match=r"cannot be imported .*1\.2\.1 is supported"):
        create()


def test_refuses_a_version_without_the_executor(
    create: Create, bindings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(bindings, "Executor")
    monkeypatch.setattr(importlib.import_module("tensorrt_llm"), "__version__", "1.3.0rc21")
    with pytest.raises(
        EngineStartError, match=r"1\.3\.0rc21 has no .*Executor; 1\.2\.1 is supported"
    ):
        create()


def test_refuses_what_the_executor_cannot_load(create: Create) -> None:
    with pytest.raises(EngineStartError, match=r"cannot load .*engine: MPI world size 1 is not tp"):
        create(world_size=2)


def test_refuses_an_engine_that_fails_its_first_request(
    create: Create, bindings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    shut_down: list[Any] = []
    shutdown = bindings.Executor.shutdown

    def recorded(executor: Any) -> None:
        shut_down.append(executor)
        shutdown(executor)

    monkeypatch.setattr(bindings.Executor, "shutdown", recorded)
    requests = importlib.import_module("tensorrt_llm.bindings.requests")
    monkeypatch.setattr(
        requests.Limits, "params", lambda *_: (_ for _ in ()).throw(requests.Refused("no plan"))
    )
    with pytest.raises(EngineStartError, match="failed its first request: .*no plan"):
        create()
    assert len(shut_down) == 1


def test_refuses_an_engine_whose_first_logits_are_not_finite(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_log_probs(monkeypatch)
    with pytest.raises(
        EngineStartError, match="its first request: .* not finite in float32: build"
    ):
        create()


def test_says_what_helps_where_the_executor_finds_no_memory(
    create: Create, bindings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("[TensorRT-LLM][ERROR] CUDA runtime error: out of memory\n1 0x7f: /lib")

    monkeypatch.setattr(bindings, "Executor", fail)
    with pytest.raises(EngineStartError, match="out of memory. What helps: a smaller --kv-cache-f"):
        create()


def test_another_rank_works_until_the_leader_is_gone(
    create: Create, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "rank", 1)
    monkeypatch.setattr(double.mpi, "size", 2)
    ended: list[object] = []

    def follow() -> None:
        with pytest.raises(SystemExit) as caught:
            create(world_size=2)
        ended.append(caught.value.code)

    follower = threading.Thread(target=follow)
    follower.start()
    follower.join(0.2)
    assert follower.is_alive()
    double.mpi.leader_is_gone.set()
    follower.join(30)
    assert ended == [0]


def test_another_rank_ignores_the_signals_that_mpirun_passes_on(
    create: Create, bindings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "rank", 1)
    monkeypatch.setattr(double.mpi, "size", 2)
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    handlers: list[object] = []

    def shutdown(_: object) -> None:
        handlers.extend(map(signal.getsignal, before))

    monkeypatch.setattr(bindings.Executor, "shutdown", shutdown)
    try:
        with pytest.raises(SystemExit):
            create(world_size=2)
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    assert handlers == [signal.SIG_IGN] * len(STOP_SIGNALS)


async def test_the_leader_serves(create: Create, monkeypatch: pytest.MonkeyPatch) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "size", 2)
    engine = create(world_size=2)
    assert engine.is_healthy()
    await engine.close()


async def test_the_leader_alone_has_its_way_with_the_logits(
    create: Create, configs: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "size", 2)
    await create(world_size=2).close()
    assert callable(configs[0].logits_post_processor_config.processor_batched)
    assert configs[0].logits_post_processor_config.replicate is False


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (SamplingParams(logit_bias=((3, 1.0),)), "sampling.logit_bias"),
        (SamplingParams(guide=Guide("regex", "a")), "guided.regex"),
        (SamplingParams(min_tokens=2, stop_token_ids=ENDS), "stop.min_token_count"),
    ],
)
@pytest.mark.parametrize("options", [{"mpi_mode": "orchestrator"}, {"pp": 2}])
async def test_what_the_logits_are_out_of_reach_for_is_refused(
    create: Create,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    params: SamplingParams,
    field: str,
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "size", options.get("pp", 1))
    engine = create(**options)
    with pytest.raises(UnsupportedFieldError, match="mpi_mode leader and no pipeline") as caught:
        await anext(engine.generate(Request(Prompt([1], torch.empty(0, 32)), params)))
    assert caught.value.field == field
    if params.guide is not None:
        with pytest.raises(UnsupportedFieldError, match="mpi_mode leader and no pipeline"):
            await engine.check_guide(params.guide)
    await engine.close()


@pytest.mark.parametrize(("gpu_count", "tokens"), [(1, 64), (2, 128)])
async def test_the_cache_has_its_bytes_on_each_gpu(
    create: Create, monkeypatch: pytest.MonkeyPatch, gpu_count: int, tokens: int
) -> None:
    double = importlib.import_module("tensorrt_llm.bindings.executor")
    monkeypatch.setattr(double.mpi, "size", gpu_count)
    # 2 layers x key and value x 2 heads x 8 floats: 256 bytes a token.
    engine = create(world_size=gpu_count, kv_cache_byte_count=64 * 256)
    assert engine.load().total_kv_token_count == tokens
    await engine.close()


async def test_an_orchestrator_spawns_the_workers(
    create: Create, bindings: Any, configs: list[Any]
) -> None:
    await create(world_size=2, mpi_mode="orchestrator").close()
    parallel = configs[0].parallel_config
    assert parallel.communication_mode is bindings.CommunicationMode.ORCHESTRATOR
    worker = Path(parallel.orchestrator_config.worker_executable_path)
    assert worker.parts[-3:] == ("tensorrt_llm", "bin", "executorWorker")
