"""Watches a verl run whose own code stays as it is: verl loads `omni_rl.verl_plugin`, which calls `watch`.

Source: verl 0.9.1, which has two trainers. Where `actor_rollout_ref.rollout.calculate_log_probs` is set, each hands a
batch with the engine's and the trainer's logprobs to `verl.utils.debug.metrics.calculate_debug_metrics`, on the driver,
once in a step. Each makes a `verl.utils.tracking.Tracking` with the whole configuration when it begins, and calls its
`log` when a step has ended.
"""

import logging
import os
import sys
from collections.abc import Mapping
from functools import wraps
from typing import Any

from omni_rl.watch import verl_correct
from omni_rl.watch.guard import guarded
from omni_rl.watch.place import PostingRank
from omni_rl.watch.values import size_of, unwritten
from omni_rl.watch.verl_batch import Rows, pictures_of, step_values
from omni_rl.watch.verl_config import VerlRun
from omni_rl.watch.watcher import Watcher

log = logging.getLogger("omni_rl.watch")
V1_TRAINER = "verl.trainer.ppo.v1.trainer_base"
TRAINERS = {V1_TRAINER: "PPOTrainer", "verl.trainer.ppo.ray_trainer": "RayPPOTrainer"}
"""verl's trainers by their modules: the V1 trainer and the older one."""
OF_SPEED = ("timing_", "perf/", "global_seqlen/")
"""The prefixes of names of figures that say nothing of what is learnt."""


class VerlWatch:
    """Watches verl in one process. Every process of a run that imports verl has one of these, but only the driver sees
    batches, so the `Watcher` is made at the first batch."""

    def __init__(self) -> None:
        self.watcher: Watcher | None = None
        self._run: VerlRun | None = None
        self._step: int | None = None
        self._rows: Rows | None = None
        self._final = False
        self._method = verl_correct.asked()
        self._posted: int | None = None
        """The step whose batch was seen and whose figures were not logged yet."""

    def begin(self, config: Mapping[str, Any] | None) -> None:
        """Take the configuration of the run that begins, and wrap its trainer. `config` is None where verl passed
        none."""
        self._run = VerlRun.of(config) if config else None
        self.watcher = None
        if self._run is not None and self._run.obstacle:
            log.warning("omni-rl: nothing is compared: %s", self._run.obstacle)
        for module, name in TRAINERS.items():
            # A trainer makes its `Tracking` itself, so the module of the trainer that runs is loaded by now.
            if (trainer := getattr(sys.modules.get(module), name, None)) is not None:
                _wrap_trainer(trainer, self)
        if self._method is not None:
            verl_correct.install((verl_correct.HELPER, V1_TRAINER), self._method)

    def scores(self, step: int, rows: Rows | None, *, final: bool = False) -> None:
        """Take what a trainer knows of the batch that it is about to score: the number of its `step`, and its `rows`,
        which only the V1 trainer has. `final`: the batch is of the run's last step."""
        self._step, self._rows, self._final = step, rows, final

    def scored(self, data: Any) -> None:
        """Post a batch, a `DataProto`, that has the engine's and the trainer's logprobs.

        The tensors are not copied, because neither trainer writes to them any more: the V1 trainer made them for this
        call alone, and the older one replaces them with new ones.
        """
        step, rows = self._step, self._rows
        values = step_values(data, self._run, step, rows)
        self._posted = self._watching().step_later(
            unwritten(values), size=size_of(values), step=step, pictures=pictures_of(data)
        )

    def logged(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return verl's metrics of a step with the latest verdict beside them, and post the metrics to the step.

        If the step's own verdict has not come back yet, that of an earlier step is given; `omni_rl/step` says which.
        """
        if self._posted is None or self.watcher is None:
            return dict(metrics)  # these are the metrics of a validation, or of a run in which nothing is compared
        # verl has hundreds of figures, and the coordinator takes the first few dozen.
        learnt = {name: value for name, value in metrics.items() if not name.startswith(OF_SPEED)}
        self.watcher.add_training(self._posted, learnt)
        self.watcher.over_at_exit = self._final
        self._posted = None
        return {**metrics, **self.watcher.figures()}

    def _watching(self) -> Watcher:
        if self.watcher is None:
            run = self._run
            self.watcher = Watcher(
                run=os.environ.get("OMNI_RL_RUN") or (run.name if run is not None else "verl"),
                model=run.model if run is not None else "model",
                dtype=run.dtype if run is not None else "bfloat16",
                train_dtype=run.train_dtype if run is not None else None,
                framework="verl",
                correct=self._method or "none",
                # The driver is the only process that posts, whatever a launcher of Ray's nodes says of ranks.
                place=PostingRank(0, 1),
                # Ray keeps an exception of the task that trains to itself; the run's last step is known, once learnt.
                over_at_exit=False,
            )
        return self.watcher


def watch(eyes: VerlWatch | None = None) -> None:
    """Wrap the functions of verl that every run calls, so that `eyes` (None: a new `VerlWatch`) sees the calls.

    verl's trainers import the functions by name. They do so after verl has loaded its plug-ins, so they get the wrapped
    ones.

    Raises:
        ImportError, AttributeError: This verl has no such functions.
    """
    from verl.utils import tracking
    from verl.utils.debug import metrics

    seen = eyes or VerlWatch()
    calculate, begin, end = metrics.calculate_debug_metrics, tracking.Tracking.__init__, tracking.Tracking.log

    @wraps(calculate)
    def calculate_debug_metrics(data: Any) -> Any:
        found = calculate(data)
        guarded(lambda: seen.scored(data))
        return found

    @wraps(begin)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        begin(self, *args, **kwargs)
        config = kwargs.get("config", args[3] if len(args) > 3 else None)
        guarded(lambda: seen.begin(config))

    @wraps(end)
    def log_metrics(self: Any, data: Any, step: Any, *args: Any, **kwargs: Any) -> None:
        end(self, guarded(lambda: seen.logged(data)) or data, step, *args, **kwargs)

    metrics.calculate_debug_metrics = calculate_debug_metrics
    tracking.Tracking.__init__, tracking.Tracking.log = __init__, log_metrics


def _wrap_trainer(trainer: Any, seen: VerlWatch) -> None:
    """Wrap a trainer class to learn the number of each step and, for the V1 trainer, the batch's rows; the older
    trainer's batches hold what `Rows` has."""
    compute = trainer._compute_old_log_prob
    if hasattr(compute, "omni_rl"):
        return  # wrapped by the run before, in this process

    @wraps(compute)
    def _compute_old_log_prob(self: Any, batch: Any, *args: Any, **kwargs: Any) -> Any:
        rows = Rows(batch.keys, batch.tags) if hasattr(batch, "tags") else None
        guarded(lambda: seen.scores(self.global_steps, rows, final=self.global_steps >= self.total_training_steps))
        return compute(self, batch, *args, **kwargs)

    _compute_old_log_prob.omni_rl = True  # type: ignore[attr-defined]
    trainer._compute_old_log_prob = _compute_old_log_prob
