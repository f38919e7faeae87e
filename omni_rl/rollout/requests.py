"""Checks what a caller asks for before anything starts, and turns it into vLLM's sampling parameters."""

from collections.abc import Sequence

from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from omni_rl.errors import PromptError, SamplingError
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout.types import SamplingSettings

# vLLM samples at this temperature whenever it is asked for a lower one, and greedily near zero.
LOWEST_TEMPERATURE = 0.01


def check_sampling(sampling: SamplingSettings) -> None:
    """Raise `SamplingError` for parameters that are invalid, or whose logprobs no trainer could be compared with."""
    if sampling.temperature < LOWEST_TEMPERATURE:
        raise SamplingError(
            f"temperature {sampling.temperature}: below {LOWEST_TEMPERATURE} the engine samples at another temperature "
            "than its logprobs are for (greedily, at 0); use 1.0, or a temperature of at least that"
        )
    if sampling.max_tokens < 1:
        raise SamplingError(f"max_tokens {sampling.max_tokens}: an answer has at least one token")
    if sampling.seed < 0:
        raise SamplingError(f"seed {sampling.seed}: seeds are not negative (vLLM takes -1 as no seed)")
    truncated = {
        name: value
        for name, value, off in (("top_k", sampling.top_k, (-1, 0)), ("top_p", sampling.top_p, (1.0,)))
        if value not in off
    }
    if truncated and not sampling.accept_truncated_support:
        named = " and ".join(f"{name} {value}" for name, value in truncated.items())
        raise SamplingError(
            f"{named} cut the support: behaviour logprobs would be normalised over the kept tokens only, the trainer's "
            "over all. Leave them off, or set accept_truncated_support and renormalise"
        )


def check_lengths(prompts: Sequence[RenderedPrompt], max_tokens: int, max_model_len: int) -> None:
    """Raise `PromptError` for a prompt that leaves no room for its answer and the position that rescoring needs."""
    for prompt in prompts:
        needed = len(prompt.ids) + max_tokens + 1
        if needed > max_model_len:
            raise PromptError(
                f"prompt {prompt.id!r}: {len(prompt.ids)} tokens and an answer of up to {max_tokens} need a context of "
                f"{needed} (one position is for rescoring), the engine has {max_model_len}; shorten the prompt or its "
                "media, lower max_tokens or raise max_model_len"
            )


def sampling_params(sampling: SamplingSettings, place: int) -> SamplingParams:
    """Return vLLM's parameters for the request at `place` of a batch."""
    return SamplingParams(
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_k=sampling.top_k,
        top_p=sampling.top_p,
        seed=sampling.seed + place,
        ignore_eos=sampling.ignore_eos,
        logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )


def rescoring_params() -> SamplingParams:
    """Return vLLM's parameters for a prefill with the logprobs of every prompt token.

    vLLM insists on sampling one token, which is thrown away.
    """
    return SamplingParams(
        max_tokens=1,
        temperature=1.0,
        seed=0,
        prompt_logprobs=0,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
