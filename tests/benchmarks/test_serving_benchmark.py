"""The benchmark of the whole product: its arithmetic, and real processes under it.

It is run on rented machines, where a misspelt name costs more than here.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from gateway.local.stack import Stack
from tests.benchmarks.crossover.clients import Answer, ask
from tests.benchmarks.crossover.workload import Workload, photos
from tests.benchmarks.report import ReportBook
from tests.benchmarks.serving import __main__ as program
from tests.benchmarks.serving.__main__ import HERE, Bench, Grid, client_process_count
from tests.benchmarks.serving.chats import Chats, Kind, add_chats, chats_report, run_chats
from tests.benchmarks.serving.product import Lines, Product, serving
from tests.benchmarks.serving.stages import (
    ENGINE,
    HTTP,
    STAGES,
    START,
    TO_VISION,
    WAY,
    WORKER,
    stage_seconds,
)
from tests.benchmarks.serving.table import Row, check_tiles, load_report, stages_report
from tests.served_model import CUSTOMERS_MODEL

GATEWAY = {
    "body_seconds": 0.01,
    "fetch_seconds": 0.02,
    "encode_wait_seconds": 0.2,
    "transfer_seconds": 0.05,
    "prefill_seconds": 0.1,
    "first_token_seconds": 0.4,
}
VISION = {
    "tile_count": 13,
    "worker_wait_seconds": 0.02,
    "preprocess_seconds": 0.08,
    "queue_seconds": 0.01,
    "forward_seconds": 0.03,
}
LLM = {"prompt_seconds": 0.5, "first_token_seconds": 0.58}
FAST = ["--device", "cpu", "--tiny", "--clients", "1", "2", "--tokens", "4"]
FAST += ["--seconds", "0.2", "--warm-seconds", "0.1", "--tiles", "13", "--turns", "1"]
# Of one tile, with what the template has around it.
PICTURE_TOKEN_COUNT = 256
PACKAGES = ("protos", "vision_service", "llm_service", "gateway")


STREAM = (
    b'data: {"choices": [{"delta": {"content": "one"}}]}\n\n',
    b'data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 2}}\n\n',
    b"data: [DONE]\n\n",
)


# The stages.


def test_the_stages_are_all_of_the_time_to_the_first_token() -> None:
    seconds = stage_seconds(0.45, {"gateway": GATEWAY, "vision": VISION, "llm": LLM})
    assert tuple(seconds) == STAGES
    assert sum(seconds.values()) == pytest.approx(0.45)
    assert seconds[HTTP] == pytest.approx(0.05)
    assert seconds[START] == pytest.approx(0.02)
    assert seconds[TO_VISION] == pytest.approx(0.06)
    assert seconds[ENGINE] == pytest.approx(0.08)
    assert seconds[WAY] == pytest.approx(0.07)


def test_an_older_trees_logs_have_fewer_clocks() -> None:
    vision = {name: value for name, value in VISION.items() if name != "worker_wait_seconds"}
    lines = {"gateway": GATEWAY, "vision": vision, "llm": {"first_token_seconds": 0.58}}
    seconds = stage_seconds(0.45, lines)
    assert sum(seconds.values()) == pytest.approx(0.45)
    assert seconds[WORKER] == 0
    assert seconds[TO_VISION] == pytest.approx(0.08)
    assert seconds[ENGINE] == pytest.approx(0.1)
    assert seconds[WAY] == pytest.approx(0.05)


def test_other_tiles_than_were_meant_are_an_error() -> None:
    lines: dict[str, Lines] = {
        "one": {"vision": VISION},
        "two": {"vision": {**VISION, "tile_count": 7}},
    }
    check_tiles({"one": lines["one"]}, 13)
    with pytest.raises(ValueError, match=r"pictures of 13 tiles became \[7, 13\]"):
        check_tiles(lines, 13)


# The tables.


def answered(sent: float, first: float, *later: float) -> Answer:
    return Answer("name", sent, first, later[-1], 3400, 5, arrivals=[first, *later])


def test_a_loads_row_counts_whole_answers_and_tells_what_failed() -> None:
    answers = [
        answered(100.0, 101.0, 101.1, 101.4),
        answered(101.0, 104.0, 104.1, 104.8),
        Answer("name", 100.0, 100.0, 100.1, error="429: later", status=429),
        Answer("name", 101.0, 101.0, 105.0, error="ServerDisconnectedError()", status=0),
        Answer("name", 102.0, 102.0, 102.1, error="429: later", status=429),
    ]
    stages = {stage: [0.1, 0.3] for stage in STAGES}
    row = Row("now", 13, 32, answers, stages)
    (cells,) = load_report([row]).rows
    assert cells == [
        "13 tiles, 32 clients, now",
        "0.40",  # two in five seconds
        "2",
        "2000 / 2980",
        "150.0 / 199.0",
        "200.0 / 688.0",
        "3400",
        "2",
        "1 x broken, 2 x 429",
        "5.0",
    ]
    table = stages_report([row], "now", 13)
    assert [*table.columns] == ["stage", "32 clients"]
    assert [row[0] for row in table.rows[:-2]] == list(STAGES)
    assert table.rows[0][1] == "200.0 / 298.0"
    assert table.rows[-2][1] == f"{200 * len(STAGES):.1f}"
    assert table.rows[-1][1] == "2000.0 / 2980.0"


def test_a_load_that_is_refused_altogether_has_a_row() -> None:
    refused = Answer("name", 1.0, 1.0, 2.0, error="429: later", status=429)
    row = Row("now", 1, 1, [refused], {stage: [] for stage in STAGES})
    (cells,) = load_report([row]).rows
    assert cells[1:8] == ["0.00", "0", "-", "-", "-", "-", "0"]
    assert cells[8] == "1 x 429"
    assert stages_report([row], "now", 1).rows[0][1] == "-"


# The clients.


@asynccontextmanager
async def gateway_that(answer: Callable[[web.Request], Awaitable[Any]]) -> AsyncIterator[str]:
    """Yields the address of a server that answers chat requests so."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


async def asked(answer: Callable[[web.Request], Awaitable[Any]]) -> Answer:
    async with gateway_that(answer) as url, aiohttp.ClientSession() as http:
        return await ask(http, url, b"{}")


async def test_a_comment_that_keeps_a_stream_alive_is_no_first_token() -> None:
    sent: list[float] = []

    async def answer(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for part in (b": keep-alive\n\n", *STREAM):
            sent.append(time.time())
            await response.write(part)
            await asyncio.sleep(0.1)
        return response

    found = await asked(answer)
    assert (found.error, found.status) == ("", 200)
    assert (found.prompt_token_count, found.output_token_count) == (7, 2)
    comment, *events = sent
    assert comment + 0.1 <= events[0] <= found.first
    assert len(found.arrivals) == len(events)
    assert found.sent <= comment
    assert found.arrivals[-1] <= found.last


async def test_a_refusal_and_an_answer_that_breaks_off_are_told() -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=429, text="the queue is full")

    async def end_early(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(STREAM[0])
        return response

    async def break_off(request: web.Request) -> web.StreamResponse:
        response = await end_early(request)
        assert request.transport is not None
        request.transport.abort()
        return response

    refused = await asked(refuse)
    assert (refused.status, refused.error) == (429, "429: b'the queue is full'")
    early = await asked(end_early)
    assert (early.status, early.output_token_count) == (200, 0)
    assert "one" in early.error
    broken = await asked(break_off)
    assert broken.output_token_count == 0
    assert "Error" in broken.error


# The processes.


@pytest.mark.parametrize("llm", [{"event": "generated"}, {"event": "request", "route": "Generate"}])
def test_lines_are_those_of_the_requests_that_are_new_and_whole(
    llm: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.benchmarks.serving.product.LOG_SECONDS", 0.1)
    product = Product("now", "model", "http://nowhere", tmp_path)
    whole = {
        "gateway": {"event": "request", "route": "/v1/chat/completions"},
        "vision": {"event": "request", "route": "EncodeImage"},
        "llm": llm,
    }
    for name, line in whole.items():
        log = [
            "a library's line",
            json.dumps({"event": "serving"}),
            json.dumps({**line, "request_id": "one", "of": name}),
            json.dumps({**line, "request_id": "another"}),
            '{"event": "half a li',
        ]
        (tmp_path / f"{name}.log").write_text("\n".join(log))
    (lines,) = product.lines({"one"}).values()
    assert {name: line["of"] for name, line in lines.items()} == {name: name for name in whole}
    with pytest.raises(ValueError, match="1 of 1 requests are not in all logs"):
        product.lines({"two"})
    for name, line in whole.items():
        with (tmp_path / f"{name}.log").open("a") as file:
            file.write('ne"}\n' + json.dumps({**line, "request_id": "two"}) + "\n")
    assert product.lines({"two"})["two"].keys() == whole.keys()


def write_program(tree: Path, text: str) -> None:
    """Writes a tree whose `internvl-serve` is this program."""
    folder = tree / "gateway" / "local"
    folder.mkdir(parents=True)
    for package in (tree / "gateway", folder):
        (package / "__init__.py").touch()
    (folder / "__main__.py").write_text(text)


def test_a_products_own_tree_serves_and_ends_with_the_block(tmp_path: Path) -> None:
    text = (
        "import os, pathlib, signal\n"
        "pathlib.Path('option').write_text(os.environ['OPTION'])\n"
        "pathlib.Path('pid').write_text(str(os.getpid()))\n"
        "print('it is served at http://127.0.0.1:1', flush=True)\n"
        "signal.pause()\n"
    )
    write_program(tmp_path, text)
    with serving("old", tmp_path, tmp_path, {"OPTION": "7"}) as product:
        assert (tmp_path / "option").read_text() == "7"
        assert product.url.startswith("http://127.0.0.1:")
        pid = int((tmp_path / "pid").read_text())
        os.kill(pid, 0)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_product_that_does_not_start_is_an_error(tmp_path: Path) -> None:
    write_program(tmp_path, "print('the gateway did not start')\n")
    with (
        pytest.raises(RuntimeError, match="did not start"),
        serving("old", tmp_path, tmp_path, {}),
    ):
        pass


def test_clients_leave_most_cores_to_the_services() -> None:
    assert [client_process_count(cores) for cores in (1, 2, 16, 128)] == [1, 1, 4, 8]


# Real processes.


@pytest.mark.slow
def test_loads_on_the_shipped_model(
    served: Stack, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    product = Product("now", CUSTOMERS_MODEL, served.url, served.gateway.log.parent)
    grid = Grid((1,), (1, 2), token_count=8, seconds=0.2, warm_seconds=0.1, turn_count=2)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as clients:
        book = ReportBook(tmp_path, "serving", "title")
        bench = Bench("toy", [product], grid, {1: photos(1, shrink=8)}, clients, 2, book, 0.0)
        bench.run()
    assert bench.broken_count == 0
    assert [row.client_count for row in bench.rows] == [1, 2]
    assert [*_parts(tmp_path)] == [
        "toy serving over HTTP",
        "toy stages of the first token, 1 tiles, now",
        "toy two turns over HTTP",
    ]
    for row in bench.rows:
        assert len(row.whole) == len(row.answers) >= row.client_count
        for one in row.whole:
            assert one.output_token_count == 8
            assert one.sent < one.arrivals[0] == one.first <= one.arrivals[-1] <= one.last
        for stage in STAGES:
            assert len(row.stages[stage]) == len(row.whole)
            assert min(row.stages[stage]) >= 0, stage
    assert len({one.prompt_token_count for one in bench.rows[1].whole}) > 1
    assert "1 tiles, 2 clients, now" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "picture_counts"),
    [("questions", [2, 2, 2]), ("pictures", [1, 2, 2]), ("window", [2, 2, 2])],
)
def test_chats_on_the_shipped_model(served: Stack, kind: Kind, picture_counts: list[int]) -> None:
    workload = Workload(
        CUSTOMERS_MODEL, photos(1, shrink=2), 1, 4, seed="chats", word_counts=(1, 3)
    )
    chats = Chats(kind, user_count=2, turn_count=3, picture_count=2, patch_count=1)
    rounds = run_chats(served.url, workload, chats)
    report = chats_report()
    add_chats(report, "now", rounds)
    assert [row[0] for row in report.rows] == [f"now, turn {number}" for number in (1, 2, 3)]
    prompts = [[turn.prompt_token_count for turn in turns] for turns in rounds]
    assert all(len(counts) == 2 for counts in prompts)
    assert [round(min(counts) / PICTURE_TOKEN_COUNT) for counts in prompts] == picture_counts
    cached = [min(turn.cached_token_count for turn in turns) for turns in rounds]
    if kind == "window":
        assert max(cached) < PICTURE_TOKEN_COUNT
    else:
        assert cached[0] < PICTURE_TOKEN_COUNT <= cached[2]


@pytest.mark.slow
def test_pictures_of_other_tiles_end_the_run(served: Stack, tmp_path: Path) -> None:
    product = Product("now", CUSTOMERS_MODEL, served.url, served.gateway.log.parent)
    grid = Grid((13,), (1,), token_count=1, seconds=0.0, warm_seconds=0.0, turn_count=0)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as clients:
        book = ReportBook(tmp_path, "serving", "title")
        bench = Bench("toy", [product], grid, {13: photos(13, shrink=8)}, clients, 1, book, 0.0)
        # The shipped model has four tiles at most, and the thumbnail.
        with pytest.raises(ValueError, match="pictures of 13 tiles became"):
            bench.run()


@pytest.mark.slow
def test_two_trees_take_turns(tmp_path: Path) -> None:
    older = tmp_path / "older"
    for package in PACKAGES:
        shutil.copytree(HERE / package, older / package)
    _replace(older / "vision_service" / "embedding.py", '"worker_wait"', '"another"')
    _replace(older / "llm_service" / "clock.py", '("prompt", self', '("another", self')
    assert program.main([*FAST, "--out", str(tmp_path / "out"), "--baseline", str(older)]) == 0
    parts = _parts(tmp_path / "out")
    assert [*parts] == [
        "8B serving over HTTP",
        "8B stages of the first token, 13 tiles, before",
        "8B stages of the first token, 13 tiles, now",
        "8B two turns over HTTP",
    ]
    loads, before, now, turns = (part["seconds"] for part in parts.values())
    assert [*loads] == [
        f"13 tiles, {clients}, {tree}"
        for clients in ("1 client", "2 clients")
        for tree in ("before", "now")
    ]
    assert [*turns] == ["13 tiles, 1, before", "13 tiles, 1, now"]
    assert not any(map(any, before[WORKER].values()))  # its log does not tell
    assert all(map(all, now[WORKER].values()))


def _replace(file: Path, text: str, other: str) -> None:
    content = file.read_text()
    assert content.count(text) == 1
    file.write_text(content.replace(text, other))


def _parts(folder: Path) -> dict[str, Any]:
    parts: dict[str, Any] = json.loads((folder / "serving.json").read_text())
    return parts
