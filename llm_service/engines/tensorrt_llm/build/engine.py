"""The engine: trtllm-build's command line for a converted checkpoint, and its run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.config_file import config_document
from llm_service.engines.tensorrt_llm.build.output_folder import output_folder
from llm_service.engines.tensorrt_llm.build.sizing import Limits
from llm_service.engines.tensorrt_llm.build.target import BuildError, Target
from protos.checkpoint.section import Section

PROGRAM = "trtllm-build"


def build_command(converted: Path, engine: Path, target: Target, limits: Limits) -> list[str]:
    """Returns trtllm-build's arguments, its name first.

    Args:
        converted: folder of the TensorRT-LLM checkpoint.
        engine: folder for the engine.
        target: of the checkpoint.
        limits: what the engine takes.
    """
    options: dict[str, str | int | Path] = {
        "checkpoint_dir": converted,
        "output_dir": engine,
        "gemm_plugin": target.dtype,
        "max_batch_size": limits.max_running_sequence_count,
        "max_input_len": limits.max_prompt_token_count,
        "max_seq_len": limits.total_token_count,
        # A prompt is read in one step, so a step must take the longest.
        "max_num_tokens": limits.max_prompt_token_count,
        "max_multimodal_len": limits.table_row_count,
        "kv_cache_type": "paged",
        # Without it the KV cache of an image cannot be used again by the next turn.
        "use_paged_context_fmha": "enable",
    }
    return [PROGRAM, *(word for key, value in options.items() for word in (f"--{key}", str(value)))]


def build(config: LLMConfig, converted: Path, engine: Path, target: Target, limits: Limits) -> None:
    """Runs trtllm-build, whose output goes to this process's.

    It builds into a folder beside `engine`, which takes that name when trtllm-build has succeeded.

    Raises:
        BuildError: `converted` was not made by these options, `engine` exists, a build of it runs
            or was cut off, or trtllm-build is not installed or fails.
        CheckpointError: the config.json of `converted` cannot be read.
    """
    _check_converted(converted, config_document(config, target))
    if shutil.which(PROGRAM) is None:
        raise BuildError(f"{PROGRAM} is not on the PATH; it comes with tensorrt_llm 1.2.1")
    with output_folder(engine, "--output", "build") as folder:
        command = build_command(converted, folder, target, limits)
        status = subprocess.run(command, check=False)  # noqa: S603 - the operator's own words
        if status.returncode != 0:
            raise BuildError(
                f"{PROGRAM} ended with status {status.returncode}; {engine} was not made"
            )


def _check_converted(converted: Path, expected: dict[str, object]) -> None:
    path = converted / "config.json"
    if not path.is_file():
        raise BuildError(f"there is no {path}; run convert first")
    document = Section.of_file(path).values
    for key, value in expected.items():
        if document.get(key) != value:
            raise BuildError(
                f"{path} has {key} {document.get(key)!r}, but these options make it {value!r}; "
                "convert again with them"
            )
