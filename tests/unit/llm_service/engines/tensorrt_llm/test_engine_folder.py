"""What the engine folder says, and each reason not to serve it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError
from llm_service.engines.tensorrt_llm.engine_folder import EngineFolder
from llm_service.settings import TensorRTLLMOptions
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    Document,
    engine_document,
    write_engine_folder,
)
from tests.unit.llm_service.engines.torch.tiny import QWEN2, write_config

Change = Callable[[Document], Any]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_config(tmp_path / "checkpoint", QWEN2)


def _check(checkpoint: Path, change: Change = lambda _: None, **options: Any) -> EngineFolder:
    config = LLMConfig.from_checkpoint(checkpoint)
    document = engine_document(config)
    change(document)
    folder = write_engine_folder(checkpoint.parent / "engine", document, checkpoint)
    given = TensorRTLLMOptions.model_validate({"max_request_tile_count": 2, **options})
    read = EngineFolder.read(folder)
    read.check(given, config, "1.2.1")
    return read


def test_reads_what_serving_needs(checkpoint: Path) -> None:
    folder = _check(checkpoint)
    assert folder.dtype is torch.float32
    assert (folder.vocabulary_size, folder.hidden_size) == (61, 32)
    assert folder.max_request_rows == 4096
    assert folder.max_prompt_length == 4096


def _build(**values: Any) -> Change:
    return lambda document: document["build_config"].update(values)


def _model(**values: Any) -> Change:
    return lambda document: document["pretrained_config"].update(values)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d.update(version="1.2.0"),
            r"built by TensorRT-LLM 1\.2\.0, installed is 1\.2\.1",
        ),
        (_model(hidden_size=64), "hidden_size is 64 in the engine and 32 in the checkpoint"),
        (_model(vocab_size=64), "vocab_size is 64 in the engine and 61"),
        (_model(num_hidden_layers=3), "num_hidden_layers is 3 in the engine and 2"),
        (_model(dtype="fp8"), "dtype is 'fp8'; known are bfloat16"),
        (
            _build(max_prompt_embedding_table_size=0),
            "takes no images: build it with --max_multimodal_len 2048",
        ),
        (
            _build(max_prompt_embedding_table_size=2047),
            "max_request_tile_count is 2, 512 rows, but the engine takes 511 rows a request",
        ),
        (_build(max_input_len=512), "512 tokens, but the engine reads prompts of 512 tokens"),
        (
            _build(plugin_config={"use_paged_context_fmha": False}),
            "kv_cache_reuse needs .*--use_paged_context_fmha enable"
            ".*--no-tensorrt-llm.kv-cache-reuse",
        ),
        (lambda d: d.pop("build_config"), "KeyError.'build_config'"),
        (_build(max_batch_size=0), "engine's max_batch_size is 0, and must be at least 1"),
        (_build(max_batch_size=None), "is not that of a TensorRT-LLM engine: TypeError"),
    ],
)
def test_refuses_what_does_not_fit(checkpoint: Path, change: Change, message: str) -> None:
    with pytest.raises(EngineStartError, match=message):
        _check(checkpoint, change)


def test_without_reuse_the_step_bounds_the_prompt(checkpoint: Path) -> None:
    change = _build(plugin_config={"use_paged_context_fmha": False}, max_num_tokens=700)
    assert _check(checkpoint, change, kv_cache_reuse=False).max_prompt_length == 700
    with pytest.raises(EngineStartError, match="prompts of 700 tokens"):
        _check(checkpoint, change, kv_cache_reuse=False, max_request_tile_count=3)


def test_refuses_a_missing_rank(checkpoint: Path) -> None:
    folder = _check(checkpoint, _model(mapping={"world_size": 2, "tp_size": 2, "pp_size": 1}))
    (folder.path / "rank1.engine").unlink()
    config = LLMConfig.from_checkpoint(checkpoint)
    options = TensorRTLLMOptions(max_request_tile_count=2)
    with pytest.raises(EngineStartError, match=r"for 2 GPUs, but .* has no rank1\.engine"):
        folder.check(options, config, "1.2.1")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file .*config.json"),
        ("{", "config.json: cannot be read: Expecting property name"),
        ("[]", "config.json: is not a JSON object"),
    ],
)
def test_refuses_a_damaged_config(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(EngineStartError, match=message):
        EngineFolder.read(tmp_path)
