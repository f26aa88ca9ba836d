"""Three real processes over a tiny random checkpoint, started once for each language model engine.

The tests of `stack` and `client` run over every engine; TensorRT-LLM is its double. Those of
`served`, which the tests of the page share, ask the shipped model, whose answers mean something.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import pytest
from openai import BadRequestError, OpenAI

from gateway.local.processes import ServiceProcess
from gateway.local.stack import Stack
from llm_service.checkpoint import LLMConfig
from tests.random_checkpoint import write_random_checkpoint
from tests.served_model import LOOPBACK_ALONE, SERVICE_ARGUMENTS
from tests.unit.llm_service.engines.tensorrt_llm import double
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)

Engine = Literal["torch", "tensorrt_llm"]
# For tests that are long, and that the engine has less to do with than the services around it.
TORCH_AND_SLOWLY_TENSORRT_LLM = ["torch", pytest.param("tensorrt_llm", marks=pytest.mark.slow)]

PICTURES = Path(__file__).parents[1] / "data" / "pictures"
GATEWAY_ARGUMENTS = ("--file-root", str(PICTURES), "--allowed-private-hosts", LOOPBACK_ALONE)
LLM_ARGUMENTS = ("--allow-priority",)
# Of the TensorRT-LLM engines: 16 sequences at a time of up to 32,768 tokens, 26 tiles in each.
BUILD = {
    "max_batch_size": 16,
    "max_input_len": 32768,
    "max_seq_len": 32768,
    "max_prompt_embedding_table_size": 16 * 26 * 256,
}


class TensorRTLLMService(ServiceProcess):
    """The LLM service on a machine that has TensorRT-LLM, as the double has it."""

    def start(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", double.FOLDER)
            super().start()


def make_stack(
    engine: Engine,
    checkpoint: Path,
    folder: Path,
    *,
    gateway_arguments: Sequence[str] = (),
    llm_arguments: Sequence[str] = (),
) -> Stack:
    """Returns three services, yet to be started, of which the LLM service runs this engine."""
    stack = Stack(
        checkpoint,
        folder,
        gateway_arguments=gateway_arguments,
        service_arguments=SERVICE_ARGUMENTS,
        llm_arguments=(*LLM_ARGUMENTS, *llm_arguments),
    )
    if engine == "tensorrt_llm":
        document = engine_document(LLMConfig.from_checkpoint(checkpoint), build=BUILD)
        engine_folder = write_engine_folder(folder / "engine", document, checkpoint)
        options = [
            "--engine",
            engine,
            "--tensorrt-llm.engine-folder",
            str(engine_folder),
            *LLM_ARGUMENTS,
            *llm_arguments,
        ]
        stack.llm = TensorRTLLMService(
            "llm_service",
            ["--checkpoint", str(checkpoint), *options],
            stack.llm.log,
            stack.llm.port,
        )
    return stack


@contextmanager
def torch_alone(engine: Engine, param: str) -> Iterator[None]:
    """Runs what only the torch engine can do; the other one must refuse it by the option's name."""
    if engine == "torch":
        yield
        return
    with pytest.raises(BadRequestError, match=engine) as caught:
        yield
    assert (caught.value.code, caught.value.param) == ("unsupported_field", param)


@pytest.fixture(scope="session", params=["torch", "tensorrt_llm"])
def engine(request: pytest.FixtureRequest) -> Engine:
    """What runs the language model of `stack`."""
    chosen: Engine = request.param
    return chosen


@pytest.fixture(scope="session")
def stack(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The three services; a test that ends one of them starts it again."""
    folder = tmp_path_factory.mktemp(engine)
    checkpoint = folder / "random-internvl"
    write_random_checkpoint(checkpoint)
    with make_stack(
        engine,
        checkpoint,
        folder,
        gateway_arguments=GATEWAY_ARGUMENTS,
        # 2 layers of keys and values, 2 heads of 16 float32: 65,536 tokens.
        llm_arguments=("--kv-cache-byte-count", str(65536 * 2 * 2 * 2 * 16 * 4)),
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[OpenAI]:
    """The openai client, without its own retries: a test wants to see the first answer."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def model(client: OpenAI) -> str:
    """The served model's name."""
    return client.models.list().data[0].id


def picture_url(name: str) -> str:
    """Returns the file URL of one of the tests' pictures."""
    return (PICTURES / name).as_uri()
