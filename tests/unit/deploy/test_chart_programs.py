"""What the chart tells the programs, as they themselves read it, and how it asks after them."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from pydantic_settings import CliApp

from gateway.settings import Settings as GatewaySettings
from llm_service.settings import ProgramSettings as LLMSettings
from protos.process.settings import EngineOptions, ServingSettings
from tests.https import issue
from tests.unit.deploy.chart import (
    CASES,
    COMPONENTS,
    ON_A_HOST,
    ROOT,
    SERVICES,
    Document,
    container,
    container_ports,
    merged,
    of_kind,
    pod,
    rendered,
)
from vision_service.settings import ProgramSettings as VisionSettings

EVERY_CASE = pytest.mark.parametrize("case", CASES)
SETTINGS: dict[str, type[ServingSettings]] = {
    "gateway": GatewaySettings,
    "vision": VisionSettings,
    "llm": LLMSettings,
}
NAMES = {"vision": "internvl.v1.VisionService", "llm": "internvl.v1.LLMService"}
CHECKPOINT = ROOT / "models" / "demo" / "checkpoint"
HEALTH = health_pb2.HealthCheckResponse
SECRETS = "/run/secrets"
KEYS = f"keys:\n  - name: someone\n    sha256: {'ab' * 32}\n"


def variables(component: str) -> set[str]:
    """Returns the environment variables that a program reads."""
    prefix = SETTINGS[component].model_config["env_prefix"]
    names = set()
    for name, field in SETTINGS[component].model_fields.items():
        group = field.default
        inner = type(group).model_fields if isinstance(group, EngineOptions) else ()
        names |= {f"{prefix}{name}_{option}".upper() for option in inner} or {prefix + name.upper()}
    return names


class Machine:
    """Where a container's program reads its options: with its paths, and none of this machine's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self._monkeypatch = monkeypatch
        self._secrets = folder / "secrets"
        for name in ("embedding", "api-keys"):
            (self._secrets / name).mkdir(parents=True)
        (self._secrets / "embedding" / "embedding.key").write_bytes(bytes(32))
        (self._secrets / "api-keys" / "keys.yaml").write_text(KEYS)
        for name in ("tls", "https"):  # as cert-manager names what is in them
            issue(trustme.CA(), self._secrets / name, "internvl.example")

    def settings(self, component: str, deployment: Document) -> Any:
        """Returns what the program of a container reads from its variables and arguments."""
        for name in [name for name in os.environ if name.startswith("INTERNVL_")]:
            self._monkeypatch.delenv(name)
        found = container(deployment)
        values = {each["name"]: each["value"] for each in found["env"]}
        ours = {name for name in values if name.startswith("INTERNVL_")}
        assert len(values) == len(found["env"])
        assert ours <= variables(component)
        for name in ours:
            self._monkeypatch.setenv(name, self._here(values[name]))
        program = SETTINGS[component].model_config["cli_prog_name"]
        arguments = found.get("args", [])
        if program in arguments:
            arguments = arguments[arguments.index(program) + 1 :]
        return CliApp.run(SETTINGS[component], cli_args=arguments)

    def _here(self, value: str) -> str:
        return value.replace("/checkpoint", str(CHECKPOINT)).replace(SECRETS, str(self._secrets))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    return Machine(monkeypatch, tmp_path)


@EVERY_CASE
@pytest.mark.parametrize("component", COMPONENTS)
def test_the_program_takes_its_options(case: str, component: str, machine: Machine) -> None:
    deployment = of_kind(rendered(CASES[case]), "Deployment")[component]
    settings = machine.settings(component, deployment)
    ports = container_ports(deployment)
    values = CASES[case].get(component, {})
    assert settings.host == "0.0.0.0"
    assert settings.port == ports["http" if component == "gateway" else "grpc"]
    if "metrics" in ports:
        assert settings.metrics_port == ports["metrics"]
    traces = CASES[case].get("traces", {})
    assert settings.otlp_endpoint == traces.get("otlpEndpoint")
    assert settings.log_level == ("warning" if "extraArgs" in values else "info")
    is_encrypted = case == "encrypted"
    assert bool(settings.tls) is is_encrypted
    if component == "gateway":
        assert bool(settings.service_tls) is bool(settings.api_keys_file) is is_encrypted
    else:
        names = {"internvl-gateway.models.svc.cluster.local"} if is_encrypted else None
        assert settings.client_names == names
        assert settings.engine == values.get("engine", "torch")
        assert settings.embedding_key_file.name == "embedding.key"
        assert not settings.reflection


@EVERY_CASE
@pytest.mark.parametrize("component", SERVICES)
def test_paths_are_those_that_are_mounted(case: str, component: str) -> None:
    found = container(of_kind(rendered(CASES[case]), "Deployment")[component])
    mounts = tuple(mount["mountPath"] for mount in found["volumeMounts"])
    paths = [each["value"] for each in found["env"] if each.get("value", "").startswith("/")]
    engine = CASES[case].get(component, {}).get("engine", "torch")
    further = {"encrypted": 3, "shared GPU": 1}.get(case, 0)
    assert len(paths) == (2 if engine == "torch" else 3) + further
    assert all(path.startswith(mounts) for path in paths)


def test_an_option_of_any_type_arrives(machine: Machine) -> None:
    options = {
        "max-held-byte-count": 6 * 2**30,
        "request-seconds": 0.25,
        "strict-fields": True,
        "allowed-origins": ["https://chat.example.com"],
        "image-user-agent": "pictures (+mailto:ops@example.com)",
    }
    values = merged(ON_A_HOST, {"gateway": {"options": options}, "metrics": {"enabled": False}})
    deployment = of_kind(rendered(values), "Deployment")["gateway"]
    settings = machine.settings("gateway", deployment)
    assert settings.max_held_byte_count == 6 * 2**30
    assert settings.request_seconds == 0.25
    assert settings.strict_fields is True
    assert settings.allowed_origins == ("https://chat.example.com",)
    assert settings.image_user_agent == options["image-user-agent"]


def test_an_option_of_an_engine_arrives(machine: Machine) -> None:
    options = {"torch.dtype": "bfloat16", "torch.thread-count": 3, "kv-cache-byte-count": 2**33}
    values = merged(ON_A_HOST, {"llm": {"options": options}, "modelName": "our model"})
    settings = machine.settings("llm", of_kind(rendered(values), "Deployment")["llm"])
    assert (settings.torch.dtype, settings.torch.thread_count) == ("bfloat16", 3)
    assert settings.kv_cache_byte_count == 2**33
    assert settings.model_names == ("our model",)


@EVERY_CASE
@pytest.mark.parametrize("component", COMPONENTS)
def test_a_pod_is_killed_only_after_its_drain(case: str, component: str) -> None:
    deployment = of_kind(rendered(CASES[case]), "Deployment")[component]
    spec = pod(deployment)
    options = CASES[case].get(component, {}).get("options", {})
    defaults = SETTINGS[component].model_fields
    drain = options.get("drain-seconds", defaults["drain_seconds"].default)
    notice = defaults["drain_notice_seconds"].default if "drain_notice_seconds" in defaults else 0
    hook = container(deployment).get("lifecycle", {}).get("preStop", {}).get("exec", {})
    sleep = int(hook["command"][1]) if component == "gateway" else 0
    assert spec["terminationGracePeriodSeconds"] >= sleep + notice + drain + 5


@pytest.mark.parametrize("component", SERVICES)
def test_probes_name_the_services_health(component: str) -> None:
    found = container(of_kind(rendered(ON_A_HOST), "Deployment")[component])
    port = container_ports(of_kind(rendered(ON_A_HOST), "Deployment")[component])["grpc"]
    for kind in ("startupProbe", "readinessProbe"):
        assert found[kind]["grpc"] == {"port": port, "service": NAMES[component]}
    starting = found["startupProbe"]["periodSeconds"] * found["startupProbe"]["failureThreshold"]
    assert starting >= 900
    assert found["livenessProbe"]["timeoutSeconds"] > 20


@pytest.mark.parametrize(("case", "scheme"), [("demo", "HTTP"), ("encrypted", "HTTPS")])
def test_the_gateways_probes_are_its_routes(case: str, scheme: str) -> None:
    found = container(of_kind(rendered(CASES[case]), "Deployment")["gateway"])
    paths = [found[f"{kind}Probe"]["httpGet"] for kind in ("startup", "readiness", "liveness")]
    assert paths == [
        {"path": f"/health/{path}", "port": "http", "scheme": scheme}
        for path in ("live", "ready", "live")
    ]


def probe(component: str, port: int, kind: str = "liveness", case: str = "demo") -> list[str]:
    """Returns the command of a service's probe, with a port in the place of its own."""
    deployment = of_kind(rendered(CASES[case]), "Deployment")[component]
    program, address, *words = container(deployment)[f"{kind}Probe"]["exec"]["command"]
    assert program == "internvl-probe"
    assert address == f"127.0.0.1:{container_ports(deployment)['grpc']}"
    return [sys.executable, "-m", "protos.process.probe", f"127.0.0.1:{port}", *words]


async def exit_status(command: list[str]) -> int:
    quiet = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, stdout=quiet, stderr=quiet)
    return await process.wait()


async def test_a_service_that_drains_is_alive_and_one_that_does_not_answer_is_not() -> None:
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    await servicer.set("", HEALTH.NOT_SERVING)
    assert await exit_status(probe("vision", port)) == 0
    await server.stop(None)
    assert await exit_status(probe("vision", port)) != 0


@pytest.mark.parametrize("component", SERVICES)
async def test_an_encrypted_service_is_asked_by_its_own_certificate(
    component: str, tmp_path: Path
) -> None:
    """For kubelet has none."""
    files = issue(trustme.CA(), tmp_path / "tls", "internvl.example")
    pair = (files.key.read_bytes(), files.certificate.read_bytes())
    credentials = grpc.ssl_server_credentials([pair], files.authorities.read_bytes(), True)
    server = grpc.aio.server()
    servicer = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    await server.start()
    for status, expected in ((HEALTH.NOT_SERVING, 1), (HEALTH.SERVING, 0)):
        await servicer.set(NAMES[component], status)
        for kind in ("startup", "readiness"):
            command = probe(component, port, kind, "encrypted")
            own = [word.replace(SECRETS, str(tmp_path)) for word in command]
            assert await exit_status(own) == expected
    await server.stop(None)


def test_helms_test_asks_as_the_gateway_speaks() -> None:
    for case, url in (("demo", "http://"), ("encrypted", "https://")):
        (tester,) = of_kind(rendered(CASES[case]), "Pod")["test-ready"]["spec"]["containers"]
        program, address, *words = tester["command"]
        assert program == "internvl-probe"
        assert address == f"{url}internvl-gateway:8000/health/ready"
        mounts = tuple(mount["mountPath"] for mount in tester.get("volumeMounts", ()))
        files = [word.partition("=")[2] for word in words if "-file=" in word]
        assert all(file.startswith(mounts) for file in files)
        assert bool(files) is (case == "encrypted")


def test_mpirun_is_told_to_drain_and_waited_for() -> None:
    deployment = of_kind(rendered(CASES["gpu"]), "Deployment")["llm"]
    shell, option, script = container(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    program = "import signal; signal.sigwait([signal.SIGUSR1]); print('drained')"
    blocked = {signal.SIGUSR1}
    signal.pthread_sigmask(signal.SIG_BLOCK, blocked)  # for the program, from its first moment
    try:
        served = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, blocked)
    assert script == "kill -USR1 1 && while kill -0 1; do sleep 1; done"
    script = script.replace(" 1 ", f" {served.pid} ").replace(" 1;", f" {served.pid};", 1)
    hook = subprocess.Popen([shell, option, script], stderr=subprocess.DEVNULL)
    assert served.communicate(timeout=20)[0] == b"drained\n"
    assert hook.wait(timeout=20) == 0


def test_the_gateway_serves_on_until_every_proxy_knows() -> None:
    values = merged(ON_A_HOST, {"gateway": {"preStopSeconds": 12}})
    deployment = of_kind(rendered(values), "Deployment")["gateway"]
    command = container(deployment)["lifecycle"]["preStop"]["exec"]["command"]
    assert command == ["sleep", "12"]
    grace = pod(deployment)["terminationGracePeriodSeconds"]
    assert grace >= 12 + GatewaySettings.model_fields["drain_seconds"].default
