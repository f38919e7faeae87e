"""Writes docs/rest.md from the OpenAPI document, docs/configuration.md from the settings' classes, the tables of
docs/scale.md from the cost model and those of docs/numerics.md from the benchmark, the sections of causes and their
actions in docs/operating.md from the table of causes, and the metrics of docs/concepts.md from what is kept of them."""

import json
from pathlib import Path

from omni_rl.consistency.actions import CAUSES
from omni_rl.consistency.figures import Metrics
from omni_rl.consistency.guidance import OF_KIND
from omni_rl.consistency.limits import Severity
from omni_rl.plan.cases import cases
from omni_rl.plan.links import H100
from omni_rl.plan.measured import MeasuredConstants, published
from omni_rl.plan.model import PlanSettings, plan
from tools.markdown import row, wrapped
from tools.rest_reference import rest
from tools.settings_reference import attribute_docstrings, configuration

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
START, END = "<!-- tables: tools/reference.py -->\n", "<!-- end of tables -->"
SETTINGS = {
    "30B, 3B active, 8 GPUs": PlanSettings(total=30e9, active=3e9, gpus=8),
    "30B, 3B active, 64 GPUs": PlanSettings(total=30e9, active=3e9, gpus=64),
    "120B, 12B active, 64 GPUs, 4 an engine": PlanSettings(total=120e9, active=12e9, gpus=64, tensor_parallel=4),
    "1T, 32B active, 1,000 GPUs, 32 an engine": PlanSettings(total=1e12, active=32e9, gpus=1000, tensor_parallel=32),
}


def main() -> None:
    for name, text in documents().items():
        (DOCS / name).write_text(text)


def documents() -> dict[str, str]:
    """Return what `docs` must contain, by the file's name."""
    return {
        "rest.md": rest(),
        "configuration.md": configuration(),
        "scale.md": scale(),
        "numerics.md": numerics(),
        "operating.md": operating(),
        "concepts.md": concepts(),
    }


def operating() -> str:
    """Return the guide with a section for every cause, and for every kind of incident that has none."""
    sections = []
    for cause, guide in CAUSES.items():
        sections += _guidance(str(cause), guide.meaning, guide.remedy)
    sections += ["## Incidents without a cause", ""]
    for kind, guidance in OF_KIND.items():
        sections += _guidance(kind, guidance.meaning, guidance.remedy)
    severities = (Severity.WARN, Severity.MASK, Severity.PAUSE)
    actions = [row("cause", *(severity.label for severity in severities)), "|---" * (1 + len(severities)) + "|"]
    actions += [row(f"`{cause}`", *(guide.actions[one] for one in severities)) for cause, guide in CAUSES.items()]
    return _filled("operating.md", sections, actions)


def _guidance(name: str, meaning: str, remedy: str) -> list[str]:
    return [f"### {name}", "", *wrapped(f"{meaning}\n\n**What to do:** {remedy}")]


def concepts() -> str:
    """Return the page with what each metric is."""
    meanings = attribute_docstrings(Metrics).items()
    rows = [row(f"`{name}`", meaning.removesuffix(".")) for name, meaning in meanings]
    return _filled("concepts.md", ["| name | what |", "|---|---|", *rows])


def scale() -> str:
    """Return the page with its tables as the committed results have them."""
    measured = MeasuredConstants.read(published())
    lines = ["## Measured here, and what the model says", "", "| | measured | model | |", "|---|---|---|---|"]
    for case in cases(measured):
        lines.append(row(case.name, f"{case.measured:.3f} s", f"{case.predicted:.3f} s", f"{case.error:+.0%}"))
    lines += ["", "## Estimates, at best / as built, in seconds", ""]
    plans = [plan(settings, H100, measured) for settings in SETTINGS.values()]
    lines += [row("", *SETTINGS), "|---" * (len(plans) + 1) + "|"]
    for costs in zip(*(found.costs for found in plans), strict=True):
        lines.append(row(costs[0].part, *(f"{cost.limit:.1f} / {cost.as_built:.1f}" for cost in costs)))
    lines.append(row("generation stands still", *("{:.1f} / {:.1f}".format(*found.stall) for found in plans)))
    for rooms in zip(*(found.rooms for found in plans), strict=True):
        lines.append(row(f"{rooms[0].what}, GB", *(f"{room.needed / 1e9:.0f}" for room in rooms)))
    return _filled("scale.md", lines)


def numerics() -> str:
    """Return the page with its tables as `omni-rl bench agreement` measured them."""
    results = json.loads((ROOT / "bench/agreement.json").read_text())["results"]
    lines = ["Mean abs d in nats, over all kinds of prompt that a side can score; the probe's is the largest.", ""]
    lines += [
        row("", "canonical probe, prefill", "sampled, prefill", "sampled, decode", "tokens/s, scoring / learning")
    ]
    lines += ["|---|---|---|---|---|"]
    dtypes = ("bfloat16", "float32")
    for of, measured in results.items():
        dtype = of if of in dtypes else f"bfloat16, engine {of}"
        for name, side in measured["sides"].items():
            probe = max(figures["logprob_abs_diff_max"] for figures in side["probe_against_prefill"].values())
            legs = [_mean(side[leg]) for leg in ("against_prefill", "against_decode")]
            speed = f"{side['speed']['forward']:,.0f} / {side['speed']['forward_and_backward']:,.0f}"
            lines.append(row(f"{dtype}, {name}", f"{probe:.2g}", *(f"{mean:.2g}" for mean in legs), speed))
        engine = measured["engine"]
        itself = f"{_mean(engine['prefill_against_decode']):.2g}"
        lines.append(row(f"{dtype}, the engine's own prefill", "0", "0", itself, ""))
    lines += ["", "Elements that are equal bit for bit, given the engine's own inputs; modules not named: all.", ""]
    lines += [row("module", *(f"{dtype}, {mode}" for dtype in dtypes for mode in ("reference", "matched")))]
    lines += ["|---" * (1 + 2 * len(dtypes)) + "|"]
    modules = {dtype: results[dtype]["modules"] for dtype in dtypes}
    for name in dict.fromkeys(name for found in modules.values() for name in found["reference"]):
        shares = [found[mode][name]["equal"] for found in modules.values() for mode in ("reference", "matched")]
        if min(shares) < 1:
            lines.append(row(f"`{name}`", *(f"{share:.5f}" for share in shares)))
    lines += ["", "Elements that are equal when a sequence is computed token by token instead of at once.", ""]
    lines += [row("vLLM's operator", *dtypes), "|---" * (1 + len(dtypes)) + "|"]
    of_vllm = json.loads((ROOT / "bench/operators.json").read_text())["results"]
    operators = list(of_vllm["decode_equal_to_prefill"].values())
    lines += [row(name, *(f"{found[name]:.5f}" for found in operators)) for name in operators[0]]
    lines += ["", "Prefill alone against decode in a batch, abs d, and what it costs (tokens a second, bfloat16).", ""]
    lines += [row("engine", "mean", "max", "sampled", "rescored"), "|---|---|---|---|---|"]
    for name, engine in of_vllm["engines"].items():
        apart = [f"{engine[f'prefill_against_decode_{figure}']:.2g}" for figure in ("mean", "max")]
        speeds = [f"{engine[f'{work}_tokens_per_second']:,.0f}" for work in ("sampled", "scored")]
        lines.append(row(f"`{name}`", *apart, *speeds))
    return _filled("numerics.md", lines)


def _filled(name: str, *blocks: list[str]) -> str:
    """Return a page with new lines in each of its marked places, in order."""
    page, *places = (DOCS / name).read_text().split(START)
    for lines, place in zip(blocks, places, strict=True):
        page += f"{START}\n" + "\n".join(lines).rstrip() + f"\n\n{END}{place.split(END)[1]}"
    return page


def _mean(kinds: dict[str, dict[str, float]]) -> float:
    """Return the mean over all tokens of all kinds."""
    tokens = sum(figures["tokens"] for figures in kinds.values())
    return sum(figures["tokens"] * figures["logprob_abs_diff_mean"] for figures in kinds.values()) / tokens


if __name__ == "__main__":
    main()
