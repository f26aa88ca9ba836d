"""Three real processes over a tiny random checkpoint, started once for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI

from models.demo.stack import Stack
from tests.random_checkpoint import write_random_checkpoint

PICTURES = Path(__file__).parents[1] / "data" / "pictures"
GATEWAY_ARGUMENTS = ("--file-root", str(PICTURES), "--allowed-private-hosts", '["127.0.0.1"]')
# Two cores run three processes and the tests; in float32 a token is the same whatever else is in
# the batch.
SERVICE_ARGUMENTS = ("--threads", "1", "--dtype", "float32")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The three services; a test that ends one of them starts it again."""
    folder = tmp_path_factory.mktemp("stack")
    checkpoint = folder / "random-internvl"
    write_random_checkpoint(checkpoint)
    with Stack(
        checkpoint,
        folder,
        gateway_arguments=GATEWAY_ARGUMENTS,
        service_arguments=SERVICE_ARGUMENTS,
    ) as stack:
        yield stack


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[OpenAI]:
    """The openai client, without its own retries: a test wants to see the first answer."""
    with OpenAI(base_url=f"{stack.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def model(client: OpenAI) -> str:
    """The served model's name."""
    return client.models.list().data[0].id


def picture_url(name: str) -> str:
    """Returns the file URL of one of the tests' pictures."""
    return (PICTURES / name).as_uri()
