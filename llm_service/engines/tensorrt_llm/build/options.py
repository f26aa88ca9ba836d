"""The options of `convert` and `engine`: field = flag = help text."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field
from pydantic_settings import CliSubCommand, SettingsConfigDict

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.sizing import Limits
from llm_service.engines.tensorrt_llm.build.target import Dtype, Quantization, Target
from protos.checkpoint.location import CheckpointFolder
from protos.process.settings import Options


class ModelOptions(BaseModel):
    """The options that must be the same in both steps, which engine checks."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True, extra="forbid")

    checkpoint: CheckpointFolder
    """Folder of an original InternVL checkpoint, with config.json and safetensors, or a hub id such
    as OpenGVLab/InternVL2_5-8B, which is taken from the local Hugging Face cache."""
    converted: Path
    """Folder of the TensorRT-LLM checkpoint, which convert makes and engine reads."""
    dtype: Dtype = "bfloat16"
    """Type of weights, activations and KV cache."""
    quantization: Quantization = "none"
    """w8a16 and w4a16: int8 and int4 weights, quantised while the engine is built."""
    tp: int = Field(default=1, ge=1)
    """GPUs that share every layer."""
    pp: int = Field(default=1, ge=1)
    """Stages that the layers are divided into; tp x pp GPUs in all."""

    @property
    def target(self) -> Target:
        return Target(self.dtype, self.quantization, self.tp, self.pp)


class ConvertOptions(ModelOptions):
    """Writes the language model as a TensorRT-LLM 1.2.1 checkpoint; runs on any machine."""


class BuildOptions(ModelOptions):
    """Builds the engine with trtllm-build; run it on the kind of GPU that will serve."""

    output: Path
    """Folder for the engine."""
    max_running_sequence_count: int = Field(default=2, ge=1)
    """Most sequences that are generated at the same time; more wait."""
    max_request_tile_count: int = Field(default=26, ge=1)
    """Most image tiles in one request: 26 are two images of 12 tiles and a thumbnail."""
    max_prompt_token_count: int = Field(default=32768, ge=1)
    """Most tokens of one prompt, those of its tiles (256 each, as a rule) included."""
    max_output_token_count: int = Field(default=4192, ge=1)
    """Most tokens of one answer."""
    dry_run: bool = False
    """Show the arithmetic and the command, and end; reads the original config.json alone."""

    def limits(self, config: LLMConfig) -> Limits:
        """Returns what the engine of a model takes."""
        return Limits(
            self.max_running_sequence_count,
            self.max_request_tile_count,
            self.max_prompt_token_count,
            self.max_output_token_count,
            config.rows_per_tile,
        )


class ProgramOptions(Options):
    """Builds a TensorRT-LLM engine of an InternVL language model in two steps."""

    model_config = SettingsConfigDict(
        env_prefix="INTERNVL_LLM_BUILD_",
        cli_prog_name="internvl-llm-build",
    )

    convert: CliSubCommand[ConvertOptions]
    """original checkpoint -> TensorRT-LLM checkpoint"""
    engine: CliSubCommand[BuildOptions]
    """TensorRT-LLM checkpoint -> engine"""
