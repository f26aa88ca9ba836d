"""Loading: every tensor lands at one place of its own; anything odd is refused by name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import pytest
import torch
from safetensors.torch import save_file

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.decoder import Decoder, Layer, Projection
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.weights import (
    destinations,
    empty_decoder,
    load_decoder,
    stored_types,
)
from llm_service.settings import Quantization
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


@pytest.mark.parametrize(
    ("in_file", "device", "computing", "quantization", "stored"),
    [
        (torch.bfloat16, "cpu", torch.float32, "none", torch.bfloat16),
        (torch.bfloat16, "cpu", torch.bfloat16, "none", torch.bfloat16),
        (torch.bfloat16, "cpu", torch.float16, "none", torch.float16),
        (torch.float16, "cpu", torch.float32, "none", torch.float32),
        (torch.float32, "cpu", torch.float32, "none", torch.float32),
        (torch.float32, "cpu", torch.bfloat16, "none", torch.bfloat16),
        (torch.bfloat16, "cuda", torch.float32, "none", torch.float32),
        (torch.bfloat16, "cpu", torch.float32, "int8", torch.int8),
    ],
)
def test_matrices_are_kept_as_they_are_stored_where_that_changes_nothing(
    tmp_path: Path,
    in_file: torch.dtype,
    device: str,
    computing: torch.dtype,
    quantization: Quantization,
    stored: torch.dtype,
) -> None:
    tensors = {name: tensor.to(in_file) for name, tensor in random_tensors(QWEN2).items()}
    write_checkpoint(tmp_path, QWEN2, tensors)
    kept = stored_types(tmp_path, torch.device(device), computing, quantization)
    assert kept.matrices == stored
    assert kept.embedding == (stored if quantization == "none" else torch.bfloat16)
    config = LLMConfig.from_checkpoint(tmp_path)
    decoder = load_decoder(tmp_path, config, torch.device("cpu"), computing, kept)
    assert {p.weight.dtype for p in decoder.modules() if isinstance(p, Projection)} == {stored}
    assert decoder.dtype == decoder.embed(torch.tensor([1])).dtype == computing


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/maps")
def test_a_tensor_that_is_a_whole_parameter_stays_in_its_file(tmp_path: Path) -> None:
    tensors = {name: tensor.bfloat16() for name, tensor in random_tensors(QWEN2).items()}
    decoder = _load(tmp_path, QWEN2, tensors, torch.bfloat16)
    layer = cast(Layer, decoder.layers[0])
    down, gate_up = layer.feed_forward.down.weight, layer.feed_forward.gate_up.weight
    for weight in (decoder.embedding.weight, decoder.head.weight, down):
        assert _mapped_file(weight).startswith(str(tmp_path))
    assert not _mapped_file(gate_up).startswith(str(tmp_path))
    assert torch.equal(down, tensors["language_model.model.layers.0.mlp.down_proj.weight"])


def _mapped_file(tensor: torch.Tensor) -> str:
    """Returns the file in which a tensor lies; "" for memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        addresses, *_, path = line.split(maxsplit=5) if line.count("/") else (line.split()[0], "")
        begin, end = (int(address, 16) for address in addresses.split("-"))
        if begin <= tensor.data_ptr() < end:
            return path
    raise ValueError("no such address")
