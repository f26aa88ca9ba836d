"""From settings to a running torch engine: device, dtype, weights, size of the KV cache."""

from __future__ import annotations

import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.step_graphs import TOKEN_SIZES
from llm_service.engines.torch.weights import load_decoder
from llm_service.settings import GIB, Settings
from llm_service.tokenizer import Tokenizer

CPU_KV_CACHE_BYTES = GIB
# A step is as long as the wait of a cancelled or a new request.
CPU_BATCH_TOKENS = 512
CUDA_BATCH_TOKENS = 8192
# Of a model narrower than this, the device computes 8192 tokens faster than the host launches the
# kernels for them: all steps are such that CUDA graphs hold them.
NARROW_HIDDEN_SIZE = 2048
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def start_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> TorchEngine:
    """Loads the checkpoint, runs a first sequence, and starts the engine's thread.

    Raises:
        CheckpointError: the weights do not fit the config.
        ValueError: there is no CUDA device, or the KV cache would hold no block.
    """
    torch.set_num_threads(settings.thread_count)
    device = _device(settings)
    decoder = load_decoder(settings.checkpoint, config, device, _dtype(settings, device))
    block_count = _block_count(settings, decoder)
    blocks = BlockManager(block_count, settings.block_size)
    max_running = settings.max_running_sequences
    scheduler = Scheduler(blocks, _max_batch_tokens(settings, config, device), max_running)
    runner = ModelRunner(decoder, block_count, settings.block_size, max_running)
    guides = GuideCompiler(tokenizer, config.vocabulary_size)
    return TorchEngine(config, scheduler, runner, guides, settings.max_waiting_sequences)


def _device(settings: Settings) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if settings.device == "cuda" and not has_cuda:
        raise ValueError("device is cuda, but PyTorch finds no CUDA device on this machine")
    return torch.device("cuda" if has_cuda and settings.device != "cpu" else "cpu")


def _dtype(settings: Settings, device: torch.device) -> torch.dtype:
    if settings.dtype != "auto":
        return DTYPES[settings.dtype]
    # With AMX the 1B reads a prompt in a third of its time in float32. PyTorch 2.9, the oldest that
    # we run on, has no public name for this question.
    has_fast_bfloat16 = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if has_fast_bfloat16 else torch.float32


def _max_batch_tokens(settings: Settings, config: LLMConfig, device: torch.device) -> int:
    if settings.max_batch_tokens is not None:
        return settings.max_batch_tokens
    if device.type == "cpu":
        return CPU_BATCH_TOKENS
    return TOKEN_SIZES[-1] if config.hidden_size < NARROW_HIDDEN_SIZE else CUDA_BATCH_TOKENS


def _block_count(settings: Settings, decoder: Decoder) -> int:
    """Returns how many blocks the KV cache has: by its size, or by the memory that is left."""
    config, weight = decoder.config, decoder.embedding.weight
    block_bytes = settings.block_size * config.kv_values_per_token() * weight.itemsize
    if settings.kv_cache_byte_count is not None:
        cache_bytes = settings.kv_cache_byte_count
    elif weight.is_cuda:
        free_bytes, _ = torch.cuda.mem_get_info(weight.device)
        cache_bytes = int(free_bytes * settings.kv_cache_fraction)
    else:
        cache_bytes = CPU_KV_CACHE_BYTES
    block_count = cache_bytes // block_bytes
    if block_count * settings.block_size < 2:
        raise ValueError(
            f"the KV cache has {cache_bytes} bytes, and one block needs {block_bytes}; "
            "it must hold 2 tokens at least"
        )
    return block_count
