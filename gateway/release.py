"""This project's version and page, as its package tells them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import metadata

PROJECT = "internvl-serving"


@dataclass(frozen=True)
class Release:
    """What is installed; both are empty where the code runs from its files."""

    version: str = ""
    page: str = ""

    @property
    def user_agent(self) -> str:
        """The name under which servers of images see this project."""
        name = f"{PROJECT}/{self.version}" if self.version else PROJECT
        return f"{name} (+{self.page})" if self.page else name


@cache
def release() -> Release:
    """Reads it from the metadata of the package."""
    try:
        package = metadata.metadata(PROJECT)
    except metadata.PackageNotFoundError:
        return Release()
    pages = [entry.rpartition(" ")[2] for entry in package.get_all("Project-URL", [])]
    return Release(package["Version"], pages[0] if pages else "")
