"""Where the time to the first token goes, by the clocks of the three processes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.benchmarks.serving.product import Lines

# In the order in which a request goes through them.
HTTP, BODY, FETCH = "HTTP, both ways", "the whole body", "picture read and named"
START = "JSON, Generate's start"
TO_VISION = "picture to vision, header back"
WORKER, PREPROCESSING = "waiting for a worker", "preprocessing"
QUEUE, FORWARD = "waiting for the ViT", "ViT"
WAY, ENGINE = "embedding, vision to gateway to LLM", "LLM engine: waiting and prefill"
STAGES = (
    HTTP, BODY, FETCH, START, TO_VISION, WORKER, PREPROCESSING, QUEUE, FORWARD, WAY, ENGINE,
)  # fmt: skip


def stage_seconds(first_token_seconds: float, lines: Lines) -> dict[str, float]:
    """Splits one request's time to the first token; together the stages are all of it.

    HTTP, START, TO_VISION and WAY are what the clocks of the others leave; WAY has the first
    token's way back to the gateway in it. Where an older log has no `worker_wait_seconds`,
    TO_VISION has them in it; without `prompt_seconds`, ENGINE begins when the
    gateway has handed the last piece to gRPC, not when the LLM service had it.

    Args:
        first_token_seconds: as the client measured it.
        lines: the request's.
    """
    gateway, vision, llm = lines["gateway"], lines["vision"], lines["llm"]
    before_header = gateway["encode_wait_seconds"]
    after_header = gateway["transfer_seconds"] + gateway["prefill_seconds"]
    seconds = {
        BODY: gateway["body_seconds"],
        FETCH: gateway["fetch_seconds"],
        WORKER: vision.get("worker_wait_seconds", 0.0),
        PREPROCESSING: vision["preprocess_seconds"],
        QUEUE: vision["queue_seconds"],
        FORWARD: vision["forward_seconds"],
        ENGINE: _engine_seconds(llm, gateway),
    }
    named = (WORKER, PREPROCESSING, QUEUE, FORWARD)
    seconds[TO_VISION] = before_header - sum(seconds[stage] for stage in named)
    seconds[WAY] = after_header - seconds[ENGINE]
    seconds[START] = gateway["first_token_seconds"] - sum(seconds.values())
    seconds[HTTP] = first_token_seconds - gateway["first_token_seconds"]
    return {stage: seconds[stage] for stage in STAGES}


def _engine_seconds(llm: Mapping[str, Any], gateway: Mapping[str, Any]) -> float:
    if "prompt_seconds" not in llm:
        return float(gateway["prefill_seconds"])
    return float(llm["first_token_seconds"] - llm["prompt_seconds"])
