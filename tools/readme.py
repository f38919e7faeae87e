"""Writes the README's result table from bench/demo.json; `--check` only says whether it is up to date."""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
RESULT = ROOT / "bench" / "demo.json"
START, END = "<!-- table: make bench, then python tools/readme.py -->", "<!-- end of table -->"
KINDS = ("text", "image", "audio", "video", "mixed")


def main() -> int:
    text = README.read_text()
    before, rest = text.split(START)
    _, after = rest.split(END)
    wanted = f"{before}{START}\n{table(json.loads(RESULT.read_text()))}{END}{after}"
    if "--check" in sys.argv[1:]:
        return int(wanted != text)
    README.write_text(wanted)
    return 0


def table(result: dict[str, Any]) -> str:
    """Per dtype: the worst step of each kind, and the legs."""
    machine = result["machine"]
    lines = [
        f"`{result['command']}` on {machine['cpu']}, {machine['cores']} cores, {machine['date']} "
        "([`bench/demo.json`](bench/demo.json)). d is the trainer's logprob of a sampled token less vLLM's; each "
        "row is the worst of six steps, after each of which the weights moved.",
        "",
    ]
    for dtype in ("float32", "bfloat16"):
        entry = result["results"][dtype]
        report = entry["report"]
        tokens = sum(step["overall"]["tokens"] for step in report["steps"])
        left_out = sum(step["overall"]["excluded_tokens"] for step in report["steps"])
        lines += [
            f"**{dtype}**: {report['verdict']}, {len(report['steps'])} steps, {tokens:,} tokens compared, "
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
