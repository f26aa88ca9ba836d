"""AIPerf's profile of chat completions: streams, of texts and of pictures."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
from commands import options, run

REQUEST_COUNT = 8
KINDS = {
    "text": {"synthetic_input_tokens_mean": 16},
    "pictures": {
        "synthetic_input_tokens_mean": 16,
        "image_width_mean": 448,
        "image_height_mean": 448,
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_profile(
    toy_url: str,
    model: str,
    checkpoint: str,
    tables: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    # Told to stay off the network, it takes a tokenizer's folder for a name of Hugging Face's.
    monkeypatch.delenv("HF_HUB_OFFLINE")
    arguments = options(
        model=model,
        url=toy_url.removesuffix("/v1"),
        endpoint_type="chat",
        tokenizer=checkpoint,
        output_tokens_mean=8,
        request_count=REQUEST_COUNT,
        concurrency=2,
        artifact_dir=tmp_path,
        ui="none",
        **KINDS[kind],
    )
    run("aiperf", "profile", "--streaming", "--no-gpu-telemetry", *arguments)
    (table,) = tmp_path.rglob("*aiperf.csv")
    with table.open(encoding="utf-8", newline="") as file:
        rows = {row[0]: row[1:] for row in csv.reader(file) if row}
    assert float(rows["Request Count"][0]) == REQUEST_COUNT
    shutil.copy(table, tables / f"aiperf-{kind}.csv")
