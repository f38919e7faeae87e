"""The paths that users write down for prime-rl, Miles and slime lead to what they are to load."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"


def loaded(path: str) -> Callable[..., Any]:
    """As these frameworks load it: the last dot parts the module from the name."""
    module, _, name = path.rpartition(".")
    found: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return found


def test_prime_rls_two_lines() -> None:
    loss = tomllib.loads((EXAMPLES / "prime-rl.toml").read_text())["trainer"]["loss"]
    assert loss.keys() == {"type", "import_path"}
    assert next(iter(inspect.signature(loaded(loss["import_path"])).parameters)) == "inputs"


def test_the_function_of_miles_and_slime() -> None:
    (path,) = re.findall(r"--custom-tis-function-path (\S+)", (EXAMPLES / "miles-slime.sh").read_text())
    handed = {"args", "pg_loss", "train_log_probs", "rollout_log_probs", "loss_masks"}
    assert handed < inspect.signature(loaded(path)).parameters.keys()
