"""Makes the engine decode given answers token by token, which shows the logprobs that its decode gives to tokens
sampled before, whatever its sampler would choose or report now.

Shapes: R rows of one step, V tokens of the vocabulary, T tokens of one answer.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from omni_rl.rollout.engine import RolloutEngine
from omni_rl.rollout.types import Decoded, Rollout, SamplingSettings

LONGEST = 256
"""The most tokens of an answer that are decoded: each costs a step of the engine, and wrongly carried state shows in
these."""


def decode(engine: RolloutEngine, answers: Sequence[Rollout]) -> list[Decoded]:
    """Decode the answers together and return what was found for each, in their order; caches are used as they are."""
    forcing = _Forcing(engine)
    sampler = engine.sampler
    hooks = [
        sampler.register_forward_pre_hook(forcing.before, with_kwargs=True),
        sampler.register_forward_hook(forcing.after),
    ]
    try:
        engine.apart(lambda: forcing.submit(answers))
    finally:
        for hook in hooks:
            hook.remove()
    return [forcing.found(number) for number in range(len(answers))]


class _Forcing:
    """Wraps the engine's sampler: notes the logprobs that the logits give to each wanted token, then puts the token in
    the place of the one that was sampled."""

    def __init__(self, engine: RolloutEngine) -> None:
        self._engine = engine
        self._wanted: dict[str, tuple[int, Rollout]] = {}
        self._rows: list[tuple[int, int]] = []
        self._plain: dict[tuple[int, int], tuple[float, float]] = {}

    def submit(self, answers: Sequence[Rollout]) -> list[str]:
        names: list[str] = []
        for number, answer in enumerate(answers):
            sampling = SamplingSettings(max_tokens=min(len(answer.ids), LONGEST), ignore_eos=True)
            (name,) = self._engine.submit([answer.prompt], sampling)
            self._wanted[name] = number, answer
            names.append(name)
        return names

    def before(self, module: Any, given: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        logits = (named["logits"] if "logits" in named else given[0]).detach()
        self._rows = []
        for row, (name, at) in enumerate(self._engine.sampled_rows):
            number, answer = self._wanted[name]
            token = int(answer.ids[at])
            self._rows.append((row, token))
            values = logits[row].float()  # the sampler writes to the logits that it is given
            # A chunk of a prompt samples too, and what it sampled is thrown away: the prompt's last chunk writes last.
            self._plain[number, at] = _logprob(values, token, 1.0), _logprob(values, token, answer.temperature)

    def after(self, module: Any, given: Any, output: Any) -> None:
        for row, token in self._rows:
            output.sampled_token_ids[row, 0] = token
            output.logprobs_tensors.logprob_token_ids[row, 0] = token

    def found(self, number: int) -> Decoded:
        pairs = [value for (of, _), value in sorted(self._plain.items()) if of == number]
        plain, tempered = np.array(pairs, np.float64).reshape(-1, 2).T
        return Decoded(plain, tempered)


def _logprob(logits: torch.Tensor, token: int, temperature: float) -> float:
    return float(torch.log_softmax(logits / temperature, -1)[token])
