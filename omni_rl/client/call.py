"""A request as a value: what is sent, whether it may be sent again, and how its answer is read."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar, get_args

import httpx
from pydantic import BaseModel, TypeAdapter, ValidationError

from omni_rl.client.failures import raise_for_problem, unreadable
from omni_rl.described import described

T_co = TypeVar("T_co", covariant=True)
F = TypeVar("F", bound=Callable[..., Any])
M = TypeVar("M", bound=BaseModel)
JSON = "application/json"


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One request. `repeatable`: a second one with the same content changes nothing more, so a lost answer may be
    asked for again. `seconds`: how long the answer may take, None for the client's own timeout.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T_co]
    params: Mapping[str, Any] = field(default_factory=dict)
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    repeatable: bool = True
    seconds: float | None = None
    answers: frozenset[int] = frozenset()
    """Statuses besides 2xx that are an answer, not an error."""

    def request(self, timeout: httpx.Timeout) -> dict[str, Any]:
        """Return the arguments of httpx's `request`; `timeout` is the client's own."""
        return {
            "method": self.method,
            "url": self.path,
            "params": self.params,
            "content": self.content,
            "headers": self.headers,
            "timeout": timeout if self.seconds is None else httpx.Timeout(self.seconds, connect=timeout.connect),
        }

    def answer(self, response: httpx.Response) -> T_co:
        """Return what the coordinator said, as `read` reads it.

        Raises the error that the coordinator reports, or `ApiError` for an answer that this version cannot read.
        """
        if response.status_code not in self.answers:
            raise_for_problem(response)
        try:
            return self.read(response)
        except ValidationError as error:
            raise unreadable(response, error) from None


# Readers ignore unknown fields: a newer coordinator's answers have some, also in the bodies of requests that it
# returns.
def as_model(model: type[M]) -> Callable[[httpx.Response], M]:
    return lambda response: model.model_validate_json(response.content, extra="ignore")


def as_list(model: type[M]) -> Callable[[httpx.Response], list[M]]:
    adapter = TypeAdapter(list[model])  # type: ignore[valid-type]
    return lambda response: adapter.validate_json(response.content, extra="ignore")


def given(**values: Any) -> dict[str, Any]:
    """Return the query parameters that are not None."""
    return {name: value for name, value in values.items() if value is not None}


def as_json(body: BaseModel) -> dict[str, Any]:
    """Return the arguments of a `Call` that sends `body` as JSON."""
    return {"content": body.model_dump_json().encode(), "headers": {"Content-Type": JSON}}


def sends(method: F, call: Callable[..., Any]) -> F:
    """Return a client's `method` with the name, parameters and docstring of `call`, the function that makes the request
    it sends, and with the type of that request's answer."""
    returned = inspect.signature(call).return_annotation
    # A type that is not imported at the module's top is written as text.
    answer = returned[len("Call[") : -1] if isinstance(returned, str) else get_args(returned)[0]
    return described(method, call, answer=answer)
