"""Checks that cost a forward pass or more: they split the difference into legs, and measure both sides against
float32."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.actions import Cause
from omni_rl.consistency.attribution.parting import SHARE, apart, held, kinds_outside, mean_of, outside
from omni_rl.consistency.attribution.reported import LEFT, Values
from omni_rl.consistency.bands import Bands
from omni_rl.consistency.comparison import compare
from omni_rl.consistency.evidence import Check, Finding, mean_abs
from omni_rl.consistency.left_out import NOTHING, TIES
from omni_rl.consistency.localisation import INPUTS, TOWERS, ModuleDifference, first_outside, flips_by_layer
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.router import first_flip
from omni_rl.counting import counted

SEMANTIC = 4.0
"""How many times further from float32 than the other side a side must be to be the one that computes something else."""
ROUNDED = 2.0
"""How many times the two sides' distances from float32 a step may be apart, if they are why: its furthest kind of
prompt need not be that of either side."""
MOST = 0.7
"""The share of a step's difference that must lie in answers of which a leg holds its share, answer by answer."""


@dataclass(frozen=True)
class Legs:
    """The same answers at temperature 1, computed in different ways: each leg has the two sides that it compares as
    records.

    `cold` compares the engine's batch as it was found with the same batch after its caches were dropped. `decoded` is
    what the engine's logits give of the step's own tokens while it decodes these, at each answer's temperature; empty
    where their answers are not at hand.
    """

    train_vs_prefill: Sequence[SampleRecord]
    prefill_vs_decode: Sequence[SampleRecord]
    batch_vs_alone: Sequence[SampleRecord]
    cold: Sequence[SampleRecord] = ()
    decoded: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Reference:
    """The mean abs distances of the trainer's and the engine's logprobs from a float32 computation with the same
    weights, of the kind of prompt that is furthest, `kind`. A side whose logprobs are no numbers is NaN away."""

    train: float
    engine: float
    kind: str

    @property
    def furthest(self) -> float:
        """The distance of the side that is further away; infinity where one is NaN away."""
        return float(np.nan_to_num([self.train, self.engine], nan=np.inf).max())


def decode(legs: Legs, samples: Sequence[SampleRecord], step: float, bands: Bands) -> Finding:
    """Check whether the engine's decode of the step's own tokens disagrees with its prefill of them, answer by answer,
    and the trainer agrees with that prefill: then nothing else is left of the step's difference."""
    leg = apart(legs.prefill_vs_decode, bands)
    numbers = {"mean": leg, **_later(legs.prefill_vs_decode)}
    if not outside(leg, step, bands):
        return Finding(
            Check.PREFILL_AGAINST_DECODE, "clear", f"decode and prefill differ by {leg:.2g}", numbers=numbers
        )
    share = held(legs.prefill_vs_decode, samples) if legs.decoded else 0.0
    left = apart(legs.train_vs_prefill, bands)
    is_all = share >= MOST and left <= max(bands.mean, LEFT * step)
    return Finding(
        Check.PREFILL_AGAINST_DECODE,
        "explains" if is_all else "suspicious",
        f"the engine's decode is {leg:.2g} away from its own prefill of the same tokens, at most {bands.mean:g} is "
        "noise"
        + (
            ": the state that it carries from token to token is wrong"
            if is_all
            else "; that is not all of the step's difference, answer by answer"
        ),
        Cause.DECODE_PREFILL,
        {**numbers, "held": share, "left": left},
        modalities=kinds_outside(legs.prefill_vs_decode, bands),
    )


def batch(legs: Legs, step: float, bands: Bands) -> Finding:
    """Check whether the engine's answer depends on what it was batched with, or on what its caches held."""
    leg, warm = apart(legs.batch_vs_alone, bands), apart(legs.cold, bands)
    numbers = {"mean": leg} | ({"cold_mean": warm} if legs.cold else {})
    if not outside(leg, step, bands):
        return Finding(Check.BATCH_AGAINST_ALONE, "clear", f"in a batch and alone differ by {leg:.2g}", numbers=numbers)
    kinds = kinds_outside(legs.batch_vs_alone, bands)
    if legs.cold and warm >= SHARE * leg:
        return Finding(
            Check.BATCH_AGAINST_ALONE,
            "explains",
            f"with its caches dropped the engine answers differently by {warm:.2g} ({', '.join(kinds)}): a cache "
            "outlived the weights that filled it",
            Cause.STALE_CACHE,
            numbers,
            modalities=kinds,
        )
    return Finding(
        Check.BATCH_AGAINST_ALONE,
        "explains",
        f"the engine scores an answer {leg:.2g} differently in a batch than alone, with cold caches too: its batch "
        "leaks into it",
        Cause.BATCH_VARIANCE,
        numbers,
        modalities=kinds,
    )


def train(legs: Legs, step: float, bands: Bands) -> Finding:
    """Check whether trainer and engine disagree although the engine agrees with itself."""
    leg = apart(legs.train_vs_prefill, bands)
    if not outside(leg, step, bands):
        return Finding(
            Check.TRAIN_AGAINST_PREFILL, "clear", f"trainer and prefill differ by {leg:.2g}", numbers={"mean": leg}
        )
    return Finding(
        Check.TRAIN_AGAINST_PREFILL,
        "suspicious",
        f"the trainer is {leg:.2g} away from the engine's prefill, which agrees with itself",
        numbers={"mean": leg},
        modalities=kinds_outside(legs.train_vs_prefill, bands),
    )


def reference(found: Reference, step: float, bands: Bands) -> Finding:
    """Check whether a side computes something else, or both round, by as much as the step is apart."""
    trainer_is_far = not found.train < found.engine and not np.isnan(found.engine)
    side, far, near = (
        ("trainer", found.train, found.engine) if trainer_is_far else ("engine", found.engine, found.train)
    )
    numbers = {"train_mean": found.train, "engine_mean": found.engine}
    if not np.isfinite(far) or far > max(SEMANTIC * near, bands.mean):
        return Finding(
            Check.REFERENCE,
            "suspicious",
            f"{found.kind}: the {side} is {far:.2g} away from float32, the other side {near:.2g}: the {side} computes "
            "something else than the trainer's code does in float32",
            numbers=numbers,
            modalities=(found.kind,),
        )
    if near <= bands.mean:
        # Other answers, or values that were computed now, may round where the step's did something else.
        is_all = step <= ROUNDED * (near + far)
        return Finding(
            Check.REFERENCE,
            "explains" if is_all else "suspicious",
            f"both sides lie within rounding of float32 ({near:.2g} and {far:.2g}): {bands.dtype} does not do better"
            if is_all
            else f"both sides lie within rounding of float32 ({near:.2g} and {far:.2g}), which is not "
            f"the {step:.2g} of the step",
            Cause.ROUNDING,
            numbers,
        )
    return Finding(
        Check.REFERENCE,
        "suspicious",
        f"{found.kind}: both sides are {near:.2g} or more away from float32: they share a fault, or the reference's "
        "weights are not theirs",
        numbers=numbers,
        modalities=(found.kind,),
    )


def router(records: Sequence[SampleRecord], bands: Bands) -> Finding:
    """Check whether router flips at ties explain the difference: with the tokens that they touch it is more than noise,
    and without them nothing is left, of the mean or of a single token."""
    flips = [flip for record in records if (flip := first_flip(record)) is not None]
    by_layer = flips_by_layer(list(records))
    layers = tuple(f"moe.{layer}" for layer in by_layer)
    ties = TIES[bands.dtype]
    whole, rest = mean_of(compare(records, NOTHING).metrics), compare(records, ties).metrics
    left, furthest = mean_of(rest), rest.logprob_abs_diff_max if rest.tokens else 0.0
    numbers = {"sequences_with_a_flip": len(flips), "mean_with": whole, "mean_without": left}
    numbers |= {f"flips_moe_{layer}": float(count) for layer, count in by_layer.items()}
    if not flips:
        return Finding(Check.ROUTER, "clear", "both sides chose the same experts everywhere")
    widest = max(flip.margin for flip in flips)
    numbers["widest_margin"] = widest
    if widest >= ties.margin:
        why = "no ties"
    elif not left <= bands.mean or not furthest <= bands.token:
        why = f"more than noise, a token of it by {furthest:.2g}"
    elif whole <= bands.mean:
        why = f"with it {whole:.2g}, which is noise"
    else:
        return Finding(
            Check.ROUTER,
            "explains",
            f"{counted(len(flips), 'sequence flips', 'sequences flip')} at a tie of the router (margin at most "
            f"{widest:.2g}), first in MoE layer {flips[0].layer}; without them {left:.2g} is left",
            Cause.ROUTER,
            numbers,
            samples=tuple(flip.sample for flip in flips),
            layers=layers,
        )
    return Finding(
        Check.ROUTER,
        "suspicious",
        f"{counted(len(flips), 'sequence')} chose other experts, by margins up to {widest:.2g}; without what follows "
        f"them {left:.2g} is left: {why}",
        numbers=numbers,
        layers=layers,
    )


def localisation(modules: list[ModuleDifference], sample: str) -> Finding:
    """Name the first module outside its noise band, and what that says."""
    first = first_outside(modules)
    profile = {module.module: (module.relative, module.band) for module in modules}
    if first is None:
        return Finding(
            Check.LOCALISATION,
            "clear",
            f"all {counted(len(modules), 'module agrees', 'modules agree')} on sample {sample}",
            samples=(sample,),
            modules=profile,
        )
    towers = any(module.module.startswith(TOWERS) for module in modules)
    cause = _cause_of(first.module, towers=towers)
    return Finding(
        Check.LOCALISATION,
        "explains",
        f"sample {sample}: {first.module} is the first module that parts, by {first.relative:.2g} of its output where "
        f"{first.band:.2g} is noise, most at row {first.row}",
        cause,
        {"row": first.row},
        samples=(sample,),
        layers=(first.module,),
        modalities=tuple(part for part in TOWERS if first.module.startswith(part)),
        modules=profile,
    )


def _cause_of(module: str, *, towers: bool) -> Cause:
    """Return the cause that the first module to part stands for.

    Weights, media tensors and prompts are proven equal by the time that this is asked, where that can be proven. Where
    the embeddings part although all before them agrees, features of the `towers` are not where they belong, or, where
    no tower ran, the ids are others.
    """
    if module in INPUTS or (module == "embeddings" and towers):
        return Cause.MEDIA_MISMATCH
    return Cause.PROMPT_MISMATCH if module == "embeddings" else Cause.KERNEL


def _later(records: Sequence[SampleRecord]) -> dict[str, float]:
    """Return the means of the first and of the second half of the answers: state that decays shows in the second."""
    halves: list[list[NDArray[np.float64]]] = [[], []]
    for record in records:
        d = record.train_logprobs - record.rollout_logprobs
        halves[0].append(d[: len(d) // 2])
        halves[1].append(d[len(d) // 2 :])
    first, second = (mean_abs(np.concatenate([*half, np.empty(0)])) for half in halves)
    return {"first_half_mean": first, "second_half_mean": second}
