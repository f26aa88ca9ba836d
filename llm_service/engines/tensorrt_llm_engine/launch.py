"""From settings to a running executor: its configuration, the ranks of MPI, the first request."""

from __future__ import annotations

import json
import signal
import sys
import threading
from pathlib import Path

import structlog
import tensorrt_llm
from tensorrt_llm.bindings import executor

from llm_service.checkpoint import LLMConfig
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.tensorrt_llm_engine.engine import TensorRTLLMEngine
from llm_service.engines.tensorrt_llm_engine.engine_folder import EngineFolder
from llm_service.engines.tensorrt_llm_engine.requests import RequestFactory
from llm_service.settings import Settings
from llm_service.tokenizer import BYTE_OF_CHARACTER, MESSAGE_END, Tokenizer
from protos.serving import STOP_SIGNALS

logger = structlog.get_logger()


def start_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> TensorRTLLMEngine:
    """See the package's start_engine; here TensorRT-LLM is known to be installed."""
    if settings.engine_folder is None:
        raise ValueError("engine is tensorrt_llm, which needs engine_folder")
    folder = EngineFolder.read(settings.engine_folder)
    folder.check(settings, config, tensorrt_llm.__version__)
    runtime = _executor(settings, config, folder, tokenizer)
    if not runtime.can_enqueue_requests():
        _work_for_leader(runtime)
    try:
        return TensorRTLLMEngine(
            config,
            folder,
            runtime,
            RequestFactory(folder),
            GuideCompiler(tokenizer, config.vocabulary_size),
            _end_token_ids(config, tokenizer),
            settings.max_waiting_sequences,
        )
    except Exception:
        runtime.shutdown()
        raise


def _executor(
    settings: Settings, config: LLMConfig, folder: EngineFolder, tokenizer: Tokenizer
) -> executor.Executor:
    executor_config = executor.ExecutorConfig(
        scheduler_config=executor.SchedulerConfig(
            executor.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
        ),
        kv_cache_config=_kv_cache_config(settings, config, folder),
        enable_chunked_context=folder.has_paged_context,
        # Else a log probability is relative to the top_k, of which greedy decoding has one.
        normalize_log_probs=False,
        max_batch_size=min(settings.max_running_sequences, folder.max_batch_size),
        parallel_config=_parallel_config(settings),
        guided_decoding_config=_guided_decoding_config(config, tokenizer),
        mm_embedding_offloading=settings.table_offloading,
    )
    try:
        return executor.Executor(folder.path, executor.ModelType.DECODER_ONLY, executor_config)
    except RuntimeError as error:
        raise ValueError(f"TensorRT-LLM cannot load {folder.path}: {error}") from error


def _work_for_leader(runtime: executor.Executor) -> None:
    """Takes part in rank 0's work until it shuts down, and ends this process.

    mpirun passes its signals on to all ranks; rank 0 still needs this one while it drains. Signals
    can be set in the main thread alone, which is where a service loads its engine.
    """
    logger.info("waiting_for_leader")
    if threading.current_thread() is threading.main_thread():
        for signum in STOP_SIGNALS:
            signal.signal(signum, signal.SIG_IGN)
    runtime.shutdown()
    sys.exit(0)


def _kv_cache_config(
    settings: Settings, config: LLMConfig, folder: EngineFolder
) -> executor.KvCacheConfig:
    max_tokens = None
    if settings.kv_cache_byte_count is not None:
        values = config.kv_values_per_token(folder.tensor_parallelism, folder.pipeline_parallelism)
        token_bytes = values * folder.dtype.itemsize
        max_tokens = settings.kv_cache_byte_count // token_bytes
    return executor.KvCacheConfig(
        enable_block_reuse=settings.kv_cache_reuse,
        max_tokens=max_tokens,
        free_gpu_memory_fraction=settings.kv_cache_fraction,
    )


def _parallel_config(settings: Settings) -> executor.ParallelConfig:
    if settings.mpi_mode == "leader":
        return executor.ParallelConfig(
            executor.CommunicationType.MPI, executor.CommunicationMode.LEADER
        )
    worker = Path(tensorrt_llm.__file__).parent / "bin" / "executorWorker"
    return executor.ParallelConfig(
        executor.CommunicationType.MPI,
        executor.CommunicationMode.ORCHESTRATOR,
        orchestrator_config=executor.OrchestratorConfig(True, str(worker)),
    )


def _guided_decoding_config(
    config: LLMConfig, tokenizer: Tokenizer
) -> executor.GuidedDecodingConfig:
    """Returns the vocabulary for guides, every token spelled in GPT-2's byte alphabet.

    The tokenizer document says that and nothing else, for either family. Special tokens have no
    spelling, so that no language holds them.
    """
    character_of_byte = {byte: character for character, byte in BYTE_OF_CHARACTER.items()}
    spellings = [
        ""
        if tokenizer.is_special(token_id)
        else "".join(character_of_byte[byte] for byte in tokenizer.token_bytes(token_id))
        for token_id in range(config.vocabulary_size)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False}
    return executor.GuidedDecodingConfig(
        backend=executor.GuidedDecodingConfig.GuidedDecodingBackend.XGRAMMAR,
        encoded_vocab=spellings,
        tokenizer_str=json.dumps({"pre_tokenizer": byte_level, "decoder": byte_level}),
        stop_token_ids=sorted(_end_token_ids(config, tokenizer)),
    )


def _end_token_ids(config: LLMConfig, tokenizer: Tokenizer) -> frozenset[int]:
    return config.end_token_ids | {tokenizer.special_id(MESSAGE_END)}
