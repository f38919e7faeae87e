"""Repeats work for as long as the coordinator runs, whatever fails meanwhile."""

import asyncio
import logging
from collections.abc import Awaitable, Callable

from omni_rl.errors import OmniRLError

logger = logging.getLogger("omni_rl.coordinator")


async def repeat(work: Callable[[], Awaitable[None]], seconds: float, what: str) -> None:
    """Call `work`, whose name in the log is `what`, every so many seconds. A failure is logged, and ends nothing: a
    ledger that cannot be written now may be written the next time."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except OmniRLError as error:
            logger.warning("%s failed, again in %.0f s: %s", what, seconds, error)
        except Exception:
            # The end of the task would go unseen until somebody misses what it does.
            logger.exception("%s failed, again in %.0f s", what, seconds)
