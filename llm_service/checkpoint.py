"""The language model's half of an InternVL checkpoint folder: its config, and its tensor files.

Only `config.json`, `generation_config.json` and safetensors files are read; never a pickle, and
never the Python code that a checkpoint may carry.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from llm_service.decoders import FAMILIES
from llm_service.decoders.family import ROOT, DecoderFamily
from llm_service.rotary import rotary_base
from protos.checkpoint.folder import checked_config
from protos.checkpoint.location import CONFIG_FILE
from protos.checkpoint.section import CheckpointError, Section, quoted
from protos.checkpoint.tensor_names import require_names
from protos.checkpoint.tile import Tile

# Eight times the widest released.
LARGEST_HEAD_DIM = 1024


@dataclass(frozen=True)
class LLMConfig:
    """What config.json says about the language model; never a setting.

    Attributes:
        architecture: the decoder family's name.
        vocabulary_size: rows of the embedding and of the head; a virtual token's id starts here.
        head_dim: width of one attention head; all together need not be as wide as hidden_size.
        max_position_embeddings: most tokens of prompt and output together.
        rope_theta: base of the rotary embedding's wavelengths.
        end_token_ids: the tokens that end an answer, of config.json and generation_config.json.
        rows_per_tile: rows of an image's embedding that a tile has, which are as many tokens.
    """

    architecture: str
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_dim: int
    vocabulary_size: int
    max_position_embeddings: int
    rope_theta: float
    rms_norm_eps: float
    end_token_ids: frozenset[int]
    rows_per_tile: int

    @property
    def family(self) -> DecoderFamily:
        """How the checkpoint names and orders the decoder's tensors."""
        return FAMILIES[self.architecture]

    def kv_values_per_token(self, tp: int = 1, pp: int = 1) -> int:
        """Returns how many numbers the KV cache holds for a token: keys and values of all layers.

        On each of tp x pp GPUs: tp of them divide the heads between them, of which each has one at
        least, and pp groups the layers, which pp divides.
        """
        return self.layer_count // pp * 2 * max(1, self.kv_head_count // tp) * self.head_dim

    @classmethod
    def from_checkpoint(cls, checkpoint: Path) -> LLMConfig:
        """Reads `llm_config` of config.json.

        An absent key, which a short config.json leaves out, has its family's default.
        `tie_word_embeddings` is not read: the head that is stored is the one that counts.

        Raises:
            CheckpointError: a file or key is missing, or has a value that we do not serve.
        """
        model = checked_config(checkpoint)
        llm = model.section("llm_config")
        family = FAMILIES[_architecture(llm)]
        _check_options(llm, family)
        default = family.defaults.get
        return cls(
            architecture=family.architecture,
            hidden_size=llm.size("hidden_size"),
            intermediate_size=llm.size("intermediate_size"),
            layer_count=llm.size("num_hidden_layers"),
            head_count=llm.size("num_attention_heads"),
            kv_head_count=_kv_head_count(llm),
            head_dim=_head_dim(llm, default("head_dim")),
            vocabulary_size=llm.size("vocab_size", default=default("vocab_size")),
            max_position_embeddings=llm.size(
                "max_position_embeddings", default=default("max_position_embeddings")
            ),
            rope_theta=rotary_base(llm, default=family.defaults["rope_theta"]),
            rms_norm_eps=llm.positive("rms_norm_eps", default=family.defaults["rms_norm_eps"]),
            end_token_ids=_end_token_ids(checkpoint, llm),
            rows_per_tile=Tile.of_model(model).token_count,
        )


def require_tensors(checkpoint: Path, stored: Collection[str], described: Collection[str]) -> None:
    """Refuses a checkpoint whose language model lacks a tensor or has one too many.

    Raises:
        CheckpointError: it names the first of them, and how many there are.
    """
    heads = {f"{ROOT}{family.head}.weight" for family in FAMILIES.values()}
    for head in heads.intersection(described).difference(stored):
        raise CheckpointError(
            f"{checkpoint}: the head is not stored: the checkpoint lacks {head}, which no InternVL"
            " ties to the embedding, whatever tie_word_embeddings says; save the model again with"
            " its head"
        )
    require_names(checkpoint, stored, described)


def created_unix_seconds(checkpoint: Path) -> int:
    """Returns when the newest weight file was written, in seconds since 1970.

    A folder without any, which an engine built before may be served from, is as old as its config.
    """
    weights = [file for file in checkpoint.glob("*.safetensors") if file.is_file()]
    files = weights or [checkpoint / CONFIG_FILE]
    return int(max(file.stat().st_mtime for file in files))


def _architecture(llm: Section) -> str:
    listed = llm.read("architectures", list)
    architecture = next(iter(listed), None)
    if not isinstance(architecture, str) or architecture not in FAMILIES:
        complaint = f"names {quoted(architecture)}; served: {', '.join(FAMILIES)}"
        raise llm.error("architectures", complaint)
    return architecture


def _check_options(llm: Section, family: DecoderFamily) -> None:
    for key, value in family.options.items():
        found = llm.read(key, type(value), family.defaults.get(key, value))
        if found != value:
            is_told = "is" if llm.has(key) else "is absent, which stands for"
            raise llm.error(key, f"{is_told} {quoted(found)}; supported: {value!r}")
    for layer_type in llm.read("layer_types", list, []):
        if layer_type != "full_attention":
            raise llm.error("layer_types", f"has {quoted(layer_type)}; supported: 'full_attention'")


def _kv_head_count(llm: Section) -> int:
    heads, kv_heads = llm.size("num_attention_heads"), llm.size("num_key_value_heads")
    if heads % kv_heads:
        raise llm.error("num_key_value_heads", f"is {kv_heads}; it must divide {heads} heads")
    return kv_heads


def _head_dim(llm: Section, default: int | None) -> int:
    """Returns `head_dim`, or the family's default, or each head's share of hidden_size."""
    hidden_size, heads = llm.size("hidden_size"), llm.size("num_attention_heads")
    if llm.has("head_dim") or default is not None:
        head_dim = llm.size("head_dim", LARGEST_HEAD_DIM, default)
    elif hidden_size % heads:
        raise llm.error(
            "num_attention_heads", f"is {heads}; it must divide hidden_size {hidden_size}"
        )
    else:
        head_dim = hidden_size // heads
    if head_dim % 2:
        raise llm.error("head_dim", f"is {head_dim}; it must be even")
    return head_dim


def _end_token_ids(checkpoint: Path, llm: Section) -> frozenset[int]:
    generation = checkpoint / "generation_config.json"
    sections = [llm, Section.of_file(generation)] if generation.is_file() else [llm]
    token_ids: list[int] = []
    for section in sections:
        listed = section.values.get("eos_token_id")
        found = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not all(type(token_id) is int and token_id >= 0 for token_id in found):
            raise section.error("eos_token_id", f"is {quoted(listed)}; it must be token ids")
        token_ids += found
    return frozenset(token_ids)
