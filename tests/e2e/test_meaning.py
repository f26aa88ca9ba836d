"""The shipped model through three real processes: answers are true, or something is broken.

Questions and pictures are drawn from seeds that training held out. The same weights are asked in
both layouts: as they ship (Qwen2), and rewritten for InternLM2, so that both decoders, tokenizers
and all of the path between picture and answer are tested for meaning; and as they ship once more
through the TensorRT-LLM engine over its double.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.local.stack import Stack
from models.demo import DEMO_CHECKPOINT
from models.demo.train.evaluate import Control, Settings, evaluate, scores_of
from models.demo.train.export import write_internlm2
from models.demo.train.samples import Kind
from models.demo.train.scores import Scores
from tests.e2e.conftest import make_stack

# Held-out seeds of their own: MODEL_CARD.md has the whole table.
SEED = 500_000


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(("torch", "qwen2"), id="qwen2"),
        pytest.param(("torch", "internlm2"), id="internlm2"),
        pytest.param(("tensorrt_llm", "qwen2"), id="tensorrt_llm", marks=pytest.mark.slow),
    ],
)
def stack(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    engine, family = request.param
    folder: Path = tmp_path_factory.mktemp("meaning")
    checkpoint = DEMO_CHECKPOINT
    if family == "internlm2":
        checkpoint = folder / "internlm2"
        write_internlm2(DEMO_CHECKPOINT, checkpoint)
    with make_stack(engine, checkpoint, folder) as started:
        yield started


async def ask(
    stack: Stack,
    *,
    kind: Kind | None = None,
    control: Control = "none",
    samples: int,
    count: int = 3,
) -> Scores:
    settings = Settings(
        base_url=f"{stack.url}/v1",
        llm_address=f"127.0.0.1:{stack.llm.port}",
        split="layouts",
        kind=kind,
        count=count,
        samples=samples,
        seed=SEED,
        control=control,
        concurrency=2,
    )
    return scores_of(await evaluate(settings))


async def test_held_out_questions_of_every_task(stack: Stack) -> None:
    scores = await ask(stack, samples=90, count=2)
    assert scores.asked() >= 60
    assert len(scores.tasks()) >= 15
    for language in ("en", "zh"):
        share = scores.share(language=language)
        assert share is not None
        assert share >= 90, scores.table()


async def test_large_pictures_need_all_their_tiles_in_order(stack: Stack) -> None:
    right = (await ask(stack, kind="tiles", samples=6)).share()
    shuffled = (await ask(stack, kind="tiles", control="shuffled", samples=6)).share()
    assert right is not None
    assert shuffled is not None
    assert right >= 80
    assert shuffled <= right - 20


async def test_another_picture_gives_another_answer(stack: Stack) -> None:
    swapped = (await ask(stack, kind="single", control="swapped", samples=8)).share()
    assert swapped is not None
    assert swapped <= 70


async def test_rows_of_zeros_tell_nothing(stack: Stack) -> None:
    zeroed = (await ask(stack, kind="single", control="zeroed", samples=8)).share()
    assert zeroed is not None
    assert zeroed <= 70


async def test_a_follow_up_needs_the_turn_before(stack: Stack) -> None:
    scores = await ask(stack, kind="single", control="forgotten", samples=80, count=12)
    share = scores.share()
    assert scores.asked() >= 20
    assert share is not None
    assert share <= 70, scores.table()


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_thousand_held_out_questions(stack: Stack) -> None:
    scores = await ask(stack, samples=1000, count=30)
    assert scores.asked() >= 1000
    share = scores.share()
    assert share is not None
    assert share >= 95, scores.table()
