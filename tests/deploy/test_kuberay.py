"""The manifests: what they name exists, and what runs is confined. Their schemas are not at hand on every machine."""

import json
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.api.jobs import GrpoParameters, PpoParameters
from omni_rl.service.up import NODES
from tests.deploy.compose import ROOT

FOLDER = ROOT / "deploy" / "kuberay"
SECRETS = {"ray-token": {"auth_token"}, "coordinator-tokens": {"tokens.json", "job", "prometheus"}}
"""What the operating guide has one make."""
Document = dict[str, Any]


@cache
def documents() -> list[Document]:
    kustomization = yaml.safe_load((FOLDER / "kustomization.yaml").read_text())
    files = [*kustomization["resources"], *(path.name for path in sorted(FOLDER.glob("job-*.yaml")))]
    return [found for file in files for found in yaml.safe_load_all((FOLDER / file).read_text())]


@cache
def pods() -> dict[str, Document]:
    """Every pod template, with its labels and its spec."""
    found = {}
    for document in documents():
        spec = document.get("spec", {})
        if document["kind"] == "RayCluster":
            found["head"] = spec["headGroupSpec"]["template"]
            found |= {group["groupName"]: group["template"] for group in spec["workerGroupSpecs"]}
        elif document["kind"] == "RayJob":
            found[document["metadata"]["generateName"]] = spec["submitterPodTemplate"]
        elif document["kind"] == "Deployment":
            found[document["metadata"]["name"]] = spec["template"]
    return found


def containers(pod: Document) -> list[Document]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def of_kind(kind: str) -> list[Document]:
    return [document for document in documents() if document["kind"] == kind]


def labels_of(name: str) -> dict[str, str]:
    """The operator adds the cluster's to those of its pods."""
    own: dict[str, str] = pods()[name]["metadata"]["labels"]
    return {**own, "ray.io/cluster": "omni-rl"} if name in ("head", "rollout", "trainer") else own


def settings() -> CoordinatorSettings:
    return CoordinatorSettings(**json.loads((FOLDER / "coordinator.json").read_text()))


@pytest.mark.parametrize("name", ["head", "rollout", "trainer", "coordinator"])
def test_rays_nodes_are_set_as_those_of_omni_rl_up(name: str) -> None:
    variables = {one["name"]: one.get("value") for one in pods()[name]["spec"]["containers"][0]["env"]}
    assert NODES.items() <= variables.items()


@pytest.mark.parametrize("name", pods())
def test_pods_run_without_root_and_without_more_than_they_need(name: str) -> None:
    spec = pods()[name]["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    for container in containers(pods()[name]):
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["resources"]["requests"].keys() == {"cpu", "memory"}
        assert not container["image"].endswith("latest")


@pytest.mark.parametrize("name", pods())
def test_what_a_pod_mounts_is_there(name: str) -> None:
    volumes = {volume["name"]: volume for volume in pods()[name]["spec"].get("volumes", [])}
    for container in containers(pods()[name]):
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes.keys()
        for variable in container.get("env", []):
            if reference := variable.get("valueFrom", {}).get("secretKeyRef"):
                assert reference["key"] in SECRETS[reference["name"]]
    for volume in volumes.values():
        if secret := volume.get("secret"):
            assert {item["key"] for item in secret["items"]} <= SECRETS[secret["secretName"]]
        if claim := volume.get("persistentVolumeClaim"):
            assert claim["claimName"] in {found["metadata"]["name"] for found in of_kind("PersistentVolumeClaim")}


@pytest.mark.parametrize("name", ["head", "rollout", "trainer", "coordinator"])
def test_whoever_touches_slabs_is_on_one_node_and_sees_its_memory(name: str) -> None:
    pod = pods()[name]
    (term,) = pod["spec"]["affinity"]["podAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    assert term["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items()
    memory = next(volume for volume in pod["spec"]["volumes"] if volume["name"] == "memory")
    assert memory["hostPath"]["path"] == "/dev/shm"
    assert {"name": "memory", "mountPath": "/dev/shm"} in pod["spec"]["containers"][0]["volumeMounts"]


def test_the_coordinator_takes_its_settings_and_finds_everything() -> None:
    found = settings()
    (cluster,) = of_kind("RayCluster")
    assert found.cluster is not None
    assert found.cluster.address == f"{cluster['metadata']['name']}-head-svc:6379"
    assert found.cluster.join
    assert cluster["spec"]["authOptions"]["secretName"] in SECRETS
    offered: dict[str, float] = {}
    for group in cluster["spec"]["workerGroupSpecs"]:
        offered |= json.loads(json.loads(group["rayStartParams"]["resources"]))
    wanted = {**found.cluster.rollout_resources, **found.cluster.trainer_resources}
    assert all(offered[name] >= amount for name, amount in wanted.items())
    paths = {
        mount["mountPath"] for container in containers(pods()["coordinator"]) for mount in container["volumeMounts"]
    }
    for file in (found.tokens_file, found.media.directory, Path(found.ledger.removeprefix("sqlite:///"))):
        assert file is not None
        assert any(file.is_relative_to(path) for path in paths), file
    head = pods()["head"]["spec"]["containers"][0]
    token = Path(found.cluster.job_environment["OMNI_RL_TOKEN_FILE"])
    assert any(token.is_relative_to(mount["mountPath"]) for mount in head["volumeMounts"])
    (service,) = of_kind("Service")
    assert found.cluster.job_environment["OMNI_RL_URL"] == f"http://{service['metadata']['name']}:{found.port}"


def test_probes_ask_for_routes_that_there_are_and_need_no_token(tmp_path: Path) -> None:
    media = MediaSettings(directory=tmp_path / "media")
    app = create_app(CoordinatorSettings(ledger=f"sqlite:///{tmp_path}/ledger.db", media=media))
    (container,) = pods()["coordinator"]["spec"]["containers"]
    for probe in ("livenessProbe", "readinessProbe"):
        operation = app.openapi()["paths"][container[probe]["httpGet"]["path"]]["get"]
        assert "401" not in operation["responses"]


@pytest.mark.parametrize(("kind", "parameters"), [("grpo", GrpoParameters), ("ppo", PpoParameters)])
def test_jobs_are_those_of_the_api(kind: str, parameters: type[GrpoParameters] | type[PpoParameters]) -> None:
    job = yaml.safe_load((FOLDER / f"job-{kind}.yaml").read_text())["spec"]
    command = shlex.split(job["entrypoint"])
    assert command[:5] == ["python", "-m", "omni_rl", "run", kind]
    given = parameters(**json.loads(command[6]))
    cluster = settings().cluster
    assert cluster is not None
    assert yaml.safe_load(job["runtimeEnvYAML"])["env_vars"] == cluster.job_environment
    assert given.steps
    assert job["clusterSelector"] == {"ray.io/cluster": of_kind("RayCluster")[0]["metadata"]["name"]}


def selectors() -> Iterator[tuple[str, dict[str, str]]]:
    for kind in ("Deployment", "PodMonitor"):
        for document in of_kind(kind):
            yield kind, document["spec"]["selector"]["matchLabels"]
    for document in of_kind("NetworkPolicy"):
        yield "NetworkPolicy", document["spec"]["podSelector"]["matchLabels"]
    for document in of_kind("Service"):
        yield "Service", document["spec"]["selector"]


@pytest.mark.parametrize(("kind", "wanted"), selectors())
def test_selectors_select_something(kind: str, wanted: dict[str, str]) -> None:
    assert [name for name in pods() if wanted.items() <= labels_of(name).items()]


def test_every_pod_is_behind_the_network_policy_and_no_source_is_everyone() -> None:
    policies = of_kind("NetworkPolicy")
    (closed,) = [policy for policy in policies if policy["metadata"]["name"] == "cluster"]
    assert closed["spec"]["policyTypes"] == ["Ingress", "Egress"]
    wanted = closed["spec"]["podSelector"]["matchLabels"]
    assert all(wanted.items() <= labels_of(name).items() for name in pods())
    for policy in policies:
        for rule in policy["spec"]["ingress"]:
            assert rule["from"], "a rule without sources lets everyone in"


def test_pod_monitors_name_ports_and_a_token_of_scope_read() -> None:
    for monitor in of_kind("PodMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"]
        seen = [name for name in pods() if wanted.items() <= labels_of(name).items()]
        for endpoint in monitor["spec"]["podMetricsEndpoints"]:
            for name in seen:
                ports = pods()[name]["spec"]["containers"][0]["ports"]
                assert endpoint["port"] in {port["name"] for port in ports}, name
            if authorization := endpoint.get("authorization"):
                credentials = authorization["credentials"]
                assert credentials["key"] in SECRETS[credentials["name"]]
