"""Shows the demo while it runs: a progress bar and one table a step, on standard error with `--json`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from omni_rl.consistency.comparison import Comparison
from omni_rl.consistency.limits import Limits, judge
from omni_rl.consistency.shown import shown
from omni_rl.demo.report import Report, StepReport
from omni_rl.jobs.following import progress_on

PLAIN_WIDTH = 120  # columns of a table that goes to a file or a pipe
PHASES = {
    "sample": "sampling",
    "score": "scoring the same tokens",
    "legs": "three legs",
    "learn": "learning",
    "sync": "new weights into the engine",
}
"""The phases of a step that take long enough to be shown, and the words that show them."""

COLUMNS = ("tokens", "|d| mean", "|d| p99", "|d| max", "gen_kl_error", "token_mult_prob_error", "flips")
WIDE_ONLY = ("|d| p99", "token_mult_prob_error")


class Display(Protocol):
    """A display, which is told of each phase of a step as it begins, and of each step when it is over."""

    def phase(self, step: int, phase: str) -> None: ...
    def step(self, report: StepReport) -> None: ...


class _Live:
    def __init__(self, console: Console, progress: Progress, limits: Limits, steps: int) -> None:
        self._console, self._progress, self._limits = console, progress, limits
        self._task = progress.add_task("", total=steps)
        self._say("starting Ray, vLLM and the trainer group")

    def phase(self, step: int, phase: str) -> None:
        if phase in PHASES:
            self._say(f"step {step}: {PHASES[phase]}")

    def _say(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text, style="dim")

    def step(self, report: StepReport) -> None:
        self._progress.advance(self._task)
        title = f"step {report.step}  weights {report.weight_version}  reward {report.reward:.3f}"
        rows = report.by_modality | {"all": report.overall}
        self._console.print(comparison_table(title, "kind", rows, self._limits, self._console.width))
        for breach in report.breaches:
            self._console.print(f"  {breach}", style="red", highlight=False)


def console_for(as_json: bool) -> Console:
    """Return a console on standard output, or on standard error if the JSON report goes to standard output."""
    console = Console(stderr=as_json)
    return console if console.is_terminal else Console(stderr=as_json, width=PLAIN_WIDTH)


@contextmanager
def live(console: Console, limits: Limits, steps: int) -> Iterator[Display]:
    """Show a progress bar over `steps` steps while the block runs, which first starts the pair; yield the display."""
    with progress_on(console, transient=True) as progress:
        yield _Live(console, progress, limits, steps)


def comparison_table(title: str, first: str, rows: dict[str, Comparison], limits: Limits, width: int) -> Table:
    """Return a table with a row for each comparison and its verdict under `limits`. If `width` is less than
    `PLAIN_WIDTH` characters, the columns `WIDE_ONLY` are left out."""
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    table.add_column(first, no_wrap=True)
    columns = [column for column in COLUMNS if width >= PLAIN_WIDTH or column not in WIDE_ONLY]
    for heading in columns:
        table.add_column(heading, justify="right", overflow="fold")
    table.add_column("verdict")
    for name, comparison in rows.items():
        m = comparison.metrics
        cells = {
            "tokens": f"{m.tokens:,}",
            "|d| mean": shown(m.logprob_abs_diff_mean, ".2e"),
            "|d| p99": shown(m.logprob_abs_diff_p99, ".2e"),
            "|d| max": shown(m.logprob_abs_diff_max, ".2e"),
            "gen_kl_error": shown(m.gen_kl_error, ".2e"),
            "token_mult_prob_error": shown(m.token_mult_prob_error, ".6f"),
            "flips": f"{m.router_flips}",
        }
        breaches = judge({name: comparison.figures}, limits).breaches
        verdict = "[red]disagree[/]" if breaches else "[green]agree[/]"
        table.add_row(name, *(cells[column] for column in columns), verdict)
    return table


def closing(console: Console, report: Report, limits: Limits, path: str) -> None:
    """Print the legs, the actors' nodes if there are several, the run's verdict, and the report's path."""
    console.print(comparison_table("where the difference comes from", "leg", report.legs, limits, console.width))
    if len({placed.node for placed in report.actors}) > 1:
        for placed in report.actors:
            weights = f"  weights through {placed.transport}" if placed.transport else ""
            console.print(f"{placed.name:<12}{placed.node}{weights}", highlight=False)
    verdict = "[green]every step agreed[/]" if report.agreed else "[red]the two policies disagree[/]"
    console.print(f"{verdict}  report: {path}", highlight=False)
