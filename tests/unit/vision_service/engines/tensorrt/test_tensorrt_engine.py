"""The TensorRT engine over the strict double: embeddings, batches, and a sentence a refusal."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.doubles import tensorrt
from tests.fake_libraries import write_library
from tests.unit.vision_service.checkpoints import SMALL_6B, changed, write_checkpoint
from tests.unit.vision_service.engines.tensorrt.plans import torch_engine, write_plan
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import DTYPES, EngineStartError
from vision_service.engines.tensorrt.engine import Plan, TensorrtEngine, start_engine
from vision_service.engines.tensorrt.record import (
    PLAN_FILE,
    RECORD_FILE,
    Gpu,
    PlanRecord,
    TileCounts,
)

H100 = Gpu("NVIDIA H100", "9.0")


@pytest.fixture(autouse=True)
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", tensorrt)
    tensorrt.runs.clear()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "checkpoint")


def start(folder: Path, device: str = "cpu") -> TensorrtEngine:
    checkpoint = folder.with_name("checkpoint")
    config = VisionConfig.from_checkpoint(checkpoint)
    return start_engine(folder, checkpoint, config, torch.device(device))


def image(tile_count: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (tile_count, 3, 28, 28), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_embeddings_are_those_of_the_torch_engine(checkpoint: Path, dtype: str) -> None:
    expected, engine = torch_engine(checkpoint, dtype), start(write_plan(checkpoint, dtype))
    assert (engine.dtype, engine.weights_sha256) == (DTYPES[dtype], expected.weights_sha256)
    for tile_count in (1, 2, 5):
        tiles = image(tile_count, tile_count)
        torch.testing.assert_close(engine.encode(tiles), expected.encode(tiles))


def test_the_largest_run_is_made_before_the_engine_is_there(checkpoint: Path) -> None:
    start(write_plan(checkpoint))
    assert tensorrt.runs == [5]


def test_a_batch_above_the_profile_is_split(checkpoint: Path) -> None:
    engine, expected = start(write_plan(checkpoint)), torch_engine(checkpoint)
    images = [image(4, 1), image(3, 2), image(5, 3)]
    tensorrt.runs.clear()
    embeddings = engine.submit(images).wait()
    assert tensorrt.runs == [5, 5, 2]
    for found, tiles in zip(embeddings, images, strict=True):
        torch.testing.assert_close(found, expected.encode(tiles))


def test_a_run_below_the_profile_is_filled_up(checkpoint: Path) -> None:
    engine = start(write_plan(checkpoint, tile_counts=TileCounts(4, 4, 4)))
    images = [image(1, 1), image(4, 2)]
    tensorrt.runs.clear()
    batch = engine.submit(images)
    embeddings = batch.wait()
    assert (tensorrt.runs, batch.padding_tile_count) == ([4, 4], 3)
    expected = torch_engine(checkpoint)
    for found, tiles in zip(embeddings, images, strict=True):
        torch.testing.assert_close(found, expected.encode(tiles))


def test_embeddings_share_no_memory(checkpoint: Path) -> None:
    batch = start(write_plan(checkpoint)).submit([image(1, 1), image(2, 2)])
    assert batch.is_ready()
    for embeddings in batch.wait():
        assert embeddings.untyped_storage().nbytes() == embeddings.nbytes


def spoil(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Makes a run's embedding of one tile NaN."""
    run = Plan.run

    def broken(plan: Plan, tiles: torch.Tensor, handle: int) -> torch.Tensor:
        rows = run(plan, tiles, handle)
        rows[index, 1, 2] = torch.nan
        return rows

    monkeypatch.setattr(Plan, "run", broken)


def test_a_batch_tells_which_image_is_not_finite(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = start(write_plan(checkpoint))
    spoil(monkeypatch, 2)
    batch = engine.submit([image(2, 1), image(2, 2), image(1, 3)])
    batch.wait()
    assert batch.are_finite() == [True, False, True]


def test_a_plan_whose_first_embeddings_are_not_finite_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_plan(checkpoint)
    spoil(monkeypatch, 1)
    with pytest.raises(EngineStartError, match="the plan's embeddings are not finite in float"):
        start(folder)


def test_a_run_that_tensorrt_refuses_is_an_error(checkpoint: Path) -> None:
    engine = start(write_plan(checkpoint))
    with pytest.raises(RuntimeError, match="TensorRT refused a run of 1 tiles"):
        engine.encode(image(1, 1)[:, :, :14])


def test_a_folder_without_a_record_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint)
    (folder / RECORD_FILE).unlink()
    with pytest.raises(EngineStartError, match=r"plan\.json: is no record of a finished plan"):
        start(folder)


def test_a_record_with_another_field_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint)
    (folder / RECORD_FILE).write_text('{"plan": ""}')
    with pytest.raises(EngineStartError, match="is no record of a finished plan"):
        start(folder)


def test_a_plan_of_another_version_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint, library_version="10.13.0.35")
    with pytest.raises(
        EngineStartError, match=r"version of tensorrt 10\.13\.0\.35, but here it is 10\.14\.1\.48"
    ):
        start(folder)


def test_a_library_that_is_not_installed_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    folder = write_plan(checkpoint, library="tensorrt_rtx")
    with pytest.raises(EngineStartError, match="tensorrt_rtx, which cannot be imported here"):
        start(folder)


@pytest.mark.parametrize(("present", "found"), [(None, "none"), (Gpu("A100", "8.0"), r"8\.0")])
def test_a_plan_for_another_gpu_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, present: Gpu | None, found: str
) -> None:
    monkeypatch.setattr(Gpu, "present", lambda: present)
    with pytest.raises(EngineStartError, match=rf"capability 9\.0, but here it is {found};"):
        start(write_plan(checkpoint, gpu=H100))


def test_a_plan_for_this_gpu_is_taken(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Gpu, "present", lambda: H100)
    assert start(write_plan(checkpoint, gpu=H100)).dtype == torch.float32


def test_a_plan_of_other_weights_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint, weights_sha256="00")
    with pytest.raises(EngineStartError, match="digest of the checkpoint's weights 00, but here"):
        start(folder)


@pytest.mark.parametrize(
    "change",
    [{"vision_config": {"layer_norm_eps": 1e-5}}, {"ps_version": "v1"}, {"force_image_size": 14}],
)
def test_a_plan_of_another_configuration_is_refused(
    checkpoint: Path, change: dict[str, Any]
) -> None:
    folder = write_plan(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(changed(SMALL_6B, **change)))
    with pytest.raises(EngineStartError, match="recipe"):
        start(folder)


@pytest.mark.parametrize(
    "change", [{"dynamic_image_size": False}, {"use_thumbnail": False}, {"min_dynamic_patch": 2}]
)
def test_how_images_are_cut_is_nothing_to_a_plan(checkpoint: Path, change: dict[str, Any]) -> None:
    folder = write_plan(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(changed(SMALL_6B, **change)))
    assert start(folder).dtype == torch.float32


def test_a_damaged_plan_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint)
    (folder / PLAN_FILE).write_bytes((folder / PLAN_FILE).read_bytes()[:-1])
    with pytest.raises(EngineStartError, match="digest of the plan"):
        start(folder)


def test_a_library_that_is_broken_is_named(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    broken = "raise ImportError('libnvinfer.so.10: not found')"
    write_library(tmp_path, "tensorrt_rtx", "1.4.0", broken)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt_rtx", raising=False)
    folder = write_plan(checkpoint, library="tensorrt_rtx")
    with pytest.raises(EngineStartError, match=r"imported here \(libnvinfer\.so\.10: not found\)"):
        start(folder)


def test_a_first_run_that_fails_is_refused(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensorrt.IExecutionContext, "execute_async_v3", lambda *_: False)
    with pytest.raises(EngineStartError, match="first run failed: TensorRT refused a run of 5"):
        start(write_plan(checkpoint))


def test_a_missing_plan_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint)
    (folder / PLAN_FILE).unlink()
    with pytest.raises(EngineStartError, match=r"vision\.plan: cannot be read"):
        start(folder)


def test_a_plan_that_tensorrt_cannot_load_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint, plan_sha256=hashlib.sha256(b"no plan").hexdigest())
    (folder / PLAN_FILE).write_bytes(b"no plan")
    with pytest.raises(EngineStartError, match="TensorRT cannot load it"):
        start(folder)


def test_a_plan_of_another_profile_is_refused(checkpoint: Path) -> None:
    folder = write_plan(checkpoint, plan_sha256="")
    plan = tensorrt.plan_of(checkpoint, "float32", (1, 2, 2))
    (folder / PLAN_FILE).write_bytes(plan)
    record = PlanRecord.read(folder)
    record.model_copy(update={"plan_sha256": hashlib.sha256(plan).hexdigest()}).write(folder)
    with pytest.raises(EngineStartError, match=r"profile .*\(5, 3, 28, 28\)\], but here"):
        start(folder)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_missing_device_is_refused(checkpoint: Path) -> None:
    with pytest.raises(EngineStartError, match="PyTorch finds no CUDA device"):
        start(write_plan(checkpoint), "cuda")


@pytest.mark.gpu
def test_batches_in_flight_on_a_stream_do_not_mix(checkpoint: Path) -> None:
    engine = start(write_plan(checkpoint, device="cuda"), "cuda")
    images = [[image(1 + seed % 3, seed), image(4, 100 + seed)] for seed in range(8)]
    batches = [engine.submit(batch) for batch in images]
    expected = torch_engine(checkpoint)
    for batch, sources in zip(batches, images, strict=True):
        for found, tiles in zip(batch.wait(), sources, strict=True):
            torch.testing.assert_close(found, expected.encode(tiles), rtol=1e-3, atol=1e-3)
