"""The value types of the bindings, with their constructors' exact signatures and checks."""

from __future__ import annotations

import dataclasses
from ctypes import c_float
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta
from enum import Enum, auto
from types import UnionType
from typing import Annotated, Any, ClassVar, Union, get_args, get_origin, get_type_hints

import torch

# As cpp/include/tensorrt_llm/executor/types.h has them: tokens and sizes, ids and seeds.
Int32 = Annotated[int, range(-(2**31), 2**31)]
UInt64 = Annotated[int, range(2**64)]

# samplingConfig.cpp's checks, of numbers that are float32 by then.
POSITIVE = {"beam_width", "top_p", "top_p_decay", "repetition_penalty", "num_return_sequences"}
NOT_NEGATIVE = {
    *("top_k", "top_p_min", "top_p_reset_ids", "temperature", "min_tokens", "min_p"),
    *("beam_search_diversity_rate", "length_penalty", "early_stopping", "no_repeat_ngram_size"),
}
AT_MOST_ONE = {"top_p", "top_p_min", "top_p_decay", "min_p"}


class Strict:
    """A dataclass that refuses a value of another type than its field's, as the bindings do."""

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self), globals(), include_extras=True)
        for item in dataclasses.fields(self):  # type: ignore[arg-type] # subclasses are dataclasses
            value = getattr(self, item.name)
            if not conforms(value, hints[item.name]):
                raise TypeError(
                    f"{type(self).__name__}({item.name}) is {type(value)}: incompatible argument"
                )


def conforms(value: object, hint: Any) -> bool:
    """Returns whether the bindings take a value for an argument of this type."""
    if hint is Any:
        return True
    if get_origin(hint) is Annotated:
        (numbers,) = hint.__metadata__
        return type(value) is int and value in numbers
    if get_origin(hint) in (Union, UnionType):
        return any(conforms(value, option) for option in get_args(hint))
    if get_origin(hint) is list:
        (item_hint,) = get_args(hint)
        return isinstance(value, list) and all(conforms(item, item_hint) for item in value)
    if isinstance(value, bool):
        return hint is bool
    return isinstance(value, int | float if hint is float else hint)


class ModelType(Enum):
    DECODER_ONLY = auto()
    ENCODER_ONLY = auto()
    ENCODER_DECODER = auto()


class FinishReason(Enum):
    NOT_FINISHED = auto()
    END_ID = auto()
    STOP_WORDS = auto()
    LENGTH = auto()
    TIMED_OUT = auto()
    CANCELLED = auto()


class BatchingType(Enum):
    STATIC = auto()
    INFLIGHT = auto()


class CapacitySchedulerPolicy(Enum):
    MAX_UTILIZATION = auto()
    GUARANTEED_NO_EVICT = auto()
    STATIC_BATCH = auto()


class ContextChunkingPolicy(Enum):
    EQUAL_PROGRESS = auto()
    FIRST_COME_FIRST_SERVED = auto()


class CommunicationType(Enum):
    MPI = auto()


class CommunicationMode(Enum):
    LEADER = auto()
    ORCHESTRATOR = auto()


class RequestType(Enum):
    REQUEST_TYPE_CONTEXT_AND_GENERATION = auto()
    REQUEST_TYPE_CONTEXT_ONLY = auto()
    REQUEST_TYPE_GENERATION_ONLY = auto()


@dataclass
class SamplingConfig(Strict):
    beam_width: Int32 = 1
    _: KW_ONLY
    top_k: Int32 | None = None
    top_p: float | None = None
    top_p_min: float | None = None
    top_p_reset_ids: Int32 | None = None
    top_p_decay: float | None = None
    seed: UInt64 | None = None
    temperature: float | None = None
    min_tokens: Int32 | None = None
    beam_search_diversity_rate: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    length_penalty: float | None = None
    early_stopping: Int32 | None = None
    no_repeat_ngram_size: Int32 | None = None
    num_return_sequences: Int32 | None = None
    min_p: float | None = None
    beam_width_array: list[Int32] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float) and not _is_allowed(item.name, c_float(value).value):
                raise RuntimeError(f"Assertion failed: {item.name} is {value}")


def _is_allowed(name: str, value: float) -> bool:
    """Written so that NaN fails."""
    return (
        (name not in POSITIVE or value > 0)
        and (name not in NOT_NEGATIVE or value >= 0)
        and (name not in AT_MOST_ONE or value <= 1)
    )


@dataclass
class OutputConfig(Strict):
    return_log_probs: bool = False
    return_context_logits: bool = False
    return_generation_logits: bool = False
    exclude_input_from_output: bool = False
    return_encoder_output: bool = False
    return_perf_metrics: bool = False
    additional_model_outputs: list[Any] | None = None


@dataclass
class PromptTuningConfig(Strict):
    embedding_table: torch.Tensor
    input_token_extra_ids: list[UInt64] | None = None


@dataclass
class GuidedDecodingParams(Strict):
    class GuideType(Enum):
        JSON = auto()
        JSON_SCHEMA = auto()
        REGEX = auto()
        EBNF_GRAMMAR = auto()
        STRUCTURAL_TAG = auto()

    guide_type: Any
    guide: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.guide_type, self.GuideType):
            raise TypeError(f"GuidedDecodingParams(guide_type) is {self.guide_type!r}")


@dataclass
class GuidedDecodingConfig(Strict):
    class GuidedDecodingBackend(Enum):
        XGRAMMAR = auto()
        LLGUIDANCE = auto()

    backend: Any
    encoded_vocab: list[str] | None = None
    tokenizer_str: str | None = None
    stop_token_ids: list[Int32] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.backend, self.GuidedDecodingBackend):
            raise TypeError(f"GuidedDecodingConfig(backend) is {self.backend!r}")


@dataclass
class Request(Strict):
    kDefaultPriority: ClassVar[float] = 0.5  # noqa: N815 - the bindings' own spelling
    BATCHED_POST_PROCESSOR_NAME: ClassVar[str] = "batched"

    input_token_ids: list[Int32]
    max_tokens: Int32
    _: KW_ONLY
    streaming: bool = False
    sampling_config: SamplingConfig = field(default_factory=SamplingConfig)
    output_config: OutputConfig = field(default_factory=OutputConfig)
    end_id: Int32 | None = None
    pad_id: Int32 | None = None
    position_ids: list[Int32] | None = None
    bad_words: list[list[Int32]] | None = None
    stop_words: list[list[Int32]] | None = None
    embedding_bias: torch.Tensor | None = None
    external_draft_tokens_config: Any = None
    prompt_tuning_config: PromptTuningConfig | None = None
    multimodal_input: Any = None
    multimodal_embedding: torch.Tensor | None = None
    mrope_config: Any = None
    lora_config: Any = None
    lookahead_config: Any = None
    kv_cache_retention_config: Any = None
    logits_post_processor_name: str | None = None
    logits_post_processor: Any = None
    encoder_input_token_ids: list[Int32] | None = None
    client_id: UInt64 | None = None
    return_all_generated_tokens: bool = False
    priority: float = kDefaultPriority
    type: RequestType = RequestType.REQUEST_TYPE_CONTEXT_AND_GENERATION
    context_phase_params: Any = None
    encoder_input_features: torch.Tensor | None = None
    encoder_output_length: Int32 | None = None
    cross_attention_mask: torch.Tensor | None = None
    num_return_sequences: Int32 = 1
    eagle_config: Any = None
    skip_cross_attn_blocks: torch.Tensor | None = None
    guided_decoding_params: GuidedDecodingParams | None = None
    language_adapter_uid: Int32 | None = None
    allotted_time_ms: timedelta | None = None
    cache_salt_id: UInt64 | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.priority <= 1:
            raise RuntimeError(f"priority is {self.priority}, not in 0..1")
        if not self.input_token_ids or self.max_tokens < 1:
            raise RuntimeError("Assertion failed: !mInputTokenIds.empty(), mMaxNewTokens > 0")


@dataclass
class KvCacheConfig(Strict):
    enable_block_reuse: bool = True
    max_tokens: Int32 | None = None
    max_attention_window: list[Int32] | None = None
    sink_token_length: Int32 | None = None
    free_gpu_memory_fraction: float | None = None
    host_cache_size: UInt64 | None = None
    onboard_blocks: bool = True
    cross_kv_cache_fraction: float | None = None
    secondary_offload_min_priority: Int32 | None = None
    event_buffer_max_size: UInt64 = 0
    _: KW_ONLY
    enable_partial_reuse: bool = True
    copy_on_partial_reuse: bool = True
    use_uvm: bool = False
    runtime_defaults: Any = None


@dataclass
class SchedulerConfig(Strict):
    capacity_scheduler_policy: CapacitySchedulerPolicy = CapacitySchedulerPolicy.GUARANTEED_NO_EVICT
    context_chunking_policy: ContextChunkingPolicy | None = None
    dynamic_batch_config: Any = None


@dataclass
class OrchestratorConfig(Strict):
    is_orchestrator: bool = True
    worker_executable_path: str = ""
    orch_leader_comm: Any = None
    spawn_processes: bool = True


@dataclass
class ParallelConfig(Strict):
    communication_type: CommunicationType = CommunicationType.MPI
    communication_mode: CommunicationMode = CommunicationMode.LEADER
    device_ids: list[Int32] | None = None
    participant_ids: list[Int32] | None = None
    orchestrator_config: OrchestratorConfig | None = None
    num_nodes: Int32 | None = None


@dataclass
class PeftCacheConfig(Strict):
    pass


@dataclass
class ExtendedRuntimePerfKnobConfig(Strict):
    pass


@dataclass
class LogitsPostProcessorConfig(Strict):
    processor_map: Any = None
    processor_batched: Any = None
    replicate: bool = True


@dataclass
class ExecutorConfig(Strict):
    max_beam_width: Int32 = 1
    scheduler_config: SchedulerConfig = field(default_factory=SchedulerConfig)
    kv_cache_config: KvCacheConfig = field(default_factory=KvCacheConfig)
    enable_chunked_context: bool = False
    normalize_log_probs: bool = True
    iter_stats_max_iterations: Int32 = 1000
    request_stats_max_iterations: Int32 = 0
    batching_type: BatchingType = BatchingType.INFLIGHT
    max_batch_size: Int32 | None = None
    max_num_tokens: Int32 | None = None
    parallel_config: ParallelConfig | None = None
    peft_cache_config: PeftCacheConfig = field(default_factory=PeftCacheConfig)
    logits_post_processor_config: LogitsPostProcessorConfig | None = None
    decoding_config: Any = None
    use_gpu_direct_storage: bool = False
    gpu_weights_percent: float = 1.0
    max_queue_size: Int32 | None = None
    extended_runtime_perf_knob_config: ExtendedRuntimePerfKnobConfig = field(
        default_factory=ExtendedRuntimePerfKnobConfig
    )
    debug_config: Any = None
    recv_poll_period_ms: Int32 = 0
    max_seq_idle_microseconds: UInt64 = 180_000_000
    spec_dec_config: Any = None
    guided_decoding_config: GuidedDecodingConfig | None = None
    additional_model_outputs: list[Any] | None = None
    cache_transceiver_config: Any = None
    gather_generation_logits: bool = False
    mm_embedding_offloading: bool = False
    enable_trt_overlap: bool = False
    fail_fast_on_attention_window_too_large: bool = False


@dataclass
class KvCacheMetrics:
    num_total_allocated_blocks: int = 0
    num_new_allocated_blocks: int = 0
    num_reused_blocks: int = 0
    num_missed_blocks: int = 0
    kv_cache_hit_rate: float = 0.0


@dataclass
class TimingMetrics:
    """Times of std::chrono::steady_clock, which pybind11 and nanobind make timedeltas of."""

    arrival_time: timedelta = timedelta()
    first_scheduled_time: timedelta = timedelta()
    first_token_time: timedelta = timedelta()
    last_token_time: timedelta = timedelta()
    kv_cache_transfer_start: timedelta = timedelta()
    kv_cache_transfer_end: timedelta = timedelta()
    kv_cache_size: int = 0


@dataclass
class RequestPerfMetrics:
    kv_cache_metrics: KvCacheMetrics = field(default_factory=KvCacheMetrics)
    timing_metrics: TimingMetrics = field(default_factory=TimingMetrics)
    speculative_decoding: Any = None
    first_iter: int | None = None
    last_iter: int | None = None
    iter: int | None = None


@dataclass
class Result:
    is_final: bool = False
    output_token_ids: list[list[int]] = field(default_factory=lambda: [[]])
    cum_log_probs: list[float] | None = None
    log_probs: list[list[float]] | None = None
    context_logits: torch.Tensor | None = None
    generation_logits: torch.Tensor | None = None
    encoder_output: torch.Tensor | None = None
    finish_reasons: list[FinishReason] = field(default_factory=lambda: [FinishReason.NOT_FINISHED])
    sequence_index: int = 0
    is_sequence_final: bool = False
    decoding_iter: int = 0
    avg_decoded_tokens_per_iter: float = 1.0
    context_phase_params: Any = None
    request_perf_metrics: RequestPerfMetrics | None = None
    additional_outputs: list[Any] = field(default_factory=list)
    spec_dec_fast_logits_info: Any = None


class Response:
    """Either a result or an error message; to ask for the other one is an error."""

    def __init__(self, request_id: int, outcome: Result | str, client_id: int | None) -> None:
        self.request_id = request_id
        self.client_id = client_id
        self._outcome = outcome

    def has_error(self) -> bool:
        return isinstance(self._outcome, str)

    @property
    def error_msg(self) -> str:
        if not isinstance(self._outcome, str):
            raise RuntimeError("Cannot get error message if response doesn't have errors")
        return self._outcome

    @property
    def result(self) -> Result:
        if not isinstance(self._outcome, Result):
            raise RuntimeError("Cannot get the result if response has errors")
        return self._outcome

    def clear_context_logits(self) -> None:
        self.result.context_logits = None

    def clear_generation_logits(self) -> None:
        self.result.generation_logits = None


@dataclass
class KvCacheStats:
    max_num_blocks: int = 0
    free_num_blocks: int = 0
    used_num_blocks: int = 0
    tokens_per_block: int = 0
    alloc_total_blocks: int = 0
    alloc_new_blocks: int = 0
    reused_blocks: int = 0
    missed_blocks: int = 0
    cache_hit_rate: float = 0.0


@dataclass(frozen=True)
class InflightBatchingStats:
    num_scheduled_requests: int = 0
    num_context_requests: int = 0
    num_gen_requests: int = 0
    num_paused_requests: int = 0
    num_ctx_tokens: int = 0
    micro_batch_id: int = 0
    avg_num_decoded_tokens_per_iter: float = 0.0


@dataclass
class IterationStats:
    timestamp: str = ""
    iter: int = 0
    iter_latency_ms: float = 0.0
    new_active_requests_queue_latency_ms: float = 0.0
    num_new_active_requests: int = 0
    num_active_requests: int = 0
    num_queued_requests: int = 0
    num_completed_requests: int = 0
    max_num_active_requests: int = 0
    gpu_mem_usage: int = 0
    cpu_mem_usage: int = 0
    pinned_mem_usage: int = 0
    kv_cache_stats: KvCacheStats | None = None
    cross_kv_cache_stats: KvCacheStats | None = None
    static_batching_stats: Any = None
    inflight_batching_stats: InflightBatchingStats | None = None
    specdec_stats: Any = None
