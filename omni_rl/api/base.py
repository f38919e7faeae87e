"""Defines what all bodies share."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    ModelWrapValidatorHandler,
    StringConstraints,
    ValidationError,
    model_validator,
)

from omni_rl.consistency.limits import Label
from omni_rl.consistency.shown import number_or_none

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_INT = 2**31 - 1
NO_NUL = r"^[^\x00]*$"
"""The pattern of texts in the published schema, for what `Body` refuses."""
MOST_ERRORS = 64
"""The most bad values of a body that are reported one by one. To report each of the 300,000 that fit into a megabyte
takes seconds, in which nobody else is answered, and the answer is thirty times as long."""

Name = Annotated[str, StringConstraints(pattern=NAME, max_length=64)]
Text = Annotated[str, StringConstraints(pattern=NO_NUL, max_length=1024)]
SeverityName = Label
GateName = Literal["open", "paused", "halted"]
Figures = dict[str, dict[str, float | None]]
"""Figures by kind of prompt and by the field's metric names; null where a figure is not a number, or infinite."""


class Body(BaseModel):
    """A request. Unknown names are refused, and so is a NUL in any text, which PostgreSQL does not take, and a body
    with more values than any request needs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    most_values: ClassVar[int] = 16_384
    """The most names and values of one body, all that is nested counted. The largest run is described with some
    7,000."""

    @model_validator(mode="wrap")
    @classmethod
    def _bounded(cls, given: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        _look_through(given, cls.most_values)
        try:
            return validate(given)
        except ValidationError as error:
            if (count := error.error_count()) <= MOST_ERRORS:
                raise
            raise ValueError(f"{count:,} values are not as they should be") from None


class Answer(BaseModel):
    """A response."""

    model_config = ConfigDict(frozen=True)


def _look_through(given: Any, most: int) -> None:
    """Raise `ValueError` for a NUL in a text, and for more than `most` values."""
    waiting, seen = [given], 0  # not by recursion: what a client sends may be nested deeper than that goes
    while waiting:
        one = waiting.pop()
        if isinstance(one, str):
            if "\0" in one:
                raise ValueError("a text has a NUL")
        elif isinstance(one, Mapping):
            waiting += one.keys()
            waiting += one.values()
        elif isinstance(one, (list, tuple)):
            waiting += one
        seen += 1
        if seen + len(waiting) > most:
            raise ValueError(f"there are more than {most:,} names and values in it")


def example(**values: Any) -> ConfigDict:
    """Return a model's `model_config` with its example for the OpenAPI document."""
    return ConfigDict(json_schema_extra={"examples": [values]})


def finite(figures: Mapping[str, Mapping[str, float]]) -> Figures:
    """Return the figures with null for NaN and infinity, which JSON does not have."""
    return {kind: {name: number_or_none(value) for name, value in metrics.items()} for kind, metrics in figures.items()}
