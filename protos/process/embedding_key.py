"""The embedding key of a process, as its options name it."""

from __future__ import annotations

import stat

import structlog

from protos.process.settings import EngineSettings
from protos.signature import EmbeddingKey

logger = structlog.get_logger()


def read_embedding_key(settings: EngineSettings) -> EmbeddingKey | None:
    """Returns the key, None if there is to be none; warns of one that is not kept secret.

    Raises:
        EmbeddingKeyError: the file cannot be used.
    """
    path = settings.embedding_key_file
    if path is None:
        return None
    key = EmbeddingKey.read(path)
    if path.stat().st_mode & stat.S_IROTH:
        logger.warning(
            "embedding_key_exposed",
            path=str(path),
            warning="every user of this machine can read the key; chmod o-r keeps it secret",
        )
    return key
