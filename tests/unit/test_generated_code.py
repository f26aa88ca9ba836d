from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GENERATED = ROOT / "protos" / "internvl" / "v1"


def test_checked_in_code_is_what_the_protos_generate(tmp_path: Path) -> None:
    programs = Path(sys.executable).parent
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    generator = ROOT / "protos" / "generate.sh"
    subprocess.run([generator, tmp_path], env=environment, check=True, capture_output=True)
    made = {path.name: path.read_text() for path in tmp_path.rglob("*_pb2*")}
    checked_in = {path.name: path.read_text() for path in GENERATED.glob("*_pb2*")}
    assert len(made) == 16
    assert made == checked_in
