"""A made-up third family: one module, orchid.py, and one line in the table of families.

Its checkpoints are made here from those of the families that we have, renamed and reordered by
hand: whoever reads one must find the same model.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.decoders import FAMILIES
from llm_service.decoders.family import HeadOrder
from llm_service.engines.tensorrt_llm.build.config_file import config_document
from llm_service.engines.tensorrt_llm.build.conversion import convert
from llm_service.engines.tensorrt_llm.build.target import Target
from llm_service.engines.torch.weights import load_decoder
from protos.checkpoint.section import CheckpointError
from tests.unit.llm_service.decoders import orchid
from tests.unit.llm_service.decoders.orchid import ORCHID
from tests.unit.llm_service.engines.torch.tiny import (
    INTERNLM2,
    QWEN2,
    Config,
    random_tensors,
    write_checkpoint,
    write_config,
)

Tensors = dict[str, torch.Tensor]

ROOT = Path(__file__).parents[4]
ARCHITECTURE: Config = {"architectures": ["OrchidForCausalLM"]}

# Without biases, and its one tensor goes by group.
BARE_ORCHID = replace(
    ORCHID,
    qkv={"mixer.kqv": HeadOrder(("key", "query", "value"), by_group=True)},
    has_qkv_bias=False,
)
ORCHID_NAMES = {
    "model.layers.": "model.blocks.",
    "model.norm": "model.last_norm",
    "model.embed_tokens": "model.words",
    "model.tok_embeddings": "model.words",
    "lm_head": "answer",
    "language_model.output": "language_model.answer",
    "input_layernorm": "norm1",
    "attention_norm": "norm1",
    "self_attn.o_proj": "mixer.out",
    "attention.wo": "mixer.out",
    "post_attention_layernorm": "norm2",
    "ffn_norm": "norm2",
    "mlp.gate_proj": "ffn.gate",
    "feed_forward.w1": "ffn.gate",
    "mlp.up_proj": "ffn.up",
    "feed_forward.w3": "ffn.up",
    "mlp.down_proj": "ffn.down",
    "feed_forward.w2": "ffn.down",
}


def _from_qwen2(tensors: Tensors) -> Tensors:
    """Returns ORCHID's tensors of the same model."""
    changed = dict(tensors)
    for layer in range(QWEN2["num_hidden_layers"]):
        attention = f"language_model.model.layers.{layer}.self_attn."
        for kind in ("weight", "bias"):
            parts = [changed.pop(f"{attention}{letter}_proj.{kind}") for letter in "vkq"]
            changed[f"{attention.replace('self_attn', 'mixer')}vkq.{kind}"] = torch.cat(parts)
    return _renamed(changed)


def _from_internlm2(tensors: Tensors) -> Tensors:
    """Returns BARE_ORCHID's tensors of the same model: 2 groups of 4 queries, a key, a value."""
    changed = {}
    for name, tensor in tensors.items():
        if "wqkv" in name:
            query, key, value = torch.split(tensor.view(2, 6, 4, -1), [4, 1, 1], dim=1)
            tensor = torch.cat([key, query, value], dim=1).flatten(0, 2)
        changed[name.replace("attention.wqkv", "mixer.kqv")] = tensor
    return _renamed(changed)


def _renamed(tensors: Tensors) -> Tensors:
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in ORCHID_NAMES.items():
            name = name.replace(old, new)
        renamed[name] = tensor
    return renamed


@dataclass(frozen=True)
class Twins:
    """Two checkpoints of one model: of a family that we have, and of the new one."""

    known: Path
    new: Path


@pytest.fixture(params=["with-bias", "bare"])
def twins(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Twins:
    known: Config
    family, known, rearranged = {
        "with-bias": (ORCHID, QWEN2, _from_qwen2),
        "bare": (BARE_ORCHID, INTERNLM2, _from_internlm2),
    }[request.param]
    monkeypatch.setitem(FAMILIES, family.architecture, family)  # the one line
    tensors = random_tensors(known)
    return Twins(
        write_checkpoint(tmp_path / "known", known, tensors),
        write_checkpoint(tmp_path / "new", known | ARCHITECTURE, rearranged(tensors)),
    )


def test_unknown_it_is_refused(tmp_path: Path) -> None:
    folder = write_config(tmp_path, QWEN2 | ARCHITECTURE)
    with pytest.raises(
        CheckpointError, match=r"names 'OrchidForCausalLM'; served: InternLM2ForCausalLM"
    ):
        LLMConfig.from_checkpoint(folder)


def test_its_config_is_accepted(twins: Twins) -> None:
    config = LLMConfig.from_checkpoint(twins.new)
    assert config == replace(
        LLMConfig.from_checkpoint(twins.known), architecture="OrchidForCausalLM"
    )


def test_its_own_option_is_served_with_one_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FAMILIES, ORCHID.architecture, ORCHID)
    folder = write_config(tmp_path, QWEN2 | ARCHITECTURE | {"parallel_attention": True})
    with pytest.raises(CheckpointError, match=r"parallel_attention is True; supported: False"):
        LLMConfig.from_checkpoint(folder)


def test_the_torch_engine_loads_the_same_decoder(twins: Twins) -> None:
    known, new = (
        load_decoder(
            folder, LLMConfig.from_checkpoint(folder), torch.device("cpu"), torch.float32
        ).state_dict()
        for folder in (twins.known, twins.new)
    )
    assert known.keys() == new.keys()
    for name, tensor in known.items():
        # The head's last rows are no token's, and are never set.
        row_count = QWEN2["vocab_size"] if name == "head.weight" else len(tensor)
        assert torch.equal(tensor[:row_count], new[name][:row_count])


@pytest.mark.parametrize("tp", [1, 2, 4])  # 4 is more than there are key/value heads
def test_a_conversion_writes_the_same_tensors(twins: Twins, tp: int) -> None:
    target = Target(tp=tp, pp=2)
    for folder in (twins.known, twins.new):
        convert(folder, folder / "converted", target, io.StringIO())
    for rank in range(tp * 2):
        known, new = (
            (folder / "converted" / f"rank{rank}.safetensors").read_bytes()
            for folder in (twins.known, twins.new)
        )
        assert known == new


def test_tensorrt_llm_is_told_its_own_name_for_it(twins: Twins) -> None:
    config = LLMConfig.from_checkpoint(twins.new)
    document = config_document(config, Target())
    assert document["architecture"] == "LlamaForCausalLM"
    assert document["attn_bias"] is config.family.has_qkv_bias
    internlm2 = config_document(replace(config, architecture="InternLM2ForCausalLM"), Target())
    assert document.keys() == internlm2.keys() - {"has_partial_lora_mask"}


def test_the_page_shows_this_family() -> None:
    page = (ROOT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"^```python\n(.*?)^```", page, re.M | re.S)
    assert shown == Path(orchid.__file__).read_text(encoding="utf-8")
