"""From settings to a running executor: its configuration, the ranks of MPI, the first request."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import structlog
import tensorrt_llm
from tensorrt_llm.bindings import executor

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import EngineStartError
from llm_service.engines.guides import GuideCompiler
from llm_service.engines.tensorrt_llm.engine import TensorRTLLMEngine
from llm_service.engines.tensorrt_llm.engine_folder import EngineFolder
from llm_service.engines.tensorrt_llm.logits import LogitsProcessor
from llm_service.engines.tensorrt_llm.requests import RequestFactory
from llm_service.engines.tensorrt_llm.turns import Turns
from llm_service.settings import Settings, TensorRTLLMOptions
from llm_service.tokenizer import Tokenizer
from protos.process.memory import is_out_of_memory
from protos.process.server import STOP_SIGNALS

logger = structlog.get_logger()


def start_engine(settings: Settings, config: LLMConfig, tokenizer: Tokenizer) -> TensorRTLLMEngine:
    """Starts the engine of a TensorRT-LLM that is known to be installed; see the package's."""
    options = settings.tensorrt_llm
    assert options.engine_folder is not None  # the settings see to it
    folder = EngineFolder.read(options.engine_folder)
    folder.check(options, config, tensorrt_llm.__version__)
    processor = LogitsProcessor(folder.vocabulary_size) if _is_near(options, folder) else None
    runtime = _executor(settings, config, folder, processor)
    if not runtime.can_enqueue_requests():
        _work_for_leader(runtime)
    try:
        return TensorRTLLMEngine(
            config,
            folder,
            runtime,
            RequestFactory(folder),
            GuideCompiler(tokenizer, config.vocabulary_size),
            processor,
            Turns(_max_batch_size(settings, folder)),
            settings.max_waiting_sequence_count,
        )
    except Exception:  # whatever it is, the executor's threads must not outlive it
        runtime.shutdown()
        raise


def _is_near(options: TensorRTLLMOptions, folder: EngineFolder) -> bool:
    """Whether the logits come to be in this process: in rank 0, not in a worker, not further on."""
    return options.mpi_mode == "leader" and folder.pipeline_parallelism == 1


def _executor(
    settings: Settings, config: LLMConfig, folder: EngineFolder, processor: LogitsProcessor | None
) -> executor.Executor:
    executor_config = executor.ExecutorConfig(
        scheduler_config=executor.SchedulerConfig(
            executor.CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
        ),
        kv_cache_config=_kv_cache_config(settings, config, folder),
        enable_chunked_context=folder.has_paged_context,
        # Else a log probability is relative to the top_k, of which greedy decoding has one.
        normalize_log_probs=False,
        max_batch_size=_max_batch_size(settings, folder),
        parallel_config=_parallel_config(settings.tensorrt_llm),
        logits_post_processor_config=_logits_post_processor_config(processor),
        mm_embedding_offloading=settings.tensorrt_llm.table_offloading,
    )
    try:
        return executor.Executor(folder.path, executor.ModelType.DECODER_ONLY, executor_config)
    except RuntimeError as error:
        (reason, *_) = str(error).splitlines() or [""]
        ways = ""
        if is_out_of_memory(error):
            ways = (
                ". What helps: a smaller --kv-cache-fraction or --kv-cache-byte-count, an engine"
                " built for more GPUs (--tp), or a smaller model"
            )
        raise EngineStartError(f"TensorRT-LLM cannot load {folder.path}: {reason}{ways}") from error


def _max_batch_size(settings: Settings, folder: EngineFolder) -> int:
    return min(settings.max_running_sequence_count, folder.max_batch_size)


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
        enable_block_reuse=settings.tensorrt_llm.kv_cache_reuse,
        max_tokens=max_tokens,
        free_gpu_memory_fraction=settings.kv_cache_fraction,
    )


def _logits_post_processor_config(
    processor: LogitsProcessor | None,
) -> executor.LogitsPostProcessorConfig | None:
    """Returns the configuration by which rank 0 calls the processor, and shares its tokens."""
    if processor is None:
        return None
    return executor.LogitsPostProcessorConfig(processor_batched=processor, replicate=False)


def _parallel_config(options: TensorRTLLMOptions) -> executor.ParallelConfig:
    if options.mpi_mode == "leader":
        return executor.ParallelConfig(
            executor.CommunicationType.MPI, executor.CommunicationMode.LEADER
        )
    worker = Path(tensorrt_llm.__file__).parent / "bin" / "executorWorker"
    return executor.ParallelConfig(
        executor.CommunicationType.MPI,
        executor.CommunicationMode.ORCHESTRATOR,
        orchestrator_config=executor.OrchestratorConfig(True, str(worker)),
    )
