"""What the scoring benchmark compares computes the same: scores and gradients of every method."""

from pathlib import Path

import pytest
import torch

from omni_rl_bench.scoring.policies import Method, Policy, load, with_method
from omni_rl_bench.scoring.worker import LAYOUTS, Mode, run, samples_of
from omni_rl_bench.scoring.workload import LENGTHS, Sample


@pytest.fixture(scope="module")
def samples(small_checkpoint: Path) -> list[Sample]:
    """Four of the workload's, short ones, two of them with images."""
    by_length = sorted(samples_of(small_checkpoint, "images"), key=lambda sample: len(sample.ids))
    with_images = [sample for sample in by_length if sample.images][:2]
    return with_images + [sample for sample in by_length if not sample.images][:2]


@pytest.fixture(scope="module")
def ours(small_checkpoint: Path) -> Policy:
    return load(small_checkpoint, Method("ours"))


@pytest.fixture(scope="module")
def theirs(small_checkpoint: Path) -> Policy:
    return load(small_checkpoint, Method("transformers"))


def test_the_workload_is_of_mixed_lengths_and_always_the_same(small_checkpoint: Path) -> None:
    first, second = (samples_of(small_checkpoint, "images") for _ in range(2))
    lengths = [len(sample.ids) for sample in first]
    assert (min(lengths), max(lengths)) == LENGTHS
    assert all(torch.equal(a.ids, b.ids) for a, b in zip(first, second, strict=True))
    assert len({tuple(image.shape) for sample in first for image in sample.images}) >= 5


def _gradient(policy: Policy, samples: list[Sample]) -> torch.Tensor:
    run(policy, samples, "forward+backward")
    norms = [parameter.grad.norm() for parameter in policy.parameters() if parameter.grad is not None]
    for parameter in policy.parameters():
        parameter.grad = None
    whole: torch.Tensor = torch.stack(norms).norm()
    return whole


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_every_method_scores_and_learns_the_same(
    ours: Policy, theirs: Policy, samples: list[Sample], layout: str, experts: str
) -> None:
    other = with_method(theirs, Method("transformers", layout, 32, experts))
    forward: Mode = "forward"
    for mine, his in zip(run(ours, samples, forward), run(other, samples, forward), strict=True):
        torch.testing.assert_close(mine, his, rtol=0, atol=1e-4)
    torch.testing.assert_close(_gradient(ours, samples), _gradient(other, samples), rtol=1e-3, atol=0)
