"""Sends what is judged to metric systems beside the coordinator, and shows again on `/metrics` what was there before a
restart."""

import asyncio
import logging
from collections.abc import Iterable, Sequence

from omni_rl.api.events import EventAnswer
from omni_rl.errors import OmniRLError
from omni_rl.ledger.types import StepKey
from omni_rl.sync.result import SyncResult
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.run_metrics import RECENT
from omni_rl_services.coordinator.runs import LiveRun
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.sinks import Aside, AttemptStart, Sink, SinkStep, Training
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.telemetry import Telemetry
from omni_rl_services.coordinator.tensorboard_sink import TensorboardSink
from omni_rl_services.coordinator.views import incident_answer
from omni_rl_services.coordinator.wandb_sink import WandbSink

logger = logging.getLogger("omni_rl.coordinator")
SYNCS = 32
"""The number of newest syncs among which the latest that brought weights is looked for."""
TOLD = ("opened", "ended")
"""The changes of an incident that sinks are told of: between these it only grows."""


class Followers:
    """All sinks; a slow one holds up no other."""

    def __init__(
        self, settings: CoordinatorSettings, sinks: Sequence[Sink], store: Store, roster: Roster, telemetry: Telemetry
    ) -> None:
        named = [(f"extra{number}", sink) for number, sink in enumerate(sinks)]
        if settings.wandb is not None:
            named.append(("wandb", WandbSink(settings.wandb)))
        if settings.tensorboard is not None:
            named.append(("tensorboard", TensorboardSink(settings.tensorboard)))
        self._asides = [Aside(sink, name) for name, sink in named]
        for aside in self._asides:
            telemetry.watch_dropped(aside.name, aside.count)
        self._guide = settings.pager.guide
        self._store = store
        self._roster = roster
        self._telling: set[asyncio.Task[None]] = set()

    def step(self, step: SinkStep) -> None:
        """Send a judged step to every sink."""
        for aside in self._asides:
            aside.step(step)

    def learnt(self, of: AttemptStart, step: int, training: Training) -> None:
        """Send the trainer's figures of a step that it learnt from to every sink."""
        for aside in self._asides:
            aside.learnt(of, step, training)

    def heard(self, event: EventAnswer) -> None:
        """Send an incident of a run to every sink if the event says that it was opened or ended."""
        if self._asides and event.run is not None and event.data["what"] in TOLD:
            task = asyncio.create_task(self._tell(event.run, event.data["incident"]))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def close(self) -> None:
        """Let every sink finish."""
        await asyncio.gather(*self._telling)
        for aside in self._asides:
            await asyncio.to_thread(aside.close)

    async def _tell(self, name: str, number: int) -> None:
        try:
            run, incident = await self._roster.one(name), await self._store.incident(number)
        except OmniRLError as error:
            logger.warning("nobody who follows was told of incident %d: %s", number, error)
            return
        attempt = run.latest[0] if incident.attempt is None and run.latest is not None else incident.attempt
        if attempt is not None:  # without a step nobody follows the run yet
            for aside in self._asides:
                aside.incident(AttemptStart(name, attempt, run.created), incident_answer(incident, self._guide))


async def show_again(runs: Iterable[LiveRun], count: int, store: Store, telemetry: Telemetry) -> None:
    """Show the latest steps of `count` runs, and the latest sync, as they were before a restart: a series that is
    missing would end its alert."""
    known = [run for run in runs if run.latest is not None and run.activity != "ended"]
    known.sort(key=lambda run: run.sealed or 0.0)
    for run in known[-count:]:
        assert run.latest is not None, "those without a step were left out"
        attempt, number = run.latest
        found = await store.step(StepKey(run.name, attempt, number))
        rows = await store.steps(run.name, attempt, after=number - RECENT - 1, limit=RECENT + 1)
        figures = {kind: {**vars(metrics)} for kind, metrics in found.by_kind.items()}
        # A step that was judged elsewhere has no verdict of ours; ours have what is derived from the metrics too.
        for kind, told in found.verdict.get("figures", {}).items():
            figures[kind] |= {name: value for name, value in told.items() if value is not None}
        of = AttemptStart(run.name, attempt, run.created)
        severity, limits = run.drift.severity, run.yardstick.limits
        step = SinkStep(of, number, severity, figures, found.row.training, found.row.sealed, limits)
        telemetry.runs.step(step, [row.sealed for row in rows if row.key.step < number])
    for sync in await store.syncs(limit=SYNCS):
        record = sync.record
        if record.result is not None and record.finished is not None:
            result = SyncResult.from_json(record.result)
            if result.origin is not None:
                telemetry.show_sync(result, record.finished)
                return
