"""The coordinator: one writer for every run's drift, the gate and the syncs, on top of the ledger."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import replace

from omni_rl import __version__
from omni_rl.api.events import EventAnswer
from omni_rl.api.incidents import IncidentAnswer
from omni_rl.api.runs import RunBody, RunLine
from omni_rl.api.state import ClusterAnswer, GateAnswer, MemberAnswer, ReadyAnswer, StateAnswer
from omni_rl.api.syncs import CheckAnswer, CheckBody
from omni_rl.bridge.seam import Bridge, CheckRequest, ClusterState, NoBridge
from omni_rl.consistency.limits import limits_for
from omni_rl.consistency.policy import Outcome
from omni_rl.errors import ConflictError, NotFoundError, OmniRLError, RayUnavailableError
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.media_store import MediaStore
from omni_rl.ledger.run_list import Wanted
from omni_rl.ledger.types import Incident, StepKey
from omni_rl_services.coordinator.allocator import keep_trimmed
from omni_rl_services.coordinator.auth import Sessions, Tokens
from omni_rl_services.coordinator.checks import PolicyChecks
from omni_rl_services.coordinator.events import Events
from omni_rl_services.coordinator.followers import Followers, show_again
from omni_rl_services.coordinator.gate import PERSON, Gate
from omni_rl_services.coordinator.incidents import pursued
from omni_rl_services.coordinator.jobs import Jobs
from omni_rl_services.coordinator.members import Members, fallen
from omni_rl_services.coordinator.memory import budget
from omni_rl_services.coordinator.pager import Pager
from omni_rl_services.coordinator.repeating import repeat
from omni_rl_services.coordinator.responder import Evidence, Responder
from omni_rl_services.coordinator.roster import Roster
from omni_rl_services.coordinator.runs import LiveRun, transition_events
from omni_rl_services.coordinator.settings import CoordinatorSettings
from omni_rl_services.coordinator.silence import CLOCK, MONOTONIC, Clock, Silence
from omni_rl_services.coordinator.sinks import Sink
from omni_rl_services.coordinator.steps import Steps
from omni_rl_services.coordinator.store import Store
from omni_rl_services.coordinator.syncs import Syncs
from omni_rl_services.coordinator.telemetry import INCIDENTS, Telemetry
from omni_rl_services.coordinator.updates import Updates
from omni_rl_services.coordinator.views import ALARMS, alarm_answer, incident_answer, run_line

logger = logging.getLogger("omni_rl.coordinator")
WATCH_SECONDS = 2.0
"""Seconds between two looks at the state of the cluster."""
OPEN = 100
"""The most open incidents that the state lists, the worst first."""
TIDY_SECONDS = 600.0
"""Seconds between two times that media which are too old are dropped."""


class Coordinator:
    """The coordinator. `open` is called first, `close` last; everything between runs in one event loop."""

    def __init__(
        self,
        settings: CoordinatorSettings,
        ledger: Ledger,
        bridge: Bridge,
        sinks: Sequence[Sink] = (),
        clock: Clock = CLOCK,
        monotonic: Clock = MONOTONIC,
    ):
        self.settings = settings
        self.tokens = Tokens(settings)
        self.sessions = Sessions()
        self.telemetry = Telemetry(settings.metrics_runs)
        self.store = Store(ledger, MediaStore(settings.media.directory, settings.media.rules))
        self.events = Events(self.store, self.telemetry, settings.bounds.subscribers)
        self.gate = Gate(bridge)
        self.jobs = Jobs(bridge, self.store, self.events)
        self.syncs = Syncs(bridge, self.store, self.events, self.telemetry, settings, self._look_at_cluster)
        self._bridge = bridge
        self._alone = isinstance(bridge, NoBridge)
        self.checks = PolicyChecks(bridge, self.store, self.events)
        self._responder = Responder(self.checks, self.gate, self.syncs, self._record)
        self._runs = Roster(self.store, settings.settle, settings.silent_after)
        self._followers = Followers(settings, sinks, self.store, self._runs, self.telemetry)
        self.updates = Updates(self.store, self.events, budget(settings.bounds.memory).updates)
        self.steps = Steps(
            settings, self.store, self.events, self.telemetry, self._followers, self._responder, self.updates, clock
        )
        self.silence = Silence(self._runs, self.store, self.gate, clock, monotonic)
        self.pager = Pager(settings.pager, self.store, self.telemetry)
        self.events.hear(self._heard)
        self._members = Members(self.store)
        self._cluster = ClusterState(connected=False, reason="the cluster has not answered yet")
        self._connected = asyncio.Event()
        self._started = time.time()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Take up every run where the ledger has it, with its gate and its search for a cause."""
        await self.events.begin()
        await self._runs.open()
        for run in self._runs:
            if run.drift.gate != "open":
                self.gate.hold(run.holder, f"the drift of run {run.name}")
        if (reason := await self.store.held_by_person()) is not None:
            self.gate.hold(PERSON, reason)
        await self._bridge.open(self.gate.reason)
        await self._look_at_cluster()
        await show_again(self._runs, self.settings.metrics_runs, self.store, self.telemetry)
        for run in self._runs:
            if run.drift.pursuit != "nothing":
                self._responder.pursue(run, self._connected)
        for name in await self.store.runs_with_open("update"):
            await self.updates.take_up(await self.run(name))
        beside = (
            self.events.pump(),
            repeat(self._watch, WATCH_SECONDS, "the look at the cluster"),
            repeat(self.store.tidy_media, TIDY_SECONDS, "dropping old media"),
            keep_trimmed(),
        )
        self._tasks = [asyncio.create_task(work) for work in beside]
        self.pager.open()

    async def close(self) -> None:
        """End the background tasks; nothing that was acknowledged is lost by it."""
        self.events.close()
        await self.pager.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._responder.close()
        await self.syncs.close()
        await self.updates.close()
        await self._bridge.close()
        self.steps.close()
        await self._followers.close()
        await self.store.close()

    async def create_run(self, body: RunBody) -> tuple[LiveRun, bool]:
        """Register a run; return it, and whether it is new. Raises `ConflictError`."""
        row, stored = await self.store.put_run(body)
        run = self._runs.add(row)
        if stored == "new":
            await self.events.publish("run", body.run, what="created", framework=body.framework, dtype=body.dtype)
        return run, stored == "new"

    async def run(self, name: str) -> LiveRun:
        """Return a run. Raises `NotFoundError`."""
        return await self._runs.one(name)

    async def end_run(self, name: str) -> LiveRun:
        """Record that a run is over, so that it is never silent; a step makes it live again. Raises `NotFoundError`."""
        run = await self.run(name)
        async with run.turn:
            if run.activity != "ended":
                await self.silence.enter(run, "ended")
                self.telemetry.runs.forget(name)
        self.events.poke()
        return run

    async def listed(self, wanted: Wanted) -> tuple[list[RunLine], int]:
        """Return a page of runs, and how many there are on all pages."""
        found, total = await self.store.listed(replace(wanted, unseen=self._unseen))
        return [run_line(self._runs.read(one.run), one) for one in found], total

    async def line(self, name: str) -> RunLine:
        """Return one run's line of the list. Raises `NotFoundError`."""
        await self.run(name)
        one = await self.store.one_listed(name, self._unseen)
        return run_line(self._runs.read(one.run), one)

    @property
    def _unseen(self) -> tuple[str, ...]:
        """The run that a cluster samples for which does not answer, if there is one."""
        cluster = self._cluster
        return (cluster.run,) if not (self._alone or cluster.connected or cluster.run is None) else ()

    async def pause(self, reason: str) -> GateAnswer:
        """Hold the gate for a person. It is held even where the cluster does not answer: generation then stops when the
        cluster is back, and the gate is not confirmed until then.

        Raises:
            RayUnavailableError: this coordinator has no cluster to hold; nothing has changed.
        """
        if self._alone:
            raise RayUnavailableError(f"nothing can be paused: {self._cluster.reason}")
        self.gate.hold(PERSON, reason)
        await self.events.publish("hold", what="held", reason=reason)
        return await self._settled()

    async def resume(self, reason: str, name: str | None = None) -> GateAnswer:
        """Resume one run for a person who vouches for it, which ends its incident. Without a name, end the person's own
        hold and that of the one run whose drift holds the gate.

        Raises:
            NotFoundError: there is no run of that name.
            ConflictError: several runs hold the gate, and none is named.
        """
        if name is not None:
            held = [await self.run(name)]
        else:
            held = [run for run in self._runs if run.drift.gate != "open"]
            if len(held) > 1:
                names = ", ".join(run.name for run in held)
                raise ConflictError(f"the drift of {names} holds the gate: resume each by its name, once it is healed")
        for run in held:
            if run.drift.gate != "open":
                await self._responder.forget(run)
                async with run.turn:
                    await self._record(run, run.policy.resumed(run.drift, reason), {})
                self.gate.release(run.holder)
        if name is None:
            self.gate.release(PERSON)
            # A restart reads from the newest such event whether a person holds the gate.
            await self.events.publish("hold", what="released", reason=reason)
        return await self._settled()

    async def _settled(self) -> GateAnswer:
        """Move the cluster's gate to where it is to be, and return it: unconfirmed while an engine does not answer."""
        try:
            await self.gate.settle()
        except OmniRLError as error:
            logger.warning("the gate moves once every engine answers: %s", error)
        return self.gate.answer()

    def incident_answer(self, incident: Incident) -> IncidentAnswer:
        """Return an incident with links to the guide as the operator's settings have it."""
        return incident_answer(incident, self.settings.pager.guide)

    async def end_incident(self, number: int, by: str) -> Incident:
        """End an incident for a person, who vouches for the next step of its run if that drifts.

        Raises:
            NotFoundError: there is no incident of that number.
            ConflictError: its run's gate is shut; resuming the run ends the incident.
        """
        found = await self.store.incident(number)
        why = f"ended by {by}"
        if found.kind == "drift" and found.run is not None and found.ended is None:
            run = await self.run(found.run)
            async with run.turn:
                if run.drift.gate != "open":
                    raise ConflictError(
                        f"the gate of run {run.name} is {run.drift.gate}: resume the run, which ends it"
                    )
                await self._responder.forget(run)  # inside `turn`: a step that shuts the gate needs the search
                await self._record(run, run.policy.resumed(run.drift, why), {})
        ended = await self.store.end_incident(number, why)
        await self.updates.forget(ended)
        await self._members.forget(ended)
        self.events.poke()
        return ended

    async def check(self, body: CheckBody) -> CheckAnswer:
        """Compare both policies now, by the limits of the run that is named, or else of the cluster's run. A step is
        explained from its records, without asking the pair, if the cluster does not answer, or if its run is not
        sampled by the cluster and nothing more is asked for."""
        if body.run is not None and body.attempt is not None and body.step is not None:
            run = await self.run(body.run)
            asks_the_pair = run.body.gated or body.reference or body.localise
            if not (asks_the_pair and self._cluster.connected):
                return await self.checks.of_records(StepKey(body.run, body.attempt, body.step))
        limits = limits_for(self._cluster.dtype)
        if body.run is not None:
            limits = (await self.run(body.run)).yardstick.limits
        elif self._cluster.run is not None:
            with contextlib.suppress(NotFoundError):
                limits = (await self.run(self._cluster.run)).yardstick.limits
        return (await self.checks.make(CheckRequest(**body.model_dump()), limits)).answer

    async def ready(self) -> ReadyAnswer:
        """Return whether the ledger answers and, if there is to be a cluster, none of its actors is dead, stopped or in
        quarantine, and its weights are there."""
        try:
            await self.store.ready()
        except OmniRLError as error:
            return ReadyAnswer(ready=False, reason=str(error))
        reason = "" if self._alone else fallen(self._cluster)
        return ReadyAnswer(ready=not reason, reason=reason)

    async def metrics(self) -> bytes:
        """Return the text that Prometheus scrapes, with the ledger's open incidents: a restart ends no alert."""
        self.telemetry.open_incidents(await self.store.open_severities(INCIDENTS))
        return await asyncio.to_thread(self.telemetry.expose)  # thousands of lines

    async def state(self) -> StateAnswer:
        cluster = self._cluster
        found = await self.store.incidents(still_open=True, worst_first=True, limit=OPEN)
        return StateAnswer(
            version=__version__,
            started=self._started,
            gate=self.gate.answer(),
            cluster=ClusterAnswer(
                expected=not self._alone,
                connected=cluster.connected,
                reason=cluster.reason,
                address=cluster.address,
                run=cluster.run,
                members=[MemberAnswer(**vars(member)) for member in cluster.members],
            ),
            sync=self.syncs.running,
            runs=[run.answer() for run in self._runs.newest()],
            needs={need.label: count for need, count in (await self.store.needs(self._unseen)).items()},
            incidents=[self.incident_answer(one) for one in found],
            alarms=[alarm_answer(one) for one in found if one.kind in ALARMS],
        )

    async def _record(self, run: LiveRun, outcome: Outcome, evidence: Evidence) -> None:
        """Make what changed between two steps durable, and only then set the run's drift."""
        seen, over = pursued(run, outcome, evidence)
        key = None if run.latest is None else StepKey(run.name, *run.latest)
        events = transition_events(run.name, outcome)
        await self.store.put_state(
            run.name, run.after(drift=outcome.drift, events=events, seen=seen, over=over, key=key)
        )
        run.drift = outcome.drift
        self.telemetry.runs.severity(run.name, run.drift.severity)
        self.events.poke()

    async def _watch(self) -> None:
        await self._look_at_cluster()
        await self.gate.observe(self._cluster.gate)
        if await self.silence.look():
            self.events.poke()

    async def _look_at_cluster(self) -> None:
        seen = await self._bridge.state()
        if seen.connected != self._cluster.connected:
            await self.events.publish("cluster", connected=seen.connected, reason=seen.reason)
        if not seen.connected:
            known = self._cluster
            seen = replace(seen, address=known.address, run=known.run, members=known.members)
        self._cluster = seen
        if seen.connected or self._alone:
            self._connected.set()
        if not self._alone and await self._members.look(seen):
            self.events.poke()
        self.telemetry.ray_up.set(seen.connected)
        self.telemetry.members(seen.members if seen.connected else ())
        self.telemetry.gate_closed.set(self.gate.closed)
        self.telemetry.cluster_of(seen.run)

    def _heard(self, event: EventAnswer) -> None:
        if event.kind == "incident":
            self.pager.poke()
            self._followers.heard(event)
