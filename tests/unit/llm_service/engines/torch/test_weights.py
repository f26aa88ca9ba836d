"""Loading: every tensor lands at one place of its own; anything odd is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.weights import destinations, empty_decoder, load_decoder
from protos.checkpoint.section import CheckpointError
from tests.unit.llm_service.engines.torch.tiny import (
    EVERY_FAMILY,
    QWEN2,
    QWEN3,
    Config,
    random_tensors,
    write_checkpoint,
)

HEAD = "language_model.lm_head.weight"
KEY_NORM = "language_model.model.layers.1.self_attn.k_norm.weight"


@EVERY_FAMILY
def test_destinations_cover_every_parameter_once(tmp_path: Path, llm: Config) -> None:
    write_checkpoint(tmp_path, llm, {"none": torch.zeros(1)})
    config = LLMConfig.from_checkpoint(tmp_path)
    decoder = empty_decoder(config, TorchKernels()).to_empty(device="cpu")
    for parameter in decoder.parameters():
        parameter.zero_()
    for destination in destinations(decoder).values():
        for view in destination.views:
            view.add_(1)
    for parameter in decoder.parameters():
        # The head has a few rows more, which nothing reads.
        used = (
            parameter[: config.vocabulary_size] if parameter is decoder.head.weight else parameter
        )
        assert (used == 1).all()


@EVERY_FAMILY
def test_loads_in_the_asked_dtype_and_ignores_other_towers(tmp_path: Path, llm: Config) -> None:
    tensors = {**random_tensors(llm), "vision_model.x": torch.zeros(1), "mlp1.y": torch.zeros(1)}
    decoder = _load(tmp_path, llm, tensors, torch.bfloat16)
    assert {parameter.dtype for parameter in decoder.parameters()} == {torch.bfloat16}
    name = HEAD if HEAD in tensors else "language_model.output.weight"
    assert torch.equal(decoder.head.weight[: llm["vocab_size"]], tensors[name].bfloat16())


def test_refuses_a_missing_tensor(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN3)
    del tensors[KEY_NORM]
    with pytest.raises(CheckpointError, match=f"lacks the tensor {KEY_NORM}"):
        _load(tmp_path, QWEN3, tensors)


@pytest.mark.parametrize("tie", [True, False])
def test_a_head_that_is_not_stored_is_not_made_of_the_embedding(tmp_path: Path, tie: bool) -> None:
    tensors = random_tensors(QWEN2)
    del tensors[HEAD]
    with pytest.raises(CheckpointError, match=f"head is not stored: the checkpoint lacks {HEAD}"):
        _load(tmp_path, {**QWEN2, "tie_word_embeddings": tie}, tensors)


def test_refuses_an_unexpected_tensor(tmp_path: Path) -> None:
    tensors = {**random_tensors(QWEN2), "language_model.model.extra": torch.zeros(1)}
    with pytest.raises(CheckpointError, match=r"unexpected tensor language_model\.model\.extra"):
        _load(tmp_path, QWEN2, tensors)


def test_refuses_another_shape(tmp_path: Path) -> None:
    tensors = {**random_tensors(QWEN2), HEAD: torch.zeros(32, 61)}
    with pytest.raises(CheckpointError, match=rf"{HEAD} is F32 \[32, 61\].*\[61, 32\]"):
        _load(tmp_path, QWEN2, tensors)


@pytest.mark.parametrize(("dtype", "name"), [(torch.int8, "I8"), (torch.float8_e4m3fn, "F8_E4M3")])
def test_refuses_quantised_tensors(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    """Those of 8 bits are floats to PyTorch, too."""
    tensors = {**random_tensors(QWEN2), HEAD: torch.zeros(61, 32).to(dtype)}
    told = rf"model\.safetensors: {HEAD} is {name} \[61, 32\];.* a quantised checkpoint"
    with pytest.raises(CheckpointError, match=told):
        _load(tmp_path, QWEN2, tensors)


def test_refuses_a_damaged_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, QWEN2, random_tensors(QWEN2))
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    config = LLMConfig.from_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_decoder(tmp_path, config, torch.device("cpu"), torch.float32)


def test_a_tensor_in_two_files_is_refused(tmp_path: Path) -> None:
    tensors = random_tensors(QWEN2)
    write_checkpoint(tmp_path, QWEN2, tensors)
    save_file({HEAD: tensors[HEAD]}, tmp_path / "zz.safetensors")
    index = '{"weight_map": {"a": "model.safetensors", "b": "zz.safetensors"}}'
    (tmp_path / "model.safetensors.index.json").write_text(index)
    config = LLMConfig.from_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=rf"{HEAD} is stored twice, in model\.safetensors"):
        load_decoder(tmp_path, config, torch.device("cpu"), torch.float32)


def _load(
    folder: Path,
    llm: Config,
    tensors: dict[str, torch.Tensor],
    dtype: torch.dtype = torch.float32,
) -> Decoder:
    write_checkpoint(folder, llm, tensors)
    return load_decoder(folder, LLMConfig.from_checkpoint(folder), torch.device("cpu"), dtype)
