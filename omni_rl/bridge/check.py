"""A check: both policies scored now on the canonical probe, and the cause named if they part, or a step's did."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

from omni_rl_services.coordinator.bridge import CheckRequest, CheckResult, TokenLegs

from omni_rl.bridge.elsewhere import Elsewhere, check_elsewhere
from omni_rl.bridge.experiments import LiveExperiments, Trainer
from omni_rl.bridge.noise import Noise
from omni_rl.bridge.posted import Posted
from omni_rl.consistency.attribution.evidence import Finding, SampleEvidence
from omni_rl.consistency.attribution.legs import Legs
from omni_rl.consistency.attribution.search import Attribution, attribute
from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import furthest
from omni_rl.consistency.limits import Figures, Severity, judge
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.rollout import diagnosis
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.probe import render_probe
from omni_rl.rollout.types import Rollout
from omni_rl.settings import Numerics
from omni_rl.sync.layout.cache import directory
from omni_rl.sync.replica import SlabRef
from omni_rl.sync.version import same_weights
from omni_rl.train import pairing


class Checks:
    """Of replicas that serve the same weights. The probe is rendered once: every engine of the run scores it."""

    def __init__(self, rollouts: Sequence[RolloutHandle], trainer: Trainer, numerics: Numerics) -> None:
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
            self._probe = render_probe(self._rollouts[0])
        return self._probe

    def run(
        self,
        request: CheckRequest,
        slabs: tuple[SlabRef, SlabRef | None],
        posted: Posted | None,
        elsewhere: Elsewhere | None,
    ) -> CheckResult:
        """`slabs`: see `LiveExperiments`. `posted`: the step that is asked about. `elsewhere`: where the engines'
        weights came from, if they are not the trainer's.

        Nothing of it needs an open gate: engines score, and sample the legs' answers, between two steps.
        """
        began = time.perf_counter()
        version = slabs[0].version
        if elsewhere is not None:
            audit = LiveExperiments(self._rollouts, self._trainer, slabs, (), self.noise.bands).audit
            return check_elsewhere(elsewhere, request, audit, posted, self.noise.bands)
        scores = self._trainer.score(self.probe)
        # Equal weights are no stale ones, under whichever name they came.
        ours = version if same_weights(scores[0].version, version) else scores[0].version
        engines = [handle.check(self.probe) for handle in self._rollouts]
        by_replica = [pairing.train_against_prefill(self.probe, scores, engine) for engine in engines]
        figures = furthest([self._by_bucket(records) for records in by_replica])
        experiments = LiveExperiments(self._rollouts, self._trainer, slabs, self.probe, self.noise.bands)
        legs = cache(experiments.legs)
        parted = judge(figures, self._yardstick.limits).severity > Severity.OK
        found: Attribution | None = None
        findings: Sequence[Finding] = ()
        if posted is not None or parted:
            samples = posted.samples if posted is not None else _of_probe(by_replica, ours, version)
            chosen = experiments.chosen(legs=False, reference=request.reference, localise=request.localise)
            # Both sides can score the probe, not a posted step's answers: their media are not here.
            rescore = chosen.rescore if posted is None else None
            chosen = replace(chosen, legs=legs if request.legs else None, rescore=rescore)
            found = attribute(samples, chosen, experiments.bands, seconds=request.seconds)
            findings = found.findings
        elif request.localise:
            findings = self.noise.calibrate([answer.prompt.id for answer in self.probe], experiments.localise)
        # Of a search that ended before them there are no legs, and none are made for it.
        taken = legs() if request.legs and (found is None or legs.cache_info().currsize) else None
        sides = {} if taken is None else _sides(taken)
        behind = "" if ours == version else f"the trainer has {ours}, replicas serve {version}: sync first"
        return CheckResult(
            version,
            figures,
            {leg: self._by_bucket(records) for leg, records in sides.items()},
            cause=None if found is None else found.cause,
            sentence=behind or ("" if found is None else found.sentence),
            evidence=tuple(finding.as_dict() for finding in findings),
            seconds=time.perf_counter() - began,
            answers=_by_token(sides),
        )

    def _by_bucket(self, records: Sequence[SampleRecord]) -> Figures:
        buckets = self._yardstick.compare(StepColumns.of(records)).figures
        return {bucket: {name: float(value) for name, value in found.items()} for bucket, found in buckets.items()}


def _of_probe(by_replica: Sequence[Sequence[SampleRecord]], trainer: str, engine: str) -> list[SampleEvidence]:
    return [
        SampleEvidence(record, sampled_under=(engine,), scored_with=trainer)
        for records in by_replica
        for record in records
    ]


def _sides(legs: Legs) -> dict[str, Sequence[SampleRecord]]:
    return {
        "train_vs_prefill": legs.train_vs_prefill,
        "prefill_vs_decode": legs.prefill_vs_decode,
        "batch_vs_alone": legs.batch_vs_alone,
    }


def _by_token(sides: Mapping[str, Sequence[SampleRecord]]) -> tuple[TokenLegs, ...]:
    """The legs are of the same answers in the same order."""
    return tuple(
        TokenLegs(
            of_answer[0].sample,
            of_answer[0].kind,
            {
                leg: tuple((record.train_logprobs - record.rollout_logprobs).tolist())
                for leg, record in zip(sides, of_answer, strict=True)
            },
        )
        for of_answer in zip(*sides.values(), strict=True)
    )
