"""Our requests as the executor's: virtual ids, prompt tables, numbers for images."""

from __future__ import annotations

import hashlib
import math
import secrets
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain, repeat

import torch
from tensorrt_llm.bindings import executor

from llm_service.engines.admission import RETRY_AFTER_SECONDS, seconds_left
from llm_service.engines.base import ImageRows, Prompt, Request
from llm_service.engines.tensorrt_llm.engine_folder import EngineFolder
from llm_service.engines.tensorrt_llm.logits import Constraint
from llm_service.engines.tensorrt_llm.sampling import sampling_config
from protos.errors import OverloadedError

DIGEST_BYTE_COUNT = 8


@dataclass(frozen=True)
class Submission:
    """A request that was let in, on its way to the executor.

    Attributes:
        client_id: the engine's own number of it, which its responses carry.
        request: with all rows held, and nothing that the executor does not support.
        max_tokens: most tokens to generate.
        constraint: what the request does to its logits, if it does.
    """

    client_id: int
    request: Request
    max_tokens: int
    constraint: Constraint | None = None


class RequestFactory:
    """Makes requests. Copies megabytes and walks over all tokens: not for the event loop."""

    def __init__(self, folder: EngineFolder) -> None:
        self._vocabulary_size = folder.vocabulary_size
        self._dtype = folder.dtype
        # Whoever knows it could make an image that is taken for another one.
        self._digest_key = secrets.token_bytes(32)

    def request(self, submission: Submission) -> executor.Request:
        """Returns the executor's request.

        Every stop token is a stop word: an end_id would end the output too, but be missing in it.

        Raises:
            DeadlineError: its time is over already.
            OverloadedError: there is no memory left for its table.
        """
        prompt, params = submission.request.prompt, submission.request.params
        stop_words = [[token_id] for token_id in sorted(params.stop_token_ids)]
        return executor.Request(
            input_token_ids=prompt.token_ids,
            max_tokens=submission.max_tokens,
            streaming=True,
            sampling_config=sampling_config(params),
            output_config=executor.OutputConfig(
                return_log_probs=params.logprob_count is not None,
                exclude_input_from_output=True,
                return_perf_metrics=True,
            ),
            stop_words=stop_words or None,
            prompt_tuning_config=self._table(prompt),
            client_id=submission.client_id,
            priority=_priority(submission.request.priority),
            logits_post_processor_name=(
                executor.Request.BATCHED_POST_PROCESSOR_NAME if submission.constraint else None
            ),
            allotted_time_ms=_allotted_time(submission.request.deadline),
            cache_salt_id=self._digest(prompt.cache_salt.encode()) if prompt.cache_salt else None,
        )

    def _table(self, prompt: Prompt) -> executor.PromptTuningConfig | None:
        if not len(prompt.prompt_table):
            return None
        table = prompt.prompt_table.to(self._dtype)
        if torch.cuda.is_available():
            table = _pinned(table)
        return executor.PromptTuningConfig(table, self._extra_ids(prompt))

    def _extra_ids(self, prompt: Prompt) -> list[int]:
        """Returns for each token what it is besides its id: 0 for text, for a row its image.

        The KV cache tells virtual tokens apart by this alone. Rows that no image names get a number
        that nothing else has.
        """
        named = sum(image.row_count for image in prompt.images)
        of_rows = list(
            chain(
                *(repeat(self._number(image), image.row_count) for image in prompt.images),
                repeat(secrets.randbits(64) | 1, len(prompt.prompt_table) - named),
            )
        )
        begin = self._vocabulary_size
        return [of_rows[i - begin] if i >= begin else 0 for i in prompt.token_ids]

    def _number(self, image: ImageRows) -> int:
        named = image.embedding_id
        return self._digest(named.content_sha256 + named.recipe_sha256)

    def _digest(self, content: bytes) -> int:
        digest = hashlib.blake2b(
            content, digest_size=DIGEST_BYTE_COUNT, key=self._digest_key
        ).digest()
        return int.from_bytes(digest, "big") or 1  # 0 is text's


def _pinned(table: torch.Tensor) -> torch.Tensor:
    """Returns a table in page-locked host memory.

    From there the executor copies it when the request's turn comes (promptTuningBuffers.cpp, fill):
    requests that wait take no memory of the GPU's, which is the executor's alone.
    """
    try:
        return table.pin_memory()
    except RuntimeError as error:
        raise OverloadedError(
            f"the host has no memory left for {len(table)} rows of images",
            retry_after=RETRY_AFTER_SECONDS,
        ) from error


def _allotted_time(deadline: float | None) -> timedelta | None:
    """Returns what is left of a request's time; the executor counts from here on.

    Raises:
        DeadlineError: nothing.
    """
    seconds = seconds_left(deadline)
    return None if seconds is None else timedelta(milliseconds=math.ceil(1000 * seconds))


def _priority(priority: int) -> float:
    """Returns it between the executor's 0 and 1; 0 becomes its default of 0.5."""
    return 0.5 + 0.5 * priority / (1 + abs(priority))
