"""The one place that knows which models have learned which format of tools."""

from __future__ import annotations

from llm_service.templates import INTERNLM2_CHAT, Template
from llm_service.tokenizer import Tokenizer
from llm_service.tools.base import ToolFormat
from llm_service.tools.hermes import HermesFormat
from llm_service.tools.plugin import PluginFormat


def tool_format(template: Template, tokenizer: Tokenizer) -> ToolFormat:
    """Returns the format of tools that goes with a chat template and a tokenizer."""
    tokens = PluginFormat.envelope.control_tokens
    if template.name == INTERNLM2_CHAT.name and all(map(tokenizer.has_token, tokens)):
        return PluginFormat()
    return HermesFormat(tokenizer)
