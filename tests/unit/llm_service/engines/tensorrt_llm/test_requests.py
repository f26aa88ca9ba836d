"""How a prompt and its options become the executor's request."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from llm_service.checkpoint import LLMConfig
from llm_service.engines.base import ImageRows, Prompt, Request
from llm_service.engines.tensorrt_llm.engine_folder import EngineFolder
from llm_service.sampling import SamplingParams
from protos.errors import OverloadedError
from tests.embedding_ids import embedding_id
from tests.unit.llm_service.engines.tensorrt_llm.engine_folders import (
    engine_document,
    write_engine_folder,
)
from tests.unit.llm_service.engines.torch.tiny import QWEN2, write_config

Make = Callable[..., Any]
PROMPT = Prompt(
    [3, 61, 62, 4, 63, 64, 65, 5],
    torch.zeros(5, 32),
    (ImageRows(embedding_id("cat"), 2), ImageRows(embedding_id("dog"), 3)),
)


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes requests for a bfloat16 engine."""
    from llm_service.engines.tensorrt_llm.requests import RequestFactory, Submission

    checkpoint = write_config(tmp_path / "checkpoint", QWEN2)
    document = engine_document(LLMConfig.from_checkpoint(checkpoint), dtype="bfloat16")
    folder = EngineFolder.read(write_engine_folder(tmp_path / "engine", document, checkpoint))
    factory = RequestFactory(folder)

    def request(
        prompt: Prompt = PROMPT,
        params: SamplingParams | None = None,
        *,
        priority: int = 0,
        constraint: Any = None,
    ) -> Any:
        wanted = Request(prompt, params or SamplingParams(), priority)
        return factory.request(Submission(7, wanted, max_tokens=9, constraint=constraint))

    return request


def test_ids_and_table_go_as_they_are(make: Make) -> None:
    request = make()
    assert request.input_token_ids == PROMPT.token_ids
    assert request.prompt_tuning_config.embedding_table.dtype is torch.bfloat16
    assert list(request.prompt_tuning_config.embedding_table.shape) == [5, 32]
    assert (request.client_id, request.max_tokens, request.streaming) == (7, 9, True)
    assert make(Prompt([3], torch.empty(0, 32))).prompt_tuning_config is None


def test_each_image_has_its_own_number_and_text_has_none(make: Make) -> None:
    extra_ids = make().prompt_tuning_config.input_token_extra_ids
    cat, dog = extra_ids[1], extra_ids[4]
    assert extra_ids == [0, cat, cat, 0, dog, dog, dog, 0]
    assert len({0, cat, dog}) == 3
    assert 0 < cat < 2**64
    assert make().prompt_tuning_config.input_token_extra_ids == extra_ids


def test_numbers_of_images_cannot_be_computed_elsewhere(make: Make, tmp_path: Path) -> None:
    from llm_service.engines.tensorrt_llm.requests import RequestFactory, Submission

    folder = EngineFolder.read(tmp_path / "engine")
    other = RequestFactory(folder)
    request = other.request(Submission(7, Request(PROMPT, SamplingParams()), max_tokens=9))
    theirs, ours = request.prompt_tuning_config, make().prompt_tuning_config
    assert theirs.input_token_extra_ids[1] != ours.input_token_extra_ids[1]


def test_rows_without_an_image_are_never_the_same(make: Make) -> None:
    unnamed = Prompt(PROMPT.token_ids, PROMPT.prompt_table, (ImageRows(embedding_id("cat"), 2),))
    numbers = [make(unnamed).prompt_tuning_config.input_token_extra_ids for _ in range(2)]
    assert numbers[0][:4] == numbers[1][:4]
    assert numbers[0][4] == numbers[0][6] != 0
    assert numbers[0][4] != numbers[1][4]


def test_a_table_is_page_locked(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = torch.ones(5, 32, dtype=torch.bfloat16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda _: pinned)
    assert make().prompt_tuning_config.embedding_table is pinned


def test_a_host_without_room_for_a_table_is_overloaded(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(_: torch.Tensor) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", no_room)
    with pytest.raises(OverloadedError, match="no memory left for 5 rows of images") as caught:
        make()
    assert caught.value.retry_after == 1.0


def test_greedy_is_top_k_of_one_without_a_temperature(make: Make) -> None:
    config = make().sampling_config
    assert (config.top_k, config.top_p, config.temperature, config.seed) == (1, None, None, None)
    penalties = (config.repetition_penalty, config.presence_penalty, config.frequency_penalty)
    assert penalties == (None, None, None)


def test_sampling_says_top_k_top_p_and_a_seed(make: Make) -> None:
    config = make(params=SamplingParams(temperature=0.7)).sampling_config
    assert (config.top_k, config.top_p, config.temperature) == (0, 1.0, 0.7)
    assert config.seed is not None
    params = SamplingParams(temperature=0.7, top_k=3, top_p=0.5, min_p=0.1, seed=5)
    config = make(params=params).sampling_config
    assert (config.top_k, config.top_p, config.min_p, config.seed) == (3, 0.5, 0.1, 5)


def test_options_that_are_0_in_float32_stay_above_it(make: Make) -> None:
    params = SamplingParams(temperature=0.7, top_p=1e-46, repetition_penalty=1e-46)
    config = make(params=params).sampling_config
    smallest = torch.finfo(torch.float32).tiny
    assert (config.top_p, config.repetition_penalty) == (smallest, smallest)


def test_stop_tokens_are_stop_words_and_there_is_no_end_id(make: Make) -> None:
    request = make(params=SamplingParams(stop_token_ids=frozenset({9, 4})))
    assert request.stop_words == [[4], [9]]
    assert request.end_id is None
    assert make().stop_words is None


def test_a_request_with_a_constraint_names_the_processor(make: Make, bindings: Any) -> None:
    from llm_service.engines.tensorrt_llm.logits import Constraint

    params = SamplingParams(logit_bias=((3, -1.0),))
    request = make(params=params, constraint=Constraint(params, 8, None))
    assert request.logits_post_processor_name == bindings.Request.BATCHED_POST_PROCESSOR_NAME
    assert make().logits_post_processor_name is None


def test_priorities_keep_their_order_within_0_and_1(make: Make) -> None:
    priorities = [make(priority=value).priority for value in (-(2**31), -3, 0, 1, 2, 2**31 - 1)]
    assert priorities == sorted(set(priorities))
    assert priorities[2] == 0.5
    assert 0 <= priorities[0] < priorities[-1] <= 1


def test_a_cache_salt_is_a_number(make: Make) -> None:
    salts = {
        salt: make(Prompt([3], torch.empty(0, 32), cache_salt=salt)).cache_salt_id
        for salt in ("", "a", "b")
    }
    assert salts[""] is None
    assert len({salts["a"], salts["b"], None}) == 3
