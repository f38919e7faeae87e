"""What of an engine's model is memory of its own, and what no released tensor fills in it."""

import warnings

import pytest
import torch
from torch import nn

from omni_rl.errors import LayoutError
from omni_rl.sync.layout import Kind
from omni_rl.sync.layout.recorded import record
from omni_rl.sync.layout.storages import Storage, StorageSpec, storages


class Inner(nn.Module):
    """A buffer that checkpoints hold, one that they do not, and one that is not there."""

    def __init__(self, shared: nn.Parameter) -> None:
        super().__init__()
        self.weight = shared
        self.register_parameter("bias", None)
        self.register_buffer("steps", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("frequencies", torch.ones(3), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("nothing", torch.empty(0))


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("first", torch.zeros(4)[1:3])
        self.head = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.inner = Inner(self.head)
        self.again = self.inner


def test_every_storage_is_listed_once_parameters_first() -> None:
    model = Outer()
    assert [storage.spec for storage in storages(model)] == [
        StorageSpec("head", ("inner.weight", "again.weight"), torch.float32, 6, True),
        StorageSpec("first", (), torch.float32, 4, True),
        StorageSpec("inner.steps", ("again.steps",), torch.int64, 2, True),
        StorageSpec("inner.frequencies", ("again.frequencies",), torch.float32, 3, False),
    ]


def test_all_of_a_storage_is_reached_through_its_flat_tensor() -> None:
    model = Outer()
    found = {storage.spec.name: storage.flat for storage in storages(model)}
    assert found["head"].tolist() == [0, 1, 2, 3, 4, 5]
    found["head"][4] = 9.0
    found["first"].copy_(torch.arange(4.0))
    assert model.head[1, 1] == 9.0
    assert model.get_buffer("first").tolist() == [1, 2]


def odd_storage() -> torch.Tensor:
    """Two floats in ten bytes."""
    room = torch.zeros(10, dtype=torch.uint8).untyped_storage()
    return torch.empty(0).set_(room, 0, (2,), (1,))


def quantised() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch is about to remove them; models that have them exist
        return torch.quantize_per_tensor(torch.zeros(3), 1.0, 0, torch.qint8)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.eye(2).to_sparse(), r"buffer has no provable layout: it is torch.sparse_coo, quantised: False"),
        (
            quantised(),
            "buffer has no provable layout: it is torch.strided, quantised: True",
        ),
        (odd_storage(), "buffer has no provable layout: its storage has 10 bytes, no multiple of an element"),
        (torch.zeros(2, dtype=torch.int16), "buffer has no provable layout: it is torch.int16: quantised formats"),
        (torch.zeros(2, dtype=torch.uint8), "buffer has no provable layout: it is torch.uint8: quantised formats"),
    ],
)
def test_formats_in_which_no_update_can_be_proven_are_refused(tensor: torch.Tensor, message: str) -> None:
    model = nn.Module()
    model.register_buffer("buffer", tensor)
    with pytest.raises(LayoutError, match=f"engine parameter {message}"):
        storages(model)


@pytest.mark.parametrize(
    "dtype",
    [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.int64, torch.int32, torch.bool],
    ids=str,
)
def test_dtypes_that_weights_are_served_in_are_taken(dtype: torch.dtype) -> None:
    model = nn.Module()
    model.register_buffer("buffer", torch.zeros(3, dtype=dtype))
    assert [storage.spec for storage in storages(model)] == [StorageSpec("buffer", (), dtype, 3, True)]


def test_an_empty_parameter_was_packed_away_and_an_empty_buffer_is_nothing() -> None:
    model = nn.Module()
    model.register_buffer("buffer", torch.empty(0))
    assert storages(model) == ()
    model.register_parameter("weight", nn.Parameter(torch.empty(0, 3)))
    with pytest.raises(LayoutError, match="engine parameter weight has no provable layout: it is empty"):
        storages(model)


@pytest.mark.parametrize(
    ("mask", "persistent", "found"),
    [
        ("......", True, []),
        ("######", True, [(Kind.CONSTANT, 0, 6)]),
        ("######", False, [(Kind.DERIVED, 0, 6)]),
        ("##....", False, [(Kind.PADDING, 0, 2)]),
        ("....##", True, [(Kind.PADDING, 4, 6)]),
        ("#.##.#", True, [(Kind.PADDING, 0, 1), (Kind.PADDING, 2, 4), (Kind.PADDING, 5, 6)]),
    ],
)
def test_what_no_released_tensor_fills_is_recorded_as_it_is(
    mask: str, persistent: bool, found: list[tuple[Kind, int, int]]
) -> None:
    flat = torch.arange(10.0, 16.0)
    storage = Storage(StorageSpec("w", (), torch.float32, 6, persistent), flat)
    made = list(record(3, storage, torch.tensor([letter == "#" for letter in mask])))
    assert [(one.storage, one.kind, one.start) for one in made] == [(3, kind, start) for kind, start, _ in found]
    flat += 100
    for one, (_, start, end) in zip(made, found, strict=True):
        assert one.values.tolist() == list(range(10 + start, 10 + end))
        assert one.of_storage(flat).tolist() == list(range(110 + start, 110 + end))
