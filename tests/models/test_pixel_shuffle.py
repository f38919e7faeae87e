"""Pixel shuffle against vLLM's, and what it refuses."""

from types import SimpleNamespace

import pytest
import torch
from vllm.model_executor.models.nano_nemotron_vl import NemotronH_Nano_VL_V2

from omni_rl.errors import MediaError
from omni_rl.models.nemotron_omni.pixel_shuffle import pixel_shuffle


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("grid", [(2, 2), (4, 6), (8, 2)])
def test_equals_vllm_bit_for_bit(version: str, grid: tuple[int, int]) -> None:
    x = torch.randn(3, *grid, 5)
    if version == "v1":
        with pytest.warns(UserWarning, match="transposed"):
            mine = pixel_shuffle(x, 0.5, version)
        with pytest.warns(UserWarning, match="transposed"):
            theirs = NemotronH_Nano_VL_V2.pixel_shuffle(SimpleNamespace(ps_version=version), x, 0.5)
    else:
        mine = pixel_shuffle(x, 0.5, version)
        theirs = NemotronH_Nano_VL_V2.pixel_shuffle(SimpleNamespace(ps_version=version), x, 0.5)
    assert torch.equal(mine, theirs)


def test_channels_of_a_cell_are_ordered_row_column_channel() -> None:
    x = torch.arange(8.0).reshape(1, 2, 2, 2)
    assert torch.equal(pixel_shuffle(x), torch.arange(8.0).reshape(1, 1, 1, 8))


def test_an_odd_grid_is_refused() -> None:
    with pytest.raises(MediaError, match="3 x 4"):
        pixel_shuffle(torch.zeros(1, 3, 4, 2))
