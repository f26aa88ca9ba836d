"""A process of llama.cpp's llama-server, asked for completions of token ids."""

from __future__ import annotations

import asyncio
import os
import shlex
import tempfile
import time
from asyncio.subprocess import DEVNULL, PIPE, STDOUT, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp

SEQUENCE_COUNT = 8
SEQUENCE_TOKEN_COUNT = 4096
START_SECONDS = 120.0


@dataclass(frozen=True)
class Completion:
    """An answer, and how long it took.

    Attributes:
        token_ids: its tokens.
        prompt_seconds: how long the prompt was read.
        seconds_per_token: mean from one token to the next.
    """

    token_ids: list[int]
    prompt_seconds: float
    seconds_per_token: float


@dataclass(frozen=True)
class LlamaServer:
    """A server that runs: how it was started, and the way to it."""

    command: str
    http: aiohttp.ClientSession

    async def complete(self, token_ids: list[int], max_tokens: int) -> Completion:
        """Generates so many tokens, the most probable ones, and reads the whole prompt anew.

        Returns:
            The answer with the times by the server's own clock.
        """
        body = {
            "prompt": token_ids,
            "n_predict": max_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "cache_prompt": False,
            "return_tokens": True,
        }
        async with self.http.post("/completion", json=body) as response:
            response.raise_for_status()
            answer = await response.json()
        output, timings = answer["tokens"], answer["timings"]
        if (timings["prompt_n"], len(output)) != (len(token_ids), max_tokens):
            raise ValueError(
                f"llama-server read {timings['prompt_n']} tokens and wrote {len(output)}, asked for"
                f" {len(token_ids)} and {max_tokens}"
            )
        # Its clock starts anew with the first token, which comes with the prompt's last step.
        seconds_per_token = timings["predicted_ms"] / 1e3 / (max_tokens - 1)
        return Completion(output, timings["prompt_ms"] / 1e3, seconds_per_token)


async def version(program: Path) -> str:
    """Returns what llama-server says of itself."""
    asked = await asyncio.create_subprocess_exec(program, "--version", stdout=PIPE, stderr=STDOUT)
    output, _ = await asked.communicate()
    return " ".join(output.decode().split())


@asynccontextmanager
async def running(program: Path, model: Path, thread_count: int) -> AsyncIterator[LlamaServer]:
    """Starts a server that is ready, and ends it afterwards.

    Raises:
        RuntimeError: it does not start.
    """
    options = _options(thread_count)
    with tempfile.TemporaryDirectory() as folder:
        socket, log = Path(folder) / "llama.sock", Path(folder) / "log"  # no port to be taken
        arguments = ["--model", str(model), *options, "--host", str(socket)]
        with log.open("wb") as output:
            process = await asyncio.create_subprocess_exec(
                program,
                *arguments,
                env=_environment(),
                stdin=DEVNULL,
                stdout=output,
                stderr=STDOUT,
            )
        try:
            async with _client(socket) as http:
                if not await _is_ready(http, process):
                    raise RuntimeError(f"{program} does not start; its last words:\n{_end(log)}")
                yield LlamaServer(shlex.join([program.name, "--model", model.name, *options]), http)
        finally:
            if process.returncode is None:
                process.terminate()
            await process.wait()


def _environment() -> dict[str, str]:
    """Returns ours but for OpenMP: how our threads wait is not how llama.cpp's do by default."""
    openmp = ("OMP_", "GOMP_", "KMP_")
    return {name: value for name, value in os.environ.items() if not name.startswith(openmp)}


def _client(socket: Path) -> aiohttp.ClientSession:
    connector = aiohttp.UnixConnector(str(socket))
    # The host is a name for the header; a long prompt takes as long as it takes.
    return aiohttp.ClientSession(
        "http://localhost", connector=connector, timeout=aiohttp.ClientTimeout()
    )


def _options(thread_count: int) -> list[str]:
    return [
        *("--threads", f"{thread_count}", "--threads-batch", f"{thread_count}"),
        *("--parallel", f"{SEQUENCE_COUNT}"),
        *("--ctx-size", f"{SEQUENCE_COUNT * SEQUENCE_TOKEN_COUNT}"),
        *("--cache-ram", "0"),  # else it copies each prompt's KV cache before the next prompt
    ]


async def _is_ready(http: aiohttp.ClientSession, process: Process) -> bool:
    deadline = time.monotonic() + START_SECONDS
    while process.returncode is None and time.monotonic() < deadline:
        try:
            async with http.get("/health") as response:
                if response.ok:
                    return True
        except aiohttp.ClientError:
            pass  # it does not listen yet
        await asyncio.sleep(0.05)
    return False


def _end(log: Path) -> str:
    return log.read_text(encoding="utf-8", errors="replace")[-2000:]
