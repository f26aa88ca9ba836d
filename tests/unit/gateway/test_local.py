"""`internvl-serve` as a user runs it, over scripted services; the gateway is the real one."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme

from gateway.local.__main__ import COMMANDS, make_stack
from gateway.local.ports import FREE_PORTS, free_port, is_free
from gateway.local.processes import ENDED, Service, ServiceProcess, StartError
from gateway.local.record import Record
from gateway.local.settings import Settings
from gateway.settings import Settings as GatewaySettings
from protos.checkpoint.location import hub_cache
from protos.internvl.v1 import llm_pb2, llm_pb2_grpc
from protos.process.probe import ProbeTLS, RefusedError, SilentError, ask_http, grpc_health
from tests.https import https_options, issue

ROOT = Path(__file__).parents[3]
PATIENCE_SECONDS = 60.0
SCRIPT = "from tests.unit.gateway.scripted_service import run; run({name!r})"
NAMES = ("vision", "llm", "gateway")
TITLES = ("vision service", "LLM service", "gateway")


@dataclass(frozen=True)
class Command:
    """What a command ended with."""

    status: int
    out: str
    error: str


class User:
    """Somebody who types `internvl-serve` in a folder with the checkpoint `toy`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state = folder / "state" / "internvl"
        self.processes: list[subprocess.Popen[str]] = []

    def types(self, *words: str) -> subprocess.Popen[str]:
        """Starts a command."""
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway.local", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.processes.append(process)
        return process

    def runs(self, *words: str) -> Command:
        """Runs a command to its end."""
        process = self.types(*words)
        out, error = process.communicate(timeout=PATIENCE_SECONDS)
        return Command(process.returncode, out, error)

    def services(self) -> list[Service]:
        """Returns those that were started last."""
        record = Record.read(self.state)
        return record.open(self.state) if record else []

    def events(self, name: str) -> dict[str, dict[str, Any]]:
        """Returns the events in a service's log, by name."""
        text = (self.state / f"{name}.log").read_text()
        return {event["event"]: event for event in map(json.loads, text.splitlines())}

    def leave(self) -> None:
        """Kills what still runs."""
        for service in self.services():
            service.kill()
        for process in self.processes:
            process.kill()
            process.communicate()


Here = Callable[..., Command]


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[User]:
    """A user; `python -m vision_service` and its like are scripted ones in the folder."""
    for name in ("vision", "llm"):
        (tmp_path / f"{name}_service.py").write_text(SCRIPT.format(name=name))
    (tmp_path / "toy").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    user = User(tmp_path)
    yield user
    user.leave()


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Here:
    """Runs a command that starts nothing, in this process: it takes a second less."""

    def run(name: str, *words: str) -> Command:
        monkeypatch.setattr("sys.argv", ["internvl-serve", *words])
        try:
            status = COMMANDS[name]()
            ended = capsys.readouterr()
            return Command(status, ended.out, ended.err)
        except StartError as error:
            return Command(1, "", str(error))

    return run


@pytest.fixture
def options() -> list[str]:
    """Those of a checkpoint at a free port, whatever else this machine serves."""
    return [
        "--checkpoint",
        "toy",
        "--port",
        str(free_port()),
        "--vision-port",
        "0",
        "--llm-port",
        "0",
    ]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.05)


def next_line(process: subprocess.Popen[str], start: str) -> str:
    """Returns the next line of a command's output that starts so."""
    assert process.stdout is not None
    return next(line for line in process.stdout if line.startswith(start))


@contextmanager
def asked(port: int) -> Iterator[HTTPResponse]:
    """Yields a streamed answer that has begun."""
    connection = HTTPConnection("127.0.0.1", port, timeout=PATIENCE_SECONDS)
    body = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
    headers = {"content-type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    with closing(connection):
        yield connection.getresponse()


def test_start_status_stop(user: User, here: Here, options: list[str]) -> None:
    (user.folder / "site.toml").write_text(
        '[serve]\ncheckpoint = "toy"\nserved_model_name = ["toy", "gpt-4o", "t"]\n'
        "[llm]\nmax_image_count = 7\n[gateway]\nbody_seconds = 7\n"
    )
    started = user.runs("start", "--config", "site.toml", *options[2:], "--drain-seconds", "5")
    assert started.status == 0, started.error
    *progress, last, page = started.out.splitlines()
    assert [line.partition(":")[0] for line in progress] == [*TITLES, *TITLES]
    url = f"http://127.0.0.1:{options[3]}/v1"
    assert last.startswith(f"toy is served at {url}; ")
    assert page == f"the page is at http://127.0.0.1:{options[3]}/"

    given = user.events("llm")["loading"]["options"]
    assert (given["max_image_count"], given["drain_seconds"]) == (7, 5)
    assert given["checkpoint"] == str(user.folder / "toy")
    assert given["served_model_name"] == ["toy", "gpt-4o", "t"]

    shown = here("status")
    assert shown.status == 0
    *table, last = shown.out.splitlines()
    assert last == page
    head, *rows = [line.split() for line in table]
    assert head == ["NAME", "PORT", "PID", "HEALTH", "CHECKPOINT"]
    assert rows == [
        [one.name, str(one.port), str(one.pid), "serving", str(user.folder / "toy")]
        for one in user.services()
    ]

    again = here("start", *options)
    assert again.status == 1
    assert again.error.startswith(f"toy is served at {url} already ")
    assert here("status").status == 0

    stopped = here("stop")
    assert stopped.status == 0
    assert "requests in flight get 5 s" in stopped.out
    assert all("draining" in user.events(name) for name in NAMES)
    assert here("status") == Command(1, f"nothing is served from {user.state}\n", "")
    assert here("stop").status == 0


def test_dev_tls_encrypts_all_connections(user: User, here: Here, options: list[str]) -> None:
    started = user.runs("start", *options, "--dev-tls")
    assert started.status == 0, started.error
    folder = user.state / "tls"
    url = f"https://127.0.0.1:{options[3]}"
    assert f"curl --cacert {folder / 'ca.crt'} {url}/v1/models\n" in started.out
    assert f"SSL_CERT_FILE={folder / 'ca.crt'}\n" in started.out
    assert f"the page is at {url}/\n" in started.out

    assert ask_http(f"{url}/v1/models", ProbeTLS(folder / "ca.crt"))[0] == 200
    name = f"https://localhost:{options[3]}/v1/models"
    assert ask_http(name, ProbeTLS(folder / "ca.crt"))[0] == 200
    vision, llm, gateway = user.services()
    for service in (vision, llm):
        with pytest.raises(SilentError):
            grpc_health(service.address)
        with pytest.raises(SilentError):  # without a certificate
            grpc_health(service.address, ProbeTLS(folder / "ca.crt"))
    assert gateway.tls
    assert vision.tls
    known = replace(gateway.tls, trusted=folder / "ca.crt", is_pinned=False)
    assert load_code(llm, known) == grpc.StatusCode.OK
    stranger = replace(vision.tls, trusted=folder / "ca.crt", is_pinned=False)
    assert load_code(llm, stranger) == grpc.StatusCode.PERMISSION_DENIED

    shown = here("status")
    assert shown.status == 0
    assert shown.out.count(" serving ") == 3
    assert here("stop").status == 0
    assert all("draining" in user.events(name) for name in NAMES)


def load_code(service: Service, tls: ProbeTLS) -> grpc.StatusCode:
    """Returns what a question to an LLM service ends with."""
    with tls.channel(service.address) as channel:
        try:
            llm_pb2_grpc.LLMServiceStub(channel).GetLoad(llm_pb2.GetLoadRequest(), timeout=5)
        except grpc.RpcError as error:
            return error.code()
    return grpc.StatusCode.OK


def test_made_certificates_are_for_their_user_alone_and_new_each_time(tmp_path: Path) -> None:
    settings = Settings(checkpoint=tmp_path, port=0, state_folder=tmp_path, dev_tls=True)
    folder = tmp_path / "tls"
    seen = set()
    for _ in range(2):
        make_stack(settings)
        assert folder.stat().st_mode & 0o777 == 0o700
        files = sorted(folder.iterdir())
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}
        keys = [file.name for file in files if b"PRIVATE KEY" in file.read_bytes()]
        assert keys == ["gateway.key", "llm.key", "vision.key"]
        seen.add((folder / "ca.crt").read_bytes())
        context = ssl.create_default_context()
        with pytest.raises(ssl.SSLError):  # the authority's own key is none of them
            context.load_cert_chain(folder / "ca.crt", folder / "gateway.key")
    assert len(seen) == 2


def test_what_is_given_for_all_three_reaches_them(tmp_path: Path) -> None:
    settings = Settings(
        checkpoint=tmp_path,
        port=0,
        state_folder=tmp_path,
        log_level="debug",
        log_format="console",
        log_lines_per_second=7,
        otlp_endpoint="http://127.0.0.1:4317",
    )
    for service in make_stack(settings).services:
        told = " ".join(service.arguments)
        assert "--log-level debug --log-format console --log-lines-per-second 7" in told
        assert "--otlp-endpoint http://127.0.0.1:4317" in told


def test_dev_tls_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trustme", None)
    settings = Settings(checkpoint=tmp_path, port=0, state_folder=tmp_path, dev_tls=True)
    with pytest.raises(StartError, match=re.escape("pip install 'internvl-serving[dev-tls]'")):
        make_stack(settings)


def test_a_certificate_of_ones_own_is_not_replaced(
    user: User, here: Here, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = issue(trustme.CA(), user.folder / "own", "127.0.0.1")
    own = ["--tls-certificate-file", str(files.certificate), "--tls-key-file", str(files.key)]
    with pytest.raises(SystemExit):
        here("start", *options, "--dev-tls", *own)
    assert (
        "--dev-tls, --tls-certificate-file: the one makes certificates" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_certificates_of_ones_own(user: User, here: Here, options: list[str]) -> None:
    """The gateway's clients need others, of another authority; its health is seen all the same."""
    inner = trustme.CA()
    vision = issue(inner, user.folder / "vision-tls", "127.0.0.1")
    llm = issue(inner, user.folder / "llm-tls", "127.0.0.1")
    client = issue(inner, user.folder / "client-tls", "gateway.example")
    public = issue(trustme.CA(), user.folder / "public-tls", "chat.example")
    clients = trustme.CA()
    caller = issue(clients, user.folder / "caller-tls", "caller.example")
    tables = {
        "vision": {**https_options(vision, is_mutual=True), "tls_client_names": "gateway.example"},
        "llm": {**https_options(llm, is_mutual=True), "tls_client_names": "gateway.example"},
        "gateway": {
            "service_ca_file": client.authorities,
            "service_certificate_file": client.certificate,
            "service_key_file": client.key,
            "tls_client_ca_file": caller.authorities,
        },
    }
    (user.folder / "site.toml").write_text(
        "\n".join(
            f"[{table}]\n" + "".join(f'{name} = "{value}"\n' for name, value in values.items())
            for table, values in tables.items()
        )
    )
    own = ["--tls-certificate-file", str(public.certificate), "--tls-key-file", str(public.key)]
    started = user.runs("start", *options, "--config", "site.toml", *own)
    assert started.status == 0, started.error
    assert here("status").out.count(" serving ") == 3
    url = f"https://127.0.0.1:{options[3]}/health/ready"
    with pytest.raises(RefusedError):
        ask_http(url, ProbeTLS(public.certificate, is_pinned=True))
    known = ProbeTLS(public.certificate, True, caller.certificate, caller.key)
    assert ask_http(url, known)[0] == 200
    assert here("stop").status == 0


def test_stop_lets_the_requests_in_flight_end(user: User, options: list[str]) -> None:
    (user.folder / "toy" / "llm").write_text("stalls")
    foreground = user.types(*options)
    next_line(foreground, "toy is served at")
    with asked(int(options[3])) as answer:
        assert answer.readline().startswith(b"data: ")
        stopping = user.types("stop")
        eventually(lambda: "draining" in user.events("gateway"))
        assert all(service.is_alive() for service in user.services())
        assert "draining" not in user.events("llm")
        (user.folder / "toy" / "release").touch()
        assert answer.read().endswith(b"data: [DONE]\n\n")
    assert stopping.wait(PATIENCE_SECONDS) == 0
    assert "draining" in user.events("llm")
    assert foreground.wait(PATIENCE_SECONDS) == 0


def test_a_killed_service_is_seen_and_the_rest_can_be_stopped(
    user: User, here: Here, options: list[str]
) -> None:
    assert user.runs("start", *options).status == 0
    vision, llm, gateway = user.services()
    os.kill(llm.pid, signal.SIGKILL)
    eventually(lambda: not llm.is_alive())
    shown = here("status")
    assert shown.status == 1
    assert re.search(rf"^llm +{llm.port} +- +ended ", shown.out, re.M)
    assert re.search(rf"^vision +{vision.port} +{vision.pid} +serving ", shown.out, re.M)
    assert re.search(r"^gateway .* the LLM service is unavailable ", shown.out, re.M)
    assert f"the LLM service has ended; its log is {llm.log}\n" in shown.out
    assert here("start", *options).status == 1
    assert here("stop").status == 0
    assert not any(service.is_alive() for service in (vision, llm, gateway))


def test_ctrl_c_ends_the_foreground(user: User, options: list[str]) -> None:
    process = user.types(*options)
    next_line(process, "toy is served at")
    running = user.services()
    process.send_signal(signal.SIGINT)
    assert process.wait(PATIENCE_SECONDS) == 0
    assert not any(service.is_alive() for service in running)
    assert user.services() == []
    assert all("draining" in user.events(name) for name in NAMES)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "300"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
    ],
)
def test_services_threads_wait_asleep_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], expected: dict[str, str]
) -> None:
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "shown.py").write_text("import json, os; print(json.dumps(dict(os.environ)))")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    service = ServiceProcess("shown", [], tmp_path / "shown.log")
    service.start()
    service.wait_ended()
    seen = json.loads(service.log.read_text())
    assert {name: seen[name] for name in seen if "OMP_" in name and "NUM" not in name} == expected


@pytest.mark.slow
def test_a_signal_ends_a_start(user: User, options: list[str]) -> None:
    (user.folder / "toy" / "vision").write_text("hangs")
    process = user.types("start", *options)
    next_line(process, "vision service: starting")
    (vision, *_) = user.services()
    eventually(lambda: vision.log.read_text() != "")
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=PATIENCE_SECONDS)[1] == ""
    assert process.returncode == 130
    assert not vision.is_alive()
    assert user.services() == []


def test_a_service_that_ends_ends_the_foreground(user: User, options: list[str]) -> None:
    process = user.types(*options)
    next_line(process, "toy is served at")
    running = user.services()
    os.kill(running[0].pid, signal.SIGKILL)
    _, error = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert error.startswith("the vision service ended with status -9: ")
    assert '"event": "serving"' in error
    assert not any(service.is_alive() for service in running)


@pytest.mark.parametrize(
    ("name", "script", "sentence"),
    [
        ("llm", "refuses", "the LLM service did not start: the checkpoint is of another model"),
        pytest.param(
            "vision",
            "crashes",
            "the vision service did not start: {folder}/vision.log ends with\n",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "vision",
            "hangs",
            "the vision service does not serve after 2 s (no answer); its log is ",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_service_that_does_not_start(
    user: User, here: Here, options: list[str], name: str, script: str, sentence: str
) -> None:
    (user.folder / "toy" / name).write_text(script)
    started = user.runs("start", *options, "--start-seconds", "2" if script == "hangs" else "60")
    assert started.status == 1
    assert started.error.startswith(sentence.format(folder=user.state))
    assert ("ZeroDivisionError" in started.error) == (script == "crashes")
    assert not any(Service(log, 0).is_alive() for log in user.state.glob("*.log"))
    assert here("status").out.startswith("nothing is served")


@pytest.mark.parametrize("has_gpu", [False, True])
def test_where_there_is_a_gpu_the_llm_service_waits_for_the_vision_service(
    user: User, monkeypatch: pytest.MonkeyPatch, has_gpu: bool
) -> None:
    monkeypatch.setattr("gateway.local.stack.has_gpu", lambda: has_gpu)
    (user.folder / "toy" / "vision").write_text("hangs")
    stack = make_stack(Settings(checkpoint=user.folder / "toy", port=0, state_folder=user.folder))
    with pytest.raises(StartError, match="the vision service does not serve after 0 s"):
        stack.start(seconds=0.3)
    assert [service.pid > 0 for service in stack.services] == [True, not has_gpu, not has_gpu]
    assert not any(service.is_alive() for service in stack.services)


@pytest.mark.slow
def test_of_two_at_once_one_serves(user: User, options: list[str]) -> None:
    both = [user.types("start", *options) for _ in "12"]
    errors = [process.communicate(timeout=PATIENCE_SECONDS)[1] for process in both]
    assert sorted(process.returncode for process in both) == [0, 1], errors
    assert re.search("runs already|is served at .* already|in use", "".join(errors))
    assert [service.health() for service in user.services()] == ["serving"] * 3


def test_wrong_options_start_nothing(
    user: User, here: Here, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        taken = here("start", "--checkpoint", "toy", "--port", port)
    assert taken.error == f"port {port} is in use; choose another one with --port"
    elsewhere = here("start", "--checkpoint", "toy", "--host", "192.0.2.1")
    assert elsewhere.error.startswith("cannot listen on 192.0.2.1:8000: ")
    (user.folder / "site.toml").write_text("[serve]\nports = 3\n")
    for words, line in (
        ([], "--checkpoint: it must be given\n"),
        (
            ["--checkpoint", "lab/Tiny-2B", "--port", "7", "--vision-port", "7"],
            "--port, --vision-port: both are 7\n"
            "--checkpoint: there is no folder lab/Tiny-2B, and no such model in the hub's cache,"
            f" {hub_cache()}; `hf download lab/Tiny-2B` fetches it\n",
        ),
        (
            ["--checkpoint", "toy", "--config", "site.toml"],
            "site.toml: [serve] ports: there is no such option; did you mean port?\n",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            here("start", *words)
        assert caught.value.code == 2
        assert capsys.readouterr().err == line
    assert not list(user.state.glob("*.log"))


def test_help_explains_the_commands(user: User) -> None:
    shown = user.runs("start", "--help")
    assert shown.status == 0
    assert "default factory" not in shown.out
    for word in ("internvl-serve start OPTIONS", "internvl-serve stop", "--config", "[vision]"):
        assert word in shown.out


class Sleeper(ServiceProcess):
    """A process that only lives."""

    def __init__(self, log: Path) -> None:
        super().__init__("timeit", ["-n", "1", "import time; time.sleep(60)"], log)


def test_a_log_is_locked_while_its_process_lives(tmp_path: Path) -> None:
    process = Sleeper(tmp_path / "llm.log")
    assert not process.is_alive()
    process.start()
    seen = Service(process.log, process.port, process.pid)
    assert seen.is_alive()
    with pytest.raises(StartError, match="the LLM service runs already; its log is"):
        Sleeper(process.log).start()
    seen.kill()
    seen.wait_ended()
    assert process.returncode is None or process.returncode == -9
    assert seen.health() == ENDED
    process.wait_ended()
    assert process.returncode == -9


def test_a_stranger_with_the_process_id_is_left_alone(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "60"], start_new_session=True) as stranger:
        log = tmp_path / "llm.log"
        log.touch()
        service = Service(log, 1, stranger.pid)
        assert service.health() == ENDED
        service.stop()
        service.kill()
        assert stranger.poll() is None
        stranger.kill()


def test_a_port_that_is_taken_is_not_chosen() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        assert not is_free("127.0.0.1", taken)
        assert free_port(taken) in FREE_PORTS
    assert free_port(taken) == taken


def test_a_port_that_was_found_is_not_found_by_another_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    port = free_port()
    monkeypatch.setattr("gateway.local.ports.FREE_PORTS", range(port, port + 1))
    look = f"from gateway.local import ports; ports.FREE_PORTS = [{port}]; ports.free_port()"
    found = subprocess.run([sys.executable, "-c", look], capture_output=True, text=True)
    assert "no port" in found.stderr
    with pytest.raises(OSError, match="no port"):
        free_port()


def test_the_gateway_gets_all_folders(tmp_path: Path) -> None:
    roots = (tmp_path / "a", tmp_path / "b, c")
    for root in roots:
        root.mkdir()
    stack = make_stack(Settings(checkpoint=tmp_path, port=0, file_root=roots))
    given = GatewaySettings(_cli_parse_args=stack.gateway.arguments)
    assert given.file_root == roots
    assert given.metrics_port is None


def test_the_keys_are_the_gateways_to_ask_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (path := tmp_path / "keys.yaml").write_text("keys: []")
    monkeypatch.chdir(tmp_path)
    stack = make_stack(Settings(checkpoint=tmp_path, port=0, api_keys_file=Path("keys.yaml")))
    assert GatewaySettings(_cli_parse_args=stack.gateway.arguments).api_keys_file == path
    for service in (stack.vision, stack.llm):
        assert "--api-keys-file" not in service.arguments


def test_keys_that_cannot_be_used_are_told_before_anything_starts(user: User) -> None:
    (user.folder / "keys.yaml").write_text("keys: x")
    ended = user.runs("--checkpoint", "toy", "--api-keys-file", "keys.yaml")
    sentence = f"{user.folder / 'keys.yaml'}:1: keys: this must be a list"
    assert (ended.status, ended.error) == (2, f"--api-keys-file: {sentence}\n")
    assert not user.state.exists()


def test_folders_that_are_none_are_told_before_anything_starts(user: User) -> None:
    ended = user.runs("--checkpoint", "toy", "--file-root", "none")
    sentence = f"--file-root: {user.folder / 'none'} is not a folder\n"
    assert (ended.status, ended.error) == (2, sentence)
    assert not user.state.exists()


@pytest.mark.parametrize("command", ["start", "status", "stop"])
def test_a_state_folder_that_cannot_be_used_is_told(
    user: User, options: list[str], command: str
) -> None:
    (user.folder / "file").touch()
    words = options if command == "start" else []
    ended = user.runs(command, *words, "--state-folder", "file/below")
    assert ended.status == 1
    assert re.fullmatch(r"--state-folder: \S+/file/below\S*: Not a directory\n", ended.error)


def test_a_log_that_cannot_be_written_is_told(user: User, options: list[str]) -> None:
    (user.state / "llm.log").mkdir(parents=True)
    ended = user.runs("start", *options)
    sentence = f"--state-folder: {user.state / 'llm.log'}: Is a directory\n"
    assert (ended.status, ended.error) == (1, sentence)
    assert not user.services()


def test_a_word_that_is_no_command_is_told(user: User) -> None:
    ended = user.runs("stauts")
    sentence = "there is no such command; there are start, status, stop\n"
    assert (ended.status, ended.error) == (2, sentence)


def test_a_port_for_metrics_is_the_gateways(tmp_path: Path) -> None:
    stack = make_stack(Settings(checkpoint=tmp_path, port=0, metrics_port=9090))
    assert GatewaySettings(_cli_parse_args=stack.gateway.arguments).metrics_port == 9090
    for service in (stack.vision, stack.llm):
        assert "--metrics-port" not in service.arguments
