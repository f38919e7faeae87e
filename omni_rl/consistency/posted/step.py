"""A step's records in columns, as the checks of a posted step read them.

Shapes: N answers, T sampled tokens of all of them, one answer after the other, answer n from offsets[n] to offsets[n +
1]. `d` is the trainer's logprob less the engine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.evidence import TensorSeen
from omni_rl.once import once

Array = NDArray[np.float64]
Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

STRIDE = 7919
"""A prime by which answers are picked: neighbours are of one prompt, and answers that far apart are not."""
LogprobsOf = Literal["processed", "raw", "unknown"]
CAP = 8.0
"""The nats beyond which a token counts no more in a sum: one token at -inf must not outweigh all others."""


@dataclass(frozen=True)
class Spans:
    """Which weights sampled which tokens: span s is of answer `answers[s]`, from its token `first[s]` to before
    `last[s]`, by version `versions[s]`; all [S]."""

    answers: Index
    first: Index
    last: Index
    versions: Sequence[str]


@dataclass(frozen=True)
class Proofs:
    """What the records say of both sides beside their logprobs; None or 0 where nothing was posted.

    `sampled_by` has the weights that sampled. `scored_by` has the version that scored each answer, "" where it is not
    said. `tensors` counts the digests of media tensors; `tensors_apart` has those that are not the same on both sides,
    each with the number of its answer. `prompts` has the digests of the prompt of each answer, as the engine ran it and
    as the trainer did. `dtypes` are those that the engine and the trainer computed in.
    """

    sampled_by: Spans | None = None
    scored_by: Sequence[str] | None = None
    tensors: int = 0
    tensors_apart: Sequence[tuple[int, TensorSeen]] = ()
    prompts: Sequence[tuple[str | None, str | None]] | None = None
    dtypes: tuple[str, str] | None = None


@dataclass(frozen=True)
class Top:
    """The k ids that the engine found likeliest for each token: `ids` int32 [T, k] and `logprobs` float32 [T, k], -inf
    for an id that could not be sampled. They are many, so that the arrays are those that were posted, without a
    copy."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True)
class PostedStep:
    """A step as it was posted.

    `rollout`, `train` float64 [T] are the logprobs of the sampled tokens by the engine and by the trainer. `counted`
    bool [T] is the loss mask. `ids`, `prompts` are token ids of the answers [T], and of each prompt; None where they
    were not posted. `temperatures` float64 [N] are those that the engine is said to have sampled at. `proofs` are of
    all answers. `logprobs_of` says which distribution the engine's logprobs are of: the one that sampled (processed),
    the raw one, or unknown. `filtered` says whether answers were dropped by their reward, length or logprobs, so that
    those which are left are no sample of the policy. `entropies` float64 [T] of the engine's and of the trainer's
    distribution, in nats, and `top`, the engine's likeliest ids, are None where they were not posted for all answers.
    """

    samples: Sequence[str]
    kinds: Sequence[str]
    offsets: Index
    rollout: Array
    train: Array
    counted: Mask
    temperatures: Array
    ids: Index | None = None
    prompts: Sequence[Index] | None = None
    proofs: Proofs = Proofs()
    logprobs_of: LogprobsOf = "processed"
    filtered: bool = False
    entropies: tuple[Array, Array] | None = None
    top: Top | None = None

    @classmethod
    def of(cls, columns: StepColumns) -> "PostedStep":
        """Return what columns of logprobs say of a step, which is nothing of ids, nor of proof."""
        counted = np.ones(columns.tokens, np.bool_) if columns.loss_mask is None else columns.loss_mask
        if columns.mixed_state is not None:  # such tokens are expected to be apart, and judged by themselves
            counted = counted & ~columns.mixed_state
        return cls(
            columns.samples,
            columns.kinds,
            columns.offsets,
            columns.rollout_logprobs,
            columns.train_logprobs,
            counted,
            np.ones(len(columns.samples)),
        )

    def __len__(self) -> int:
        return len(self.samples)

    @property
    def sides(self) -> tuple[tuple[str, Array, Array], tuple[str, Array, Array]]:
        """The name of each side, its own logprobs [T], and the other side's."""
        return ("engine", self.rollout, self.train), ("trainer", self.train, self.rollout)

    @once
    def answer(self) -> Index:
        """The number of the answer that each token belongs to, [T]."""
        return np.repeat(np.arange(len(self.samples)), np.diff(self.offsets))

    @once
    def judged(self) -> Mask:
        """Which tokens count and have two finite logprobs, [T]."""
        found: Mask = self.counted & np.isfinite(self.rollout) & np.isfinite(self.train)
        return found

    @once
    def d(self) -> Array:
        """The difference of each token, within `CAP`; 0 for tokens that are not judged, [T]."""
        with np.errstate(invalid="ignore"):
            found: Array = np.where(self.judged, np.clip(self.train - self.rollout, -CAP, CAP), 0.0)
        return found

    @once
    def tokens(self) -> int:
        """The number of judged tokens."""
        return int(self.judged.sum())

    @once
    def size(self) -> float:
        """The mean abs d of the judged tokens; 0.0 if there is none."""
        return self.mean_abs(self.d)

    def mean_abs(self, d: Array) -> float:
        """Return the sum of abs d over the number of judged tokens; 0.0 if there is none."""
        return float(np.abs(d).sum()) / self.tokens if self.tokens else 0.0

    def by_answer(self, values: Array) -> Array:
        """Return the sum of token values [T] in each answer, [N]."""
        found: Array = np.bincount(self.answer, values, len(self.samples)).astype(np.float64)
        return found

    @once
    def lengths(self) -> Index:
        """The number of judged tokens of each answer, [N]."""
        return np.bincount(self.answer[self.judged], minlength=len(self.samples))

    def of_answers(self, numbers: Sequence[int] | Index) -> Mask:
        """Return which tokens [T] are of some answers."""
        chosen = np.zeros(len(self.samples), np.bool_)
        chosen[numbers] = True
        found: Mask = chosen[self.answer]
        return found

    def apart(self, tokens: Mask) -> tuple[float, float]:
        """Return the mean abs d of the judged tokens among `tokens` [T], and of the others; 0.0 where there is none."""
        size = np.abs(self.d)
        inside, outside = self.judged & tokens, self.judged & ~tokens
        return _mean(size[inside]), _mean(size[outside])

    def without(self, left_out: Mask) -> "PostedStep":
        """Return the step with some tokens [T] that count no more."""
        return replace(self, counted=self.counted & ~left_out)

    def furthest(self, tokens: int) -> "PostedStep":
        """Return the answers that are furthest apart in sum, as many as hold about `tokens`; the step itself if it is
        smaller.

        To search for pairs and shifts of tokens costs much more than a sum does.
        """
        if len(self.rollout) <= tokens:
            return self
        return self._first(np.argsort(-self.by_answer(np.abs(self.d)), kind="stable"), tokens)

    def some(self, tokens: int) -> "PostedStep":
        """Return answers from all over the step, as many as hold about `tokens`; the step itself if it is smaller."""
        if len(self.rollout) <= tokens:
            return self
        places = np.arange(len(self.samples)) * STRIDE % len(self.samples)
        return self._first(np.array(list(dict.fromkeys(places.tolist()))), tokens)

    def _first(self, order: Index, tokens: int) -> "PostedStep":
        held = np.cumsum(np.diff(self.offsets)[order])
        chosen = np.sort(order[: max(1, int(np.searchsorted(held, tokens)))])
        spans = [np.arange(self.offsets[n], self.offsets[n + 1]) for n in chosen]
        at = np.concatenate(spans)
        return replace(
            self,
            samples=[self.samples[n] for n in chosen],
            kinds=[self.kinds[n] for n in chosen],
            offsets=np.concatenate([[0], np.cumsum([len(span) for span in spans])]),
            rollout=self.rollout[at],
            train=self.train[at],
            counted=self.counted[at],
            temperatures=self.temperatures[chosen],
            ids=None if self.ids is None else self.ids[at],
            prompts=None if self.prompts is None else [self.prompts[n] for n in chosen],
            proofs=Proofs(),
            entropies=None if self.entropies is None else (self.entropies[0][at], self.entropies[1][at]),
            top=None if self.top is None else Top(self.top.ids[at], self.top.logprobs[at]),
        )

    def place(self, token: int) -> str:
        """Return where a token stands, for a sentence."""
        n = int(self.answer[token])
        return f"token {token - int(self.offsets[n])} of {self.samples[n]}"


def _mean(values: Array) -> float:
    return float(values.mean()) if len(values) else 0.0
