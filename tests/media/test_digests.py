"""Digests are equal for equal content, and for nothing else."""

import torch

from omni_rl.media.digests import tensor_digest, tensors_digest


def test_equal_content_has_one_digest_whatever_its_layout() -> None:
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    assert tensor_digest(tensor) == tensor_digest(tensor.clone())
    assert tensor_digest(tensor) == tensor_digest(tensor.T.contiguous().T)
    assert tensor_digest(tensor[1:3]) == tensor_digest(tensor[1:3].clone())


def test_dtype_shape_and_a_single_bit_count() -> None:
    zeros = torch.zeros(2, 3)
    one_bit = zeros.clone()
    one_bit.view(torch.int32)[1, 2] = 1
    others = [
        zeros.reshape(3, 2),
        zeros.reshape(6),
        zeros.to(torch.int32),
        zeros.to(torch.bfloat16),
        zeros.new_zeros(2, 3, 1),
        -zeros,  # equal to zero, but not the same bits
        one_bit,
    ]
    digests = {tensor_digest(tensor) for tensor in [zeros, *others]}
    assert len(digests) == len(others) + 1


def test_empty_tensors_differ_by_shape() -> None:
    assert tensor_digest(torch.zeros(0, 3)) != tensor_digest(torch.zeros(3, 0))


def test_a_set_of_tensors_is_told_by_names_and_contents_not_by_order() -> None:
    a, b = torch.zeros(2), torch.ones(2)
    assert tensors_digest({"a": a, "b": b}) == tensors_digest({"b": b, "a": a})
    assert tensors_digest({"a": a, "b": b}) != tensors_digest({"a": b, "b": a})
    assert tensors_digest({"a": a}) != tensors_digest({"a": a, "b": b})
