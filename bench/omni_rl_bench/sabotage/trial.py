"""Tries one fault, from a clean step to a clean step, through the service: is it noticed, what is it called, is it
healed?"""

import re
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from omni_rl.api.syncs import CheckBody
from omni_rl.consistency.actions import CAUSES, NOISE, Action, Cause
from omni_rl.consistency.limits import Severity
from omni_rl.errors import OmniRLError, SyncRolledBackError
from omni_rl.rollout.types import SamplingSettings
from omni_rl_bench.sabotage.fault import Fault
from omni_rl_bench.sabotage.response import last_event, response
from omni_rl_bench.sabotage.rig import ATTEMPT, Rig, Step, prompts_of

PER_KIND = 4
TOKENS = 24
STEPS = 2
"""How many steps a fault has to show."""
ROLLBACK, REFUSED = "rollback", "refused"
"""The action of a sync whose proof fails, and of a policy that cannot run at all."""
BY_HAND = "resync by hand"
"""The action that a check asks of a person, where the step itself was ok."""


@dataclass
class Trial:
    """The outcome of a fault.

    `by` says who noticed it first: verify (the sync's own proof), seal (the step was not ok), check (the step was ok,
    and a check of it that a person asked for named a cause), refused; "" nobody. `steps` counts from the fault on: 0
    where its own sync did not go through, None where it was not noticed. `severity` is as the step was sealed,
    `abs_diff_mean` that of all its tokens. `sealed_cause` is what the records show, `cause` the whole answer, None
    where nothing was looked for. `healed`: the next step is ok after what was done, None where nothing was noticed; a
    person takes out what no resync can heal.
    """

    fault: str
    moment: str
    seed: int
    pair: str
    by: str = ""
    steps: int | None = None
    severity: str = "ok"
    abs_diff_mean: float = 0.0
    sealed_cause: str | None = None
    cause: str | None = None
    sentence: str = ""
    right: bool | None = None
    action: str = ""
    action_right: bool | None = None
    healed: bool | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    trouble: str = ""

    @property
    def noticed(self) -> bool:
        return bool(self.by)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass
class _Course:
    """A trial under way: its run, and the number of the next step."""

    rig: Rig
    fault: Fault
    seed: int
    run: str
    steps: int = 0

    def step(self) -> Step:
        """Answer the same prompts, sampled anew every time."""
        number = self.steps
        self.steps += 1
        sampling = SamplingSettings(
            max_tokens=TOKENS,
            temperature=self.fault.temperature,
            seed=self.seed * 1000 + number * len(self.rig.prompts),
            ignore_eos=True,
        )
        return self.rig.step(number, sampling)


def run_trial(rig: Rig, fault: Fault, seed: int) -> Trial:
    """Put the fault in, post steps, let the service act, take out what it cannot heal, and judge the next step."""
    trial = Trial(fault.name, fault.moment, seed, str(rig.pair))
    name = re.sub(r"[^a-z0-9]+", "-", fault.key.lower()).strip("-")
    course = _Course(rig, fault, seed, f"{name}-{seed}-{time.time_ns() // 1_000_000}")
    began = time.monotonic()
    rig.begin(course.run, prompts_of(seed, PER_KIND))
    if fault.setting is not None:
        fault.setting(rig, seed)
    before = course.step()
    if not before.calm:
        trial.trouble = f"the step before was not clean: {before.verdict.reason}"
    try:
        _break(course, before)
        _look(course, trial)
    except SyncRolledBackError as error:
        # VERIFY has named the tensors, and the engines are as before: there is nothing to search for.
        trial.by, trial.steps, trial.sentence = "verify", 0, str(error)[:500]
        trial.action, trial.action_right = ROLLBACK, True
    except OmniRLError as error:
        trial.by, trial.action = REFUSED, REFUSED
        trial.sentence = f"{type(error).__name__}: {error}"[:500]
        rig.policies.revive()
    try:
        _mend(course, trial)
    except OmniRLError as error:
        trial.healed, trial.trouble = False, f"{type(error).__name__}: {error}"[:500]
    trial.seconds["trial"] = round(time.monotonic() - began, 2)
    return trial


def _break(course: _Course, before: Step) -> None:
    rig, fault = course.rig, course.fault
    in_sync = fault.moment in ("before VERIFY", "vouched for")
    if in_sync:
        _put(course)
    rig.learn(before.rollouts, course.seed)
    rig.sync()
    if not in_sync:
        _put(course)


def _put(course: _Course) -> None:
    rig, fault = course.rig, course.fault
    put = partial(_call, fault.put, course.seed)
    if fault.side == "job":
        put(rig)
    elif fault.side == "trainer":
        rig.policies.trainer.on_ranks(put)
    else:
        engines = rig.policies.rollouts
        for engine in engines if fault.replicas == "all" else engines[-1:]:
            engine.between_steps(put)


def _call(put: Any, seed: int, owner: Any) -> None:
    put(owner, seed)


def _look(course: _Course, trial: Trial) -> None:
    """Post steps until one is not ok; where none is, have the last one checked."""
    client = course.rig.client
    for number in range(1, STEPS + 1):
        before = last_event(client)
        step = course.step()
        trial.abs_diff_mean = max(trial.abs_diff_mean, _apart(step))
        trial.seconds["judge"] = round(step.seconds["judge"], 3)
        if not step.calm:
            trial.by, trial.steps = "seal", number
            _answered(course, trial, step, before)
            return
    _asked(course, trial, step)


def _answered(course: _Course, trial: Trial, step: Step, before: int) -> None:
    """Note what the service did about a step that is not ok."""
    fault, verdict = course.fault, step.verdict
    trial.severity, trial.sealed_cause = verdict.severity, verdict.cause
    found = response(course.rig.client, verdict, before)
    trial.seconds["response"] = round(found.seconds, 2)
    trial.cause, trial.sentence = str(found.cause), found.sentence
    trial.right = found.cause in fault.causes
    trial.action = str(found.action)
    severity = Severity[verdict.severity.upper()]
    trial.action_right = found.action in {CAUSES[cause].actions[severity] for cause in fault.causes}


def _asked(course: _Course, trial: Trial, step: Step) -> None:
    """Check a step that is ok, as a person does who does not believe that."""
    began = time.monotonic()
    cause, sentence = _named(course, step)
    trial.seconds["check"] = round(time.monotonic() - began, 2)
    if cause is None:
        return
    trial.by, trial.steps = "check", STEPS
    trial.cause, trial.sentence = str(cause), sentence
    trial.right = cause in course.fault.causes
    heals = {CAUSES[right].actions[Severity.WARN] for right in course.fault.causes}
    trial.action = BY_HAND if CAUSES[cause].actions[Severity.WARN] is Action.RESYNC else str(Action.NONE)
    trial.action_right = (trial.action == BY_HAND) == (Action.RESYNC in heals)


def _named(course: _Course, step: Step) -> tuple[Cause | None, str]:
    """Return what a check of a step calls its cause; None where that is nothing, or noise, which every step has."""
    body = CheckBody(run=course.run, attempt=ATTEMPT, step=step.number, legs=True, reference=True, localise=True)
    found = course.rig.client.check(body)
    cause = Cause(found.cause or Cause.UNKNOWN)
    return (None if cause in (Cause.UNKNOWN, *NOISE) else cause), found.sentence


def _mend(course: _Course, trial: Trial) -> None:
    """Do what is left for a person: take out what no resync heals, resume the run; then judge the next step."""
    rig = course.rig
    if not course.fault.heals_by_sync or trial.action not in (str(Action.RESYNC), BY_HAND, ROLLBACK):
        rig.take_out()
        if course.fault.setting is not None:
            course.fault.setting(rig, course.seed)
    if rig.client.state().gate.gate == "closed":
        rig.client.resume(course.run)
    if trial.action != str(Action.RESYNC):
        rig.sync()
    after = course.step()
    if trial.noticed:
        # What only a check has shown, only a check can show to be gone.
        trial.healed = after.calm and (trial.by != "check" or _named(course, after)[0] is None)
    rig.take_out()


def _apart(step: Step) -> float:
    found = step.verdict.figures["overall"]["logprob_abs_diff_mean"]
    return float("inf") if found is None else found
