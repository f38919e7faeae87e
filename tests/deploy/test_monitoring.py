"""Prometheus and Grafana look at metrics that a coordinator really shows."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy.compose import ROOT, load
from tests.services.live import live

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "omni-rl.json"
NAME = re.compile(r"\bomni_rl_\w+")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Names of the series and families on /metrics."""
    with live(tmp_path_factory.mktemp("coordinator")) as address:
        families = list(text_string_to_metric_families(httpx.get(f"{address}/metrics").text))
    names = {sample.name for family in families for sample in family.samples}
    # A family whose labels have had no value yet has no sample.
    bare = {f"{family.name}{suffix}" for family in families for suffix in SUFFIXES[family.type]}
    return names | bare


SUFFIXES = {"gauge": ("",), "counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "unknown": ("",)}


def test_every_alert_and_every_panel_asks_for_what_is_there(shown: set[str]) -> None:
    expressions = {rule["alert"]: [rule["expr"]] for rule in alerts()}
    expressions |= {panel["title"]: [target["expr"] for target in panel["targets"]] for panel in panels()}
    for title, queries in expressions.items():
        for query in queries:
            used = set(NAME.findall(query))
            assert used <= shown, f"{title}: {sorted(used - shown)}"
            assert used or query.startswith("up{"), title


def test_nothing_that_is_shown_goes_unseen(shown: set[str]) -> None:
    text = DASHBOARD.read_text() + (PROMETHEUS / "alerts.yml").read_text()
    seen = set(NAME.findall(text))
    figures = {"omni_rl_step", "omni_rl_severity", "omni_rl_sealed_steps_total", "omni_rl_cluster_members"}
    assert figures <= seen & shown


def test_every_alert_has_a_severity_and_says_what_it_means() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_is_tested() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yml").read_text())["tests"]
    fired = {check["alertname"] for test in tests for check in test["alert_rule_test"] if check.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in alerts()}


def promtool_or_skip() -> None:
    if shutil.which("promtool") is None:
        assert "CI" not in os.environ, "promtool is not installed; in CI nothing is left out: apt install prometheus"
        pytest.skip("promtool is not installed: apt install prometheus")


def promtool(*arguments: str) -> None:
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_configuration_and_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    promtool_or_skip()
    for file in ("prometheus.yml", "alerts.yml"):
        shutil.copy(PROMETHEUS / file, tmp_path)
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(configuration.read_text().replace("/run/secrets/prometheus_token", "alerts.yml"))
    promtool("check", "config", str(configuration))
    promtool("test", "rules", str(PROMETHEUS / "alerts_test.yml"))


def test_the_panels_expressions_are_promql(tmp_path: Path) -> None:
    promtool_or_skip()
    queries = [target["expr"] for panel in panels() for target in panel["targets"]]
    filled = [query.replace("$__rate_interval", "1m").replace("$run", ".*") for query in queries]
    rules = [{"record": f"panel:{index}", "expr": query} for index, query in enumerate(filled)]
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(file))


def test_the_dashboard_is_what_its_program_writes() -> None:
    done = subprocess.run([sys.executable, "deploy/grafana/dashboard.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run deploy/grafana/dashboard.py"


def test_panels_lie_beside_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells


def test_grafana_and_prometheus_find_each_other_in_compose() -> None:
    services = load()["services"]
    provisioned = ROOT / "deploy/grafana/provisioning/datasources/prometheus.yml"
    (source,) = yaml.safe_load(provisioned.read_text())["datasources"]
    assert source["url"] == "http://prometheus:9090"
    used = {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]}
    assert used == {source["uid"]}
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["scrape_configs"]
    by_name = {job["job_name"]: job for job in scraped}
    assert by_name["coordinator"]["static_configs"] == [{"targets": ["coordinator:8400"]}]
    secret = by_name["coordinator"]["authorization"]["credentials_file"].removeprefix("/run/secrets/")
    assert secret in services["prometheus"]["secrets"]
    (list_of_nodes,) = by_name["ray"]["file_sd_configs"][0]["files"]
    mounts = dict(volume.split(":")[:2] for volume in services["prometheus"]["volumes"])
    assert list_of_nodes.startswith(f"{mounts['ray-head']}/")
