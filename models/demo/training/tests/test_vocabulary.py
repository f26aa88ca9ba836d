"""The demo model's tokenizer files: sizes, special ids, coverage of its world."""

import json

import tokenizers

from demo_training.lexicon import CHARACTERS, COLOUR_NAMES, CONCEPTS, PLACES, SHAPES
from demo_training.samples import KIND_SHARES, make_sample
from demo_training.vocabulary import (
    SPECIAL_TOKENS,
    SYSTEM_TEXT,
    TOKENIZER_FOLDER,
    VOCABULARY_SIZE,
    tokenizer_config,
)
from llm_service.templates import INTERNVL2_5
from llm_service.tokenizer import Tokenizer
from models.demo import DEMO_CHECKPOINT

TOKENIZER = Tokenizer.from_checkpoint(TOKENIZER_FOLDER)


def decoded(ids: list[int]) -> str:
    return b"".join(TOKENIZER.token_bytes(token_id) for token_id in ids).decode()


def test_the_vocabulary_has_its_size_and_the_special_tokens_last() -> None:
    ids = [TOKENIZER.special_id(name) for name in SPECIAL_TOKENS]
    assert ids == list(range(VOCABULARY_SIZE - len(SPECIAL_TOKENS), VOCABULARY_SIZE))
    assert TOKENIZER.bos_id is None
    assert TOKENIZER.token_bytes(VOCABULARY_SIZE) == b""


def test_texts_survive_the_round_trip() -> None:
    texts = {SYSTEM_TEXT, "Ünïcode 😀 日本語 никогда"}
    for kind in KIND_SHARES:
        for seed in range(20):
            for dialogue in make_sample(seed, kind=kind, canvas=224).dialogues:
                texts |= {text for turn in dialogue for text in (turn.question, turn.answer)}
    for text in texts:
        assert decoded(TOKENIZER.encode(text)) == text


def test_words_are_short_and_signs_are_spelled() -> None:
    for noun in (*CONCEPTS, *SHAPES):
        assert len(TOKENIZER.encode(f" {noun.en}")) <= 2
        assert len(TOKENIZER.encode(noun.zh)) == 1
    for words in (*COLOUR_NAMES, *PLACES):
        assert len(TOKENIZER.encode(words.zh)) == 1
    for character in CHARACTERS:
        assert len(TOKENIZER.encode(character)) == 1
    for text in ("TAXI", "HELLO", "39294", "KXQ7"):
        assert len(TOKENIZER.encode(text)) == len(text)


def test_answers_are_short() -> None:
    assert len(TOKENIZER.encode("左边有一只熊猫，右边有一个红色圆形。")) <= 12
    assert len(TOKENIZER.encode("There is a panda on the left and a red circle at the top.")) <= 16
    assert len(TOKENIZER.encode(SYSTEM_TEXT)) <= 8


def test_the_system_text_is_the_service_s_own() -> None:
    assert INTERNVL2_5.system_text == SYSTEM_TEXT


def test_the_files_beside_the_vocabulary_are_written_from_here() -> None:
    tokenizer = tokenizers.Tokenizer.from_file(str(TOKENIZER_FOLDER / "tokenizer.json"))
    for folder in (TOKENIZER_FOLDER, DEMO_CHECKPOINT):
        written = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        assert written == tokenizer_config(tokenizer)
