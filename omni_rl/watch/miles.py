"""Miles and slime: a function for `--custom-tis-function-path` that watches, around the correction they would do.

    --get-mismatch-metrics --custom-tis-function-path omni_rl.watch.miles.tis

and, with `--no-check-for-nan-in-loss-and-grad`,

    --custom-megatron-before-train-step-hook-path omni_rl.watch.miles.before_step

Source: Miles, `miles/backends/training_utils/loss_hub/losses.py`; slime, `slime/backends/megatron_utils/loss.py`: both
call the function for every micro-batch, on every rank that computes a loss, and reduce its metrics, one number a token,
as they reduce the loss. Both call the hook at the start of every step, on every rank (`train_one_step` of
`backends/megatron_utils/model.py`).
"""

import importlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from omni_rl.consistency.dtypes import Dtype
from omni_rl.errors import ConfigError
from omni_rl.watch.guard import guarded
from omni_rl.watch.micro_batches import AnswerTensors, MicroBatches, PostStep
from omni_rl.watch.miles_place import MegatronPlace
from omni_rl.watch.watcher import Watcher

if TYPE_CHECKING:
    import torch

WRAPS = "OMNI_RL_TIS_FUNCTION"
"""The variable that names the custom function that the run would have without us, by its import path."""
BUILT_IN = {
    "miles": "miles.backends.training_utils.loss_hub.corrections.vanilla_tis_function",
    "slime": "slime.backends.megatron_utils.loss.vanilla_tis_function",
}
Framework = Literal["miles", "slime"]
FIGURES = ("omni_rl/token_mult_prob_error", "omni_rl/gen_kl_error")
"""The metrics of every token that the function adds."""


def tis(
    args: Any,
    *,
    pg_loss: "torch.Tensor",
    train_log_probs: Sequence["torch.Tensor"] | None,
    rollout_log_probs: Sequence["torch.Tensor"] | None,
    loss_masks: Sequence["torch.Tensor"],
    **others: Any,
) -> tuple["torch.Tensor", Sequence["torch.Tensor"], dict[str, "torch.Tensor"]]:
    """Return the loss, the masks and the metrics of the function that it wraps, with `omni_rl/` figures beside them,
    and post the answers' logprobs to the coordinator that OMNI_RL_URL names, if it is set. Figures that cannot be
    computed are NaN.

    Wrapped is the function that OMNI_RL_TIS_FUNCTION names; else, with `--use-tis`, the framework's own; else nothing,
    and the loss stays as it is.

    Args:
        args: the run's arguments.
        pg_loss: [N], of the micro-batch's tokens on this rank, one answer after the other.
        train_log_probs, rollout_log_probs: a tensor an answer, of its tokens on this rank.
        loss_masks: a tensor an answer, of all its tokens.
        others: `total_lengths`, `response_lengths` and what else the framework's releases hand over.
    """
    wrapped = _wrapped(args)
    loss, masks, metrics = pg_loss, loss_masks, {}
    if wrapped is not None:
        loss, masks, metrics = wrapped(
            args,
            pg_loss=pg_loss,
            train_log_probs=train_log_probs,
            rollout_log_probs=rollout_log_probs,
            loss_masks=loss_masks,
            **others,
        )
    # The frameworks add metrics up over ranks and micro-batches by their position, so that the names must always be the
    # same ones: with and without a coordinator, and where something fails on one rank.
    figures = guarded(lambda: _figures(train_log_probs, rollout_log_probs))
    if train_log_probs is not None and rollout_log_probs is not None and os.environ.get("OMNI_RL_URL"):
        train, rollout = train_log_probs, rollout_log_probs
        guarded(lambda: _gather(args, train, rollout, loss_masks, others))
    return loss, masks, {**metrics, **(figures or dict.fromkeys(FIGURES, pg_loss.detach() * float("nan")))}


def before_step(*_: Any) -> None:
    """Tell apart the steps of a run that checks no gradients for NaN: one whose gradients are not finite has no step of
    the optimizer, and its answers would count as the next step's. Arguments are those of the framework's hook."""
    _gathers.next_step()


def framework() -> Framework:
    """Return which of the two frameworks this process runs."""
    return "miles" if "miles" in sys.modules else "slime"


_gathers = MicroBatches()


def _gather(
    args: Any, train: Sequence[Any], rollout: Sequence[Any], masks: Sequence[Any], others: dict[str, Any]
) -> None:
    place = MegatronPlace.of(others.get("parallel_state"))
    if place.copy:
        return
    if not _gathers.begun:
        _gathers.begin(_posts(args, place))
    for theirs, ours, mask in zip(rollout, train, place.local_masks(args, masks, others), strict=True):
        _gathers.add(AnswerTensors(theirs, ours, mask))


def _posts(args: Any, place: MegatronPlace) -> PostStep:
    dtype: Dtype = "bfloat16" if args.bf16 else "float16" if args.fp16 else "float32"
    name = framework()
    watcher = Watcher(
        run=os.environ.get("OMNI_RL_RUN") or name,
        framework=name,
        dtype=dtype,
        place=place.part,
        model=args.hf_checkpoint,
        over_at_exit=False,  # Ray keeps an actor's exception to itself, and no loss knows that training returned
    )
    # SGLang's logprobs are at the temperature; what the cuts leave out is not taken out of them.
    cut = args.rollout_top_p < 1.0 or args.rollout_top_k > 0

    def post(step: int, rollout: Any, train: Any, masks: Any) -> None:
        watcher.step(
            step=step,
            rollout_logprobs=rollout,
            train_logprobs=train,
            mask=masks,
            temperature=args.rollout_temperature,
            logprobs_of="unknown" if cut else "processed",
        )

    return post


def _wrapped(args: Any) -> Callable[..., Any] | None:
    path = os.environ.get(WRAPS) or (BUILT_IN[framework()] if args.use_tis else None)
    if path is None:
        return None
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def _figures(
    train: Sequence["torch.Tensor"] | None, rollout: Sequence["torch.Tensor"] | None
) -> dict[str, "torch.Tensor"]:
    """Return figures of every token, [N]: the framework reduces them with its own masks."""
    import torch

    if train is None or rollout is None:
        raise ConfigError("the run does not compute both logprobs: add --get-mismatch-metrics")
    d = torch.cat(list(train)).detach() - torch.cat(list(rollout))
    return dict(zip(FIGURES, (d.abs().exp(), d.expm1() - d), strict=True))
