"""vLLM's engine in this process, driven step by step: sampling, rescoring, weight updates between two steps."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError

from omni_rl.errors import EngineDeadError, PromptError, SamplingError
from omni_rl.media.engine_input import to_engine_input
from omni_rl.media.slots import FeatureCounts
from omni_rl.media.types import RenderedPrompt
from omni_rl.rollout import recorder, seeds, startup
from omni_rl.rollout.requests import check_lengths, check_sampling, rescoring_params, sampling_params
from omni_rl.rollout.settings import EngineSettings
from omni_rl.rollout.types import Rescore, Rollout, SamplingSettings, UpdateReport, VersionSpan
from omni_rl.rollout.weights import ReleasedWeights, write_in_place
from omni_rl.sync.version import WeightVersion

# A prompt, the ids to run, vLLM's parameters, and how many tokens may follow.
_Arguments = tuple[RenderedPrompt, NDArray[np.int64], SamplingParams, int]


@dataclass
class _Request:
    """A request under way: what it was made from, and what it has sampled so far."""

    prompt: RenderedPrompt
    internal_id: str
    temperature: float
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


class RolloutEngine:
    """One engine. Once it threw inside a step or an update it is dead: every later call raises `EngineDeadError`.

    Every rollout is sampled with the engine's weights of that moment; an update may come between two steps.
    """

    def __init__(self, settings: EngineSettings) -> None:
        """Start vLLM; raises `CheckpointError` if the checkpoint cannot be served."""
        self.settings = settings
        self.llm_engine = startup.start(settings)
        runner = startup.model_runner(self.llm_engine)
        self.model = runner.model
        seeds.spare_unfinished_prompts(runner)
        self._features = FeatureCounts.of(self.llm_engine.model_config.hf_config)
        self._recorder = recorder.attach(runner, self.model, settings.record_experts)
        self._released = ReleasedWeights(settings.model, getattr(torch, settings.dtype))
        self._numbers = count()
        self._running: dict[str, _Request] = {}
        self._dead: str | None = None
        self.llm_engine.set_weight_version(str(WeightVersion(settings.run, 1, 0, self._released.digest)))

    @property
    def weight_version(self) -> str:
        """The version of the weights that the engine samples with."""
        self._refuse_if_dead()
        return str(self.llm_engine.get_weight_version())

    @property
    def parameters(self) -> int:
        """How many parameters the checkpoint has."""
        return self._released.parameters

    @property
    def busy(self) -> bool:
        """Whether requests are under way."""
        return bool(self._running)

    def sample(
        self,
        prompts: Sequence[RenderedPrompt],
        sampling: SamplingSettings,
        progress: Callable[[int], None] | None = None,
    ) -> list[Rollout]:
        """One answer per prompt, in their order; request i is seeded with `sampling.seed + i`.

        `progress` is called after each step with the number of tokens sampled so far. Raises `SamplingError` or
        `PromptError` before anything starts.
        """
        self._refuse_if_busy()
        names = self.submit(prompts, sampling)
        finished: dict[str, Rollout] = {}
        while self._running:
            finished |= self.step()
            if progress is not None:
                done = sum(len(rollout.ids) for rollout in finished.values())
                progress(done + sum(len(request.ids) for request in self._running.values()))
        return [finished[name] for name in names]

    def submit(self, prompts: Sequence[RenderedPrompt], sampling: SamplingSettings) -> list[str]:
        """Queue one request per prompt and return their names; `step` then works on them."""
        self._refuse_if_dead()
        check_sampling(sampling)
        self._features.check(prompts)
        check_lengths(prompts, sampling.max_tokens, self.settings.max_model_len)
        return self._add_all(
            (prompt, prompt.ids, sampling_params(sampling, index), sampling.max_tokens)
            for index, prompt in enumerate(prompts)
        )

    def step(self) -> dict[str, Rollout]:
        """One step of everything under way; the answers that it finished, by name."""
        finished = {}
        for output in self._step():
            request = self._running[output.request_id]
            (completion,) = output.outputs
            for token, candidates in zip(completion.token_ids, completion.logprobs, strict=True):
                request.ids.append(int(token))
                request.logprobs.append(candidates[token].logprob)
            if output.finished:
                del self._running[output.request_id]
                finished[output.request_id] = self._rollout(request, completion)
        if finished:
            self._forget_evicted()
        return finished

    def rescore(self, rollouts: Sequence[Rollout], *, alone: bool = False) -> list[Rescore]:
        """Score answers by prefill, at temperature 1, in their order: together, or each alone with cold caches.

        The media are the prompt's own tensors, at the prompt's own spans.
        """
        self._refuse_if_busy()
        self._features.check([rollout.prompt for rollout in rollouts])
        groups = [[rollout] for rollout in rollouts] if alone or not rollouts else [list(rollouts)]
        return [score for group in groups for score in self._rescore(group, cold=alone)]

    def update_weights(self, tensors: Mapping[str, torch.Tensor], version: str) -> UpdateReport:
        """Serve `tensors` (released names, dtypes as `omni_rl.sync.released.as_sent` gives them) from the next step on.

        Requests under way are computed again under the new weights; their answers carry version spans. Raises
        `WeightUpdateError` before anything is written if names, shapes or dtypes are not the engine's, or if the
        tensors' digest is not the one that `version` (`str` of a `WeightVersion`) names.
        """
        self._refuse_if_dead()
        started = perf_counter()
        self._released.check(tensors, version)
        checked = perf_counter()
        with self._fatal(f"the update to {version}"):
            write_in_place(self.model, tensors)
            written = perf_counter()
            self.llm_engine.reset_mm_cache()
            self.llm_engine.reset_encoder_cache()
            self.llm_engine.reset_prefix_cache(reset_running_requests=True)
            self.llm_engine.set_weight_version(version)
        return UpdateReport(
            version=version,
            tensors=len(tensors),
            bytes=sum(tensor.nbytes for tensor in tensors.values()),
            seconds_check=checked - started,
            seconds_write=written - checked,
            seconds_reset=perf_counter() - written,
        )

    def close(self) -> None:
        """Let vLLM go; the engine cannot be used afterwards."""
        if self._dead is None:
            self._dead = "it was closed"
        self.llm_engine.engine_core.shutdown()

    def _rescore(self, rollouts: Sequence[Rollout], cold: bool) -> list[Rescore]:
        for rollout in rollouts:
            check_lengths([rollout.prompt], len(rollout.ids), self.settings.max_model_len)
        if cold:
            self.llm_engine.reset_encoder_cache()
        names = self._add_all(
            (rollout.prompt, np.concatenate([rollout.prompt.ids, rollout.ids]), rescoring_params(), 0)
            for rollout in rollouts
        )
        scores: dict[str, Rescore] = {}
        by_name = dict(zip(names, rollouts, strict=True))
        while self._running:
            for output in self._step():
                request, rollout = self._running.pop(output.request_id), by_name[output.request_id]
                first = len(rollout.prompt.ids)
                logprobs = [
                    candidates[int(token)].logprob
                    for token, candidates in zip(rollout.ids, output.prompt_logprobs[first:], strict=True)
                ]
                experts = self._recorder.close(request.internal_id, first + len(rollout.ids) - 1)
                scores[output.request_id] = Rescore(np.array(logprobs, np.float64), experts)
        self._forget_evicted()
        return [scores[name] for name in names]

    def _rollout(self, request: _Request, completion: Any) -> Rollout:
        prompt = request.prompt
        return Rollout(
            prompt=prompt,
            ids=np.array(request.ids, np.int64),
            logprobs=np.array(request.logprobs, np.float64),
            temperature=request.temperature,
            version_spans=tuple(VersionSpan(span.version, span.start, span.end) for span in completion.weight_versions),
            engine_digests=tuple(self._recorder.digests(item.content_hash) for item in prompt.items),
            experts=self._recorder.close(request.internal_id, len(prompt.ids) + len(request.ids) - 1),
            finish_reason=completion.finish_reason,
        )

    def _add_all(self, requests: Iterable[_Arguments]) -> list[str]:
        """Queue all requests, or none if the engine refuses one."""
        names: list[str] = []
        try:
            for request in requests:
                names.append(self._add(*request))
        except BaseException:
            self.llm_engine.abort_request(names)
            for name in names:
                self._recorder.discard(self._running.pop(name).internal_id)
            raise
        return names

    def _add(self, prompt: RenderedPrompt, ids: NDArray[np.int64], params: SamplingParams, answer: int) -> str:
        name = str(next(self._numbers))
        try:
            internal_id = self.llm_engine.add_request(name, to_engine_input(prompt, ids), params)
        except VLLMValidationError as error:
            raise PromptError(f"prompt {prompt.id!r}: the engine refused it: {error}") from error
        self._recorder.open(internal_id, len(ids) + answer)
        self._running[name] = _Request(prompt, internal_id, params.temperature)
        return name

    def _forget_evicted(self) -> None:
        running = (request.prompt for request in self._running.values())
        self._recorder.forget_evicted(item.content_hash for prompt in running for item in prompt.items)

    def _step(self) -> list[Any]:
        self._refuse_if_dead()
        with self._fatal("a step"):
            return list(self.llm_engine.step())

    @contextmanager
    def _fatal(self, what: str) -> Iterator[None]:
        """Whatever leaves this block, the engine's state is unknown: vLLM can spin for ever on its next call."""
        try:
            yield
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
