"""Both real services, each over a checkpoint of its own, behind one gateway."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import pytest_asyncio
from safetensors.torch import load_file, save_file

import llm_service.__main__ as llm_main
from gateway.app import running_gateway
from gateway.settings import Settings as GatewaySettings
from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import LLMEngine
from llm_service.engines.create import create_engine
from llm_service.settings import Settings as LLMSettings
from llm_service.settings import TorchOptions as LLMTorchOptions
from llm_service.tokenizer import Tokenizer
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.process.settings import MIB
from tests.fakes import chat_body
from tests.integration.real_services import running_llm, running_vision
from tests.random_checkpoint import write_random_checkpoint
from vision_service.settings import Settings as VisionSettings
from vision_service.settings import TorchOptions as VisionTorchOptions

pytestmark = pytest.mark.asyncio(loop_scope="module")

PICTURE = Path(__file__).parents[1] / "data" / "pictures" / "shapes.png"
HEAD = "language_model.lm_head.weight"
NOT_WEIGHTS = ("config.json", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of checkpoints, all of one width: `base`, and others that are made of it or not."""
    folder = tmp_path_factory.mktemp("checkpoints")
    base = folder / "base"
    write_random_checkpoint(base)
    write_random_checkpoint(folder / "another", seed=1)
    tensors = load_file(base / "model.safetensors")
    _copy_but_weights(base, folder / "sharded")
    halves = {"1.safetensors": list(tensors)[::2], "2.safetensors": list(tensors)[1::2]}
    for file, names in halves.items():
        save_file({name: tensors[name] for name in names}, folder / "sharded" / file)
    weight_map = {name: file for file, names in halves.items() for name in names}
    index = folder / "sharded" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    _copy_but_weights(base, folder / "tuned")
    tensors[HEAD] = tensors[HEAD] * 1.01
    save_file(tensors, folder / "tuned" / "model.safetensors")
    _copy_but_weights(base, folder / "bare")
    return folder


def _copy_but_weights(source: Path, target: Path) -> None:
    target.mkdir()
    for name in NOT_WEIGHTS:
        shutil.copy(source / name, target)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vision(checkpoints: Path) -> AsyncIterator[str]:
    """The address of the vision service, over `base`."""
    settings = VisionSettings(
        checkpoint=checkpoints / "base",
        preprocess_worker_count=1,
        torch=VisionTorchOptions(device="cpu", thread_count=1),
    )
    async with running_vision(settings) as address:
        yield address


def _llm_settings(checkpoint: Path) -> LLMSettings:
    return LLMSettings(
        checkpoint=checkpoint,
        kv_cache_byte_count=32 * MIB,
        torch=LLMTorchOptions(device="cpu", thread_count=1),
    )


@asynccontextmanager
async def serving(vision: str, checkpoint: Path, **options: Any) -> AsyncIterator[Server]:
    """Runs an LLM service over a checkpoint, and a gateway before it and the vision service."""
    async with AsyncExitStack() as exits:
        llm = await exits.enter_async_context(running_llm(_llm_settings(checkpoint)))
        settings = GatewaySettings(
            port=0,
            drain_seconds=0,
            vision_address=vision,
            llm_address=llm,
            file_root=(PICTURE.parent,),
            **options,
        )
        port = await exits.enter_async_context(running_gateway(settings))
        url = f"http://127.0.0.1:{port}"
        yield Server(await exits.enter_async_context(aiohttp.ClientSession(url)))


class Server:
    """A gateway, as its clients see it."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self._http = http

    async def ready(self) -> tuple[int, Any]:
        """Returns status and body of the probe."""
        async with self._http.get("/health/ready") as response:
            return response.status, await response.json()

    async def ask(self, *parts: dict[str, Any]) -> tuple[int, Any]:
        """Returns status and body of the answer to a question of these parts and one word."""
        content = [*parts, {"type": "text", "text": "What?"}]
        body = chat_body(messages=[{"role": "user", "content": content}], max_tokens=1)
        async with self._http.post("/v1/chat/completions", json=body | {"model": ""}) as response:
            return response.status, await response.json()


SHAPES = {"type": "image_url", "image_url": {"url": PICTURE.as_uri(), "detail": "low"}}


@pytest.mark.parametrize(
    ("name", "differences"), [("tuned", "language model"), ("another", "projector, language model")]
)
async def test_two_checkpoints_of_one_width_are_refused(
    vision: str, checkpoints: Path, name: str, differences: str
) -> None:
    async with serving(vision, checkpoints / name) as server:
        status, body = await server.ready()
        sentence = (
            f"the vision service serves base, the LLM service {name}, and they differ in"
            f" {differences}: start both with one checkpoint"
        )
        assert (status, body["reasons"]) == (503, {"model": sentence})
        status, body = await server.ask(SHAPES)
        assert (status, body["error"]["message"]) == (503, sentence)
        assert (await server.ask())[0] == 200


async def test_a_copy_of_the_checkpoint_fits_in_files_of_its_own(
    vision: str, checkpoints: Path
) -> None:
    async with serving(vision, checkpoints / "sharded") as server:
        assert (await server.ready())[0] == 200
        assert (await server.ask(SHAPES))[0] == 200


async def test_two_checkpoints_can_be_allowed(vision: str, checkpoints: Path) -> None:
    another = checkpoints / "another"
    async with serving(vision, another, allow_mismatched_checkpoints=True) as server:
        assert (await server.ready())[0] == 200
        assert (await server.ask(SHAPES))[0] == 200


async def test_a_folder_without_weights_fits_by_its_config(
    vision: str, checkpoints: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stands beside an engine that has its weights elsewhere."""

    def create(settings: LLMSettings, config: LLMConfig, tokenizer: Tokenizer) -> LLMEngine:
        with_weights = settings.model_copy(update={"checkpoint": checkpoints / "base"})
        return create_engine(with_weights, config, tokenizer)

    monkeypatch.setattr(llm_main, "create_engine", create)
    async with serving(vision, checkpoints / "bare") as server:
        assert (await server.ready())[0] == 200
        assert (await server.ask(SHAPES))[0] == 200


async def test_files_of_the_safetensors_library_are_read(checkpoints: Path) -> None:
    found = {
        name: CheckpointFingerprint.from_checkpoint(checkpoints / name)
        for name in ("base", "sharded", "tuned", "another", "bare")
    }
    base = found["base"]
    assert all(vars(base).values())
    assert found["sharded"] == base
    assert {name: list(base.differences(other)) for name, other in found.items()} == {
        "base": [],
        "sharded": [],
        "tuned": ["language_model_sha256"],
        "another": ["projector_sha256", "language_model_sha256"],
        "bare": [],
    }
    assert found["bare"] == CheckpointFingerprint(config_sha256=base.config_sha256)
