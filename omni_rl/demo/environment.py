"""Defines the prompts that the demo asks, and the rewards of their answers."""

from omni_rl.config import DemoSettings
from omni_rl.jobs.environment import Asked
from omni_rl.kinds import KINDS
from omni_rl.media.formats import fits
from omni_rl.models.families import family_of
from omni_rl.rollout.types import SamplingSettings
from omni_rl.tasks.rewards import exact_digit, length
from omni_rl.tasks.samples import demo_prompts


class DemoEnvironment:
    """Asks `prompts_per_kind` prompts of each kind that the model takes, new ones in every step. The answers to one
    kind form a group."""

    def __init__(self, settings: DemoSettings) -> None:
        self._settings = settings
        taken = family_of(settings.model).modalities
        self._kinds = [kind for kind in KINDS if fits(demo_prompts(kind, 1, 0)[0], taken)]

    def asked(self, step: int) -> Asked:
        seed, each = self._settings.seed + step, self._settings.prompts_per_kind
        prompts = [prompt for kind in self._kinds for prompt in demo_prompts(kind, each, seed)]
        sampling = SamplingSettings(
            max_tokens=self._settings.max_tokens, temperature=1.0, seed=seed * len(prompts), ignore_eos=True
        )
        return Asked(prompts, [prompt.id for prompt in prompts], [prompt.kind for prompt in prompts], sampling)

    def held_out(self, step: int) -> None:
        """Return None, because the demo measures nothing on held-out prompts."""

    def reward(self, text: str, expected: str | None) -> float:
        """Return the reward of an exact digit if the prompt expects one, else a reward for the answer's length."""
        return length(text, expected) if expected is None else exact_digit(text, expected)
