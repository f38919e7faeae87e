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

from omni_rl.api.runs import METRICS
from omni_rl.consistency.actions import Cause
from omni_rl.consistency.incidents import KINDS
from tests.deploy.compose import ROOT, load
from tests.services.live import live

PROMETHEUS = ROOT / "deploy" / "prometheus"
DASHBOARD = ROOT / "deploy" / "grafana" / "dashboards" / "omni-rl.json"
NAME = re.compile(r"\bomni_rl[_:][\w:]+")


def alerts() -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if "alert" in rule]


def recorded() -> dict[str, str]:
    groups = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
    return {rule["record"]: rule["expr"] for group in groups for rule in group["rules"] if "record" in rule}


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
    expressions |= {name: [query] for name, query in recorded().items()}
    expressions |= {mark["name"]: [mark["expr"]] for mark in json.loads(DASHBOARD.read_text())["annotations"]["list"]}
    shown = shown | recorded().keys()
    for title, queries in expressions.items():
        for query in queries:
            used = set(NAME.findall(query))
            assert used <= shown, f"{title}: {sorted(used - shown)}"
            assert used or query.startswith("up{"), title


def test_nothing_that_is_shown_goes_unseen(shown: set[str]) -> None:
    text = DASHBOARD.read_text() + (PROMETHEUS / "alerts.yml").read_text()
    seen = set(NAME.findall(text))
    figures = {"omni_rl_step", "omni_rl_severity", "omni_rl_sealed_steps_total", "omni_rl_cluster_members"}
    figures |= {"omni_rl_training", "omni_rl_limit", "omni_rl_incident_open"}
    assert figures <= seen & shown


def test_every_alert_has_a_severity_and_says_what_it_means() -> None:
    for rule in alerts():
        assert rule["labels"]["severity"] in {"critical", "warning", "info"}
        assert rule["annotations"]["summary"].endswith(".")


def test_every_alert_leads_to_a_section_of_the_guide_and_names_its_run_or_its_coordinator() -> None:
    titles = re.findall(r"^### (.*)$", (ROOT / "docs/operating.md").read_text(), re.MULTILINE)
    anchors = {title.lower() for title in titles}
    for rule in alerts():
        page, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert page == "docs/operating.md"
        if anchor == "{{ or $labels.cause $labels.incident_kind }}":
            assert {*Cause, *KINDS} <= anchors
        else:
            assert anchor in anchors, rule["alert"]
        assert re.search(r"Run \{\{ \$labels.run \}\}|\$labels.instance", rule["annotations"]["summary"]), rule["alert"]


def test_every_panel_says_what_it_shows_and_those_of_runs_lead_to_the_run() -> None:
    for panel in panels():
        assert panel["description"].endswith("."), panel["title"]
        of_runs = any("$run" in target["expr"] for target in panel["targets"])
        links = [link["url"] for link in panel["fieldConfig"]["defaults"]["links"]]
        assert links == (["${page}/#run=${__field.labels.run}"] if of_runs else []), panel["title"]


def test_every_figure_of_drift_is_drawn_with_the_limits_that_it_is_held_against() -> None:
    drawn = {
        match[1]: [target["expr"] for target in panel["targets"]]
        for panel in panels()
        if (match := re.fullmatch(r"omni_rl_(\w+)\{run=~.\$run.\}", panel["targets"][0]["expr"]))
        and match[1] in METRICS
    }
    assert {"token_mult_prob_error", "logprob_abs_diff_mean", "gen_kl_error"} <= drawn.keys()
    for metric, queries in drawn.items():
        assert f'metric="{metric}"' in queries[1]


def test_figures_have_one_name_for_a_kind_of_prompt_everywhere(shown: set[str]) -> None:
    for path in (DASHBOARD, PROMETHEUS / "alerts.yml", PROMETHEUS / "alerts_test.yml"):
        assert "bucket}}" not in path.read_text()
        assert 'bucket="' not in path.read_text()


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
    queries += [mark["expr"] for mark in json.loads(DASHBOARD.read_text())["annotations"]["list"]]
    filled = [re.sub(r"\$__\w+", "1m", query).replace("$run", ".*") for query in queries]
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


def test_prometheus_alertmanager_and_whoever_is_woken_find_each_other_in_compose() -> None:
    services = load()["services"]
    configuration = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    (targets,) = configuration["alerting"]["alertmanagers"][0]["static_configs"]
    assert targets == {"targets": ["alertmanager:9093"]}
    routing = yaml.safe_load((PROMETHEUS / "alertmanager.yml").read_text())
    receivers = {receiver["name"]: receiver for receiver in routing["receivers"]}
    (hook,) = receivers[routing["route"]["receiver"]]["webhook_configs"]
    assert hook["url_file"].removeprefix("/run/secrets/") in services["alertmanager"]["secrets"]
    assert "edge" in services["alertmanager"]["networks"], "the receiver is outside"
    silenced = [route["matchers"] for route in routing["route"]["routes"]]
    assert silenced == [['severity="info"']], "only what is worth no more than a look wakes nobody"


def test_kubernetes_gets_the_same_alerts() -> None:
    done = subprocess.run([sys.executable, "deploy/prometheus/kubernetes.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run deploy/prometheus/kubernetes.py"
    manifest = yaml.safe_load((ROOT / "deploy/kuberay/alerts.yaml").read_text())
    assert manifest["spec"] == yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())
