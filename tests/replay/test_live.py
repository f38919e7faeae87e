"""Real records of a trainer with a fault, replayed by a pair without one, and with it; and by other weights."""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pydantic_core
import pytest

from omni_rl.kinds import KINDS, Kind
from omni_rl.policies.local import LocalPair
from omni_rl.replay.findings import Replay
from omni_rl.replay.reading import read_bundle
from omni_rl.replay.run import replay, replay_pair
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.samples import demo_prompts
from omni_rl_bench.sabotage import patches
from omni_rl_bench.sabotage.media import normalised_twice
from tests.pinned.kept_meaning import lost, lost_shape
from tests.pinned.pinned_files import DATA, pinned_json
from tests.replay.bundles import write_played
from tests.test_cli import omni_rl

pytestmark = pytest.mark.slow

SEEN: tuple[Kind, ...] = ("image", "video", "mixed")
"""Kinds of prompt that the fault changes."""
OF_BOTH = ("sample", "step", "kind", "prompt_tokens", "ids", "texts", "temperature", "recorded")
"""What a replay says of the record, whatever the policies are now."""


@pytest.fixture(scope="module")
def pair(small_checkpoint: Path) -> Iterator[LocalPair]:
    with replay_pair(small_checkpoint, "float32", 1000) as pair:
        yield pair


@pytest.fixture(scope="module")
def bundles(pair: LocalPair, tmp_path_factory: pytest.TempPathFactory) -> dict[Kind, Path]:
    """One of each kind, scored by a trainer that normalises pictures twice."""
    folder = tmp_path_factory.mktemp("bundles")
    prompts = [demo_prompts(kind, 1, 3)[0] for kind in KINDS]
    sampling = SamplingSettings(max_tokens=12, seed=4, ignore_eos=True)
    rollouts = pair.sample(pair.render(prompts), sampling)
    pair.trainer.on_ranks(partial(normalised_twice, seed=1))
    scores = pair.trainer.score(rollouts)
    pair.trainer.on_ranks(patches.take_out)
    played = zip(prompts, rollouts, scores, strict=True)
    return {one[0].kind: write_played(folder / f"{one[0].kind}.zip", *one) for one in played}


def _equal(found: Replay, modality: str) -> dict[str, bool | None]:
    return {t.name: t.equal for item in found.media if item.modality == modality for t in item.tensors}


@pytest.mark.parametrize("kind", KINDS)
def test_a_healthy_pair_agrees_on_what_a_faulty_one_did_not(
    pair: LocalPair, bundles: dict[Kind, Path], kind: Kind
) -> None:
    found = replay(read_bundle(bundles[kind]), pair)
    assert found.agree, found.reason
    assert found.now.abs_diff_max < 1e-4
    assert (found.recorded.abs_diff_mean > 1e-2) == (kind in SEEN)
    assert found.weights.equal
    assert found.first_outside is None
    assert {"embeddings", "layers.0.mixer", "logits"} <= {module.module for module in found.modules}
    assert all(_equal(found, "image").values())
    assert _equal(found, "audio").get("input_audio_features", False) is False
    assert all(item.note.startswith("no fault") for item in found.media if item.modality != "image")


def test_while_the_fault_is_there_the_pair_parts_where_it_is(pair: LocalPair, bundles: dict[Kind, Path]) -> None:
    pair.trainer.on_ranks(partial(normalised_twice, seed=1))
    found = replay(read_bundle(bundles["image"]), pair)
    pair.trainer.on_ranks(patches.take_out)
    assert not found.agree
    assert found.first_outside is not None
    assert found.first_outside.module == "vision.patches"
    assert found.now.abs_diff_mean == pytest.approx(found.recorded.abs_diff_mean, rel=1e-3)


def test_a_bundle_of_version_0_1_0_is_replayed_against_the_same_record(pair: LocalPair) -> None:
    """Return what the command would print with `--json`."""
    found = replay(read_bundle(DATA / "mixed.zip"), pair)
    then, now = pinned_json("replay.json"), json.loads(pydantic_core.to_json(found, inf_nan_mode="null"))
    assert lost_shape(then, now) == []
    assert lost({name: then[name] for name in OF_BOTH}, now) == []
    assert now["agree"] is True
    assert [item["modality"] for item in now["media"]] == [item["modality"] for item in then["media"]]
    assert len(now["now"]["rollout"]) == len(now["ids"])


def test_the_command_replays_with_other_weights_and_says_so(
    pair: LocalPair, bundles: dict[Kind, Path], tmp_path: Path
) -> None:
    (prompt,) = pair.render(demo_prompts("text", 1, 5))
    pair.trainer.update(pair.sample([prompt], SamplingSettings(max_tokens=4)), [1.0])
    pair.trainer.save(tmp_path / "later")
    pair.trainer.reset()
    done = omni_rl("replay", str(bundles["image"]), "--model", str(tmp_path / "later"), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert lost_shape(pinned_json("replay.json"), found) == []
    assert found["agree"] is True
    assert found["weights"]["equal"] is False
    assert found["now"]["abs_diff_max"] < 1e-4
    assert all(tensor["equal"] for item in found["media"] for tensor in item["tensors"])
