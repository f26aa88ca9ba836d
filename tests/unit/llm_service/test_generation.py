from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import torch

from llm_service.detokenizer import Detokenizer, StopStrings
from llm_service.engines import EngineLoad, FinishReason, Prompt, TokenOutput
from llm_service.generation import TextDelta, TextEnd, generate_text
from llm_service.sampling import SamplingParams
from tests.real_tokenizers import real_tokenizer

TOKENIZER = "internlm2_5"
PROMPT = Prompt([1], torch.empty(0, 8))


class Engine:
    """Gives out one token after the other."""

    def __init__(self, token_ids: Sequence[int], reason: FinishReason) -> None:
        self._token_ids = token_ids
        self._reason = reason

    async def generate(
        self, prompt: Prompt, params: SamplingParams
    ) -> AsyncGenerator[TokenOutput, None]:
        *first, last = self._token_ids
        for token_id in first:
            yield TokenOutput([token_id], None)
        yield TokenOutput([last], self._reason, cached_token_count=7)

    def load(self) -> EngineLoad:
        return EngineLoad(0, 0, 0, 0)

    def is_healthy(self) -> bool:
        return True

    async def close(self) -> None:
        pass


async def generate(
    token_ids: Sequence[int],
    reason: FinishReason = "length",
    *,
    stop_token_ids: Sequence[int] = (),
    stop_strings: Sequence[str] = (),
) -> tuple[str, list[int], TextEnd]:
    """Returns the text, the ids of all deltas and the end."""
    events = generate_text(
        Engine(token_ids, reason),
        PROMPT,
        SamplingParams(stop_token_ids=frozenset(stop_token_ids)),
        Detokenizer(real_tokenizer(TOKENIZER)),
        StopStrings(stop_strings),
    )
    *deltas, end = [event async for event in events]
    assert isinstance(end, TextEnd)
    texts: list[str] = []
    ids: list[int] = []
    for delta in deltas:
        assert isinstance(delta, TextDelta)
        texts.append(delta.text)
        ids.extend(delta.token_ids)
    return "".join(texts), ids, end


def encode(text: str) -> list[int]:
    return real_tokenizer(TOKENIZER).encode(text)


async def test_end_counts_every_token_and_passes_the_engines_reason_on() -> None:
    ids = encode("red panda")
    text, seen, end = await generate(ids)
    assert (text, seen) == ("red panda", ids)
    assert end == TextEnd("length", None, output_token_count=len(ids), cached_token_count=7)


async def test_ordinary_stop_token_is_counted_but_not_shown() -> None:
    ids = encode("a b")
    text, seen, end = await generate(ids, "stop", stop_token_ids=ids[-1:])
    assert text == "a"
    assert seen == ids
    assert (end.reason, end.output_token_count) == ("stop", len(ids))


async def test_stop_token_inside_the_text_is_shown() -> None:
    """Only the token that ended the sequence is hidden."""
    ids = encode("a b")
    text, _, _ = await generate([*ids, *ids], "length", stop_token_ids=ids[-1:])
    assert text == "a ba b"


async def test_half_character_at_the_end_is_replaced() -> None:
    text, _, _ = await generate([*encode("x"), *encode("🐼")[:2]])
    assert text == "x\ufffd"


async def test_beginning_of_a_stop_string_at_the_end_is_given_back() -> None:
    text, _, end = await generate(encode("wait for ST"), stop_strings=["STOP"])
    assert text == "wait for ST"
    assert (end.reason, end.stop_string) == ("length", None)


async def test_stop_string_in_the_last_held_bytes_counts() -> None:
    text, _, end = await generate([*encode("x"), *encode("🐼")[:2]], stop_strings=["\ufffd"])
    assert text == "x"
    assert (end.reason, end.stop_string) == ("stop", "\ufffd")


async def test_stop_string_ends_before_the_engine_does() -> None:
    ids = encode("one two three")
    text, seen, end = await generate(ids, stop_strings=[" two"])
    assert text == "one"
    assert len(seen) < len(ids)
    assert end.output_token_count == len(seen)
    assert end.reason == "stop"
