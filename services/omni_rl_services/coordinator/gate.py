"""The gate of generation: closed while anything holds it, and moved until every replica has followed."""

import asyncio
import logging
import time

from omni_rl.api.state import GateAnswer, Hold
from omni_rl.bridge.seam import Bridge
from omni_rl.errors import OmniRLError

logger = logging.getLogger("omni_rl.coordinator")
PERSON = "person"
"""The holder's name where a person asked for it; a run's is `run:NAME`."""


class Gate:
    """Who holds the gate, and whether the cluster has followed."""

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._holds: dict[str, Hold] = {}
        self._confirmed = False
        self._turn = asyncio.Lock()

    @property
    def closed(self) -> bool:
        return bool(self._holds)

    @property
    def reason(self) -> str | None:
        """Why generation is stopped, or None while nothing holds the gate."""
        return "; ".join(hold.reason for hold in self._holds.values()) or None

    def answer(self) -> GateAnswer:
        return GateAnswer(
            gate="closed" if self._holds else "open", confirmed=self._confirmed, holds=list(self._holds.values())
        )

    def hold(self, holder: str, reason: str) -> None:
        """Add a holder; `settle` then closes the cluster's gate. The first reason of a holder stands."""
        self._holds.setdefault(holder, Hold(holder=holder, reason=reason, since=time.time()))
        self._confirmed = False

    def release(self, holder: str) -> None:
        """Remove a holder, which no longer wants the gate closed."""
        self._holds.pop(holder, None)
        self._confirmed = False

    async def settle(self) -> None:
        """Move the cluster's gate to where it is to be. Raises what the bridge raises; `observe` tries again later."""
        async with self._turn:
            reason = self.reason
            if reason is not None:
                await self._bridge.pause(reason)
            else:
                await self._bridge.resume()
            self._confirmed = self.closed == (reason is not None)

    async def observe(self, actual: str) -> None:
        """Compare what the cluster says of its gate with what it should be, and settle it if they differ: a replica
        that came up anew knows of no hold."""
        self._confirmed = actual == ("closed" if self.closed else "open")
        if self._confirmed or actual == "unknown":
            return
        try:
            await self.settle()
        except OmniRLError as error:
            logger.warning("the gate is %s and should not be: %s", actual, error)
