"""Makes the faults of a soak happen: what strikes, when `/readyz` shows it, and when the service is whole again."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

from omni_rl.client.blocking import Client
from omni_rl.client.retries import ONCE
from omni_rl.errors import OmniRLError, SyncRunningError
from omni_rl.processes import wait_until_gone
from omni_rl.service.state import Process
from omni_rl_bench.soak.ground import Ground
from omni_rl_bench.soak.load import PATIENT, Load
from omni_rl_bench.soak.memory import processes
from omni_rl_bench.soak.plan import SHOWN_SECONDS, STARTING_ANEW, Fault, Plan
from omni_rl_bench.soak.readiness import Readiness
from omni_rl_bench.soak.supervised import Supervised

WHOLE_SECONDS = 400.0
"""The seconds after which nobody waits any more for the service to be whole again."""
LOOK_SECONDS = 0.5
CLOCK_SECONDS = 5400
"""How many seconds the clock is set forward or back: a run is silent after less."""
WORK = frozenset({"put part", "seal", "put media", "sync", "check", "submit"})
"""The calls that a service which is ready carries out."""
EDGE_SECONDS = 1.0
"""The seconds before and after a call that was refused, in which a look at `/readyz` counts too."""
SEEN_AS = {"head": "Ray's gcs_server", "raylet": "Ray's raylet", "rank 0": "rank", "rank 1": "rank"}
"""The kinds of process by their names in `processes`, where those are others."""


@dataclass(frozen=True)
class Met:
    """One fault that happened, from `at` to `ended` seconds after the beginning of the soak.

    `shown_after` is the seconds from `at` until `/readyz` said that the service is not ready, for this `reason`; None:
    it did not. `whole_after` is the seconds from `ended` until everything answered again, None: it never did. `within`
    is the stated time for that.
    """

    how: str
    what: str
    at: float
    ended: float
    shown_after: float | None
    reason: str
    whole_after: float | None
    within: float
    shows: bool

    @property
    def unseen(self) -> bool:
        """Whether `/readyz` had to show the fault in its time, and did not."""
        late = SHOWN_SECONDS if self.shown_after is None else self.shown_after
        return self.shows and late >= SHOWN_SECONDS and self.ended - self.at > SHOWN_SECONDS


class Chaos:
    """Makes one fault after the other until `load` has ended; `supervised` starts again what has no supervisor of its
    own."""

    def __init__(
        self,
        load: Load,
        plan: Plan,
        readiness: Readiness,
        supervised: Supervised,
        ground: Ground,
    ) -> None:
        self._load = load
        self._plan = plan
        self._readiness = readiness
        self._supervised = supervised
        self._ground = ground
        self._acting = threading.Lock()
        self._given_up = False
        self.began = time.monotonic()
        self.met: list[Met] = []

    @property
    def missing(self) -> set[Fault]:
        """The plan's faults that have not happened yet."""
        met = {(each.how, each.what) for each in self.met}
        return {fault for fault in self._plan.round if (fault.how, fault.what) not in met}

    def run(self) -> None:
        self.began = time.monotonic()
        ended = self._load.callers.ended
        with self._load.service.client(ONCE) as client:
            while not ended.wait(self._plan.gap()):
                fault = self._plan.next(time.monotonic() - self.began)
                with self._load.calls.dead():
                    self._meet(fault, client)

    def give_up(self) -> None:
        """Return when nothing is being struck or started, and nothing will be."""
        self._given_up = True
        with self._acting:
            pass

    def figures(self) -> dict[str, Any]:
        return {
            "faults": [{**asdict(each), "unseen": each.unseen} for each in self.met],
            "faults_missing": sorted(map(str, self.missing)),
        }

    def ended_trainer(self, began: float, ended: float) -> bool:
        """Return whether between two times of the monotonic clock a fault ended what a job has learnt."""
        ending = {(fault.how, fault.what) for fault in STARTING_ANEW}
        times = [self.began + each.at for each in self.met if (each.how, each.what) in ending]
        return any(began <= at <= ended for at in times)

    def ready_and_not_able(self) -> list[str]:
        """Return the calls that were refused later than `/readyz` may take to show a fault, while each look found it
        ready."""
        return [
            f"{trouble.call}: {trouble.error}"
            for trouble in self._load.calls.troubles
            if trouble.call in WORK
            and not any(
                trouble.began <= self.began + met.at + SHOWN_SECONDS and self.began + met.at <= trouble.ended
                for met in self.met
            )
            and self._readiness.only_ready(trouble.began - EDGE_SECONDS, trouble.ended + EDGE_SECONDS)
        ]

    def _meet(self, fault: Fault, client: Client) -> None:
        held = self._plan.held()
        with self._acting:
            struck = time.monotonic()
            if self._load.callers.ended.is_set():
                return
            with self._struck(fault) as there:
                if there and fault.how != "kill":
                    self._hold(client, held)
        ended = time.monotonic()
        if not there:
            return
        whole = self._whole(client)
        after = round(time.monotonic() - ended, 1) if whole else None
        shown = self._readiness.first_unready(struck, time.monotonic())
        self.met.append(
            Met(
                fault.how,
                fault.what,
                round(struck - self.began, 1),
                round(ended - self.began, 1),
                None if shown is None else round(shown.at - struck, 1),
                "" if shown is None else shown.reason,
                after,
                fault.seconds,
                fault.shows,
            )
        )

    @contextmanager
    def _struck(self, fault: Fault) -> Iterator[bool]:
        """Strike, and end the fault with the context; yields whether there was what it strikes."""
        match fault.how:
            case "stop":
                pid = self._pid(fault.what)
                if pid is None:
                    yield False
                    return
                with _during(lambda: os.kill(pid, signal.SIGSTOP), lambda: os.kill(pid, signal.SIGCONT)):
                    yield True
            case "kill":
                yield self._kill(fault.what)
            case "fill":
                disk = self._ground.disk if fault.what == "ledger" else self._ground.shared_memory
                with _during(disk.fill, disk.free):
                    yield True
            case "clock":
                far = -CLOCK_SECONDS if fault.what == "back" else CLOCK_SECONDS
                with _during(lambda: self._ground.clock.set(far), lambda: self._ground.clock.set(0)):
                    yield True

    def _kill(self, what: str) -> bool:
        if what == "job":
            with self._load.service.client(PATIENT) as client:
                return self._load.stop_job(client)
        pid = self._pid(what)
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
            wait_until_gone([pid])
        return pid is not None

    def _pid(self, what: str) -> int | None:
        """Return the youngest process of the kind, so that an old one is there to be followed; of the ranks the one
        that is named by its place among them."""
        pids = sorted(
            processes(self._load.service.run)[SEEN_AS.get(what, what)],
            key=lambda pid: int(Process.of(pid).started or 0),
        )
        place = int(what[-1]) if what.startswith("rank") else -1
        return pids[place] if len(pids) > max(place, 0) else None

    def _hold(self, client: Client, seconds: float) -> None:
        """Let the fault last, and meanwhile ask for what the service is for. A stopped coordinator answers that once it
        goes on, so nothing may wait for it here."""
        over = threading.Event()

        def work() -> None:
            while not over.wait(2 * LOOK_SECONDS):
                self._sync(client)

        threading.Thread(target=work, name="work", daemon=True).start()
        self._load.callers.ended.wait(seconds)
        over.set()

    def _sync(self, client: Client) -> bool:
        """Sync, and return whether it was committed."""
        with self._load.calls.timed("sync"), suppress(SyncRunningError):
            self._load.acknowledged.sync(client.sync())
            return True
        return False

    def _whole(self, client: Client) -> bool:
        """Return whether everything answers again, engines with the served weights behind an open gate. A sync brings
        in the successors of engines that died, as any job's next step would."""
        deadline = time.monotonic() + WHOLE_SECONDS
        while time.monotonic() < deadline:
            with suppress(OmniRLError):
                with self._acting:
                    if self._given_up:
                        return False
                    self._supervised.look()
                state = client.state()
                open_ = state.cluster.connected and state.gate.gate == "open"
                if self._sync(client) and open_ and client.ready().ready:
                    return True
            time.sleep(LOOK_SECONDS)
        return False


@contextmanager
def _during(begin: Callable[[], None], end: Callable[[], None]) -> Iterator[None]:
    begin()
    try:
        yield
    finally:
        with suppress(ProcessLookupError):  # whoever watched it ended it
            end()
