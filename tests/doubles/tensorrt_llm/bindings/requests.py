"""The double's reading of a request: what the real runtime checks, and what it means to us."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import torch

from llm_service.engines.base import ImageRows, Prompt
from llm_service.sampling import MIN_SEED, SamplingParams
from protos.identity import EmbeddingId

from .values import PromptTuningConfig, Request


class Refused(Exception):  # noqa: N818 - becomes the response's error message
    """The runtime would answer the request with this error."""


class StepFailed(Exception):  # noqa: N818 - becomes the error of all active requests
    """A step of the runtime would fail here."""


@dataclass(frozen=True)
class Limits:
    """What the engine was built for, and how its executor is configured."""

    vocabulary_size: int
    hidden_size: int
    dtype: torch.dtype
    max_batch_size: int
    max_input_length: int
    max_table_rows: int
    reuses_blocks: bool
    offloads_tables: bool

    def check_length(self, request: Request) -> None:
        """Raises Refused for too long a prompt, as llmRequest.cpp, validate, does."""
        length = len(request.input_token_ids)
        if length > self.max_input_length:
            raise Refused(
                f"Prompt length ({length}) exceeds maximum input length ({self.max_input_length})."
            )

    def prompt(self, request: Request, request_id: int) -> Prompt:
        """Returns the prompt with its images named by their extra ids.

        Raises:
            StepFailed: as promptTuningBuffers.cpp, validate, does.
        """
        ids, tuning = request.input_token_ids, request.prompt_tuning_config
        salt = str(request.cache_salt_id or "") if self.reuses_blocks else f"alone-{request_id}"
        rows = [token_id - self.vocabulary_size for token_id in ids]
        rows = [row for row in rows if row >= 0]
        if tuning is None:
            if rows:
                raise StepFailed("virtual tokens without a prompt table")
            return Prompt(ids, torch.empty(0, self.hidden_size), cache_salt=salt)
        self._check_table(tuning.embedding_table)
        if rows != list(range(len(tuning.embedding_table))):
            raise StepFailed(f"the virtual tokens are not the table's rows in order: {rows}")
        images = self._images(ids, tuning)
        return Prompt(ids, tuning.embedding_table.cpu(), images, salt)

    def _check_table(self, table: torch.Tensor) -> None:
        if table.dtype != self.dtype or table.ndim != 2 or table.shape[1] != self.hidden_size:
            raise StepFailed(f"the table is {table.dtype} {list(table.shape)}")
        if len(table) > self.max_table_rows // self.max_batch_size:
            raise StepFailed(f"the table has {len(table)} rows, too many")
        if self.offloads_tables and torch.cuda.is_available() and not table.is_pinned():
            raise StepFailed("mm_embedding_offloading needs a pinned table")

    def _images(self, ids: list[int], tuning: PromptTuningConfig) -> tuple[ImageRows, ...]:
        extra_ids = tuning.input_token_extra_ids
        if extra_ids is None:
            if self.reuses_blocks:
                raise StepFailed(
                    "Input token extra ids must be provided when enabling kv cache reuse"
                )
            return ()
        if len(extra_ids) != len(ids):
            raise StepFailed(
                f"inputTokenExtraIds vector size ({len(extra_ids)}) must be the same as input"
                f" token vector size ({len(ids)})."
            )
        pairs = list(zip(ids, extra_ids, strict=True))
        for token_id, extra_id in pairs:
            if (token_id >= self.vocabulary_size) != (extra_id != 0):
                raise StepFailed(f"token {token_id} has the extra id {extra_id}")
        of_rows = [extra_id for _, extra_id in pairs if extra_id]
        return tuple(
            ImageRows(EmbeddingId(extra_id.to_bytes(8, "big"), b""), len(list(run)))
            for extra_id, run in groupby(of_rows)
        )

    def params(self, request: Request) -> SamplingParams:
        """Returns the sampling options, with the runtime's own defaults for what is not set."""
        if request.guided_decoding_params is not None or request.embedding_bias is not None:
            raise NotImplementedError("the double knows logits post-processors alone")
        config = request.sampling_config
        is_greedy = config.top_k == 1 or not (config.top_k or config.top_p)
        stop = [word for (word,) in request.stop_words or []]
        if request.end_id is not None:
            stop.append(request.end_id)
        return SamplingParams(
            temperature=0.0 if is_greedy else config.temperature or 1.0,
            top_k=config.top_k or None,
            top_p=config.top_p or 1.0,
            min_p=config.min_p or 0.0,
            seed=((config.seed or 0) - MIN_SEED) % 2**64 + MIN_SEED,
            repetition_penalty=config.repetition_penalty or 1.0,
            presence_penalty=config.presence_penalty or 0.0,
            frequency_penalty=config.frequency_penalty or 0.0,
            max_tokens=request.max_tokens,
            stop_token_ids=frozenset(stop),
            logprob_count=0 if request.output_config.return_log_probs else None,
        )
