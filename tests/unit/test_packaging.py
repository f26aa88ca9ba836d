from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = {"protos", "vision_service", "llm_service", "gateway"}


def test_wheel_holds_the_four_packages_and_the_protos(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == PACKAGES
    for proto in ("tensor", "vision", "llm"):
        assert f"protos/internvl/v1/{proto}.proto" in names
        assert f"protos/internvl/v1/{proto}_pb2.pyi" in names
    assert all(f"{package}/py.typed" in names for package in PACKAGES)


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, [])) <= {"internvl-serving"}
