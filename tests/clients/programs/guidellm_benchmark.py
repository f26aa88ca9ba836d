"""GuideLLM's benchmark as its documentation starts it: streams, with usage in every chunk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

REQUEST_COUNT = 4


def test_benchmark(url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    guidellm = Path(sys.executable).parent / "guidellm"
    options = {
        "--backend": f"kind=openai_http,target={url.removesuffix('/v1')}",
        "--profile": "kind=synchronous",
        "--constraint": f"kind=max_requests,count={REQUEST_COUNT}",
        # Its texts are made to measure with the model's own tokenizer.
        "--tokenizer": f"kind=hf_auto,model={os.environ['INTERNVL_CHECKPOINT']}",
        "--data": "kind=synthetic_text,prompt_tokens=16,output_tokens=8",
        "--output": f"kind=json,path={report}",
    }
    command = [
        guidellm,
        "run",
        "--disable-progress",
        *(word for pair in options.items() for word in pair),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    (benchmark,) = json.loads(report.read_text(encoding="utf-8"))["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert totals["successful"] == REQUEST_COUNT, totals
    assert totals["errored"] == 0, totals
