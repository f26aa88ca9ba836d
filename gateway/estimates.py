"""How many tokens a request will take, as far as that can be told without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gateway.fields import image_options
from gateway.generation import GenerationRequest, ImageReference
from gateway.services.vision import ModelInfo

# Of UTF-8: English has four or five bytes a token, Chinese three to five, code and JSON three.
BYTES_PER_TOKEN = 3
# The template's words around a turn.
TOKENS_PER_TURN = 8
# Of an answer without a limit of its own, which may go on to the end of the context.
DEFAULT_OUTPUT_TOKEN_COUNT = 1024


@dataclass(frozen=True)
class TokenEstimate:
    """Tells how many tokens a generation may take.

    Attributes:
        max_context_token_count: most tokens of a prompt and an answer.
        vision: what encodes the images; None: there are none.
    """

    max_context_token_count: int
    vision: ModelInfo | None = None

    def of_prompt(self, request: GenerationRequest) -> int:
        """Returns rather too many; each image counts as cut into its most tiles."""
        byte_count = sum(len(text.encode(errors="replace")) for text in _texts(request.fields))
        return min(
            self.max_context_token_count,
            len(request.fields.get("token_ids.ids", ()))
            + TOKENS_PER_TURN * len(request.fields.get("chat.messages", ()))
            + -(-byte_count // BYTES_PER_TOKEN)
            + sum(map(self._of_image, request.images)),
        )

    def of_outputs(self, request: GenerationRequest) -> int:
        """Returns the most that all its choices may have, or a guess where nothing limits them."""
        limit: int = request.fields.get("stop.max_token_count", DEFAULT_OUTPUT_TOKEN_COUNT)
        # A limit or a number of choices that is none is refused by the service.
        return max(1, min(limit, self.max_context_token_count)) * max(1, request.choice_count)

    def _of_image(self, image: ImageReference) -> int:
        assert self.vision
        options = image_options(self.vision.max_tile_count).values(image.source)
        cap: int = options.get("max_tile_count", self.vision.default_tile_count)
        tile_count = min(cap, self.vision.max_tile_count)
        return self.vision.tokens_per_tile * (tile_count + (tile_count > 1))  # with the thumbnail


def _texts(fields: Mapping[str, Any]) -> Iterator[str]:
    yield fields.get("text", "")
    for turn in fields.get("chat.messages", ()):
        yield from (part.get("text") or "" for part in turn["parts"])
        for call in turn.get("tool_calls", ()):
            yield from (call["name"], call["arguments"])
    for tool in fields.get("chat.tools", ()):
        yield from (tool["name"], tool["description"], tool["parameters"])
