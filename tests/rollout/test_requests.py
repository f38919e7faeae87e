"""What is refused before an engine has anything to do, and why."""

from dataclasses import replace

import numpy as np
import pytest

from omni_rl.errors import PromptError, SamplingError
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.requests import check_lengths, check_sampling, sampling_params
from omni_rl.rollout.types import SamplingSettings

FINE = SamplingSettings(max_tokens=8)


def prompt(tokens: int) -> RenderedPrompt:
    return RenderedPrompt(id=f"of {tokens}", kind="text", ids=np.arange(tokens))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"top_k": 50}, "top_k 50 cut the support.*kept tokens only"),
        ({"top_p": 0.9}, "top_p 0.9 cut the support"),
        ({"top_k": 5, "top_p": 0.5}, "top_k 5 and top_p 0.5"),
        ({"temperature": 0.0}, "temperature 0.0.*greedily"),
        ({"temperature": 0.001}, "another temperature"),
        ({"max_tokens": 0}, "at least one token"),
        ({"seed": -1}, "no seed"),
    ],
)
def test_incomparable_sampling_is_refused_with_its_reason(change: dict[str, float], reason: str) -> None:
    with pytest.raises(SamplingError, match=reason):
        check_sampling(replace(FINE, **change))  # type: ignore[arg-type]


def test_truncated_support_is_allowed_to_who_accepts_it() -> None:
    accepted = replace(FINE, top_k=50, top_p=0.9, accept_truncated_support=True)
    check_sampling(accepted)
    params = sampling_params(accepted, 0)
    assert (params.top_k, params.top_p) == (50, 0.9)


def test_each_request_has_its_own_seed() -> None:
    seeds = [sampling_params(replace(FINE, seed=100), index).seed for index in range(3)]
    assert seeds == [100, 101, 102]


def test_room_for_prompt_answer_and_rescoring() -> None:
    check_lengths([prompt(3), prompt(7)], max_tokens=8, max_model_len=16)
    with pytest.raises(PromptError, match=r"'of 8': 8 tokens and an answer of up to 8 need a context of 17.*has 16"):
        check_lengths([prompt(3), prompt(8)], max_tokens=8, max_model_len=16)
