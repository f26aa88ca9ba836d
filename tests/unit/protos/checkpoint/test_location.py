"""From what a user types to a folder: paths, hub ids, the hub's cache, and what is not there."""

from __future__ import annotations

from pathlib import Path

import pytest

from protos.checkpoint.location import hub_cache, located, model_name, require_folder
from protos.checkpoint.section import CheckpointError

OLD, NEW = "a" * 40, "b" * 40


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's cache, empty; the working folder is another one."""
    folder = tmp_path / "cache" / "hub"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HF_HUB_CACHE", str(folder))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return folder


def add_entry(cache: Path, *commits: str, main: str = "") -> Path:
    """Adds the model lab/Tiny-2B with these snapshots."""
    entry = cache / "models--lab--Tiny-2B"
    for folder in ("blobs", "refs", *(f"snapshots/{commit}" for commit in commits)):
        (entry / folder).mkdir(parents=True)
    if main:
        (entry / "refs" / "main").write_text(f"{main}\n")
    return entry


def refusal(typed: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        require_folder(located(typed))
    return str(caught.value)


def test_a_folder_is_taken_as_it_is(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path.cwd() / "lab" / "Tiny-2B"
    folder.mkdir(parents=True)
    add_entry(cache, NEW, main=NEW)
    monkeypatch.setenv("HOME", str(Path.cwd()))
    for typed in (folder, Path("lab/Tiny-2B"), Path("~/lab/Tiny-2B")):
        assert located(typed) == folder
        require_folder(located(typed))
    assert model_name(folder) == "Tiny-2B"


def test_a_snapshot_is_named_after_its_repository(cache: Path) -> None:
    entry = add_entry(cache, NEW)
    assert model_name(entry / "snapshots" / NEW) == "Tiny-2B"
    link = Path("mine")
    link.symlink_to(entry / "snapshots" / NEW)
    assert model_name(link) == "Tiny-2B"


@pytest.mark.parametrize(("commits", "main"), [((OLD, NEW), NEW), ((NEW,), "")])
def test_id_entry_and_snapshots_lead_to_the_snapshot(
    cache: Path, commits: tuple[str, ...], main: str
) -> None:
    entry = add_entry(cache, *commits, main=main)
    for typed in (Path("lab/Tiny-2B"), entry, entry / "snapshots", entry / "snapshots" / NEW):
        assert located(typed) == entry / "snapshots" / NEW
        require_folder(located(typed))


@pytest.mark.parametrize("by_id", [True, False])
@pytest.mark.parametrize(
    ("commits", "main", "sentence"),
    [
        ((), "", "has no snapshot; `hf download lab/Tiny-2B` fetches one"),
        ((OLD, NEW), "", f"has 2 snapshots, and no refs/main that names one; give one of {OLD}, "),
        ((OLD,), NEW, f"refs/main names {NEW}, which is not there; `hf download lab/Tiny-2B`"),
    ],
)
def test_an_entry_without_a_clear_snapshot(
    cache: Path, commits: tuple[str, ...], main: str, sentence: str, by_id: bool
) -> None:
    entry = add_entry(cache, *commits, main=main)
    told = refusal(Path("lab/Tiny-2B") if by_id else entry)
    assert str(entry) in told
    assert sentence in told


def test_an_id_that_is_not_in_the_cache(cache: Path) -> None:
    assert refusal(Path("OpenGVLab/InternVL2_5-8B")) == (
        "there is no folder OpenGVLab/InternVL2_5-8B, and no such model in the hub's cache,"
        f" {cache}; `hf download OpenGVLab/InternVL2_5-8B` fetches it"
    )


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"HF_HUB_CACHE": "/a", "HF_HOME": "/b"}, "/a"),
        ({"HUGGINGFACE_HUB_CACHE": "/c", "HF_HOME": "/b"}, "/c"),
        ({"HF_HOME": "~/b"}, "/home/me/b/hub"),
        ({"HF_HOME": "$HOME/b"}, "/home/me/b/hub"),
        ({"XDG_CACHE_HOME": "/d"}, "/d/huggingface/hub"),
        ({}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_the_hubs_libraries_have_it(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: str
) -> None:
    for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hub_cache() == Path(expected)


def test_a_missing_folder_is_told_with_what_is_beside_it(tmp_path: Path) -> None:
    for name in ("InternVL2_5-2B", "InternVL2_5-8B", "notes"):
        (tmp_path / name).mkdir()
        if name != "notes":
            (tmp_path / name / "config.json").touch()
    told = refusal(tmp_path / "InternVL25-8B")
    assert told == (
        f"there is no folder {tmp_path}/InternVL25-8B; beside it: InternVL2_5-8B, InternVL2_5-2B"
    )
    told = refusal(tmp_path / "notes" / "lost")
    assert told == f"there is no folder {tmp_path}/notes/lost"
    told = refusal(tmp_path / "a" / "b" / "c")
    assert told.endswith(f"{tmp_path}/a/b/c; the nearest that is there is {tmp_path}")


def test_what_is_no_folder(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.touch()
    assert refusal(file) == f"{file} is a file; give the folder that it is in, {tmp_path}"
    assert refusal(file / "x").startswith(f"there is no folder {file}/x")
    link = tmp_path / "link"
    link.symlink_to("gone")
    assert refusal(link) == f"{link} is a link to gone, which is not there"


def test_a_path_that_cannot_be_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    told = refusal(tmp_path / "loop" / "model")
    assert told.startswith(f"{tmp_path}/loop/model: cannot be read: ")
