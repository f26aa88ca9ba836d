"""The demo model's tokenizer: byte-level BPE, 2,048 ids, learned from a list of words.

From words, not from sentences: sentences would make one token of whole phrases ("there is a"),
and of a phrase the model learns nothing about its parts. Random texts on signs stay out, so that
they are spelled character by character. Made once, by `python -m demo_training.vocabulary`;
not remade when questions change, because a trained model is bound to its token ids.
"""

from __future__ import annotations

import functools
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from tokenizers.trainers import BpeTrainer

from demo_training.lexicon import (
    CATEGORIES,
    CHARACTERS,
    COLOUR_NAMES,
    CONCEPTS,
    ORDINALS,
    PLACES,
    SHAPES,
)
from demo_training.samples import make_sample

TOKENIZER_FOLDER: Final = Path(__file__).parent / "tokenizer"
VOCABULARY_SIZE: Final = 2048
RARE: Final = 16  # what occurs less often in the turns looked at is spelled from parts
# The order of InternVL2.5's tokenizers, after Qwen2's own three.
SPECIAL_TOKENS: Final = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<img>",
    "</img>",
    "<IMG_CONTEXT>",
    "<quad>",
    "</quad>",
    "<ref>",
    "</ref>",
    "<box>",
    "</box>",
)
# How Qwen2 cuts text into pieces before BPE (Qwen/Qwen2.5, tokenizer.json).
QWEN2_PATTERN: Final = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# OpenGVLab/InternVL, internvl_chat/internvl/conversation.py, template "internvl2_5".
SYSTEM_TEXT: Final = (
    "你是书生·万象，英文名是InternVL，"
    "是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)
# That template as Jinja, for what counts or lays out prompts with transformers. Of a content in
# parts it takes the texts: how many tokens an image has, only its file says.
CHAT_TEMPLATE: Final = (
    "{%- if messages[0]['role'] != 'system' -%}"
    "{{ '<|im_start|>system\n" + SYSTEM_TEXT + "<|im_end|>\n' }}"
    "{%- endif -%}"
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{%- if message['content'] is string -%}"
    "{{ message['content'] }}"
    "{%- else -%}"
    "{%- for part in message['content'] if part['type'] == 'text' -%}"
    "{{ part['text'] }}"
    "{%- endfor -%}"
    "{%- endif -%}"
    "{{ '<|im_end|>\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}"
    "{{ '<|im_start|>assistant\n' }}"
    "{%- endif -%}"
)
_CHINESE_WORDS: Final = (
    "什么 哪里 哪个 哪张图 哪一张 多少 没有 东西 图片 这张图 这幅图 两张图 第一张图 第二张图 位置"
    " 颜色 形状 数字 数量 文字 背景 类别 属于 哪一类 还是 一共 总共 数一数 描述 请用 一句话 一个词"
    " 回答 请说出 请告诉我 读出 请读一下 写着 看到 能看到 找到 请找出 比较 不同 区别 变化 一样"
    " 变成了 移到了 多了 少了 视频 画面 发生 发生了 移动 方向 出现 出现了 消失 变大 变小 更大 更小"
    " 第几帧 什么时候 开始 里有 中有 是不是 有没有 是什么 有什么 什么都没有 是的 认识 简单的 我只"
    " 上面 下面 里面 的是 你好 谢谢 再见 一个 一只 一辆 一把 一头 一台 一朵 一条 一架"
)
CHINESE_WORDS: Final = tuple(_CHINESE_WORDS.split())


def words() -> Iterator[tuple[str, int]]:
    """Yields each text to learn from, with its weight."""
    yield SYSTEM_TEXT, 300
    for role in ("system\n", "user\n", "assistant\n"):
        yield role, 300
    for character in _chinese_characters():
        yield character, 90
    for text in CHINESE_WORDS:
        yield text, 90
    for noun in (*CONCEPTS, *SHAPES, *CATEGORIES.values()):
        yield noun.zh, 90
    for pair in (*COLOUR_NAMES, *PLACES):
        yield pair.zh, 90
    for ordinal in ORDINALS:
        yield f"{ordinal}帧", 60
    yield from _english_words()


def _chinese_characters() -> list[str]:
    counts = Counter(character for text in _turn_texts() for character in text)
    frequent = {character for character, count in counts.items() if count >= RARE}
    return sorted(character for character in {*frequent, *CHARACTERS} if not character.isascii())


def _english_words() -> Iterator[tuple[str, int]]:
    """Yields the words of real turns, but not the letters of signs and of invented words."""
    texts = _turn_texts()
    counts = Counter(word for text in texts for word in re.findall(r" ?[A-Za-z]+", text))
    # A plural is its singular and an ending: what is learned of the one serves the other.
    plurals = {part for noun in (*CONCEPTS, *SHAPES) for part in noun.plural.split()}
    for word, count in sorted(counts.items()):
        bare = word.strip()
        is_sign = bare.isupper() and len(bare) > 1
        if count >= RARE and not is_sign and bare not in plurals:
            yield word, 50 + min(count, 100)
    for noun in (*CONCEPTS, *SHAPES):
        yield from ((f" {noun.en}", 80), (noun.en, 60))


@functools.cache
def _turn_texts() -> tuple[str, ...]:
    return tuple(
        text
        for seed in range(4000)
        for dialogue in make_sample(seed, canvas=224).dialogues
        for turn in dialogue
        for text in (turn.question, turn.answer)
    )


def train_tokenizer() -> Tokenizer:
    """Learns the merges, then adds the special tokens as the last ids."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    repeated = (text for text, weight in words() for _ in range(weight))
    tokenizer.train_from_iterator(repeated, trainer)
    tokenizer.add_special_tokens([AddedToken(name, normalized=False) for name in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Writes the four files of a Qwen2 tokenizer folder."""
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer.model.save(str(folder))
    text = json.dumps(tokenizer_config(tokenizer), ensure_ascii=False, indent=2) + "\n"
    (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")


def tokenizer_config(tokenizer: Tokenizer) -> dict[str, Any]:
    """Returns what transformers wants to know beside the vocabulary."""
    added = {
        str(tokenizer.token_to_id(name)): {
            "content": name,
            "lstrip": False,
            "normalized": False,
            "rstrip": False,
            "single_word": False,
            "special": True,
        }
        for name in SPECIAL_TOKENS
    }
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": added,
        "additional_special_tokens": list(SPECIAL_TOKENS[1:]),
        "bos_token": None,
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "errors": "replace",
        "model_max_length": 8192,
        "pad_token": "<|endoftext|>",
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


if __name__ == "__main__":
    write_tokenizer(train_tokenizer(), TOKENIZER_FOLDER)
