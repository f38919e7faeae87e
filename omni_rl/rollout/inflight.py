"""A request under way in the engine, and the answer that it becomes."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omni_rl.media.digests import sequence_digest
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import Rescore, Rollout, VersionSpan


@dataclass
class Request:
    """A request under way: what it was made from, and the tokens sampled for it so far. A request that scores the
    answer `rescored` has none.

    `state_of` holds the versions under which the request's state in the engine (attention's keys and values, Mamba's
    states) was computed, apart from the one that is served now. `mixed` says for each token whether part of that state
    was another version's.
    """

    prompt: RenderedPrompt
    internal_id: str = ""
    temperature: float = 1.0
    rescored: Rollout | None = None
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    mixed: list[bool] = field(default_factory=list)
    state_of: set[str] = field(default_factory=set)

    def add(self, completion: Any, version: str) -> None:
        """Append what vLLM sampled in one step, with the weights of `version`."""
        for token, candidates in zip(completion.token_ids, completion.logprobs, strict=True):
            self.ids.append(int(token))
            self.logprobs.append(candidates[token].logprob)
            self.mixed.append(bool(self.state_of - {version}))

    def rollout(
        self, completion: Any, digests: Iterable[dict[str, str]], experts: Any, kept: Iterable[Any] = ()
    ) -> Rollout:
        """Return the finished answer."""
        ids = np.array(self.ids, np.int64)
        return Rollout(
            prompt=self.prompt,
            ids=ids,
            logprobs=np.array(self.logprobs, np.float64),
            temperature=self.temperature,
            version_spans=tuple(self._spans(completion.weight_versions)),
            engine_digests=tuple(digests),
            experts=experts,
            finish_reason=completion.finish_reason,
            kept=tuple(kept),
            sequence=sequence_digest(
                np.concatenate([self.prompt.ids, ids]), (item.positions for item in self.prompt.items)
            ),
        )

    def rescore(self, output: Any, experts: Any) -> Rescore:
        """Return the scores of the answer that was run as a prompt."""
        assert self.rescored is not None
        first = len(self.rescored.prompt.ids)
        logprobs = [
            candidates[int(token)].logprob
            for token, candidates in zip(self.rescored.ids, output.prompt_logprobs[first:], strict=True)
        ]
        # The token that vLLM insists on sampling was sampled last, under the weights that computed the whole prompt:
        # whatever was computed under others was thrown away and computed again.
        (span,) = output.outputs[0].weight_versions
        return Rescore(np.array(logprobs, np.float64), experts, span.version)

    def _spans(self, versions: Iterable[Any]) -> Iterable[VersionSpan]:
        """Yield vLLM's spans, cut where tokens of mixed state begin or end."""
        for span in versions:
            start = span.start
            for end in range(start + 1, span.end + 1):
                if end == span.end or self.mixed[end] != self.mixed[start]:
                    yield VersionSpan(span.version, start, end, self.mixed[start])
                    start = end
