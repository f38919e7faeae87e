"""2,000 generated prompts on real vLLM and the training copy: no crash, and what is accepted agrees in float32."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from omni_rl.consistency.metrics import compare
from omni_rl.consistency.records import SampleRecord
from omni_rl.consistency.thresholds import breaches, left_out
from omni_rl.errors import MediaError, PromptError
from omni_rl.media.types import KINDS, Prompt, RenderedPrompt
from omni_rl.rollout.types import SamplingSettings

from .conftest import FLOAT32, BothSides
from .strategies import prompts

CASES = 2_000  # different ones: hypothesis likes to repeat itself
BATCH = 8  # at most so many prompts of one example are sampled and scored together
TOKENS = 4


@dataclass
class Tally:
    """What went through, so that the test cannot pass by refusing everything or by repeating itself."""

    number: int = 0
    different: set[bytes] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    records: list[SampleRecord] = field(default_factory=list)


def _fingerprint(prompt: Prompt) -> bytes:
    whole = hashlib.sha256(prompt.text.encode(errors="surrogatepass"))
    for image in prompt.images:
        whole.update(repr((image.mode, image.size, dict(image.getexif()))).encode() + image.tobytes())
    for sound in prompt.sounds:
        whole.update(repr((sound.rate, sound.samples.shape)).encode() + sound.samples[..., :100].tobytes())
    for video in prompt.videos:
        whole.update(repr((video.fps, video.indices, video.frames.shape)).encode() + video.frames.tobytes())
    return whole.digest()


def _render(both: BothSides, batch: list[Prompt], tally: Tally) -> list[RenderedPrompt]:
    """What is accepted of a batch."""
    accepted = []
    for prompt in batch:
        named = replace(prompt, id=f"case {tally.number}")
        tally.number += 1
        new = _fingerprint(prompt) not in tally.different
        tally.different.add(_fingerprint(prompt))
        try:
            accepted += both.renderer.render([named])
            tally.accepted[named.kind] += new
        except (MediaError, PromptError) as error:
            tally.refused[error.code if named.id in str(error) else f"nameless: {error}"] += new
    return accepted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(3_600)
def test_no_crash_and_whatever_is_accepted_agrees(both: BothSides) -> None:
    tally = Tally()

    @settings(
        max_examples=CASES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(prompts(), min_size=1, max_size=BATCH),
        st.sampled_from([0.3, 1.0, 1.0, 1.7]),
        st.integers(0, 2**31),
    )
    def run(batch: list[Prompt], temperature: float, seed: int) -> None:
        if len(tally.different) >= CASES:
            return
        accepted = _render(both, batch, tally)
        if not accepted:
            return
        sampling = SamplingSettings(max_tokens=TOKENS, temperature=temperature, seed=seed, ignore_eos=True)
        records = both.decode_records(both.engine.sample(accepted, sampling))
        for record in records:
            assert breaches(compare([record]), FLOAT32) == [], record.sample
        tally.records += records

    run()
    assert len(tally.different) >= CASES
    assert tally.refused.keys() == {"invalid_media", "invalid_prompt"}
    assert all(count >= 20 for count in tally.refused.values())
    assert all(tally.accepted[kind] >= 100 for kind in KINDS)
    assert left_out(compare(tally.records), FLOAT32) == []
