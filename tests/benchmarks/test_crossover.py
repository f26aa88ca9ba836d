"""The crossover benchmark: its arithmetic, and a whole run of it without a GPU.

It is run on rented machines, where a misspelt name costs more than here.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from gateway.openai.requests import parse_chat_request
from protos.identity import content_digest
from tests.benchmarks.crossover import simulated_gpu
from tests.benchmarks.crossover.__main__ import main
from tests.benchmarks.crossover.arrangements import ARRANGEMENTS, Deployment, Launch
from tests.benchmarks.crossover.backends import SimulatedBackend
from tests.benchmarks.crossover.clients import Answer
from tests.benchmarks.crossover.figures import Cell, figures
from tests.benchmarks.crossover.gpu_use import GpuUse
from tests.benchmarks.crossover.results import Results, ResultsFile, merged, read_results
from tests.benchmarks.crossover.simulated_gpu import SimulatedGpus, create_gpus
from tests.benchmarks.crossover.simulated_services import Simulation
from tests.benchmarks.crossover.stage_times import MEASURED_TOKEN_COUNT, MS, SHAPES, Span, encode
from tests.benchmarks.crossover.workload import Workload, photos
from vision_service.tiling import choose_grid

FAST = ["--tokens", "4", "--rounds", "2", "--clients", "2", "--cell-seconds", "30"]


# The requests.


@pytest.mark.parametrize("tile_count", [13, 1])
@pytest.mark.parametrize("shrink", [1, 8])
def test_each_photo_becomes_as_many_tiles_as_it_should(tile_count: int, shrink: int) -> None:
    sizes = set()
    for photo in photos(tile_count, shrink=shrink):
        with Image.open(io.BytesIO(b"\xff\xd8" + photo.rest)) as image:
            grid = choose_grid(image.width, image.height, max_tile_count=12, tile_size=448)
        assert grid.tile_count == tile_count
        sizes.add(image.size)
    assert len(sizes) > 5
    assert {width > height for width, height in sizes} == {True, False}


def test_no_two_pictures_are_the_same_file_and_a_seed_repeats_them() -> None:
    workload = Workload("model", photos(1, shrink=8), 3, 128, "seed")
    questions = [workload.question(number) for number in range(20)]
    files = [_files(question.body) for question in questions]
    digests = [content_digest(file) for each in files for file in each]
    assert len(set(digests)) == len(digests) == 60
    for question, (first, *_) in zip(questions, files, strict=True):
        assert question.first_picture == content_digest(first)
        Image.open(io.BytesIO(first)).load()
    assert workload.question(7) == questions[7]
    prompts = {
        json.loads(question.body)["messages"][0]["content"][-1]["text"] for question in questions
    }
    assert len({len(prompt.split()) for prompt in prompts}) > 5


def test_the_gateway_takes_the_requests() -> None:
    question = Workload("model", photos(1, shrink=8), 2, 7, "seed").question(0)
    request = parse_chat_request(question.body)
    assert len(list(request.images())) == 2
    assert request.max_tokens == 7


def _files(body: bytes) -> list[bytes]:
    *images, _ = json.loads(body)["messages"][0]["content"]
    urls = [image["image_url"]["url"] for image in images]
    return [base64.b64decode(url.partition(",")[2], validate=True) for url in urls]


# The figures.


def test_figures_leave_the_beginning_out_and_count_what_failed(tmp_path: Path) -> None:
    log = tmp_path / "vision.log"
    log.write_text(
        _encoding("three", "2026-11-29T12:00:00.000000Z")
        + "a library's line\n"
        + _encoding("three", "2026-11-29T12:00:00.200000Z")
        + _event("embeddings_arrived", "three", "2026-11-29T12:00:00.300000Z")
    )
    answers = [
        Answer("one", 0.0, 1.0, 8.0, 100, 8),
        Answer("two", 0.0, 1.0, 10.0, 100, 8),  # the window begins here
        Answer("three", 10.0, 14.0, 14.36, 100, 5),
        Answer("four", 10.0, 11.0, 15.0, error="429"),
        Answer("five", 10.0, 12.0, 18.0, 200, 4),
        Answer("six", 12.0, 18.0, 20.0, 300, 101),
    ]
    use = GpuUse()
    found = figures(answers, 2, [log], use, slowness=2.0)
    assert found is not None
    assert (found.answer_count, found.error_count, found.error) == (4, 1, "429")
    assert found.window_seconds == 5.0
    assert found.requests_per_second == 0.6
    assert found.first_token_seconds == [1.0, 2.0, 3.0]
    assert found.output_token_seconds == [0.01, 0.045, 1.0]
    assert found.goodput == 0.25  # "three"; "five" writes too slowly, "six" begins too late
    assert found.embedding_seconds == [0.1]
    assert found.prompt_token_count == 200


def test_too_few_answers_give_no_figures() -> None:
    assert figures([Answer("one", 0.0, 1.0, 2.0, 100, 8)], 4, [], GpuUse(), 1.0) is None
    failed = [Answer(str(number), 0.0, 0.0, 1.0, error="503") for number in range(8)]
    assert figures(failed, 2, [], GpuUse(), 1.0) is None


def test_the_use_of_a_gpu_is_the_mean_of_a_window(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 1.0, 2.0, 2.0, 3.0, 3.0])
    monkeypatch.setattr("tests.benchmarks.crossover.gpu_use.time.time", lambda: next(moments))
    use = GpuUse()
    for shares in ((1.0, 0.0), (0.5, 0.2), (0.7, 0.4)):
        for gpu, share in enumerate(shares):
            use.add(gpu, share)
    assert use.between(1.5, 9.0) == [0.6, 0.3]


def _encoding(request_id: str, timestamp: str) -> str:
    facts: dict[str, str | float] = {
        "route": "EncodeImage",
        "status": "OK",
        "transfer_seconds": 0.1,
    }
    return _event("request", request_id, timestamp, **facts)


def _event(event: str, request_id: str, timestamp: str, **facts: str | float) -> str:
    fields = {"event": event, "request_id": request_id, "timestamp": timestamp, **facts}
    return json.dumps(fields) + "\n"


# The arrangements.


class NamedBackend:
    """Launches that say where they belong."""

    model = "model"

    def vision(self, gpu: int) -> Launch:
        return Launch("vision", [f"gpu {gpu}"], {})

    def llm(self, gpu: int, neighbour_count: int) -> Launch:
        return Launch("llm", [f"gpu {gpu}, neighbours {neighbour_count}"], {})

    def gateway(self) -> Launch:
        return Launch("gateway", [], {})


def test_the_services_of_each_arrangement(tmp_path: Path) -> None:
    split, stacks, pooled = (
        Deployment(ARRANGEMENTS[name], NamedBackend(), tmp_path / name)
        for name in ("split", "stacks", "pooled")
    )
    assert [service.arguments for service in split.services[:2]] == [
        ["gpu 0"],
        ["gpu 1, neighbours 0"],
    ]
    for deployment, vision_counts in ((split, [1]), (stacks, [1, 1]), (pooled, [2, 2])):
        routes = [
            dict(zip(g.arguments[::2], g.arguments[1::2], strict=True)) for g in deployment.gateways
        ]
        visions = [route["--vision-address"].removeprefix("ipv4:").split(",") for route in routes]
        assert [len(addresses) for addresses in visions] == vision_counts
        assert {address for addresses in visions for address in addresses} == {
            vision.address for vision in deployment.visions
        }
        assert [route["--llm-address"] for route in routes] == [
            f"ipv4:{llm.address}" for llm in deployment.llms
        ]


def test_folded_services_share_the_gpus_that_are_there(tmp_path: Path) -> None:
    folded = ARRANGEMENTS["stacks"].folded(1)
    assert (folded.vision_gpus, folded.llm_gpus) == ((0, 0), (0, 0))
    assert folded.routes == ARRANGEMENTS["stacks"].routes
    assert ARRANGEMENTS["stacks"].folded(2) == ARRANGEMENTS["stacks"]
    deployment = Deployment(folded, NamedBackend(), tmp_path)
    assert [llm.arguments for llm in deployment.llms] == [["gpu 0, neighbours 1"]] * 2


# The simulation.


def test_stage_times_are_those_that_were_measured() -> None:
    large, small = SHAPES["8B"], SHAPES["1B"]
    assert large.prefill(MEASURED_TOKEN_COUNT) == pytest.approx(85.6 * MS, rel=0.01)
    assert small.prefill(MEASURED_TOKEN_COUNT) == pytest.approx(14.6 * MS, rel=0.01)
    for times, measured in ((large, {1: 4.63, 8: 5.55, 32: 8.14}), (small, {1: 0.92, 32: 1.56})):
        for count, milliseconds in measured.items():
            spans = [Span(MEASURED_TOKEN_COUNT, MEASURED_TOKEN_COUNT + 1)] * count
            assert times.step(spans) == pytest.approx(milliseconds * MS, rel=0.03)
    assert encode(13) == pytest.approx(18.4 * MS, rel=0.01)
    assert large.relay(13 * 256) + large.travel(13 * 256) == pytest.approx(95 * MS, rel=0.01)


def test_a_simulated_gpu_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(f"{simulated_gpu.__name__}.time.perf_counter", lambda: clock[0])
    file = create_gpus(tmp_path / "gpus")
    alone = _seconds(SimulatedGpus(file).compute(0, 0, "vision", 1.0), clock)
    assert alone == pytest.approx(1.0)
    neighbour = SimulatedGpus(file).compute(0, 1, "decode", 99.0)
    next(neighbour)
    assert SimulatedGpus(file).is_busy(0)
    assert not SimulatedGpus(file).is_busy(1)
    beside_decode = _seconds(SimulatedGpus(file).compute(0, 0, "vision", 1.0), clock)
    assert beside_decode == pytest.approx(2 / 0.9)
    elsewhere = _seconds(SimulatedGpus(file).compute(1, 0, "vision", 1.0), clock)
    assert elsewhere == pytest.approx(1.0)
    neighbour.close()
    assert not SimulatedGpus(file).is_busy(0)


def test_the_services_of_a_run_have_slots_of_their_own(tmp_path: Path) -> None:
    file = create_gpus(tmp_path / "gpus")
    backend = SimulatedBackend(tmp_path, "8B", 1.0, file)
    places = []
    for name in ARRANGEMENTS:
        deployment = Deployment(ARRANGEMENTS[name].folded(1), backend, tmp_path / name)
        for service in (*deployment.visions, *deployment.llms):
            simulation = Simulation.parse(service.arguments[0])
            places.append((simulation.gpu, simulation.slot))
            next(SimulatedGpus(file).compute(*places[-1], "decode", 1.0))
    assert len(set(places)) == len(places) == 10
    with pytest.raises(ValueError, match="no slot 64"):
        next(SimulatedGpus(file).compute(0, 64, "decode", 1.0))


def _seconds(pauses: Iterator[float], clock: list[float]) -> float:
    begin = clock[0]
    for pause in pauses:
        clock[0] += pause
    return clock[0] - begin


# The whole run.


@pytest.mark.slow
@pytest.mark.parametrize("name", ["split", pytest.param("pooled", marks=pytest.mark.slow)])
def test_a_simulated_run_from_processes_to_the_chart(tmp_path: Path, name: str) -> None:
    file = tmp_path / "results.jsonl"
    only = ["--shape", "1B", "--arrangement", name, "--pictures", "1", "2", "--tiles", "1"]
    # So many tokens that no reader is busy for as long as an answer takes.
    options = [*FAST, "--tokens", "128", "--slowness", "1"]
    main(["--simulate", *only, *options, "--results", str(file)])
    results = read_results(file)
    assert not results.skipped
    assert [cell.picture_count for cell in results.cells] == [1, 2]
    assert not any(cell.is_folded for cell in results.cells)
    one, two = results.cells.values()
    for found in (one, two):
        assert (found.answer_count, found.error_count) == (4, 0)
        assert len(found.embedding_seconds) == 4
        assert len(found.gpu_use) == 2
        assert all(0 <= share <= 1 for share in found.gpu_use)
        # 0.9 ms of the GPU, 1.2 ms of the host, and whatever this machine adds; but tokens leave
        # in eights, and a reader that was busy gets some with the first.
        assert found.output_token_seconds[0] >= 0.0012 / 3
    assert 256 + 10 < one.prompt_token_count < 2 * 256 < two.prompt_token_count < 3 * 256
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "**Simulated**" in page
    assert "(results.svg)" in page
    assert "<svg" in file.with_suffix(".svg").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_run_of_the_real_engines_folded_onto_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    only = ["--shape", "8B", "--pictures", "1", "--tiles", "1"]
    main(["--tiny", *only, *FAST, "--results", str(file)])
    results = read_results(file)
    assert [(cell.arrangement, cell.is_folded) for cell in results.cells] == [
        ("split", True),
        ("stacks", True),
    ]
    for found in results.cells.values():
        assert (found.answer_count, found.error_count) == (4, 0)
        assert len(found.embedding_seconds) == 4
    assert "split, stacks ran folded onto it" in file.with_suffix(".md").read_text(encoding="utf-8")


def test_without_time_nothing_is_started_and_the_page_says_so(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    only = ["--shape", "1B", "--arrangement", "split", "--pictures", "1", "--tiles", "1"]
    main(["--simulate", *only, *FAST, "--seconds", "0", "--results", str(file)])
    assert list(read_results(file).skipped.values()) == ["the time for the run was over"]
    page = file.with_suffix(".md").read_text(encoding="utf-8")
    assert "1B split, 1 tiles, 1 pictures, 2 clients: the time for the run was over" in page


def test_results_are_read_as_they_were_written(tmp_path: Path) -> None:
    cells = [Cell("8B", "split", True, 13, count, 4) for count in (1, 2)]
    answers = [Answer(str(number), 0.0, 0.5, 1.0 + number, 100, 8) for number in range(4)]
    found = figures(answers, 2, [], GpuUse(), 1.0)
    assert found is not None
    file = ResultsFile(tmp_path / "results.jsonl", {"note": "a note"})
    file.add(cells[0], found)
    file.skip(cells[1], "why")
    expected = Results({"note": "a note"}, {cells[0]: found}, {cells[1]: "why"})
    assert read_results(tmp_path / "results.jsonl") == expected


def test_of_two_runs_the_later_one_counts_where_both_have_a_cell() -> None:
    cells = [Cell("8B", "split", False, 13, count, 4) for count in (1, 2)]
    answers = [Answer(str(number), 0.0, 0.5, 1.0 + number, 100, 8) for number in range(6)]
    early = figures(answers[:4], 2, [], GpuUse(), 1.0)
    late = figures(answers, 2, [], GpuUse(), 1.0)
    assert early is not None
    assert late is not None
    first = Results({"command": "one", "note": "n"}, {cells[0]: early}, {cells[1]: "why"})
    second = Results({"command": "two", "note": "n"}, {cells[0]: late, cells[1]: early})
    whole = merged([first, second])
    assert whole.cells == {cells[0]: late, cells[1]: early}
    assert not whole.skipped
    assert whole.run == {"command": "one`, `two", "note": "n"}
