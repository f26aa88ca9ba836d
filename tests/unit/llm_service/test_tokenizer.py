from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from llm_service.tokenizer import TEMPLATE_TOKENS, Tokenizer
from protos.checkpoint.section import CheckpointError
from tests.random_checkpoint import write_random_checkpoint
from tests.real_tokenizers import CONTROL_TOKENS, FAMILIES, FOLDER, real_tokenizer

TEXTS = [
    "Hello, world!",
    "  two leading spaces",
    "a\tb  c\n\n d",
    "这张图片展示了一只红熊猫。",
    "🐼👩‍👩‍👧 café naïve 한국어",
    "def f(x):\n    return  x**2  # “quotes” ①②③ ﬁ",
    "1234567890 3.14",
    "<s></s><unk>",
]


# The ids of the reference's tokenizers, which are what the models were trained with.
@pytest.mark.parametrize(
    ("family", "text", "expected"),
    [
        ("qwen2_5", "<ref>the bird</ref>", [151670, 1782, 11958, 151671]),
        ("qwen2_5", "<quad></quad><box></box>", [151668, 151669, 151672, 151673]),
        ("qwen2_5", " <tool_call>\n</tool_call>", [220, 151657, 198, 151658]),
        ("qwen2_5", "<ref", [27, 1097]),
        # Normalised first: the last of the tag and the stroke after it are one character.
        ("qwen2_5", "<ref>\u0338", [27, 1097, 58994, 107]),
        ("internlm2_5", "<quad></quad><box></box>", [92547, 92548, 92551, 92552]),
        ("internlm2_5", "<ref></ref>", [92549, 92550]),
    ],
)
def test_typed_tags_are_tokens(family: str, text: str, expected: list[int]) -> None:
    assert real_tokenizer(family).encode(text) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_text_between_tags_is_encoded_alone(family: str) -> None:
    """No merge crosses a tag, and a blank beside one stays."""
    tokenizer = real_tokenizer(family)
    first, last = tokenizer.special_id("<ref>"), tokenizer.special_id("</ref>")
    texts = (tokenizer.encode_plain(text) for text in ("a ", " the bird", "s, the  b"))
    before, inner, after = texts
    assert tokenizer.encode("a <ref> the bird</ref>s, the  b") == [
        *(*before, first),
        *(*inner, last),
        *after,
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_text_stay_text(family: str) -> None:
    tokenizer = real_tokenizer(family)
    document = json.loads((FOLDER / family / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in document["added_tokens"]}
    for content in ids:
        if content in CONTROL_TOKENS:
            assert tokenizer.encode(content) == tokenizer.encode_plain(content)
            assert ids[content] not in tokenizer.encode(content)
        else:
            assert tokenizer.encode(content) == [ids[content]]


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_text_has_no_added_token(family: str) -> None:
    tokenizer = real_tokenizer(family)
    document = json.loads((FOLDER / family / "tokenizer.json").read_text())
    contents = {token["content"]: token["id"] for token in document["added_tokens"]}
    ids = tokenizer.encode_plain("".join(contents))
    assert not set(ids) & set(contents.values())
    assert b"".join(map(tokenizer.token_bytes, ids)).decode() == "".join(contents)


# A SentencePiece vocabulary of single characters, and one piece that its user defined.
SMALL_PIECES = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
SMALL_PIECES += ["[NEW]", "▁", "a", "b", "[", "N", "E", "W", "]"]
SMALL_DOCUMENT = {"model": {"vocab": {piece: i for i, piece in enumerate(SMALL_PIECES)}}}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("text", TEXTS)
def test_ids_give_the_texts_bytes_back(family: str, text: str) -> None:
    tokenizer = real_tokenizer(family)
    # Qwen's tokenizer normalises to NFC; these texts are NFC already.
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode(text))).decode() == text


@pytest.mark.slow
def test_vocab_and_merges_equal_tokenizer_json(tmp_path: Path) -> None:
    document = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    merges = "\n".join(["#version: 0.2", *document["model"]["merges"]])
    (tmp_path / "vocab.json").write_text(json.dumps(document["model"]["vocab"]))
    (tmp_path / "merges.txt").write_text(merges + "\n")
    _copy_config("qwen2_5", tmp_path)
    from_parts = Tokenizer.from_checkpoint(tmp_path)
    whole = real_tokenizer("qwen2_5")
    assert [from_parts.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]
    assert from_parts.special_id("<img>") == 151665
    assert from_parts.bos_id is None


@pytest.mark.slow
def test_special_tokens_come_from_added_tokens_json_too(tmp_path: Path) -> None:
    """The base model's tokenizer.json, copied beside InternVL's own added_tokens.json."""
    document = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    base, own = document["added_tokens"][:-9], document["added_tokens"][-9:]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": base}))
    ids = {token["content"]: token["id"] for token in own}
    (tmp_path / "added_tokens.json").write_text(json.dumps(ids))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_bos_token": False}))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    assert tokenizer.special_id("<IMG_CONTEXT>") == 151667
    assert tokenizer.is_special(151667)


def bytes_of_qwen2() -> dict[str, Any]:
    """Returns its tokenizer.json without what merges make, which would take seconds to read."""
    document: dict[str, Any] = json.loads((FOLDER / "qwen2_5" / "tokenizer.json").read_text())
    vocabulary = document["model"]["vocab"].items()
    document["model"]["vocab"] = {token: number for token, number in vocabulary if number < 256}
    document["model"]["merges"] = []
    return document


def small_folder(folder: Path, *tokens: dict[str, Any], **config: Any) -> Path:
    """Writes a byte-level tokenizer with InternVL's tokens (256 to 267) and further ones (268 on).

    Beside them tokenizer_config.json, with what is to stand there.
    """
    write_random_checkpoint(folder)
    file = folder / "tokenizer.json"
    document = json.loads(file.read_text())
    further = [{"id": 268 + i, "special": False, **token} for i, token in enumerate(tokens)]
    decoder = {str(token["id"]): token for token in [*document["added_tokens"], *further]}
    file.write_text(json.dumps(document))
    facts = {"added_tokens_decoder": decoder, **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(facts))
    return folder


def test_the_longest_of_a_fine_tunes_tokens_is_taken(tmp_path: Path) -> None:
    names = ("<loc>", "<loc>1", "<loc>12", "oc>1")
    tokens = [{"content": content} for content in names]
    tokenizer = Tokenizer.from_checkpoint(small_folder(tmp_path, *tokens))
    text = "<loc><loc>1<loc>123<loc>2"
    assert tokenizer.encode(text) == [268, 269, 270, ord("3"), 268, ord("2")]


@pytest.mark.parametrize("special", [True, False])
def test_a_fine_tunes_token_may_be_special(tmp_path: Path, special: bool) -> None:
    folder = small_folder(tmp_path, {"content": "<loc>", "special": special})
    tokenizer = Tokenizer.from_checkpoint(folder)
    assert tokenizer.encode("a<loc>") == [ord("a"), 268]
    assert tokenizer.is_special(268) is special
    assert tokenizer.token_bytes(268) == b"<loc>"


def test_a_token_takes_the_blanks_that_its_flags_say(tmp_path: Path) -> None:
    left, right = {"content": "<l>", "lstrip": True}, {"content": "<r>", "rstrip": True}
    tokenizer = Tokenizer.from_checkpoint(small_folder(tmp_path, left, right))
    space = tokenizer.encode(" ")
    assert tokenizer.encode("a \n<l> b") == [ord("a"), 268, *space, ord("b")]
    assert tokenizer.encode("a <r> \nb") == [ord("a"), *space, 269, ord("b")]


@pytest.mark.parametrize(
    ("token", "sentence"),
    [
        ({"content": "<w>", "single_word": True}, "<w> has single_word"),
        (
            {"content": "<|im_end|>", "id": 258, "rstrip": True},
            "has lstrip or rstrip",
        ),
    ],
)
def test_flags_that_are_not_served_are_named(
    tmp_path: Path, token: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_checkpoint(small_folder(tmp_path, token))


def test_the_tokens_for_control_are_those_that_the_files_name(tmp_path: Path) -> None:
    tokens = [{"content": content} for content in ("<start>", "<stop>", "<fill>", "<loc>")]
    names = {"bos_token": {"content": "<start>"}, "eos_token": "<stop>"}
    folder = small_folder(tmp_path, *tokens, **names)
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": "<fill>"}))
    tokenizer = Tokenizer.from_checkpoint(folder)
    text = "<start><stop><fill>"
    assert tokenizer.encode(f"{text}<loc>") == [*text.encode(), 271]


def test_tokens_without_flags_are_special_if_a_file_lists_them(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, additional_special_tokens=["<loc>", {"content": "<ref>"}])
    (folder / "added_tokens.json").write_text(json.dumps({"<loc>": 268, "<think>": 269}))
    tokenizer = Tokenizer.from_checkpoint(folder)
    assert [*map(tokenizer.is_special, (268, 269))] == [True, False]
    assert tokenizer.encode("<think><loc>") == [269, 268]


# Qwen3's numbers: the one that is <IMG_CONTEXT> in InternVL2.5 is <think> here.
QWEN3_TOKENS = [
    *("<tool_response>", "</tool_response>", "<think>", "</think>"),
    *(
        "<img>",
        "</img>",
        "<IMG_CONTEXT>",
        "<quad>",
        "</quad>",
        "<ref>",
        "</ref>",
        "<box>",
        "</box>",
    ),
]


def test_tokens_of_qwen3_are_found_by_name(tmp_path: Path) -> None:
    document = bytes_of_qwen2()
    base = document["added_tokens"][:-9]
    own = [{"id": 151665 + i, "content": content} for i, content in enumerate(QWEN3_TOKENS)]
    tokens = [*base, *({"special": i > 3, **token} for i, token in enumerate(own))]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document | {"added_tokens": tokens}))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    assert tokenizer.special_id("<IMG_CONTEXT>") == 151671
    assert tokenizer.encode("<think>\n</think><ref>") == [151667, 198, 151668, 151674]
    assert 151671 not in tokenizer.encode("<IMG_CONTEXT>")
    assert [*map(tokenizer.is_special, (151667, 151671))] == [False, True]


LLAMA3_START = {
    "type": "Sequence",
    "processors": [
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True},
        {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
        },
    ],
}


@pytest.mark.parametrize(
    ("processor", "config", "expected"),
    [
        (None, {}, None),
        (None, {"add_bos_token": True, "bos_token": None}, None),
        (None, {"add_bos_token": True, "bos_token": "<|begin_of_text|>"}, 268),
        (None, {"add_bos_token": False, "bos_token": "<|begin_of_text|>"}, None),
        (
            None,
            {"add_bos_token": True, "bos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"},
            None,
        ),
        (LLAMA3_START, {"bos_token": "<|begin_of_text|>"}, 268),
        (LLAMA3_START, {"tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": True}, 268),
    ],
)
def test_the_beginning_token_is_the_one_that_the_class_adds(
    tmp_path: Path, processor: Any, config: dict[str, Any], expected: int | None
) -> None:
    folder = small_folder(tmp_path, {"content": "<|begin_of_text|>", "special": True}, **config)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(document | {"post_processor": processor}))
    assert Tokenizer.from_checkpoint(folder).bos_id == expected


@pytest.mark.parametrize("class_name", ["LlamaTokenizerFast", None])
def test_an_end_token_behind_every_prompt_is_refused(
    tmp_path: Path, class_name: str | None
) -> None:
    """The reference's tokenizers would add it where the answer begins."""
    folder = small_folder(tmp_path, add_eos_token=True, tokenizer_class=class_name)
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: add_eos_token is True"):
        Tokenizer.from_checkpoint(folder)


def test_qwen2s_class_adds_no_end_token(tmp_path: Path) -> None:
    folder = small_folder(tmp_path, add_eos_token=True, tokenizer_class="Qwen2Tokenizer")
    assert Tokenizer.from_checkpoint(folder).bos_id is None


@pytest.fixture(scope="module")
def sentencepiece_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """InternLM2's vocabulary as the SentencePiece model that the checkpoints carry."""
    folder = tmp_path_factory.mktemp("internlm2")
    document = json.loads((FOLDER / "internlm2_5" / "tokenizer.json").read_text())
    (folder / "tokenizer.model").write_bytes(_sentencepiece_model(document))
    _copy_config("internlm2_5", folder)
    return folder


@pytest.fixture(scope="module")
def from_model(sentencepiece_folder: Path) -> Tokenizer:
    """The tokenizer made of it."""
    return Tokenizer.from_checkpoint(sentencepiece_folder)


@pytest.mark.slow
def test_sentencepiece_model_equals_tokenizer_json(from_model: Tokenizer) -> None:
    whole = real_tokenizer("internlm2_5")
    assert [from_model.encode(text) for text in TEXTS] == [whole.encode(text) for text in TEXTS]
    assert from_model.bos_id == whole.bos_id == 1
    assert from_model.drops_first_space


def test_sentencepiece_model_equals_sentencepiece_itself(
    sentencepiece_folder: Path, from_model: Tokenizer
) -> None:
    reference = SentencePieceProcessor(model_file=str(sentencepiece_folder / "tokenizer.model"))
    for text in TEXTS:
        assert from_model.encode(text) == reference.encode(text)


def test_a_sentencepiece_model_that_would_end_prompts_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece_model(SMALL_DOCUMENT))
    added = {content: 300 + index for index, content in enumerate(TEMPLATE_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    (tmp_path / "tokenizer_config.json").write_text('{"add_eos_token": true}')
    with pytest.raises(CheckpointError, match=r"tokenizer_config\.json: add_eos_token is True"):
        Tokenizer.from_checkpoint(tmp_path)


def test_a_sentencepiece_model_names_its_tokens_itself(tmp_path: Path) -> None:
    """A folder from before added_tokens_decoder: names from the classes, ids from the model."""
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece_model(SMALL_DOCUMENT))
    added = {content: 300 + index for index, content in enumerate((*TEMPLATE_TOKENS, "<ref>"))}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    assert tokenizer.bos_id == 1
    assert tokenizer.encode("<ref>a") == [305, *tokenizer.encode_plain("a")]
    text = "<s></s><unk><|im_end|>"
    assert tokenizer.encode(text) == tokenizer.encode_plain(text)
    assert not {0, 1, 2, 301} & {*tokenizer.encode(text)}


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [({"dummy_prefix": True}, "makes '▁▁a▁▁，①ﬁ▁' of"), ({"one_blank": True}, "makes 'a▁，①ﬁ' of")],
)
def test_a_sentencepiece_model_that_changes_text_is_refused(
    tmp_path: Path, flags: dict[str, bool], sentence: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece_model(SMALL_DOCUMENT, **flags))
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_checkpoint(tmp_path)


def test_pieces_that_a_user_defined_are_tokens(tmp_path: Path) -> None:
    """SentencePiece takes them whole, though no merge makes them."""
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece_model(SMALL_DOCUMENT))
    reference = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    added = {content: 300 + index for index, content in enumerate(TEMPLATE_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    for text in ("a[NEW]b", "[NEW][NEW", " [NEW] "):
        assert tokenizer.encode(text) == reference.encode(text)
    assert tokenizer.encode("[NEW]") == [SMALL_DOCUMENT["model"]["vocab"]["[NEW]"]]


def test_a_piece_that_has_become_a_control_token_is_not_typed(tmp_path: Path) -> None:
    """As InternLM2's [UNUSED_TOKEN_146], which is the number of <|im_start|>."""
    (tmp_path / "tokenizer.model").write_bytes(_sentencepiece_model(SMALL_DOCUMENT))
    renamed = SMALL_DOCUMENT["model"]["vocab"]["[NEW]"]
    added = {content: 300 + index for index, content in enumerate(TEMPLATE_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps({**added, "<|im_start|>": renamed}))
    tokenizer = Tokenizer.from_checkpoint(tmp_path)
    assert renamed not in tokenizer.encode("[NEW]")
    assert tokenizer.token_bytes(renamed) == b"<|im_start|>"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:f8\n", "`git lfs pull` in"),
        (b"", "is no SentencePiece model"),
        (b"\x0a\xff", "is no SentencePiece model"),
        # A byte piece whose name is no UTF-8.
        (b"\x0a\x0d\x0a\x06<0x\xc36>\x15\0\0\0\0\x18\x06", "is no SentencePiece model"),
    ],
)
def test_a_file_that_is_no_sentencepiece_model_is_refused(
    tmp_path: Path, content: bytes, sentence: str
) -> None:
    (tmp_path / "tokenizer.model").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"tokenizer\.model.* {sentence}"):
        Tokenizer.from_checkpoint(tmp_path)


def test_qwen2s_files_of_another_class_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_text("")
    config = {"tokenizer_class": "GPT2Tokenizer"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="tokenizer_class is 'GPT2Tokenizer'; supported: Qw"):
        Tokenizer.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("merges", "sentence"),
    [("a b\nab\n", r"merges\.txt: 'ab' is no merge of two"), ("a b\n", r"vocab\.json: the tokeni")],
)
def test_merges_of_another_vocabulary_are_refused(
    tmp_path: Path, merges: str, sentence: str
) -> None:
    vocab = {"a": 0, "b": 1}
    (tmp_path / "vocab.json").write_text(json.dumps(vocab))
    (tmp_path / "merges.txt").write_text(merges)
    added = {content: 300 + index for index, content in enumerate(TEMPLATE_TOKENS)}
    (tmp_path / "added_tokens.json").write_text(json.dumps(added))
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_checkpoint(tmp_path)


def test_merges_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "vocab.json").write_text("{}")
    (tmp_path / "merges.txt").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match=r"merges\.txt: cannot be read"):
        Tokenizer.from_checkpoint(tmp_path)


def test_folder_without_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"expected tokenizer\.json, or vocab\.json"):
        Tokenizer.from_checkpoint(tmp_path)


def test_missing_special_token_is_named(tmp_path: Path) -> None:
    document = bytes_of_qwen2()
    document["added_tokens"] = document["added_tokens"][:-9]
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    with pytest.raises(CheckpointError, match="no token <img>"):
        Tokenizer.from_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"add_bos_token": True, "bos_token": "<s>"}, "json: bos_token is '<s>', which the tok"),
        ({"split_special_tokens": True}, "split_special_tokens is true"),
        ({"tokenizer_class": 5}, "tokenizer_class is 5, not of type str"),
        ({"added_tokens_decoder": {"x": {"content": "<x>"}}}, "added_tokens_decoder.x is no token"),
        ({"added_tokens_decoder": {"9": {"content": 9}}}, "added_tokens_decoder.9.content is 9"),
        (
            {"added_tokens_decoder": {"9": {"content": "\ud800"}}},
            r"9.content is '\\ud800'; it must",
        ),
        (
            {"added_tokens_decoder": {"9": {"content": "<x>", "special": "false"}}},
            "tokenizer_config.json: added_tokens_decoder.9.special is 'false', not of type bool",
        ),
        ({"pad_token": True}, "tokenizer_config.json: pad_token is True; it must be a token's"),
        ({"additional_special_tokens": [7]}, "additional_special_tokens is 7; it must be"),
    ],
)
def test_a_tokenizer_config_that_is_not_served_is_named(
    tmp_path: Path, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        Tokenizer.from_checkpoint(small_folder(tmp_path, **config))


def changed_folder(tmp_path: Path, changes: dict[str, Any]) -> Path:
    folder = small_folder(tmp_path)
    document = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**document, **changes}))
    return folder


def template_of(*tokens: str) -> dict[str, Any]:
    """Returns a post-processor that adds tokens; "A" stands for the text."""
    kinds = ("Sequence" if token == "A" else "SpecialToken" for token in tokens)
    single = [{kind: {"id": token}} for kind, token in zip(kinds, tokens, strict=True)]
    return {"type": "TemplateProcessing", "single": single}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"pre_tokenizer": {"type": "Cutter"}}, "the tokenizer cannot be read: "),
        ({"decoder": None}, "decoder is None, not of type dict"),
        ({"model": {"vocab": []}}, r"model\.vocab is \[\], not of type dict"),
        ({"added_tokens": [{"id": -1, "content": "<x>"}]}, r"added_tokens\.0\.id is -1; it must"),
        ({"added_tokens": ["<x>"]}, r"added_tokens\.0 is '<x>', not of type dict"),
    ],
)
def test_a_damaged_tokenizer_json_is_named(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(CheckpointError, match=rf"/tokenizer\.json: {sentence}"):
        Tokenizer.from_checkpoint(changed_folder(tmp_path, changes))


@pytest.mark.parametrize(
    "processor",
    [
        {"type": "RobertaProcessing"},
        template_of("<|im_start|>", "A", "<|im_end|>"),
        template_of("A", "<|im_end|>"),
        template_of("<|im_start|>", "<|im_end|>", "A"),
    ],
)
def test_what_adds_other_tokens_to_a_text_is_refused(
    tmp_path: Path, processor: dict[str, Any]
) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: post_processor adds other tokens"):
        Tokenizer.from_checkpoint(changed_folder(tmp_path, {"post_processor": processor}))


def test_a_dropout_does_not_count(tmp_path: Path) -> None:
    """The reference's tokenizers have none; with one, a text would have other ids each time."""
    document = json.loads((small_folder(tmp_path) / "tokenizer.json").read_text())
    plain = Tokenizer.from_checkpoint(tmp_path)
    folder = changed_folder(tmp_path, {"model": {**document["model"], "dropout": 0.9}})
    assert Tokenizer.from_checkpoint(folder).fingerprint == plain.fingerprint


def test_id_outside_the_vocabulary_has_no_bytes() -> None:
    assert real_tokenizer("qwen2_5").token_bytes(10**6) == b""


def _copy_config(family: str, folder: Path) -> None:
    source = FOLDER / family / "tokenizer_config.json"
    (folder / "tokenizer_config.json").write_text(source.read_text())


def _sentencepiece_model(
    document: dict[str, Any], *, dummy_prefix: bool = False, one_blank: bool = False
) -> bytes:
    """Writes sentencepiece's ModelProto by hand: its own generated code wants protobuf 7.

    Field numbers from sentencepiece_model.proto: pieces=1 (piece=1, score=2, type=3),
    trainer_spec=2 (model_type=3: BPE is 2, byte_fallback=35), normalizer_spec=3 (name=1,
    add_dummy_prefix=3, remove_extra_whitespaces=4).
    """
    pieces = sorted(document["model"]["vocab"].items(), key=lambda item: item[1])
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "[NEW]": 4}
    body = b"".join(
        _field(
            1,
            _field(1, piece.encode())
            + b"\x15"
            + struct.pack("<f", -float(rank))
            + b"\x18"
            + bytes([kinds.get(piece, 6 if piece.startswith("<0x") else 1)]),
        )
        for piece, rank in pieces
    )
    trainer = b"\x18\x02" + b"\x98\x02\x01"
    flags = bytes([0x18, dummy_prefix, 0x20, one_blank])
    normalizer = _field(1, b"identity") + flags
    return body + _field(2, trainer) + _field(3, normalizer)


def _field(number: int, data: bytes) -> bytes:
    length, size = b"", len(data)
    while size > 0x7F:
        length += bytes([size & 0x7F | 0x80])
        size >>= 7
    return bytes([number << 3 | 2]) + length + bytes([size]) + data
