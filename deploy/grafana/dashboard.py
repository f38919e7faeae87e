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
Queries = tuple[tuple[str, str], ...]
TO_RUN = {"title": "Open the run", "url": "${page}/#run=${__field.labels.run}", "targetBlank": True}
MARKS = {
    "Incidents": (f"omni_rl_incident_open{{{RUN}}}", "{{run}}: {{incident_kind}} {{cause}}", "red"),
    "Starts": (f"changes(omni_rl_attempt{{{RUN}}}[$__interval]) > 0", "{{run}} was started again", "blue"),
    "Syncs": ("changes(omni_rl_last_sync_timestamp_seconds[$__interval]) > 0", "weights were committed", "green"),
}


def graph(
    title: str, about: str, *queries: tuple[str, str], unit: str = "short", log: bool = False, width: int = 8
) -> Panel:
    """Lines over time. A query is an expression and the legend of what it gives."""
    scale = {"type": "log", "log": 10} if log else {"type": "linear"}
    custom = {"scaleDistribution": scale, "spanNulls": True, "showPoints": "auto"}
    return _panel("timeseries", title, about, queries, width, {"unit": unit, "custom": custom})


def states(title: str, about: str, query: tuple[str, str], names: dict[int, tuple[str, str]], width: int = 12) -> Panel:
    """One band a series, in the colour of its state."""
    options = {str(value): {"text": text, "color": color} for value, (text, color) in names.items()}
    mappings = [{"type": "value", "options": options}]
    return _panel("state-timeline", title, about, (query,), width, {"mappings": mappings, "unit": "short"})


def number(title: str, about: str, query: str, unit: str = "short", bad: float | None = None) -> Panel:
    """The latest value, red from `bad` on."""
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    steps += [] if bad is None else [{"color": "red", "value": bad}]
    defaults = {"unit": unit, "thresholds": {"mode": "absolute", "steps": steps}}
    return _panel("stat", title, about, ((query, ""),), 4, defaults)


def _panel(kind: str, title: str, about: str, queries: Queries, width: int, defaults: Panel) -> Panel:
    targets = [
        {"refId": chr(ord("A") + index), "expr": expression, "legendFormat": legend, "datasource": SOURCE}
        for index, (expression, legend) in enumerate(queries)
    ]
    of_runs = any(RUN in expression for expression, _ in queries)
    return {
        "type": kind,
        "title": title,
        "description": about,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": {**defaults, "links": [TO_RUN] if of_runs else []}, "overrides": []},
        "gridPos": {"w": width, "h": HEIGHT if kind != "stat" else HEIGHT // 2},
    }


def drift(title: str, about: str, metric: str, log: bool = True) -> Panel:
    """A figure by run and kind of prompt, and the lowest limits that any of the runs has on it, as dashed lines."""
    limits = f'min by (severity) (omni_rl_limit{{{RUN}, metric="{metric}"}})'
    panel = graph(
        title, about, (f"omni_rl_{metric}{{{RUN}}}", "{{run}} {{kind}}"), (limits, "limit {{severity}}"), log=log
    )
    panel["fieldConfig"]["overrides"] = [
        {
            "matcher": {"id": "byName", "options": f"limit {severity}"},
            "properties": [
                {"id": "color", "value": {"mode": "fixed", "fixedColor": color}},
                {"id": "custom.lineStyle", "value": {"fill": "dash", "dash": [8, 8]}},
                {"id": "custom.showPoints", "value": "never"},
                {"id": "links", "value": []},
            ],
        }
        for severity, color in LIMIT_COLORS.items()
    ]
    return panel


def quantile(share: float, histogram: str) -> str:
    return f"histogram_quantile({share}, sum by (le) (rate(omni_rl_{histogram}_bucket[$__rate_interval])))"


SEVERITIES = {0: ("ok", "green"), 1: ("warn", "yellow"), 2: ("mask", "orange"), 3: ("pause", "red")}
GATE = {0: ("open", "green"), 1: ("closed", "red")}
UP = {0: ("away", "red"), 1: ("answers", "green")}

LIMIT_COLORS = dict(list(SEVERITIES.values())[1:])

ROWS: dict[str, list[Panel]] = {
    "Now": [
        number(
            "Incidents open",
            "What a person has to look at, acknowledged or not. The dashboard's first screen has the story of each.",
            "count(omni_rl_incident_open) or vector(0)",
            bad=1,
        ),
        number(
            "Gate closed",
            "1 while generation is held: by a run at PAUSE, or by a person. `omni-rl status` names the holder.",
            "omni_rl_gate_closed",
            bad=1,
        ),
        number(
            "Quarantined or dead",
            "Engines and trainers that do not answer, or whose weights could not be proven.",
            'sum(omni_rl_cluster_members{state=~"quarantined|dead|stopped"}) or vector(0)',
            bad=1,
        ),
        number(
            "Syncs failed, 24 h",
            "Weight syncs that were rolled back or failed. The engines then serve the weights from before.",
            'sum(increase(omni_rl_syncs_total{outcome!="committed"}[24h]))',
            bad=1,
        ),
        number(
            "Since the last sync",
            "How old the weights are that the engines serve.",
            "time() - (omni_rl_last_sync_timestamp_seconds > 0)",
            "s",
        ),
        number(
            "Elements unproven",
            "Storage elements of an engine that the latest sync did not read back. Anything but 0 is a fault.",
            'omni_rl_sync_elements{proven="no"}',
            bad=1,
        ),
        states(
            "Severity of each run",
            "Where each run stands after its latest step. It falls only after some calm steps.",
            (f"omni_rl_severity{{{RUN}}}", "{{run}}"),
            SEVERITIES,
        ),
        states("Gate", "Whether generation is held.", ("omni_rl_gate_closed", "gate"), GATE, 6),
        states("Ray", "Whether the cluster of both policies answers.", ("omni_rl_ray_up", "cluster"), UP, 6),
    ],
    "Learning": [
        graph(
            "Reward",
            "The mean reward that the trainer posts with a step, as `reward`.",
            (f'omni_rl_training{{{RUN}, figure="reward"}}', "{{run}}"),
        ),
        graph(
            "The trainer's other figures",
            "What the trainer says of its latest step under its own names: loss, KL, gradient norm, clipped share.",
            (f'omni_rl_training{{{RUN}, figure!="reward"}}', "{{run}} {{figure}}"),
        ),
        graph(
            "Seconds a step",
            "The median time between a run's newest steps, and the age of its latest one; a stall shows here.",
            (f"omni_rl_step_interval_seconds{{{RUN}}}", "{{run}} usual"),
            (f"time() - omni_rl_last_step_timestamp_seconds{{{RUN}}}", "{{run}} age of the latest"),
            unit="s",
            log=True,
        ),
    ],
    "Drift, by kind of prompt": [
        drift(
            "token_mult_prob_error (1 is agreement)",
            "NeMo RL's figure: the mean over tokens of exp|d|, d the trainer's logprob less the engine's.",
            "token_mult_prob_error",
            log=False,
        ),
        drift("Mean abs d", "The mean over tokens of |d|, in nats.", "logprob_abs_diff_mean"),
        drift("Largest abs d", "The token that is furthest off, in nats.", "logprob_abs_diff_max"),
        drift(
            "gen_kl_error",
            "The k3 estimate of the KL divergence from the engine's policy to the trainer's, in nats a token.",
            "gen_kl_error",
        ),
        drift("99th percentile of abs d", "One token in a hundred is further off.", "logprob_abs_diff_p99"),
        drift(
            "Router flips",
            "Tokens for which an MoE router chose other experts in the trainer than in the engine.",
            "router_flips",
            log=False,
        ),
        drift(
            "Tokens left out",
            "Tokens that ties of routers excuse. What is left out is not hidden: it has a limit of its own.",
            "excluded_tokens",
            log=False,
        ),
        drift(
            "Effective sample size",
            "How many of the step's tokens it is worth once they are weighted for the drift, as a share.",
            "ess",
            log=False,
        ),
        graph("Step", "The latest sealed step.", (f"omni_rl_step{{{RUN}}}", "{{run}}")),
    ],
    "Weight syncs": [
        graph(
            "Syncs a minute",
            "By what became of them.",
            ("sum by (outcome) (rate(omni_rl_syncs_total[5m])) * 60", "{{outcome}}"),
        ),
        graph(
            "Seconds a phase, latest",
            "Where the latest sync's time went.",
            ("omni_rl_sync_phase_seconds", "{{phase}}"),
            unit="s",
        ),
        graph(
            "Stall of generation",
            "The longest time without an engine step in the latest sync.",
            ("omni_rl_sync_stall_seconds", "stall"),
            unit="s",
        ),
        graph("Bytes", "Of the latest sync.", ("omni_rl_sync_bytes", "bytes"), unit="bytes"),
        graph(
            "Elements of an engine",
            "Storage elements that the latest sync read back and compared, and those that it did not.",
            ("omni_rl_sync_elements", "proven: {{proven}}"),
        ),
        graph(
            "Engines and trainers",
            "How many there are in each state.",
            ("omni_rl_cluster_members", "{{role}} {{state}}"),
        ),
    ],
    "Coordinator": [
        graph(
            "Tokens taken in, a second",
            "Sampled tokens of the records that were posted.",
            ("rate(omni_rl_ingested_tokens_total[$__rate_interval])", "tokens"),
        ),
        graph(
            "Parts a second",
            "Posts of a rank's records. `same` were there already.",
            ("sum by (stored) (rate(omni_rl_ingested_parts_total[$__rate_interval]))", "{{stored}}"),
        ),
        graph(
            "Seconds to a verdict",
            "From the arrival of a seal to its answer.",
            (quantile(0.5, "seal_seconds"), "p50"),
            (quantile(0.99, "seal_seconds"), "p99"),
            unit="s",
        ),
        graph(
            "Verdicts",
            "Steps judged, by the severity of their run.",
            ("sum by (severity) (rate(omni_rl_sealed_steps_total[5m])) * 60", "{{severity}} a minute"),
        ),
        graph(
            "Answers",
            "Requests, by status.",
            ("sum by (status) (rate(omni_rl_http_requests_total[$__rate_interval]))", "{{status}}"),
        ),
        graph("Seconds to an answer", "Of all routes.", (quantile(0.99, "http_request_seconds"), "p99"), unit="s"),
        graph(
            "Events",
            "What was told on the event stream.",
            ("sum by (event) (rate(omni_rl_events_total[5m])) * 60", "{{event}} a minute"),
        ),
        graph("Open event streams", "Pages and clients that follow.", ("omni_rl_event_subscribers", "streams")),
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
    page = {
        "name": "page",
        "label": "The coordinator's page",
        "type": "textbox",
        "query": "http://127.0.0.1:8400",
        "current": {"text": "http://127.0.0.1:8400", "value": "http://127.0.0.1:8400"},
    }
    marks = [
        {"name": name, "datasource": SOURCE, "enable": True, "iconColor": color, "expr": expression}
        | {"step": "15s", "titleFormat": title, "textFormat": title}
        for name, (expression, title, color) in MARKS.items()
    ]
    return {
        "uid": "omni-rl",
        "title": "omni-rl: rollout against trainer",
        "schemaVersion": 41,
        "version": 1,
        "editable": False,
        "refresh": "15s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [runs, page]},
        "annotations": {"list": marks},
        "links": [{"title": "All runs", "type": "link", "url": "${page}", "targetBlank": True}],
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
