"""Holds the answers that the trainer scored last, complete, so that their step can still be looked into."""

from collections.abc import Sequence

from omni_rl.rollout.types import Rollout

RECENT_BYTES = 256 << 20
"""The most bytes of answers that are held, mostly media tensors and router choices, which would otherwise be freed.
Those of a large step need more."""
RECENT_CALLS = 32
"""The calls to `score` whose answers are held. A step is scored in one or in a few, and is looked into at once."""


class RecentAnswers:
    """Holds the newest answer to each prompt, by the prompt's name: the answers of the last `calls` calls, as far as
    they fit into `limit` bytes."""

    def __init__(self, limit: int = RECENT_BYTES, calls: int = RECENT_CALLS) -> None:
        self._limit = limit
        self._calls = calls
        self._call = 0
        self._bytes = 0
        self._answers: dict[str, tuple[int, Rollout]] = {}  # the oldest first

    def put(self, answers: Sequence[Rollout]) -> None:
        """Hold the answers that were scored in one call, and drop answers that are too old or too many."""
        self._call += 1
        for answer in answers:
            self._drop(answer.prompt.id)
            self._answers[answer.prompt.id] = self._call, answer
            self._bytes += size_of(answer)
        while self._answers and (self._bytes > self._limit or self._oldest <= self._call - self._calls):
            self._drop(next(iter(self._answers)))

    def of(self, names: Sequence[str]) -> list[Rollout]:
        """Return the answers to prompts of these names that are still held."""
        return [self._answers[name][1] for name in names if name in self._answers]

    @property
    def _oldest(self) -> int:
        return next(iter(self._answers.values()))[0]

    def _drop(self, name: str) -> None:
        gone = self._answers.pop(name, None)
        if gone is not None:
            self._bytes -= size_of(gone[1])


def size_of(answer: Rollout) -> int:
    """Return the bytes that an answer's arrays and media tensors take."""
    arrays = [answer.prompt.ids, answer.ids, answer.logprobs]
    tensors = [tensor for item in answer.prompt.items for tensor in item.tensors.values()]
    experts = 0 if answer.experts is None else answer.experts.nbytes
    return sum(array.nbytes for array in arrays) + sum(tensor.nbytes for tensor in tensors) + experts
