"""What float8 does to a model's distributions, beside the same weights as they are.

`python -m tests.benchmarks.fp8_accuracy --out DIR [--device cuda] [--shape 8B]`: the golden
conversations with their tiny models; with --shape, prompts of the released models' with that shape
and random weights as well, pictures random too. After each prompt both read the 16 tokens that the
weights as they are choose.
"""

from __future__ import annotations

import argparse
import gc
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import Prompt
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.sequence import Sequence as Generated
from llm_service.engines.torch.weights import load_decoder, stored_types
from llm_service.sampling import SamplingParams
from llm_service.settings import Quantization
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from tests.benchmarks.report import Report, ReportBook
from tests.benchmarks.shapes import FAMILIES, TOKENIZER_NAMES, open_shape
from tests.parity import golden
from tests.parity.conversations import golden_conversations

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
TINY_MODELS = ("tiny-qwen2", "tiny-internlm2")
STEP_TOKEN_COUNT = 2048
BLOCK_SIZE = 64
NEXT_TOKEN_COUNT = 16
TITLE = "float8 beside the weights as they are"
COMPARED = """\
The probabilities of the next token after golden prompts and after each of 16 tokens behind them: KL
divergence in nats of those of float8 from those of the same weights as they are, and how often both
have the same best token. "Flat" is the KL divergence of equal probabilities for all tokens. Weights
are random, so that best tokens are hardly better than the next: not judged on released weights."""


@dataclass(frozen=True)
class Model:
    """A checkpoint, and what it is asked."""

    name: str
    checkpoint: Path
    prompts: Sequence[Prompt]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures all models, and writes fp8_accuracy.md and .json."""
    options = _options(arguments)
    book, (load, _, _) = ReportBook(options.out, "fp8_accuracy", TITLE), os.getloadavg()
    columns = ("model", "tokens", "KL mean", "KL p99", "flat KL", "same best token")
    report = Report("distributions", COMPARED, columns)
    for name in TINY_MODELS:
        prompts = [item.prompt for item in golden_conversations(GOLDEN / name)]
        report.add(name, _cells(Model(name, GOLDEN / name, prompts), options.device), {})
    if options.shape is not None:
        with open_shape(options.checkpoints, options.shape, options.device, False) as checkpoint:
            name = f"random weights of the {options.shape}"
            model = Model(name, checkpoint, _released_prompts(checkpoint, options.shape))
            report.add(name, _cells(model, options.device), {})
    words = [*sys.argv[1:]] if arguments is None else [*arguments]
    command = shlex.join(["python", "-m", "tests.benchmarks.fp8_accuracy", *words])
    book.put(f"distributions on {options.device}", report, command, load)
    print(report.table(), flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the report")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cpu")
    parser.add_argument("--shape", choices=FAMILIES, help="of a released model")
    parser.add_argument("--checkpoints", type=Path, help="keep and use again what is written here")
    return parser.parse_args(arguments)


def _cells(model: Model, device: str) -> list[str]:
    exact, chosen = _log_probabilities(model, device, "none", None)
    rounded, _ = _log_probabilities(model, device, "fp8", chosen)
    divergences = (exact.exp() * (exact - rounded)).sum(-1).double()
    flat = (exact.exp() * exact).sum(-1).mean() + torch.tensor(exact.shape[-1]).log()
    same = (exact.argmax(-1) == rounded.argmax(-1)).double().mean()
    return [
        str(len(exact)),
        f"{divergences.mean():.5f}",
        f"{divergences.quantile(0.99):.5f}",
        f"{flat:.3f}",
        f"{same:.1%}",
    ]


def _log_probabilities(
    model: Model, device_name: str, quantization: Quantization, given: list[list[int]] | None
) -> tuple[torch.Tensor, list[list[int]]]:
    """Returns [N, vocabulary_size] float32, and the tokens that were read behind each prompt."""
    device = torch.device(device_name)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = LLMConfig.from_checkpoint(model.checkpoint)
    stored = stored_types(model.checkpoint, device, dtype, quantization)
    decoder = load_decoder(model.checkpoint, config, device, dtype, stored)
    longest = max(len(prompt.token_ids) for prompt in model.prompts) + NEXT_TOKEN_COUNT
    runner = ModelRunner(decoder, -(-longest // BLOCK_SIZE), BLOCK_SIZE, 1, STEP_TOKEN_COUNT)
    rows, chosen = [], []
    for index, prompt in enumerate(model.prompts):
        tokens: list[int] = []
        for logits in _logits(runner, prompt, -(-longest // BLOCK_SIZE), tokens):
            rows.append(logits.float().log_softmax(-1).cpu())
            tokens.append(int(logits.argmax()) if given is None else given[index][len(tokens)])
        chosen.append(tokens)
    del decoder, runner
    gc.collect()
    torch.cuda.empty_cache()
    return torch.stack(rows), chosen


@torch.inference_mode()
def _logits(
    runner: ModelRunner, prompt: Prompt, block_count: int, tokens: list[int]
) -> Iterator[torch.Tensor]:
    """Yields [vocabulary_size] after the prompt, and after each of `tokens`, which grow."""
    scheduler = Scheduler(BlockManager(block_count, BLOCK_SIZE), STEP_TOKEN_COUNT, 1)
    length = NEXT_TOKEN_COUNT + 1
    sequence = Generated(prompt, SamplingParams(), length, runner.vocabulary_size)
    scheduler.add(sequence)
    while len(tokens) <= NEXT_TOKEN_COUNT:
        inputs = runner.inputs(scheduler.schedule())
        logits = runner.logits(inputs)
        sequence.mark_launched()
        if inputs.sampled:
            yield logits[0]
            sequence.append(tokens[-1])


def _released_prompts(checkpoint: Path, shape: str) -> list[Prompt]:
    """Returns the golden prompts of a released tokenizer, with random rows for their pictures."""
    name = TOKENIZER_NAMES[FAMILIES[shape]]
    config = LLMConfig.from_checkpoint(checkpoint)
    context_id = Tokenizer.from_checkpoint(checkpoint).special_id(IMAGE_CONTEXT)
    random = torch.Generator().manual_seed(0)
    prompts = []
    for conversation in golden.read_json(GOLDEN / "prompts.json")["conversations"]:
        ids = golden.decode_run_lengths(conversation[name]["ids_rle"])
        virtual_ids = count(config.vocabulary_size)
        token_ids = [next(virtual_ids) if item == context_id else item for item in ids]
        shape_of_rows = ids.count(context_id), config.hidden_size
        rows = torch.randn(shape_of_rows, generator=random) * config.hidden_size**-0.5
        prompts.append(Prompt(token_ids, rows))
    return prompts


if __name__ == "__main__":
    main()
