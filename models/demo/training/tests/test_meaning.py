"""A thousand questions that training held out, asked of the shipped model as the product serves it.

`tests/e2e/test_meaning.py` asks a few that ship as data; the rest of it is the same: both layouts
of the weights, and the TensorRT-LLM engine over its double.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from demo_training.evaluate import Settings, evaluate, scores_of
from models.demo import DEMO_CHECKPOINT
from tests.e2e.conftest import Engine, make_stack
from tests.internlm2_layout import write_internlm2


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("engine", "family"),
    [("torch", "qwen2"), ("torch", "internlm2"), ("tensorrt_llm", "qwen2")],
)
async def test_a_thousand_held_out_questions(engine: Engine, family: str, tmp_path: Path) -> None:
    checkpoint = DEMO_CHECKPOINT
    if family == "internlm2":
        checkpoint = tmp_path / "internlm2"
        write_internlm2(DEMO_CHECKPOINT, checkpoint)
    with make_stack(engine, checkpoint, tmp_path) as stack:
        url = f"{stack.url}/v1"
        settings = Settings(base_url=url, samples=1000, count=30, seed=500_000, concurrency=2)
        scores = scores_of(await evaluate(settings))
    assert scores.asked() >= 1000
    share = scores.share()
    assert share is not None
    assert share >= 95, scores.table()
