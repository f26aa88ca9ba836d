"""Every option of the LLM service's process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from llm_service.templates import TemplateName
from protos.checkpoint.location import CheckpointFolder, model_name
from protos.process.cores import usable_core_count
from protos.process.option_errors import Contradiction
from protos.process.settings import (
    GIB,
    LARGEST_THREAD_COUNT,
    TORCH_SHORTCUTS,
    CheckOption,
    EngineOptions,
    EngineSettings,
    ModelNames,
)

# Memory is taken for each at the start.
LARGEST_SEQUENCE_COUNT = 65_536
# Far more than any machine has, and few enough for PyTorch to count.
LARGEST_BYTE_COUNT = 2**60
# A GPU computes so many tokens in about the time of one.
LARGEST_DRAFT_TOKEN_COUNT = 31
EngineName = Literal["torch", "tensorrt_llm"]
Quantization = Literal["none", "int8", "fp8"]


class TorchOptions(EngineOptions):
    """Options of the torch engine."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where it runs; auto: CUDA when there is one."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Type of weights and KV cache; auto: bfloat16 on CUDA, and on a CPU where a measurement at the
    start finds it faster, else float32."""
    thread_count: int = Field(default_factory=usable_core_count, ge=1, le=LARGEST_THREAD_COUNT)
    """CPU threads of one matrix product. By default all cores that the process may use, by its
    affinity and its container: for one user the two services take turns. Two threads of a core
    count as one."""
    block_size: int | None = Field(default=None, ge=1)
    """Tokens in one block of the KV cache, of which whole ones are found again for prompts that
    begin alike. Default: 16 on the CPU, 64 on CUDA."""
    quantization: Quantization = "none"
    """On a CPU, int8 keeps all weights but the embedding in half of bfloat16's memory: a scale a
    row, and what they are multiplied with stays as it is. Answers are written 1.5 to 1.9 times as
    fast, and are no longer exactly the model's. On a GPU of compute capability 8.9 or more, fp8
    keeps the layers' matrices in 8-bit floats, a scale a row, and rounds what they are multiplied
    with likewise, a scale a token. A CPU computes that too, slowly, to show what becomes of
    answers."""
    max_step_token_count: int | None = Field(default=None, ge=1)
    """Most tokens in one step of the engine; longer prompts are read in several steps. The next
    tokens of all answers wait for a step: fewer tokens make them smoother. Default: 512 on the CPU,
    on CUDA 2048; a step there in which answers go on has at most 1024."""
    draft_token_count: int = Field(default=0, ge=0, le=LARGEST_DRAFT_TOKEN_COUNT)
    """Most guesses of an answer's next tokens that one step verifies. A guess is what followed the
    last tokens where they stood before, in the prompt or in the answer; answers stay the same, and
    those that repeat such text are written faster: on a GPU with 7, on a CPU with 3. Default: 0."""
    host_cache_byte_count: int = Field(default=0, ge=0, le=LARGEST_BYTE_COUNT)
    """Page-locked memory beside a GPU for what its KV cache drops, taken at the start: prompts that
    begin alike find it there, and it is copied back instead of computed. 0: none."""


class TensorRTLLMOptions(EngineOptions):
    """Options of the TensorRT-LLM engine."""

    engine_folder: Path | None = None
    """Folder of the engine, with config.json; it must be given."""
    max_request_tile_count: int = Field(default=26, ge=1)
    """Tiles of one request that the engine must have room for; checked at start."""
    kv_cache_reuse: bool = True
    """Whether the KV cache of prompts is kept for others that begin alike."""
    table_offloading: bool = False
    """Whether image embeddings stay in host memory but for the rows of a step."""
    mpi_mode: Literal["leader", "orchestrator"] = "leader"
    """On several GPUs the service is started by mpirun (leader), or starts its own workers."""


class Settings(EngineSettings):
    """Options of the LLM service: flag, environment variable INTERNVL_LLM_*, default."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_LLM_",
        cli_prog_name="internvl-llm",
        cli_shortcuts={**TORCH_SHORTCUTS, "torch.quantization": "quantization"},
    )

    port: int = Field(default=50052, ge=0, le=65535)
    """Port to listen on; 0 takes a free one and logs it."""
    checkpoint: CheckpointFolder
    """Folder of an original InternVL checkpoint, with config.json, safetensors and tokenizer, or a
    hub id such as OpenGVLab/InternVL2_5-8B, which is taken from the local Hugging Face cache."""
    served_model_name: ModelNames = ()
    """Name under which the model is served; default: the checkpoint folder's name, or the hub's.
    Given several times, or as a JSON list, the others are names for it too."""
    template: TemplateName | None = None
    """How conversations are laid out; default: as the `template` of config.json says, which this
    wins over."""
    engine: EngineName = "torch"
    """What runs the language model."""
    torch: TorchOptions = TorchOptions()
    """Options of the engine torch."""
    tensorrt_llm: TensorRTLLMOptions = TensorRTLLMOptions()
    """Options of the engine tensorrt_llm."""
    kv_cache_byte_count: int | None = Field(default=None, ge=1, le=LARGEST_BYTE_COUNT)
    """Size of the KV cache, on each GPU if there are several; default: on the CPU room for a whole
    context and for 8 usual requests, 4,096 tokens each, but at most a quarter of the memory that
    the weights leave; else kv_cache_fraction of the memory that is free."""
    kv_cache_fraction: float = Field(default=0.9, gt=0, lt=1)
    """Share of the CUDA memory left free by the weights that the KV cache takes."""
    max_running_sequence_count: int = Field(default=64, ge=1, le=LARGEST_SEQUENCE_COUNT)
    """Most sequences that generate at the same time."""
    max_waiting_sequence_count: int = Field(default=256, ge=1)
    """Most sequences that wait for their turn; a further request is refused."""
    allow_priority: bool = False
    """Whether a request may come before others by its priority; else one that has any is
    refused."""
    max_messages_per_second: float = Field(default=5000.0, gt=0)
    """Most messages with new text in a second, of all answers together. Where tokens come faster,
    a message holds several of its answer's: fewer make more tokens a second, more make them
    smoother. The first token and the last are never held back, nor is any of a few answers."""
    max_call_count: int = Field(default=512, ge=1)
    """Most calls at a time; more are refused."""
    max_image_count: int = Field(default=64, ge=1)
    """Most images in one request."""
    max_upload_seconds: float = Field(default=300.0, gt=0)
    """Longest time for all embeddings of one request to arrive, the vision service's work on them
    included; no more than the gateway's --request-seconds serves anybody."""
    max_table_byte_count: int = Field(default=2 * GIB, ge=1)
    """Memory for image embeddings that are kept for later turns. Beside a GPU it is
    page-locked at the start; what has no room there is in ordinary memory."""

    def contradictions(self) -> Iterator[Contradiction]:
        """Yields an engine's folder that is missing, and two sizes of the KV cache."""
        yield from super().contradictions()
        if self.engine == "tensorrt_llm" and self.tensorrt_llm.engine_folder is None:
            sentence = "the engine tensorrt_llm needs it"
            yield Contradiction(("tensorrt_llm.engine_folder",), sentence, ("engine",))
        sizes = ("kv_cache_byte_count", "kv_cache_fraction")
        if self.model_fields_set.issuperset(sizes) and self.kv_cache_byte_count is not None:
            yield Contradiction(sizes, "the KV cache has one size; the fraction would not be used")

    @property
    def model_names(self) -> tuple[str, ...]:
        """The names under which the model is served, of which the first is its own."""
        return self.served_model_name or (model_name(self.checkpoint),)


class ProgramSettings(CheckOption, Settings):
    """The LLM service: messages and embeddings to tokens, by gRPC."""
