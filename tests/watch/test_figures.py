"""The trainer's own figures as the coordinator takes them."""

from typing import Any

import numpy as np
import torch

from omni_rl.watch.figures import for_coordinator


def test_numbers_of_any_library_are_figures_and_odd_ones_raise_nothing() -> None:
    numbers = {"a": np.float32(1.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": np.array(4), "e": True}
    odd: dict[Any, object] = {
        "too large": 10**400,
        "several": torch.ones(2),
        "nowhere": torch.ones((), device="meta"),
        "text": np.str_("1"),
        "none": None,
        "complex": 1j,
        7: 1.0,
        None: 1.0,
    }
    assert for_coordinator({**odd, **numbers}) == {"a": 1.5, "b": 3.0, "c": 2.0, "d": 4.0, "e": 1.0}
