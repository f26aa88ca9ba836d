"""http(s) URLs as browsers read them; what a server is asked for goes out as it was written.

A URL may be signed, and then another spelling of the same path is another URL.
"""

from __future__ import annotations

import re
from urllib.parse import urljoin

import yarl

from protos.errors import InvalidArgumentError

C0_CONTROL_OR_SPACE = "".join(map(chr, range(0x21)))
NO_LINE_WHITESPACE = str.maketrans("", "", "\t\n\r")
HTTP_URL = re.compile(
    r"(?P<scheme>https?)://(?P<authority>[^/?#]+)(?P<target>[^#]*)", re.IGNORECASE | re.DOTALL
)
SCHEME = re.compile(r"(?P<name>[a-z][a-z0-9+.-]*):", re.IGNORECASE)
# Far above what is in use: parsing a URL takes the longer the longer it is.
MAX_URL_LENGTH = 16 * 1024
# Of yarl's hosts, in which names are ASCII: what else DNS or a socket might understand is refused.
HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+", re.IGNORECASE)
SURROGATES = ("utf-8", "surrogateescape")  # for bytes of a Location header that are not UTF-8
UNWRITABLE = re.compile(rb"[^\x21-\x7e]")  # in a request line


def stripped(url: str) -> str:
    """Returns the URL without what browsers pass over: blanks around it, line ends within."""
    return url.strip(C0_CONTROL_OR_SPACE).translate(NO_LINE_WHITESPACE)


def scheme_of(url: str) -> str:
    """Returns the scheme of a URL in lower case; empty where it has none."""
    match = SCHEME.match(stripped(url[:MAX_URL_LENGTH]))  # the rest may be long: a data: URL
    return match["name"].lower() if match else ""


def read_http_url(url: str) -> yarl.URL:
    """Returns a URL whose path is the whole request target, query included, as it was written.

    Blanks, control characters and those beyond ASCII are percent-encoded in it; the fragment is
    not in it.

    Raises:
        InvalidArgumentError: it is malformed, or has a user name or password.
    """
    match = HTTP_URL.match(stripped(url))
    if match is None:
        raise InvalidArgumentError("the image's URL must have the form http(s)://host/path")
    path, mark, query = match["target"].partition("?")
    if "\\" in path:
        raise InvalidArgumentError("the path of the image's URL must not hold a '\\'; write %5C")
    try:
        target = UNWRITABLE.sub(_escape, f"{path or '/'}{mark}{query}".encode(*SURROGATES)).decode()
        return yarl.URL.build(
            scheme=match["scheme"].lower(),
            authority=_read_authority(match["authority"]),
            path=target,
            encoded=True,
        )
    except ValueError as error:  # yarl's, the codec's of host names, a lone surrogate's
        raise InvalidArgumentError(
            "the image's URL is malformed: its host, its port or a character of it is invalid"
        ) from error


def _escape(match: re.Match[bytes]) -> bytes:
    return b"%%%02X" % match[0][0]


def _read_authority(authority: str) -> str:
    if "@" in authority:
        raise InvalidArgumentError("the image's URL must not hold a user name or password")
    if "%" in authority or "\\" in authority:
        raise InvalidArgumentError("the host of the image's URL must not hold '%' or '\\'")
    url = yarl.URL(f"http://{authority}")
    host = url.host and url.raw_host  # both can be read
    if not host or not HOST.fullmatch(host):
        raise ValueError(authority)
    host.encode("idna")  # refuses what has empty or too long parts
    return url.raw_authority


def join(url: yarl.URL, location: str) -> yarl.URL:
    """Returns where a redirect leads from a URL; raises as `read_http_url`."""
    reference = stripped(location).partition("#")[0]
    if SCHEME.match(reference):
        return read_http_url(reference)
    if reference.startswith("//"):
        return read_http_url(f"{url.scheme}:{reference}")
    path, mark, query = reference.partition("?")
    if not path.startswith("/"):
        own_path = url.raw_path.partition("?")[0]
        path = urljoin(own_path, path) if path else own_path
    return read_http_url(f"{url.scheme}://{url.raw_authority}{path}{mark}{query}")
