"""`--check` of both services: what it says of a checkpoint, and that no weight is read for that."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import llm_service.__main__
import vision_service.__main__
from tests.conftest import SHIPPED_GOLDEN_DIR
from tests.random_checkpoint import write_tokenizer
from tests.released_models.facts import Release, releases
from tests.released_models.folder import Shapes, released_shapes, write_folder, write_hollow_file

PROGRAMS = {"llm": llm_service.__main__.main, "vision": vision_service.__main__.main}
Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Check:
    """Runs a service's --check; returns the exit status, and what stands on stdout and stderr."""

    def run(service: str, *words: str | Path) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["", "--check", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            PROGRAMS[service]()
        said = capsys.readouterr()
        code = ended.value.code
        # What Python does with a sentence: it goes to stderr, and the status is 1.
        return (
            (1, said.out, code) if isinstance(code, str) else (int(code or 0), said.out, said.err)
        )

    return run


def release_of(folder: str) -> Release:
    return next(release for release in releases() if folder in release.folders)


def facts_of(text: str) -> dict[str, str]:
    """Returns the values by their names."""
    rows = (line.split("  ", 1) for line in text.splitlines())
    return {name: value.strip() for name, value in rows}


def test_the_llm_service_says_what_a_checkpoint_is(check: Check) -> None:
    status, text, _ = check("llm", SHIPPED_GOLDEN_DIR / "tiny-internlm2")
    facts = facts_of(text)
    assert status == 0
    assert facts.pop("system text").startswith("你是书生·万象")
    assert facts == {
        "model": "tiny-internlm2",
        "decoder": "InternLM2ForCausalLM",
        "shape": "3 layers of 6 heads x 16 (2 for keys and values), hidden size 96",
        "parameters": "286,176, stored as F32",
        "context": "32,768 tokens of prompt and answer together",
        "template": "internvl2_5",
        "vocabulary": "383 rows, 383 in use",
        "first token": "<s> (1)",
        "end tokens": "</s> (2), <|im_end|> (372)",
        "typed tokens": "<quad> </quad> <ref> </ref> <box> </box>",
        "weights": "0.5 MiB in 16 bits (bfloat16, float16), 1.1 MiB in float32",
        "weights in fp8": "0.3 MiB",
        "KV cache": "384 bytes a token in 16 bits, 12.0 MiB for a whole context",
    }


def test_the_llm_service_says_what_a_host_cache_holds(check: Check) -> None:
    words = ("--torch.host-cache-byte-count", "3000000")
    status, text, _ = check("llm", SHIPPED_GOLDEN_DIR / "tiny-internlm2", *words)
    assert status == 0
    assert facts_of(text)["host cache"] == "2.9 MiB of host memory, 7,812 tokens in 16 bits"


def test_the_vision_service_says_what_a_checkpoint_is(check: Check) -> None:
    status, text, _ = check("vision", SHIPPED_GOLDEN_DIR / "tiny-qwen2")
    assert status == 0
    assert facts_of(text) == {
        "model": "tiny-qwen2",
        "tower": "3 layers of 4 heads x 16, hidden size 64, layer_norm",
        "projector": "to hidden size 64, the language model's",
        "parameters": "225,280, stored as F32",
        "tile": "448 x 448 pixels, 256 tokens",
        "picture": "1 to 12 tiles, and a thumbnail beside several",
        "weights": "0.4 MiB in 16 bits (bfloat16, float16), 0.8 MiB in float32",
        "one batch": "about 68.5 MiB in 16 bits, of 13 tiles",
    }


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_checkpoint_of_any_size_is_checked_by_its_files_heads(
    check: Check, tmp_path: Path, service: str
) -> None:
    """The data of these 157 GB are a hole; whoever read it would need minutes."""
    folder = write_folder(release_of("InternVL3-78B"), tmp_path / "InternVL3-78B")
    write_tokenizer(folder)
    status, text, _ = check(service, folder)
    assert status == 0
    assert {
        "llm": "135.4 GiB in 16 bits (bfloat16, float16), 270.8 GiB in float32",
        "vision": "10.6 GiB in 16 bits (bfloat16, float16), 21.3 GiB in float32",
    }[service] == facts_of(text)["weights"]


def lose(shapes: Shapes, name: str) -> None:
    del shapes[name]


def narrow(shapes: Shapes, name: str) -> None:
    shapes[name] = (shapes[name][0], 7)


FAULTS = [
    ("llm", "language_model.model.layers.3.mlp.up_proj.weight", lose, "lacks the tensor {name}"),
    ("vision", "mlp1.1.weight", lose, "lacks the tensor {name}"),
    (
        "llm",
        "language_model.lm_head.weight",
        narrow,
        "{name} is BF16 [151674, 7]; config.json asks for floats [151674, 896]",
    ),
    (
        "vision",
        "vision_model.encoder.layers.2.mlp.fc1.weight",
        narrow,
        "{name} is BF16 [4096, 7]; config.json asks for floats [4096, 1024]",
    ),
]


@pytest.mark.parametrize(("service", "name", "spoil", "sentence"), FAULTS)
def test_a_tensor_that_is_not_the_configs_is_named(
    check: Check,
    tmp_path: Path,
    service: str,
    name: str,
    spoil: Callable[[Shapes, str], None],
    sentence: str,
) -> None:
    release = release_of("InternVL3-1B")
    folder = write_folder(release, tmp_path)
    write_tokenizer(folder)
    shapes = released_shapes(release)
    spoil(shapes, name)
    write_hollow_file(folder / "model.safetensors", shapes)
    status, _, told = check(service, folder)
    assert (status, "\n" in told.strip()) == (1, False)
    assert sentence.format(name=name) in told


@pytest.mark.parametrize(
    ("service", "key"),
    [("llm", "llm_config"), ("vision", "vision_config")],
)
def test_a_number_of_layers_that_no_memory_holds_is_refused_at_once(
    check: Check, tmp_path: Path, service: str, key: str
) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(SHIPPED_GOLDEN_DIR / "tiny-qwen2", folder)
    config = json.loads((folder / "config.json").read_text())
    config[key]["num_hidden_layers"] = 1_000_000
    (folder / "config.json").write_text(json.dumps(config))
    status, _, told = check(service, folder)
    assert (status, "3 layers" in told) == (1, True)
    assert f"{key}.num_hidden_layers is 1000000" in told


@pytest.mark.parametrize("service", PROGRAMS)
@pytest.mark.parametrize("dtype", ["I16", "U16"])
def test_a_tensor_of_whole_numbers_is_named(
    check: Check, tmp_path: Path, service: str, dtype: str
) -> None:
    release = release_of("InternVL3-1B")
    folder = write_folder(release, tmp_path)
    write_tokenizer(folder)
    write_hollow_file(folder / "model.safetensors", released_shapes(release), dtype)
    status, _, told = check(service, folder)
    assert status == 1
    assert f" is {dtype} [" in told


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_kind_that_is_not_served_is_refused(check: Check, tmp_path: Path, service: str) -> None:
    folder = write_folder(release_of("InternVL2_5-8B-AWQ"), tmp_path / "InternVL2_5-8B-AWQ")
    status, _, told = check(service, folder)
    assert (status, "the original, InternVL2_5-8B" in told) == (1, True)


@pytest.mark.parametrize("service", PROGRAMS)
def test_a_folder_that_is_not_there_is_said_to_be_missing(
    check: Check, tmp_path: Path, service: str
) -> None:
    status, _, told = check(service, tmp_path / "model")
    assert (status, told) == (1, f"there is no folder {tmp_path / 'model'}")


def test_what_else_is_told_to_serve_does_not_matter(
    check: Check, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("INTERNVL_VISION_CHECKPOINT", "/nowhere")
    status, text, _ = check("vision", SHIPPED_GOLDEN_DIR / "tiny-qwen2", "--checkpoint", "/else")
    assert (status, facts_of(text)["model"]) == (0, "tiny-qwen2")


def test_a_template_can_be_named(check: Check, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    shutil.copytree(SHIPPED_GOLDEN_DIR / "tiny-internlm2", folder)
    config = json.loads((folder / "config.json").read_text())
    del config["template"]
    (folder / "config.json").write_text(json.dumps(config))
    status, _, told = check("llm", folder)
    assert (status, "--template" in told) == (1, True)
    status, text, _ = check("llm", folder, "--template", "internlm2-chat")
    assert (status, facts_of(text)["template"]) == (0, "internlm2-chat")


@pytest.mark.parametrize("service", PROGRAMS)
def test_the_help_tells_of_it(
    service: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["", "--help"])
    with pytest.raises(SystemExit):
        PROGRAMS[service]()
    assert "--check" in capsys.readouterr().out
