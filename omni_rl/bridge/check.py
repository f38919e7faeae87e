"""A check: both policies scored now, on the canonical probe and by the legs that the demo has."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from omni_rl.bridge.trainer import TrainerHandle
from omni_rl.consistency.limits import OVERALL
from omni_rl.consistency.metrics import Comparison, compare
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.thresholds import THRESHOLDS
from omni_rl.media.types import KINDS
from omni_rl.rollout.actor import RolloutHandle
from omni_rl.rollout.probe import ANSWER_TOKENS, SEED, probe_prompts, render_probe
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.train import pairing
from omni_rl.train.types import Score
from services.coordinator.bridge import CheckResult

Figures = dict[str, dict[str, float]]


class Checks:
    """Of replicas that serve the same weights. The probe is rendered once: every engine of the run scores it."""

    def __init__(self, rollouts: Sequence[RolloutHandle], trainer: TrainerHandle) -> None:
        self._rollouts = rollouts
        self._trainer = trainer
        self._leave_out = THRESHOLDS[rollouts[0].settings.dtype].leave_out
        self._probe: tuple[Rollout, ...] | None = None

    @property
    def probe(self) -> tuple[Rollout, ...]:
        if self._probe is None:
            self._probe = render_probe(self._rollouts[0])
        return self._probe

    def run(self, version: str, *, legs: bool) -> CheckResult:
        """The figures need no open gate: the engine scores the probe between two steps. Legs sample, so they do."""
        began = time.perf_counter()
        scores = self._trainer.score(self.probe)
        engines = [handle.check(self.probe) for handle in self._rollouts]
        by_replica = [pairing.train_against_prefill(self.probe, scores, engine) for engine in engines]
        figures = self._worst([self._by_bucket(records) for records in by_replica])
        ours = scores[0].version
        sentence = "" if ours == version else f"the trainer has {ours}, replicas serve {version}: sync first"
        found = self._legs() if legs else {}
        return CheckResult(version, figures, found, sentence=sentence, seconds=time.perf_counter() - began)

    def _legs(self) -> Mapping[str, Figures]:
        """Of answers that the first replica samples now; see `omni_rl.demo.run.legs`."""
        handle = self._rollouts[0]
        sampling = SamplingSettings(max_tokens=ANSWER_TOKENS, temperature=1.0, seed=SEED, ignore_eos=True)
        rollouts = handle.sample(handle.render(probe_prompts()), sampling)
        scores: list[Score] = self._trainer.score(rollouts)
        batch, alone = handle.rescore(rollouts), handle.rescore(rollouts, alone=True)
        decode: list[Rescore] = pairing.decode_as_leg(rollouts)
        sides = {
            "train_vs_prefill": pairing.train_against_prefill(rollouts, scores, batch),
            "prefill_vs_decode": pairing.engine_against_itself(rollouts, decode, batch, scores),
            "batch_vs_alone": pairing.engine_against_itself(rollouts, batch, alone, scores),
        }
        return {leg: self._by_bucket(records) for leg, records in sides.items()}

    def _by_bucket(self, records: Sequence[SampleRecord]) -> Figures:
        buckets = {OVERALL: self._compare(records)}
        buckets |= {kind: self._compare([r for r in records if r.kind == kind]) for kind in KINDS}
        return {bucket: _figures(found) for bucket, found in buckets.items()}

    def _compare(self, records: Sequence[SampleRecord]) -> Comparison:
        """Where flips leave nothing to compare, they are no ties but other weights, and nothing is left out."""
        found = compare(records, leave_out=self._leave_out)
        return found if found.metrics.tokens else compare(records, leave_out="nothing")

    def _worst(self, by_replica: Sequence[Figures]) -> Figures:
        return {
            bucket: max((figures[bucket] for figures in by_replica), key=lambda found: found["logprob_abs_diff_mean"])
            for bucket in by_replica[0]
        }


def _figures(comparison: Comparison) -> dict[str, float]:
    return {name: float(value) for name, value in asdict(comparison.metrics).items()}
