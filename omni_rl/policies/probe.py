"""The canonical probe: fixed answers to every kind of prompt that a model takes, scored so that equal weights give
equal bits.

Each answer is scored alone, in a fixed order, with cold caches, by one number of threads (an engine keeps the one it
started with): a batch's size, a cache or another split of a sum moves the last bits of a logprob, in float32 too.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import as_floats, compare_step, furthest
from omni_rl.consistency.left_out import TIES
from omni_rl.consistency.limits import Figures
from omni_rl.media.formats import fits
from omni_rl.media.types import Prompt, RenderedPrompt, Sound, Video
from omni_rl.models.families import family_of
from omni_rl.rollout.handle import RolloutHandle
from omni_rl.rollout.settings import Dtype
from omni_rl.rollout.types import Rescore, Rollout
from omni_rl.train.pairing import train_against_prefill
from omni_rl.train.types import Score

ANSWER_TOKENS = 16
SEED = 20
SOUND_RATE = 16000  # what models hear: nothing is resampled


def probe_prompts() -> list[Prompt]:
    """Return a prompt of text, one of each modality and one of all, made from noise: the same everywhere, without any
    file."""
    rng = np.random.default_rng(SEED)
    image = Image.fromarray(rng.integers(0, 256, (96, 128, 3), np.uint8))
    sound = Sound((0.1 * rng.standard_normal(SOUND_RATE)).astype(np.float32), SOUND_RATE)
    video = Video(rng.integers(0, 256, (4, 96, 96, 3), np.uint8), 2.0, (0, 1, 2, 3), 4)
    return [
        Prompt("text", "Name the capital of the country."),
        Prompt("image", "Look at <image> and say what it is.", images=(image,)),
        Prompt("audio", "Listen to <so_embedding> and say what it is.", sounds=(sound,)),
        Prompt("video", "Watch <video> and say what it is.", videos=(video,)),
        Prompt(
            "mixed",
            "Look at <image>, listen to <so_embedding>, watch <video>, and compare them.",
            images=(image,),
            sounds=(sound,),
            videos=(video,),
        ),
    ]


def probe_answers(rendered: Sequence[RenderedPrompt]) -> tuple[Rollout, ...]:
    """Return each prompt with an answer that nobody sampled: its ids are drawn, with a fixed seed, from those of the
    text prompts."""
    known = np.unique(np.concatenate([prompt.ids for prompt in rendered if not prompt.items]))
    rng = np.random.default_rng(SEED)
    return tuple(
        Rollout(
            prompt=prompt,
            ids=rng.choice(known, ANSWER_TOKENS).astype(np.int64),
            logprobs=np.zeros(ANSWER_TOKENS),
            temperature=1.0,
            version_spans=(),
            engine_digests=tuple(item.digests for item in prompt.items),
            experts=None,
            finish_reason="probe",
        )
        for prompt in rendered
    )


def render_probe(handle: RolloutHandle) -> tuple[Rollout, ...]:
    """Return the canonical probe as the handle's engine renders it, of the kinds of prompts that its model takes.

    Any engine of the same settings can score it.
    """
    taken = family_of(handle.settings.model).modalities
    return probe_answers(handle.render([prompt for prompt in probe_prompts() if fits(prompt, taken)]))


@dataclass
class AgreementProbe:
    """Compares engine and trainer on the probe by kind of prompt, for one sync (`omni_rl.sync.transaction.Probe`).

    `render` gives the probe, by an engine that lives: it is called once lost engines were replaced. `score` is the
    trainer's, called while generation runs; it has to score with the weights that are synced.
    """

    render: Callable[[], tuple[Rollout, ...]]
    score: Callable[[Sequence[Rollout]], Sequence[Score]]
    dtype: Dtype
    command: tuple[Rollout, ...] = ()
    _trained: Sequence[Score] = ()

    def prepare(self) -> None:
        self.command = self.render()
        self._trained = self.score(self.command)

    def agreement(self, scores: Mapping[str, Sequence[Rescore]]) -> Figures:
        """Return for each kind the figures of the replica with the largest mean difference."""
        return furthest([self._figures(scored) for scored in scores.values()])

    def _figures(self, scored: Sequence[Rescore]) -> Figures:
        records = train_against_prefill(self.command, self._trained, scored)
        return as_floats(compare_step(StepColumns.of(records), TIES[self.dtype]).by_kind)
