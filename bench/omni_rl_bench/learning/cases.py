"""Lists what is run: jobs that learn digits, controls that cannot, and a mismatch that is forced on purpose.

The cases were tuned on seeds from 100 on, which are not reported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from omni_rl.api.jobs import GrpoParameters, PpoParameters

# A digit and the end of the turn are two tokens. Rewards that say nothing give gradients with mean 0, of which AdamW
# makes steps of full length all the same: the policy would walk off, by the root of the number of steps where rewards
# that say something carry it by the number itself. So the steps are many and small, and a KL holds the policy; the
# warm-up takes the edge off Adam's first steps, which are the longest, and the decay lets it settle. A group of few
# answers with one right one would count most of all if advantages were divided by its deviation.
GRPO = {
    "steps": 150,
    "prompts": 96,
    "group": 4,
    "normalise": False,
    "max_tokens": 2,
    "learning_rate": 1.2e-4,
    "learning_rate_warmup": 15,
    "learning_rate_decay": 0.8,
    "kl": 0.075,
    "evaluate_every": 30,
    "evaluate_answers": 2,
}
PPO = {
    "steps": 41,
    "prompts": 256,
    "epochs": 2,
    "minibatches": 2,
    "max_tokens": 2,
    "learning_rate": 3e-4,
    "evaluate_every": 20,
}
_NEVER = {"warn": 1e6, "mask": 1e6, "pause": 1e6}
# The service would halt such a run at its first step: its limits are raised out of the way. The last step is saved, to
# be resumed by one more when the fault is out of the engine.
MISMATCHED = {
    "steps": 61,
    "prompts": 64,
    "group": 4,
    "max_tokens": 2,
    "learning_rate": 4e-4,
    "evaluate_every": 20,
    "save_every": 61,
    "limits": {"overall": {"logprob_abs_diff_mean": _NEVER, "logprob_abs_diff_max": _NEVER}},
}


@dataclass(frozen=True)
class Case:
    """One case. `reaches` is a held-out reward that it has to end with. `still` is a control, whose reward stays where
    it is.

    `mismatch`: the engine samples at twice the temperature that is asked for; after the run the fault is taken out, and
    the trainer's own policy measured. Such a case shows something, and has to reach nothing: one seed does.
    """

    name: str
    kind: str
    parameters: Mapping[str, Any]
    reaches: float | None = None
    still: bool = False
    mismatch: bool = False

    def seeds(self, asked: Sequence[int]) -> Sequence[int]:
        """Return the seeds that the case is run with."""
        return asked[:1] if self.mismatch else asked

    def of(self, seed: int) -> GrpoParameters | PpoParameters:
        """Return the case's parameters."""
        model = GrpoParameters if self.kind == "grpo" else PpoParameters
        return model.model_validate({"run": f"{self.name}-{seed}", "seed": seed, **self.parameters})


CASES = (
    Case("grpo", "grpo", GRPO, reaches=0.85),
    Case("ppo", "ppo", PPO, reaches=0.75),
    Case("grpo-rate-0", "grpo", {**GRPO, "steps": 31, "learning_rate": 0.0}, still=True),
    # Of two answers to a prompt, chance alone moves the mean by 0.02 and more: half of what a control may move.
    Case("grpo-shuffled", "grpo", {**GRPO, "task": "digits-shuffled", "evaluate_answers": 8}, still=True),
    Case("mismatch", "grpo", {**MISMATCHED, "correction": {"method": "none"}}, mismatch=True),
    Case("mismatch-tis", "grpo", {**MISMATCHED, "correction": {"method": "tis", "when": "always"}}, mismatch=True),
)
