"""The commands of `internvl-serve`: serve in the foreground, start, status, stop."""

from __future__ import annotations

import json
import shlex
import signal
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType

from gateway.local.certificates import authority_file, make_certificates
from gateway.local.engines import EngineHost, require_one_device
from gateway.local.health import page_url
from gateway.local.mps import MultiProcessService
from gateway.local.ports import LOOPBACK, free_port, is_free
from gateway.local.processes import (
    ENDED,
    GATEWAY,
    TITLES,
    Service,
    ServiceProcess,
    StartError,
    stop_services,
)
from gateway.local.record import Record, ServiceRecord, forget
from gateway.local.settings import Settings, StatusSettings, StopSettings
from gateway.local.stack import Stack
from protos.process.facts import columns
from protos.process.probe import HEALTHY
from protos.process.settings import read_settings

# Options of ours that all three are told where they are given.
SHARED = ("config", "log_level", "log_format", "log_lines_per_second", "otlp_endpoint")
# How this machine reaches a server that listens on all of its addresses.
LOOPBACKS = MappingProxyType({"0.0.0.0": LOOPBACK, "::": "::1"})  # noqa: S104 - read, not bound
NOT_STARTED = "waiting"


def main() -> None:
    """Runs the command that the first word names; without one, serves in the foreground."""
    command = _command()
    for signum in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, signal.default_int_handler)  # end like Ctrl-C
    try:
        sys.exit(command())
    except StartError as error:
        sys.exit(str(error))
    except OSError as error:
        # The options have checked all other files.
        file = f"--state-folder: {error.filename}: {error.strerror}"
        sys.exit(file if error.filename else str(error))
    except KeyboardInterrupt:
        sys.exit(130)


def _command() -> Callable[[], int]:
    """Takes the command's name off the command line."""
    if len(sys.argv) == 1 or sys.argv[1].startswith("-"):
        return serve
    if sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv.pop(1)]
    sys.stderr.write(f"there is no such command; there are {', '.join(COMMANDS)}\n")
    sys.exit(2)


def serve() -> int:
    """Serves until Ctrl-C; when a service ends by itself, the others are stopped."""
    settings = read_settings(Settings)
    stack = _start(settings)
    try:
        _say(f"{settings.model_names[0]} is served at {stack.url}/v1; Ctrl-C stops it")
        _say_how(settings, stack)
        ended = stack.wait_for_an_end()
    except KeyboardInterrupt:
        ended = None
    _say("stopping; a second Ctrl-C does not wait for the requests in flight")
    stack.stop(settings.drain_seconds)
    _quit_mps(settings.state_folder, is_used=settings.mps)
    forget(settings.state_folder)
    if ended is None or ended.returncode == 0:  # `internvl-serve stop` was here
        return 0
    raise StartError(
        f"the {ended.title} ended with status {ended.returncode}: {ended.last_words()}"
    )


def start() -> int:
    """Serves in the background."""
    settings = read_settings(Settings)
    stack = _start(settings)
    _say(f"{settings.model_names[0]} is served at {stack.url}/v1; `internvl-serve stop` stops it")
    _say_how(settings, stack)
    return 0


def _start(settings: Settings) -> Stack:
    """Returns the three services, serving."""
    settings.state_folder.mkdir(parents=True, exist_ok=True)
    _refuse_a_second(settings)
    stack = make_stack(settings)
    if settings.mps:
        multi_process_service(settings.state_folder).start()
    started: dict[str, float] = {}

    def progress(service: ServiceProcess) -> None:
        if service.name not in started:
            started[service.name] = time.monotonic()
            _record(settings, stack).write(settings.state_folder)
            _say(f"{service.title}: starting; its log is {service.log}")
        else:
            seconds = time.monotonic() - started[service.name]
            place = f"serves on port {service.port}" if service.port else "is there"
            _say(f"{service.title}: {place} after {seconds:.0f} s")

    try:
        stack.start(settings.start_seconds, progress)
    except BaseException:
        _quit_mps(settings.state_folder, is_used=settings.mps)
        if started:
            forget(settings.state_folder)
        raise
    return stack


def multi_process_service(folder: Path) -> MultiProcessService:
    """Returns the daemon of what is started from a state folder."""
    return MultiProcessService(folder / "mps")


def _quit_mps(folder: Path, *, is_used: bool) -> None:
    if is_used:
        multi_process_service(folder).quit()


def _refuse_a_second(settings: Settings) -> None:
    record = Record.read(settings.state_folder)
    if record and any(service.is_alive() for service in record.open(settings.state_folder)):
        raise StartError(
            f"{record.model} is served at {record.url}/v1 already (see internvl-serve status);"
            " end it by internvl-serve stop, or serve this one beside it with another"
            " --state-folder and --port"
        )


def make_stack(settings: Settings) -> Stack:
    """Returns the three services as the options have them, yet to be started.

    Raises:
        StartError: the port for clients is not to be had, certificates cannot be made, or one
            process cannot have both engines.
    """
    engines = None
    if settings.one_gpu_process:
        require_one_device(settings.config)
        engines = EngineHost(settings.state_folder)
    model, *aliases = settings.model_names
    ports = (free_port(settings.vision_port), free_port(settings.llm_port), _port(settings))
    host = LOOPBACKS.get(settings.host, settings.host)
    certificates = make_certificates(settings, host)
    shared = _shared_arguments(settings)
    return Stack(
        settings.checkpoint,
        settings.state_folder,
        ports=ports,
        host=host,
        service_arguments=["--host", LOOPBACK, "--served-model-name", model, *shared],
        vision_arguments=certificates.arguments("vision"),
        llm_arguments=[
            *(word for alias in aliases for word in ("--served-model-name", alias)),
            *certificates.arguments("llm"),
        ],
        gateway_arguments=[
            *_gateway_arguments(settings),
            *shared,
            *certificates.arguments(GATEWAY),
        ],
        probes={name: certificates.probe(name) for name in TITLES},
        engines=engines,
        variables=multi_process_service(settings.state_folder).variables if settings.mps else {},
    )


def _shared_arguments(settings: Settings) -> list[str]:
    arguments = ["--drain-seconds", str(settings.drain_seconds)]
    for name in SHARED:
        if name in settings.model_fields_set:
            arguments += [f"--{name.replace('_', '-')}", str(getattr(settings, name))]
    return arguments


def _gateway_arguments(settings: Settings) -> list[str]:
    arguments = ["--host", settings.host]
    if settings.file_root:
        arguments += ["--file-root", json.dumps([str(root) for root in settings.file_root])]
    if settings.api_keys_file is not None:
        arguments += ["--api-keys-file", str(settings.api_keys_file)]
    if settings.metrics_port is not None:
        arguments += ["--metrics-port", str(settings.metrics_port)]
    return arguments


def _port(settings: Settings) -> int:
    if not settings.port:
        return free_port()
    try:
        if is_free(settings.host, settings.port):
            return settings.port
    except OSError as error:
        raise StartError(
            f"cannot listen on {settings.host}:{settings.port}: {error.strerror}"
        ) from error
    raise StartError(f"port {settings.port} is in use; choose another one with --port")


def _record(settings: Settings, stack: Stack) -> Record:
    return Record(
        url=stack.url,
        model=settings.model_names[0],
        checkpoint=str(settings.checkpoint),
        drain_seconds=settings.drain_seconds,
        services=[ServiceRecord.of(service) for service in stack.services],
        mps=settings.mps,
    )


def status() -> int:
    """Shows a table of the services."""
    settings = read_settings(StatusSettings)
    record = Record.read(settings.state_folder)
    if record is None:
        _say(f"nothing is served from {settings.state_folder}")
        return 1
    rows = [("NAME", "PORT", "PID", "HEALTH", "CHECKPOINT")]
    services = record.open(settings.state_folder)
    healths = [service.health() if service.pid else NOT_STARTED for service in services]
    for service, health in zip(services, healths, strict=True):
        pid = str(service.pid) if health not in (ENDED, NOT_STARTED) else "-"
        rows.append((service.name, str(service.port or "-"), pid, health, record.checkpoint))
    sys.stdout.write(columns(rows))
    sys.stdout.flush()
    for service, health in zip(services, healths, strict=True):
        if health == ENDED:
            _say(f"the {service.title} has ended; its log is {service.log}")
    if HEALTHY in healths:
        _say_page(services[-1])
    return 0 if set(healths) == {HEALTHY} else 1


def stop() -> int:
    """Stops what runs, and waits for the requests in flight."""
    settings = read_settings(StopSettings)
    record = Record.read(settings.state_folder)
    services = record.open(settings.state_folder) if record else []
    if record is None or not any(service.is_alive() for service in services):
        _say(f"nothing is served from {settings.state_folder}")
    else:
        _say(f"stopping {record.model}; requests in flight get {record.drain_seconds:g} s")
        stop_services(services, record.drain_seconds)
        _say("stopped")
    _quit_mps(settings.state_folder, is_used=record is not None and record.mps)
    forget(settings.state_folder)
    return 0


def _say_how(settings: Settings, stack: Stack) -> None:
    _say_page(stack.gateway)
    if settings.dev_tls:
        trusted = shlex.quote(str(authority_file(settings)))
        _say(f"curl --cacert {trusted} {stack.url}/v1/models")
        _say(f"the openai client trusts it with SSL_CERT_FILE={trusted}")


def _say_page(gateway: Service) -> None:
    if url := page_url(gateway.url, gateway.tls):
        _say(f"the page is at {url}")


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


COMMANDS: Mapping[str, Callable[[], int]] = MappingProxyType(
    {"start": start, "status": status, "stop": stop}
)

if __name__ == "__main__":
    main()
