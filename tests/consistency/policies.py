"""Two policies made of numbers: logits, and the logprobs that a faulty rollout would report of what it sampled.

Shapes: T sampled tokens, V tokens of the vocabulary.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from omni_rl.consistency.records import SampleRecord

VOCABULARY = 64
TOKENS = 32


def log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max(-1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


@dataclass(frozen=True)
class Answer:
    """Logits float64 [T, V] of what was sampled, int64 [T], at `temperature`."""

    name: str
    kind: str
    logits: NDArray[np.float64]
    ids: NDArray[np.int64]
    temperature: float = 1.0

    def logprobs(self, temperature: float | None = None) -> NDArray[np.float64]:
        table = log_softmax(self.logits / (self.temperature if temperature is None else temperature))
        result: NDArray[np.float64] = np.take_along_axis(table, self.ids[:, None], 1)[:, 0]
        return result

    def record(self, rollout: NDArray[np.float64], train: NDArray[np.float64] | None = None) -> SampleRecord:
        """What a step has of it, if the rollout reported these logprobs."""
        scored = self.logprobs() if train is None else train
        return SampleRecord(self.name, self.kind, 5, rollout, scored)


def answers(
    seed: int, count: int = 4, tokens: int = TOKENS, temperature: float = 1.0, sharpness: float = 2.0
) -> list[Answer]:
    """Sampled from their own distribution, so that d has the signs that it has in a run."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        logits = sharpness * rng.standard_normal((tokens, VOCABULARY))
        table = np.exp(log_softmax(logits / temperature))
        ids = np.array([rng.choice(VOCABULARY, p=row / row.sum()) for row in table])
        kind = "image" if number % 2 else "text"
        found.append(Answer(f"{kind}-{number}", kind, logits, ids, temperature))
    return found


def noisy(values: NDArray[np.float64], dtype: str, seed: int) -> NDArray[np.float64]:
    """With what two kernels differ by: float32's order of summation, or bfloat16's rounding."""
    scale = {"float32": 7e-7, "bfloat16": 0.02}[dtype]
    return values + scale * np.random.default_rng(seed).standard_normal(len(values))


def cut(answer: Answer, top_p: float) -> Answer:
    """Sampled again with top-p; logits outside of the support are gone."""
    table = np.exp(log_softmax(answer.logits / answer.temperature))
    order = np.argsort(-table, -1)
    before = np.cumsum(np.take_along_axis(table, order, -1), -1) - np.take_along_axis(table, order, -1)
    kept = np.zeros(table.shape, np.bool_)
    np.put_along_axis(kept, order, before < top_p, -1)
    logits = np.where(kept, answer.logits, -np.inf)
    rng = np.random.default_rng(0)
    weights = np.where(kept, table, 0)
    ids = np.array([rng.choice(table.shape[1], p=row / row.sum()) for row in weights])
    return replace(answer, logits=logits, ids=ids)
