"""What docs/security.md says of options: that it tells of each limit, and of no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gateway.settings import Settings as GatewaySettings
from llm_service.settings import Settings as LLMSettings
from protos.process.settings import GrpcSettings, ServingSettings
from vision_service.settings import Settings as VisionSettings

ROOT = Path(__file__).parents[2]
LIMIT = re.compile(r"max_\w+|\w+_seconds|\w+_byte_count|\w+_per_second")
GROUPS: tuple[tuple[str, type[ServingSettings], frozenset[str]], ...] = (
    ("gateway", GatewaySettings, frozenset()),
    ("vision", VisionSettings, frozenset(GrpcSettings.model_fields)),
    ("LLM", LLMSettings, frozenset(GrpcSettings.model_fields)),
    ("both services", GrpcSettings, frozenset()),
)


def told(group: str) -> set[str]:
    """Returns the options in a group of the table of limits, as fields."""
    page = (ROOT / "docs" / "security.md").read_text()
    _, _, table = page.partition("\n## What each limit is for\n")
    _, heading, rest = table.partition(f"\n| **{group}** | |\n")
    assert heading, group
    rows = re.match(r"(\| `.*\n)+", rest)
    assert rows
    firsts = (row.split(" | ")[0] for row in rows.group().splitlines())
    names = (name for first in firsts for name in re.findall(r"`--([a-z-]+)`", first))
    return {name.replace("-", "_") for name in names}


@pytest.mark.parametrize(("group", "settings", "shared"), GROUPS)
def test_it_says_what_each_limit_is_for(
    group: str, settings: type[ServingSettings], shared: frozenset[str]
) -> None:
    own = settings.model_fields.keys() - shared
    assert told(group) == {name for name in own if LIMIT.fullmatch(name)}
