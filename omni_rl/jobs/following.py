"""Shows a submitted job's steps as they are sealed, until it ends. Imports no torch."""

import math
import time
from collections.abc import Callable
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from omni_rl.api.jobs import ENDED, JobAnswer
from omni_rl.api.steps import StepLine
from omni_rl.client.blocking import Client
from omni_rl.consistency.shown import shown
from omni_rl.errors import NotFoundError
from omni_rl.policies.retries import retried

LOOK_SECONDS = 1.0


def follow(client: Client, job: str, lines: Callable[[str], None] | None) -> JobAnswer:
    """Wait for a job to end, and return it as it ended. `lines` is called with each step as JSON; if it is None, a
    progress bar on standard error shows the steps."""
    answer = client.job(job)
    run, total = str(answer.parameters["run"]), int(answer.parameters["steps"])
    seen: StepLine | None = None
    with progress_on(Console(stderr=True), disable=lines is not None) as progress:
        bar = progress.add_task(f"{run}: waiting for its first step", total=total)
        while True:
            # The job survives a dead bridge and a full disk, and so should its watcher.
            answer = retried(lambda: client.job(job))
            for step in retried(partial(_steps, client, answer, seen)):
                seen = step
                if lines is not None:
                    lines(step.model_dump_json())
                else:
                    progress.console.print(_line(step), highlight=False)
                progress.update(bar, completed=step.step + 1, description=_line(step))
            if answer.status in ENDED:
                return answer
            time.sleep(LOOK_SECONDS)


def progress_on(console: Console, *, disable: bool = False, transient: bool = False) -> Progress:
    """Return a progress bar over steps. It is disabled where the console is no terminal: there it would print itself
    once at the end, and the lines of the steps are enough."""
    columns = SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    return Progress(*columns, console=console, disable=disable or not console.is_terminal, transient=transient)


def _steps(client: Client, job: JobAnswer, seen: StepLine | None) -> list[StepLine]:
    """Return the job's steps after `seen`. There are none while it has not created its run yet, and those that were
    sealed before it was submitted are of the attempt that it resumes."""
    run = str(job.parameters["run"])
    if seen is not None:
        return client.steps(run, attempt=seen.attempt, after=seen.step)
    try:
        return [step for step in client.steps(run) if step.sealed >= (job.submitted or math.inf)]
    except NotFoundError:
        return []


def _line(step: StepLine) -> str:
    figures = "  ".join(f"{name} {shown(value, '.3f')}" for name, value in step.training.items())
    return f"step {step.step}  {step.severity}  {figures}"
