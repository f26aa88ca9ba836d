"""A double of the program trtllm-build 1.2.1: takes its options and no others, builds nothing.

It stands alone, so that a test can put its text on the PATH.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

PATHS = ("checkpoint_dir", "output_dir", "model_config", "build_config", "input_timing_cache")
NUMBERS = (
    "max_batch_size", "max_input_len", "max_seq_len", "max_beam_width", "max_num_tokens",
    "opt_num_tokens", "max_encoder_input_len", "workers", "tokens_per_block",
)  # fmt: skip
TYPES = ("auto", "float16", "bfloat16", "fp8", "disable")
SWITCHES = ("context_fmha", "use_paged_context_fmha", "remove_input_padding", "multiple_profiles")


def parser() -> argparse.ArgumentParser:
    """Returns the options that the program has, each with what it may be."""
    options = argparse.ArgumentParser(prog="trtllm-build", allow_abbrev=False)
    for name in PATHS:
        options.add_argument(f"--{name}", type=Path)
    for name in NUMBERS:
        options.add_argument(f"--{name}", type=int)
    options.add_argument("--max_prompt_embedding_table_size", "--max_multimodal_len", type=int)
    options.add_argument("--kv_cache_type", choices=("continuous", "paged", "disabled"))
    options.add_argument("--gemm_plugin", choices=TYPES)
    options.add_argument("--gpt_attention_plugin", choices=TYPES)
    for name in SWITCHES:
        options.add_argument(f"--{name}", choices=("enable", "disable"))
    return options


def main() -> None:
    """Writes what was asked for where the engine would be; fails halfway for a batch of 13."""
    asked = parser().parse_args()
    asked.output_dir.mkdir(parents=True, exist_ok=True)
    (asked.output_dir / "rank0.engine").touch()
    if asked.max_batch_size == 13:
        sys.exit(3)
    document = {"checkpoint": str(asked.checkpoint_dir), "batch": asked.max_batch_size}
    (asked.output_dir / "config.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
