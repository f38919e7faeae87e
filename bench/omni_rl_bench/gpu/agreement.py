"""Compares logprobs of the small checkpoint on the device with the host's, by kind of prompt, and module by module."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from omni_rl.consistency.columns import StepColumns
from omni_rl.consistency.comparison import compare_step
from omni_rl.consistency.left_out import TIES
from omni_rl.consistency.records import SampleRecord
from omni_rl.models.nemotron_omni.language.kernels import mamba_kernels
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.places import IN_TRAINER
from omni_rl.models.recording import places, recording
from omni_rl.rollout.types import Rollout
from omni_rl.train.device import own_device
from omni_rl.train.scoring import score_pack
from omni_rl.train.types import Score
from omni_rl_bench.gpu.answers import answers

FIGURES = (
    "tokens",
    "excluded_tokens",
    "router_flips",
    "logprob_abs_diff_mean",
    "logprob_abs_diff_max",
    "gen_kl_error",
    "token_mult_prob_error",
)
CPU = torch.device("cpu")
CHUNK = 1024
Dtype = Literal["float32", "bfloat16"]
Figures = dict[str, dict[str, float]]


def measure(checkpoint: Path, dtype: Dtype) -> dict[str, Any]:
    """Compare as a rank computes; float32 also with TF32, in convolutions (torch's default) and everywhere, bfloat16
    also with float32."""
    given = answers(checkpoint)
    device = own_device("cuda")
    host, there = (load(checkpoint, getattr(torch, dtype), where) for where in (CPU, device))
    on_host, first, second = (
        scores(model, given, where) for model, where in ((host, CPU), (there, device), (there, device))
    )
    alone = [score for answer in given for score in scores(there, [answer], device)]
    found: dict[str, Any] = {
        "mamba": type(mamba_kernels(device, getattr(torch, dtype))).__name__,
        "device_against_host": figures(on_host, first, given, dtype),
        "batch_against_alone": figures(first, alone, given, dtype),
        "modules": relative_errors(host, there, given[-1], device),
        "repeats_bit_for_bit": all(
            np.array_equal(one.logprobs, other.logprobs) for one, other in zip(first, second, strict=True)
        ),
    }
    if dtype == "float32":
        for name, convolutions_only in (("tf32_convolutions", True), ("tf32_everywhere", False)):
            with _tf32(convolutions_only):
                found[name] = figures(on_host, scores(there, given, device), given, dtype)
        return found
    exact = scores(load(checkpoint, torch.float32, CPU), given, CPU)
    sides = {"host_against_float32": on_host, "device_against_float32": first}
    return found | {name: figures(exact, side, given, dtype) for name, side in sides.items()}


def load(checkpoint: Path, dtype: torch.dtype, device: torch.device) -> NemotronOmniForConditionalGeneration:
    return NemotronOmniForConditionalGeneration.from_pretrained(checkpoint, dtype=dtype, device=device)


def scores(model: NemotronOmniForConditionalGeneration, given: Sequence[Rollout], device: torch.device) -> list[Score]:
    """Return the scores of all answers in one pack."""
    return score_pack(model, given, version="", logprob_chunk=CHUNK, device=device)


def figures(host: Sequence[Score], device: Sequence[Score], given: Sequence[Rollout], dtype: Dtype) -> Figures:
    """Return figures by kind of prompt, as a step's check has them: what follows a router's flip is left out."""
    records = [
        SampleRecord(
            answer.prompt.id,
            answer.prompt.kind,
            len(answer.prompt.ids),
            one.logprobs,
            other.logprobs,
            one.experts,
            other.experts,
            other.margins,
        )
        for answer, one, other in zip(given, host, device, strict=True)
    ]
    found = compare_step(StepColumns.of(records), TIES[dtype]).by_kind
    return {kind: {name: asdict(each.metrics)[name] for name in FIGURES} for kind, each in found.items()}


def relative_errors(
    host: NemotronOmniForConditionalGeneration,
    there: NemotronOmniForConditionalGeneration,
    answer: Rollout,
    device: torch.device,
) -> dict[str, float]:
    """Return the norm of the difference over the host's norm for each module's output, in the order of the forward."""
    with recording(places(host, IN_TRAINER)) as taken:
        scores(host, [answer], CPU)
    with recording(places(there, IN_TRAINER)) as taken_there:
        scores(there, [answer], device)
    expected, found = taken(), taken_there()
    return {name: float(np.linalg.norm(found[name] - rows) / np.linalg.norm(rows)) for name, rows in expected.items()}


@contextmanager
def _tf32(convolutions_only: bool) -> Iterator[None]:
    """Compute products of float32 with ten bits of mantissa, which torch allows in convolutions by default."""
    was = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = True, not convolutions_only
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = was
