"""The training run: its schedule, what it leaves behind, and that it learns."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from demo_training.batches import BatchShape, SampleStream
from demo_training.dialogues import MemoTokenizer
from demo_training.export import TINY_SIZE, read_weights, write_description
from demo_training.samples import Sample, make_sample
from demo_training.train import TOKENIZER, Settings, dense_weight, learning_rate, train
from demo_training.trainer import CHECKPOINT, HEADS, STATE, Trainer

SHAPE = BatchShape(tile_count=2, row_count=1, row_length=1400)
CPU = torch.device("cpu")


def chat(seed: int) -> Sample:
    return make_sample(seed, kind="chat")


def single(seed: int) -> Sample:
    return make_sample(seed, kind="single")


def new_trainer(folder: Path) -> Trainer:
    write_description(folder / CHECKPOINT, TINY_SIZE, TOKENIZER)
    return Trainer(folder / CHECKPOINT, CPU, seed=0)


def test_the_learning_rate_rises_stays_and_falls(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path, learning_rate=1.0, warmup_steps=10, decay_share=0.5)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(settings, 9, 0.1) == 1
    assert learning_rate(settings, 500, 0.5) == 1
    assert learning_rate(settings, 800, 0.75) == pytest.approx(0.5)
    assert learning_rate(settings, 999, 1.1) == 0


def test_the_dense_weight_is_at_its_end_after_two_thirds(tmp_path: Path) -> None:
    settings = Settings(out=tmp_path, dense_start=1.0, dense_end=0.4)
    assert dense_weight(settings, 0.0) == 1
    assert dense_weight(settings, 1 / 3) == pytest.approx(0.7)
    assert dense_weight(settings, 0.9) == pytest.approx(0.4)


def test_the_same_seeds_give_the_same_batches_however_they_are_shared_out() -> None:
    tokenizer = MemoTokenizer.from_checkpoint(TOKENIZER)
    first, second = (
        list(SampleStream(single, SHAPE, tokenizer, first_seed=3, count=2)) for _ in range(2)
    )
    assert len(first) == 2
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.tiles, other.tiles)
        assert torch.equal(one.targets, other.targets)
    assert not torch.equal(first[0].tiles, first[1].tiles)


def test_a_run_resumes_with_and_without_its_state(tmp_path: Path) -> None:
    tokenizer = MemoTokenizer.from_checkpoint(TOKENIZER)
    [first, second] = SampleStream(single, SHAPE, tokenizer, first_seed=0, count=2)
    trainer = new_trainer(tmp_path)
    trainer.step(first, 1e-3, 1.0)
    trainer.save(tmp_path)
    expected = trainer.step(second, 1e-3, 1.0)

    resumed = new_trainer(tmp_path)
    resumed.load(tmp_path)
    assert resumed.step(second, 1e-3, 1.0) == expected
    for one, other in zip(trainer.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other)

    (tmp_path / STATE).unlink()
    (tmp_path / HEADS).unlink()
    restarted = new_trainer(tmp_path)
    restarted.load(tmp_path)
    weights = read_weights(tmp_path / CHECKPOINT)
    for name, tensor in restarted.model.state_dict().items():
        assert torch.equal(tensor, weights[name].float())


def test_an_evaluation_leaves_the_weights_alone(tmp_path: Path) -> None:
    tokenizer = MemoTokenizer.from_checkpoint(TOKENIZER)
    [batch] = SampleStream(single, SHAPE, tokenizer, first_seed=0, count=1)
    trainer = new_trainer(tmp_path)
    trainer.step(batch, 1e-2, 1.0)
    before = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    assert trainer.evaluate([batch]).asked() == len(batch.labels)
    for name, tensor in trainer.model.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.slow
def test_small_talk_is_learnt_within_a_hundred_steps(tmp_path: Path) -> None:
    tokenizer = MemoTokenizer.from_checkpoint(TOKENIZER)
    shape = BatchShape(tile_count=1, row_count=4, row_length=512)
    trainer = new_trainer(tmp_path)
    for step, batch in enumerate(SampleStream(chat, shape, tokenizer, first_seed=0, count=150)):
        trainer.step(batch, 3e-3 * min(1, (step + 1) / 10), 0.0)
    held_out = list(SampleStream(chat, shape, tokenizer, first_seed=10**6, count=1))
    share = trainer.evaluate(held_out).share("chat")
    assert share is not None
    assert share > 90


@pytest.mark.slow
def test_a_run_ends_in_time_and_leaves_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings(
        out=tmp_path, size="tiny", minutes=0.1, workers=0, tiles=8, rows=2, report_seconds=0.01
    )
    train(settings)
    assert "tiles/s" in capsys.readouterr().out
    assert {CHECKPOINT, HEADS, STATE} <= {file.name for file in tmp_path.iterdir()}
    assert read_weights(tmp_path / CHECKPOINT)
