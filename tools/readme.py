"""Writes the README's tables from the committed results; `--check` only says whether they are up to date."""

import json
import sys
from pathlib import Path
from typing import Any

from omni_rl.kinds import KINDS

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULTS = ROOT / "bench"
END = "<!-- end of table -->"


def main() -> int:
    text = README.read_text()
    results = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    wanted = _replaced(text, "demo", demo_table(results["demo"]))
    wanted = _replaced(wanted, "goals", goals_table(results))
    wanted = _replaced(wanted, "learning", learning_table(results["learning"]))
    if "--check" in sys.argv[1:]:
        return int(wanted != text)
    README.write_text(wanted)
    return 0


def _replaced(text: str, name: str, table: str) -> str:
    start = f"<!-- table {name}: make bench, then python tools/readme.py -->"
    before, rest = text.split(start)
    _, after = rest.split(END, 1)
    return f"{before}{start}\n{table}{END}{after}"


def goals_table(results: dict[str, dict[str, Any]]) -> str:
    """Every goal of every benchmark, met or not."""
    lines = ["| command | goal | reached | aimed at | met |", "|---|---|---|---|---|"]
    for name, result in results.items():
        for goal in result["goals"]:
            bar = f"{'at least' if goal['better'] == 'higher' else 'at most'} {goal['bar']:,g}"
            command = f"[`{result['command']}`](bench/{name}.json)"
            met = "yes" if goal["met"] else "**no**"
            lines.append(f"| {command} | {goal['name']} | {_digits(goal['value'])} | {bar} | {met} |")
    return "\n".join([*lines, ""])


def _digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def demo_table(result: dict[str, Any]) -> str:
    """Per dtype: the worst step of each kind, and the legs."""
    machine = result["machine"]
    lines = [
        f"`{result['command']}` on {machine['cpu']}, {machine['cores']} cores, {machine['date']} "
        "([`bench/demo.json`](bench/demo.json)). d is the trainer's logprob of a sampled token less vLLM's; each "
        "row is the worst of six steps, after each of which the weights moved.",
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
    return "\n".join(lines)


def learning_table(result: dict[str, Any]) -> str:
    """Each case's held-out reward at the beginning and at the end of every seed."""
    lines = ["| case | held-out reward, first to last step, by seed | seconds | steps not OK |", "|---|---|---|---|"]
    for case, runs in result["results"].items():
        curves = [list(run["held_out_reward"].values()) for run in runs.values()]
        ends = ", ".join(f"{curve[0]:.2f} to {curve[-1]:.2f}" for curve in curves)
        mended = [run["held_out_reward_mended"] for run in runs.values() if "held_out_reward_mended" in run]
        if mended:
            ends += f"; with the engine mended {', '.join(f'{reward:.2f}' for reward in mended)}"
        seconds = ", ".join(f"{run['seconds']:.0f}" for run in runs.values())
        lines.append(f"| {case} | {ends} | {seconds} | {sum(run['steps_not_ok'] for run in runs.values())} |")
    return "\n".join([*lines, ""])


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
