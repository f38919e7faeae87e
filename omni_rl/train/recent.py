"""The answers that the trainer scored last, whole: what a step was made of, for as long as it is looked into."""

from collections.abc import Sequence

from omni_rl.rollout.types import Rollout

RECENT_BYTES = 256 << 20
"""Of media tensors and router choices: they would be freed otherwise, and a step's fill more."""


class RecentAnswers:
    """By the name of the prompt, the newest of each; the oldest go where they are more than `limit` bytes."""

    def __init__(self, limit: int = RECENT_BYTES) -> None:
        self._limit = limit
        self._bytes = 0
        self._answers: dict[str, Rollout] = {}

    def put(self, answers: Sequence[Rollout]) -> None:
        for answer in answers:
            self._drop(answer.prompt.id)
            self._answers[answer.prompt.id] = answer
            self._bytes += size_of(answer)
        while self._bytes > self._limit and self._answers:
            self._drop(next(iter(self._answers)))

    def of(self, names: Sequence[str]) -> list[Rollout]:
        """Those of these names that are still here."""
        return [self._answers[name] for name in names if name in self._answers]

    def _drop(self, name: str) -> None:
        gone = self._answers.pop(name, None)
        if gone is not None:
            self._bytes -= size_of(gone)


def size_of(answer: Rollout) -> int:
    """Bytes of what an answer holds."""
    arrays = [answer.prompt.ids, answer.ids, answer.logprobs]
    tensors = [tensor for item in answer.prompt.items for tensor in item.tensors.values()]
    experts = 0 if answer.experts is None else answer.experts.nbytes
    return sum(array.nbytes for array in arrays) + sum(tensor.nbytes for tensor in tensors) + experts
