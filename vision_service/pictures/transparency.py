"""Transparency: what becomes of pixels that are not wholly there, a word that needs no library."""

from __future__ import annotations

from typing import Literal

# Put on white, as viewers show them; or shown in the colours that the file has for them, which is
# what the reference makes of them.
Transparency = Literal["white", "drop"]
