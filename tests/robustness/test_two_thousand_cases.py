"""2,000 generated prompts on real vLLM and the training copy: no crash, and what is accepted agrees in float32."""

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

CASES = 2_000
BATCH = 20  # prompts of one example, sampled and scored together
TOKENS = 4


@dataclass
class Tally:
    """What went through, so that the test cannot pass by refusing everything or by repeating itself."""

    cases: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    different: set[tuple[str, ...]] = field(default_factory=set)
    kinds: Counter[str] = field(default_factory=Counter)
    records: list[SampleRecord] = field(default_factory=list)


def _render(both: BothSides, batch: list[Prompt], tally: Tally) -> list[RenderedPrompt]:
    accepted = []
    for number, prompt in enumerate(batch):
        named = replace(prompt, id=f"case {tally.cases + number}")
        try:
            accepted += both.renderer.render([named])
        except (MediaError, PromptError) as error:
            tally.refused[error.code if named.id in str(error) else f"nameless: {error}"] += 1
    tally.cases += len(batch)
    return accepted


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.timeout(3_600)
def test_no_crash_and_whatever_is_accepted_agrees(both: BothSides) -> None:
    tally = Tally()

    @settings(
        max_examples=CASES // BATCH,
        deadline=None,
        derandomize=True,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(
        st.lists(prompts(), min_size=BATCH, max_size=BATCH),
        st.sampled_from([0.3, 1.0, 1.0, 1.7]),
        st.integers(0, 2**31),
    )
    def run(batch: list[Prompt], temperature: float, seed: int) -> None:
        accepted = _render(both, batch, tally)
        sampling = SamplingSettings(max_tokens=TOKENS, temperature=temperature, seed=seed, ignore_eos=True)
        rollouts = both.engine.sample(accepted, sampling)
        records = both.decode_records(rollouts) if rollouts else []
        for record in records:
            assert breaches(compare([record]), FLOAT32) == [], record.sample
        tally.records += records
        for rollout in rollouts:
            prompt = rollout.prompt
            tally.different.add((str(prompt.ids.tolist()), *(item.content_hash for item in prompt.items)))
            tally.kinds[prompt.kind] += 1

    run()
    assert tally.cases >= CASES
    assert len(tally.different) >= 0.4 * CASES
    assert tally.refused.keys() == {"invalid_media", "invalid_prompt"}
    assert tally.refused["invalid_media"] >= 20
    assert tally.refused["invalid_prompt"] >= 20
    assert all(tally.kinds[kind] >= 100 for kind in KINDS)
    assert left_out(compare(tally.records), FLOAT32) == []
