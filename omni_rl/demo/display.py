"""What a person sees while the demo runs: a progress bar and one table a step, on standard error with `--json`."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from omni_rl.consistency.metrics import Comparison
from omni_rl.consistency.thresholds import Thresholds, breaches
from omni_rl.demo.report import Report, StepReport


class Display(Protocol):
    """What the run tells whoever watches."""

    def phase(self, text: str) -> None: ...
    def advance(self) -> None: ...
    def step(self, report: StepReport) -> None: ...


class _Live:
    def __init__(self, console: Console, progress: Progress, limits: Thresholds, phases: int) -> None:
        self._console, self._progress, self._limits = console, progress, limits
        self._task = progress.add_task("starting", total=phases)

    def phase(self, text: str) -> None:
        self._progress.update(self._task, description=text)
        if not self._console.is_terminal:
            self._console.print(text, style="dim")

    def advance(self) -> None:
        self._progress.advance(self._task)

    def step(self, report: StepReport) -> None:
        title = f"step {report.step}  weights {report.weight_version}  reward {report.reward:.3f}"
        rows = report.by_modality | {"all": report.overall}
        self._console.print(comparison_table(title, "kind", rows, self._limits))
        for breach in report.breaches:
            self._console.print(f"  {breach}", style="red", highlight=False)


@contextmanager
def live(console: Console, limits: Thresholds, phases: int) -> Iterator[Display]:
    """A progress bar of `phases` units for as long as the block runs."""
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    # Without a terminal the bar would print itself once at the end; the phases' own lines do there.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield _Live(console, progress, limits, phases)


def comparison_table(title: str, first: str, rows: dict[str, Comparison], limits: Thresholds) -> Table:
    """One row a comparison, with its verdict under `limits`."""
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column(first)
    for heading in ("tokens", "|d| mean", "|d| p99", "|d| max", "gen_kl_error", "token_mult_prob_error", "flips"):
        table.add_column(heading, justify="right")
    table.add_column("verdict")
    for name, comparison in rows.items():
        m = comparison.metrics
        agrees = not breaches(comparison, limits)
        table.add_row(
            name,
            f"{m.tokens:,}",
            f"{m.logprob_abs_diff_mean:.2e}",
            f"{m.logprob_abs_diff_p99:.2e}",
            f"{m.logprob_abs_diff_max:.2e}",
            f"{m.gen_kl_error:.2e}",
            f"{m.token_mult_prob_error:.6f}",
            f"{m.router_flips}",
            "[green]agree[/]" if agrees else "[red]disagree[/]",
        )
    return table


def closing(console: Console, report: Report, limits: Thresholds, path: str) -> None:
    """The legs, the run's verdict and where the report is."""
    console.print(comparison_table("where the difference comes from", "leg", report.legs, limits))
    for breach in report.breaches:
        console.print(breach, style="red", highlight=False)
    verdict = "[green]every step agreed[/]" if report.agreed else "[red]the two policies disagree[/]"
    console.print(f"{verdict}  report: {path}", highlight=False)
