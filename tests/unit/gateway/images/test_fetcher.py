"""Images from data: and file:// URLs: what is read, what is refused."""

from __future__ import annotations

import base64
import errno
import os
from pathlib import Path

import pytest

from gateway.images.budget import ImageBudget
from gateway.images.data_urls import decode_data_url
from gateway.images.file_urls import read_file_url
from protos.errors import (
    AccessDeniedError,
    ImageFetchError,
    ImageTooLargeError,
    InvalidArgumentError,
    InvalidImageError,
    ServiceError,
)


def data_url(image: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(image).decode()


@pytest.mark.parametrize("length", [0, 1, 2, 3, 100])
def test_a_data_url_gives_its_bytes(length: int) -> None:
    image = os.urandom(length)
    assert decode_data_url(data_url(image), max_byte_count=length) == image


@pytest.mark.parametrize("length", [2, 3, 4])
def test_a_data_url_one_byte_too_large_is_refused(length: int) -> None:
    with pytest.raises(ImageTooLargeError, match=f"the limit is {length - 1}"):
        decode_data_url(data_url(bytes(length)), max_byte_count=length - 1)


@pytest.mark.parametrize(
    "url",
    [
        "data:image/png;base64,aGk",
        " data:image/png;base64, aG\nk= \n",
        "data:image/png;charset=utf-8;BASE64,aGk%3D",
        "data:image/png;   base64 ,aGk",
        "da\tta:image/png;ba\nse64,aGk=",
        "data:,hi",
        "data:image/png,h%69#there",
    ],
)
def test_a_data_url_is_read_as_browsers_do(url: str) -> None:
    assert decode_data_url(url, max_byte_count=2) == b"hi"
    with pytest.raises(ImageTooLargeError, match="the limit is 1"):
        decode_data_url(url, max_byte_count=1)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("data:image/png;base64,a", "was cut"),
        ("data:image/png;base64,äöüß", "beyond ASCII .at its character 1\\)"),
        ("data:image/png;base64,\ud800", "beyond ASCII .at its character 1\\)"),
        ("data:image/png;base64", "no comma"),
        ("data:image/png#;base64,aGk", "no comma"),
        ("data:", "no comma"),
        ("data:image/png;base64;charset=utf-8,aGk", "the last before the comma"),
    ],
)
def test_a_malformed_data_url_is_refused(url: str, sentence: str) -> None:
    with pytest.raises(InvalidImageError, match=sentence):
        decode_data_url(url, max_byte_count=100)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with a picture, a sub-folder with another, and a secret beside the folder."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    (root / "a.png").write_bytes(b"picture")
    (root / "sub" / "b c.png").write_bytes(b"other")
    (tmp_path / "secret.png").write_bytes(b"secret")
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "secret.png").write_bytes(b"secret")
    return root


def read(url: str, root: Path, max_byte_count: int = 100) -> bytes:
    return read_file_url(url, [root], max_byte_count)


def test_files_below_the_root_are_read(root: Path) -> None:
    assert read(f"file://{root}/a.png", root) == b"picture"
    assert read(f"file://localhost{root}/sub/b%20c.png", root) == b"other"
    assert read(f"FILE:{root}/sub/../a.png", root) == b"picture"


def test_links_within_the_root_are_followed(root: Path) -> None:
    (root / "link.png").symlink_to("sub/b c.png")
    assert read(f"file://{root}/link.png", root) == b"other"


def test_a_root_behind_a_link_is_read(root: Path) -> None:
    (root.parent / "alias").symlink_to(root)
    assert read(f"file://{root.parent}/alias/a.png", root.parent / "alias") == b"picture"


def test_without_a_root_nothing_is_read(root: Path) -> None:
    with pytest.raises(AccessDeniedError, match="file_root"):
        read_file_url(f"file://{root}/a.png", [], 100)


@pytest.mark.parametrize("path", ["/../secret.png", "/%2e%2e/secret.png", "2/secret.png", "/.."])
def test_paths_out_of_the_root_are_refused(root: Path, path: str) -> None:
    with pytest.raises(AccessDeniedError):
        read(f"file://{root}{path}", root)


def test_links_out_of_the_root_are_refused(root: Path) -> None:
    (root / "file.png").symlink_to(root.parent / "secret.png")
    (root / "folder").symlink_to(root.parent)
    for path in ("file.png", "folder/secret.png"):
        with pytest.raises(AccessDeniedError):
            read(f"file://{root}/{path}", root)


def test_a_link_that_appears_after_the_check_is_not_followed(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (root / "late").symlink_to(root.parent)
    (root / "late.png").symlink_to(root.parent / "secret.png")
    monkeypatch.setattr(os.path, "realpath", str)  # as if the links had not been there
    for path in ("late/secret.png", "late.png"):
        with pytest.raises(ImageFetchError):
            read(f"file://{root}/{path}", root)


def test_pipes_and_folders_are_refused(root: Path) -> None:
    os.mkfifo(root / "pipe")
    for path in ("pipe", "sub", ""):
        with pytest.raises(AccessDeniedError, match="regular file") as error:
            read(f"file://{root}/{path}", root)
        assert ("folder" in error.value.message) == (path != "pipe")


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("/missing.png", "there is no such file"),
        ("/sub/missing/a.png", "there is no such file"),
        ("/a.png/b", "a part of its path is a file, not a folder"),
        ("/loop", "links in a circle"),
        ("/" + "x" * 300, "a name in its path is too long"),
    ],
)
def test_missing_files_are_refused(root: Path, path: str, sentence: str) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(ImageFetchError, match=sentence):
        read(f"file://{root}{path}", root)


def test_a_file_that_may_not_be_read_is_refused(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)  # the tests may run as root
    with pytest.raises(ImageFetchError, match="the gateway's user has no permission"):
        read(f"file://{root}/a.png", root)


def test_files_below_any_root_are_read(root: Path) -> None:
    roots = [root / "sub", root.parent / "root2"]
    assert read_file_url(f"file://{root}/sub/b%20c.png", roots, 100) == b"other"
    assert read_file_url(f"file://{root.parent}/root2/secret.png", roots, 100) == b"secret"
    for path in ("root/a.png", "secret.png", "root2/../secret.png"):
        with pytest.raises(AccessDeniedError, match="option file_root"):
            read_file_url(f"file://{root.parent}/{path}", roots, 100)


def test_roots_are_told_only_to_who_may_know(root: Path) -> None:
    roots = [root, root.parent / "root2"]
    for tell_roots in (False, True):
        with pytest.raises(AccessDeniedError) as error:
            read_file_url("file:///etc/passwd", roots, 100, tell_roots=tell_roots)
        assert (f": {root}, {root}2" in error.value.message) == tell_roots
        assert (str(root) in error.value.message) == tell_roots


@pytest.mark.parametrize("url", ["file://C:/a.png", "file://home/me/a.png", "FILE://host/a"])
def test_a_host_in_a_file_url_is_explained(root: Path, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="three slashes: after two stands a host"):
        read(url, root)


@pytest.mark.parametrize("url", ["file:", "file://", "file://host/a", "file:a", "file:////a"])
def test_other_forms_of_file_urls_are_refused(root: Path, url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="form"):
        read(url, root)


def test_a_zero_character_is_refused(root: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="form"):
        read(f"file://{root}/a%00.png", root)


def test_a_file_too_large_is_refused(root: Path) -> None:
    assert read(f"file://{root}/a.png", root, 7) == b"picture"
    with pytest.raises(ImageTooLargeError, match="the limit is 6"):
        read(f"file://{root}/a.png", root, 6)


def test_no_open_file_is_left(root: Path) -> None:
    def open_count() -> int:
        return len(os.listdir("/proc/self/fd"))

    os.mkfifo(root / "pipe")
    before = open_count()
    for path in ("a.png", "pipe", "missing", "sub/missing", "sub", "a.png/b"):
        try:
            read(f"file://{root}/{path}", root)
        except ServiceError:
            continue
    assert open_count() == before


def test_bytes_are_spent() -> None:
    budget = ImageBudget(max_byte_count=10, max_host_count=1)
    budget.spend(10)
    with pytest.raises(ImageTooLargeError, match="11 bytes together or more; the limit is 10"):
        budget.spend(1)


def test_hosts_are_counted_once() -> None:
    budget = ImageBudget(max_byte_count=10, max_host_count=2)
    for host in ("a", "b", "a"):
        budget.visit(host)
    with pytest.raises(InvalidArgumentError, match="3 hosts; the limit is 2"):
        budget.visit("c")
