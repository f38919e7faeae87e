"""Watches a TRL run: `watch(trainer)` before `trainer.train()`, for GRPO and RLOO with vLLM.

Callbacks see no batch, so that the trainer's own methods are wrapped, on this one object: where it generates and scores
(the step), where vLLM answers (the engine's own prompts and logprobs), where the policy scores (the trainer's logprobs
where the step does not return them), where rewards are made, and where it logs. trl 1.16 is known to work.

A step is one generation: all the answers that are sampled at once, judged before anything is learnt from them. Its
number is the trainer's `global_step`. Several generations of one optimizer step are steps of their own, each with the
next number that is free: their answers are of one set of weights, but waiting for the last of them would judge the
first too late. What the trainer knows of the optimizer step is added to its last generation, `global_step` among it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePath
from typing import Any

from omni_rl.consistency.corrections import Method
from omni_rl.errors import ConfigError
from omni_rl.watch.guard import guarded
from omni_rl.watch.place import run_name
from omni_rl.watch.table import StepValues
from omni_rl.watch.trl_batch import padded, picture_token, pictures_of, prompt_text, sample_names
from omni_rl.watch.trl_engine import Engine, train_dtype, version_of, wrap
from omni_rl.watch.trl_updates import announce_updates
from omni_rl.watch.watcher import Watcher

ROWS = "omni_rl_rows"
"""A key in the trainer's batch for the answers' numbers, which are shuffled and split with everything else."""

UNSCORED = "the policy's logprobs are not taken as it scores"
UNREAD = "a prompt's text is not shown"


@dataclass
class Generation:
    """What is learnt of one generation while it is under way; each field is None until it is known.

    `handed` has the pictures of each prompt as vLLM was given them. `scored` has the trainer's logprobs [B, T], of
    which `missing` rows still come with the loss.
    """

    prompts: list[list[int]] | None = None
    handed: Any = None
    logprobs: list[list[float]] | None = None
    train: Any = None
    rewards: Any = None
    values: StepValues | None = None
    pictures: list[Any] | None = None
    scored: Any = None
    missing: int = 0
    figures: dict[str, object] = field(default_factory=dict)

    def answered(self, answers: Any) -> None:
        """Take vLLM's answers: the prompts as it ran them, and its logprobs, of which the sampled token's is the
        first."""
        self.prompts, _, logprobs, _ = answers
        if logprobs is not None:
            self.logprobs = [[token[0] for token in answer] for answer in logprobs]

    def scored_by(self, scored: Any) -> None:
        """Take what the policy's scoring method returned: its logprobs are the first item."""
        self.train = scored[0]


def watch(
    trainer: Any,
    *,
    run: str | None = None,
    strict: bool = False,
    correct: Method = "none",
    url: str | None = None,
    token: str | None = None,
    **settings: Any,
) -> Watcher:
    """Post every generation of a `GRPOTrainer` or `RLOOTrainer` to the coordinator that `url` or OMNI_RL_URL names, and
    add its verdicts to the trainer's logs under `omni_rl/`.

    Args:
        run: The run's name; else OMNI_RL_RUN, the trainer's `run_name`, or the last part of its `output_dir`.
        strict: Stop the run where the verdict is `pause`, before it learns from the step.
        correct: The rule of the weights that take the place of TRL's importance ratio; "none": TRL's own.
        settings: Arguments of the `Watcher`. `dtype` and `train_dtype` state two dtypes that are meant to differ.

    Raises:
        ConfigError: The trainer has no vLLM, or no place for weights, or is of a version that has other methods.
    """
    return TrlWatch(trainer, run, strict=strict, correct=correct, url=url, token=token, **settings).watcher


class TrlWatch:
    """The wrapped methods of one trainer, and what passes from one to the next."""

    def __init__(self, trainer: Any, run: str | None, *, correct: Method, **settings: Any) -> None:
        if not trainer.use_vllm:
            raise ConfigError("TRL samples with transformers here, so that there is one policy alone: use_vllm=True")
        # RLOO sums its logprobs, and has no ratio of tokens.
        self._weighs = getattr(trainer, "vllm_importance_sampling_correction", False)
        if correct != "none" and not self._weighs:
            raise ConfigError("weights need GRPO with vllm_importance_sampling_correction=True; RLOO has no place")
        self._trainer = trainer
        # TRL before 1.14 has a loss of Liger's that computes no logprobs of tokens, in the place of `_compute_loss`.
        self._fused = hasattr(trainer, "compute_liger_loss") and trainer.use_liger_kernel
        self._correct = correct != "none"
        self._engine = Engine(trainer)
        self._engine.ask_for_logprobs()
        self._now: Generation | None = None
        self._waiting: Generation | None = None
        self._last = -1
        engine, learner = self._engine.dtype, train_dtype(trainer)
        stated = settings.keys() & {"dtype", "train_dtype"}
        # What was not stated was not meant: two dtypes that nobody asked for are reported.
        self._found = (None, None) if stated else (engine, learner)
        if not stated:
            settings |= {"dtype": engine or learner or "bfloat16", "train_dtype": learner}
        args = trainer.args
        self.watcher = Watcher(
            run=run_name(run, args.run_name or PurePath(args.output_dir).name),
            model=trainer.model.config._name_or_path or "model",
            framework="trl",
            correct=correct,
            over_at_exit=False,
            **settings,
        )
        announce_updates(trainer, self._engine.dtype)
        wrap(trainer, "train", self._train)
        wrap(trainer, "_generate_and_score_completions", self._generate_and_score)
        wrap(trainer, "_get_per_token_logps_and_entropies", self._score)
        wrap(trainer, "_calculate_rewards", self._reward)
        wrap(trainer, "_compute_loss", self._lose)
        wrap(trainer, "log", self._log)
        wrap(trainer.vllm_generation, "generate", self._generate)

    def _train(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.watcher.over_at_exit = False
        result = inner(*args, **kwargs)
        self.watcher.over_at_exit = True
        return result

    def _generate_and_score(self, inner: Callable[..., dict[str, Any]], inputs: Any) -> dict[str, Any]:
        training = self._trainer.model.training
        self._now = Generation() if training else None
        output = inner(inputs)
        now, self._now = self._now, None
        if now is not None:
            guarded(lambda: self._take(now, inputs, output))
        return output

    def _generate(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        answers = inner(*args, **kwargs)
        # A tool's result begins another turn, whose prompt is the whole conversation; the first turn's is the prompt.
        now = self._now
        if now is not None and now.prompts is None:
            now.handed = kwargs.get("images")
            guarded(lambda: now.answered(answers), "the engine's prompts are not compared")
        return answers

    def _score(self, inner: Callable[..., Any], model: Any, *args: Any, **kwargs: Any) -> Any:
        scored = inner(model, *args, **kwargs)
        now, waiting = self._now, self._waiting
        if now is not None and now.train is None and model is self._trainer.model:
            guarded(lambda: now.scored_by(scored), UNSCORED)
        elif waiting is not None and now is None:
            guarded(lambda: waiting.scored_by(scored), UNSCORED)
        return scored

    def _reward(self, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        each = inner(*args, **kwargs)
        if self._now is not None:
            self._now.rewards = each
        return each

    def _lose(self, inner: Callable[..., Any], model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Compute the loss, and take the trainer's logprobs from it where a step has none.

        They are of the same weights: TRL leaves them out of the step where all of the generation is learnt from in one
        optimizer step.
        """
        loss = inner(model, inputs, *args, **kwargs)
        if self._waiting is not None and ROWS in inputs:
            waiting = self._waiting
            guarded(lambda: self._complete(waiting, inputs))
        return loss

    def _log(self, inner: Callable[..., Any], logs: dict[str, float], *args: Any, **kwargs: Any) -> Any:
        training = self._trainer.model.training
        if training:
            guarded(lambda: logs.update(self.watcher.figures()))
        result = inner(logs, *args, **kwargs)
        if training and self._last >= 0:
            learnt = {**logs, "global_step": self._trainer.state.global_step}
            guarded(lambda: self.watcher.add_training(self._last, learnt))
        return result

    def _take(self, now: Generation, inputs: Any, output: dict[str, Any]) -> None:
        mask, tools = output["completion_mask"], output.get("tool_mask")
        rollout = output.get("sampling_per_token_logps")
        if rollout is None and now.logprobs is not None:
            rollout = padded(now.logprobs, mask)
        if rollout is None:
            raise ConfigError("the engine gave no logprobs (a rollout_func has to return them)")
        train: Any = output.get("old_per_token_logps")
        # RLOO returns sums of what the policy scored first. GRPO returns what the policy scored, or leaves it to the
        # loss: what was scored then is the reference's, which is the same model without its adapter.
        if train is None and "old_logps" in output:
            train = now.train
        if train is None and self._fused:
            raise ConfigError(
                "Liger's loss computes no logprobs of tokens: use_liger_kernel=False, or "
                "vllm_importance_sampling_correction=True"
            )
        trainer, asked = self._trainer, self._engine.asked
        images = output.get("num_images")
        now.values = {
            "rollout_logprobs": rollout,
            "train_logprobs": train,
            "mask": mask,
            "tool_mask": tools,
            "ids": output["completion_ids"],
            "prompt_ids": output["prompt_ids"],
            "prompt_mask": output["prompt_mask"],
            "rollout_prompt_ids": now.prompts if now.prompts and len(now.prompts) == len(mask) else None,
            "samples": sample_names(trainer, len(mask)),
            "kinds": "text" if images is None else ["image" if count else "text" for count in images],
            "rewards": self._rewards(now.rewards, len(mask)),
            "temperature": asked["temperature"],
            "logprobs_of": self._engine.logprobs_of,
            "rollout_dtype": self._found[0],
            "train_dtype": self._found[1],
            "filtered": "length" if trainer.mask_truncated_completions else None,
            "rollout_version": self._engine.version,
            "train_version": version_of(trainer),
            "prompt_text": [guarded(partial(prompt_text, row.get("prompt", "")), UNREAD) for row in inputs],
        }
        if images is not None:
            now.pictures = pictures_of(now.handed, inputs)
        now.figures = {"global_step": trainer.state.global_step, **self._engine.cuts}
        if self._correct:
            # A tool's tokens have no logprob of the engine's, which would enter the ratio of their sequence.
            learnt = mask if tools is None else mask * tools
            output["importance_sampling_ratio"] = self.watcher.weights(rollout, train, learnt)
        if train is None:
            output[ROWS] = mask.new_tensor(range(len(mask)))
            now.missing = len(mask)
            now.scored = now.values["train_logprobs"] = rollout.new_full(rollout.shape, float("nan")).float()
            self._waiting = now
        else:
            self._post(now)

    def _complete(self, waiting: Generation, inputs: dict[str, Any]) -> None:
        if waiting.train is None:
            raise ConfigError("the loss has not scored its tokens as it does in trl 1.16, which is known to work")
        # The policy may compute its logprobs in bfloat16.
        waiting.scored[inputs[ROWS]] = waiting.train.detach().to(waiting.scored.dtype)
        waiting.train = None
        waiting.missing -= len(inputs[ROWS])
        if waiting.missing <= 0:
            self._waiting = None
            self._post(waiting)

    def _post(self, done: Generation) -> None:
        assert done.values is not None
        step = self._trainer.state.global_step
        self._last = self.watcher.step(
            step=step,
            training=done.figures,
            pictures=done.pictures,
            picture_token=picture_token(self._trainer.model.config),
            **done.values,
        )

    def _rewards(self, each: Any, count: int) -> Any:
        """Return the rewards of this process's answers, from `each` [processes * B, functions], which has every
        function's rewards of all processes."""
        if each is None:
            return None
        first = self._trainer.accelerator.process_index * count
        return (each * self._trainer.reward_weights.to(each.device)).nansum(dim=1)[first : first + count]
