"""Where a gateway has its keys from: a file, an option, or both."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from gateway.access.callers import ANYBODY, Caller
from gateway.access.key_file import KeyFileError, read_key_file
from gateway.access.keyring import Key, digest_of

logger = structlog.get_logger()

OWN_NAME = "default"
# What a client can send in a header, and nobody guesses soon.
SECRET = re.compile(r"[!-~]{16,512}")


def own_key(secret: str) -> Key:
    """Returns the key "default", whose caller may do what anybody may where no key is asked for.

    Raises:
        ValueError: it can be guessed, or not be sent.
    """
    if not SECRET.fullmatch(secret):
        raise ValueError(
            "a key has 16 to 512 characters, all of them ASCII and none a space;"
            " `internvl-gateway-keys new NAME` makes one"
        )
    caller = Caller(name=OWN_NAME, policy=ANYBODY.policy)
    return Key(caller, (digest_of(secret.encode()),))


@dataclass(frozen=True)
class KeySource:
    """What the options say of keys.

    Attributes:
        path: the file.
        own: the key that an option gives.
    """

    path: Path | None
    own: Key | None

    def read(self) -> Sequence[Key]:
        """Returns all keys.

        Raises:
            KeyFileError: the file cannot be used, or has the option's key or its name, too.
        """
        keys = [] if self.path is None else read_key_file(self.path)
        if self.own is None:
            return keys
        for key in keys:
            if key.caller.name == OWN_NAME or set(key.digests) & set(self.own.digests):
                raise KeyFileError(f"{self.path}: {key.caller.name} is that of --api-key, too")
        return [*keys, self.own]

    def warn_of_readers(self) -> None:
        """Logs a warning where every user of the machine can read the file."""
        if self.path is not None and self.path.stat().st_mode & stat.S_IROTH:
            logger.warning("api_keys_file_readable_by_all", path=str(self.path))
