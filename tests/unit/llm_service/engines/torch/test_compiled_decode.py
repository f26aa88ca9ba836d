"""The compiled decode step against the decoder's own: any shape, type, batch and length."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.torch.block_tables import Array
from llm_service.engines.torch.compiled import decode, programs
from llm_service.engines.torch.compiled.create import compiled_decode
from llm_service.engines.torch.compiled.decode import CompiledDecode
from llm_service.engines.torch.decoder import Decoder
from llm_service.engines.torch.kernels.base import BatchLayout, rotary_table
from llm_service.engines.torch.kernels.torch_kernels import TorchKernels
from llm_service.engines.torch.weights import destinations, empty_decoder
from tests.unit.llm_service.engines.torch.tiny import EVERY_FAMILY, QWEN2, Config, write_checkpoint

BLOCK_SIZE, BLOCK_COUNT = 4, 400
# One token, a few, and one on each side of where a part of a context ends.
LENGTHS = (
    1,
    3,
    programs.STRIDE_LENGTH + 1,
    programs.PART_LENGTH,
    programs.PART_LENGTH + 1,
    3 * programs.PART_LENGTH - 7,
    2,
    40,
)


class Case:
    """A decoder with random weights, and a KV cache with what came before the step."""

    def __init__(
        self,
        folder: Path,
        llm: Config,
        dtype: torch.dtype = torch.float32,
        stored: torch.dtype | None = None,
    ) -> None:
        write_checkpoint(folder, llm, {"none": torch.zeros(1)})
        self.config = LLMConfig.from_checkpoint(folder)
        self.decoder = _random_decoder(self.config, dtype, stored)
        random = torch.Generator().manual_seed(1)
        heads = self.config.kv_head_count, self.config.head_dim
        shape = self.config.layer_count, 2, BLOCK_COUNT, BLOCK_SIZE, *heads
        self.cache = torch.randn(shape, generator=random).to(dtype)
        self.rotation = rotary_table(self.config.head_dim, self.config.rope_theta, 1024, CPU)
        self.embeddings = torch.randn(8, self.config.hidden_size, generator=random).to(dtype)

    def compiled(self, lengths: tuple[int, ...], cache: torch.Tensor) -> torch.Tensor:
        rows, tables = self._batch(lengths)
        step = CompiledDecode(self.decoder, cache, self.rotation)
        return step.run(self.embeddings[: len(lengths)], rows, tables)

    def expected(
        self, lengths: tuple[int, ...], cache: torch.Tensor, decoder: Decoder | None = None
    ) -> torch.Tensor:
        decoder = decoder or self.decoder
        rows, tables = self._batch(lengths)
        _, places, slots = torch.from_numpy(rows)
        layout = BatchLayout(
            rotation=self.rotation[places],
            slots=slots,
            context_lengths=(places + 1).int(),
            block_tables=torch.from_numpy(tables),
        )
        embeddings = self.embeddings[: len(lengths)].to(decoder.dtype)
        return decoder.logits(decoder(embeddings, cache, layout))

    def _batch(self, lengths: tuple[int, ...]) -> tuple[Array, Array]:
        """Returns rows and block tables: every sequence has blocks of its own, in any order."""
        order = np.random.default_rng(2).permutation(BLOCK_COUNT - 1).astype(np.int32)
        width = -(-max(lengths) // BLOCK_SIZE)
        tables = np.zeros((len(lengths), width), np.int32)
        rows, used = np.zeros((3, len(lengths)), np.int64), 0
        for index, length in enumerate(lengths):
            count = -(-length // BLOCK_SIZE)
            tables[index, :count] = order[used : used + count]
            tables[index, count:] = tables[index, 0]
            used += count
            block, offset = divmod(length - 1, BLOCK_SIZE)
            rows[:, index] = 0, length - 1, tables[index, block] * BLOCK_SIZE + offset
        return rows, tables


CPU = torch.device("cpu")


def _random_decoder(config: LLMConfig, dtype: torch.dtype, stored: torch.dtype | None) -> Decoder:
    decoder = empty_decoder(config, TorchKernels()).to(dtype)
    if stored is not None:
        decoder.store_as(stored, dtype)
    decoder.to_empty(device="cpu")
    random = torch.Generator().manual_seed(3)
    for place in destinations(decoder).values():
        place.fill(torch.randn(place.shape, generator=random) * 0.2)
    return decoder


@pytest.mark.parametrize("thread_count", [1, 3])
@pytest.mark.parametrize("count", [1, 2, 4, 8])
@EVERY_FAMILY
@torch.inference_mode()
def test_logits_keys_and_values_are_the_decoders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, llm: Config, count: int, thread_count: int
) -> None:
    monkeypatch.setattr(decode, "_thread_count", lambda decoder: thread_count)
    case = Case(tmp_path, llm)
    ours, theirs = case.cache.clone(), case.cache.clone()
    logits = case.compiled(LENGTHS[:count], ours)
    torch.testing.assert_close(logits, case.expected(LENGTHS[:count], theirs), rtol=0, atol=2e-4)
    # The last block is where the start measures.
    torch.testing.assert_close(ours[:, :, :-1], theirs[:, :, :-1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "changed",
    [
        {"vocab_size": 61, "intermediate_size": 37},
        {"vocab_size": 2, "intermediate_size": 1},
        {"hidden_size": 24, "num_attention_heads": 3, "num_key_value_heads": 1},
    ],
)
@EVERY_FAMILY
@torch.inference_mode()
def test_any_size_is_computed_whole(tmp_path: Path, llm: Config, changed: dict[str, int]) -> None:
    case = Case(tmp_path, llm | changed | {"head_dim": 8})
    logits = case.compiled(LENGTHS, case.cache.clone())
    expected = case.expected(LENGTHS, case.cache.clone())
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)


@EVERY_FAMILY
@torch.inference_mode()
def test_bfloat16_weights_are_float32s_own_numbers(tmp_path: Path, llm: Config) -> None:
    """What float32 computes of weights that are kept in bfloat16 is the same as of wide ones."""
    case = Case(tmp_path, llm, stored=torch.bfloat16)
    wide = _widened(case)
    logits = case.compiled(LENGTHS, case.cache.clone())
    expected = case.expected(LENGTHS, case.cache.clone(), wide)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-4)
    torch.testing.assert_close(
        case.expected(LENGTHS, case.cache.clone()), expected, rtol=0, atol=2e-4
    )


@EVERY_FAMILY
@torch.inference_mode()
def test_bfloat16_is_nearer_to_float32_than_the_decoder_in_it(tmp_path: Path, llm: Config) -> None:
    case = Case(tmp_path, llm, torch.bfloat16)
    exact = case.expected(LENGTHS, case.cache.float(), _widened(case))
    rounded = case.expected(LENGTHS, case.cache.clone()).float()
    logits = case.compiled(LENGTHS, case.cache.clone())
    assert (logits - exact).norm() < (rounded - exact).norm()
    assert (logits - exact).norm() < 0.01 * exact.norm()


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
@EVERY_FAMILY
@torch.inference_mode()
def test_int8_weights_count_by_their_scales(
    tmp_path: Path, llm: Config, dtype: torch.dtype
) -> None:
    """Both ways compute with the same numbers, and these are near those that were quantised."""
    case = Case(tmp_path, llm, dtype, stored=torch.int8)
    wide = _widened(case)
    exact = case.expected(LENGTHS, case.cache.float(), wide)
    logits = case.compiled(LENGTHS, case.cache.clone())
    assert (logits - exact).norm() < (1e-5 if dtype == torch.float32 else 0.01) * exact.norm()
    decoders = case.expected(LENGTHS, case.cache.clone()).float()
    assert (decoders - exact).norm() < (1e-5 if dtype == torch.float32 else 0.05) * exact.norm()
    plain = _random_decoder(case.config, torch.float32, None)
    unquantised = case.expected(LENGTHS, case.cache.float(), plain)
    assert 0 < (exact - unquantised).norm() < 0.05 * unquantised.norm()


@pytest.mark.parametrize(
    ("times", "most"),
    [
        ([(1, 2), (3, 3)], 32),
        ([(1, 2), (3, 2)], 8),
        ([(2, 1), (1, 9)], 4),
    ],
)
def test_larger_steps_are_for_whom_is_faster(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    times: list[tuple[float, float]],
    most: int,
) -> None:
    told = iter(times)
    monkeypatch.setattr(decode, "fastest_of", lambda *_: next(told))
    case = Case(tmp_path, QWEN2)
    step = CompiledDecode(case.decoder, case.cache, case.rotation)
    assert step.fits(most)
    assert not step.fits(most + 1)


@pytest.mark.parametrize("failing", [0, 1, 2])
@torch.inference_mode()
def test_a_thread_that_fails_holds_up_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    monkeypatch.setattr(decode, "_thread_count", lambda decoder: 3)
    case = Case(tmp_path, QWEN2)
    step = CompiledDecode(case.decoder, case.cache, case.rotation)
    program = programs.decode_step

    def fail(rank: int, *arguments: object) -> None:
        if rank == failing:
            raise OSError("no space left")
        program(rank, *arguments)

    rows, tables = case._batch((5,))
    expected = step.run(case.embeddings[:1], rows, tables)
    with monkeypatch.context() as patch:
        patch.setattr(programs, "decode_step", fail)
        with pytest.raises(OSError, match="no space left"):
            step.run(case.embeddings[:1], rows, tables)
    assert torch.equal(step.run(case.embeddings[:1], rows, tables), expected)


@pytest.mark.parametrize("error", [OSError("no space left"), EOFError("Ran out of input")])
@torch.inference_mode()
def test_a_broken_cache_is_done_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    program = programs.decode_step
    forgotten: list[bool] = []

    def broken(*arguments: object) -> None:
        if not forgotten:
            raise error
        program(*arguments)

    monkeypatch.setattr(programs, "decode_step", broken)
    monkeypatch.setattr(programs, "forget_cache", lambda: forgotten.append(True))
    case = Case(tmp_path, QWEN2)
    assert case.compiled((5,), case.cache).isfinite().all()
    assert forgotten


def test_the_exponential_is_that_of_the_library() -> None:
    values = np.linspace(-87, 87, 10_001, dtype=np.float32)
    ours = np.array([programs.exponential(value) for value in values])
    np.testing.assert_allclose(ours, np.exp(values.astype(np.float64)), rtol=3e-7)
    for extreme, expected in ((1e9, np.exp(87)), (np.inf, np.exp(87)), (-1e9, 0), (-np.inf, 0)):
        assert programs.exponential(np.float32(extreme)) == pytest.approx(
            expected, rel=1e-6, abs=1e-30
        )
    assert np.isnan(programs.exponential(np.float32(np.nan)))


def test_columns_are_the_fields_of_a_layer() -> None:
    for index, name in enumerate(programs.Layer._fields):
        assert getattr(programs, name.upper()) == index


@torch.inference_mode()
def test_without_numba_the_decoder_decodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(tmp_path, QWEN2)
    assert compiled_decode(case.decoder, case.cache, case.rotation) is not None
    assert compiled_decode(case.decoder.to(torch.float16), case.cache, case.rotation) is None
    case.decoder.to(torch.float32)
    monkeypatch.setitem(sys.modules, "llm_service.engines.torch.compiled.decode", None)
    assert compiled_decode(case.decoder, case.cache, case.rotation) is None


@pytest.mark.parametrize("stored", [np.float32, np.int8, np.uint16])
def test_products_of_several_vectors(stored: type[np.generic]) -> None:
    random = np.random.default_rng(4)
    numbers = random.integers(0, 100, (4, 77)).astype(stored)
    x = random.standard_normal((4, 77)).astype(np.float32)
    wide = numbers.astype(np.float32)
    if stored is np.uint16:  # the bits of bfloat16
        wide = (numbers.astype(np.uint32) << 16).view(np.float32)
    expected = wide @ x.T
    for sums, part in (
        (programs.dot_4x4(*numbers, *x), expected),
        (programs.dot_2x4(*numbers[1:3], *x), expected[1:3]),
        (programs.dot_4x1(*numbers, x[2]), expected[:, 2]),
    ):
        np.testing.assert_allclose(np.reshape(sums, part.shape), part, rtol=1e-4)


@EVERY_FAMILY
@torch.inference_mode()
def test_a_sequence_without_numbers_spoils_no_other(tmp_path: Path, llm: Config) -> None:
    case = Case(tmp_path, llm)
    expected = case.compiled((5, 9, 300), case.cache.clone())
    case.embeddings[1] = torch.nan
    logits = case.compiled((5, 9, 300), case.cache.clone())
    assert logits[1].isnan().all()
    assert torch.equal(logits[[0, 2]], expected[[0, 2]])


@EVERY_FAMILY
@torch.inference_mode()
def test_what_stands_behind_a_context_is_not_read(tmp_path: Path, llm: Config) -> None:
    case = Case(tmp_path, llm)
    lengths = (5, 9, 258)
    rows, tables = case._batch(lengths)
    used = np.concatenate(
        [
            tables[index, np.arange(length) // BLOCK_SIZE] * BLOCK_SIZE
            + np.arange(length) % BLOCK_SIZE
            for index, length in enumerate(lengths)
        ]
    )
    spoilt = case.cache.clone()
    slots = spoilt.flatten(2, 3)
    kept = slots[:, :, used].clone()
    slots.fill_(torch.nan)
    slots[:, :, used] = kept
    assert torch.equal(case.compiled(lengths, spoilt), case.compiled(lengths, case.cache.clone()))


@torch.inference_mode()
def test_large_scores_and_gates_do_not_overflow(tmp_path: Path) -> None:
    case = Case(tmp_path, QWEN2)
    case.embeddings *= 1e4
    case.cache *= 1e4
    for layer in case.decoder.layers:
        layer.feed_forward.gate_up.weight *= 300  # type: ignore[union-attr,operator]
    logits = case.compiled(LENGTHS, case.cache.clone())
    expected = case.expected(LENGTHS, case.cache.clone())
    assert logits.isfinite().all()
    torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


def _widened(case: Case) -> Decoder:
    """Returns a float32 decoder of the numbers that the case's decoder has."""
    wide = empty_decoder(case.config, TorchKernels()).to(torch.float32).to_empty(device="cpu")
    own = destinations(case.decoder)
    for name, place in destinations(wide).items():
        parts = [view.float() for view in own[name].views]
        if own[name].scales:
            parts = [part * scale for part, scale in zip(parts, own[name].scales, strict=True)]
        place.fill(torch.cat(parts))
    return wide
