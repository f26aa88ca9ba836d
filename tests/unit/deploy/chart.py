"""The Helm chart, rendered without a cluster, and the values that the tests render it with."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[3]
CHART = ROOT / "deploy" / "helm" / "internvl-serving"
RELEASE, NAMESPACE = "internvl", "models"
COMPONENTS = ("gateway", "vision", "llm")
SERVICES = COMPONENTS[1:]
# The one in C is several times faster, where it was built.
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# The label by which a pod of ours is known.
COMPONENT = "app.kubernetes.io/component"
Values = dict[str, Any]
Document = dict[str, Any]


def merged(values: Values, more: Mapping[str, Any]) -> Values:
    """Returns values with others on top, as Helm does with several files."""
    result = dict(values)
    for name, value in more.items():
        below = result.get(name)
        if isinstance(below, dict) and isinstance(value, Mapping):
            value = merged(below, value)
        result[name] = value
    return result


def chart_file(name: str) -> Values:
    """Returns what a YAML file of the chart's says."""
    values: Values = yaml.safe_load((CHART / name).read_text())
    return values


def example(name: str) -> Values:
    """Returns the values of a file that ships with the chart."""
    return chart_file(f"examples/{name}.yaml")


ON_A_HOST: Values = {"checkpoint": {"hostPath": "/models/8B"}}
NOTHING = merged(
    ON_A_HOST,
    {
        "embeddingKey": {"existingSecret": "our-key", "secretKey": "rows"},
        "metrics": {"enabled": False},
        "networkPolicy": {"enabled": False},
        "podDisruptionBudget": {"enabled": False},
        **{component: {"topologySpreadConstraints": []} for component in COMPONENTS},
    },
)
ANY_POD = {
    "extraEnv": [{"name": "TZ", "value": "UTC"}],
    "extraArgs": ["--log-level=warning"],
    "extraVolumes": [{"name": "scratch", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "scratch", "mountPath": "/scratch"}],
    "options": {"drain-seconds": 90.5},
    "nodeSelector": {"disk": "fast"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "priorityClassName": "high",
    "podAnnotations": {"example.com/note": "a: b"},
    "podLabels": {"team": "pictures"},
}
EVERYTHING = merged(
    example("autoscaled"),
    {
        "imageRegistry": "registry.example.com/ml/",
        "imagePullSecrets": [{"name": "registry"}],
        "serviceAccountName": "serving",
        "checkpoint": {
            "download": {
                "image": "downloader:1",
                "args": ["OpenGVLab/InternVL2_5-8B"],
                "env": {"HF_HUB_ENABLE_HF_TRANSFER": 1},
                "secretEnv": {"HF_TOKEN": {"name": "huggingface", "key": "token"}},
            }
        },
        "engines": {"hostPath": "/engines", "subPath": "8B/fp8"},
        "gateway": {**ANY_POD, "service": {"type": "LoadBalancer", "port": 80}},
        "vision": {**ANY_POD, "engine": "tensorrt", "gpuCount": 1, "runtimeClassName": "nvidia"},
        "llm": {**ANY_POD, "engine": "tensorrt_llm", "gpuCount": 4, "runtimeClassName": "nvidia"},
        "traces": {"otlpEndpoint": "http://collector.monitoring:4317"},
        "networkPolicy": {
            "gatewayFrom": [{"namespaceSelector": {"matchLabels": {"ingress": "yes"}}}],
            "metricsFrom": [{"namespaceSelector": {"matchLabels": {"monitoring": "yes"}}}],
            "imageEgress": [],
        },
    },
)
ENCRYPTED: Values = merged(
    ON_A_HOST,
    {
        "tls": {
            "enabled": True,
            "secrets": {name: f"{name}-certificate" for name in COMPONENTS},
        },
        "apiKeys": {"existingSecret": "keys", "secretKey": "ours.yaml"},
        "gateway": {"tls": {"existingSecret": "chat-example-com"}},
    },
)
SHARED_GPU: Values = merged(
    ON_A_HOST,
    {"mps": {"hostPath": "/run/mps"}, "vision": {"gpuCount": 1}, "llm": {"gpuCount": 1}},
)
CASES: dict[str, Values] = {
    "demo": example("demo-cpu"),
    "gpu": example("gpu-8b"),
    "gpu, autoscaled": merged(example("gpu-8b"), example("autoscaled")),
    "nothing": NOTHING,
    "everything": EVERYTHING,
    "encrypted": ENCRYPTED,
    "shared GPU": SHARED_GPU,
}


@lru_cache
def chart() -> helm_python.Chart:
    """Returns the chart as Helm has read it."""
    return helm_python.Chart.load(CHART)


def rendered(values: Values, name: str = RELEASE) -> list[Document]:
    """Returns the objects that an installation creates.

    Raises:
        helm_python.HelmError: the values are refused.
    """
    return json.loads(_rendered(json.dumps(values), name))  # type: ignore[no-any-return]


@lru_cache
def _rendered(values: str, name: str) -> str:
    given = json.loads(values)
    chart().validate_schema(given)
    texts = chart().render(given, name=name, namespace=NAMESPACE)
    manifests = [text for path, text in sorted(texts.items()) if path.endswith(".yaml")]
    loaded = [document for text in manifests for document in yaml.load_all(text, LOADER)]
    return json.dumps([document for document in loaded if document])


def of_kind(documents: Iterable[Document], kind: str) -> dict[str, Document]:
    """Returns the objects of a kind by what follows the release's name in theirs."""
    found = (document for document in documents if document["kind"] == kind)
    return {
        document["metadata"]["name"].removeprefix(f"{RELEASE}-"): document for document in found
    }


def pod(deployment: Document) -> Document:
    """Returns the spec of a Deployment's pods."""
    spec: Document = deployment["spec"]["template"]["spec"]
    return spec


def container(deployment: Document) -> Document:
    """Returns the one container of a Deployment's pods, without those that run before it."""
    (only,) = pod(deployment)["containers"]
    return dict(only)


def container_ports(deployment: Document) -> dict[str, int]:
    """Returns a container's ports by their names."""
    return {port["name"]: port["containerPort"] for port in container(deployment)["ports"]}


def label_selectors(document: object) -> Iterator[dict[str, str]]:
    """Yields the labels of each selector in an object."""
    if isinstance(document, list):
        for part in document:
            yield from label_selectors(part)
    if isinstance(document, dict):
        if "matchLabels" in document:
            yield document["matchLabels"]
        for part in document.values():
            yield from label_selectors(part)
