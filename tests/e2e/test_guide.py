"""docs/serving.md: its commands, run with the toy model in the 8B's place."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from string import Template
from typing import Any

import pytest
import torch
from pydantic import BaseModel
from pydantic_settings import BaseSettings, CliApp

from gateway.local.ports import free_port
from gateway.local.settings import Settings as ServeSettings
from gateway.settings import Settings as GatewaySettings
from llm_service.doctor import DoctorSettings as LLMDoctorSettings
from llm_service.selftest import SelftestSettings as LLMSelftestSettings
from llm_service.settings import Settings as LLMSettings
from models.demo import DEMO_CHECKPOINT
from protos.process.option_sources import ConfigFile
from vision_service.checkpoint import VisionConfig
from vision_service.doctor import DoctorSettings as VisionDoctorSettings
from vision_service.engines.torch.intern_vit import VisionModel
from vision_service.selftest import SelftestSettings as VisionSelftestSettings
from vision_service.settings import Settings as VisionSettings

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
DATA = ROOT / "tests" / "data"
PROGRAMS: dict[str, type[BaseSettings]] = {
    "internvl-vision": VisionSettings,
    "internvl-llm": LLMSettings,
    "internvl-gateway": GatewaySettings,
    "vision_service.doctor": VisionDoctorSettings,
    "llm_service.doctor": LLMDoctorSettings,
    "vision_service.selftest": VisionSelftestSettings,
    "llm_service.selftest": LLMSelftestSettings,
}
PORTS = ("50051", "50052", "8000")
PICTURE_URL = "https://example.com"
BETWEEN = "--- next block ---"
# What the commands for several GPUs begin with, and what it says for another size.
CHOICES = re.findall(r"size=(\d+B) tp=(\d) cache=(\d+)", PAGE)


def blocks(section: int, language: str = "sh") -> list[str]:
    """Returns the code blocks of a numbered section."""
    text = re.split(r"^## ", PAGE, flags=re.M)[section]
    assert text.startswith(f"{section}. ")
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def environment(**variables: str) -> dict[str, str]:
    """The environment of a user who has installed us: our programs come first, and no GPU."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "CUDA_VISIBLE_DEVICES": ""} | variables


def run(script: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a script; whatever it has left in the background ends with it."""
    process = subprocess.Popen(
        ["bash", "-e", "-c", script],
        cwd=ROOT,
        env=environment(**variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=150)
    finally:
        with suppress(ProcessLookupError):  # everything has ended
            os.killpg(process.pid, signal.SIGKILL)
    return subprocess.CompletedProcess(script, process.returncode, out, err)


@pytest.fixture
def picture_url() -> Iterator[str]:
    """A web server with the toy model's pictures."""
    handler = partial(SimpleHTTPRequestHandler, directory=ROOT / "models" / "demo" / "pictures")
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A folder in the place of /models, with the toy model in the 8B's."""
    shutil.copytree(DEMO_CHECKPOINT, tmp_path / "models" / "InternVL2_5-8B")
    return tmp_path / "models"


@pytest.mark.parametrize("service", ["vision", pytest.param("llm", marks=pytest.mark.slow)])
def test_the_folder_is_checked(models: Path, service: str) -> None:
    completed = run(command(2, f"internvl-{service} --check").replace("/models/", f"{models}/"))
    assert completed.returncode == 0, completed.stderr
    assert re.match(r"model +InternVL2_5-8B\n", completed.stdout)


@pytest.mark.skipif(shutil.which("curl") is None, reason="the page asks with curl")
def test_serve_ask_and_stop(models: Path, picture_url: str) -> None:
    python = [f"python - <<'PYTHON'\n{block}PYTHON\n" for block in blocks(6, "python")]
    steps = [*blocks(3), *blocks(6), *python, *blocks(7)]
    script = f"\necho; echo '{BETWEEN}'\n".join(steps)
    for port in PORTS:
        script = re.sub(rf"\b{port}\b", str(free_port()), script)
    script = script.replace(" /models/", f" {models}/").replace(PICTURE_URL, picture_url)
    completed = run(
        script,
        INTERNVL_GATEWAY_ALLOWED_PRIVATE_HOSTS='["127.0.0.1"]',
        INTERNVL_VISION_TORCH_THREAD_COUNT="1",
        INTERNVL_LLM_TORCH_THREAD_COUNT="1",
    )
    assert completed.returncode == 0, completed.stderr
    *_, web, two, video, stopped = completed.stdout.split(BETWEEN)
    assert _prompt_tokens(web) > 256
    assert _prompt_tokens(two) > 2 * 256
    assert len(video.split()) > 1
    assert stopped.strip() == ""
    for event in ("serving", "draining"):
        assert completed.stderr.count(f'"event": "{event}"') == len(PORTS)


def _prompt_tokens(answer: str) -> int:
    completion = json.loads(answer)
    assert completion["model"] == "InternVL2_5-8B"
    assert completion["choices"][0]["message"]["content"]
    return int(completion["usage"]["prompt_tokens"])


def command(section: int, start: str, size: str = "8B", tp: str = "1", cache: str = "1") -> str:
    """Returns the command that starts so: of one size, or of several with the one's values."""
    lines = [line for block in blocks(section) for line in block.splitlines()]
    (found,) = [line for line in lines if line.startswith(start)]
    return Template(found).substitute(size=size, tp=tp, cache=cache)


@pytest.mark.slow
@pytest.mark.parametrize("library", ["vision_service", "llm_service"])
def test_doctors_miss_the_gpu(library: str) -> None:
    completed = run(command(4, f"python -m {library}.doctor"))
    assert completed.returncode == 1, completed.stderr
    assert "PyTorch finds no GPU" in completed.stdout


def test_convert(models: Path) -> None:
    convert = command(4, "internvl-llm-build convert")
    completed = run(convert.replace("/models/", f"{models}/"))
    assert completed.returncode == 0, completed.stderr
    written = {file.name for file in (models / "converted" / "8B").iterdir()}
    assert written == {"config.json", "rank0.safetensors"}


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("onnx") is None, reason="onnx is not installed")
def test_onnx_graph(models: Path) -> None:
    plan = command(4, "internvl-vision-build")
    completed = run(plan.replace("/models/", f"{models}/") + " --onnx-only")
    assert completed.returncode == 0, completed.stderr
    assert (models / "engines" / "8B" / "vision" / "vision.onnx").is_file()


def test_dry_run_prints_what_the_page_shows(tmp_path: Path) -> None:
    shutil.copytree(DATA / "configs" / "InternVL2_5-8B", tmp_path / "InternVL2_5-8B")
    dry_run = command(4, "internvl-llm-build engine")
    completed = run(dry_run.replace("/models/", f"{tmp_path}/"))
    assert completed.returncode == 0, completed.stderr
    (shown,) = blocks(4, "text")
    assert completed.stdout.replace(f"{tmp_path}/", "/models/") == shown


@pytest.mark.slow
@pytest.mark.parametrize(
    ("library", "options"),
    [("vision_service", "--tile-counts 1,2"), ("llm_service", "--answer-token-count 4")],
)
def test_selftests_of_the_torch_engines(models: Path, library: str, options: str) -> None:
    selftest = command(4, f"python -m {library}.selftest").partition(" --engine ")[0]
    completed = run(
        f"{selftest.replace('/models/', f'{models}/')} --torch.thread-count 1 {options}"
    )
    assert completed.returncode == 0, completed.stderr
    assert completed.stdout.endswith("\npassed\n")


def test_sizes_on_several_gpus_are_the_tables() -> None:
    rows = re.findall(r"^\| (\d+B) \| ([2-9]) \| .* \| (\d+) \| ", PAGE, re.M)
    assert sorted(CHOICES) == rows


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_convert_for_several_gpus(models: Path, choice: tuple[str, str, str]) -> None:
    size, tp, _ = choice
    (models / "InternVL2_5-8B").rename(models / f"InternVL2_5-{size}")
    convert = command(5, "internvl-llm-build convert", *choice)
    completed = run(convert.replace("/models/", f"{models}/"))
    assert completed.returncode == 0, completed.stderr
    assert len(list((models / "converted" / size).glob("rank*.safetensors"))) == int(tp)


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES, ids="-".join)
def test_dry_run_for_several_gpus(tmp_path: Path, choice: tuple[str, str, str]) -> None:
    size, tp, cache = choice
    shutil.copytree(DATA / "configs" / f"InternVL2_5-{size}", tmp_path / f"InternVL2_5-{size}")
    build = command(5, "internvl-llm-build engine", *choice)
    completed = run(build.replace("/models/", f"{tmp_path}/") + " --dry-run")
    assert completed.returncode == 0, completed.stderr
    assert f" on {tp} GPU(s), tp {tp} x pp 1\n" in completed.stdout
    assert f"\nserve with     --kv-cache-byte-count {cache}\n" in completed.stdout


def test_mpirun_starts_a_process_for_each_gpu_and_binds_none_to_a_core() -> None:
    started = [line for block in blocks(5) for line in block.splitlines() if "mpirun" in line]
    assert len(started) == 2
    assert all(line.startswith("mpirun --bind-to none -n $tp ") for line in started)


def serving_commands() -> list[list[str]]:
    """Returns the words of every command on the page that runs one of PROGRAMS."""
    sections = [block for section in (3, 4, 5) for block in blocks(section)]
    size, tp, cache = CHOICES[0]
    commands = [
        shlex.split(Template(line).safe_substitute(size=size, tp=tp, cache=cache))
        for block in sections
        for line in block.splitlines()
    ]
    return [
        words[position:]
        for words in commands
        for position, word in enumerate(words)
        if word in PROGRAMS
    ]


@pytest.mark.parametrize("words", serving_commands(), ids=" ".join)
def test_options_are_those_of_the_program(words: list[str]) -> None:
    program, *options = [word for word in words if word != "&"]
    settings = CliApp.run(PROGRAMS[program], cli_args=options)
    given = {name.removeprefix("--").replace("-", "_") for name in options[::2]}
    assert given <= _set_fields(settings)


def _set_fields(options: BaseModel) -> set[str]:
    """Returns the names of the options that were set, those of a group as `group.name`."""
    names = set(options.model_fields_set)
    for name in options.model_fields_set:
        if isinstance(group := getattr(options, name), BaseModel):
            names |= {f"{name}.{inner}" for inner in _set_fields(group)}
    return names


@pytest.mark.parametrize("words", serving_commands(), ids=" ".join)
def test_services_are_open_to_this_machine_alone_whatever_the_environment_says(
    words: list[str],
) -> None:
    assert words[0].startswith("internvl-") == ("--host 127.0.0.1 " in " ".join(words))


def test_no_command_is_overlooked() -> None:
    assert len(serving_commands()) == 15


def test_the_kv_caches_size_is_the_dry_runs() -> None:
    text = "".join([*blocks(4, "text"), *blocks(5)])
    sizes = re.findall(r"kv.cache.byte.count[ =](\d+)", text, re.I)
    assert len(sizes) == 3
    assert len(set(sizes)) == 1


def test_containers_are_told_by_variables_that_the_compose_file_has() -> None:
    compose = (ROOT / "docker" / "compose.yaml").read_text(encoding="utf-8")
    names = [word.partition("=")[0] for word in command(5, "export ").split()[1:]]
    assert names
    for name in names:
        assert re.search(rf"\$\{{{name}:-|^ +{name}:$", compose, re.M)


def test_download_command_is_one_that_hf_knows(tmp_path: Path) -> None:
    download = command(2, "hf download ")
    script = f"{download.replace('/models/', f'{tmp_path}/')} || echo status $?"
    # Offline it cannot succeed: 1. An unknown option would be 2.
    assert run(script, HF_HUB_OFFLINE="1").stdout.splitlines()[-1] == "status 1"


def test_table_is_the_dry_runs() -> None:
    rows = re.findall(r"^\| (\d+B) \| (.*) \|$", PAGE, re.M)
    assert [size for size, _ in rows] == ["1B", "2B", "4B", "8B", "26B", "38B", "78B"]
    for size, row in rows:
        report = (DATA / "trtllm" / f"engine-{size}.txt").read_text()
        found = re.search(
            r"on (\d) GPU.* tp \1 x pp 1\n(?s:.*)\nKV cache .* = (.*)\nweights +(.*)\n"
            r"(?s:.*)\neach GPU +about (.*);.*\nserve with +--kv-cache-byte-count (\d+)\n",
            report,
        )
        assert found is not None
        gpus, cache, weights, total, byte_count = found.groups()
        vision = f"{_vision_gib(size):.2f} GiB"
        shown = f"{gpus} | {weights} | {cache} | {byte_count} | {total} | {vision}"
        assert row == shown


def _vision_gib(size: str) -> float:
    config = VisionConfig.from_checkpoint(DATA / "configs" / f"InternVL2_5-{size}")
    with torch.device("meta"):
        model = VisionModel(config)
    return 2 * sum(parameter.numel() for parameter in model.parameters()) / 2**30


def _table(cls: type[BaseSettings], file: Path) -> Mapping[str, Any]:
    table = ConfigFile(cls, file, "--config")
    assert table.faults == []
    return table.values


@pytest.mark.parametrize(
    ("size", "gpu_count", "cache"),
    re.findall(r"^\| (\d+B) \| (\d) \| .* \| (\d+) \| ", PAGE, re.M),
    ids="-".join,
)
def test_the_file_of_a_size_has_the_tables_options(size: str, gpu_count: str, cache: str) -> None:
    file = ROOT / "docs" / "configs" / f"InternVL2_5-{size}.toml"
    assert f"(configs/{file.name})" in PAGE
    checkpoint, engines = f"/models/InternVL2_5-{size}", f"/models/engines/{size}"
    vision = VisionSettings(**_table(VisionSettings, file))
    assert (str(vision.checkpoint), str(vision.tensorrt.plan)) == (checkpoint, f"{engines}/vision")
    llm = LLMSettings(**_table(LLMSettings, file))
    assert (str(llm.checkpoint), llm.kv_cache_byte_count) == (checkpoint, int(cache))
    assert str(llm.tensorrt_llm.engine_folder) == f"{engines}/llm"
    assert f"-n {gpu_count} internvl-llm" in file.read_text() or gpu_count == "1"
    if gpu_count == "1":
        assert _table(ServeSettings, file)["checkpoint"] == checkpoint
    else:
        gateway = GatewaySettings(**_table(GatewaySettings, file))
        assert gateway.llm_address == f"127.0.0.1:{llm.port}"


def test_the_file_on_the_page_is_the_8bs() -> None:
    (shown,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    assert shown == (ROOT / "docs" / "configs" / "InternVL2_5-8B.toml").read_text()


def test_images_on_the_page_are_those_of_the_folder() -> None:
    images = re.findall(r"^docker build -f (\S+) --target (\S+) ", PAGE, re.M)
    assert images
    for file, target in images:
        assert f" AS {target}\n" in (ROOT / file).read_text()
