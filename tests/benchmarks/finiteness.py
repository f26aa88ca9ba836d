"""What it costs to see whether logits are finite, beside a decode step of the same model.

`python -m tests.benchmarks.finiteness [--size 1B] [--device cuda]`: one line a batch size, in
microseconds. "chosen" is the token alone (argmax), "checked" the token with its row's largest logit
and that value's way to the host, as the engine does it; "amax" is what options besides greedy pay.
"""

from __future__ import annotations

import argparse
import statistics
import time
from array import array
from collections.abc import Callable, Sequence

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch import sequence
from llm_service.engines.torch.kernels.create import kernels_for
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.transfer import download
from llm_service.engines.torch.weights import empty_decoder
from llm_service.sampling import SamplingParams
from tests.benchmarks.shapes import CONFIGS

BATCH_SIZES = (1, 8, 32, 64)
BLOCK_SIZE = 16
CONTEXT = 1024
REPEAT_COUNT = 8


def main() -> None:
    """Measures all batch sizes and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1B", help="of the released ones")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=BATCH_SIZES)
    options = parser.parse_args()
    device = torch.device(options.device)
    runner = _runner(options.size, device, max(options.batch_sizes))
    print("batch    step  chosen  checked    amax  checked - chosen, of the step")
    for count in options.batch_sizes:
        print(_row(runner, count), flush=True)


def _row(runner: ModelRunner, count: int) -> str:
    inputs = runner.inputs(_sequences(count))
    logits = runner.logits(inputs).clone()
    step = _microseconds(lambda: runner.logits(inputs), runner.device)
    chosen = _microseconds(lambda: download(logits.argmax(-1)), runner.device)
    checked = _microseconds(lambda: [*map(download, logits.max(-1))], runner.device)
    peaks = _microseconds(lambda: logits.amax(-1), runner.device)
    share = (checked - chosen) / step
    return f"{count:5}{step:8.0f}{chosen:8.1f}{checked:9.1f}{peaks:8.1f}  {share:.2%}"


def _runner(size: str, device: torch.device, max_running: int) -> ModelRunner:
    config = LLMConfig.from_checkpoint(CONFIGS / f"InternVL2_5-{size}")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    decoder = empty_decoder(config, kernels_for(device, config)).to(dtype).to_empty(device=device)
    for parameter in decoder.parameters():
        parameter.normal_(std=0.02)
    return ModelRunner(decoder, max_running * CONTEXT // BLOCK_SIZE, BLOCK_SIZE, max_running)


def _sequences(count: int) -> list[sequence.Sequence]:
    """Returns sequences of which each has one token left to compute."""
    found = []
    blocks = CONTEXT // BLOCK_SIZE
    for slot in range(count):
        prompt = Prompt([7] * CONTEXT, torch.empty(0, 1))
        one = sequence.Sequence(prompt, SamplingParams(), 1, 10**6)
        one.slot, one.computed_count, one.scheduled_count = slot, CONTEXT - 1, 1
        one.block_table = array("i", range(slot * blocks, (slot + 1) * blocks))
        found.append(one)
    return found


def _microseconds(call: Callable[[], object], device: torch.device) -> float:
    queued_count = 8 if device.type == "cuda" else 1  # as steps follow each other there
    seconds: list[float] = []
    for _ in range(REPEAT_COUNT):
        _wait(device)
        started = time.perf_counter()
        for _ in range(queued_count):
            call()
        _wait(device)
        seconds.append((time.perf_counter() - started) / queued_count)
    return _fast(seconds) * 1e6


def _fast(seconds: Sequence[float]) -> float:
    """Returns the median of the faster half: a machine that others use has slow moments."""
    return statistics.median(sorted(seconds)[: len(seconds) // 2])


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
