"""The language model's half of an InternVL2.5 checkpoint folder: its config, and its tensor files.

Only `config.json`, `generation_config.json` and safetensors files are read; never a pickle, and
never the Python code that a checkpoint may carry.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llm_service.decoders import FAMILIES
from llm_service.decoders.family import DecoderFamily
from protos.checkpoint.section import CheckpointError, Section
from protos.checkpoint.tile import Tile

TEMPLATE = "internvl2_5"


@dataclass(frozen=True)
class LLMConfig:
    """What config.json says about the language model; never a setting.

    Attributes:
        architecture: the decoder family's name.
        vocabulary_size: rows of the embedding and of the head; a virtual token's id starts here.
        head_dim: width of one attention head.
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

        `rope_scaling` is ignored on purpose: the kind in use, dynamic NTK, changes the angles only
        beyond max_position_embeddings, and the context is capped there. Applying it below, as some
        servers do, shifts every logit.

        Raises:
            CheckpointError: a file or key is missing, or has a value that we do not serve.
        """
        model = _model_section(checkpoint / "config.json")
        llm = model.section("llm_config")
        architecture = _architecture(llm)
        for key, value in FAMILIES[architecture].options.items():
            if llm.read(key, type(value), value) != value:
                raise llm.error(key, f"is {llm.values[key]!r}; supported: {value!r}")
        hidden_size, head_count = llm.size("hidden_size"), llm.size("num_attention_heads")
        config = cls(
            architecture=architecture,
            hidden_size=hidden_size,
            intermediate_size=llm.size("intermediate_size"),
            layer_count=llm.size("num_hidden_layers"),
            head_count=head_count,
            kv_head_count=llm.size("num_key_value_heads"),
            head_dim=hidden_size // head_count,
            vocabulary_size=llm.size("vocab_size"),
            max_position_embeddings=llm.size("max_position_embeddings"),
            rope_theta=llm.positive("rope_theta"),
            rms_norm_eps=llm.positive("rms_norm_eps"),
            end_token_ids=_end_token_ids(checkpoint, llm),
            rows_per_tile=Tile.of_model(model).token_count,
        )
        _check_heads(config)
        return config


def weight_files(checkpoint: Path) -> list[Path]:
    """Returns the checkpoint's safetensors files: one, or those that its index names.

    Raises:
        CheckpointError: there is neither model.safetensors nor its index, the index is damaged, or
            a file is missing.
    """
    single, index = checkpoint / "model.safetensors", checkpoint / "model.safetensors.index.json"
    if index.is_file():
        files = [checkpoint / name for name in sorted(_shard_names(index))]
    else:
        files = [single]
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"the checkpoint has no file {file.name} ({checkpoint})")
    return files


def created_unix_seconds(checkpoint: Path) -> int:
    """Returns when the newest weight file was written, in seconds since 1970.

    A folder without any, which an engine built before may be served from, is as old as its config.
    """
    files = list(checkpoint.glob("*.safetensors")) or [checkpoint / "config.json"]
    return int(max(file.stat().st_mtime for file in files))


def _shard_names(index: Path) -> set[str]:
    weight_map = Section.of_file(index).section("weight_map")
    names = {weight_map.read(name, str) for name in weight_map.values}
    if not names:
        raise CheckpointError(f"{index} has no weight_map from the tensors' names to files")
    return names


def _model_section(path: Path) -> Section:
    document = Section.of_file(path)
    document.one_of("template", (TEMPLATE,), default=TEMPLATE)
    return document


def _architecture(llm: Section) -> str:
    listed = llm.read("architectures", list)
    architecture = str(next(iter(listed), None))
    if architecture not in FAMILIES:
        known = " and ".join(FAMILIES)
        raise llm.error("architectures", f"names {architecture}; only {known} are served")
    return architecture


def _check_heads(config: LLMConfig) -> None:
    heads, kv_heads = config.head_count, config.kv_head_count
    if heads * config.head_dim != config.hidden_size or heads % kv_heads or config.head_dim % 2:
        raise CheckpointError(
            f"llm_config: {heads} attention heads and {kv_heads} key/value heads do not divide "
            f"hidden_size {config.hidden_size} into heads of an even width"
        )


def _end_token_ids(checkpoint: Path, llm: Section) -> frozenset[int]:
    generation = checkpoint / "generation_config.json"
    sections = [llm, Section.of_file(generation)] if generation.is_file() else [llm]
    token_ids: list[int] = []
    for section in sections:
        listed = section.values.get("eos_token_id")
        found = listed if isinstance(listed, list) else [] if listed is None else [listed]
        if not all(isinstance(token_id, int) for token_id in found):
            raise section.error("eos_token_id", f"is {listed!r}; it must be token ids")
        token_ids += found
    return frozenset(token_ids)
