"""The options: groups of one engine's, and what is refused by name."""

from __future__ import annotations

import sys

import pytest

from llm_service.settings import Settings
from protos.process.settings import read_settings

FOLDER = ("--tensorrt-llm.engine-folder", "/engines/llm")


def read(monkeypatch: pytest.MonkeyPatch, *words: str) -> Settings:
    monkeypatch.setattr(sys, "argv", ["internvl-llm", "--checkpoint", "/model", *words])
    return read_settings(Settings)


def test_each_engine_has_its_group(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, "--torch.device", "cpu", "--torch.max-step-token-count", "7")
    assert (settings.torch.device, settings.torch.max_step_token_count) == ("cpu", 7)
    words = ("--engine", "tensorrt_llm", *FOLDER, "--no-tensorrt-llm.kv-cache-reuse")
    settings = read(monkeypatch, *words)
    assert str(settings.tensorrt_llm.engine_folder) == "/engines/llm"
    assert not settings.tensorrt_llm.kv_cache_reuse


def test_what_people_type_without_the_engines_name(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = read(monkeypatch, "--device", "cpu", "--dtype", "float16")
    assert (settings.torch.device, settings.torch.dtype) == ("cpu", "float16")


def test_groups_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INTERNVL_LLM_TORCH_THREAD_COUNT", "3")
    assert read(monkeypatch).torch.thread_count == 3
    monkeypatch.delenv("INTERNVL_LLM_TORCH_THREAD_COUNT")
    monkeypatch.setenv("INTERNVL_LLM_TENSORRT_LLM_ENGINE_FOLDER", "/engines/llm")
    settings = read(monkeypatch, "--engine", "tensorrt_llm")
    assert str(settings.tensorrt_llm.engine_folder) == "/engines/llm"


@pytest.mark.parametrize(
    ("words", "variable", "names"),
    [
        ((), "", ("model",)),
        (("--served-model-name", "a"), "b", ("a",)),
        (("--served-model-name", "a", "--served-model-name", "b/c"), "", ("a", "b/c")),
        (("--served-model-name", '["a", "b", "a"]'), "", ("a", "b")),
        ((), "internvl2.5", ("internvl2.5",)),
        ((), '["a", "b"]', ("a", "b")),
    ],
)
def test_a_model_has_a_name_and_others(
    monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], variable: str, names: tuple[str, ...]
) -> None:
    monkeypatch.setenv("INTERNVL_LLM_SERVED_MODEL_NAME", variable)
    assert read(monkeypatch, *words).model_names == names


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--engine", "tensorrt_llm"), "--tensorrt-llm.engine-folder: the engine tensorrt_llm"),
        (FOLDER, "--tensorrt-llm.engine-folder: an option of the engine tensorrt_llm"),
        (
            ("--engine", "tensorrt_llm", *FOLDER, "--torch.block-size", "8"),
            "--torch.block-size: an option of the engine torch",
        ),
        (
            ("--engine", "tensorrt_llm", *FOLDER, "--dtype", "float16"),
            "--dtype: an option of the engine torch",
        ),
        (
            ("--kv-cache-byte-count", "1000", "--kv-cache-fraction", "0.5"),
            "--kv-cache-byte-count, --kv-cache-fraction: the KV cache has one size",
        ),
        (("--served-model-name", "a" * 257), "--served-model-name: 'aaaa"),
        (("--served-model-name", '["a"'), '--served-model-name: ["a" is not a JSON list'),
        (("--served-model-name", '["a,b"]'), "--served-model-name: 'a,b' cannot be a model's"),
        (("--torch.thread-count", "0"), "--torch.thread-count: Input should be greater"),
        (("--max-running-sequence-count", "100000"), "--max-running-sequence-count: Input should"),
        (("--kv-cache-byte-count", str(10**20)), "--kv-cache-byte-count: Input should be less"),
    ],
)
def test_a_wrong_option_is_named(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    sentence: str,
) -> None:
    with pytest.raises(SystemExit) as caught:
        read(monkeypatch, *words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line
