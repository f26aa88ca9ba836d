"""file:// URLs: regular files below the folders that the gateway may read."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from gateway.images.budget import check_byte_count
from protos.errors import AccessDeniedError, ImageFetchError, InvalidArgumentError

# RFC 8089: the host is empty or this machine's.
FILE_URL = re.compile(r"file:(?://(?:localhost)?)?(?P<path>/(?!/).*)", re.IGNORECASE | re.DOTALL)
HOST = re.compile(r"file://[^/]", re.IGNORECASE)
# Far above what is in use: a walk along a path takes the longer the longer it is.
MAX_PATH_BYTE_COUNT = 4096  # Linux's PATH_MAX
MAX_FOLDER_COUNT = 256
REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "a part of its path is a file, not a folder",
    errno.EACCES: "the gateway's user has no permission to read it",
    errno.EPERM: "the gateway's user has no permission to read it",
    errno.ELOOP: "its path leads through links in a circle, or a link came into it just now",
    errno.ENAMETOOLONG: "a name in its path is too long",
}


def read_file_url(
    url: str, roots: Sequence[Path], max_byte_count: int, *, tell_roots: bool = False
) -> bytes:
    """Returns the bytes of a regular file below one of the folders `roots`.

    Args:
        url: the file's.
        roots: what may be read.
        max_byte_count: the file's largest size.
        tell_roots: whether the client may learn from a refusal what may be read.

    Raises:
        AccessDeniedError: there are no roots, or the file is outside of all or not a regular file.
        ImageFetchError: it cannot be read, e.g. because there is none.
        InvalidArgumentError: the URL has another form.
        ImageTooLargeError: it has more than max_byte_count bytes.
    """
    if not roots:
        raise AccessDeniedError(
            "this server reads no files: its option file_root, which names folders below which it"
            " may, is not set; a data: URL can hold the file instead"
        )
    path = os.path.realpath(_path_of(url))
    real_roots = [os.path.realpath(root) for root in roots]
    root = next((root for root in real_roots if os.path.commonpath([root, path]) == root), None)
    if root is None:
        raise AccessDeniedError(
            "the image's file is outside of the folders that this server may read, which its"
            " option file_root names" + (f": {', '.join(map(str, roots))}" if tell_roots else "")
        )
    try:
        with os.fdopen(_open_below(root, path), "rb") as file:
            image = file.read(max_byte_count + 1)
    except OSError as error:
        reason = REASONS.get(error.errno or 0, error.strerror)
        raise ImageFetchError(f"the image's file cannot be read: {reason}") from error
    check_byte_count(len(image), max_byte_count)
    return image


def _path_of(url: str) -> str:
    match = FILE_URL.fullmatch(url)
    path = unquote(match["path"]) if match else ""
    if not path or "\0" in path:
        hint = ", with three slashes: after two stands a host" if HOST.match(url) else ""
        raise InvalidArgumentError(f"a file URL must have the form file:///path{hint}")
    if (byte_count := len(path.encode(errors="replace"))) > MAX_PATH_BYTE_COUNT:
        raise InvalidArgumentError(
            f"the file's path has {byte_count} bytes; the limit is {MAX_PATH_BYTE_COUNT}"
        )
    if (folder_count := path.count("/")) > MAX_FOLDER_COUNT:
        raise InvalidArgumentError(
            f"the file's path leads through {folder_count} folders; the limit is {MAX_FOLDER_COUNT}"
        )
    return path


def _open_below(root: str, path: str) -> int:
    """Opens a file step by step from the root above it, following no link.

    Both paths are free of links when they come; one that appears meanwhile is refused.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, name = os.path.relpath(path, root).split(os.sep)
        for step in folders:
            parent = folder
            folder = os.open(step, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=parent)
            os.close(parent)
        # O_NONBLOCK: opening a pipe would wait for its writer.
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
    finally:
        os.close(folder)
    mode = os.fstat(file).st_mode
    if not stat.S_ISREG(mode):
        os.close(file)
        raise AccessDeniedError(
            "the image's path is that of a folder, not of a regular file"
            if stat.S_ISDIR(mode)
            else "the image's path is not that of a regular file"
        )
    return file
