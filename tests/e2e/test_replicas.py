"""Two replicas for real: their answers are one replica's, each samples its half, and a death loses nothing."""

import contextlib
import os
import signal
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.kinds import KINDS
from omni_rl.media.types import RenderedPrompt
from omni_rl.policies.local import LocalPair, started
from omni_rl.policies.pair import Pair
from omni_rl.rollout.settings import Dtype, EngineSettings
from omni_rl.rollout.types import Rollout, SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl.train.settings import TrainSettings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

STEPS, ANSWERS, TOKENS = 3, 64, 24
TIE = 1e-4
"""How far a token's logprob and noise may be from the next best one's, in nats, for float32's last bits to choose: they
differ by a few 1e-6 with what else is in a batch."""
TIES = 3
"""How many of all answers may part at one. A margin of less than 1e-5 is expected once in some 100,000 tokens."""


def pair_of_two(checkpoint: Path, dtype: Dtype, **values: Any) -> Any:
    engine = EngineSettings(
        model=checkpoint,
        dtype=dtype,
        run=f"replicas-{os.getpid()}-{dtype}",
        max_num_seqs=ANSWERS,
        max_num_batched_tokens=4096,
        **values,
    )
    return started(engine, TrainSettings(world_size=1, dtype=dtype), replicas=2)


@pytest.fixture(scope="module")
def pair(small_checkpoint: Path) -> Iterator[LocalPair]:
    with pair_of_two(small_checkpoint, "float32") as pair:
        yield pair


def prompts(pair: LocalPair, step: int) -> list[RenderedPrompt]:
    each = -(-ANSWERS // len(KINDS))
    return pair.render([prompt for kind in KINDS for prompt in demo_prompts(kind, each, step)][:ANSWERS])


def sampling(step: int, tokens: int = TOKENS) -> SamplingSettings:
    return SamplingSettings(max_tokens=tokens, seed=1000 * step, ignore_eos=True)


LONGER = sampling(4, tokens=160)
"""For answers that an engine is lost over."""


def alone(pair: LocalPair) -> Pair[Any]:
    """The same pair with its first replica only."""
    return Pair(pair.rollouts[:1], pair.trainer)


@dataclass(frozen=True)
class Parting:
    """Where two answers to a prompt part: `margin` in nats, between the two tokens, of logprob and noise together."""

    prompt: str
    position: int
    margin: float


def partings(one: Sequence[Rollout], other: Sequence[Rollout], seed: int) -> list[Parting]:
    """Of answers to the same prompts; the one at place i was seeded with `seed + i`."""
    found = []
    for place, (a, b) in enumerate(zip(one, other, strict=True)):
        assert a.prompt.id == b.prompt.id
        different = np.flatnonzero(a.ids != b.ids)
        if len(different):
            at = int(different[0])
            noise = noise_between(int(a.ids[at]), int(b.ids[at]), seed + place, at)
            found.append(Parting(a.prompt.id, at, abs(float(a.logprobs[at] - b.logprobs[at]) - noise)))
        same = slice(0, int(different[0]) if len(different) else None)
        assert np.abs(a.logprobs[same] - b.logprobs[same]).max(initial=0) < TIE
    return found


def noise_between(token: int, other: int, seed: int, position: int) -> float:
    """How much more noise `other` gets than `token`, by the operator with which vLLM samples on CPU: the difference of
    logits at which it takes the one instead of the other."""
    import vllm._C  # noqa: F401  # its operators

    generator = torch.Generator().manual_seed(seed)
    for _ in range(position + 1):
        drawn = torch.randint(0, 2**31, (1,), generator=generator, dtype=torch.long)
    logits = torch.full((1, max(token, other) + 1), -torch.inf)
    low, high = -40.0, 40.0
    while high - low > 1e-6:
        logits[0, token], logits[0, other] = (low + high) / 2, 0.0
        if int(torch.ops._C.fused_gumbel_argmax(logits, drawn)) == token:
            high = (low + high) / 2
        else:
            low = (low + high) / 2
    return low


def counted(pair: LocalPair, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How many answers each engine is asked for."""
    asked: Counter[str] = Counter()

    def sample(handle: Any, plain: Any, prompts: Sequence[Any], *arguments: Any) -> Any:
        asked[handle.name] += len(prompts)
        return plain(prompts, *arguments)

    for handle in pair.rollouts:
        monkeypatch.setattr(handle, "sample", partial(sample, handle, handle.sample))
    return asked


def test_answers_are_those_of_one_replica_but_for_near_ties(pair: LocalPair, monkeypatch: pytest.MonkeyPatch) -> None:
    ties: list[Parting] = []
    for step in range(STEPS):
        given = prompts(pair, step)
        one = alone(pair).sample(given, sampling(step))
        with monkeypatch.context() as patch:
            asked = counted(pair, patch)
            both = pair.sample(given, sampling(step))
        assert asked == {handle.name: ANSWERS // 2 for handle in pair.rollouts}
        assert [answer.prompt.id for answer in both] == [prompt.id for prompt in given]
        assert [answer.engine_digests for answer in both] == [answer.engine_digests for answer in one]
        assert {span.version for answer in both for span in answer.version_spans} == {pair.weight_version}
        ties += partings(one, both, sampling(step).seed)
        pair.update(both, np.random.default_rng(step).standard_normal(ANSWERS).tolist())
        pair.sync()
    assert len({handle.weight_version for handle in pair.rollouts}) == 1
    assert [tie for tie in ties if tie.margin > TIE] == []
    assert len(ties) <= TIES, ties


def test_the_noise_between_two_tokens_says_which_of_them_is_sampled() -> None:
    """By the margins of `partings`, the token that the operator takes is the best one, and only just where it is."""
    import vllm._C  # noqa: F401  # its operators

    rng = np.random.default_rng(0)
    for seed in range(20):
        drawn = torch.randint(0, 2**31, (1,), generator=torch.Generator().manual_seed(seed), dtype=torch.long)
        logprobs = torch.tensor(rng.standard_normal((1, 12)), dtype=torch.float32).log_softmax(-1)
        best = int(torch.ops._C.fused_gumbel_argmax(logprobs, drawn))
        margins = {
            other: float(logprobs[0, best] - logprobs[0, other]) - noise_between(best, other, seed, 0)
            for other in range(12)
            if other != best
        }
        assert min(margins.values()) > 0
        second = min(margins, key=margins.__getitem__)
        for change, taken in ((-2 * TIE, best), (2 * TIE, second)):
            logprobs[0, second] += margins[second] + change
            assert int(torch.ops._C.fused_gumbel_argmax(logprobs, drawn)) == taken
            logprobs[0, second] -= margins[second] + change


@pytest.fixture(scope="module")
def undisturbed(pair: LocalPair) -> list[Rollout]:
    """The answers of one replica that nothing happens to, with the weights that the pair keeps from here on."""
    return alone(pair).sample(prompts(pair, 4), LONGER)


@pytest.mark.parametrize("strike", [signal.SIGSTOP, signal.SIGKILL])
def test_an_engine_that_is_killed_or_stopped_while_it_samples_loses_nothing(
    pair: LocalPair, undisturbed: list[Rollout], strike: signal.Signals
) -> None:
    given = prompts(pair, 4)
    victim = pair.rollouts[1]
    version, pid = pair.weight_version, victim.pid
    assert pid is not None
    under_way = threading.Thread(target=_strike_once_busy, args=(victim, pid, strike))
    under_way.start()
    try:
        answers = pair.sample(given, LONGER)
    finally:
        under_way.join()
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    assert {span.version for one in undisturbed for span in one.version_spans} == {version}
    ties = partings(undisturbed, answers, LONGER.seed)
    assert [tie for tie in ties if tie.margin > TIE] == []
    assert len(ties) <= TIES, ties
    assert [len(answer.ids) for answer in answers] == [LONGER.max_tokens] * ANSWERS
    assert victim.pid == pid if strike == signal.SIGSTOP else victim.pid not in (None, pid)
    assert [handle.weight_version for handle in pair.rollouts] == [version] * 2


def _strike_once_busy(handle: Any, pid: int, strike: signal.Signals) -> None:
    while not handle.between_steps(_busy):
        pass
    os.kill(pid, strike)


def _busy(engine: Any) -> bool:
    return bool(engine.busy)
