"""Formats: told by their first bytes, named when they are others, opened by their own plug-in."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from protos.errors import InvalidImageError
from tests.unit.vision_service.fakes import encoded, picture
from vision_service.pictures import formats
from vision_service.pictures.formats import FORMATS, image_format


def brand(major: bytes, *others: bytes) -> bytes:
    body = b"ftyp" + major + bytes(4) + b"".join(others)
    return (4 + len(body)).to_bytes(4, "big") + body + bytes(32)


@pytest.mark.parametrize("name", ["JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "AVIF"])
def test_each_format_is_told(name: str) -> None:
    assert image_format(encoded(picture(8, 8), name)) == name


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (brand(b"avis", b"msf1"), "AVIF"),
        (brand(b"mif1", b"miaf", b"avif"), "AVIF"),
        (brand(b"heic", b"mif1", b"avif"), "HEIC"),
        (brand(b"mif1", b"heic"), "HEIC"),
        (brand(b"msf1", b"hevc"), "HEIC"),
    ],
)
def test_a_media_file_is_told_by_its_brands(
    data: bytes, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "FORMATS", (*FORMATS, "HEIC"))
    assert image_format(data) == expected


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "FORMATS", ("JPEG", "PNG"))
    for data, reason in (
        (brand(b"heic"), "HEIC, which this server decodes once pillow-heif is installed"),
        (brand(b"avif"), "AVIF, which this server's Pillow is built without"),
    ):
        with pytest.raises(InvalidImageError, match=f"a picture in the format {reason}; send a"):
            image_format(data)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- x -->\n<svg/>", "an SVG drawing"),
        (b"\n <!DOCTYPE HTML><html>", "an HTML page"),
        (b"<html lang='en'><svg>", "an HTML page"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (brand(b"isom", b"mp41"), "an MP4 or QuickTime video"),
        (brand(b"qt  "), "an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3" + bytes(20), "a WebM or Matroska video"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        (b"\0\0\0\x0cJXL \r\n\x87\n", "a JPEG XL picture"),
        (gzip.compress(b"<svg/>", mtime=0), "compressed by gzip"),
        (b"data:image/png;base64,iVBOR", "a data URL, not what it holds"),
    ],
)
def test_other_files_are_named(data: bytes, what: str) -> None:
    with pytest.raises(InvalidImageError) as caught:
        image_format(data)
    listed = f"send a {', '.join(FORMATS[:-1])} or {FORMATS[-1]} file"
    assert caught.value.message == f"the image file is {what}; {listed}"
    assert caught.value.field == "image"


@pytest.mark.parametrize("data", [b"", b"no image", b"<note>no svg</note>", b"\xff\xd8"])
def test_what_is_nothing_known_gets_the_list(data: bytes) -> None:
    with pytest.raises(InvalidImageError, match="not a JPEG, PNG, WEBP, BMP, GIF, TIFF"):
        image_format(data)


# Decodes files as a worker does, then says which plug-ins Pillow has.
WORKER = """
import pathlib, sys
from vision_service.decoding import worker
worker.import_plugins()
for file in map(pathlib.Path, sys.argv[1:]):
    try:
        worker.decode(file.read_bytes(), file.name, 10_000)
    except worker.ServiceError:
        assert file.stat().st_size < 100
print(*sorted(name for name in sys.modules if name.endswith("Plugin")))
"""


def test_no_plugin_of_pillow_is_imported_but_these(tmp_path: Path) -> None:
    files = []
    for name in FORMATS[:7]:
        files.append(tmp_path / name)
        files[-1].write_bytes(encoded(picture(9, 7), name) if name != "GIF" else b"GIF89a broken")
    found = subprocess.run(
        [sys.executable, "-c", WORKER, *files], capture_output=True, text=True, check=True
    )
    plugins = [f"PIL.{kind}ImagePlugin" for kind in ("Avif", "Bmp", "Gif", "Jpeg", "Png", "Tiff")]
    assert found.stdout.split() == [*plugins, "PIL.WebPImagePlugin"]
