"""The program: reads the options, converts or builds, and says in a sentence what is wrong."""

from __future__ import annotations

import shlex
import sys

import torch
from pydantic_settings import get_subcommand

from llm_service.checkpoint import LLMConfig
from llm_service.engines.tensorrt_llm.build.conversion import convert
from llm_service.engines.tensorrt_llm.build.engine import build, build_command
from llm_service.engines.tensorrt_llm.build.options import (
    BuildOptions,
    ConvertOptions,
    ProgramOptions,
)
from llm_service.engines.tensorrt_llm.build.sizing import Card, report
from llm_service.engines.tensorrt_llm.build.target import BuildError
from protos.checkpoint.location import model_name
from protos.checkpoint.section import CheckpointError
from protos.process.settings import read_settings


def main() -> None:
    """Runs `convert` or `engine`; exit status 1 and a sentence on stderr when it cannot."""
    try:
        match get_subcommand(read_settings(ProgramOptions)):
            case ConvertOptions() as options:
                convert(options.checkpoint, options.converted, options.target, sys.stderr)
            case BuildOptions() as options:
                _build_engine(options)
    except (BuildError, CheckpointError, OSError) as error:
        sys.exit(str(error))


def _build_engine(options: BuildOptions) -> None:
    config = LLMConfig.from_checkpoint(options.checkpoint)
    target, limits = options.target, options.limits(config)
    target.check(config)
    command = build_command(options.converted, options.output, target, limits)
    lines = report(model_name(options.checkpoint), config, target, limits, _card())
    sys.stdout.write("\n".join([*lines, "", _wrapped(command), ""]))
    sys.stdout.flush()
    if not options.dry_run:
        build(config, options.converted, options.output, target, limits)


def _wrapped(command: list[str]) -> str:
    """The command as a shell takes it, one option a line."""
    program, *words = map(shlex.quote, command)
    options = [f"    {key} {value}" for key, value in zip(words[::2], words[1::2], strict=True)]
    return " \\\n".join([program, *options])


def _card() -> Card | None:
    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Card(properties.name, properties.total_memory)


if __name__ == "__main__":
    main()
