"""As much of TRL's trainer as the hook touches: one model, one engine, and made-up answers, without TRL or vLLM."""

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch


class FakeTrainer:
    """A `GRPOTrainer` whose every generation is `output`, in TRL's own names."""

    use_vllm = True
    vllm_importance_sampling_correction = True
    mask_truncated_completions = False
    num_generations = 2

    def __init__(self, output: Mapping[str, Any]) -> None:
        self._output = dict(output)
        self.model = FakeModel(1, 1)
        self.args = SimpleNamespace(run_name=None, output_dir="runs/fake")
        self.state = SimpleNamespace(global_step=0)
        self.accelerator = SimpleNamespace(mixed_precision="no", process_index=0, is_main_process=True)
        self.reward_weights = torch.ones(1)
        self.pictures: list[list[Any] | None] | None = None
        """What the engine is handed with the prompts; None: nothing, as where a `rollout_func` asks it."""
        self.row: dict[str, Any] = {"prompt": "a question"}
        self.scored: Any = (self._output["old_per_token_logps"], None, None)
        self.vllm_generation = FakeGeneration(self._output)

    def step(self) -> dict[str, Any]:
        """What a generation hands to the loss."""
        rows = [self.row] * len(self._output["completion_mask"])
        found: dict[str, Any] = self._generate_and_score_completions(rows)
        self.state.global_step += 1
        return found

    def train(self) -> None:
        """A run of one step."""
        self.step()

    def drop(self, *names: str) -> None:
        """Leave these out of the batches, as RLOO does."""
        for name in names:
            del self._output[name]

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        self.vllm_generation.generate(prompts=self._output["prompt_ids"].tolist(), images=self.pictures)
        self._get_per_token_logps_and_entropies(self.model)
        return dict(self._output)

    def _get_per_token_logps_and_entropies(self, model: Any) -> Any:
        return self.scored

    def _calculate_rewards(self) -> Any: ...

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._get_per_token_logps_and_entropies(model)

    def log(self, logs: dict[str, float]) -> None: ...


class FakeLigerTrainer(FakeTrainer):
    """A trainer as TRL before 1.14 made it, whose loss is Liger's."""

    use_liger_kernel = True

    def compute_loss(self, model: Any, inputs: Any) -> Any:
        if self.use_liger_kernel:
            return self.compute_liger_loss(model, inputs)
        return self._compute_loss(model, inputs)

    def compute_liger_loss(self, model: Any, inputs: Any) -> Any: ...


class FakeModel(torch.nn.Linear):
    """A model in float32, with the name that it was loaded by."""

    config = SimpleNamespace(_name_or_path="tiny")


class FakeGeneration:
    """A colocated `VLLMGeneration`."""

    mode = "colocate"
    logprobs = 0
    temperature, top_p, top_k, min_p, repetition_penalty = 1.0, 1.0, 0, 0.0, 1.0

    def __init__(self, output: Mapping[str, Any]) -> None:
        logprobs = [[[value] for value in row] for row in output["sampling_per_token_logps"].tolist()]
        self.answers: Any = (output["prompt_ids"].tolist(), output["completion_ids"].tolist(), logprobs, None)
        self.generation_kwargs: dict[str, Any] = {}
        runner = SimpleNamespace(model=SimpleNamespace(load_weights=lambda weights: None))
        self.llm = SimpleNamespace(
            llm_engine=SimpleNamespace(
                model_executor=SimpleNamespace(driver_worker=SimpleNamespace(model_runner=runner)),
                model_config=SimpleNamespace(dtype=torch.float32, logprobs_mode="processed_logprobs"),
            )
        )

    def generate(self, *, prompts: Any, images: Any) -> Any:
        return self.answers

    def sync_weights(self) -> None: ...
