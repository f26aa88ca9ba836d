"""The demo checkpoint's chat template, which tools outside read: it makes the service's prompts."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import AutoTokenizer

from llm_service.templates import INTERNVL2_5
from llm_service.tokenizer import Tokenizer
from models.demo import DEMO_CHECKPOINT

PARTS = [{"type": "image"}, {"type": "text", "text": "What is "}, {"type": "text", "text": "it?"}]
USER = {"role": "user", "content": "Hello"}


@pytest.mark.parametrize(
    ("messages", "expected"),
    [
        (
            [USER],
            f"<|im_start|>system\n{INTERNVL2_5.system_text}<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n",
        ),
        (
            [
                {"role": "system", "content": " Be brief.\n"},
                USER,
                {"role": "assistant", "content": "Hi"},
                {"role": "user", "content": PARTS},
            ],
            "<|im_start|>system\n Be brief.\n<|im_end|>\n"
            "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi<|im_end|>\n"
            "<|im_start|>user\nWhat is it?<|im_end|>\n<|im_start|>assistant\n",
        ),
    ],
)
def test_template_is_internvls(messages: list[dict[str, Any]], expected: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == expected


def test_transformers_cuts_texts_as_the_service_does() -> None:
    text = "What animal is on the left? 左边是什么动物？"
    tokenizer = AutoTokenizer.from_pretrained(DEMO_CHECKPOINT)
    assert tokenizer.encode(text) == list(Tokenizer.from_checkpoint(DEMO_CHECKPOINT).encode(text))
