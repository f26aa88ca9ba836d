"""The comparison with llama.cpp: its file, its server's protocol, and the rows."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import dequantize
from safetensors.torch import load_file, save_file

from llm_service.settings import TorchOptions
from tests.benchmarks.gguf_file import write_gguf
from tests.benchmarks.llama_cpp import Load, Pair, Subject, add_rows
from tests.benchmarks.llama_stand_in import READ_MS, WRITE_MS
from tests.benchmarks.report import Report
from tests.random_checkpoint import (
    HEADS,
    KV_HEADS,
    TEXT_LAYERS,
    TEXT_WIDTH,
    write_random_checkpoint,
)

BF16, Q8_0 = GGMLQuantizationType.BF16, GGMLQuantizationType.Q8_0
# Of a checkpoint's tensor, and of the same in the file.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.k_proj.bias": "blk.1.attn_k.bias",
    "model.layers.0.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "model.layers.0.mlp.down_proj.weight": "blk.0.ffn_down.weight",
    "model.layers.0.input_layernorm.weight": "blk.0.attn_norm.weight",
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny checkpoint that always writes token 0: its head is nothing but zeros."""
    folder = tmp_path_factory.mktemp("zeros")
    write_random_checkpoint(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors["language_model.lm_head.weight"].zero_()
    save_file(tensors, file, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize(("element", "tolerance"), [(BF16, 0.0), (Q8_0, 0.01)])
def test_a_gguf_file_holds_the_checkpoint(
    tmp_path: Path, element: GGMLQuantizationType, tolerance: float
) -> None:
    write_random_checkpoint(tmp_path)
    write_gguf(tmp_path, tmp_path / "model.gguf", element)
    reader = GGUFReader(tmp_path / "model.gguf")
    stored = {tensor.name: tensor for tensor in reader.tensors}
    tensors = load_file(tmp_path / "model.safetensors")
    assert len(stored) == sum(name.startswith("language_model.") for name in tensors)
    for name, own_name in NAMES.items():
        expected = tensors[f"language_model.{name}"].float().numpy()
        found = stored[own_name]
        assert found.tensor_type == (GGMLQuantizationType.F32 if expected.ndim == 1 else element)
        values = dequantize(found.data, found.tensor_type).reshape(expected.shape)
        np.testing.assert_allclose(
            values, expected, rtol=0, atol=tolerance * np.abs(expected).max()
        )


def test_a_gguf_file_tells_sizes_and_tokens(checkpoint: Path, tmp_path: Path) -> None:
    write_gguf(checkpoint, tmp_path / "model.gguf", BF16)
    fields = GGUFReader(tmp_path / "model.gguf").fields
    expected = {
        "general.architecture": "qwen2",
        "qwen2.block_count": TEXT_LAYERS,
        "qwen2.embedding_length": TEXT_WIDTH,
        "qwen2.attention.head_count": HEADS,
        "qwen2.attention.head_count_kv": KV_HEADS,
        "qwen2.rope.freq_base": 1e6,
        "tokenizer.ggml.model": "gpt2",
    }
    assert {name: fields[name].contents() for name in expected} == expected
    tokens = fields["tokenizer.ggml.tokens"].contents()
    assert tokens[ord("!")] == "!"
    assert tokens[256:258] == ["<|endoftext|>", "<|im_start|>"]


LOADS = (
    Load(1, 5, 3, repeat_count=2, tells_reading=True),
    Load(3, 4, 2, repeat_count=1, warm_up_count=0),
)


def _stand_in(folder: Path, token_id: int) -> Path:
    """Writes the program that stands in for llama-server and notes what it is asked."""
    program = folder / "llama-server"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom pathlib import Path\n"
        f"sys.path[:] = {sys.path!r}\n"
        "from tests.benchmarks.llama_stand_in import main\n"
        f"main({token_id}, Path({str(folder / 'asked')!r}))\n"
    )
    program.chmod(0o755)
    return program


def _measure(checkpoint: Path, program: Path) -> Report:
    report = Report("title", "compared", ("figure", "against", "ours", "ratio", "reach"))
    pairs = [Pair("float32", TorchOptions(dtype="float32"), BF16)]
    add_rows(report, Subject("tiny", checkpoint, program, pairs, LOADS), lambda _: None)
    return report


def test_rows_beside_a_scripted_llama_server(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # for our threads, not for llama.cpp's
    report = _measure(checkpoint, _stand_in(tmp_path, token_id=0))
    name = "tiny, float32 beside llama.cpp's BF16"
    read, written, together = report.rows
    assert [row[0] for row in report.rows] == [
        f"{name}: ms to read 5 tokens",
        f"{name}: ms per output token after 5 tokens",
        f"{name}: tokens/s of 3 sequences",
    ]
    assert (read[1], written[1]) == (f"{READ_MS:.1f}", f"{WRITE_MS:.1f}")
    # The table rounds: of a model as tiny as this one, 0.0 ms may stand in it.
    assert all(min(report.seconds[row[0]]["engine"]) > 0 for row in report.rows)
    assert float(together[2]) > 0
    assert together[1] == f"{3 * 1e3 / WRITE_MS:.1f}"
    assert [len(report.seconds[row[0]]["engine"]) for row in report.rows] == [2, 2, 1]
    assert report.options == " --llama-server llama-server"
    document = report.document("command", 0.0)
    assert document["machine"]["llama.cpp"] == "version: 1 (stand-in)"
    assert document["machine"]["tiny-BF16.gguf"] == (
        "`llama-server --model tiny-BF16.gguf --threads 2 --threads-batch 2 --parallel 8"
        " --ctx-size 32768 --cache-ram 0`"
    )
    asked = (tmp_path / "asked").read_text().splitlines()
    _check_questions([json.loads(body) for body in asked])


def _check_questions(asked: list[dict[str, Any]]) -> None:
    assert [len(body["prompt"]) for body in asked] == [5] * 3 + [4] * 3
    assert [body["n_predict"] for body in asked] == [3] * 3 + [2] * 3
    assert len({tuple(body["prompt"]) for body in asked}) == len(asked)
    for body in asked:
        assert body["ignore_eos"] is body["return_tokens"] is True
        assert body["cache_prompt"] is False
        assert body["temperature"] == 0


def test_another_models_tokens_are_no_comparison(checkpoint: Path, tmp_path: Path) -> None:
    program = _stand_in(tmp_path, token_id=1)
    with pytest.raises(ValueError, match=r"0 of 5 answers begin alike"):
        _measure(checkpoint, program)


def test_a_server_that_does_not_start_says_why(checkpoint: Path, tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("#!/bin/sh\necho unknown argument >&2\nexit 1\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="does not start.*\n.*unknown argument"):
        _measure(checkpoint, program)
