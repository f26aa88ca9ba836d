"""The chart's values: each documented, each mistake refused by its path."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator
from typing import Any

import helm_python
import pytest
import yaml

from tests.unit.deploy.chart import CHART, ON_A_HOST, ROOT, Values, chart, example, merged, rendered
from tests.unit.deploy.option_schemas import option_schemas, values_schema

# What a user may add under any name.
OPEN = {
    "options", "resources", "affinity", "behavior", "env", "secretEnv", "labels", "annotations",
    "rollingUpdate",
}  # fmt: skip
REFUSED: dict[str, tuple[Values, str]] = {
    "a name": ({"gatewy": {}}, "additional properties 'gatewy' not allowed"),
    "a name below": ({"llm": {"replica": 2}}, "at '/llm'"),
    "a count": ({"vision": {"replicas": -1}}, "at '/vision/replicas'"),
    "a type": ({"metrics": {"enabled": "yes"}}, "at '/metrics/enabled'"),
    "an option's name": (
        {"gateway": {"options": {"max-request-cout": 2}}},
        "at '/gateway/options': additional properties 'max-request-cout' not allowed",
    ),
    "an option's value": (
        {"llm": {"options": {"torch.dtype": "float8"}}},
        "at '/llm/options/torch.dtype'",
    ),
    "an option's range": (
        {"vision": {"options": {"max-image-pixel-count": 3}}},
        "at '/vision/options/max-image-pixel-count'",
    ),
    "another's option": ({"gateway": {"options": {"port": 1}}}, "at '/gateway/options'"),
    "an engine": ({"llm": {"engine": "tensorrt"}}, "at '/llm/engine'"),
    "no GPU": ({"vision": {"engine": "tensorrt"}}, "at '/vision/gpuCount'"),
    "GPUs in vain": ({"llm": {"gpuCount": 2}}, "at '/llm/gpuCount'"),
    "a token in plain text": (
        {"checkpoint": {"download": {"env": {"HF_TOKEN": "hf_1"}}}},
        "at '/checkpoint/download/env/HF_TOKEN'",
    ),
    "a path upwards": ({"checkpoint": {"subPath": "../other"}}, "at '/checkpoint/subPath'"),
}
REFUSED_TOGETHER: dict[str, tuple[Values, str]] = {
    "no checkpoint": (
        {"checkpoint": {"hostPath": ""}},
        "checkpoint: 0 sources are given; set one of",
    ),
    "two checkpoints": ({"checkpoint": {"existingClaim": "x"}}, "checkpoint: 2 sources are given"),
    "no certificate": (
        {"tls": {"enabled": True, "secrets": {"gateway": "a", "llm": "b"}}},
        "tls.secrets.vision: none is given; each of the three needs a certificate",
    ),
    "no engines": (
        {"vision": {"engine": "tensorrt", "gpuCount": 1}},
        "engines: 0 sources are given",
    ),
    "a daemon for processes with a /dev/shm of their own": (
        {
            "mps": {"hostPath": "/run/mps"},
            "engines": {"hostPath": "/engines"},
            "llm": {"engine": "tensorrt_llm", "gpuCount": 1},
        },
        "mps.hostPath: it is for engines of torch",
    ),
    "less than the least": (
        {"llm": {"autoscaling": {"minReplicas": 9}}},
        "llm.autoscaling: minReplicas is 9; maxReplicas, 8, must be at least that",
    ),
    "no metrics to scale by": (
        {"vision": {"autoscaling": {"enabled": True}}, "metrics": {"enabled": False}},
        "vision.autoscaling: it goes by metrics; set metrics.enabled",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_a_wrong_value_is_refused_by_its_path(mistake: str) -> None:
    values, sentence = REFUSED[mistake]
    with pytest.raises(helm_python.HelmValuesError) as caught:
        rendered(merged(ON_A_HOST, values))
    assert sentence in str(caught.value)


@pytest.mark.parametrize("mistake", REFUSED_TOGETHER)
def test_values_that_do_not_go_together_are_refused(mistake: str) -> None:
    values, sentence = REFUSED_TOGETHER[mistake]
    with pytest.raises(helm_python.HelmRenderError) as caught:
        rendered(merged(ON_A_HOST, values))
    assert sentence in str(caught.value)


def test_the_schema_has_every_option_of_the_programs() -> None:
    given = json.loads((CHART / "values.schema.json").read_text())
    assert given == values_schema(), "run: python -m tests.unit.deploy.option_schemas"


def test_the_page_sets_values_that_there_are() -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    files = re.findall(r"--values (\S+\.yaml)", page)
    assert {ROOT / file for file in files} == set((CHART / "examples").iterdir())
    expressions = re.findall(r"--set (\S+?=[^\s`]+)", page)
    assert len(expressions) >= 3
    for expression in expressions:
        rendered(merged(example("gpu-8b"), helm_python.parse_set_string(expression)))
    for group, option in re.findall(r"`(gateway|vision|llm)\.options\.([a-z-]+)`", page):
        assert option in option_schemas(group)["properties"]


def test_every_value_is_documented() -> None:
    text = (CHART / "values.yaml").read_text()
    lines = text.splitlines()
    for key in value_keys(yaml.compose(text)):
        above = itertools.takewhile(
            lambda line: line.lstrip().startswith("#"), reversed(lines[: key.start_mark.line])
        )
        assert "# -- " in "\n".join(above), f"line {key.start_mark.line + 1}: {key.value}"


def value_keys(mapping: Any) -> Iterator[Any]:
    """Yields the node of each value's name in a YAML file, but for those within `OPEN` ones."""
    for key, value in mapping.value:
        if isinstance(value, yaml.MappingNode) and value.value and key.value not in OPEN:
            yield from value_keys(value)
        else:
            yield key


def test_every_value_of_the_schema_has_a_default() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    known = set(paths(schema, schema["definitions"]))
    assert known - {("global",)} == set(defaults(chart().values))


def paths(
    schema: dict[str, Any], definitions: dict[str, Any], above: tuple[str, ...] = ()
) -> Iterator[tuple[str, ...]]:
    """Yields the path of each value that the schema names, but for those within `OPEN` ones."""
    for name, part in schema.get("properties", {}).items():
        part = definitions.get(part.get("$ref", "").rpartition("/")[2], part)
        if "properties" in part and name not in OPEN:
            yield from paths(part, definitions, (*above, name))
        else:
            yield (*above, name)


def defaults(values: Values, above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Yields the path of each default value."""
    for name, value in values.items():
        inner = isinstance(value, dict) and value and name not in OPEN
        if inner:
            yield from defaults(value, (*above, name))
        else:
            yield (*above, name)
