"""From settings to a running torch engine: device, dtype, weights, size of the KV cache."""

from __future__ import annotations

import structlog
import torch
from torch.nn import functional

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.torch.block_copies import BlockCopies, staged_block_count
from llm_service.engines.torch.block_manager import BlockManager
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.engine import TorchEngine
from llm_service.engines.torch.finiteness import broken_start
from llm_service.engines.torch.host_cache import HostCache
from llm_service.engines.torch.host_memory import check_host_cache, page_locked
from llm_service.engines.torch.model_runner import ModelRunner
from llm_service.engines.torch.quantization import check_quantization
from llm_service.engines.torch.scheduler import Scheduler
from llm_service.engines.torch.start_memory import StartMemory
from llm_service.engines.torch.streams import engine_stream
from llm_service.engines.torch.weights import load_decoder, stored_types
from llm_service.settings import Settings, TorchOptions
from llm_service.tokenizer import Tokenizer
from protos.errors import NonFiniteError
from protos.process.precision import FloatType, Product, faster_type

logger = structlog.get_logger()

# For a step, a new request waits, and the next tokens of all others: where there are any, a GPU's
# steps are shorter. Prompts alone it reads faster in larger ones.
CPU_STEP_TOKEN_COUNT = 512
CUDA_STEP_TOKEN_COUNT = 2048
CUDA_MIXED_STEP_TOKEN_COUNT = 1024
# Of the KV cache, tokens. A GPU reads whole blocks of the larger ones without a thread's work.
CPU_BLOCK_SIZE = 16
CUDA_BLOCK_SIZE = 64
DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


def start_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> TorchEngine:
    """Loads the checkpoint, runs a first sequence, and starts the engine's thread.

    Raises:
        CheckpointError: the weights do not fit the config.
        EngineStartError: there is no CUDA device or too little memory, a quantization does not go
            with the device, or a host cache with a CPU, the KV cache or the host cache would hold
            no block, or the first logits are not finite.
    """
    torch.set_num_threads(settings.torch.thread_count)
    device = _device(settings.torch)
    dtype = _dtype(settings.torch, device)
    check_host_cache(settings.torch, device)
    check_quantization(settings.torch.quantization, config, device, dtype)
    stored = stored_types(settings.checkpoint, device, dtype, settings.torch.quantization)
    memory = StartMemory.of(settings, config, device, dtype, stored)
    memory.check()
    with memory.enough(), torch.cuda.stream(engine_stream(device)):
        decoder = load_decoder(settings.checkpoint, config, device, dtype, stored)
        guides = GuideCompiler(tokenizer, config.vocabulary_size)
        return _engine(settings, decoder, guides, memory.kv_cache)


def _engine(
    settings: Settings, decoder: Decoder, guides: GuideCompiler, kv_byte_count: int
) -> TorchEngine:
    running_count = settings.max_running_sequence_count
    is_cuda = decoder.embedding.weight.is_cuda
    step_token_count = settings.torch.max_step_token_count or (
        max(CUDA_STEP_TOKEN_COUNT, 2 * running_count) if is_cuda else CPU_STEP_TOKEN_COUNT
    )
    mixed_token_count = (
        max(CUDA_MIXED_STEP_TOKEN_COUNT, 2 * running_count) if is_cuda else step_token_count
    )
    block_size = settings.torch.block_size or (CUDA_BLOCK_SIZE if is_cuda else CPU_BLOCK_SIZE)
    block_count = _block_count(settings, decoder, block_size, kv_byte_count)
    draft_count = settings.torch.draft_token_count
    # Where few sequences run, their drafts have the room of many.
    decode_count = max(running_count, 1 + draft_count)
    runner = ModelRunner(decoder, block_count, block_size, decode_count, step_token_count)
    blocks = BlockManager(block_count, block_size, _host_cache(settings.torch, runner.kv_cache))
    scheduler = Scheduler(blocks, step_token_count, running_count, mixed_token_count, decode_count)
    waiting_count = settings.max_waiting_sequence_count
    try:
        return TorchEngine(decoder.config, scheduler, runner, guides, waiting_count, draft_count)
    except NonFiniteError as error:
        raise EngineStartError(broken_start(decoder)) from error


def _host_cache(options: TorchOptions, kv_cache: torch.Tensor) -> HostCache | None:
    if not options.host_cache_byte_count:
        return None
    block_byte_count = kv_cache[:, :, 0].nbytes
    slot_count = options.host_cache_byte_count // block_byte_count
    if not slot_count:
        raise EngineStartError(
            f"the host cache has {options.host_cache_byte_count} bytes, and one block needs"
            f" {block_byte_count}"
        )
    byte_count = slot_count * block_byte_count
    cache = HostCache(BlockCopies(kv_cache, page_locked(byte_count)))
    token_count = slot_count * kv_cache.shape[3]
    logger.info("host_cache", host_token_count=token_count, byte_count=byte_count)
    return cache


def _device(options: TorchOptions) -> torch.device:
    has_cuda = torch.cuda.is_available()
    if options.device == "cuda" and not has_cuda:
        raise EngineStartError("device is cuda, but PyTorch finds no CUDA device on this machine")
    return torch.device("cuda" if has_cuda and options.device != "cpu" else "cpu")


def _dtype(options: TorchOptions, device: torch.device) -> torch.dtype:
    if options.dtype != "auto":
        return DTYPES[options.dtype]
    if device.type == "cuda":
        return torch.bfloat16
    return DTYPES[faster_type(_product, options.thread_count)]


def _product(dtype: FloatType, row_count: int, width: int) -> Product:
    rows = torch.ones(row_count, width, dtype=DTYPES[dtype])
    weight = torch.ones(width, width, dtype=DTYPES[dtype])
    return lambda: functional.linear(rows, weight)


def _block_count(settings: Settings, decoder: Decoder, block_size: int, byte_count: int) -> int:
    """Returns how many blocks the KV cache has, by its size; 0 is a share of the GPU's memory."""
    config, weight = decoder.config, decoder.embedding.weight
    block_byte_count = block_size * config.kv_values_per_token() * decoder.dtype.itemsize
    if not byte_count:
        free_byte_count, _ = torch.cuda.mem_get_info(weight.device)
        slot_count = settings.torch.host_cache_byte_count // block_byte_count
        staged_byte_count = 2 * staged_block_count(slot_count, block_byte_count) * block_byte_count
        left_byte_count = free_byte_count - staged_byte_count
        byte_count = max(1, int(left_byte_count * settings.kv_cache_fraction))
    block_count = byte_count // block_byte_count
    if block_count * block_size < 2:
        raise EngineStartError(
            f"the KV cache has {byte_count} bytes, and one block needs {block_byte_count}; "
            "it must hold 2 tokens at least"
        )
    logger.info("kv_cache", kv_token_count=block_count * block_size, byte_count=byte_count)
    return block_count
