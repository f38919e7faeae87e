"""Writes dashboards/omni-rl.json; `--check` only says whether it is up to date."""

import json
import sys
from pathlib import Path
from typing import Any

PATH = Path(__file__).parent / "dashboards" / "omni-rl.json"
SOURCE = {"type": "prometheus", "uid": "prometheus"}
RUN = 'run=~"$run"'
COLUMNS, HEIGHT = 24, 8

Panel = dict[str, Any]


def graph(title: str, *queries: tuple[str, str], unit: str = "short", log: bool = False, width: int = 8) -> Panel:
    """Lines over time. A query is an expression and the legend of what it gives."""
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    custom = {"scaleDistribution": scale, "spanNulls": True, "showPoints": "auto"}
    return _panel("timeseries", title, queries, width, {"unit": unit, "custom": custom})


def states(title: str, query: tuple[str, str], names: dict[int, tuple[str, str]], width: int = 12) -> Panel:
    """One band a series, in the colour of its state."""
    options = {str(value): {"text": text, "color": color} for value, (text, color) in names.items()}
    return _panel(
        "state-timeline", title, (query,), width, {"mappings": [{"type": "value", "options": options}], "unit": "short"}
    )


def number(title: str, query: str, unit: str = "short", bad: float | None = None) -> Panel:
    """The latest value, red from `bad` on."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [] if bad is None else [{"color": "red", "value": bad}]
    return _panel("stat", title, ((query, ""),), 4, {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}})


def _panel(kind: str, title: str, queries: tuple[tuple[str, str], ...], width: int, defaults: Panel) -> Panel:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for index, (expression, legend) in enumerate(queries)
    ]
    return {
        "type": kind,
        "title": title,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "gridPos": {"w": width, "h": HEIGHT if kind != "stat" else HEIGHT // 2},
    }


def drift(title: str, metric: str, log: bool = True) -> Panel:
    return graph(title, (f"omni_rl_{metric}{{{RUN}}}", "{{run}} {{bucket}}"), log=log)


def quantile(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate(omni_rl_{histogram}_bucket[$__rate_interval])))"


SEVERITIES = {0: ("ok", "green"), 1: ("warn", "yellow"), 2: ("mask", "orange"), 3: ("pause", "red")}
GATE = {0: ("open", "green"), 1: ("closed", "red")}
UP = {0: ("away", "red"), 1: ("answers", "green")}

ROWS: dict[str, list[Panel]] = {
    "Now": [
        number("Incidents open", "count(omni_rl_incident_open) or vector(0)", bad=1),
        number("Gate closed", "omni_rl_gate_closed", bad=1),
        number("Quarantined or dead", 'sum(omni_rl_cluster_members{state=~"quarantined|dead"}) or vector(0)', bad=1),
        number("Syncs failed, 24 h", 'sum(increase(omni_rl_syncs_total{outcome!="committed"}[24h]))', bad=1),
        number("Since the last sync", "time() - (omni_rl_last_sync_timestamp_seconds > 0)", "s"),
        number("Elements unproven", 'omni_rl_sync_elements{proven="no"}', bad=1),
        states("Severity of each run", (f"omni_rl_severity{{{RUN}}}", "{{run}}"), SEVERITIES),
        states("Gate", ("omni_rl_gate_closed", "gate"), GATE, 6),
        states("Ray", ("omni_rl_ray_up", "cluster"), UP, 6),
    ],
    "Drift, by kind of prompt": [
        drift("token_mult_prob_error (1 is agreement)", "token_mult_prob_error", log=False),
        drift("Mean abs d", "logprob_abs_diff_mean"),
        drift("Largest abs d", "logprob_abs_diff_max"),
        drift("gen_kl_error", "gen_kl_error"),
        drift("99th percentile of abs d", "logprob_abs_diff_p99"),
        drift("Router flips", "router_flips", log=False),
        drift("Tokens left out", "excluded_tokens", log=False),
        drift("Effective sample size", "ess", log=False),
        graph("Step", (f"omni_rl_step{{{RUN}}}", "{{run}}")),
    ],
    "Weight syncs": [
        graph("Syncs a minute", ("sum by (outcome) (rate(omni_rl_syncs_total[5m])) * 60", "{{outcome}}")),
        graph("Seconds a phase, latest", ("omni_rl_sync_phase_seconds", "{{phase}}"), unit="s"),
        graph("Stall of generation", ("omni_rl_sync_stall_seconds", "stall"), unit="s"),
        graph("Bytes", ("omni_rl_sync_bytes", "bytes"), unit="bytes"),
        graph("Elements of an engine", ("omni_rl_sync_elements", "proven: {{proven}}")),
        graph("Engines and trainers", ("omni_rl_cluster_members", "{{role}} {{state}}")),
    ],
    "Coordinator": [
        graph("Tokens taken in, a second", ("rate(omni_rl_ingested_tokens_total[$__rate_interval])", "tokens")),
        graph(
            "Parts a second", ("sum by (stored) (rate(omni_rl_ingested_parts_total[$__rate_interval]))", "{{stored}}")
        ),
        graph(
            "Seconds to a verdict",
            (quantile(0.5, "seal_seconds"), "p50"),
            (quantile(0.99, "seal_seconds"), "p99"),
            unit="s",
        ),
        graph("Verdicts", ("sum by (severity) (rate(omni_rl_sealed_steps_total[5m])) * 60", "{{severity}} a minute")),
        graph("Answers", ("sum by (status) (rate(omni_rl_http_requests_total[$__rate_interval]))", "{{status}}")),
        graph("Seconds to an answer", (quantile(0.99, "http_request_seconds"), "p99"), unit="s"),
        graph("Events", ("sum by (kind) (rate(omni_rl_events_total[5m])) * 60", "{{kind}} a minute")),
        graph("Open event streams", ("omni_rl_event_subscribers", "streams")),
    ],
}


def dashboard() -> dict[str, Any]:
    """The whole document: rows from top to bottom, panels from left to right."""
    panels: list[Panel] = []
    y = 0
    for name, row in ROWS.items():
        panels.append(
            {"type": "row", "title": name, "collapsed": False, "gridPos": _at(0, y, COLUMNS, 1), "panels": []}
        )
        x, y, height = 0, y + 1, 0
        for panel in row:
            width, tall = panel["gridPos"]["w"], panel["gridPos"]["h"]
            if x + width > COLUMNS:
                x, y, height = 0, y + height, 0
            panels.append({**panel, "gridPos": _at(x, y, width, tall)})
            x, height = x + width, max(height, tall)
        y += height
    runs = {
        "name": "run",
        "label": "Run",
        "type": "query",
        "datasource": SOURCE,
        "query": {"query": "label_values(omni_rl_severity, run)", "refId": "run"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "current": {"text": "All", "value": "$__all"},
    }
    return {
        "uid": "omni-rl",
        "title": "omni-rl: rollout against trainer",
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [runs]},
        "panels": [{"id": index, **panel} for index, panel in enumerate(panels, 1)],
    }


def _at(x: int, y: int, w: int, h: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": w, "h": h}


def main() -> int:
    text = json.dumps(dashboard(), indent=1) + "\n"
    if "--check" in sys.argv[1:]:
        return int(PATH.read_text() != text)
    PATH.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
