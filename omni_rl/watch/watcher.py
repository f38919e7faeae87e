"""Watches a run: it takes steps, gives verdicts back, and never slows or stops the run unless it was asked to."""

import atexit
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Unpack

from omni_rl.api.runs import CorrectionBody, RunBody
from omni_rl.api.steps import Verdict
from omni_rl.client.posting import Pace
from omni_rl.consistency.corrections import Correction, Method
from omni_rl.consistency.dtypes import Dtype
from omni_rl.errors import RecordError, RunPausedError
from omni_rl.watch.figures import for_coordinator, for_trainer
from omni_rl.watch.place import AttemptNumber, PostingRank, run_name
from omni_rl.watch.poster import OTHERS, Counts, RankPart, StepPoster
from omni_rl.watch.table import StepValues, step_rows
from omni_rl.watch.values import Numbers, size_of, snapshot
from omni_rl.watch.weights import Weights, token_weights

log = logging.getLogger("omni_rl.watch")
OnVerdict = Callable[[Verdict], None]


class Watcher:
    """Posts a run's steps from a background thread. Everything that is not given comes from the environment
    (OMNI_RL_URL, OMNI_RL_TOKEN or OMNI_RL_TOKEN_FILE, OMNI_RL_RUN, OMNI_RL_ATTEMPT) or from the process group.

    A new watcher is a new attempt at its run. On several ranks, each has a watcher and posts its own answers; only the
    first rank gets verdicts. What goes wrong between the watcher and the coordinator is logged once, and never raised.
    """

    def __init__(
        self,
        *,
        run: str | None = None,
        model: str = "model",
        dtype: Dtype = "bfloat16",
        train_dtype: Dtype | None = None,
        framework: str = "own",
        correct: Method = "none",
        kinds: tuple[str, ...] = (),
        lag: int | None = None,
        url: str | None = None,
        token: str | None = None,
        attempt: int | None = None,
        place: PostingRank | None = None,
        strict: bool = False,
        timeout: float = 10.0,
        on_verdict: OnVerdict | None = None,
        queue: int = 64,
        pictures: bool = True,
        pace: Pace | None = None,
        others: float = OTHERS,
        over_at_exit: bool = True,
    ) -> None:
        """Begin a new attempt at the run.

        Args:
            run, url, token: The run's name, the coordinator's address, and a token for it; None: from the environment.
            model, framework: What is trained, and by what program, as names for people.
            dtype, train_dtype: The dtypes that the engine and the trainer compute in; `train_dtype` None: as `dtype`.
            correct: How `weights` weighs tokens ("tis", "mis", "icepop" and so on: `omni_rl.consistency.corrections`).
            kinds: Kinds of prompt of the run's own, such as "math", that its steps may name beside text, image and so
                on.
            lag: How many weight versions the engine may be behind the trainer; None: the run does not say.
            attempt, place: The attempt's number and this process's rank; None: they are found by themselves.
            strict: Wait for each step's verdict, at most `timeout` seconds, and raise if it is `pause`;
                OMNI_RL_STRICT=1 asks for it too.
            timeout: Seconds that the end of the process waits for steps still to be posted; it does not wait where the
                address, the token or a setting is wrong.
            on_verdict: Called with every verdict, on the first rank, in the background thread.
            queue: How many steps may wait; more are dropped, whole, the oldest first.
            pictures: Whether the pictures of prompts are uploaded, where steps come with them; OMNI_RL_PICTURES=0
                turns that off too.
            pace: When attempts to reach the coordinator are made.
            others: Seconds that the first rank waits for the other ranks' parts of a step.
            over_at_exit: Whether the run is over when the process ends without an uncaught exception. An exit hook of
                Python cannot see the exit code. So for a framework that catches exceptions and exits with a code, the
                caller passes False, and sets the attribute to True once training has returned.

        Raises:
            ConfigError: The environment contradicts itself.
        """
        body = RunBody(
            run=run_name(run),
            model=model,
            dtype=dtype,
            train_dtype=train_dtype,
            framework=framework,
            kinds=kinds,
            lag=lag,
            correction=CorrectionBody(method=correct),
        )
        self._correction = Correction(correct)
        self.run = body.run
        self.place = place or PostingRank.found()
        # Some frameworks have no place for an argument.
        self._strict = strict or os.environ.get("OMNI_RL_STRICT") == "1"
        self._timeout = timeout
        self.over_at_exit = over_at_exit
        self._told = on_verdict
        self._pictures = pictures and os.environ.get("OMNI_RL_PICTURES") != "0"
        self._verdicts: dict[int, Verdict] = {}
        self._last: Verdict | None = None
        self._state: tuple[str, str | None] = ("ok", None)
        self._lock = threading.Lock()
        self._next = 0
        self._pid = os.getpid()
        self._poster = StepPoster(
            url,
            token,
            body,
            self.place,
            AttemptNumber(body.run, self.place, attempt),
            self._take,
            steps=queue,
            pace=pace,
            others=others,
        )
        atexit.register(self._at_exit)

    @property
    def last(self) -> Verdict | None:
        """The latest verdict that has come back; None before the first, and on all ranks but the first."""
        with self._lock:
            return self._last

    @property
    def counts(self) -> Counts:
        """The number of steps so far, by what became of them."""
        return self._poster.counts

    @property
    def obstacle(self) -> str | None:
        """Why no step can arrive: an address, a token or a setting of this process is wrong. None where nothing is
        known to be."""
        return self._poster.obstacle

    def figures(self) -> dict[str, float]:
        """Return the latest verdict as figures to log beside the framework's own, by names that begin with `omni_rl/`;
        before the first verdict there are none. `omni_rl/dropped` counts the steps that were dropped or refused."""
        last, counts = self.last, self.counts
        found = {} if last is None else for_trainer(last)
        if lost := counts.dropped + counts.refused:
            found["omni_rl/dropped"] = float(lost)
        return found

    def step(
        self,
        *,
        step: int | None = None,
        training: Mapping[str, object] | None = None,
        pictures: Sequence[Sequence[Any] | None] | None = None,
        picture_token: int | None = None,
        **values: Unpack[StepValues],
    ) -> int:
        """Post one step of this rank, and return its number at once.

        Args:
            step: The step's number, the same on every rank; None: the next one. Numbers only rise: one that is not
                above the last is replaced by the next.
            training: The trainer's own figures of the step; values that are not numbers, such as texts, are left out.
            pictures: For each answer the PIL images of its prompt, in the prompt's order, or None if it has none. The
                images must not be written to any more. Answers may share an image object.
            picture_token: The id that stands in `prompt_ids` where a prompt has its pictures.
            values: What is known of the answers (`omni_rl.watch.table.StepValues`), copied before this returns.

        Raises:
            RunPausedError: The watcher is `strict`, and the coordinator's verdict is `pause`.
        """
        try:
            held: StepValues = snapshot(values)
            size = size_of(held)
        except Exception as error:
            # The boundary to values of somebody's run: what cannot be copied (a tensor on meta, say) must not end it.
            return self.step_later(partial(_refuse, error), size=0, step=step, training=training)
        return self.step_later(
            lambda: held, size=size, step=step, training=training, pictures=pictures, picture_token=picture_token
        )

    def step_later(
        self,
        values: Callable[[], StepValues],
        *,
        size: int,
        step: int | None = None,
        training: Mapping[str, object] | None = None,
        pictures: Sequence[Sequence[Any] | None] | None = None,
        picture_token: int | None = None,
    ) -> int:
        """Do what `step` does, with values that the background thread gets by calling `values`. What that call reads,
        about `size` bytes, must not change until then."""
        with self._lock:
            number = max(self._next, step or 0)
            self._next = number + 1
        taken = None
        if pictures is not None and self._pictures:
            try:
                taken = self._poster.take(pictures, picture_token)
            except Exception as error:  # pictures are values of somebody's run too: they must not end it
                values = partial(_refuse, error)
        self._poster.put(RankPart(number, lambda: step_rows(values()), size, taken, for_coordinator(training or {})))
        if self._strict:
            self._wait(number)
        return number

    def weights(self, rollout_logprobs: Numbers, train_logprobs: Numbers, mask: Numbers | None = None) -> Weights:
        """Return the weight of each token in the policy gradient, by the rule that `correct` names: a float32 array, or
        a tensor where `train_logprobs` is one, of its shape and on its device; 0 where the mask is 0. The weights are
        computed here: nothing waits for the coordinator."""
        return token_weights(rollout_logprobs, train_logprobs, mask, self._correction)

    def add_training(self, step: int, figures: Mapping[str, object]) -> None:
        """Post what the trainer knows of a step once it has learnt from it; only the first rank's figures are
        posted."""
        if self.place.rank == 0 and (known := for_coordinator(figures)):
            self._poster.add_training(step, known)

    def wait(self, step: int, seconds: float) -> Verdict | None:
        """Wait for one step's verdict, for `seconds` at most; return None if it has not come."""
        self._poster.flush(seconds, lambda: step in self._verdicts)
        with self._lock:
            return self._verdicts.get(step)

    def flush(self, seconds: float = 10.0) -> bool:
        """Wait until every step has arrived, for `seconds` at most; return whether all have."""
        return self._poster.flush(seconds)

    def close(self, seconds: float | None = None, *, over: bool = True) -> None:
        """Wait for steps that still have to arrive, for `seconds` at most (None: the watcher's `timeout`), and end. The
        first rank says that the run is over, so that nobody waits for its next step, unless `over` is false. A watcher
        that has ended does nothing."""
        atexit.unregister(self._at_exit)
        # A fork has the queue, and no thread that would empty it.
        if os.getpid() != self._pid or self._poster.ended:
            return
        if not self._poster.close(self._timeout if seconds is None else seconds, over=over) and self.counts.waiting:
            log.warning("omni-rl: the run ends with %d steps that did not arrive", self.counts.waiting)

    def _at_exit(self) -> None:
        # The interpreter keeps the exception that it printed: a run that died is not over, and its silence is reported.
        self.close(over=self.over_at_exit and getattr(sys, "last_value", None) is None)

    def _wait(self, step: int) -> None:
        if self.place.rank:
            return
        verdict = self.wait(step, self._timeout)
        if verdict is not None and verdict.severity == "pause":
            raise RunPausedError(f"step {step} of {self.run}: {_words(verdict)}")

    def _log(self, verdict: Verdict) -> None:
        """Log a step that has another severity than those before it, or another cause."""
        severity, cause = self._state
        if verdict.severity != severity or verdict.cause not in (None, cause):
            log.warning("omni-rl: step %d is %s: %s", verdict.step, verdict.severity, _words(verdict))
        self._state = verdict.severity, verdict.cause or cause

    def _take(self, verdict: Verdict) -> None:
        with self._lock:
            self._last = verdict
            self._verdicts[verdict.step] = verdict
            for old in list(self._verdicts)[:-64]:
                del self._verdicts[old]
        self._log(verdict)
        if self._told is not None:
            try:
                self._told(verdict)
            except BaseException:
                # A caller's own code in our thread: what it raises must not end the posting, nor may sys.exit().
                log.exception("omni-rl: on_verdict failed at step %d", verdict.step)


def _refuse(error: Exception) -> StepValues:
    raise RecordError(f"its values cannot be taken: {type(error).__name__}: {error}")


def _words(verdict: Verdict) -> str:
    return "; ".join(filter(None, (verdict.cause, verdict.sentence or verdict.reason)))
