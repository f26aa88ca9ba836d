"""What this service runs: the model's name, engine, config, tokenizer and limits."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from llm_service.checkpoint import LLMConfig
from llm_service.settings import Settings
from llm_service.templates import Template, read_template
from llm_service.tokenizer import MESSAGE_END, MESSAGE_START, Tokenizer
from llm_service.tools.base import ToolFormat
from llm_service.tools.create import tool_format
from protos.checkpoint.fingerprint import CheckpointFingerprint
from protos.checkpoint.section import CheckpointError


@dataclass(frozen=True)
class ModelInfo:
    """What this service runs, and within which limits.

    Attributes:
        model: the name under which it is served.
        engine: the engine's name.
        config: of the checkpoint.
        tokenizer: of the checkpoint.
        template: how conversations are laid out.
        max_context_token_count: most tokens of prompt and output together.
        max_image_count: most images in one request.
        max_upload_seconds: longest time for the embeddings of one request to arrive.
        created_unix_seconds: when the checkpoint's newest weight file was written.
        aliases: further names of the model.
        allows_priority: whether a request may have a priority.
        checkpoint: names the whole checkpoint.
    """

    model: str
    engine: str
    config: LLMConfig
    tokenizer: Tokenizer
    template: Template
    max_context_token_count: int
    max_image_count: int
    max_upload_seconds: float
    created_unix_seconds: int
    aliases: tuple[str, ...] = ()
    allows_priority: bool = False
    checkpoint: CheckpointFingerprint = CheckpointFingerprint()

    @property
    def end_token_ids(self) -> frozenset[int]:
        """The tokens that end an answer."""
        return end_token_ids(self.config, self.tokenizer)

    @property
    def tool_format(self) -> ToolFormat:
        """How tools and their calls are written."""
        return tool_format(self.tokenizer)

    @property
    def fingerprint(self) -> bytes:
        """SHA-256 of config, tokenizer and template."""
        facts = repr((self.config, self.template)).encode()
        return hashlib.sha256(facts + self.tokenizer.fingerprint).digest()


def read_model(settings: Settings) -> tuple[LLMConfig, Tokenizer, Template]:
    """Reads all of a checkpoint but its weights.

    Raises:
        CheckpointError: it is not one that we serve.
    """
    config = LLMConfig.from_checkpoint(settings.checkpoint)
    template = read_template(settings.checkpoint, settings.template)
    tokenizer = Tokenizer.from_checkpoint(settings.checkpoint)
    highest = max([tokenizer.highest_id, *config.end_token_ids])
    if highest >= config.vocabulary_size:
        raise CheckpointError(
            f"{settings.checkpoint}: the tokenizer or the end tokens have id {highest}, but"
            f" llm_config.vocab_size is {config.vocabulary_size}: they belong to another model"
        )
    return config, tokenizer, template


def end_token_ids(config: LLMConfig, tokenizer: Tokenizer) -> frozenset[int]:
    """Returns the tokens that end an answer: the template's and the checkpoint's own.

    Some generation_config.json list the token that begins a turn, too: the reference's code ends no
    answer there.
    """
    end_id, start_id = map(tokenizer.special_id, (MESSAGE_END, MESSAGE_START))
    return config.end_token_ids - {start_id} | {end_id}
