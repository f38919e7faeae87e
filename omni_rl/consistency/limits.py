"""Limits on how far apart the two policies may be, by dtype and kind of prompt, and the judgement of figures by
them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal, get_args

from omni_rl.consistency.accidents import EXCLUDED, one_accident
from omni_rl.consistency.left_out import SHARE, TIES
from omni_rl.consistency.shown import NOT_A_NUMBER, shown
from omni_rl.errors import ConfigError
from omni_rl.kinds import KINDS, MIXED_STATE, OVERALL, WITH_FLIPS

Figures = Mapping[str, Mapping[str, float]]
"""Kind (`overall`, or a kind of prompt) to the field's names of metrics to values; `tokens` is among the metrics."""
FEWEST = 8
"""The fewest tokens that can show that two policies agree; fewer can only show that they do not."""
Label = Literal["unjudged", "ok", "warn", "mask", "pause"]


class Severity(IntEnum):
    """What a step's figures ask for: nothing, a look, a mask or weights in the loss, or a closed gate. Where there is
    nothing to judge by, a step is unjudged, which is not ok."""

    UNJUDGED = -1
    OK = 0
    WARN = 1
    MASK = 2
    PAUSE = 3

    @property
    def label(self) -> Label:
        return _LABELS[self - Severity.UNJUDGED]


_LABELS: tuple[Label, ...] = get_args(Label)


@dataclass(frozen=True)
class Limit:
    """The values above which a metric asks for each severity. `perfect` is its value where both policies are the
    same."""

    warn: float
    mask: float
    pause: float
    perfect: float = 0.0

    def __post_init__(self) -> None:
        if not self.perfect < self.warn <= self.mask <= self.pause:
            raise ConfigError(
                f"limits must rise from warn ({self.warn}) over mask ({self.mask}) to pause ({self.pause}), "
                f"and warn lie above {self.perfect}, the value of agreement"
            )

    def severity(self, value: float, scale: float = 1.0) -> Severity:
        """Return the severity of a value, against limits moved to `scale` of their distance from agreement. NaN is over
        every limit."""
        for severity in (Severity.PAUSE, Severity.MASK, Severity.WARN):
            if not value <= self.perfect + scale * (self.above(severity) - self.perfect):
                return severity
        return Severity.OK

    def above(self, severity: Severity) -> float:
        """Return the value above which a metric has this severity."""
        return {Severity.WARN: self.warn, Severity.MASK: self.mask, Severity.PAUSE: self.pause}[severity]


Limits = Mapping[str, Mapping[str, Limit]]
"""Kind to metric to limit. A kind of prompt that has no entry of its own is judged by that of `overall`."""

PERFECT = {"token_mult_prob_error": 1.0, "seq_mult_prob_error_max": 1.0, "seq_mult_prob_error_mean": 1.0}


def _scaled(limits: Mapping[str, Limit], by: float) -> dict[str, Limit]:
    """Return the limits moved to `by` times their distance from agreement; limits on shares of tokens stay."""

    def moved(limit: Limit) -> Limit:
        warn, mask, pause = (limit.perfect + by * (x - limit.perfect) for x in (limit.warn, limit.mask, limit.pause))
        return Limit(warn, mask, pause, limit.perfect)

    return {name: limit if name == EXCLUDED else moved(limit) for name, limit in limits.items()}


# float32 differs by the order of summation alone: clean runs stay below 1e-6 in the mean and 1e-5 at most, and the
# smallest semantic fault, state kept over a 0.1 % weight change, shows 9e-4 in the mean. A flip that is no tie is worth
# a look even where the logprobs agree; only scores that are no probabilities can be further apart than 1.
_FLOAT32 = {
    "logprob_abs_diff_mean": Limit(1e-5, 1e-4, 5e-4),
    "logprob_abs_diff_max": Limit(1e-4, 1e-3, 1e-2),
    "flip_margin_max": Limit(TIES["float32"].margin, 1.0, 1.0),
    EXCLUDED: Limit(1e-3, 1e-2, 0.1),
}
# NeMo RL asks to investigate a token_mult_prob_error above 1.05; a mean abs d is about its logarithm: 0.03 (Miles) and
# 0.1 (slime) are in use. Tinker calls a gen_kl_error of 0.01 healthy, prime-rl refuses 0.015; dropped images show 5.
# A sequence whose own error is above 2 is masked by NeMo RL's recipes. Rounding flips 3 % of a kind's tokens.
_BFLOAT16_EXCLUDED = Limit(0.1, 0.2, SHARE)
_BFLOAT16 = {
    "token_mult_prob_error": Limit(1.05, 1.1, 1.5, perfect=1.0),
    "logprob_abs_diff_mean": Limit(0.05, 0.1, 0.4),
    "gen_kl_error": Limit(0.01, 0.015, 0.5),
    EXCLUDED: _BFLOAT16_EXCLUDED,
}
# Audio and video are wider apart in the field: mean abs d 0.094 is published for an audio-video model.
_BFLOAT16_WIDE = {
    "token_mult_prob_error": Limit(1.1, 1.2, 1.5, perfect=1.0),
    "logprob_abs_diff_mean": Limit(0.1, 0.2, 0.4),
    "gen_kl_error": Limit(0.015, 0.03, 0.5),
    EXCLUDED: _BFLOAT16_EXCLUDED,
}
# No framework has published limits for these. float16 has three bits more than bfloat16, of which we claim two; of
# fp8, whose products still add up in higher precision, we expect twice bfloat16's difference. A run may set its own.
_FLOAT16 = _scaled(_BFLOAT16, 0.25)
_FP8, _FP8_WIDE = _scaled(_BFLOAT16, 2.0), _scaled(_BFLOAT16_WIDE, 2.0)
# State that was kept over an update is as far off as the update is large, whatever the dtype.
_MIXED_STATE = _BFLOAT16_WIDE


def _of_kinds(plain: Mapping[str, Limit], wide: Mapping[str, Limit]) -> Limits:
    kinds: dict[str, Mapping[str, Limit]] = {kind: wide for kind in KINDS if kind not in NARROW}
    return {OVERALL: plain, MIXED_STATE: _MIXED_STATE, WITH_FLIPS: {}, **(kinds if wide is not plain else {})}


NARROW = ("text", "image")
"""The kinds whose two sides are as close as those of `overall`."""
LIMITS: Mapping[str, Limits] = {
    "float32": _of_kinds(_FLOAT32, _FLOAT32),
    "float16": _of_kinds(_FLOAT16, _FLOAT16),
    "bfloat16": _of_kinds(_BFLOAT16, _BFLOAT16_WIDE),
    "fp8": _of_kinds(_FP8, _FP8_WIDE),
}


def limits_for(dtype: str, changes: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None) -> Limits:
    """Return the limits of a dtype, with a run's own in their place: {kind: {metric: {warn, mask, pause}}}.

    A kind that is changed keeps the limits of the metrics that it is not given; one that is new starts from `overall`.

    Raises:
        ConfigError: The dtype is unknown, or limits do not rise.
    """
    if dtype not in LIMITS:
        raise ConfigError(f"no limits for dtype {dtype!r}; known are {', '.join(LIMITS)}")
    result = {kind: dict(metrics) for kind, metrics in LIMITS[dtype].items()}
    for kind, metrics in (changes or {}).items():
        kept = result.setdefault(kind, dict(result[OVERALL]))
        for metric, values in metrics.items():
            try:
                kept[metric] = Limit(values["warn"], values["mask"], values["pause"], PERFECT.get(metric, 0.0))
            except ConfigError as error:
                raise ConfigError(f"{kind}.{metric}: {error}") from None
    return result


@dataclass(frozen=True)
class Breach:
    """One figure over one of its limits. `value` may be NaN: such a figure is over every limit."""

    kind: str
    metric: str
    value: float
    limit: float
    severity: Severity

    def __str__(self) -> str:
        what = f"{self.kind}: {self.metric}"
        if math.isnan(self.value):
            return f"{what} is {NOT_A_NUMBER}, which is over every limit ({self.severity.label})"
        return f"{what} {shown(self.value, '.4g')} is over {self.limit:g} ({self.severity.label})"


@dataclass(frozen=True)
class Concern:
    """Something wrong with a step that is no figure over a limit, in a sentence, and the severity that it asks for."""

    sentence: str
    severity: Severity


@dataclass(frozen=True)
class Judgement:
    """What figures amount to.

    `severity` is the one that they reach, and `holding` the one that they still hold against lower limits. `concerns`
    are what is wrong beside figures over limits. `spared` has a sentence for each figure that one token, or one router
    flip, alone lifts over a limit.
    """

    severity: Severity
    holding: Severity
    breaches: tuple[Breach, ...]
    spared: tuple[str, ...]
    concerns: tuple[Concern, ...] = ()

    def with_concerns(self, concerns: tuple[Concern, ...]) -> "Judgement":
        """Return the judgement with these concerns, which raise its severity."""
        worst = max((one.severity for one in concerns), default=Severity.UNJUDGED)
        return replace(self, severity=max(self.severity, worst), holding=max(self.holding, worst), concerns=concerns)

    @property
    def excess(self) -> float:
        """How many times its limit the worst figure is: at least 1.0 where something else is wrong, 0.0 if nothing is
        wrong, and infinite where a figure is NaN."""
        return max([*map(_excess, self.breaches), *(1.0 for _ in self.concerns)], default=0.0)

    @property
    def worst(self) -> Breach | None:
        """The figure that is furthest over its limit; None where none is over one."""
        return max(self.breaches, key=lambda breach: (breach.severity, _excess(breach)), default=None)

    @property
    def reason(self) -> str:
        """The worst of what is wrong, in one sentence."""
        worst = self.worst
        concern = max(self.concerns, key=lambda one: one.severity, default=None)
        if concern is not None and (worst is None or concern.severity >= worst.severity):
            return concern.sentence
        if worst is not None:
            return str(worst)
        if self.severity is Severity.UNJUDGED:
            return "nothing was judged: no token counts, or too few to say"
        return self.spared[0] if self.spared else "every figure is within its limits"


def judge(figures: Figures, limits: Limits, *, release: float = 0.8) -> Judgement:
    """Compare figures with limits.

    `release` in (0, 1] is the share of its distance from agreement to which a figure must fall before its severity may.
    A kind without tokens has no figures to judge, and a metric that is not among a kind's figures is not judged. A
    figure counts without what `one_accident` adds to it.
    """
    breaches, spared, holding = [], [], Severity.OK
    for kind, metrics in figures.items():
        if metrics["tokens"] == 0:
            continue
        for metric, limit in limits.get(kind, limits[OVERALL]).items():
            if metric not in metrics:
                continue
            value = metrics[metric]
            without = value - one_accident(metric, metrics)
            severity = limit.severity(without)
            holding = max(holding, limit.severity(without, release))
            if severity > Severity.OK:
                breaches.append(Breach(kind, metric, value, limit.above(severity), severity))
            elif limit.severity(value) > Severity.OK:
                one = "router flip" if metric == EXCLUDED else f"token of {metrics['tokens']:.0f}"
                spared.append(f"{kind}: {metric} {value:.4g} is over {limit.warn:g} for one {one}")
    enough = max((metrics["tokens"] for metrics in figures.values()), default=0) >= FEWEST
    severity = max((breach.severity for breach in breaches), default=Severity.OK if enough else Severity.UNJUDGED)
    return Judgement(severity, holding if enough else severity, tuple(breaches), tuple(spared))


def _excess(breach: Breach) -> float:
    return math.inf if math.isnan(breach.value) else breach.value / breach.limit
