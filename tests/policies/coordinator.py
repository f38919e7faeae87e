"""A job's client of a coordinator that answers as it was told to; nothing is sent."""

import json
from collections.abc import Sequence
from typing import Any, TypeVar, cast

from omni_rl.api.syncs import SyncAnswer
from omni_rl.client.call import Call
from omni_rl.errors import OmniRLError
from omni_rl.policies.patient_client import PatientClient

T = TypeVar("T")


class Coordinator(PatientClient):
    """Answers syncs by `told`, one after the other, and then by the last one again and again; an error of it is raised
    by every call. `asked` has each request: its method, its path and, of a sync, its source and key."""

    def __init__(self, told: Sequence[SyncAnswer | OmniRLError]) -> None:
        super().__init__("http://coordinator.invalid")
        self.told = list(told)
        self.asked: list[tuple[str, ...]] = []

    def _sent(self, call: Call[T]) -> T:
        sync = call.path == "/v1/syncs"
        self.asked.append((call.method, call.path, *((_source(call), call.headers["Idempotency-Key"]) if sync else ())))
        answer = self.told.pop(0) if len(self.told) > 1 else self.told[0]
        if isinstance(answer, OmniRLError):
            raise answer
        return cast(T, answer if sync else self.answer(call))

    def answer(self, call: Call[Any]) -> Any:
        """Return the answer to a call that is no sync."""
        raise NotImplementedError(call.path)


def _source(call: Call[Any]) -> str:
    return str(json.loads(call.content or b"")["source"])
