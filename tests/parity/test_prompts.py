"""Token ids of whole conversations, equal to the reference's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llm_service.conversation import Message, Role
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.templates import INTERNLM2_CHAT, INTERNVL2_5, Template, read_template
from llm_service.tokenizer import IMAGE_CONTEXT, Tokenizer
from tests.parity import golden
from tests.real_tokenizers import FAMILIES, real_tokenizer


@pytest.mark.parametrize("family", FAMILIES)
def test_ids_of_every_conversation_equal_the_reference(golden_dir: Path, family: str) -> None:
    document = golden.read_json(golden_dir / "prompts.json")
    tokenizer, template = real_tokenizer(family), INTERNVL2_5
    conversations = [entry for entry in document["conversations"] if family in entry]
    if not conversations:
        pytest.skip(f"the golden data has no prompts for {family}")
    for conversation in conversations:
        messages = [_message(message) for message in conversation["messages"]]
        rows = [tiles * document["tokens_per_tile"] for tiles in conversation["tiles"]]
        expected = golden.decode_run_lengths(conversation[family]["ids_rle"])
        assert _ids(tokenizer, template, messages, rows) == expected, conversation["name"]
        assert len(expected) == conversation[family]["num_tokens"], conversation["name"]


def test_ids_of_the_checkpoints_own_conversations(checkpoint_dir: Path) -> None:
    golden.need_tokenizer(checkpoint_dir)
    tokenizer = Tokenizer.from_checkpoint(checkpoint_dir)
    template = read_template(checkpoint_dir)
    for conversation in golden.read_json(checkpoint_dir / "golden.json")["conversations"]:
        messages = [
            Message(Role(role), (text, *[ImagePart()] * text.count("<image>")))
            for role, text in conversation["turns"]
        ]
        if conversation["system"] is not None:
            messages.insert(0, Message(Role.SYSTEM, (conversation["system"],)))
        rows = [256 * tiles for tiles in conversation["tiles"]]
        expected = golden.decode_run_lengths(conversation["input_ids_rle"])
        assert _ids(tokenizer, template, messages, rows) == expected, conversation["name"]


# What servers of InternVL2-8B and InternVL3-8B report in their published documents, for pictures
# of so many tiles: usage.prompt_tokens of the conversations below.
@pytest.mark.parametrize(
    ("family", "template", "name", "tiles", "expected"),
    [
        ("internlm2_5", INTERNLM2_CHAT, "one_image_zh", [13], 3383),
        ("internlm2_5", INTERNLM2_CHAT, "one_image_zh", [9], 2359),
        ("internlm2_5", INTERNLM2_CHAT, "two_images_zh", [13, 10], 5955),
        ("internlm2_5", INTERNLM2_CHAT, "six_frames_zh", [3] * 6, 4697),
        ("qwen2_5", INTERNVL2_5, "one_image_zh", [13], 3383),
        ("qwen2_5", INTERNVL2_5, "two_images_zh", [13, 10], 5955),
    ],
)
def test_published_counts(
    golden_dir: Path,
    family: str,
    template: Template,
    name: str,
    tiles: list[int],
    expected: int,
) -> None:
    document = golden.read_json(golden_dir / "prompts.json")
    found = [entry for entry in document["conversations"] if entry["name"] == name]
    if not found:
        pytest.skip(f"the golden data has no conversation {name}")
    messages = [_message(message) for message in found[0]["messages"]]
    rows = [256 * count for count in tiles]
    assert len(_ids(real_tokenizer(family), template, messages, rows)) == expected


def _message(message: dict[str, Any]) -> Message:
    content = message["content"]
    if isinstance(content, str):
        return Message(Role(message["role"]), (content,))
    parts = (part["text"] if part["type"] == "text" else ImagePart() for part in content)
    return Message(Role(message["role"]), tuple(parts))


def _ids(
    tokenizer: Tokenizer, template: Template, messages: list[Message], row_counts: list[int]
) -> list[int]:
    """Returns the prompt's ids with every virtual token as the context token of the reference."""
    vocabulary_size = 10**6  # any number beyond the tokenizer's ids
    context_id = tokenizer.special_id(IMAGE_CONTEXT)
    ids = chat_layout(tokenizer, template, messages).token_ids(row_counts, vocabulary_size)
    virtual = [token_id - vocabulary_size for token_id in ids if token_id >= vocabulary_size]
    assert virtual == list(range(sum(row_counts)))
    return [context_id if token_id >= vocabulary_size else token_id for token_id in ids]
