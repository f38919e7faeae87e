"""Media tensors arrive in another process as they left, whatever their type and layout."""

import pickle

import numpy as np
import pytest
import torch

from omni_rl.media.digests import tensor_digest
from omni_rl.media.packed import PackedTensor
from omni_rl.media.types import MediaItem

TENSORS = {
    "bfloat16": torch.randn(2, 3, 4).to(torch.bfloat16),
    "float32, transposed": torch.randn(5, 7).T,
    "bool": torch.tensor([[True, False, True]]),
    "int64, no dimension": torch.tensor(7),
    "int64, empty": torch.empty(0, 4, dtype=torch.int64),
}


@pytest.mark.parametrize("tensor", TENSORS.values(), ids=TENSORS.keys())
def test_a_tensor_is_the_same_after_the_journey(tensor: torch.Tensor) -> None:
    found = PackedTensor.of(tensor).tensor()
    assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
    assert torch.equal(found, tensor)


def test_an_item_is_pickled_without_a_copy_of_its_tensors_and_can_be_written_to_afterwards() -> None:
    pixels = torch.randn(3, 64, 64)
    item = MediaItem("image", 0, 3, 4, np.arange(4), {"pixels": pixels}, {"pixels": tensor_digest(pixels)}, "hash")
    apart: list[pickle.PickleBuffer] = []
    stream = pickle.dumps(item, protocol=5, buffer_callback=apart.append)
    assert len(stream) < 2000
    read_only = [memoryview(bytes(buffer)) for buffer in apart]
    found: MediaItem = pickle.loads(stream, buffers=read_only)
    assert tensor_digest(found.tensors["pixels"]) == item.digests["pixels"]
    found.tensors["pixels"].zero_()
    assert tensor_digest(pixels) == item.digests["pixels"]
    assert (found.modality, found.offset, found.content_hash) == ("image", 3, "hash")
