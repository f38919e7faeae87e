"""Defines the messages between the coordinator and its bridge: JSON, one message a line, over a socket pair.

The coordinator begins with `Start`; then it calls, and the bridge replies in any order. A sync's events come before its
reply, under the same id.
"""

import json
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from omni_rl.api.jobs import JobAnswer
from omni_rl.bridge.seam import CheckRequest, CheckResult, ClusterState, JobRequest, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import BridgeProtocolError, OmniRLError, error_class
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import SyncEvent

VERSION = 1
MAX_LINE = 64 << 20
"""The most bytes of one message; only a job's log comes near."""

Method = Literal["state", "sync", "check", "pause", "resume", "submit", "jobs", "job", "stop", "logs"]
SIGNATURES: dict[Method, tuple[Any, Any]] = {
    "state": (None, ClusterState),
    "sync": (SyncRequest, SyncResult),
    "check": (CheckRequest, CheckResult),
    "pause": (str, None),
    "resume": (None, None),
    "submit": (JobRequest, JobAnswer),
    "jobs": (None, list[JobAnswer]),
    "job": (str, JobAnswer),
    "stop": (str, JobAnswer),
    "logs": (str, str),
}
"""What each method takes and returns: the methods are those of `omni_rl.bridge.seam.Bridge`."""


@dataclass(frozen=True)
class Start:
    """The first message. `hold` says why nothing may be generated, None if generation may go on."""

    version: int
    settings: ClusterSettings
    hold: str | None
    kind: Literal["start"] = "start"


@dataclass(frozen=True)
class BridgeCall:
    id: int
    method: Method
    body: Any = None
    kind: Literal["call"] = "call"


@dataclass(frozen=True)
class Reply:
    id: int
    body: Any = None
    kind: Literal["reply"] = "reply"


@dataclass(frozen=True)
class Failure:
    """A call raised the `OmniRLError` whose class has `code`."""

    id: int
    code: str
    message: str
    kind: Literal["failure"] = "failure"

    def error(self) -> OmniRLError:
        return error_class(self.code)(self.message)


@dataclass(frozen=True)
class Happened:
    """An event of the sync that call `id` asked for."""

    id: int
    event: SyncEvent
    kind: Literal["happened"] = "happened"


Message = Start | BridgeCall | Reply | Failure | Happened
_MESSAGES: TypeAdapter[Message] = TypeAdapter(Annotated[Message, Field(discriminator="kind")])


def encode(message: Message) -> bytes:
    """Return the message as a line."""
    # Pydantic's own JSON would write null for NaN and infinity. Whatever is not plain data here is a path.
    return json.dumps(_MESSAGES.dump_python(message), default=str).encode() + b"\n"


def decode(line: bytes) -> Message:
    """Read a message from a line. Raises `BridgeProtocolError` for anything that is no message of this version."""
    try:
        message = _MESSAGES.validate_python(json.loads(line))
    except ValueError as error:
        raise BridgeProtocolError(f"a line that is no message of version {VERSION}: {error}") from None
    if isinstance(message, Start) and message.version != VERSION:
        raise BridgeProtocolError(
            f"the coordinator speaks version {message.version}, this bridge {VERSION}; install one omni-rl for both"
        )
    return message


def pack(kind: Any, value: Any) -> Any:
    """Return a value of a method's signature as plain data."""
    return _adapter(kind).dump_python(value)


def unpack(kind: Any, data: Any) -> Any:
    """Return the value that `pack` made plain data of. Raises `BridgeProtocolError`."""
    try:
        return _adapter(kind).validate_python(data)
    except ValidationError as error:
        raise BridgeProtocolError(f"no {kind}: {error}") from None


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    return TypeAdapter(kind)
