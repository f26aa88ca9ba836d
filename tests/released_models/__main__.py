"""`python -m tests.released_models`: writes the table of docs/models.md anew."""

from __future__ import annotations

from tests.released_models.page import PAGE, renewed

if __name__ == "__main__":
    PAGE.write_text(renewed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
