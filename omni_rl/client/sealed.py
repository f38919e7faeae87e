"""What a trainer gets when it seals a step: the verdict, and the weights to learn with."""

from collections.abc import Mapping
from dataclasses import dataclass

import httpx
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from omni_rl.api.steps import VERDICT_KEY, Verdict


@dataclass(frozen=True)
class Sealed:
    """A sealed step.

    `weights` has float32 weights, one a token, by the rank that posted a sample and the sample's name; None where every
    token that counts weighs 1.
    """

    verdict: Verdict
    weights: Mapping[tuple[int, str], NDArray[np.float32]] | None


def read_sealed(response: httpx.Response) -> Sealed:
    """Read the Arrow answer to a seal."""
    table = pa.ipc.open_stream(response.content).read_all()
    verdict = Verdict.model_validate_json(table.schema.metadata[VERDICT_KEY], extra="ignore")
    column = table.column("weights").combine_chunks()
    if column.null_count == len(column):
        return Sealed(verdict, None)
    values = column.flatten().to_numpy(zero_copy_only=False)
    bounds = column.offsets.to_numpy()
    samples = zip(table.column("rank").to_pylist(), table.column("sample").to_pylist(), strict=True)
    return Sealed(verdict, {sample: values[bounds[n] : bounds[n + 1]] for n, sample in enumerate(samples)})
