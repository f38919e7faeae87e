"""prime-rl: a loss that watches, around the loss that the configuration would name without it.

    [trainer.loss]
    type = "custom"
    import_path = "omni_rl.watch.prime_rl.loss"

Source: prime-rl 0.8.0, `prime_rl/trainer/rl/loss.py`: the trainer calls a custom loss with the `LossInputs` of one
sequence, on every rank, and has its metrics averaged over sequences.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from omni_rl.watch.guard import guarded
from omni_rl.watch.micro_batches import AnswerTensors, MicroBatches, PostStep
from omni_rl.watch.place import PostingRank
from omni_rl.watch.watcher import Watcher

if TYPE_CHECKING:
    import torch

Loss = Callable[[Any], Any]


def loss(inputs: Any, *, wraps: str = "default", context_parallel: int = 1, **kwargs: Any) -> Any:
    """Return what the wrapped loss returns, with `omni_rl/` figures among its metrics, and post the sequence's logprobs
    to the coordinator that OMNI_RL_URL names. Without OMNI_RL_URL this is the wrapped loss and nothing more.

    Args:
        inputs: prime-rl's `LossInputs` of one sequence.
        wraps: A type of prime-rl's own (`default`, `ipo`), or the import path of a custom loss.
        context_parallel: As `trainer.model.cp`: so many neighbouring ranks have the same sequences, and one posts them.
        kwargs: The wrapped loss's own configuration.
    """
    key = repr((wraps, sorted(kwargs.items())))
    if key not in _losses:
        _losses[key] = _Watched(_wrapped(wraps, kwargs), context_parallel)
    return _losses[key](inputs)


@dataclass
class _Watched:
    inner: Loss
    context_parallel: int

    def __call__(self, inputs: Any) -> Any:
        outputs = self.inner(inputs)
        if not os.environ.get("OMNI_RL_URL"):
            return outputs
        found = guarded(lambda: self._watch(inputs))
        return replace(outputs, metrics={**outputs.metrics, **(found or {})})

    def _watch(self, inputs: Any) -> dict[str, "torch.Tensor"]:
        if not _gathers.begun:
            _gathers.begin(_posts(PostingRank.found(), self.context_parallel))
        rollout, train, mask = inputs.inference_logprobs, inputs.trainer_logprobs, inputs.loss_mask
        _gathers.add(AnswerTensors(rollout, train, mask))
        return _figures((train.detach() - rollout)[mask])


_losses: dict[str, _Watched] = {}
# prime-rl loads its loss before it trains, and a rank calls it once it has a sequence, which may be steps later.
_gathers = MicroBatches()


def _wrapped(wraps: str, kwargs: Mapping[str, Any]) -> Loss:
    """Return the loss that prime-rl itself would make of a configuration."""
    from prime_rl.configs.trainer import LossConfig
    from prime_rl.trainer.rl.loss import setup_rl_loss_fn
    from pydantic import TypeAdapter

    custom = {"type": "custom", "import_path": wraps, "kwargs": dict(kwargs)}
    config = custom if "." in wraps else {"type": wraps, **kwargs}
    made: Loss = setup_rl_loss_fn(TypeAdapter(LossConfig).validate_python(config))
    return made


def _posts(place: PostingRank, context_parallel: int) -> PostStep:
    """Return what posts a step's sequences; it does nothing on a rank whose sequences its neighbour posts."""
    part, copy = divmod(place.rank, context_parallel)
    if copy:
        return lambda step, rollout, train, masks: None
    watcher = Watcher(
        run=os.environ.get("OMNI_RL_RUN") or "prime-rl",
        framework="prime-rl",
        place=PostingRank(part, place.world // context_parallel),
        over_at_exit=False,  # prime-rl turns an exception into an exit code, and no loss knows that training returned
    )

    def post(step: int, rollout: Any, train: Any, masks: Any) -> None:
        # The sequences hold their prompts too, which the mask leaves out.
        watcher.step(step=step, rollout_logprobs=rollout, train_logprobs=train, mask=masks)

    return post


def _figures(d: "torch.Tensor") -> dict[str, "torch.Tensor"]:
    """Return a sequence's figures, scalars, by d of its counted tokens; none where no token counts."""
    if not d.numel():
        return {}
    return {
        "omni_rl/token_mult_prob_error": d.abs().exp().mean(),
        "omni_rl/gen_kl_error": (d.expm1() - d).mean(),
    }
