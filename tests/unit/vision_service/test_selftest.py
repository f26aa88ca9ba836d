"""The self-test: torch against torch, TensorRT's double against torch, and what it finds."""

from __future__ import annotations

import gc
import math
import re
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from tests.doubles import tensorrt
from tests.unit.vision_service.checkpoints import SMALL_6B, random_tensors, write_checkpoint
from tests.unit.vision_service.engines.tensorrt.plans import COUNTS, write_plan
from vision_service import selftest
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import VisionEngine
from vision_service.engines.create import create_engine
from vision_service.engines.tensorrt import engine as tensorrt_engine
from vision_service.engines.tensorrt.record import TileCounts
from vision_service.settings import Settings

LINE = (
    r"(?P<engine>\w+): +(?P<tiles>\d+) tile\(s\), cosine (?P<least>[\d.]+) at least and "
    r"(?P<mean>[\d.]+) on average, error (?P<error>[\d.]+), [\d.]+ ms, [\d.]+ tiles/s"
)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Callable[..., None]:
    """Runs the program; TensorRT is the double, on the CPU."""
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    start = tensorrt_engine.start_engine
    monkeypatch.setattr(
        tensorrt_engine,
        "start_engine",
        lambda plan, path, config, _: start(plan, path, config, torch.device("cpu")),
    )

    def run_program(*words: str) -> None:
        options = ["--reference-device", "cpu"]
        if "tensorrt" not in words:
            options += ["--torch.thread-count", "1", "--torch.device", "cpu"]
        monkeypatch.setattr(sys, "argv", ["", "--checkpoint", str(checkpoint), *options, *words])
        selftest.main()

    return run_program


def settings_for(checkpoint: Path, **values: Any) -> selftest.SelftestSettings:
    return selftest.SelftestSettings.model_validate({"checkpoint": checkpoint, **values})


def results(capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    """Returns the numbers of each line, and checks the last one."""
    *lines, last = capsys.readouterr().out.splitlines()
    assert last == "passed"
    matches = [re.fullmatch(LINE, line) for line in lines]
    return [match.groupdict() for match in matches if match]


def test_bfloat16_passes(run: Callable[..., None], capsys: pytest.CaptureFixture[str]) -> None:
    run("--torch.dtype", "bfloat16", "--max-batch-tile-count", "4")
    found = results(capsys)
    assert [int(line["tiles"]) for line in found] == [1, 2, 4, 5, 13]
    for line in found:
        assert line["engine"] == "torch"
        assert 0.9998 < float(line["least"]) <= float(line["mean"]) <= 1
        assert 0 < float(line["error"]) < 0.009


@pytest.mark.slow
def test_a_plan_passes_at_its_profile_and_above(
    run: Callable[..., None], capsys: pytest.CaptureFixture[str], checkpoint: Path
) -> None:
    plan = write_plan(checkpoint)
    tensorrt.runs.clear()
    run("--engine", "tensorrt", "--tensorrt.plan", str(plan), "--tile-counts", "6,5,1")
    assert [(line["engine"], int(line["tiles"])) for line in results(capsys)] == [
        ("tensorrt", 1), ("tensorrt", 5), ("tensorrt", 6),
    ]  # fmt: skip
    repeats = 1 + selftest.RUN_COUNT
    assert tensorrt.runs == [COUNTS.max, *[1] * repeats, *[5] * repeats, *[5, 1] * repeats]


def test_a_plan_of_other_weights_fails(run: Callable[..., None], checkpoint: Path) -> None:
    other = checkpoint.with_name("other")
    write_checkpoint(other, tensors=random_tensors(SMALL_6B, seed=1))
    plan = write_plan(checkpoint, weights=other)
    with pytest.raises(SystemExit, match=r"FAILED: 1 tile\(s\) have a row of cosine"):
        run("--engine", "tensorrt", "--tensorrt.plan", str(plan), "--tile-counts", "1")


def swap_rows(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows[:, 1:2], rows[:, :1], rows[:, 2:]], dim=1)


def swap_tiles(rows: torch.Tensor) -> torch.Tensor:
    return torch.cat([rows[:-2], rows[-1:], rows[-2:-1]])


def stretch(rows: torch.Tensor) -> torch.Tensor:
    return 1.2 * rows


def break_a_value(rows: torch.Tensor) -> torch.Tensor:
    rows[0, 0, 0] = math.nan
    return rows


COSINE = r"a row of cosine 0\.\d{5}, less than --least-cosine 0\.995"
ERROR = r"an error of [01]\.\d{5}, more than --largest-error 0\.05"


@pytest.mark.parametrize(
    ("mistake", "sentence"),
    [
        (swap_rows, rf"{COSINE}\nFAILED: 2 tile\(s\) have {ERROR}"),
        (swap_tiles, rf"{COSINE}\nFAILED: 2 tile\(s\) have {ERROR}"),
        (stretch, ERROR),
        (break_a_value, r"a row of cosine nan, .*\n.* an error of nan, .*"),
    ],
)
def test_a_wrong_engine_fails(
    run: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    mistake: Callable[[torch.Tensor], torch.Tensor],
    sentence: str,
) -> None:
    def create(settings: Settings, config: VisionConfig) -> VisionEngine:
        engine = create_engine(settings, config)
        if settings.torch.dtype == "bfloat16":  # the reference has float32
            right = engine.encode
            monkeypatch.setattr(engine, "encode", lambda tiles: mistake(right(tiles).clone()))
        return engine

    monkeypatch.setattr(selftest, "create_engine", create)
    with pytest.raises(SystemExit, match=rf"^FAILED: 2 tile\(s\) have {sentence}$"):
        run("--torch.dtype", "bfloat16", "--tile-counts", "2")
    assert "passed" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "limit", "sentence"),
    [
        ("--least-cosine", "1", r"row of cosine 0\.9999\d, less than --least-cosine 1\.0"),
        ("--largest-error", "0.001", r"error of 0\.00\d+, more than --largest-error 0\.001"),
    ],
)
def test_the_limits_are_options(
    run: Callable[..., None], option: str, limit: str, sentence: str
) -> None:
    with pytest.raises(SystemExit, match=sentence):
        run("--torch.dtype", "bfloat16", "--tile-counts", "1", option, limit)


def test_the_reference_is_gone_before_the_engine_starts(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    gc.disable()
    request.addfinalizer(gc.enable)
    engines: list[weakref.ref[VisionEngine]] = []
    alive: list[int] = []

    def create(settings: Settings, config: VisionConfig) -> VisionEngine:
        alive.append(sum(engine() is not None for engine in engines))
        engine: Any = create_engine(settings, config)
        engine.itself = engine  # so that it lives on until the collector comes
        engines.append(weakref.ref(engine))
        return cast(VisionEngine, engine)

    monkeypatch.setattr(selftest, "create_engine", create)
    run("--torch.dtype", "float32", "--tile-counts", "1")
    assert alive == [0, 0]


def test_the_reference_is_the_torch_engine_in_float32(checkpoint: Path) -> None:
    settings = settings_for(
        checkpoint, engine="tensorrt", tensorrt={"plan": checkpoint}, reference_device="cpu"
    )
    engine = create_engine(settings.reference, VisionConfig.from_checkpoint(checkpoint))
    assert (type(engine).__name__, engine.dtype) == ("TorchEngine", torch.float32)


@pytest.mark.parametrize(
    ("profile", "expected"),
    [((1, 13, 26), [1, 2, 13, 26, 27]), ((4, 7, 8), [1, 2, 4, 7, 8, 9, 13])],
)
def test_the_batches_are_those_of_the_profile(
    checkpoint: Path, profile: tuple[int, int, int], expected: list[int]
) -> None:
    plan = write_plan(checkpoint, tile_counts=TileCounts(*profile))
    settings = settings_for(checkpoint, engine="tensorrt", tensorrt={"plan": plan})
    assert selftest.batch_sizes(settings) == expected


def test_tiles_are_alike_in_every_run_and_not_among_each_other() -> None:
    tiles = selftest.make_tiles(3, 28)
    assert (tiles.shape, tiles.dtype) == ((3, 3, 28, 28), torch.uint8)
    assert torch.equal(selftest.make_tiles(2, 28), tiles[:2])
    assert not torch.equal(tiles[0], tiles[1])


def test_a_run_that_tensorrt_refuses_is_a_sentence(
    run: Callable[..., None], monkeypatch: pytest.MonkeyPatch, checkpoint: Path
) -> None:
    plan = write_plan(checkpoint)
    monkeypatch.setattr(tensorrt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(
        SystemExit, match=r"^the plan's first run failed: TensorRT refused a run of 5 tiles"
    ):
        run("--engine", "tensorrt", "--tensorrt.plan", str(plan), "--tile-counts", "1")


def test_a_folder_without_a_plan_is_a_sentence(run: Callable[..., None], tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="is no record of a finished plan"):
        run("--engine", "tensorrt", "--tensorrt.plan", str(tmp_path))


def test_a_checkpoint_that_is_none_is_a_sentence(
    run: Callable[..., None], checkpoint: Path
) -> None:
    (checkpoint / "config.json").unlink()
    with pytest.raises(SystemExit, match=r"there is no file .*config\.json"):
        run()
