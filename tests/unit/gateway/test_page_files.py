"""The page's files: small, of known kinds, complete, and compressed the same each time."""

from __future__ import annotations

import gzip
import re
from posixpath import dirname, join, normpath

import pytest

from gateway.page.files import FOLDER, INDEX, accepts_gzip, page_files

MAX_SENT_BYTE_COUNT = 200_000
ABSOLUTE = re.compile(r"""["'(]/page/([\w./-]+)["')]""")
RELATIVE = re.compile(r"""(?:\bfrom|\bimport|\burl\()\s*\(?["'](\.{1,2}/[\w./-]+)["']""")
PACKED_ALREADY = {"font/woff2", "image/webp"}
TEXTS = sorted(
    name
    for name, file in page_files().items()
    if file.charset and not name.startswith("libraries/")
)


def test_all_that_a_browser_downloads_is_small() -> None:
    sent = [file.body("gzip").data for file in page_files().values()]
    assert sum(map(len, sent)) < MAX_SENT_BYTE_COUNT


def test_the_files_are_those_of_the_folder() -> None:
    assert INDEX in page_files()
    assert {FOLDER / name for name in page_files()} == {
        path for path in FOLDER.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_refers_to_files_that_there_are(name: str) -> None:
    text = page_files()[name].plain.data.decode()
    named = [*ABSOLUTE.findall(text)]
    named += [normpath(join(dirname(name), path)) for path in RELATIVE.findall(text)]
    assert not [path for path in named if path not in page_files()]


def test_compressed_bytes_are_the_same_at_each_start_and_have_a_name_of_their_own() -> None:
    for file in page_files().values():
        assert (file.compressed is None) == (file.content_type in PACKED_ALREADY)
        if file.compressed:
            assert gzip.decompress(file.compressed.data) == file.plain.data
            assert file.compressed.data[4:8] == bytes(4)  # no time
            assert file.compressed.etag != file.plain.etag
    again = page_files.__wrapped__()
    assert again == page_files()


@pytest.mark.parametrize(
    ("header", "accepted"),
    [
        ("gzip", True),
        ("gzip, deflate, br", True),
        ("br;q=1.0, GZIP;q=0.8, *;q=0.1", True),
        ("deflate, gzip;q=1.0", True),
        ("*", True),
        ("gzip ; q=0.001", True),
        ("", False),
        ("identity", False),
        ("br, deflate", False),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("gzip;q=0, deflate;q=1", False),
        ("not-gzip", False),
    ],
)
def test_gzip_is_sent_to_those_who_take_it(header: str, accepted: bool) -> None:
    assert accepts_gzip(header) is accepted
