"""A built TensorRT-LLM engine on disk: what its config.json says, and whether it serves us."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError
from llm_service.settings import TensorRTLLMOptions
from protos.checkpoint.section import CheckpointError, Section

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True)
class EngineFolder:
    """What trtllm-build wrote down in config.json.

    Attributes:
        path: the folder.
        version: of the TensorRT-LLM that built it; another one cannot load it.
        dtype: of the activations, and so of prompt tables.
        vocabulary_size: without padding; a virtual token's id starts here.
        hidden_size: width of a prompt table.
        layer_count: decoder layers.
        tensor_parallelism: GPUs that share each layer.
        pipeline_parallelism: groups of them, each with some of the layers.
        max_batch_size: most sequences at a time.
        max_input_length: most tokens of a prompt.
        max_sequence_length: most tokens of prompt and output together.
        max_step_tokens: most tokens of one step of the engine.
        max_table_rows: most rows of all sequences' prompt tables together; 0: it takes none.
        has_paged_context: whether a prompt can be read from its middle on, which both KV reuse and
            reading it in several steps need.
    """

    path: Path
    version: str
    dtype: torch.dtype
    vocabulary_size: int
    hidden_size: int
    layer_count: int
    tensor_parallelism: int
    pipeline_parallelism: int
    max_batch_size: int
    max_input_length: int
    max_sequence_length: int
    max_step_tokens: int
    max_table_rows: int
    has_paged_context: bool

    @property
    def world_size(self) -> int:
        """Processes, one for each GPU."""
        return self.tensor_parallelism * self.pipeline_parallelism

    @property
    def max_request_rows(self) -> int:
        """Most rows of one request's prompt table.

        The executor gives every sequence of a full batch the same share
        (cpp/tensorrt_llm/batch_manager/promptTuningBuffers.cpp, mMaxPromptVocabSize).
        """
        return self.max_table_rows // self.max_batch_size

    @property
    def max_prompt_length(self) -> int:
        """Most tokens of a prompt; one that is read at once must also fit into a step."""
        if self.has_paged_context:
            return self.max_input_length
        return min(self.max_input_length, self.max_step_tokens)

    @classmethod
    def read(cls, path: Path) -> EngineFolder:
        """Reads config.json.

        Raises:
            EngineStartError: a file or a key is missing or of a wrong type.
        """
        file = path / "config.json"
        try:
            return _parse(path, Section.of_file(file).values)
        except CheckpointError as error:
            raise EngineStartError(f"engine_folder: {error}") from error
        except (KeyError, TypeError) as error:
            raise EngineStartError(
                f"{file} is not that of a TensorRT-LLM engine: {error!r}"
            ) from error

    def check(self, options: TensorRTLLMOptions, config: LLMConfig, version: str) -> None:
        """Compares the engine with what it is to serve.

        Args:
            options: of the engine.
            config: of the checkpoint that tokenizer and image embeddings belong to.
            version: of the TensorRT-LLM that is installed.

        Raises:
            EngineStartError: with what to build anew, or which setting to change.
        """
        if self.version != version:
            raise EngineStartError(
                f"the engine was built by TensorRT-LLM {self.version}, installed is {version};"
                " an engine runs under its own version alone: build it anew"
            )
        self._check_model(config)
        self._check_tables(options.max_request_tile_count, config.rows_per_tile)
        if options.kv_cache_reuse and not self.has_paged_context:
            raise EngineStartError(
                "kv_cache_reuse needs an engine built with --use_paged_context_fmha enable;"
                " build it so, or set --no-tensorrt-llm.kv-cache-reuse"
            )
        for rank in range(self.world_size):
            if not (self.path / f"rank{rank}.engine").is_file():
                raise EngineStartError(
                    f"the engine is for {self.world_size} GPUs, but {self.path} has no"
                    f" rank{rank}.engine"
                )

    def _check_model(self, config: LLMConfig) -> None:
        for name, built, expected in (
            ("hidden_size", self.hidden_size, config.hidden_size),
            ("vocab_size", self.vocabulary_size, config.vocabulary_size),
            ("num_hidden_layers", self.layer_count, config.layer_count),
        ):
            if built != expected:
                raise EngineStartError(
                    f"{name} is {built} in the engine and {expected} in the checkpoint:"
                    " the engine was built from another one"
                )

    def _check_tables(self, tile_count: int, rows_per_tile: int) -> None:
        needed = tile_count * rows_per_tile
        if self.max_table_rows == 0:
            raise EngineStartError(
                "the engine takes no images: build it with --max_multimodal_len"
                f" {self.max_batch_size * needed}"
            )
        if self.max_request_rows < needed:
            raise EngineStartError(
                f"max_request_tile_count is {tile_count}, {needed} rows, but the engine takes"
                f" {self.max_request_rows} rows a request (--max_multimodal_len"
                f" {self.max_table_rows} for --max_batch_size {self.max_batch_size})"
            )
        if self.max_prompt_length <= needed:
            raise EngineStartError(
                f"max_request_tile_count is {tile_count}, {needed} tokens, but the engine reads"
                f" prompts of {self.max_prompt_length} tokens at most: build it with a greater"
                " --max_input_len and --max_num_tokens"
            )


def _parse(path: Path, document: Mapping[str, Any]) -> EngineFolder:
    model, build = document["pretrained_config"], document["build_config"]
    mapping = model["mapping"]
    if model["dtype"] not in DTYPES:
        raise EngineStartError(
            f"the engine's dtype is {model['dtype']!r}; known are {', '.join(DTYPES)}"
        )
    return EngineFolder(
        path=path,
        version=str(document["version"]),
        dtype=DTYPES[model["dtype"]],
        vocabulary_size=_count(model, "vocab_size"),
        hidden_size=_count(model, "hidden_size"),
        layer_count=_count(model, "num_hidden_layers"),
        tensor_parallelism=_count(mapping, "tp_size"),
        pipeline_parallelism=_count(mapping, "pp_size"),
        max_batch_size=_count(build, "max_batch_size"),
        max_input_length=_count(build, "max_input_len"),
        max_sequence_length=_count(build, "max_seq_len"),
        max_step_tokens=_count(build, "max_num_tokens"),
        max_table_rows=_count(build, "max_prompt_embedding_table_size", least=0),
        has_paged_context=bool(build["plugin_config"]["use_paged_context_fmha"]),
    )


def _count(section: dict[str, Any], key: str, least: int = 1) -> int:
    count = int(section[key])
    if count < least:
        raise EngineStartError(f"the engine's {key} is {count}, and must be at least {least}")
    return count
