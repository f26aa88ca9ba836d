"""The vision engine in a process of its own: its embeddings, its memory, the death of either."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from protos.errors import EngineDeadError
from tests.unit.vision_service.checkpoints import write_checkpoint
from tests.unit.vision_service.fakes import (
    HIDDEN_SIZE,
    TOKENS_PER_TILE,
    FakeBatch,
    FakeEngine,
    tiles_of,
)
from tests.unit.vision_service.linked import linked
from vision_service.checkpoint import VisionConfig
from vision_service.engines.base import EngineStartError
from vision_service.engines.create import create_engine
from vision_service.engines.placement import place_engine
from vision_service.engines.process.engine import PART, ProcessEngine
from vision_service.engines.process.messages import SlotLayout
from vision_service.settings import Settings

TILES = torch.arange(3 * 3 * 28 * 28).remainder(251).to(torch.uint8).view(3, 3, 28, 28)
LAYOUT = SlotLayout(4, 2, TOKENS_PER_TILE, HIDDEN_SIZE, "float32")
PATIENCE_SECONDS = 30.0


def settings_of(path: Path, engine_process: str = "own", **options: object) -> Settings:
    torch_options = {"device": "cpu", "thread_count": 1, "dtype": "float32"}
    return Settings.model_validate(
        {
            "checkpoint": path,
            "torch": torch_options,
            "engine_process": engine_process,
            "max_batch_tile_count": 2,
            **options,
        }
    )


@contextmanager
def started(settings: Settings) -> Iterator[ProcessEngine]:
    engine = place_engine(settings, VisionConfig.from_checkpoint(settings.checkpoint))
    assert isinstance(engine, ProcessEngine)
    try:
        yield engine
    finally:
        engine.close()


def host_of(engine: ProcessEngine) -> subprocess.Popen[bytes]:
    assert engine._process is not None
    return engine._process


def test_its_embeddings_are_those_of_an_engine_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_checkpoint(tmp_path)
    # What the service has been told counts in its host, not what variables say there.
    monkeypatch.setenv("INTERNVL_VISION_TORCH_DTYPE", "bfloat16")
    here = create_engine(settings_of(tmp_path), VisionConfig.from_checkpoint(tmp_path))
    with started(settings_of(tmp_path, drain_seconds=float("inf"))) as engine:
        assert (engine.dtype, engine.weights_sha256) == (torch.float32, here.weights_sha256)
        assert torch.equal(engine.encode(TILES), here.encode(TILES))
        batch = engine.submit([TILES[:1], TILES[1:2]])
        first, second = batch.wait()
        assert torch.equal(torch.cat([first, second]), here.encode(TILES[:2]))
        assert batch.are_finite() == [True, True]
        process = host_of(engine)
    assert process.returncode == 0  # it has ended with its service


@pytest.mark.gpu
def test_its_embeddings_are_those_of_a_gpu_here(tmp_path: Path) -> None:
    options: dict[str, object] = {"torch": {"device": "cuda", "dtype": "float32"}}
    settings = settings_of(write_checkpoint(tmp_path), "own", **options)
    here = create_engine(settings, VisionConfig.from_checkpoint(tmp_path))
    with started(settings) as engine:
        batches = [engine.submit([TILES[one : one + 1], TILES[2:]]) for one in (0, 1) * 4]
        for one, batch in zip((0, 1) * 4, batches, strict=True):
            expected = here.submit([TILES[one : one + 1], TILES[2:]]).wait()
            assert torch.equal(torch.cat(batch.wait()), torch.cat(expected))
            assert batch.are_finite() == [True, True]


def test_who_kills_the_host_ends_the_engine(tmp_path: Path) -> None:
    with started(settings_of(write_checkpoint(tmp_path))) as engine:
        assert engine.is_alive()
        os.kill(host_of(engine).pid, signal.SIGKILL)
        host_of(engine).wait()
        assert not engine.is_alive()
        with pytest.raises(EngineDeadError, match="process of the vision engine has ended"):
            engine.encode(TILES)


@pytest.mark.slow
def test_a_host_ends_with_a_service_that_is_killed(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    code = f"""
import time
from pathlib import Path
from tests.unit.vision_service.engines.process.test_process_engine import settings_of
from vision_service.engines.process.engine import start_engine
print(start_engine(settings_of(Path({str(tmp_path)!r})))._process.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        host = next(int(line) for line in service.stdout if line.strip().isdigit())  # not the log
        os.kill(host, 0)
        service.kill()
    end = time.monotonic() + PATIENCE_SECONDS
    while Path(f"/proc/{host}").exists() and "State:\tZ" not in _status(host):
        assert time.monotonic() < end
        time.sleep(0.02)


def _status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return "State:\tZ"


@pytest.mark.slow
def test_a_host_tells_why_it_has_no_engine(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(EngineStartError, match=r"model\.safetensors is damaged"):
        place_engine(settings_of(tmp_path), VisionConfig.from_checkpoint(tmp_path))


def test_a_socket_at_which_nobody_listens(tmp_path: Path) -> None:
    settings = settings_of(write_checkpoint(tmp_path), str(tmp_path / "host"))
    with pytest.raises(EngineStartError, match="No such file"):
        place_engine(settings, VisionConfig.from_checkpoint(tmp_path))


@pytest.mark.slow
def test_two_services_of_one_host(tmp_path: Path) -> None:
    write_checkpoint(tmp_path)
    socket = tmp_path / "host"
    words = ["-m", "protos.process.engine_host", "--socket", str(socket), PART]
    with subprocess.Popen([sys.executable, *words]) as host:
        _await(socket)
        settings = settings_of(tmp_path, str(socket))
        with started(settings) as one, started(settings) as other:
            batches = [engine.submit([TILES[:2]]) for engine in (one, other)]
            assert torch.equal(batches[1].wait()[0], batches[0].wait()[0])
            one.close()
            assert host.wait(PATIENCE_SECONDS) == 0  # the other one's service begins anew, too
            assert not other.is_alive()


def _await(socket: Path) -> None:
    end = time.monotonic() + PATIENCE_SECONDS
    while not socket.exists():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_slot_is_used_again_when_its_embeddings_are_safe() -> None:
    with linked(FakeEngine(), LAYOUT) as engine:
        batches = [engine.submit([tiles_of(value)]) for value in range(5)]
        assert [float(batch.wait()[0].mean()) for batch in batches] == [0, 1, 2, 3, 4]
        (kept,) = batches[0].wait()
        assert kept.untyped_storage().nbytes() == kept.nbytes


def test_a_batch_is_ready_when_its_reply_is_there() -> None:
    fake = FakeEngine()
    with linked(fake, LAYOUT) as engine:
        fake.gate.clear()
        batch = engine.submit([tiles_of(1)])
        assert not batch.is_ready()
        fake.gate.set()
        end = time.monotonic() + PATIENCE_SECONDS
        while not batch.is_ready():
            assert time.monotonic() < end
        assert batch.padding_tile_count == 1


def test_want_of_memory_is_told_by_the_batch() -> None:
    fake = FakeEngine()
    with linked(fake, LAYOUT) as engine:
        fake.submit_error = torch.OutOfMemoryError("CUDA out of memory.")
        refused, taken = engine.submit([tiles_of(1)]), engine.submit([tiles_of(2)])
        with pytest.raises(MemoryError, match="CUDA out of memory"):
            refused.wait()
        assert float(taken.wait()[0].mean()) == 2
        assert engine.is_alive()


def test_embeddings_are_their_callers_alone() -> None:
    with linked(FakeEngine(), LAYOUT) as engine:
        batch = engine.submit([tiles_of(1)])
        kept = weakref.ref(batch.wait()[0])
        del batch
        assert kept() is None


class InPlaceFake(FakeEngine):
    """Writes into the caller's memory, as the engine on CUDA does."""

    def __init__(self) -> None:
        super().__init__()
        self.places: list[int] = []

    def submit_in_place(
        self, tiles: torch.Tensor, tile_counts: Sequence[int], rows: torch.Tensor
    ) -> FakeBatch:
        rows.copy_(self.encode(tiles))
        self.places.append(rows.data_ptr())
        return FakeBatch(self, list(torch.split(rows, list(tile_counts))))


def test_an_engine_that_can_writes_into_the_memory_of_both() -> None:
    fake = InPlaceFake()
    fake.poison = 3.0
    with linked(fake, LAYOUT) as engine:
        batches = [engine.submit([tiles_of(1), tiles_of(2)]), engine.submit([tiles_of(3, 4)])]
        one, two = batches[0].wait()
        assert (float(one.mean()), float(two.mean())) == (1, 2)
        assert [batch.are_finite() for batch in batches] == [[True, True], [False]]
    assert not fake.batch_tile_counts
    assert len(set(fake.places)) == 2
