"""How this folder's programs read options: field = flag = environment variable = help text."""

from __future__ import annotations

from pydantic_settings import BaseSettings, SettingsConfigDict


class Options(BaseSettings):
    """The base of every program's options."""

    model_config = SettingsConfigDict(
        frozen=True,
        cli_kebab_case=True,
        cli_implicit_flags=True,
        use_attribute_docstrings=True,
        extra="forbid",
    )
