"""The decoders by the architecture name that a checkpoint's config carries."""

from __future__ import annotations

from llm_service.engines.torch.models.decoder import Decoder
from llm_service.engines.torch.models.internlm2 import InternLM2
from llm_service.engines.torch.models.qwen2 import Qwen2

DECODERS: dict[str, type[Decoder]] = {
    "InternLM2ForCausalLM": InternLM2,
    "Qwen2ForCausalLM": Qwen2,
}
