"""The decoder families that we serve, by the name that llm_config.architectures has for them."""

from __future__ import annotations

from llm_service.decoders.family import DecoderFamily
from llm_service.decoders.internlm2 import INTERNLM2
from llm_service.decoders.llama import LLAMA
from llm_service.decoders.qwen2 import QWEN2
from llm_service.decoders.qwen3 import QWEN3

FAMILIES: dict[str, DecoderFamily] = {
    family.architecture: family
    for family in (
        INTERNLM2,
        LLAMA,
        QWEN2,
        QWEN3,
    )
}
