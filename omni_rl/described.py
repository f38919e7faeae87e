"""A method that hands on to a function shows that function's name, parameters and description."""

import inspect
from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])


def described(method: F, by: Callable[..., Any], *, first: int = 0, answer: Any = inspect.Signature.empty) -> F:
    """Give `method` what `by` shows: its parameters from number `first` on, behind `self`, and `answer` as what is
    returned."""
    parameters = list(inspect.signature(by).parameters.values())[first:]
    own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    method.__name__, method.__doc__ = by.__name__, by.__doc__
    method.__signature__ = inspect.Signature([own, *parameters], return_annotation=answer)  # type: ignore[attr-defined]
    return method
