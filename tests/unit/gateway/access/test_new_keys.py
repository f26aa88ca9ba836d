"""The program internvl-gateway-keys."""

from __future__ import annotations

import os
import re
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gateway.access.__main__ import main
from gateway.access.key_file import KeyFileError, parse_keys, read_key_file
from gateway.access.keyring import digest_of
from gateway.access.new_keys import add_to_file, new_key, with_entry

KEY = re.compile(r"sk-internvl-[A-Za-z0-9_-]{43}")
ONE = digest_of(b"one").hex()
Run = Callable[..., tuple[str, str, str | int | None]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the program: returns what it prints, what it says beside, and what it ends with."""

    def typed(*words: str | Path) -> tuple[str, str, str | int | None]:
        monkeypatch.setattr("sys.argv", ["internvl-gateway-keys", *map(str, words)])
        status: str | int | None = None
        try:
            main()
        except SystemExit as end:
            status = end.code
        return (*capsys.readouterr(), status)

    return typed


def test_a_new_key_is_printed_once_and_its_digest_can_be_added(run: Run) -> None:
    out, said, status = run("new", "alice")
    assert status is None
    assert KEY.fullmatch(out.rstrip("\n"))
    assert out.rstrip("\n") not in said
    head, _, entry = said.partition("\n")
    assert head == "add this below `keys:` in the file of --api-keys-file:"
    (key,) = parse_keys(f"keys:\n{entry}", "")
    assert (key.caller.name, key.digests) == ("alice", (digest_of(out.strip().encode()),))


def test_no_two_keys_are_alike() -> None:
    assert len({new_key() for _ in range(1000)}) == 1000


def test_keys_come_into_the_file_that_only_its_owner_reads(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "keys.yaml"
    keys = {name: run("new", name, "--file", path)[0].strip() for name in ("alice", "1", "true")}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    found = {key.caller.name: key.digests for key in read_key_file(path)}
    assert found == {name: (digest_of(key.encode()),) for name, key in keys.items()}
    assert run("check", path) == (f"{path} has 3 keys\n", "", None)
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.yaml"]


def test_a_name_is_given_once_and_nothing_is_written_then(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "keys.yaml"
    run("new", "alice", "--file", path)
    before = path.read_text()
    assert run("new", "Alice", "--file", path) == (
        "",
        "",
        f"{path.resolve()} has a key named Alice already",
    )
    assert path.read_text() == before
    for name in ("none", "a b", "", "x" * 65):
        out, _, status = run("new", name)
        assert out == ""
        assert status


FILES = {
    "empty": "defaults:\n  models: [a]\nkeys: []  # none yet\n# end\n",
    "empty, last line": "keys: [ ]",
    "not indented": (
        f"keys:\n- sha256: {ONE}\n  name: one\n  models: [a,\n    b]  # c\n\n# end\ndefaults: {{}}"
    ),
    "indented": f"keys:\n  # first\n  - {{name: one, sha256: [{ONE}]}}\n  # last\n",
    "no line at the end": f"keys:\n    -   name: one\n        sha256:\n        - {ONE}",
    "quoted": f'keys:\n- name: "one"\n  sha256: "{ONE}"\n\n\n',
}


@pytest.mark.parametrize("text", FILES.values(), ids=FILES)
def test_all_else_in_the_file_stays(text: str, tmp_path: Path) -> None:
    (path := tmp_path / "keys.yaml").write_text(text)
    before = read_key_file(path)
    add_to_file(path, "new", "the-key")
    added = read_key_file(path)
    assert added[:-1] == before
    assert (added[-1].caller.name, added[-1].digests) == ("new", (digest_of(b"the-key"),))
    kept = path.read_text().splitlines()
    assert [line for line in text.splitlines() if line not in kept] == (
        [line for line in text.splitlines() if line.startswith("keys: [")]
    )


@pytest.mark.parametrize("text", [f"keys: [{{name: one, sha256: {ONE}}}]", "{keys: [{}]}"])
def test_keys_within_brackets_are_left_to_their_author(text: str) -> None:
    with pytest.raises(KeyFileError, match="its keys stand within"):
        with_entry(text, "- name: two\n")


def test_owner_mode_and_link_of_a_file_stay(tmp_path: Path) -> None:
    (path := tmp_path / "keys.yaml").write_text("keys: []\n")
    path.chmod(0o644)
    (link := tmp_path / "link").symlink_to(path)
    if os.geteuid() == 0:
        os.chown(path, 1234, 4321)
    before = path.stat()
    add_to_file(link, "new", "the-key")
    assert link.is_symlink()
    after = path.stat()
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)
    assert stat.S_IMODE(after.st_mode) == 0o640  # others have no business there


def test_keys_that_are_added_at_a_time_are_all_there(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: add_to_file(path, f"key-{index}", new_key()), range(24)))
    assert len(read_key_file(path)) == 24


def test_a_file_that_cannot_be_used_is_left_alone(tmp_path: Path, run: Run) -> None:
    (path := tmp_path / "keys.yaml").write_text("keys:\n- name: a\n")
    sentence = f"{path}:2: keys[0].sha256: this field is missing"
    for words in (("new", "b", "--file", path), ("check", path), ("list", path)):
        assert run(*words) == ("", "", sentence)
    assert path.read_text() == "keys:\n- name: a\n"
    assert [entry.name for entry in tmp_path.iterdir()] == ["keys.yaml"]
    for words in (
        ("new", "b", "--file", tmp_path / "no" / "file"),
        ("new", "b", "--file", tmp_path),
    ):
        out, said, status = run(*words)
        assert (out, said) == ("", "")
        assert str(status).startswith(str(tmp_path))


def test_the_list_shows_what_each_may_use(tmp_path: Path, run: Run) -> None:
    (path := tmp_path / "keys.yaml").write_text(
        f"""
keys:
- {{name: one, sha256: {ONE}}}
- name: two
  sha256: {digest_of(b"two").hex()}
  models: [a, b]
  requests_per_minute: 1
  tokens_per_minute: 2
  images_per_minute: 0
  max_concurrent_request_count: 4
  may_use: [priority]
  most_urgent_priority: -5
  expires: 2027-01-31T00:00:00Z
"""
    )
    out, _, status = run("list", path)
    assert status is None
    rows = [re.split(r" {2,}", line) for line in out.splitlines()]
    assert rows[0][:3] == ["NAME", "KEYS", "MODELS"]
    assert rows[1] == ["one", "1", *["-"] * 8]
    assert rows[2] == [
        *("two", "1", "a,b", "1", "2", "0", "4", "priority", "-5", "2027-01-31T00:00:00+00:00"),
    ]
    assert ONE not in out


@pytest.mark.parametrize("words", [(), ("new",), ("frobnicate",), ("check", "x", "--y")])
def test_what_is_no_command_ends_with_a_sentence(words: tuple[str, ...]) -> None:
    command = [sys.executable, "-m", "gateway.access", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode in (1, 2)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert done.stderr
