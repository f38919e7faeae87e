"""The search for the cause: every check in its order, until one explains, or the time is over."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypeVar

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution import arrays, legs, proofs
from omni_rl.consistency.attribution.arrays import Rescore
from omni_rl.consistency.attribution.evidence import Audit, Check, Finding, SampleEvidence, mean_abs
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.errors import OmniRLError

T = TypeVar("T")


@dataclass(frozen=True)
class Experiments:
    """What costs more than looking at arrays: asked for in the order of the search, and only if nothing explained it
    before. None: it cannot be had here, or was not asked for.

    `audit`: every replica's bytes read back. `rescore`: the trainer at another temperature. `reference`: distances to
    float32. `localise`: module outputs of both sides on a sample, by its name, or on another that it names.
    """

    audit: Callable[[], Sequence[Audit]] | None = None
    rescore: Rescore | None = None
    legs: Callable[[], Legs] | None = None
    reference: Callable[[], Reference] | None = None
    localise: Callable[[str], tuple[str, list[ModuleDifference]]] | None = None


@dataclass(frozen=True)
class Attribution:
    """One cause; `sentence` is that of the check that explains. `seconds` by check."""

    cause: Cause
    sentence: str
    findings: tuple[Finding, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def attribute(
    samples: Sequence[SampleEvidence], experiments: Experiments, bands: Bands, *, seconds: float
) -> Attribution:
    """Find out why `samples`, the worst of a step, part.

    The first check that explains it ends the search. After `seconds` the experiment that runs is abandoned, its answer
    thrown away, and the cause is unknown: whoever asked decides without one. So it is where an experiment fails.
    """
    search = _Search(list(samples), experiments, bands, time.monotonic() + seconds)
    explains: Finding | None = None
    for finding in search.run():
        search.findings.append(finding)
        if finding.result == "explains":
            explains = finding
            break
    if explains is not None and explains.cause is not None:
        return Attribution(explains.cause, explains.sentence, tuple(search.findings), search.seconds)
    return Attribution(Cause.UNKNOWN, search.unknown(), tuple(search.findings), search.seconds)


@dataclass
class _Search:
    samples: list[SampleEvidence]
    experiments: Experiments
    bands: Bands
    deadline: float
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def run(self) -> Iterator[Finding]:
        samples, bands, asked = self.samples, self.bands, self.experiments
        yield proofs.versions(samples)
        yield proofs.media(samples)
        yield proofs.prompt(samples)
        yield from self._experiment(Check.WEIGHTS, asked.audit, proofs.weights)
        if samples:
            yield from self._of_arrays()
        step = self.step
        yield from self._experiment(
            Check.TRAIN_AGAINST_PREFILL,
            asked.legs,
            lambda found: legs.batch(found, step, bands),
            lambda found: legs.decode(found, step, bands),
            lambda found: legs.train(found, step, bands),
        )
        yield legs.router(samples, bands)
        yield from self._experiment(Check.REFERENCE, asked.reference, lambda found: legs.reference(found, bands))
        if samples:
            worst = max(samples, key=lambda sample: np.nan_to_num(mean_abs(sample.d), nan=np.inf))
            name, localise = worst.record.sample, asked.localise
            yield from self._experiment(
                Check.LOCALISATION,
                None if localise is None else lambda: localise(name),
                lambda found: legs.localisation(found[1], found[0]),
            )

    @cached_property
    def step(self) -> float:
        """What a leg has to explain; not a number without samples."""
        return legs.apart([sample.record for sample in self.samples], self.bands) if self.samples else np.nan

    def _of_arrays(self) -> Iterator[Finding]:
        samples, bands, rescore = self.samples, self.bands, self.experiments.rescore
        yield arrays.token_shift(samples)
        yield arrays.support(samples, bands)
        # Over several temperatures no single one explains.
        if rescore is not None and len({sample.temperature for sample in samples}) == 1:
            yield from self._experiment(
                Check.TEMPERATURE, lambda: arrays.temperature(samples, rescore, bands), lambda found: found
            )

    def _experiment(
        self, check: Check, do: Callable[[], T] | None, *readings: Callable[[T], Finding]
    ) -> Iterator[Finding]:
        if do is None:
            yield Finding(check, "not_done", "not asked for")
            return
        left = self.deadline - time.monotonic()
        if left <= 0:
            yield Finding(check, "not_done", "no time was left for it")
            return
        began = time.monotonic()
        try:
            found = _within(left, do)
        except TimeoutError:
            yield Finding(check, "not_done", f"abandoned after {left:.3g} s, when the time was over")
            return
        except OmniRLError as error:
            yield Finding(check, "not_done", f"it failed: {error}")
            return
        finally:
            self.seconds[check] = time.monotonic() - began
        for reading in readings:
            yield reading(found)

    def unknown(self) -> str:
        missing = [f for f in self.findings if f.result == "not_done" and f.sentence != "not asked for"]
        suspicious = [f.sentence for f in self.findings if f.result == "suspicious"]
        nothing = "no check reproduces the difference"
        if self.step <= self.bands.mean:
            nothing = f"the samples are {self.step:.2g} apart, which is noise: there is nothing to explain"
        said = "; ".join(suspicious) or nothing
        if missing:
            said += "; not done: " + "; ".join(f"{finding.check} ({finding.sentence})" for finding in missing)
        return said


def _within(seconds: float, do: Callable[[], T]) -> T:
    """What `do` gives; raises `TimeoutError` if it has not by then. It runs on, in a thread that nobody waits for."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="experiment", daemon=True).start()
    return future.result(timeout=seconds)
