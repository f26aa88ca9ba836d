"""The one place that knows which models have learned which format of tools: their tokens tell."""

from __future__ import annotations

from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import ToolFormat
from llm_service.tools.hermes import HermesFormat
from llm_service.tools.plugin import PluginFormat


def tool_format(tokenizer: Tokenizer) -> ToolFormat:
    """Returns InternLM2's format where the tokenizer has its marks, whatever the chat template."""
    if all(map(tokenizer.has_token, PluginFormat.envelope.control_tokens)):
        return PluginFormat()
    return HermesFormat(tokenizer)
