"""One fault, from a clean step to a clean step: is it noticed, by what, what is it called, and is it mended?"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np

from omni_rl.consistency.actions import ACTIONS, Action
from omni_rl.consistency.attribution import proofs
from omni_rl.consistency.attribution.evidence import Finding, SampleEvidence, mean_abs
from omni_rl.consistency.attribution.search import Attribution, attribute
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.limits import Figures, Judgement, Severity
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.errors import OmniRLError, SyncRolledBackError
from omni_rl.jobs.clock import Clock
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.sabotage.faults import Fault
from omni_rl.sabotage.stand import Stand
from omni_rl.train.evidence import evidence

TOKENS = 16
STEPS = 2
"""How many steps a fault is given to show."""
WORST = 6
"""Samples that the search looks at."""
SEARCH_SECONDS = 60.0
ROLLBACK = "rollback"
"""What a sync does by itself, when its proof fails."""


@dataclass(frozen=True)
class Step:
    """One step as a run checks it: figures judged, digests compared, bytes read back."""

    rollouts: Sequence[Rollout]
    evidence: Sequence[SampleEvidence]
    figures: Figures
    judgement: Judgement
    proofs: tuple[Finding, ...]

    @property
    def proven(self) -> Finding | None:
        """The proof check that found something."""
        return next((finding for finding in self.proofs if finding.result == "explains"), None)

    @property
    def noticed(self) -> bool:
        return self.proven is not None or self.judgement.severity > Severity.OK

    def worst(self) -> list[int]:
        """Numbers of the samples that are furthest apart."""
        apart = [np.nan_to_num(mean_abs(sample.d), nan=np.inf) for sample in self.evidence]
        return [int(n) for n in np.argsort(-np.array(apart), kind="stable")[:WORST]]


@dataclass
class Trial:
    """What became of a fault. `by`: the checks that noticed it; `steps`: from the fault on, 0 where its own sync did
    not go through. `cause` None: it was not noticed, and nothing was looked for."""

    fault: str
    moment: str
    seed: int
    dtype: str
    by: list[str] = field(default_factory=list)
    steps: int | None = None
    abs_diff_mean: float = 0.0
    severity: str = "ok"
    cause: str | None = None
    sentence: str = ""
    right: bool | None = None
    action: str = ""
    action_right: bool | None = None
    healed: bool | None = None
    search_seconds: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)
    trouble: str = ""

    @property
    def noticed(self) -> bool:
        return bool(self.by)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_step(stand: Stand, seed: int, *, temperature: float = 1.0, seconds: dict[str, float] | None = None) -> Step:
    """Sample `stand.prompts`, dealt over the engines, score, judge and prove. Adds to `seconds` by part."""
    sampling = SamplingSettings(max_tokens=TOKENS, temperature=temperature, seed=seed, ignore_eos=True)
    clock = Clock()
    with clock.time("sample"):
        rollouts = stand.sample(sampling)
    with clock.time("score"):
        scores = stand.pair.score(rollouts)
    with clock.time("checks"):
        samples = evidence(rollouts, scores)
        found = proofs.versions(samples), proofs.media(samples), proofs.prompt(samples)
        yardstick = Yardstick.of(stand.dtype)
        comparison = yardstick.compare(StepColumns.of([sample.record for sample in samples]))
        judgement = yardstick.judge(comparison)
    with clock.time("audit"):
        audited = proofs.weights(stand.experiments(rollouts).audit())
    for part, took in clock.seconds.items():
        if seconds is not None:
            seconds[part] = seconds.get(part, 0.0) + took
    return Step(rollouts, samples, comparison.figures, judgement, (*found, audited))


def run_trial(stand: Stand, fault: Fault, seed: int) -> Trial:
    """Put the fault in, look for it, do what the policy does, take it out, and look whether the run is well again."""
    trial = Trial(fault.name, fault.moment, seed, stand.dtype)
    began = time.monotonic()
    try:
        stand.begin(seed)
        before = run_step(stand, seed, temperature=fault.temperature)
        if before.noticed:
            trial.trouble = f"the step before was not clean: {before.judgement.reason}"
        _break(stand, fault, seed, before)
        step = _look(stand, fault, seed, trial)
        if step is not None:
            _name(stand, fault, step, trial)
        _mend(stand, fault, seed, trial)
    except SyncRolledBackError as error:
        trial.by.append("verify")
        trial.steps, trial.sentence = 0, str(error)[:500]
        # VERIFY names the tensors, and the engines are as before: there is nothing to search.
        trial.action, trial.action_right = ROLLBACK, True
        _mend(stand, fault, seed, trial)
    except OmniRLError as error:
        trial.by.append("refused")
        trial.sentence = f"{type(error).__name__}: {error}"[:500]
        stand.pair.revive()
        _mend(stand, fault, seed, trial)
    trial.seconds["trial"] = time.monotonic() - began
    return trial


def _break(stand: Stand, fault: Fault, seed: int, before: Step) -> None:
    in_sync = fault.moment in ("before VERIFY", "vouched for")
    if in_sync:
        _put(stand, fault, seed)
    stand.learn(before.rollouts, seed)
    stand.pair.sync()
    if not in_sync:
        _put(stand, fault, seed)


def _put(stand: Stand, fault: Fault, seed: int) -> None:
    put = partial(_call, fault.put, seed)
    if fault.side == "trainer":
        stand.pair.trainer.on_ranks(put)
        return
    for engine in stand.pair.rollouts if fault.replicas == "all" else stand.pair.rollouts[-1:]:
        engine.between_steps(put)


def _call(put: Any, seed: int, owner: Any) -> None:
    put(owner, seed)


def _look(stand: Stand, fault: Fault, seed: int, trial: Trial) -> Step | None:
    for number in range(1, STEPS + 1):
        step = run_step(stand, seed + number, temperature=fault.temperature)
        trial.abs_diff_mean = max(
            trial.abs_diff_mean, np.nan_to_num(max(mean_abs(s.d) for s in step.evidence), nan=np.inf)
        )
        if step.noticed:
            trial.by += [str(finding.check) for finding in step.proofs if finding.result == "explains"]
            trial.by += ["logprobs"] if step.judgement.severity > Severity.OK else []
            trial.steps, trial.severity = number, step.judgement.severity.label
            return step
    return None


def _name(stand: Stand, fault: Fault, step: Step, trial: Trial) -> None:
    """The search, on the worst samples; then what the policy would do about its answer."""
    worst = step.worst()
    answers, samples = [step.rollouts[n] for n in worst], [step.evidence[n] for n in worst]
    began = time.monotonic()
    chosen = stand.experiments(answers).chosen(legs=True, reference=True, localise=True)
    found: Attribution = attribute(samples, chosen, stand.bands, seconds=SEARCH_SECONDS)
    trial.search_seconds = time.monotonic() - began
    trial.seconds |= {str(check): seconds for check, seconds in found.seconds.items()}
    trial.cause, trial.sentence = str(found.cause), found.sentence
    trial.right = found.cause in fault.causes
    severity = max(step.judgement.severity, Severity.WARN)
    action = ACTIONS[found.cause, severity]
    trial.action = str(action)
    trial.action_right = action in {ACTIONS[cause, severity] for cause in fault.causes}


def _mend(stand: Stand, fault: Fault, seed: int, trial: Trial) -> None:
    """A resync has to mend by itself; after anything else a person takes the fault out."""
    if trial.action not in (str(Action.RESYNC), ROLLBACK):
        stand.take_out()
    stand.pair.sync()
    trial.healed = not run_step(stand, seed + 10, temperature=fault.temperature).noticed
    stand.take_out()
