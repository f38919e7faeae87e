"""The compose file: what Compose takes, what the programs in it take, and what nobody else may reach."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from compose_spec.models import ComposeSpecification
from omni_rl_services.coordinator.settings import CoordinatorSettings, load_tokens
from pydantic import ValidationError

from omni_rl.api.state import Scope
from omni_rl.service import probe
from omni_rl.service.up import NODES
from tests.deploy.compose import REQUIRED, ROOT, TEXT, VARIABLE, load
from tests.services.live import live

OURS = {"memory", "ray-head", "rollout", "rollout-gpu", "trainer", "coordinator"}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load()


def test_it_is_what_the_compose_specification_allows(compose: dict[str, Any]) -> None:
    document = {name: part for name, part in compose.items() if not name.startswith("x-")}
    ComposeSpecification.model_validate(document, extra="forbid")
    document["services"]["trainer"]["comand"] = []
    with pytest.raises(ValidationError, match="comand"):
        ComposeSpecification.model_validate(document, extra="forbid")


@pytest.mark.parametrize("name", REQUIRED)
def test_what_has_no_safe_default_is_required(name: str) -> None:
    with pytest.raises(KeyError, match=name):
        load({key: value for key, value in REQUIRED.items() if key != name})


def test_no_secret_has_a_default_or_lies_in_the_environment(compose: dict[str, Any]) -> None:
    assert compose["secrets"]
    for secret in compose["secrets"].values():
        assert secret.keys() == {"file"}
        assert secret["file"].startswith(REQUIRED["OMNI_RL_SECRETS"])
    defaults = [match["name"] for match in VARIABLE.finditer(TEXT) if match["kind"] == "-"]
    assert not [name for name in defaults if any(word in name for word in ("TOKEN", "SECRET", "PASSWORD", "KEY"))]
    for service in compose["services"].values():
        for name, value in service.get("environment", {}).items():
            if any(word in name.upper() for word in ("TOKEN", "PASSWORD", "PASS")):
                assert str(value).startswith("/run/secrets/"), name


@pytest.mark.parametrize("name", ["ray-head", "rollout", "rollout-gpu", "trainer", "coordinator"])
def test_rays_nodes_are_set_as_those_of_omni_rl_up(compose: dict[str, Any], name: str) -> None:
    assert NODES.items() <= compose["services"][name]["environment"].items()


def test_secrets_reach_whoever_reads_them(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        mounted = {f"/run/secrets/{secret}" for secret in service.get("secrets", [])}
        used = {value for value in service.get("environment", {}).values() if str(value).startswith("/run/secrets/")}
        assert used <= mounted, name


def test_only_the_coordinator_and_grafana_are_published_on_loopback(compose: dict[str, Any]) -> None:
    published = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert published.keys() == {"coordinator", "grafana"}
    assert all(port.startswith("127.0.0.1:") for ports in published.values() for port in ports)
    assert compose["networks"]["inside"] == {"internal": True}
    assert {name for name, service in compose["services"].items() if "edge" in service.get("networks", [])} == {
        "alertmanager",
        "coordinator",
        "grafana",
    }


def test_whoever_has_networks_has_no_network_mode(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert ("networks" in service) != ("network_mode" in service), name


def test_whoever_touches_slabs_shares_one_memory_of_a_stated_size(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert services["memory"]["ipc"] == "shareable"
    assert services["memory"]["shm_size"]
    assert {name for name, service in services.items() if service.get("ipc") == "service:memory"} == OURS - {"memory"}


def test_our_containers_are_confined(compose: dict[str, Any]) -> None:
    for name in OURS:
        service = compose["services"][name]
        assert service["user"] == REQUIRED["OMNI_RL_UID"]
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]


def test_everything_that_serves_has_a_health_check_and_an_exact_image(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name != "memory":
            assert service["healthcheck"]["test"][0] == "CMD", name
        tag = service["image"].rpartition(":")[2]
        assert name in OURS or any(character.isdigit() for character in tag), f"{name}: {service['image']}"


def test_only_gpu_machines_need_gpus(compose: dict[str, Any]) -> None:
    with_devices = [name for name, service in compose["services"].items() if "deploy" in service]
    assert with_devices == ["rollout-gpu"]
    assert compose["services"]["rollout-gpu"]["profiles"] == ["gpu"]


def test_the_coordinator_takes_its_settings(compose: dict[str, Any]) -> None:
    settings = CoordinatorSettings(**json.loads(compose["configs"]["coordinator"]["content"]))
    assert settings.cluster is not None
    assert settings.cluster.join
    assert settings.cluster.run == REQUIRED["OMNI_RL_RUN"]
    services = compose["services"]
    assert settings.cluster.address == "ray-head:6379"
    assert "--port=6379" in services["ray-head"]["command"]
    cluster = settings.cluster
    for group, wanted in (("rollout", cluster.rollout_resources), ("trainer", cluster.trainer_resources)):
        offered = json.loads(services[group]["command"][-1].removeprefix("--resources="))
        assert all(offered.get(name, 0) >= amount for name, amount in wanted.items() if name != "GPU")
    secrets = {f"/run/secrets/{secret}" for secret in services["coordinator"]["secrets"]}
    assert str(settings.tokens_file) in secrets
    # Drivers of jobs run on the head.
    assert settings.cluster.job_environment["OMNI_RL_TOKEN_FILE"] in {
        f"/run/secrets/{secret}" for secret in services["ray-head"]["secrets"]
    }
    with_gpus = load({**REQUIRED, "OMNI_RL_ROLLOUT_GPUS": "1"})["configs"]["coordinator"]["content"]
    assert json.loads(with_gpus)["cluster"]["rollout_resources"]["GPU"] == 1


@pytest.mark.slow
def test_the_secrets_script_makes_what_the_file_names(tmp_path: Path) -> None:
    directory = tmp_path / "secrets"
    environment = {**os.environ, "OMNI_RL": str(Path(sys.executable).with_name("omni-rl"))}
    command = ["bash", "deploy/docker/secrets.sh", str(directory)]
    refused = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert refused.returncode != 0
    assert "OMNI_RL_ALERT_URL: where alerts go" in refused.stderr
    environment["OMNI_RL_ALERT_URL"] = "https://pager.example/hook"
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    compose = load({**REQUIRED, "OMNI_RL_SECRETS": str(directory)})
    files = [Path(secret["file"]) for secret in compose["secrets"].values()]
    made = {file: file.read_text() for file in files}
    assert len(set(made.values())) == len(files)
    assert directory.stat().st_mode & 0o077 == 0
    assert {entry.name: entry.scope for entry in load_tokens(directory / "tokens.json")} == {
        "owner": Scope.ADMIN,
        "prometheus": Scope.READ,
        "job": Scope.SYNC,
    }
    host, port, database, user, password = made[directory / "ledger_pgpass"].strip().split(":")
    assert (host, port, database, user) == ("postgres", "5432", "omni_rl", "omni_rl")
    assert password == made[directory / "ledger_password"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
    assert {file: file.read_text() for file in files} == made


def test_the_probe_says_whether_an_address_answers(tmp_path: Path) -> None:
    with live(tmp_path) as address:
        assert probe.main([f"{address}/healthz"]) == 0
        assert probe.main([f"{address}/nowhere"]) == 1
    assert probe.main([f"{address}/healthz"]) == 1
