"""Reads a ledger that no coordinator has open, and answers as one would: nothing is judged, and nothing written."""

import math
from collections.abc import Sequence
from typing import Literal

from omni_rl.api.incidents import IncidentAnswer
from omni_rl.api.runs import RunLine
from omni_rl.consistency.incidents import IncidentKind
from omni_rl.consistency.need import Need, NeedName
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.run_list import Wanted
from omni_rl_services.coordinator.roster import read_run
from omni_rl_services.coordinator.views import incident_answer, run_line


class Reading:
    """Has the methods of the client that have the same names."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def runs(
        self,
        limit: int = 100,
        *,
        search: str = "",
        needs: Sequence[NeedName] = (),
        sort: Literal["newest", "need"] = "newest",
    ) -> list[RunLine]:
        """Return the runs, a line for each."""
        wanted = Wanted(search, tuple(Need[name.upper()] for name in needs), sort, 0, limit)
        found, _ = self._ledger.listed(wanted)
        return [run_line(read_run(one.run, settle=1, silent_after=math.inf), one) for one in found]

    def incidents(
        self, limit: int = 100, *, is_open: bool | None = None, run: str | None = None, kind: IncidentKind | None = None
    ) -> list[IncidentAnswer]:
        """Return the incidents, the newest first."""
        found = self._ledger.incidents(still_open=is_open, run=run, kind=kind, limit=limit)
        return [incident_answer(one) for one in found]
