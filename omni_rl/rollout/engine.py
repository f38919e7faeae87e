"""Drives vLLM's engine in this process step by step: sampling, rescoring, and weight updates between two steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from omni_rl.consistency.evidence import Audit
from omni_rl.errors import EngineDeadError, LayoutError, OmniRLError, PromptError, SamplingError, SlabError
from omni_rl.media.engine_input import to_engine_input
from omni_rl.media.types import RenderedPrompt
from omni_rl.models.families import family_of
from omni_rl.rollout import recorder, scheduling, seeds, startup
from omni_rl.rollout.inflight import Request
from omni_rl.rollout.requests import check_lengths, check_sampling, rescoring_params, sampling_params
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings
from omni_rl.rollout.worker import WeightsExtension
from omni_rl.sync.replica import InFlight, Proof, SlabRef
from omni_rl.sync.version import WeightVersion

T = TypeVar("T")
# A request without its name, the ids to run, vLLM's parameters, and how many tokens may follow.
_Arguments = tuple[Request, NDArray[np.int64], SamplingParams, int]


class RolloutEngine:
    """One vLLM engine. Once a step or an update threw, the engine is dead: every later call raises `EngineDeadError`.

    Every token is sampled with the engine's weights of that moment; an update may come between two steps.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start vLLM with the checkpoint's weights. Raises what `startup.start` and `ServedWeights` raise,
        `CheckpointError` among it if the checkpoint cannot be served."""
        self.settings = settings
        self.family = family_of(settings.model)
        self.llm_engine = startup.start(settings)
        # `checkpoint` is the digest of the weights that the engine was loaded with.
        self.checkpoint, self.parameters, self._elements = self._ask_worker(
            WeightsExtension.serve_weights, settings.model, settings.dtype, settings.batch_invariant
        )
        runner = startup.model_runner(self.llm_engine)
        self.model = runner.model
        seeds.spare_unfinished_prompts(runner)
        self._features = startup.feature_counts(self.llm_engine, settings)
        self._recorder = recorder.attach(runner, self.model, settings.record_experts)
        self._numbers = count()
        self._running: dict[str, Request] = {}
        self._dead: str | None = None
        self.serve_as(str(WeightVersion(settings.run, 1, 0, self.checkpoint)))

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engine samples with."""
        self._refuse_if_dead()
        return str(self.llm_engine.get_weight_version())

    @property
    def sampler(self) -> torch.nn.Module:
        """The sampler of vLLM, a module that is called with the logits of every row of a step."""
        sampler: torch.nn.Module = self._recorder.runner.sampler
        return sampler

    @property
    def sampled_rows(self) -> list[tuple[str, int]]:
        """The request's name, and how many tokens were sampled for it before, for each row of the logits of the step
        that is under way."""
        known = {request.internal_id: (name, len(request.ids)) for name, request in self._running.items()}
        return [known[internal] for internal in self._recorder.runner.input_batch.req_ids]

    @property
    def busy(self) -> bool:
        """Whether the engine has requests under way."""
        return bool(self._running)

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        sampling: SamplingSettings,
        progress: Callable[[int], None] | None = None,
        places: Sequence[int] | None = None,
    ) -> list[Rollout]:
        """Sample one answer for each prompt and return the answers in the order of the prompts.

        The request at place i of its batch is seeded with `sampling.seed + i`. `places` are the places of the prompts
        in a batch that is dealt over several engines; without them, the prompts are the whole batch. `progress` is
        called after each step with the number of tokens sampled so far. Raises `SamplingError` or `PromptError` before
        anything starts.
        """
        self._refuse_if_busy()
        return self._finish(self.submit(prompts, sampling, places), progress)

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Score answers by prefill at temperature 1 and return the scores in the order of the answers.

        The answers are scored together or, with `alone`, one at a time with cold caches. The media are the prompt's own
        tensors, at the prompt's own spans.
        """
        self._refuse_if_busy()
        if alone:
            return [self.rescore_alone(rollout) for rollout in rollouts]
        return self._finish(self.submit_rescoring(rollouts))

    def submit(
        self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings, places: Sequence[int] | None = None
    ) -> list[str]:
        """Queue one request per prompt and return the requests' names; `step` then works on them. `places` are those of
        `sample`."""
        self._refuse_if_dead()
        check_sampling(sampling)
        self._features.check(prompts)
        check_lengths(prompts, sampling.max_tokens, self.settings.max_model_len)
        return self._add_all(
            (
                Request(prompt, temperature=sampling.temperature),
                prompt.ids,
                sampling_params(sampling, place),
                sampling.max_tokens,
            )
            for place, prompt in zip(range(len(prompts)) if places is None else places, prompts, strict=True)
        )

    def submit_rescoring(self, rollouts: Sequence[Rollout]) -> list[str]:
        """Queue one request per answer and return the requests' names; `step` finishes each with a `Rescore`."""
        self._refuse_if_dead()
        self._features.check([rollout.prompt for rollout in rollouts])
        for rollout in rollouts:
            check_lengths([rollout.prompt], len(rollout.ids), self.settings.max_model_len)
        return self._add_all(_rescoring(rollout) for rollout in rollouts)

    def step(self) -> dict[str, Rollout | Rescore]:
        """Take one step of everything under way, and return the answers that it finished, by the requests' names."""
        finished: dict[str, Rollout | Rescore] = {}
        version = self.weight_version
        for output in self._step():
            request = self._running[output.request_id]
            if request.rescored is None:
                request.add(output.outputs[0], version)
            if output.finished:
                del self._running[output.request_id]
                finished[output.request_id] = self._answer(request, output)
        if finished:
            self._forget_evicted()
        return finished

    def rescore_alone(self, rollout: Rollout) -> Rescore:
        """Score one answer as if the engine had never computed anything else; requests under way wait and are not
        disturbed.

        Raises `SamplingError` if the requests under way leave no room for the answer in the cache.
        """
        self._refuse_if_dead()
        with self._fatal("scoring alone"):
            self.forget_media()
        result: Rescore
        (result,) = self.apart(lambda: self.submit_rescoring([rollout]))
        return result

    def apart(self, submit: Callable[[], Sequence[str]]) -> list[Any]:
        """Run the requests that `submit` queues as a batch of their own, and return the answers in the order of the
        names that it returns; requests under way wait and are not disturbed.

        Raises `SamplingError` if the requests under way leave no room for the batch in the cache.
        """
        self._refuse_if_dead()
        with self._fatal("work apart", OmniRLError), scheduling.alone(self.llm_engine):
            names = submit()
            answers: dict[str, Any] = {}
            while waiting := [name for name in names if name not in answers]:
                before = [self._computed(name) for name in waiting]
                answers |= self.step()
                if before == [self._computed(name) for name in waiting if name not in answers]:
                    self._discard([name for name in waiting if name not in answers])
                    raise SamplingError(
                        f"no room in the cache beside {len(self._running)} requests under way; let them finish first, "
                        "or raise kv_cache_memory_bytes"
                    )
        return [answers[name] for name in names]

    def audit(self, replica: str, slab: SlabRef, before: SlabRef | None) -> Audit:
        """Compare every byte that the engine holds with the slab, changing nothing; see `ServedWeights.wrong`."""
        wrong = self._ask_worker(WeightsExtension.wrong_tensors, slab, before)
        return Audit(replica, self.weight_version, self._elements, wrong)

    def forget_media(self) -> None:
        """Drop the media features that the encoders computed."""
        self.llm_engine.reset_encoder_cache()

    def score(self, probe: Sequence[Rollout]) -> list[Rescore]:
        """Score the answers of the canonical probe: each alone, in the order given, with cold caches."""
        return [self.rescore_alone(rollout) for rollout in probe]

    def apply(self, slab: SlabRef, mode: InFlight = "recompute", *, pushed: bool = False) -> None:
        """Write a slab's weights, unless a transport writes them (`pushed`); from the next step on the engine computes
        with them.

        Whatever was computed with other weights is dropped. For requests under way, the mode `keep` leaves the state as
        it is, and any other has it computed anew. `verify` and `serve_as` have to follow before anything is sampled.

        Raises:
            SlabError, LayoutError: the slab is not a sealed set of this engine's weights in that version; nothing is
                written.
        """
        self._refuse_if_dead()
        with self._fatal(f"writing {slab.version}", LayoutError, SlabError):
            self._ask_worker(WeightsExtension.write_slab, slab, pushed)
        with self._fatal(f"the caches' reset after writing {slab.version}"):
            keep = mode == "keep"
            if keep:
                self._note_kept_state()
                self._restart_rescoring()
            self.llm_engine.reset_mm_cache()
            self.llm_engine.reset_encoder_cache()
            self.llm_engine.reset_prefix_cache(reset_running_requests=not keep)
            if not keep:
                for request in self._running.values():
                    request.state_of.clear()

    def transfer(self, call: str, arguments: Mapping[str, Any]) -> None:
        """Make one of the calls by which vLLM's own weight transfer reaches a worker, between `apply` and `verify`."""
        self._refuse_if_dead()
        with self._fatal(f"{call} of vLLM's weight transfer"):
            self.llm_engine.collective_rpc(call, kwargs=dict(arguments))

    def verify(self, slab: SlabRef) -> Proof:
        """Compare every byte that the engine holds with a slab; see `ServedWeights.prove`."""
        self._refuse_if_dead()
        return self._ask_worker(WeightsExtension.prove_slab, slab)

    def serve_as(self, version: str) -> None:
        """Set the version of the weights: tokens sampled from now on are of `version`."""
        self._refuse_if_dead()
        self.llm_engine.set_weight_version(version)

    def close(self) -> None:
        """Shut vLLM down. Neither this engine nor any other of the process can be used afterwards: they share vLLM's
        process groups."""
        if self._dead is None:
            self._dead = "it was closed"
        self.llm_engine.engine_core.shutdown()

    def _finish(self, names: Sequence[str], progress: Callable[[int], None] | None = None) -> list[Any]:
        """Take steps until nothing is under way, and return the answers in the order of the names."""
        finished: dict[str, Any] = {}
        while self._running:
            finished |= self.step()
            if progress is not None:
                done = sum(len(answer.ids) for answer in finished.values())
                progress(done + sum(len(request.ids) for request in self._running.values()))
        return [finished[name] for name in names]

    def _answer(self, request: Request, output: Any) -> Rollout | Rescore:
        if request.rescored is not None:
            positions = len(request.prompt.ids) + len(request.rescored.ids) - 1
            return request.rescore(output, self._recorder.close(request.internal_id, positions))
        experts = self._recorder.close(request.internal_id, len(request.prompt.ids) + len(request.ids) - 1)
        digests = (self._recorder.digests(item.content_hash) for item in request.prompt.items)
        kept = (self._recorder.kept(item.content_hash) for item in request.prompt.items)
        return request.rollout(output.outputs[0], digests, experts, kept)

    def _ask_worker(self, method: Callable[..., T], *arguments: Any) -> T:
        """Call a method of the worker's extension, in the process that holds the model, and return the result."""
        (answer,) = self.llm_engine.collective_rpc(method.__name__, args=arguments)
        found: T = answer
        return found

    def _computed(self, name: str) -> int:
        return scheduling.computed_tokens(self.llm_engine, self._running[name].internal_id)

    def _note_kept_state(self) -> None:
        for name, request in self._running.items():
            if self._computed(name):
                request.state_of.add(self.weight_version)

    def _restart_rescoring(self) -> None:
        """Begin half-done rescoring again, because all scores of an answer have to be of one version."""
        for name, request in list(self._running.items()):
            if request.rescored is not None:
                self._discard([name])
                self._add(name, *_rescoring(request.rescored))

    def _add_all(self, requests: Iterable[_Arguments]) -> list[str]:
        """Queue all requests, or none if the engine refuses one."""
        names: list[str] = []
        try:
            for request in requests:
                name = str(next(self._numbers))
                self._add(name, *request)
                names.append(name)
        except BaseException:
            self._discard(names)
            raise
        return names

    def _add(self, name: str, request: Request, ids: NDArray[np.int64], params: SamplingParams, answer: int) -> None:
        try:
            request.internal_id = self.llm_engine.add_request(name, to_engine_input(request.prompt, ids), params)
        except VLLMValidationError as error:
            raise PromptError(f"prompt {request.prompt.id!r}: the engine refused it: {error}") from error
        self._recorder.open(request.internal_id, len(ids) + answer)
        self._running[name] = request

    def _discard(self, names: Sequence[str]) -> None:
        self.llm_engine.abort_request(names)
        for name in names:
            self._recorder.discard(self._running.pop(name).internal_id)

    def _forget_evicted(self) -> None:
        running = (request.prompt for request in self._running.values())
        self._recorder.forget_evicted(item.content_hash for prompt in running for item in prompt.items)

    def _step(self) -> list[Any]:
        self._refuse_if_dead()
        with self._fatal("a step"):
            return list(self.llm_engine.step())

    @contextmanager
    def _fatal(self, what: str, *harmless: type[Exception]) -> Iterator[None]:
        """Mark the engine as dead if anything but a `harmless` error leaves this block: its state is then unknown, and
        vLLM can spin for ever on its next call."""
        try:
            yield
        except harmless:
            raise
        except BaseException as error:
            self._dead = f"{what} ended in {type(error).__name__}: {error}"
            if isinstance(error, Exception):
                raise EngineDeadError(f"{self._dead}; replace the engine") from error
            raise

    def _refuse_if_dead(self) -> None:
        if self._dead is not None:
            raise EngineDeadError(f"this engine is dead: {self._dead}; replace it")

    def _refuse_if_busy(self) -> None:
        self._refuse_if_dead()
        if self._running:
            raise SamplingError(f"{len(self._running)} requests are under way; finish them with step() first")


def _rescoring(rollout: Rollout) -> _Arguments:
    ids = np.concatenate([rollout.prompt.ids, rollout.ids])
    return Request(rollout.prompt, rescored=rollout), ids, rescoring_params(), 0
