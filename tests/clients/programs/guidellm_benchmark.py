"""GuideLLM's benchmark as its documentation starts it: streams, with usage in every chunk."""

from __future__ import annotations

import json
from pathlib import Path

from commands import run

REQUEST_COUNT = 4


def test_benchmark(toy_url: str, tables: Path, checkpoint: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    options = {
        "--backend": f"kind=openai_http,target={toy_url.removesuffix('/v1')}",
        "--profile": "kind=synchronous",
        "--constraint": f"kind=max_requests,count={REQUEST_COUNT}",
        # Its texts are made to measure with the model's own tokenizer.
        "--tokenizer": f"kind=hf_auto,model={checkpoint}",
        "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--output": f"kind=json,path={report}",
    }
    words = [word for pair in options.items() for word in pair]
    printed = run(
        "guidellm", "run", "--disable-progress", *words, "--output", "kind=console", folder=tmp_path
    )
    (benchmark,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] == REQUEST_COUNT, totals
    assert totals["errored"] == 0, totals
    rows = [line for line in printed.splitlines() if line.startswith("|")]
    (tables / "guidellm.txt").write_text("\n".join(rows) + "\n", encoding="utf-8")
