from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions, requires
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from gateway.page.files import page_files

ROOT = Path(__file__).parents[2]
TENSORRT_LLM = ROOT / "tests" / "data" / "trtllm" / "requires-dist.txt"
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
    assert {f"gateway/page/static/{name}" for name in page_files()} <= set(names)
    assert [name for name in names if name.endswith("libraries/marked.license.txt")]


def test_no_other_distribution_owns_our_package_names() -> None:
    owners = packages_distributions()
    for package in PACKAGES:
        assert set(owners.get(package, [])) <= {"internvl-serving"}


def ours(extra: str) -> list[Requirement]:
    """Returns what an extra requires, with the extras that it is made of."""
    listed = [Requirement(line) for line in requires("internvl-serving") or ()]
    wanted = [
        item for item in listed if item.marker is None or item.marker.evaluate({"extra": extra})
    ]
    inner = {name for item in wanted if item.name == "internvl-serving" for name in item.extras}
    own = [item for item in wanted if item.name != "internvl-serving"]
    return own + [item for name in sorted(inner) for item in ours(name)]


def have_a_version_in_common(first: SpecifierSet, second: SpecifierSet) -> bool:
    both = first & second
    return not both or any(both.contains(one.version) for one in both)


def theirs() -> dict[str, SpecifierSet]:
    """Returns what tensorrt_llm 1.2.1 requires."""
    lines = [line for line in TENSORRT_LLM.read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(item.name): item.specifier for item in map(Requirement, lines)}


def test_the_tensorrt_extra_leaves_tensorrt_llm_its_versions() -> None:
    required = ours("tensorrt")
    assert {"llguidance", "numpy", "onnx", "protobuf", "tensorrt"} <= {
        item.name for item in required
    }
    for item in required:
        limits = theirs().get(canonicalize_name(item.name), SpecifierSet())
        assert have_a_version_in_common(item.specifier, limits), f"{item} and {limits}"


def test_what_cannot_be_installed_together_is_noticed() -> None:
    pinned = theirs()["llguidance"]
    (wanted,) = (item.specifier for item in ours("torch") if item.name == "llguidance")
    assert not have_a_version_in_common(wanted, pinned)
