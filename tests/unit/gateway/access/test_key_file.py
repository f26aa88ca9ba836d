"""The file of keys: what it may hold, and what is said, all at once, of what it may not."""

from __future__ import annotations

import re
from datetime import datetime, timezone
from pathlib import Path

import pytest

from gateway.access.callers import Policy
from gateway.access.key_file import KeyFileError, parse_keys, read_key_file
from gateway.access.keyring import Key, digest_of

ONE, TWO, THREE = (digest_of(word).hex() for word in (b"one", b"two", b"three"))
PLACE = re.compile(r"\d+: [a-z0-9_.?\[\]]+")
SECRET = "sk-internvl-SECRET"


def faults(text: str) -> list[str]:
    """Returns what is said of a file that is refused."""
    with pytest.raises(KeyFileError) as caught:
        parse_keys(text, "keys")
    return [line.removeprefix("keys:") for line in str(caught.value).splitlines()]


def by_name(keys: list[Key]) -> dict[str, Policy]:
    return {key.caller.name: key.caller.policy for key in keys}


def test_a_key_has_what_it_says_and_the_defaults_for_the_rest() -> None:
    text = f"""
defaults: {{requests_per_minute: 60, models: [a], may_use: [file]}}
keys:
- {{name: plain, sha256: {ONE}}}
- name: own@example.com
  sha256: [{TWO}, {THREE.upper()}]
  models: null
  requests_per_minute: 5
  tokens_per_minute: 1000
  images_per_minute: 0
  max_concurrent_request_count: 2
  may_use: [priority]
  most_urgent_priority: -3
  expires: 2027-01-31T12:00:00+01:00
"""
    keys = parse_keys(text, "keys")
    assert by_name(keys) == {
        "plain": Policy(requests_per_minute=60, models=("a",), may_use=["file"]),
        "own@example.com": Policy(
            models=None,
            requests_per_minute=5,
            tokens_per_minute=1000,
            images_per_minute=0,
            max_concurrent_request_count=2,
            may_use=["priority"],
            most_urgent_priority=-3,
            expires=datetime(2027, 1, 31, 11, tzinfo=timezone.utc),
        ),
    }
    assert [key.digests for key in keys] == [
        (digest_of(b"one"),),
        (digest_of(b"two"), digest_of(b"three")),
    ]


def test_no_keys_are_what_a_file_must_say() -> None:
    assert parse_keys("keys: []", "keys") == []
    assert faults("") == faults("# none") == ["1: keys: this field is missing"]
    assert faults("keys:") == ["1: keys: this must be a list"]


def test_all_faults_are_told_at_once_and_no_value() -> None:
    text = f"""\
defaults: {{requests_per_minute: 60, requests_per_minute: 3}}
keys:
- name: alice
  sha256: {ONE}
  expires: 2027-01-31
- name: Alice
  sha256: [{ONE.upper()}, {SECRET}]
  {SECRET}: 3
  tokens_per_minut: {SECRET}
  tokens_per_minute: {SECRET}
- sha256: {SECRET[3:]}
  may_use: {SECRET}
- {SECRET}
- name: none
  sha256: []
- name: {SECRET} x
  sha256: [{TWO}, {THREE}, {digest_of(b"four").hex()}]
  may_use: [{SECRET}]
  requests_per_minute: 0
more: {SECRET}
"""
    found = faults(text)
    assert SECRET[3:] not in "".join(found)
    assert ONE not in "".join(found).lower()
    places = [each.group() for each in map(PLACE.match, found) if each]
    assert places == [
        "1: defaults.requests_per_minute",
        "5: keys[0].expires",
        "6: keys[1].name",
        "7: keys[1].sha256",
        "7: keys[1].sha256[1]",
        "8: keys[1].?",
        "9: keys[1].tokens_per_minut",
        "10: keys[1].tokens_per_minute",
        "11: keys[2].name",
        "11: keys[2].sha256[0]",
        "12: keys[2].may_use",
        "13: keys[3]",
        "14: keys[4].name",
        "15: keys[4].sha256",
        "16: keys[5].name",
        "17: keys[5].sha256",
        "18: keys[5].may_use[0]",
        "19: keys[5].requests_per_minute",
        "20: more",
    ]
    assert len(found) == len(places)
    assert found[0].endswith("this field stands twice")
    assert found[2].endswith("keys[0] has the same")
    assert "this is a key itself" in found[4]
    assert found[6].endswith("there is no such field")
    assert found[9].endswith("a key's sha256 has 64 hexadecimal digits")


@pytest.mark.parametrize(
    "text", ["[", "a: b: c", "keys: *x", "\tkeys: []", "keys: 'SECRET", "%SECRET"]
)
def test_what_is_not_yaml_is_told_with_its_line(text: str) -> None:
    (fault,) = faults(f"# a comment\n{text}")
    line, _, sentence = fault.partition(": ")
    assert int(line) in (2, 3)
    assert sentence.startswith("this is not YAML")
    assert "SECRET" not in sentence


@pytest.mark.parametrize(
    "text",
    [
        "keys: !!python/object/apply:os.system [SECRET]",
        "keys: [!SECRET x]",
        "keys: []\nx: 2027-13-41",
        "keys: []\nx: \0SECRET",
        "? [SECRET, {}]\n: x",
        "keys: []\n---\nkeys: []",
    ],
)
def test_yaml_beyond_plain_values_is_refused(text: str) -> None:
    assert all("SECRET" not in fault for fault in faults(text))


@pytest.mark.parametrize("text", ["&a [*a]", "keys: &a [*a]", "defaults: &a {x: *a}\nkeys: []"])
def test_a_document_that_holds_itself_is_refused(text: str) -> None:
    assert faults(text)


def test_the_digest_of_nothing_lets_nobody_in() -> None:
    (fault,) = faults(f"keys: [{{name: a, sha256: {digest_of(b'').hex()}}}]")
    assert fault == "1: keys[0].sha256[0]: this is the sha256 of nothing, and not of a key"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "nowhere", f"there is no file {tmp_path / 'nowhere'}"),
        (tmp_path, f"{tmp_path} cannot be read: Is a directory"),
    ):
        with pytest.raises(KeyFileError, match=f"^{reason}$"):
            read_key_file(path)
    (path := tmp_path / "keys").write_bytes(b"\xff\xfe")
    with pytest.raises(KeyFileError, match="is not text in UTF-8"):
        read_key_file(path)
