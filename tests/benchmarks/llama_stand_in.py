"""Stands in for llama-server in a test: its options and answers, and no model."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from aiohttp import web

OPTIONS = ("--model", "--host", "--threads", "--threads-batch", "--parallel", "--ctx-size")
READ_MS, WRITE_MS = 12.0, 3.0


class StandIn:
    """Answers each prompt with the same token over and over, in times that it makes up."""

    def __init__(self, token_id: int, asked: Path) -> None:
        self._token_id = token_id
        self._asked = asked

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    async def completion(self, request: web.Request) -> web.Response:
        body = await request.json()
        with self._asked.open("a") as file:
            file.write(json.dumps(body) + "\n")
        count = body["n_predict"]
        timings = {
            "prompt_n": len(body["prompt"]),
            "prompt_ms": READ_MS,
            "predicted_n": count,
            "predicted_ms": WRITE_MS * (count - 1),
        }
        return web.json_response({"tokens": [self._token_id] * count, "timings": timings})


def main(token_id: int, asked: Path) -> None:
    """Runs as llama-server does."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--version", action="version", version="version: 1 (stand-in)")
    parser.add_argument("--cache-ram", choices=["0"])
    for option in OPTIONS:
        parser.add_argument(option, required=True)
    options = parser.parse_args()
    if not Path(options.model).is_file():
        parser.error("failed to load model")
    if "OMP_WAIT_POLICY" in os.environ:
        parser.error("another's settings of OpenMP")
    stand_in = StandIn(token_id, asked)
    app = web.Application()
    app.router.add_get("/health", stand_in.health)
    app.router.add_post("/completion", stand_in.completion)
    web.run_app(app, path=options.host, print=None)
