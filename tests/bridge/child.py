"""A bridge without Ray: speaks the protocol, and fails where it is told to (`python -m tests.bridge.child HOW FD`)."""

import os
import socket
import sys

from omni_rl.bridge.protocol import (
    SIGNATURES,
    BridgeCall,
    Failure,
    Happened,
    Message,
    Reply,
    Start,
    decode,
    encode,
    pack,
)
from omni_rl.bridge.seam import ClusterState
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase, SyncEvent


def main(how: str, descriptor: str) -> None:
    with socket.socket(fileno=int(descriptor)) as parent:
        lines = parent.makefile("rb")
        start = decode(lines.readline())
        assert isinstance(start, Start)
        held = start.hold
        if how == "garbage":
            parent.sendall(b"not a message\n")
        for line in lines:
            call = decode(line)
            assert isinstance(call, BridgeCall)
            if call.method == "pause":
                held = call.body
            elif call.method == "resume":
                held = None
            elif call.method == "sync" and how == "dies":
                os._exit(7)
            elif call.method == "check" and how == "dies":
                continue
            elif call.method == "state" and how == "blind":
                parent.sendall(encode(Failure(call.id, "omni_rl_error", "state: AttributeError: no engines")))
                continue
            for message in _answers(call, held):
                parent.sendall(encode(message))


def _answers(call: BridgeCall, held: str | None) -> list[Message]:
    match call.method:
        case "state":
            state = ClusterState(True, f"pid {os.getpid()}", gate="open" if held is None else "closed")
            return [Reply(call.id, pack(SIGNATURES["state"][1], state))]
        case "sync":
            result = SyncResult(call.body["sync"], "committed", "r/1/1/d", "r/1/1/d")
            event = SyncEvent(call.body["sync"], Phase.APPLY, "entered")
            return [Happened(call.id, event), Reply(call.id, pack(SyncResult, result))]
        case "stop":
            return [Failure(call.id, "not_found", f"there is no job {call.body!r}")]
        case _:
            return [Reply(call.id)]


main(*sys.argv[1:])
