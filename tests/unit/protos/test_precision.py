"""The choice of an element type by measurement: its rule, and what it logs."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import chain, repeat

import pytest
from structlog.testing import capture_logs

from protos.process.precision import WIDTH, FloatType, Product, faster_type


class Machine:
    """A CPU on which products take the time that they are told, and each one a delay; its clock."""

    def __init__(self, float32: float, bfloat16: float, delays: Iterable[float] = ()) -> None:
        self.seconds = {"float32": float32, "bfloat16": bfloat16}
        self.delays = chain(delays, repeat(0.0))
        self.now = 5.0
        self.products: list[str] = []
        self.shapes: set[tuple[int, int]] = set()

    def clock(self) -> float:
        return self.now

    def make_product(self, dtype: FloatType, row_count: int, width: int) -> Product:
        self.shapes.add((row_count, width))

        def multiply() -> None:
            self.now += self.seconds[dtype] + next(self.delays)
            self.products.append(dtype)

        return multiply

    def faster_type(self, thread_count: int = 2) -> FloatType:
        return faster_type(self.make_product, thread_count, clock=self.clock)


@pytest.mark.parametrize(
    ("bfloat16", "chosen", "product_count"),
    [
        (0.00125, "bfloat16", 10),
        (0.00249, "bfloat16", 10),  # 1.205 times as fast
        (0.00251, "float32", 10),
        (0.003, "float32", 10),
        (0.006, "float32", 10),
        (0.02, "float32", 4),  # it is emulated: twice is enough
        (0.0, "float32", 10),  # a clock that does not tell
    ],
)
def test_bfloat16_has_to_be_faster_by_a_fifth(
    bfloat16: float, chosen: str, product_count: int
) -> None:
    machine = Machine(float32=0.003, bfloat16=bfloat16)
    assert machine.faster_type() == chosen
    turns = ["float32", "bfloat16"] * (product_count // 2)
    assert machine.products == turns


@pytest.mark.parametrize("delays", [(0.01, 0.01), (0, 0.4, 0, 0, 0, 0.4), (0.4, 0, 0, 0, 0.4)])
def test_the_fastest_of_each_counts(delays: tuple[float, ...]) -> None:
    """The first one generates code, and others wait for a core."""
    machine = Machine(float32=0.0004, bfloat16=0.0001, delays=delays)
    assert machine.faster_type() == "bfloat16"


def test_it_is_logged_once() -> None:
    machine = Machine(float32=0.004, bfloat16=0.002)
    with capture_logs() as logs:
        machine.faster_type(thread_count=3)
    assert logs == [
        {
            "event": "dtype_measured",
            "log_level": "info",
            "dtype": "bfloat16",
            "float32_seconds": 0.004,
            "bfloat16_seconds": 0.002,
            "ratio": 2.0,
            "row_count": 384,
            "thread_count": 3,
        }
    ]


def test_to_wait_is_no_work() -> None:
    """Other programs on the cores make bfloat16's products wait, and change nothing."""

    def make_product(dtype: FloatType, row_count: int, width: int) -> Product:
        turn_count = 40 if dtype == "float32" else 10

        def multiply() -> None:
            for _ in range(turn_count):
                sum(range(5_000))
            if dtype == "bfloat16":
                time.sleep(0.03)

        return multiply

    assert faster_type(make_product, 1) == "bfloat16"


@pytest.mark.parametrize(("thread_count", "row_count"), [(1, 128), (16, 2048), (64, 2048)])
def test_more_threads_get_more_rows(thread_count: int, row_count: int) -> None:
    machine = Machine(float32=0.004, bfloat16=0.002)
    machine.faster_type(thread_count)
    assert machine.shapes == {(row_count, WIDTH)}
