"""`python -m tests.clients [NAME ...]`: other projects' clients, each in its own environment."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from models.demo.__main__ import PICTURES
from tests.clients.environment import InstallError, prepared
from tests.clients.outcome import Outcome, read_outcome
from tests.clients.roster import CLIENTS, PROGRAMS, Client

MODEL = "internvl-demo"
ALIAS = "internvl"
RUN_SECONDS = 900.0
# Clients tell their makers what they do, and look up prices, unless they are asked not to.
QUIET = {
    "DO_NOT_TRACK": "1",
    "HAYSTACK_TELEMETRY_ENABLED": "False",
    "HF_HUB_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def main() -> None:
    """Runs the clients, and prints a table; the exit status is 1 when one of them failed."""
    arguments = _arguments()
    outcomes: dict[Client, Outcome | str] = {}
    with tempfile.TemporaryDirectory() as name, ExitStack() as exits:
        folder = Path(name)
        variables = {
            **os.environ,
            **QUIET,
            **exits.enter_context(_toy_model(folder)),
            "INTERNVL_PERFECT_URL": exits.enter_context(_perfect_model(folder)),
            "INTERNVL_TABLES": str((arguments.tables or folder).resolve()),
        }
        for client in arguments.clients:
            outcomes[client] = _outcome(client, folder, variables)
    print(f"\n{'client':18}{'version':12}{'passed':>8}{'expected':>10}{'skipped':>9}{'failed':>8}")
    for client, outcome in outcomes.items():
        print(f"{client.name:18}{client.version:12}{_cells(outcome)}")
    is_good = all(isinstance(one, Outcome) and one.is_good for one in outcomes.values())
    sys.exit(0 if is_good else 1)


def _arguments() -> argparse.Namespace:
    clients = {client.name: client for client in CLIENTS}
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(clients))
    parser.add_argument("--tables", type=Path, help="a folder that gets the benchmarks' tables")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - clients.keys():
        parser.error(f"no such client: {', '.join(unknown)}; there are {', '.join(clients)}")
    defaults = [client.name for client in CLIENTS if not client.is_opt_in]
    arguments.clients = [clients[name] for name in arguments.names or defaults]
    return arguments


@contextmanager
def _toy_model(folder: Path) -> Iterator[dict[str, str]]:
    """Serves the toy model, and yields what programs are told of it."""
    print("starting the services", flush=True)
    option = "--served-model-name"
    with Stack(
        DEMO_CHECKPOINT,
        folder,
        service_arguments=(option, MODEL),
        llm_arguments=(option, ALIAS),
    ) as stack:
        yield {
            "INTERNVL_URL": f"{stack.url}/v1",
            "INTERNVL_MODEL": MODEL,
            "INTERNVL_ALIAS": ALIAS,
            "INTERNVL_PICTURES": str(PICTURES),
            "INTERNVL_CHECKPOINT": str(DEMO_CHECKPOINT),
        }


@contextmanager
def _perfect_model(folder: Path) -> Iterator[str]:
    """Serves perfect answers under the toy model's names, and yields their base URL."""
    command = [sys.executable, "-m", "tests.clients.perfect", MODEL, ALIAS]
    with (
        (folder / "perfect.log").open("w") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as process,
    ):
        try:
            yield process.stdout.readline().strip() if process.stdout else ""
        finally:
            process.terminate()


def _outcome(client: Client, folder: Path, variables: Mapping[str, str]) -> Outcome | str:
    """Returns what became of a client, or why it did not run; says both on the way."""
    start = time.monotonic()
    print(f"{client.name} {client.version}: installing", flush=True)
    try:
        environment = prepared(client)
    except InstallError as error:
        print(f"  cannot be installed: {error}", flush=True)
        return "not installed"
    print(f"{client.name} {client.version}: running", flush=True)
    outcome = _run(client, environment, folder / f"{client.name}.xml", variables)
    if isinstance(outcome, Outcome):
        for name, reason in outcome.failed.items():
            print(f"  {name}: {reason}", flush=True)
    print(f"  ended after {time.monotonic() - start:.0f} s", flush=True)
    return outcome


def _run(
    client: Client, environment: Path, report: Path, variables: Mapping[str, str]
) -> Outcome | str:
    command = _node_command(report) if client.is_node else _python_command(environment, report)
    try:
        ended = subprocess.run(
            [*command, str(PROGRAMS / client.program)],
            cwd=PROGRAMS,
            env={**variables, "INTERNVL_ENVIRONMENT": str(environment)},
            capture_output=True,
            text=True,
            timeout=RUN_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"took longer than {RUN_SECONDS:g} s"
    if not report.exists():
        print(f"{ended.stdout}{ended.stderr}", flush=True)
        return f"exit status {ended.returncode}"
    return read_outcome(report)


def _python_command(environment: Path, report: Path) -> list[str]:
    python = str(environment / "bin" / "python")
    return [python, "-m", "pytest", "-c", str(PROGRAMS / "pytest.ini"), f"--junitxml={report}"]


def _node_command(report: Path) -> list[str]:
    reporter = ("--test-reporter=junit", f"--test-reporter-destination={report}")
    return ["node", "--test", *reporter]


def _cells(outcome: Outcome | str) -> str:
    if isinstance(outcome, str):
        return f"  {outcome}"
    counts = (outcome.passed, outcome.expected, outcome.skipped, len(outcome.failed))
    return "".join(f"{count:>{width}}" for count, width in zip(counts, (8, 10, 9, 8), strict=True))


if __name__ == "__main__":
    main()
