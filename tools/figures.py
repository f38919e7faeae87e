"""Writes docs/benchmarks.md and the README's table from the committed results; `--check` only says whether they are up
to date."""

import json
import sys
from pathlib import Path
from typing import Any

from omni_rl.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "benchmarks.md"
RESULTS = ROOT / "bench"
START = "<!-- figures: written by tools/figures.py -->"
END = "<!-- end of figures -->"
Results = dict[str, dict[str, Any]]

AREAS = {
    "How far the two sides of our pair are apart": ("demo", "agreement", "operators", "gpu"),
    "Verdicts": ("detector", "judging"),
    "What watching costs": ("check", "ingest", "watch", "fingerprints", "updates"),
    "Weights and scores": ("sync", "replicas", "scoring"),
    "Training": ("learning",),
    "The service": ("dashboard", "fuzz", "stalls", "soak"),
    "The tests": ("mutants",),
}
"""The titles, and the results that are shown under each."""

NOTES = {
    "agreement": "Against vLLM itself, module by module: `matched` computes as its prefill does, `batch_invariant` has"
    " both sides use the same operators.",
    "check": "From a step's records to its verdict in the trainer's hands, with both requests and the ledger's "
    "flushes to disk. The demo's step is a second long, which makes its share large.",
    "dashboard": "In Chromium, over a ledger with a million steps and 10,000 runs.",
    "detector": "Faults put into a live service of ours, with seeds that no limit or rule was chosen on. In bfloat16 "
    "what goes unnoticed is listed in the result with its size.",
    "fingerprints": "The rival is torch's own sum of the same bytes as int64, in the same run.",
    "fuzz": "Heads through a raw socket, JSON, Arrow, media and bundles, each right by its grammar and then changed, to"
    " a coordinator with SQLite and no cluster; blocks and memory are measured inside it.",
    "gpu": "The training copy alone; no engine has met a GPU ([gpu.md](gpu.md)).",
    "ingest": "Arrow records of eight ranks, over HTTP, with everything that judges them; one core, by its own clock.",
    "judging": "Steps drawn as correct runs would post them: both dtypes, long and short answers, masks, staleness.",
    "learning": "Handwritten digits, of which every fifth is held out by its hash. `grpo-rate-0` and `grpo-shuffled` "
    "are controls that must not learn. In `mismatch` the engine samples at twice the temperature that it "
    "is asked for; with TIS the policy that is trained gets further, and the sampler's less far. Each run"
    " in the file says its commit: GRPO's and its controls' are older than the others'.",
    "mutants": "300 changes at random places of four rooms. Before those that survived had tests, 84 % were noticed: a "
    "sample of other places may have more survivors. What alters nothing is left out, by name and reason "
    "([equal_mutants.json](../tools/equal_mutants.json)).",
    "replicas": "Two engines on the machine's two cores against one.",
    "scoring": "The rival is the best of transformers' own ways (one by one, padded, sorted by length) "
    "with the small checkpoint on two cores, on the workload that the packing was written for. On an "
    "Intel Xeon the factor was 2.08 to 2.13; on other mixes of lengths others measured 1.34 to 1.97.",
    "soak": "A service of ours under load on every route, while every kind of process is stopped and killed, "
    "`/dev/shm` and the ledger's disk are filled and freed, and the clock is set. Other work ran on the machine in its "
    "second half, which the latencies show.",
    "stalls": "200 clients that send a byte a second, half heads and half bodies, beside 50 that post.",
    "sync": "The rival is `save_pretrained` and vLLM's `reload_weights` through the file system, whose speed "
    "decides the factor: on a machine with a slower disk it was 6.6, elsewhere 2.6. `ray.put` with "
    "`load_weights`, which proves nothing and is no transaction, takes about as long as ours: both are in"
    " the result.",
    "updates": "Over all kinds of model that the agent was tried on; parts that cannot be compared would be counted.",
    "watch": "A step's own thread may pay 2 % of the step or 2 ms of processor time, whichever is more; the figure"
    " is the share of that. The shapes are answers x tokens; TRL's runs are real, with vLLM beside the "
    "trainer on two cores.",
}
"""What each result is compared with, and what its figures do not say."""
PAIRS = ("float32", "bfloat16", "batch_invariant")
"""The pairs of policies that the detector was tried on."""


def main() -> int:
    results: Results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    wanted = {README: worst_table(results), PAGE: page(results)}
    stale = False
    for path, figures in wanted.items():
        text = path.read_text()
        before, rest = text.split(START)
        after = rest.split(END, 1)[1]
        renewed = f"{before}{START}\n{figures}{END}{after}"
        stale |= renewed != text
        if "--check" not in sys.argv[1:]:
            path.write_text(renewed)
    return int(stale and "--check" in sys.argv[1:])


def worst_table(results: Results) -> str:
    """Return the README's table: the worst case of each area."""
    steps = results["demo"]["results"]["float32"]["report"]["steps"]
    apart = max(step["by_modality"][kind]["logprob_abs_diff_mean"] for step in steps for kind in KINDS)
    found = results["detector"]["results"]
    of_pairs = {pair: found[pair]["noticed"] for pair in PAIRS}
    noticed = ", ".join(f"{seen['yes']} of {seen['of']} in {pair}" for pair, seen in of_pairs.items())
    caused = min(found[pair]["right_cause"]["share"] for pair in PAIRS)
    clean = _goal(results, "judging", "clean steps judged")
    told = _goal(results, "judging", "clean posted steps that are told of")
    watched = max(
        run[kind]["of_the_step"] for run in results["watch"]["results"]["trl"] for kind in ("watching", "announcing")
    )
    faster = _goal(results, "sync", "1000 MB: faster than save and reload, times")
    scoring = min(goal["value"] for goal in results["scoring"]["goals"] if "tokens/s" in goal["name"])
    faults = _goal(results, "soak", "faults")
    lost = _goal(results, "soak", "acknowledged steps, syncs, checks and media lost")
    rows = [
        (
            "demo",
            "Mean difference of a token's logprob between our two sides, float32, worst kind",
            f"{apart:.1e} nats",
        ),
        ("detector", "Faults put into a live service that were noticed", noticed),
        ("detector", "Of those with a cause to name: named rightly, worst dtype", f"{100 * caused:.0f} %"),
        ("judging", f"Of {clean:,.0f} clean steps as frameworks post them: alarms", f"{told:.0f}"),
        ("check", "Share of a one-second step that its check takes", f"{100 * _only(results, 'check'):.1f} %"),
        (
            "watch",
            "Share of a step that watching and announcing takes of TRL's own thread, worst",
            f"{100 * watched:.1f} %",
        ),
        ("ingest", "Tokens a second, from records to verdict, on one core", f"{_only(results, 'ingest'):,.0f}"),
        ("sync", "1 GB of weights, proven: faster than saving and reloading", f"{faster:.1f} times"),
        ("scoring", "Scoring, over the best of transformers, its own workload", f"{scoring:.1f} times"),
        ("soak", f"Acknowledged records lost under load, with {faults:.0f} stops, kills and full disks", f"{lost:.0f}"),
    ]
    lines = ["| what | worst case | result |", "|---|---|---|"]
    lines += [f"| {what} | {value} | [{name}](bench/{name}.json) |" for name, what, value in rows]
    return "\n".join([*lines, ""])


def _goal(results: Results, name: str, goal: str) -> float:
    return float(next(one["value"] for one in results[name]["goals"] if one["name"] == goal))


def _only(results: Results, name: str) -> float:
    (goal,) = results[name]["goals"]
    return float(goal["value"])


def page(results: Results) -> str:
    """Return the page with every goal of every benchmark, met or not, by area."""
    lines = []
    for title, names in AREAS.items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [*_of_result(name, results[name]), ""]
    missing = results.keys() - {name for names in AREAS.values() for name in names}
    if missing:
        raise ValueError(f"no area for {', '.join(sorted(missing))}; give AREAS one")
    return "\n".join(lines)


def _of_result(name: str, result: dict[str, Any]) -> list[str]:
    machine, commit = result["machine"], result["commit"]
    told = f"`{result['command']}`, [bench/{name}.json](../bench/{name}.json), at commit {commit}"
    told += f" on {machine['cpu']}, {machine['cores']} cores, {machine['date']}."
    lines = [f"### {name}", "", " ".join([told, NOTES.get(name, "")]).strip(), ""]
    if name == "demo":
        lines += demo_table(result)
    if name == "learning":
        lines += learning_table(result)
    lines += ["| goal | reached | aimed at | met |", "|---|---|---|---|"]
    for goal in result["goals"]:
        bar = f"{'at least' if goal['better'] == 'higher' else 'at most'} {goal['bar']:,g}"
        met = "yes" if goal["met"] else "**no**"
        lines.append(f"| {goal['name']} | {_digits(goal['value'])} | {bar} | {met} |")
    return lines


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def demo_table(result: dict[str, Any]) -> list[str]:
    """Return a table of each dtype's worst step of each kind, and the legs."""
    lines = [
        "d is the trainer's logprob of a sampled token less vLLM's; each row is the worst of six steps, after each of "
        "which the weights moved.",
        "",
    ]
    for name, entry in result["results"].items():
        report = entry["report"]
        tokens = sum(step["overall"]["tokens"] for step in report["steps"])
        left_out = sum(step["overall"]["excluded_tokens"] for step in report["steps"])
        lines += [
            f"**{name}**: {report['verdict']}, {len(report['steps'])} steps, {tokens:,} tokens compared, "
            f"{left_out} left out, {entry['wall_seconds']:.0f} s in all",
            "",
            "| against vLLM's decode | mean abs d | p99 | max | `gen_kl_error` | `token_mult_prob_error` |",
            "|---|---|---|---|---|---|",
        ]
        rows = {kind: [step["by_modality"][kind] for step in report["steps"]] for kind in KINDS}
        lines += [_row(kind, _worst(metrics)) for kind, metrics in rows.items()]
        lines += [_row(f"leg `{leg}`, last step", metrics) for leg, metrics in report["legs"].items()]
        lines.append("")
    return lines


def learning_table(result: dict[str, Any]) -> list[str]:
    """Return a table of each case's held-out reward at the beginning and at the end of every seed."""
    lines = ["| case | held-out reward, first to last step, by seed | seconds | steps not OK |", "|---|---|---|---|"]
    for case, runs in result["results"].items():
        curves = [list(run["held_out_reward"].values()) for run in runs.values()]
        ends = ", ".join(f"{curve[0]:.2f} to {curve[-1]:.2f}" for curve in curves)
        mended = [run["held_out_reward_mended"] for run in runs.values() if "held_out_reward_mended" in run]
        if mended:
            ends += f"; with the engine mended {', '.join(f'{reward:.2f}' for reward in mended)}"
        seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs.values())
        lines.append(f"| {case} | {ends} | {seconds} | {sum(run['steps_not_ok'] for run in runs.values())} |")
    return [*lines, ""]


def _worst(steps: list[dict[str, float]]) -> dict[str, float]:
    return {name: max(step[name] for step in steps) for name in steps[0]}


def _row(name: str, metrics: dict[str, float]) -> str:
    return (
        f"| {name} | {metrics['logprob_abs_diff_mean']:.1e} | {metrics['logprob_abs_diff_p99']:.1e} "
        f"| {metrics['logprob_abs_diff_max']:.1e} | {metrics['gen_kl_error']:.1e} "
        f"| {metrics['token_mult_prob_error']:.6f} |"
    )


if __name__ == "__main__":
    sys.exit(main())
