"""The chart's objects: valid, fit for each other, and with no more rights than they need."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from functools import cache, lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import helm_python
import kubernetes_validate
import pytest
import yaml

from gateway.metrics import LoadCollector, Metrics
from protos.signature import EmbeddingKey
from tests.unit.deploy.chart import (
    CASES,
    CHART,
    COMPONENT,
    COMPONENTS,
    EVERYTHING,
    NAMESPACE,
    NOTHING,
    ON_A_HOST,
    RELEASE,
    ROOT,
    SERVICES,
    SHARED_GPU,
    Document,
    chart,
    chart_file,
    container,
    container_ports,
    label_selectors,
    merged,
    of_kind,
    pod,
    rendered,
)

EVERY_CASE = pytest.mark.parametrize("case", CASES)
# The oldest that the chart takes, and the newest whose schemas are known here.
VERSIONS = ("1.27", "1.37")
# What Kubernetes does not know by itself, with the fields that their controllers do.
CUSTOM = {
    "ScaledObject": {
        "scaleTargetRef", "pollingInterval", "minReplicaCount", "maxReplicaCount", "advanced",
        "triggers",
    },
    "PodMonitor": {"selector", "podTargetLabels", "podMetricsEndpoints"},
    "PrometheusRule": {"groups"},
}  # fmt: skip
# What selects pods that have another name.
SELECTED = {"gateways": "gateway"}
LONG_NAMES = ["a" * 53, "a" * 52 + "b", "internvl-for-the-photographs-of-the-department-a"]


@pytest.fixture(scope="module", autouse=True)
def schemas_that_are_read_once() -> Iterator[None]:
    """Keeps the schemas, of megabytes, which are read anew for each object otherwise."""
    read_once = lru_cache(kubernetes_validate.utils.schema_contents)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubernetes_validate.utils, "schema_contents", read_once)
        yield


@cache  # the cases have many objects in common
def validate(document: str, version: str) -> None:
    kubernetes_validate.validate(json.loads(document), version, strict=True)


@EVERY_CASE
@pytest.mark.parametrize("version", VERSIONS)
def test_kubernetes_knows_every_field(case: str, version: str) -> None:
    for document in rendered(CASES[case]):
        if document["kind"] in CUSTOM:
            assert set(document["spec"]) <= CUSTOM[document["kind"]]
        else:
            validate(json.dumps(document), version)


@EVERY_CASE
def test_lint_finds_nothing(case: str) -> None:
    report = helm_python.lint(CHART, CASES[case], strict=True)
    assert report["errors"] == []
    assert [found for found in report["messages"] if found["severity"] > 1] == []


def test_the_chart_is_of_this_version_of_the_programs() -> None:
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert version
    assert chart().metadata["appVersion"] == version[1]


@pytest.mark.parametrize("name", LONG_NAMES)
def test_names_fit_whatever_the_release_is_called(name: str) -> None:
    documents = rendered(EVERYTHING, name)
    assert all(len(document["metadata"]["name"]) <= 63 for document in documents)
    # A pod's name has 11 characters of its ReplicaSet and 5 of its own, after at most 58.
    deployments = [found for found in documents if found["kind"] == "Deployment"]
    assert all(len(found["metadata"]["name"]) <= 58 - 11 for found in deployments)


def test_two_releases_share_no_name() -> None:
    first, second = (
        {document["metadata"]["name"] for document in rendered(EVERYTHING, name)}
        for name in LONG_NAMES[:2]
    )
    assert not first & second


@EVERY_CASE
def test_the_same_labels_select_a_deployments_pods_and_no_others(case: str) -> None:
    documents = rendered(CASES[case])
    pods = {
        name: found["spec"]["template"]["metadata"]["labels"]
        for name, found in of_kind(documents, "Deployment").items()
    }
    pods |= {name: found["metadata"]["labels"] for name, found in of_kind(documents, "Pod").items()}
    assert set(pods) == {*COMPONENTS, "test-ready"}
    selectors: dict[str, Callable[[Document], dict[str, str]]] = {
        "Deployment": lambda found: found["spec"]["selector"]["matchLabels"],
        "Service": lambda found: found["spec"]["selector"],
        "PodDisruptionBudget": lambda found: found["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": lambda found: found["spec"]["podSelector"]["matchLabels"],
    }
    for kind, selector in selectors.items():
        for name, found in of_kind(documents, kind).items():
            wanted = selector(found).items()
            selected = [each for each, labels in pods.items() if wanted <= labels.items()]
            assert selected == [SELECTED.get(name, name)]


@EVERY_CASE
def test_every_other_selector_finds_pods(case: str) -> None:
    documents = rendered(CASES[case])
    pods = [
        found["spec"]["template"]["metadata"] for found in of_kind(documents, "Deployment").values()
    ]
    pods += [found["metadata"] for found in of_kind(documents, "Pod").values()]
    foreign = EVERYTHING["networkPolicy"]
    for labels in label_selectors(documents):
        ours = any(labels.items() <= found["labels"].items() for found in pods)
        assert ours or labels in list(label_selectors(foreign))


@EVERY_CASE
def test_services_and_policies_name_ports_that_containers_have(case: str) -> None:
    documents = rendered(CASES[case])
    deployments = of_kind(documents, "Deployment")
    for name, service in of_kind(documents, "Service").items():
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in container_ports(deployments[SELECTED.get(name, name)])
    for name, policy in of_kind(documents, "NetworkPolicy").items():
        opened = {port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]}
        assert opened == set(container_ports(deployments[name]).values())
    for monitor in of_kind(documents, "PodMonitor").values():
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        assert all(endpoint["port"] in container_ports(found) for found in deployments.values())


@EVERY_CASE
def test_the_gateway_asks_for_all_pods_of_the_services(case: str) -> None:
    documents = rendered(CASES[case])
    services = of_kind(documents, "Service")
    variables = {
        each["name"]: each.get("value")
        for each in container(of_kind(documents, "Deployment")["gateway"])["env"]
    }
    for name in SERVICES:
        service = services[name]
        assert service["spec"]["clusterIP"] == "None"
        assert service["spec"]["publishNotReadyAddresses"] is True
        host = f"{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"
        address = f"dns:///{host}:{service['spec']['ports'][0]['port']}"
        assert variables[f"INTERNVL_GATEWAY_{name.upper()}_ADDRESS"] == address


def test_gateways_count_those_that_get_requests() -> None:
    """Each gives its share of a key's limits."""
    documents = rendered(CASES["encrypted"])
    service = of_kind(documents, "Service")["gateways"]
    assert service["spec"]["clusterIP"] == "None"
    assert not service["spec"].get("publishNotReadyAddresses")
    env = container(of_kind(documents, "Deployment")["gateway"])["env"]
    (count,) = (one["value"] for one in env if one["name"] == "INTERNVL_GATEWAY_GATEWAY_COUNT")
    assert count == f"dns:///{service['metadata']['name']}.{NAMESPACE}.svc.cluster.local"


def test_the_services_are_reached_from_the_gateway_alone() -> None:
    policies = of_kind(rendered(ON_A_HOST), "NetworkPolicy")
    for name, port in zip(SERVICES, (50051, 50052), strict=True):
        calls, _ = policies[name]["spec"]["ingress"]
        (peer,) = calls["from"]
        assert [each["port"] for each in calls["ports"]] == [port]
        assert peer["podSelector"]["matchLabels"][COMPONENT] == "gateway"
        assert policies[name]["spec"]["egress"] == []


@pytest.mark.parametrize("name", ["vision", "llm", "gateway"])
def test_all_reach_the_collector_that_gets_traces(name: str) -> None:
    traced = merged(ON_A_HOST, {"traces": {"otlpEndpoint": "https://collector:4317"}})
    given = {
        port["port"]
        for rule in of_kind(rendered(traced), "NetworkPolicy")[name]["spec"]["egress"]
        for port in rule["ports"]
    }
    assert {53, 4317, 4318} <= given


def test_who_restricts_who_asks_still_has_helms_test() -> None:
    policy = of_kind(rendered(EVERYTHING), "NetworkPolicy")["gateway"]["spec"]
    *given, test = policy["ingress"][0]["from"]
    assert given == EVERYTHING["networkPolicy"]["gatewayFrom"]
    assert test["podSelector"]["matchLabels"][COMPONENT] == "test"


def test_pictures_of_private_addresses_are_not_fetched() -> None:
    egress = of_kind(rendered(ON_A_HOST), "NetworkPolicy")["gateway"]["spec"]["egress"]
    blocks = [
        peer["ipBlock"] for rule in egress for peer in rule.get("to", []) if "ipBlock" in peer
    ]
    assert [block["cidr"] for block in blocks] == ["0.0.0.0/0", "::/0"]
    assert {"10.0.0.0/8", "169.254.0.0/16", "192.168.0.0/16"} <= set(blocks[0]["except"])
    closed = of_kind(rendered(EVERYTHING), "NetworkPolicy")["gateway"]["spec"]["egress"]
    assert not [peer for rule in closed for peer in rule.get("to", []) if "ipBlock" in peer]


@EVERY_CASE
def test_a_pod_has_no_more_rights_than_it_needs(case: str) -> None:
    documents = rendered(CASES[case])
    pods = [pod(found) for found in of_kind(documents, "Deployment").values()]
    pods += [found["spec"] for found in of_kind(documents, "Pod").values()]
    for spec in pods:
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for each in [*spec["containers"], *spec.get("initContainers", [])]:
            assert each["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@EVERY_CASE
def test_no_service_of_the_namespace_passes_for_an_option(case: str) -> None:
    # A Service internvl-gateway would set INTERNVL_GATEWAY_PORT=tcp://10.0.0.1:8000.
    documents = rendered(CASES[case])
    pods = [pod(found) for found in of_kind(documents, "Deployment").values()]
    assert all(spec["enableServiceLinks"] is False for spec in pods)


@EVERY_CASE
def test_what_is_mounted_is_there_and_only_scratch_can_be_written_to(case: str) -> None:
    for deployment in of_kind(rendered(CASES[case]), "Deployment").values():
        spec = pod(deployment)
        volumes = [volume["name"] for volume in spec["volumes"]]
        assert len(set(volumes)) == len(volumes)
        mounts = container(deployment)["volumeMounts"]
        assert {mount["name"] for mount in mounts} == set(volumes)
        writable = {mount["mountPath"] for mount in mounts if not mount.get("readOnly")}
        assert writable <= {"/tmp", "/dev/shm", "/scratch", "/mps"}


def test_the_manuals_values_have_both_services_share_memory() -> None:
    manual = (ROOT / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"```yaml\n(vision: &node\n.*?)```", manual, re.S)
    deployments = of_kind(rendered(merged(ON_A_HOST, yaml.safe_load(block))), "Deployment")
    for component in ("vision", "llm"):
        spec, running = pod(deployments[component]), container(deployments[component])
        variable = f"INTERNVL_{component.upper()}_SHARED_MEMORY_FOLDER"
        assert {"name": variable, "value": "/shared"} in running["env"]
        assert {"name": "shared", "mountPath": "/shared"} in running["volumeMounts"]
        (folder,) = (one["hostPath"] for one in spec["volumes"] if one["name"] == "shared")
        assert f"install -d -o 10001 -g 10001 -m 700 {folder['path']} " in manual
        assert spec["securityContext"]["runAsUser"] == 10001
        assert spec["nodeSelector"] == {"kubernetes.io/hostname": "node-1"}


def test_a_key_is_made_once_and_given_to_both_services(tmp_path: Path) -> None:
    documents = rendered(ON_A_HOST)
    secret = of_kind(documents, "Secret")["embedding-key"]
    assert secret["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}
    key = tmp_path / "key"
    key.write_bytes(base64.b64decode(secret["data"]["embedding.key"], validate=True))
    EmbeddingKey.read(key)
    assert key.stat().st_size == 32
    other = chart().render(ON_A_HOST, name="other", namespace=NAMESPACE)
    assert secret["data"]["embedding.key"] not in "".join(other.values())
    assert secret_names(documents) == [None, "internvl-embedding-key", "internvl-embedding-key"]


def test_a_key_that_exists_is_taken() -> None:
    documents = rendered(NOTHING)
    assert of_kind(documents, "Secret") == {}
    assert secret_names(documents) == [None, "our-key", "our-key"]


def secret_names(documents: list[Document]) -> list[str | None]:
    """Returns which Secret the pods of each component have as a volume."""
    deployments = of_kind(documents, "Deployment")
    secrets = [
        [volume["secret"]["secretName"] for volume in pod(found)["volumes"] if "secret" in volume]
        for found in map(deployments.__getitem__, COMPONENTS)
    ]
    return [names[0] if names else None for names in secrets]


def test_certificates_and_api_keys_are_mounted_as_folders_that_change() -> None:
    """A file that is mounted by itself (subPath) keeps what it had at the pod's start."""
    deployments = of_kind(rendered(CASES["encrypted"]), "Deployment")
    for name in COMPONENTS:
        volumes = {
            volume["name"]: volume["secret"]["secretName"]
            for volume in pod(deployments[name])["volumes"]
            if "secret" in volume
        }
        assert volumes.pop("tls") == f"{name}-certificate"
        if name == "gateway":
            assert volumes == {"https": "chat-example-com", "api-keys": "keys"}
        mounts = container(deployments[name])["volumeMounts"]
        assert not any("subPath" in mount for mount in mounts if "secrets" in mount["mountPath"])


def test_a_downloads_secrets_stay_secrets() -> None:
    documents = rendered(EVERYTHING)
    for name in SERVICES:
        (download,) = pod(of_kind(documents, "Deployment")[name])["initContainers"]
        variables = {each.pop("name"): each for each in download["env"]}
        assert variables["CHECKPOINT"] == {"value": "/checkpoint"}
        assert variables["HF_HUB_ENABLE_HF_TRANSFER"] == {"value": "1"}
        reference = {"name": "huggingface", "key": "token"}
        assert variables["HF_TOKEN"] == {"valueFrom": {"secretKeyRef": reference}}
        assert {"name": "checkpoint", "mountPath": "/checkpoint"} in download["volumeMounts"]


@EVERY_CASE
def test_whose_number_is_scaled_has_none_of_its_own(case: str) -> None:
    documents = rendered(CASES[case])
    scaled = of_kind(documents, "ScaledObject")
    for name, deployment in of_kind(documents, "Deployment").items():
        assert ("replicas" in deployment["spec"]) is (name not in scaled)
        if name in scaled:
            target = scaled[name]["spec"]["scaleTargetRef"]
            assert target["kind"] == deployment["kind"]
            assert target["name"] == deployment["metadata"]["name"]
            validate(json.dumps(autoscaler(scaled[name])), VERSIONS[0])


def autoscaler(scaled: Document) -> Document:
    """Returns the HorizontalPodAutoscaler that KEDA makes of a ScaledObject."""
    spec = scaled["spec"]
    assert all(
        isinstance(value, str) for each in spec["triggers"] for value in each["metadata"].values()
    )
    assert {each["type"] for each in spec["triggers"]} == {"prometheus"}
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": scaled["metadata"]["name"]},
        "spec": {
            "scaleTargetRef": spec["scaleTargetRef"],
            "minReplicas": spec["minReplicaCount"],
            "maxReplicas": spec["maxReplicaCount"],
            "behavior": spec["advanced"]["horizontalPodAutoscalerConfig"]["behavior"],
        },
    }


def test_pods_go_slowly_since_their_caches_go_with_them() -> None:
    for name, scaled in of_kind(rendered(CASES["gpu, autoscaled"]), "ScaledObject").items():
        down = scaled["spec"]["advanced"]["horizontalPodAutoscalerConfig"]["behavior"]["scaleDown"]
        (policy,) = down["policies"]
        assert policy["value"] == 1
        assert policy["periodSeconds"] >= (60 if name == "gateway" else 300)


def test_scaling_asks_for_the_backlog_of_this_releases_pods() -> None:
    queries = {
        name: [each["metadata"]["query"] for each in found["spec"]["triggers"]]
        for name, found in of_kind(rendered(CASES["gpu, autoscaled"]), "ScaledObject").items()
    }
    pods = '{namespace="models",pod=~"internvl-%s-[a-z0-9]+-[a-z0-9]{5}"}'
    mean = "sum(avg_over_time(internvl_%s%s[1m]))"
    assert queries == {
        "gateway": [mean % ("gateway_requests", pods % "gateway")],
        "vision": [mean % ("vision_backlog_seconds", pods % "vision")],
        "llm": [
            mean % ("llm_backlog_seconds", pods % "llm"),
            mean % ("llm_kv_cache_utilization", pods % "llm"),
        ],
    }


def test_scaling_and_its_page_go_by_metrics_that_there_are() -> None:
    # The manual's test holds it to have those of vision and the LLM.
    manual, page = (
        (ROOT / "docs" / f"{name}.md").read_text() for name in ("operating", "kubernetes")
    )
    pattern = r"\binternvl_(?:gateway|vision|llm)_[a-z_]+"
    queries = json.dumps(list(of_kind(rendered(CASES["gpu, autoscaled"]), "ScaledObject").values()))
    scaled = set(re.findall(pattern, queries))
    assert len(scaled) == 4
    known = {*re.findall(pattern, manual), *gateway_metrics()}
    assert scaled <= set(re.findall(pattern, page)) <= known


def gateway_metrics() -> Iterator[str]:
    """Yields the names under which the gateway's metrics are found."""
    nothing: Any = SimpleNamespace(request_count=0, held_byte_count=0)
    load = LoadCollector(nothing, cast(Any, ()), nothing)
    for family in [*Metrics().registry.collect(), *load.collect()]:
        yield from (sample.name for sample in family.samples)


def test_an_update_takes_no_pod_away_before_another_serves() -> None:
    deployments = of_kind(rendered(ON_A_HOST), "Deployment")
    for deployment in deployments.values():
        update = deployment["spec"]["strategy"]["rollingUpdate"]
        assert update == {"maxSurge": 1, "maxUnavailable": 0}
        probe = container(deployment)["startupProbe"]
        starting = probe["periodSeconds"] * probe["failureThreshold"]
        waiting = deployment["spec"].get("minReadySeconds", 0)
        assert deployment["spec"]["progressDeadlineSeconds"] > starting + waiting
    # An LLM of the old checkpoint needs a vision service of the old one beside it.
    assert deployments["vision"]["spec"]["minReadySeconds"] > 0


def test_rules_and_dashboard_are_those_of_the_files() -> None:
    documents = rendered(EVERYTHING)
    (rule,) = of_kind(documents, "PrometheusRule").values()
    assert rule["spec"] == chart_file("files/alerts.yaml")
    dashboard = of_kind(documents, "ConfigMap")["dashboard"]
    text = (CHART / "files" / "dashboard.json").read_text()
    assert dashboard["data"] == {f"{RELEASE}.json": text}


def test_gpus_are_those_that_the_processes_run_on() -> None:
    deployments = of_kind(rendered(EVERYTHING), "Deployment")
    for name, count in (("vision", 1), ("llm", 4)):
        resources = container(deployments[name])["resources"]
        assert resources["limits"]["nvidia.com/gpu"] == count
        assert resources["requests"]["nvidia.com/gpu"] == count
        assert resources["requests"]["cpu"] == "1"
    arguments = container(deployments["llm"])["args"]
    assert arguments[:6] == ["mpirun", "--bind-to", "none", "-n", "4", "internvl-llm"]


def test_images_are_the_engines_of_this_version() -> None:
    images = {
        case: [
            container(of_kind(rendered(CASES[case]), "Deployment")[name])["image"]
            for name in COMPONENTS
        ]
        for case in ("demo", "everything")
    }
    tag = chart().metadata["appVersion"]
    assert images["demo"] == [f"internvl-{name}:{tag}" for name in COMPONENTS]
    names = ("gateway", "vision-tensorrt", "llm-tensorrt_llm")
    assert images["everything"] == [
        f"registry.example.com/ml/internvl-{name}:{tag}" for name in names
    ]
    tagged = merged(
        ON_A_HOST, {"imageTag": "7", "llm": {"image": {"repository": "x/y", "tag": "8"}}}
    )
    deployments = of_kind(rendered(tagged), "Deployment")
    assert container(deployments["vision"])["image"] == "internvl-vision:7"
    assert container(deployments["llm"])["image"] == "x/y:8"


def test_pods_with_a_gpu_are_given_the_daemon_of_their_node() -> None:
    deployments = of_kind(rendered(SHARED_GPU), "Deployment")
    for component in SERVICES:
        given = container(deployments[component])
        assert {"name": "CUDA_MPS_PIPE_DIRECTORY", "value": "/mps"} in given["env"]
        mounted = {mount["mountPath"]: mount["name"] for mount in given["volumeMounts"]}
        volumes = {volume["name"]: volume for volume in pod(deployments[component])["volumes"]}
        folders = [volumes[mounted[path]]["hostPath"]["path"] for path in ("/mps", "/dev/shm")]
        assert folders == ["/run/mps", "/dev/shm"]
    without_gpu = merged(SHARED_GPU, {"vision": {"gpuCount": 0}})
    vision = of_kind(rendered(without_gpu), "Deployment")["vision"]
    assert "mps" not in json.dumps(vision)
