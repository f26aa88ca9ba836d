"""Engine folders as trtllm-build writes them, for the double: rank0.engine names a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llm_service.checkpoint import LLMConfig

Document = dict[str, Any]


def engine_document(
    config: LLMConfig,
    *,
    dtype: str = "float32",
    tp: int = 1,
    pp: int = 1,
    build: dict[str, int] | None = None,
) -> Document:
    """Returns the config.json of an engine that fits a model; `build` changes its limits."""
    return {
        "version": "1.2.1",
        "pretrained_config": {
            "architecture": config.architecture,
            "dtype": dtype,
            "vocab_size": config.vocabulary_size,
            "hidden_size": config.hidden_size,
            "num_hidden_layers": config.layer_count,
            "mapping": {"world_size": tp * pp, "tp_size": tp, "pp_size": pp},
        },
        "build_config": {
            "max_batch_size": 4,
            "max_input_len": 4096,
            "max_seq_len": 8192,
            "max_num_tokens": 4096,
            "max_prompt_embedding_table_size": 4 * 4096,
            "plugin_config": {"use_paged_context_fmha": True},
        }
        | (build or {}),
    }


def write_engine_folder(folder: Path, document: Document, checkpoint: Path) -> Path:
    """Writes config.json and an engine file for every rank; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    for rank in range(document["pretrained_config"]["mapping"]["world_size"]):
        (folder / f"rank{rank}.engine").write_text(str(checkpoint))
    return folder
