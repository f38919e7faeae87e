"""Runs a check: scores both policies now on the canonical probe, and names the cause if they, or a step's figures,
differ."""

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

from omni_rl.bridge.answers import Recall, answers_of, same_as_now
from omni_rl.bridge.elsewhere import Elsewhere, check_elsewhere
from omni_rl.bridge.experiments import LiveExperiments
from omni_rl.bridge.noise import Noise
from omni_rl.bridge.now import Now, sampled_now
from omni_rl.bridge.posted import Posted
from omni_rl.bridge.seam import CheckRequest, CheckResult, TokenLegs
from omni_rl.consistency.attribution.legs import Legs
from omni_rl.consistency.attribution.search import attribute
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import as_floats, furthest
from omni_rl.consistency.evidence import Finding
from omni_rl.consistency.limits import Figures, Severity, judge
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.policies.dealing import LOST
from omni_rl.policies.probe import render_probe
from omni_rl.rollout import diagnosis
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.types import Rollout
from omni_rl.settings import Numerics
from omni_rl.sync.layout.cache import directory
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.version import same_weights
from omni_rl.train.trainer import Trainer

TOLD = 1024
"""The most tokens of an answer whose differences are reported one by one."""


class Checks:
    """Runs checks of replicas that serve the same weights. The probe is rendered once: every engine of the run scores
    it."""

    def __init__(
        self, rollouts: Sequence[RolloutHandle], trainer: Trainer, numerics: Numerics, recall: Recall = lambda names: []
    ) -> None:
        self._recall = recall
        self._rollouts = rollouts
        self._trainer = trainer
        self._numerics = numerics
        self._dtype = rollouts[0].settings.dtype
        self._yardstick = Yardstick.of(self._dtype)
        self._probe: tuple[Rollout, ...] | None = None
        self._noise: Noise | None = None

    @property
    def noise(self) -> Noise:
        if self._noise is None:
            checkpoint = self._rollouts[0].between_steps(diagnosis.checkpoint)
            self._noise = Noise(directory(), self._dtype, checkpoint, self._numerics)
        return self._noise

    @property
    def probe(self) -> tuple[Rollout, ...]:
        if self._probe is None:
            self._probe = self._rendered()
        return self._probe

    def _rendered(self) -> tuple[Rollout, ...]:
        """Return the probe as the first engine renders it that is not lost."""
        *others, last = self._rollouts
        for handle in others:
            with contextlib.suppress(*LOST):
                return render_probe(handle)
        return render_probe(last)

    def run(
        self,
        request: CheckRequest,
        slabs: tuple[SlabRef, SlabRef | None],
        posted: Posted | None,
        elsewhere: Elsewhere | None,
        manifest: Manifest | None = None,
    ) -> CheckResult:
        """Run a check and return what it found.

        For `slabs` and `manifest` see `LiveExperiments`. `posted` is the step that is asked about, `elsewhere` says
        where the engines' weights came from if they are not the trainer's.

        A check needs no open gate: engines score, and sample what is asked of them, between two steps.
        """
        began = time.perf_counter()
        version, bands = slabs[0].version, self.noise.bands
        everything = LiveExperiments(self._rollouts, self._trainer, slabs, self.probe, bands, manifest=manifest)
        if elsewhere is not None:
            step = None if request.resample else posted
            return check_elsewhere(elsewhere, request, everything.audit, step, bands)
        again = {} if posted is None else answers_of(posted.rows, posted.names, self._recall)
        search: Search | None = None
        if posted is not None and not request.resample:
            # First of all: whatever is scored drops the caches that the step was sampled with.
            own = self._own(posted, again, version)
            search = Search(replace(everything, answers=self._asked(again), case=posted.case, own=own), request)
        now = Now.of([*self.probe, *again.values()], self._rollouts, self._trainer)
        records = now.by_replica
        if request.resample and again:
            records += sampled_now(list(again.values()), self._rollouts, self._trainer)
        figures = furthest([self._by_kind(each) for each in records])
        if posted is None and judge(figures, self._yardstick.limits).severity > Severity.OK:
            of_probe = {answer.prompt.id: answer for answer in self.probe}
            search = Search(replace(everything, case=now.case(self._yardstick, bands), own=of_probe), request)
        findings: Sequence[Finding] = () if search is None else search.found.findings
        if search is None and request.localise:
            findings = self.noise.calibrate([answer.prompt.id for answer in self.probe], everything.localise)
        # A search that ended before it measured the legs has none, and none are measured for it.
        legs = search.legs if search is not None else everything.legs() if request.legs else None
        sides = {} if legs is None else _sides(legs)
        return CheckResult(
            version,
            figures,
            {leg: self._by_kind(of_leg) for leg, of_leg in sides.items()},
            cause=None if search is None else search.found.cause,
            sentence=self._behind(version) or ("" if search is None else search.found.sentence),
            evidence=tuple(finding.as_dict() for finding in findings),
            seconds=time.perf_counter() - began,
            answers=_by_token(sides),
        )

    def _own(self, posted: Posted, again: Mapping[str, Rollout], version: str) -> dict[str, Rollout]:
        """Return the step's answers that both sides would compute with the step's weights."""
        trainer = str(self._trainer.version())
        rows = zip(posted.names, posted.rows, strict=True)
        return {name: again[name] for name, row in rows if name in again and same_as_now(row, version, trainer)}

    def _asked(self, again: Mapping[str, Rollout]) -> list[Rollout]:
        """Return the step's answers, and the probe's answers of those kinds that the step's do not have."""
        kinds = {answer.prompt.kind for answer in again.values()}
        return [*again.values(), *(answer for answer in self.probe if answer.prompt.kind not in kinds)]

    def _behind(self, version: str) -> str:
        """Say that the replicas are behind the trainer; empty if not. Equal weights are not stale, under whichever name
        they came."""
        trainer = str(self._trainer.version())
        if same_weights(trainer, version):
            return ""
        return f"the trainer has {trainer}, replicas serve {version}: sync first"

    def _by_kind(self, records: Sequence[SampleRecord]) -> Figures:
        return as_floats(self._yardstick.compare(StepColumns.of(records)).comparisons)


class Search:
    """Has what a search for a cause found, and the legs (pairs of scores that are compared) that it measured on its
    way."""

    def __init__(self, live: LiveExperiments, request: CheckRequest) -> None:
        """Search. The experiments that the request does not allow are not made."""
        self._live = live
        self.legs: Legs | None = None
        chosen = live.chosen(legs=request.legs, reference=request.reference, localise=request.localise)
        if request.legs:
            chosen = replace(chosen, legs=self._take_legs)
        self.found = attribute(live.case, chosen, live.bands, seconds=request.seconds)

    def _take_legs(self) -> Legs:
        self.legs = self._live.legs()
        return self.legs


def _sides(legs: Legs) -> dict[str, Sequence[SampleRecord]]:
    return {
        "train_vs_prefill": legs.train_vs_prefill,
        "prefill_vs_decode": legs.prefill_vs_decode,
        "batch_vs_alone": legs.batch_vs_alone,
    }


def _by_token(sides: Mapping[str, Sequence[SampleRecord]]) -> tuple[TokenLegs, ...]:
    """Return the legs token by token; all legs are of the same answers in the same order."""
    return tuple(
        TokenLegs(
            of_answer[0].sample,
            of_answer[0].kind,
            {
                leg: tuple((record.train_logprobs - record.rollout_logprobs)[:TOLD].tolist())
                for leg, record in zip(sides, of_answer, strict=True)
            },
        )
        for of_answer in zip(*sides.values(), strict=True)
    )
