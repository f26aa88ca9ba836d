"""What is told of this project where its package is installed, and where it is not."""

from __future__ import annotations

from email.message import Message
from importlib import metadata

import pytest

from gateway.release import Release, release


def test_the_package_tells_version_and_page() -> None:
    found = release()
    assert found.version == metadata.version("internvl-serving")
    assert found.user_agent.startswith(f"internvl-serving/{found.version}")


def test_a_page_tells_servers_whom_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    package = Message()
    package["Version"] = "1.2"
    monkeypatch.setattr(metadata, "metadata", lambda _: package)
    assert release.__wrapped__().user_agent == "internvl-serving/1.2"
    package["Project-URL"] = "Homepage, https://example.com/internvl"
    assert (
        release.__wrapped__().user_agent == "internvl-serving/1.2 (+https://example.com/internvl)"
    )


def test_code_that_runs_from_its_files_has_a_name_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def metadata_of(name: str) -> metadata.PackageMetadata:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", metadata_of)
    assert release.__wrapped__() == Release()
    assert Release().user_agent == "internvl-serving"
