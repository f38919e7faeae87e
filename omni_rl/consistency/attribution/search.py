"""The search for the cause on our own pair: what the records showed, then every experiment in its order, until one
explains the difference, or the time is over."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution import legs, proofs
from omni_rl.consistency.attribution.case import Case
from omni_rl.consistency.attribution.legs import Legs, Reference
from omni_rl.consistency.attribution.packing import Packing, packing
from omni_rl.consistency.attribution.parting import apart
from omni_rl.consistency.attribution.reported import Rescore, reported
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.evidence import PATTERNS, UNREAD, Audit, Check, Finding, TrainerAudit, mean_abs
from omni_rl.consistency.localisation import ModuleDifference
from omni_rl.consistency.records import SampleRecord
from omni_rl.errors import OmniRLError
from omni_rl.once import once

T = TypeVar("T")


@dataclass(frozen=True)
class Experiments:
    """The experiments, which cost more than looking at arrays: each is asked for in the order of the search, and only
    if nothing explained the difference before. None: it cannot be had here, or was not asked for.

    `audit` reads every replica's bytes back, `trainer` the trainer's. `packing` compares the trainer with itself.
    `rescore` gives what the trainer's logits give of the step's own answers at a temperature; None where these are not
    at hand. `reference` measures distances to float32. `localise` returns the module outputs of both sides on a sample,
    by its name, or on another that it names.
    """

    audit: Callable[[], Sequence[Audit]] | None = None
    trainer: Callable[[], TrainerAudit] | None = None
    packing: Callable[[], Packing] | None = None
    rescore: Rescore | None = None
    legs: Callable[[], Legs] | None = None
    reference: Callable[[], Reference] | None = None
    localise: Callable[[str], tuple[str, list[ModuleDifference]]] | None = None


@dataclass(frozen=True)
class Attribution:
    """The cause that was found; `sentence` is that of the check that explains. `seconds` has the time that each check
    took."""

    cause: Cause
    sentence: str
    findings: tuple[Finding, ...]
    seconds: dict[str, float] = field(default_factory=dict)


def attribute(case: Case, experiments: Experiments, bands: Bands, *, seconds: float) -> Attribution:
    """Find out why a step's samples part.

    The first check that explains the difference ends the search. After `seconds` the experiment that runs is abandoned,
    its answer thrown away, and the cause is unknown: whoever asked decides without one. The same holds where an
    experiment fails. What the records leave open (`UNREAD`) is the cause where no experiment knows better.
    """
    search = _Search(case, experiments, bands, time.monotonic() + seconds)
    found = search.explaining()
    if found is not None and found.cause is not None:
        return Attribution(found.cause, found.sentence, tuple(search.findings), search.seconds)
    return Attribution(Cause.UNKNOWN, search.unknown(), tuple(search.findings), search.seconds)


@dataclass
class _Search:
    case: Case
    experiments: Experiments
    bands: Bands
    deadline: float
    findings: list[Finding] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    def explaining(self) -> Finding | None:
        """Return the finding that explains the step's difference; None if there is none."""
        known: Finding | None = None
        for finding in self.case.known:
            self.findings.append(finding)
            if finding.result != "explains":
                continue
            if finding.check not in UNREAD:
                return finding
            known = known or finding
        for finding in self.of_weights() if known is not None and known.check not in PATTERNS else self.run():
            self.findings.append(finding)
            if finding.result == "explains":
                self._give_up(known)
                return finding
        return known

    def of_weights(self) -> Iterator[Finding]:
        yield from self._experiment(Check.WEIGHTS, self.experiments.audit, proofs.weights)
        yield from self._experiment(Check.TRAINER_WEIGHTS, self.experiments.trainer, proofs.trainer_weights)

    def run(self) -> Iterator[Finding]:
        bands, asked, records, step = self.bands, self.experiments, self.case.records, self.step
        yield from self.of_weights()
        yield from self._experiment(
            Check.PACKED_AGAINST_ALONE, asked.packing, lambda found: packing(found, step, bands)
        )
        yield from self._trainer_reported()
        yield from self._experiment(
            Check.TRAIN_AGAINST_PREFILL,
            asked.legs,
            self._engine_reported,
            lambda found: legs.batch(found, step, bands),
            lambda found: legs.decode(found, records, step, bands),
            lambda found: legs.train(found, step, bands),
        )
        yield legs.router(records, bands)
        yield from self._experiment(Check.REFERENCE, asked.reference, lambda found: legs.reference(found, step, bands))
        if records and not self._sides_agree_in_prefill:
            worst = max(records, key=lambda one: np.nan_to_num(_size(one), nan=np.inf))
            localise = asked.localise
            yield from self._experiment(
                Check.LOCALISATION,
                None if localise is None else lambda: localise(worst.sample),
                lambda found: legs.localisation(found[1], found[0]),
            )

    @once
    def step(self) -> float:
        """The difference that a leg has to explain; NaN without samples."""
        return apart(self.case.records, self.bands) if self.case.records else np.nan

    def _trainer_reported(self) -> Iterator[Finding]:
        rescore, asked = self._rescore, self.case.temperature
        # Over several temperatures no single one explains.
        do = None if rescore is None or asked is None else lambda: rescore(asked, None)
        yield from self._experiment(
            Check.TRAINER_REPORTED,
            do,
            lambda own: reported(self.case.records, own, "trainer", asked or 1.0, rescore, self.bands),
        )

    def _engine_reported(self, found: Legs) -> Finding:
        asked = self.case.temperature
        if not found.decoded or asked is None:
            return Finding(Check.ENGINE_REPORTED, "not_done", "not asked for")
        own = self.case.cut(found.decoded)
        return reported(self.case.records, own, "engine", asked, self._rescore, self.bands)

    @property
    def _rescore(self) -> Rescore | None:
        rescore = self.experiments.rescore
        return None if rescore is None else self.case.cutting(rescore)

    @property
    def _sides_agree_in_prefill(self) -> bool:
        """Whether a leg showed that the trainer computes what the engine's prefill does: no module parts then."""
        return any(f.check == Check.TRAIN_AGAINST_PREFILL and f.result == "clear" for f in self.findings)

    def _give_up(self, known: Finding | None) -> None:
        """Make what the records showed a suspicion, where an experiment knows the cause."""
        if known is not None:
            self.findings[self.findings.index(known)] = replace(known, result="suspicious")

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


def _size(record: SampleRecord) -> float:
    return mean_abs(record.train_logprobs - record.rollout_logprobs)


def _within(seconds: float, do: Callable[[], T]) -> T:
    """Return what `do` gives. It runs on after `seconds`, in a thread that nobody waits for.

    Raises:
        TimeoutError: `do` has not returned within `seconds`.
    """
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(do())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=work, name="experiment", daemon=True).start()
    return future.result(timeout=seconds)
