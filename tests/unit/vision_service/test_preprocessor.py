"""The preprocessor: bounded, free again after an error or a cancel, and whole after a kill."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from protos.errors import (
    ImageTooLargeError,
    InvalidImageError,
    OverloadedError,
    UnavailableError,
)
from tests import hostile_pictures as hostile
from tests.tiled_files import tile_file
from tests.unit.vision_service.fakes import encoded, picture
from tests.unit.vision_service.workers import until, worker_pids
from vision_service.decoding import cost
from vision_service.decoding import seat as seat_module
from vision_service.decoding.cost import Cost, CostModel
from vision_service.decoding.messages import Order
from vision_service.decoding.process import WorkerProcess
from vision_service.pictures.transparency import Transparency
from vision_service.preprocessor import Preprocessor, PreprocessorLimits
from vision_service.tiling import Grid, TiledImage, TilePolicy

PICTURE = encoded(picture(40, 20))
LIMITS = PreprocessorLimits(
    worker_count=1,
    max_image_count=2,
    max_pixel_count=10_000,
    max_decode_byte_count=2**30,
    max_decode_seconds=10.0,
)

# Starts two workers, says so, and waits to be killed.
SERVICE = f"""
import asyncio, math
from vision_service.preprocessor import *

async def main():
    async with Preprocessor(28, {replace(LIMITS, worker_count=2)!r}) as preprocessor:
        while not all(seat._due_at == math.inf for seat in preprocessor._seats):
            await asyncio.sleep(0.01)
        print("up", flush=True)
        await asyncio.sleep(600)

asyncio.run(main())
"""


def preprocessor_of(**limits: Any) -> Preprocessor:
    return Preprocessor(28, replace(LIMITS, **limits))


@pytest.fixture
async def preprocessor() -> AsyncIterator[Preprocessor]:
    async with preprocessor_of() as preprocessor:
        yield preprocessor


async def stopped_worker(preprocessor: Preprocessor) -> int:
    """Stops the one worker once it is up; it then holds whatever it is given."""
    await preprocessor.tile(PICTURE, 2)
    (pid,) = worker_pids()
    os.kill(pid, signal.SIGSTOP)
    return pid


async def test_an_image_is_tiled(preprocessor: Preprocessor) -> None:
    tiled, seconds = await preprocessor.tile(PICTURE, 2)
    expected = tile_file(PICTURE, tile_size=28, max_tile_count=2, max_pixel_count=10_000)
    assert (tiled.grid, tiled.width, tiled.height) == (Grid(2, 1), 40, 20)
    assert np.array_equal(tiled.tiles, expected.tiles)
    assert seconds > 0


@pytest.mark.parametrize(("transparency", "grey"), [("white", 255), ("drop", 0)])
async def test_the_workers_know_what_becomes_of_transparency(
    transparency: Transparency, grey: int
) -> None:
    nothing = encoded(Image.new("RGBA", (30, 30)))
    async with Preprocessor(28, LIMITS, transparency) as preprocessor:
        tiled, _ = await preprocessor.tile(nothing, 1)
    assert (tiled.tiles == grey).all()


@pytest.mark.parametrize(
    ("policy", "tile_count"),
    [
        (TilePolicy(has_thumbnail=False), 2),
        (TilePolicy(min_tile_count=3), 4),
        (TilePolicy(is_dynamic=False), 1),
    ],
)
async def test_the_workers_know_the_policy(policy: TilePolicy, tile_count: int) -> None:
    expected = tile_file(
        PICTURE, tile_size=28, max_tile_count=3, max_pixel_count=10_000, policy=policy
    )
    async with Preprocessor(28, LIMITS, policy=policy) as preprocessor:
        tiled, _ = await preprocessor.tile(PICTURE, 3)
    assert tiled.grid == expected.grid
    assert tiled.grid.tile_count == len(tiled.tiles) == tile_count
    assert np.array_equal(tiled.tiles, expected.tiles)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 300),
    st.integers(1, 300),
    st.integers(1, 40),
    st.just(TilePolicy()) | st.builds(TilePolicy, st.booleans(), st.integers(1, 12), st.booleans()),
)
def test_the_grid_of_a_size_is_the_one_of_its_picture(
    width: int, height: int, cap: int, policy: TilePolicy
) -> None:
    preprocessor = Preprocessor(28, replace(LIMITS, max_pixel_count=90_000), policy=policy)
    tiled = tile_file(
        encoded(picture(width, height)),
        tile_size=28,
        max_tile_count=cap,
        max_pixel_count=90_000,
        policy=policy,
    )
    assert preprocessor.grid(width, height, cap) == tiled.grid


async def test_a_file_is_planned_as_it_is_tiled(preprocessor: Preprocessor) -> None:
    for data in (PICTURE, encoded(picture(20, 40)), encoded(picture(300, 30), "JPEG")):
        tiled, _ = await preprocessor.tile(data, 6)
        assert await preprocessor.plan(data, 6) == tiled.grid
    with pytest.raises(InvalidImageError, match="not a JPEG"):
        await preprocessor.plan(b"no image", 6)
    with pytest.raises(ImageTooLargeError, match="the limit is 10000"):
        await preprocessor.plan(encoded(picture(200, 60)), 6)


async def test_plans_wait_with_images_and_are_as_few(preprocessor: Preprocessor) -> None:
    pid = await stopped_worker(preprocessor)
    waiting = [
        asyncio.create_task(preprocessor.plan(PICTURE, 2)),
        asyncio.create_task(preprocessor.tile(PICTURE, 2)),
    ]
    await asyncio.sleep(0)
    for ask in (preprocessor.plan, preprocessor.tile):
        with pytest.raises(OverloadedError, match="2 images wait to be decoded"):
            await ask(PICTURE, 2)
    os.kill(pid, signal.SIGCONT)
    planned, _ = await asyncio.gather(*waiting)
    assert planned == Grid(2, 1)


async def test_errors_free_their_place(preprocessor: Preprocessor) -> None:
    for _ in range(3):
        with pytest.raises(InvalidImageError) as caught:
            await preprocessor.tile(PICTURE[: len(PICTURE) // 2], 2)
        assert caught.value.field == "image"


async def test_too_many_images_are_refused(preprocessor: Preprocessor) -> None:
    pid = await stopped_worker(preprocessor)
    images = [asyncio.create_task(preprocessor.tile(PICTURE, 2)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(OverloadedError, match="2 images wait .* limit is 2") as caught:
        await preprocessor.tile(PICTURE, 2)
    assert caught.value.retry_after is not None
    images[1].cancel()
    await asyncio.wait([images[1]])
    last = asyncio.create_task(preprocessor.tile(PICTURE, 2))
    os.kill(pid, signal.SIGCONT)
    await asyncio.gather(images[0], last)


async def test_the_tiles_memory_goes_with_them(preprocessor: Preprocessor) -> None:
    me = psutil.Process()
    kept = [(await preprocessor.tile(PICTURE, 2))[0] for _ in range(5)]
    count = me.num_fds()
    del kept
    gc.collect()
    assert me.num_fds() < count


async def test_a_refused_image_goes_at_once(preprocessor: Preprocessor) -> None:
    """No circle of objects holds it, whose memory would be free only once somebody looks for it."""
    broken = PICTURE[: len(PICTURE) // 2]
    counts = []
    gc.disable()
    try:
        for _ in range(5):
            with pytest.raises(InvalidImageError):
                await preprocessor.tile(broken, 2)
            await asyncio.sleep(0)
            counts.append((psutil.Process().num_fds(), sys.getrefcount(broken)))
    finally:
        gc.enable()
    assert counts[-1] == counts[1]


async def test_a_killed_worker_takes_one_image_with_it() -> None:
    async with preprocessor_of(worker_count=2) as preprocessor:
        await until(lambda: all(seat._due_at == math.inf for seat in preprocessor._seats))
        for pid in worker_pids():
            os.kill(pid, signal.SIGSTOP)
        stuck = [asyncio.create_task(preprocessor.tile(PICTURE, 2)) for _ in range(2)]
        await asyncio.sleep(0.3)
        first, second = worker_pids()
        os.kill(first, signal.SIGKILL)
        os.kill(second, signal.SIGCONT)
        found = await asyncio.gather(*stuck, return_exceptions=True)
        assert sorted(type(one).__name__ for one in found) == ["UnavailableError", "tuple"]
        (error,) = [one for one in found if isinstance(one, UnavailableError)]
        assert error.message == "the process that decoded the image was killed"
        await until(lambda: len(worker_pids()) == 2)
        await preprocessor.tile(PICTURE, 2)


async def test_a_worker_killed_while_it_waits_is_replaced(preprocessor: Preprocessor) -> None:
    await preprocessor.tile(PICTURE, 2)
    (pid,) = worker_pids()
    os.kill(pid, signal.SIGKILL)
    await until(lambda: worker_pids() not in ([], [pid]))
    await preprocessor.tile(PICTURE, 2)


async def test_a_stopped_worker_is_replaced_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with preprocessor_of() as preprocessor:
        pid = await stopped_worker(preprocessor)
        monkeypatch.setattr("vision_service.decoding.process.WALL_FACTOR", 0.1)
        with pytest.raises(ImageTooLargeError, match=r"took more than 1\.8 s, the limit"):
            await preprocessor.tile(PICTURE, 2)
        monkeypatch.undo()
        await preprocessor.tile(PICTURE, 2)
        assert worker_pids() != [pid]


async def test_a_worker_that_uses_its_cpu_time_up_is_replaced() -> None:
    async with preprocessor_of(max_pixel_count=40_000_000, max_decode_seconds=0.001) as narrow:
        large = encoded(Image.new("L", (6000, 6000)), "JPEG")
        narrow._costs = replace(narrow._costs, max_decode_seconds=-1.0)
        with pytest.raises(ImageTooLargeError, match=r"took more than 0\.1 s"):
            await narrow.tile(large, 2)
        await narrow.tile(PICTURE, 2)


async def test_it_is_not_ready_while_no_worker_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object) -> WorkerProcess:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(seat_module, "RESTART_SECONDS", 0.05)
    monkeypatch.setattr(WorkerProcess, "start", no_room)
    async with preprocessor_of() as preprocessor:
        await until(lambda: not preprocessor.is_ready())
        monkeypatch.undo()
        await preprocessor.tile(PICTURE, 2)
        assert preprocessor.is_ready()


async def test_workers_end_with_the_preprocessor_whatever_they_do() -> None:
    async with preprocessor_of(worker_count=2) as preprocessor:
        await until(lambda: len(worker_pids()) == 2)
        await preprocessor.tile(PICTURE, 2)
        os.kill(worker_pids()[0], signal.SIGSTOP)
    assert worker_pids() == []


@pytest.mark.slow
@pytest.mark.parametrize("thread_count", [1, 16])
async def test_honest_images_fit_their_limits(
    monkeypatch: pytest.MonkeyPatch, thread_count: int
) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    grey = Image.radial_gradient("L").resize((1800, 1200))
    colours = Image.merge("RGB", (grey, grey.rotate(180), grey))
    cmyk, palette = colours.convert("CMYK"), colours.quantize(64)
    alpha = Image.merge("RGBA", (*colours.split(), grey))
    files = [
        encoded(colours, "JPEG", progressive=True, subsampling=0, exif=turned),
        encoded(cmyk, "JPEG", progressive=True, exif=turned),
        encoded(alpha, "PNG", exif=turned),
        encoded(grey.convert("LA"), "PNG", exif=turned),
        encoded(alpha, "WEBP", lossless=True, quality=0, method=0, exif=turned),
        encoded(colours, "WEBP", exif=turned),
        encoded(palette, "GIF", save_all=True, append_images=[palette.rotate(180)]),
        encoded(alpha, "BMP"),
        encoded(alpha, "TIFF", compression="tiff_lzw", exif=turned),
        encoded(grey.convert("F"), "TIFF"),
        encoded(alpha, "AVIF", speed=10, subsampling="4:4:4", exif=turned),
        encoded(colours, "JPEG", progressive=True, subsampling=0)[:-2],
    ]
    # So that the bytes for each pixel are what decides.
    monkeypatch.setattr(cost, "SPARE_BYTE_COUNT", 8 * 2**20)
    async with preprocessor_of(
        worker_count=4, max_image_count=12, max_pixel_count=4_000_000, thread_count=thread_count
    ) as preprocessor:
        found = await asyncio.gather(*(preprocessor.tile(data, 12) for data in files))
    for data, (tiled, _) in zip(files, found, strict=True):
        expected = tile_file(data, tile_size=28, max_tile_count=12, max_pixel_count=4_000_000)
        assert np.array_equal(tiled.tiles, expected.tiles)


@pytest.mark.parametrize("thread_count", [1, 4])
@pytest.mark.parametrize(
    "size",
    [
        (60, 20_000),
        (2500, 1600),
        *(pytest.param(size, marks=pytest.mark.slow) for size in [(20_000, 60), (1600, 2500)]),
    ],
)
async def test_resizing_fits_its_limits(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], thread_count: int
) -> None:
    image = encoded(Image.radial_gradient("L").resize(size).convert("RGB"), "JPEG")
    limits = replace(LIMITS, max_pixel_count=4_000_000, thread_count=thread_count)
    monkeypatch.setattr(cost, "SPARE_BYTE_COUNT", 4 * 2**20)
    expected = tile_file(image, tile_size=448, max_tile_count=12, max_pixel_count=4_000_000)
    async with Preprocessor(448, limits) as preprocessor:
        tiled, _ = await preprocessor.tile(image, 12)
    assert np.array_equal(tiled.tiles, expected.tiles)


async def test_a_worker_has_its_threads_before_its_limits() -> None:
    async with preprocessor_of(thread_count=4) as preprocessor:
        await until(lambda: all(seat._due_at == math.inf for seat in preprocessor._seats))
        (worker,) = map(psutil.Process, worker_pids())
        assert worker.num_threads() == 4
        await preprocessor.tile(PICTURE, 2)
        assert worker.num_threads() == 4


async def test_images_share_the_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    tile = WorkerProcess.tile

    async def noted(worker: WorkerProcess, order: Order, data: bytes) -> tuple[TiledImage, float]:
        counts.append(order.thread_count)
        return await tile(worker, order, data)

    monkeypatch.setattr(WorkerProcess, "tile", noted)
    async with preprocessor_of(worker_count=2, max_image_count=3, thread_count=5) as preprocessor:
        await preprocessor.tile(PICTURE, 2)
        await until(lambda: all(seat._due_at == math.inf for seat in preprocessor._seats))
        for pid in worker_pids():
            os.kill(pid, signal.SIGSTOP)
        images = [asyncio.create_task(preprocessor.tile(PICTURE, 2)) for _ in range(3)]
        await until(lambda: len(counts) == 3)
        for pid in worker_pids():
            os.kill(pid, signal.SIGCONT)
        await asyncio.gather(*images)
    assert counts[:3] == [5, 2, 2]


async def test_more_memory_than_the_header_accounts_for_is_refused(
    preprocessor: Preprocessor, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Image.new("RGB", (3000, 3000))
    monkeypatch.setattr(CostModel, "cost", lambda *_: Cost(2**20, 10.0, is_large=False))
    monkeypatch.setattr(preprocessor, "_limits", replace(LIMITS, max_pixel_count=9_000_000))
    with pytest.raises(ImageTooLargeError, match="more than the 1048576 bytes of memory"):
        await preprocessor.tile(encoded(large, "PNG"), 2)
    await preprocessor.tile(PICTURE, 2)


async def test_an_image_that_never_fits_is_refused() -> None:
    async with preprocessor_of(
        max_pixel_count=40_000_000, max_decode_byte_count=2**28
    ) as preprocessor:
        with pytest.raises(ImageTooLargeError, match=r"takes up to \d{9} bytes; .* 268435456"):
            await preprocessor.tile(hostile.short_webp(), 12)


def test_workers_do_not_outlive_a_service_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", SERVICE], stdout=subprocess.PIPE) as service:
        assert service.stdout is not None
        service.stdout.readline()
        pids = worker_pids(service.pid)
        os.kill(pids[0], signal.SIGSTOP)
        service.kill()
    assert len(pids) == 2
    _, alive = psutil.wait_procs(
        [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30
    )
    assert alive == []
