"""What crosses the socket comes out as it went in; what is no message is refused."""

import math
from pathlib import Path

import pytest

from omni_rl import errors
from omni_rl.api.jobs import JobAnswer
from omni_rl.bridge.protocol import (
    SIGNATURES,
    VERSION,
    BridgeCall,
    Failure,
    Happened,
    Reply,
    Start,
    decode,
    encode,
    pack,
    unpack,
)
from omni_rl.bridge.seam import CheckResult, ClusterState, JobRequest, ReplicaState, SyncRequest
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase, SyncEvent

SETTINGS = ClusterSettings(
    address="127.0.0.1:6379", dashboard="http://127.0.0.1:8265", run="r", model=Path("/models/m"), ledger="sqlite:///l"
)


@pytest.mark.parametrize(
    "message",
    [
        Start(VERSION, SETTINGS, "maintenance\nby ann"),
        BridgeCall(1, "resume"),
        Reply(2, [1, {"a": None}]),
        Failure(3, "sync_rolled_back", "it was"),
        Happened(4, SyncEvent("s", Phase.APPLY, "failed", "rollout-0", "why")),
    ],
)
def test_a_message_is_one_line_and_comes_back_equal(message: object) -> None:
    line = encode(message)  # type: ignore[arg-type]
    assert line.count(b"\n") == 1
    assert decode(line) == message


@pytest.mark.parametrize(
    ("method", "way", "value"),
    [
        ("sync", 0, SyncRequest(sync="s", key="key", source="directory", path="/weights", mode="drain", probe=False)),
        ("sync", 1, SyncResult("s", "committed", "v", "v", 3, 4, 5, 6, {"apply": 0.1}, 0.2, {"text": {"x": math.inf}})),
        ("state", 1, ClusterState(True, "", "a:1", "r", "closed", (ReplicaState("n", "rollout", "v", "serving"),))),
        ("submit", 0, JobRequest("grpo-1", "grpo", {"run": "r", "steps": 3})),
        ("jobs", 1, [JobAnswer(job="grpo-1", kind="grpo", status="running", submitted=1.5, parameters={"run": "r"})]),
    ],
)
def test_a_value_comes_back_equal(method: str, way: int, value: object) -> None:
    kind = SIGNATURES[method][way]  # type: ignore[index]
    reply = decode(encode(Reply(1, pack(kind, value))))
    assert isinstance(reply, Reply)
    assert unpack(kind, reply.body) == value


def test_figures_that_are_no_numbers_stay_so() -> None:
    """Where every token was left out there is no mean; null would be read as a figure that was not asked for."""
    found = CheckResult("v", {"text": {"tokens": 0.0, "logprob_abs_diff_mean": math.nan}})
    reply = decode(encode(Reply(1, pack(CheckResult, found))))
    assert isinstance(reply, Reply)
    assert math.isnan(unpack(CheckResult, reply.body).figures["text"]["logprob_abs_diff_mean"])


def test_a_failure_is_the_error_that_was_raised() -> None:
    """By the stable code, so that the API answers with the same status as if it had been raised in its own process."""
    for kind in (errors.SyncRolledBackError, errors.NotFoundError, errors.QuarantinedError, errors.ReplicaDeadError):
        message = decode(encode(Failure(1, kind.code, "why")))
        assert isinstance(message, Failure)
        assert (type(message.error()), str(message.error())) == (kind, "why")
    assert type(Failure(1, "of_the_future", "why").error()) is errors.OmniRLError


@pytest.mark.parametrize(
    "line", [b"\n", b"{}\n", b"\x80\x04pickle\n", b'{"kind": "call", "id": 1, "method": "eval"}\n']
)
def test_what_is_no_message_is_refused(line: bytes) -> None:
    with pytest.raises(errors.BridgeProtocolError):
        decode(line)


def test_another_version_is_refused() -> None:
    with pytest.raises(errors.BridgeProtocolError, match="one omni-rl for both"):
        decode(encode(Start(VERSION + 1, SETTINGS, None)))
