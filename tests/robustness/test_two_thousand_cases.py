"""2,000 generated prompts on real vLLM and the training copy: no crash, and what is accepted agrees in float32."""

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.records import SampleRecord
from omni_rl.errors import MediaError, PromptError
from omni_rl.kinds import KINDS, OVERALL
from omni_rl.media.types import Prompt, RenderedPrompt
from omni_rl.rollout.types import SamplingSettings

from .conftest import FLOAT32, BothSides, breaches
from .strategies import prompts

CASES = 2_000  # different ones: hypothesis likes to repeat itself
BATCH = 8  # at most so many prompts in one example
TOGETHER = 64  # are sampled and scored at once: as many as the engine takes
TOKENS = 4


@dataclass
class Tally:
    """What went through, so that the test cannot pass by refusing everything or by repeating itself."""

    number: int = 0
    different: set[bytes] = field(default_factory=set)
    refused: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    waiting: dict[float, list[RenderedPrompt]] = field(default_factory=lambda: defaultdict(list))
    records: list[SampleRecord] = field(default_factory=list)
    apart: dict[str, list[str]] = field(default_factory=dict)


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


def _compare(both: BothSides, temperature: float, tally: Tally) -> None:
    """Of what waits for this temperature, whatever example it came from: a finding is kept, for the end to tell."""
    together = tally.waiting.pop(temperature)
    sampling = SamplingSettings(max_tokens=TOKENS, temperature=temperature, seed=tally.number, ignore_eos=True)
    for record in both.decode_records(both.engine.sample(together, sampling)):
        tally.records.append(record)
        if found := breaches([record]):
            tally.apart[record.sample] = found


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
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(prompts(), min_size=1, max_size=BATCH),
        st.sampled_from([0.3, 1.0, 1.0, 1.7]),
    )
    def run(batch: list[Prompt], temperature: float) -> None:
        if len(tally.different) >= CASES:
            return
        tally.waiting[temperature] += _render(both, batch, tally)
        if len(tally.waiting[temperature]) >= TOGETHER:
            _compare(both, temperature, tally)

    run()
    for temperature in [temperature for temperature, left in tally.waiting.items() if left]:
        _compare(both, temperature, tally)
    assert tally.apart == {}
    assert len(tally.different) >= CASES
    assert tally.refused.keys() == {"invalid_media", "invalid_prompt"}
    assert all(count >= 20 for count in tally.refused.values())
    assert all(tally.accepted[kind] >= 100 for kind in KINDS)
    left_out = FLOAT32.compare(StepColumns.of(tally.records)).overall.metrics.excluded_fraction
    assert left_out <= FLOAT32.limits[OVERALL]["excluded_fraction"].warn
