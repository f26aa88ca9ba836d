"""Packed dialogues are computed as if each stood alone, and as the services compute them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path

import pytest
import torch
from PIL import Image

from demo_training.batches import Batch, BatchBuilder, BatchShape
from demo_training.dialogues import IGNORED
from demo_training.network import DemoModel
from demo_training.samples import Picture, Sample
from llm_service.checkpoint import LLMConfig
from llm_service.conversation import Message, Role
from llm_service.engines.base import LLMEngine, Prompt, Request
from llm_service.engines.create import create_engine
from llm_service.pieces import ImagePart
from llm_service.prompt import chat_layout
from llm_service.sampling import SamplingParams
from llm_service.settings import Settings, TorchOptions
from llm_service.templates import INTERNVL2_5
from llm_service.tokenizer import Tokenizer
from tests.internlm2_layout import write_internlm2
from tiny import samples, write_tiny_checkpoint
from vision_service.checkpoint import VisionConfig
from vision_service.engines.torch.engine import TorchEngine, load_model
from vision_service.tiling import choose_grid, cut, decode

SHAPE = BatchShape(tile_count=10, row_count=3, row_length=1400)
# For one conversation alone.
SINGLE = BatchShape(tile_count=3, row_count=1, row_length=1000)
ANSWER_LENGTH = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def model(folder: Path) -> DemoModel:
    return write_tiny_checkpoint(folder)


@pytest.fixture(scope="module")
def tokenizer(model: DemoModel, folder: Path) -> Tokenizer:
    return Tokenizer.from_checkpoint(folder / "checkpoint")


@torch.no_grad()
def answer_logits(model: DemoModel, batch: Batch) -> list[torch.Tensor]:
    """Returns of each turn the logits [answer tokens, vocabulary] that say its answer."""
    _, embeddings = model.encode(batch.tiles)
    logits = model.head(model.decode(embeddings, batch.rows))
    return [logits[batch.owners == index] for index in range(len(batch.labels))]


def batch_of(tokenizer: Tokenizer, *packed: Sample, shape: BatchShape = SHAPE) -> Batch:
    builder = BatchBuilder(shape, tokenizer)
    assert all(builder.add(sample) for sample in packed)
    return builder.batch()


def alone(sample: Sample) -> Iterator[Sample]:
    """Yields a sample for each dialogue of a sample."""
    for dialogue in sample.dialogues:
        yield Sample(sample.pictures, (dialogue,), sample.system)


def test_a_dialogue_among_others_gets_the_logits_of_a_dialogue_alone(
    model: DemoModel, tokenizer: Tokenizer
) -> None:
    packed = answer_logits(model, batch_of(tokenizer, *samples()))
    single = [
        logits
        for sample in samples()
        for part in alone(sample)
        for logits in answer_logits(model, batch_of(tokenizer, part, shape=SINGLE))
    ]
    assert len(packed) == len(single)
    by_size = lambda logits: (len(logits), round(float(logits.sum()), 2))  # noqa: E731
    for got, expected in zip(sorted(packed, key=by_size), sorted(single, key=by_size), strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=2e-4)


def test_targets_are_the_answers_of_every_turn_with_their_end(
    model: DemoModel, tokenizer: Tokenizer
) -> None:
    batch = batch_of(tokenizer, *samples())
    end_id = tokenizer.special_id("<|im_end|>")
    said = sorted(
        batch.targets[batch.owners == index].tolist() for index in range(len(batch.labels))
    )
    answers = [turn.answer for sample in samples() for turns in sample.dialogues for turn in turns]
    assert said == sorted([*tokenizer.encode(answer), end_id] for answer in answers)
    assert ((batch.targets != IGNORED) == (batch.owners != IGNORED)).all()


def test_a_sample_that_does_not_fit_is_refused(model: DemoModel, tokenizer: Tokenizer) -> None:
    builder = BatchBuilder(SHAPE, tokenizer)
    taken = 0
    while builder.add(samples()[1]):
        taken += 1
    assert taken == SHAPE.tile_count // 2
    assert builder.batch().sample_count == taken


@pytest.mark.parametrize("layout", ["qwen2", "internlm2"])
async def test_the_services_say_what_the_network_says(
    model: DemoModel, tokenizer: Tokenizer, folder: Path, layout: str
) -> None:
    checkpoint = folder / "checkpoint"
    if layout == "internlm2":
        checkpoint = folder / "internlm2"
        write_internlm2(folder / "checkpoint", checkpoint)
    engine = start_engine(checkpoint)
    try:
        for sample in samples():
            asked = Sample(sample.pictures, (sample.dialogues[0][:1],), sample.system)
            served = await served_answer(engine, served_prompt(checkpoint, tokenizer, asked))
            assert greedy_answer(model, tokenizer, asked) == served
    finally:
        await engine.close()


def start_engine(checkpoint: Path) -> LLMEngine:
    options = TorchOptions(device="cpu", dtype="float32", thread_count=1)
    settings = Settings(checkpoint=checkpoint, torch=options, kv_cache_byte_count=2**25)
    config = LLMConfig.from_checkpoint(checkpoint)
    return create_engine(settings, config, Tokenizer.from_checkpoint(checkpoint))


async def served_answer(engine: LLMEngine, prompt: Prompt) -> list[int]:
    token_ids: list[int] = []
    params = SamplingParams(max_tokens=ANSWER_LENGTH)
    async with aclosing(engine.generate(Request(prompt, params))) as outputs:
        async for output in outputs:
            token_ids += output.token_ids
    return token_ids


@torch.no_grad()
def greedy_answer(model: DemoModel, tokenizer: Tokenizer, sample: Sample) -> list[int]:
    """Decodes without a cache: the packed row is computed anew for each token."""
    batch = batch_of(tokenizer, sample, shape=SINGLE)
    _, embeddings = model.encode(batch.tiles)
    rows, said = batch.rows, list[int]()
    first = int((batch.owners[0] == 0).nonzero()[0])
    for place in range(first, first + ANSWER_LENGTH):
        said.append(int(model.head(model.decode(embeddings, rows))[0, place].argmax()))
        rows.token_ids[0, place + 1] = said[-1]
        rows.positions[0, place + 1] = rows.positions[0, place] + 1
        rows.units[0, place + 1], rows.dialogues[0, place + 1] = 1, 1
    return said


def served_prompt(checkpoint: Path, tokenizer: Tokenizer, sample: Sample) -> Prompt:
    """Returns the prompt of a dialogue's first turn as the two services make it."""
    config = VisionConfig.from_checkpoint(checkpoint)
    vision, digest = load_model(checkpoint, config, torch.device("cpu"), torch.float32)
    engine = TorchEngine(vision, config, digest)
    tables = [engine.encode(tiles_of(picture)).flatten(0, 1) for picture in sample.pictures]
    [[turn]] = sample.dialogues
    messages = [] if sample.system is None else [Message(Role.SYSTEM, (sample.system,))]
    messages.append(Message(Role.USER, (*[ImagePart()] * len(tables), turn.question)))
    llm = LLMConfig.from_checkpoint(checkpoint)
    row_counts = [len(table) for table in tables]
    layout = chat_layout(tokenizer, INTERNVL2_5, messages)
    token_ids = layout.token_ids(row_counts, llm.vocabulary_size)
    return Prompt(token_ids, torch.cat([torch.zeros(0, llm.hidden_size), *tables]))


def tiles_of(picture: Picture) -> torch.Tensor:
    """Returns the tiles as the vision service cuts them from a file."""
    file = io.BytesIO()
    Image.fromarray(picture.pixels).save(file, "PNG")
    image = decode(file.getvalue(), "PNG", max_pixel_count=10**7)
    grid = choose_grid(*image.size, max_tile_count=4, tile_size=448)
    return torch.from_numpy(cut(image, grid, tile_size=448))
