"""Judges a step: its figures against their limits, the checks of every step, and why it is not ok."""

from dataclasses import dataclass, replace

import numpy as np

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import StepComparison
from omni_rl.consistency.limits import Judgement, Severity
from omni_rl.consistency.posted.explain import Explanation, explain
from omni_rl.consistency.posted.history import History
from omni_rl.consistency.posted.look import look
from omni_rl.consistency.posted.step import PostedStep
from omni_rl.consistency.yardstick import Yardstick
from omni_rl.kinds import OVERALL


@dataclass(frozen=True)
class JudgedStep:
    """A step with its verdict. `explanation` is that of a step that is not ok. `history` is the attempt's, with this
    step."""

    comparison: StepComparison
    judgement: Judgement
    explanation: Explanation | None
    history: History


def judge_posted(columns: StepColumns, step: PostedStep, yardstick: Yardstick, history: History) -> JudgedStep:
    """Judge a step by all that its records say. `columns` and `step` are of the same records."""
    comparison = _compare(columns, step, yardstick)
    seen = look(step, yardstick, history, comparison.sequence_error)
    judgement = yardstick.judge(comparison).with_concerns(seen.concerns)
    explanation = None
    if judgement.severity > Severity.OK:
        explanation = explain(step, yardstick, history, seen, comparison.figures)
    clean = not judgement.breaches and seen.clean
    size = step.size, seen.places.size.error
    after = history.after(size, seen.means.get(OVERALL), step.tokens, clean=clean)
    return JudgedStep(comparison, judgement, explanation, after)


def _compare(columns: StepColumns, step: PostedStep, yardstick: Yardstick) -> StepComparison:
    """Return the figures of all tokens with finite logprobs, if there are any. The others are reported by side, place
    and count, and put their answer first among the worst."""
    lost = step.counted & ~step.judged
    if not step.tokens or not lost.any():
        return yardstick.compare(columns)
    counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
    found = yardstick.compare(replace(columns, loss_mask=counted & ~lost))
    errors = found.sequence_error.copy()
    errors[np.unique(step.answer[lost])] = np.nan
    return replace(found, sequence_error=errors)
