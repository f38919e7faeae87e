"""The processes of a run: replicas, trainer, slab owner and coordinator, and how they find and reach each other."""

import json
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Client, Connection, Listener
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from omni_rl.errors import OmniRLError, ReplicaDeadError, ReplicaSilentError, ReplicaStoppedError, SourceError
from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal, opened_journal
from omni_rl.processes import life, wait_until_gone
from omni_rl.rollout.service import ReplicaService
from omni_rl.sync.journal import Journal
from omni_rl.sync.manifest import Manifest
from omni_rl.sync.replica import Command, Deadline, InFlight, ReplicaStatus
from omni_rl.sync.replica_group import Deadlines
from omni_rl.sync.slab import OpenSlabs, Slab
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl.sync.weight_sync import WeightSync
from tests.chaos.fake_engine import PLACES, RUN, FakeEngine, Faults, NumberSource
from tests.nursery import fork

REPLICAS = ("r0", "r1")
PARTIES = ("trainer", "owner", *REPLICAS, "coordinator")
LOOK_EVERY = 0.02
STOPPED_AFTER = 0.3
START_SECONDS = 20.0
DEADLINES = Deadlines(answer=3.0, drain=3.0, write=3.0, prove=3.0, score=3.0, decide=1.0)
# Requests under way at any moment: of different lengths, so that they end at different steps.
TOKENS_PER_REQUEST = (3, 5, 11)

GONE = (ConnectionRefusedError, ConnectionResetError, BrokenPipeError, FileNotFoundError, EOFError)


@dataclass(frozen=True)
class Home:
    """One run's directory. Everything is a file in it (sockets, process ids, logs, slabs, tokens) but the journal,
    which is that of `run` in the ledger with this URL."""

    path: Path
    nursery: str
    ledger: str
    run: str

    def start(self, party: str, run: Callable[..., None], *arguments: Any) -> int:
        pid = fork(self.nursery, self.path / f"{party}.log", _to_its_end, run, self, party, *arguments)
        (self.path / f"{party}.pid").write_text(str(pid))
        return pid

    def pid(self, party: str) -> int:
        return int((self.path / f"{party}.pid").read_text())

    def socket(self, party: str) -> str:
        return str(self.path / f"{party}.sock")

    @property
    def shared_memory(self) -> Path:
        return self.path / "shm"


def kill(home: Home, party: str) -> None:
    pid = home.pid(party)
    os.kill(pid, signal.SIGKILL)
    wait_until_gone([pid])


def ask(home: Home, party: str, message: tuple[Any, ...], deadline: Deadline) -> Any:
    """What a party answers; raises what it raised, or says how it is that it did not answer."""
    pid = home.pid(party)
    end = time.monotonic() + deadline.seconds
    stopped_since: float | None = None
    try:
        with Client(home.socket(party)) as connection:
            connection.send(message)
            while not connection.poll(LOOK_EVERY):
                now = time.monotonic()
                stopped_since = (stopped_since or now) if life(pid) == "stopped" else None
                if stopped_since is not None and now - stopped_since > STOPPED_AFTER:
                    raise ReplicaStoppedError(f"{party}: process {pid} is stopped, not dead, and did not answer")
                if now > end:
                    raise ReplicaSilentError(f"{party}: no answer within its deadline {deadline.name!r}")
            kind, answer = connection.recv()
    except GONE as error:
        raise ReplicaDeadError(f"{party}: process {pid} is gone") from error
    if kind == "error":
        raise answer
    return answer


def answer_for_ever(address: str, answer: Callable[..., Any]) -> None:
    """Serve a party's socket; every question has a thread, so that none waits for another's answer."""

    def one(connection: Connection) -> None:
        with connection:
            try:
                reply = ("answer", answer(*connection.recv()))
            except OmniRLError as error:
                reply = ("error", error)
            connection.send(reply)

    Path(address).unlink(missing_ok=True)
    with Listener(address, backlog=64) as listener:
        while True:
            threading.Thread(target=one, args=(listener.accept(),), daemon=True).start()


# Replicas.


def replica(home: Home, party: str, closed: bool) -> None:
    """The real service around a fake engine. It samples all the time, and writes down every token."""
    service = ReplicaService(party, FakeEngine, closed=closed)
    threading.Thread(target=_sample_for_ever, args=(service, home.path / f"{party}.tokens"), daemon=True).start()

    def answer(kind: str, *arguments: Any) -> Any:
        if kind == "obey":
            return service.obey(*arguments).result()
        if kind == "fault":
            service.loop.ready.result().faults = arguments[0]
        return service.status

    answer_for_ever(home.socket(party), answer)


def _sample_for_ever(service: ReplicaService[FakeEngine], log: Path) -> None:
    with log.open("a", buffering=1) as file:
        while True:
            try:
                answers = service.loop.requests(lambda engine: engine.submit(TOKENS_PER_REQUEST)).result()
            except OmniRLError:
                return
            for tokens in answers:
                file.write(json.dumps([[token.version, token.held] for token in tokens]) + "\n")


@dataclass(frozen=True)
class FakeReplica:
    """The coordinator's hold on a replica; a successor is forked like the first one."""

    home: Home
    name: str

    def call(self, command: Command, deadline: Deadline) -> Any:
        return ask(self.home, self.name, ("obey", command), deadline)

    def status(self, deadline: Deadline) -> ReplicaStatus:
        status: ReplicaStatus = ask(self.home, self.name, ("status",), deadline)
        return status

    def replace(self) -> None:
        pid = self.home.pid(self.name)
        if life(pid) != "gone":
            kill(self.home, self.name)
        self.home.start(self.name, replica, True)
        wait_for(self.home, self.name)


def wait_for(home: Home, party: str) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            ask(home, party, ("status",), Deadline("start", START_SECONDS))
        except ReplicaDeadError:
            assert life(home.pid(party)) != "gone", (home.path / f"{party}.log").read_text()
            assert time.monotonic() < deadline, f"{party} did not start"
            time.sleep(LOOK_EVERY)
        else:
            return


# Trainer and slab owner.


def trainer(home: Home, party: str) -> None:
    slabs = OpenSlabs()

    def answer(kind: str, *arguments: Any) -> Any:
        if kind == "fill":
            path, source = arguments
            return source.fill(slabs.at(path))
        return None

    answer_for_ever(home.socket(party), answer)


@dataclass(frozen=True)
class TrainerSource:
    """Version number `number`, written by the trainer's process, `seconds` a tensor."""

    home: Home
    number: int
    seconds: float = 0.0

    def fill(self, slab: Slab) -> Manifest:
        message = ("fill", slab.path, NumberSource(self.number, self.seconds))
        try:
            manifest: Manifest = ask(self.home, "trainer", message, Deadline("fill", 5.0))
        except ReplicaDeadError as error:
            raise SourceError(f"the trainer died while it sent weights number {self.number}") from error
        return manifest


def owner(home: Home, party: str) -> None:
    with SlabOwner(RUN, PLACES, home.shared_memory):
        answer_for_ever(home.socket(party), lambda kind: None)


# The coordinator.


@dataclass(frozen=True)
class Strike:
    """Send `signal` to `victim` when the sync comes to `point` (see `label`) for the `time`-th time."""

    point: str
    victim: str
    signal: int = signal.SIGKILL
    time: int = 1


@dataclass(frozen=True)
class Job:
    """What a coordinator does after it has opened the run: sync version `number`, if there is one.

    `strike` falls in the sync, or in the opening if there is nothing else. `damage`: at PAUSE, one bit of this tensor
    flips in the slab that the new weights lie in. `ledger_fails_at`: from this point on, the ledger cannot be written.
    """

    number: int | None = None
    strike: Strike | None = None
    damage: str | None = None
    ledger_fails_at: str | None = None
    seconds: float = 0.0
    key: str | None = None
    mode: InFlight = "recompute"
    force: bool = False


def label(event: SyncEvent, going_back: bool) -> str:
    """ "apply" when a phase is entered, "apply:r0" when a replica has done its part; after a rollback "back ..."."""
    text = event.phase.value if event.replica is None else f"{event.phase.value}:{event.replica}"
    return f"back {text}" if going_back and event.phase is not Phase.ROLLBACK else text


def coordinator(home: Home, party: str, job: Job) -> None:
    """Open the run, sync once, and leave what came of it in a file."""
    going_back = False
    striking = job.number is None
    passed: Counter[str] = Counter()

    def observe(event: SyncEvent) -> None:
        nonlocal going_back
        going_back = going_back or event.phase is Phase.ROLLBACK
        point = label(event, going_back)
        journal.observe(event)
        with suppress(OSError):  # where the disk is full
            os.write(1, f"{point} {event.what} {event.detail}\n".encode())
        strike = job.strike
        if striking and job.damage is not None and point == "pause":
            flip(journal, job.damage)
        if striking and job.ledger_fails_at == point and event.what == "entered":
            break_ledger(home)
        passed[point] += striking and event.what != "failed"
        if strike is not None and strike.point == point and passed[point] == strike.time:
            passed[point] += 1
            pid = os.getpid() if strike.victim == party else home.pid(strike.victim)
            if strike.victim == party and strike.signal == signal.SIGSTOP:
                # Between two writes: what stopping inside one does is a test of the journal alone.
                ledger.writer.submit(lambda connection: None).result()
            os.kill(pid, strike.signal)
            if strike.victim != party and strike.signal == signal.SIGKILL:
                wait_until_gone([pid])

    outcome: dict[str, Any] = {}
    try:
        with Ledger.open(home.ledger) as ledger, closing(LedgerJournal(ledger, home.run, force=job.force)) as journal:
            slabs = SlabPair(home.shared_memory / f"omni-rl-{RUN}")
            replicas = [FakeReplica(home, name) for name in REPLICAS]
            sync = WeightSync(journal, slabs, replicas, deadlines=DEADLINES, observe=observe)
            outcome["opened"] = sync.open(NumberSource(0)).to_json()
            if job.number is not None:
                striking, going_back = True, False
                source = TrainerSource(home, job.number, job.seconds)
                outcome["result"] = sync.sync(source, key=job.key, mode=job.mode).to_json()
    except OmniRLError as error:
        outcome |= {"code": error.code, "error": str(error)}
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    (home.path / f"{party}.json").write_text(json.dumps(outcome))


def flip(journal: Journal, tensor: str) -> None:
    """One bit, in the middle of a tensor of the slab that is being synced."""
    left = journal.unfinished()
    assert left is not None
    (entry,) = (entry for entry in PLACES if entry.name == tensor)
    with Path(left.slab.path).open("r+b") as file:
        file.seek(entry.offset + entry.nbytes // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))


def break_ledger(home: Home) -> None:
    """A full disk: no file of this process can grow any more. PostgreSQL is another process: it ends at once."""
    url = sa.make_url(home.ledger)
    if url.get_backend_name() == "sqlite":
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
    else:
        server = int(Path(str(url.query["host"]), "data", "postmaster.pid").read_text().split()[0])
        os.kill(server, signal.SIGQUIT)
        wait_until_gone([server])


def _to_its_end(run: Callable[..., None], *arguments: Any) -> None:
    """Call `run`, and end the process without waiting for threads."""
    code = 1
    try:
        run(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def rehearse() -> None:
    """Everything that a party does, once: what is loaded on first use is there for all that are forked later."""
    Database("postgresql+psycopg://").close()  # loads the driver
    with (
        tempfile.TemporaryDirectory() as directory,
        SlabOwner(RUN, PLACES, Path(directory)) as owner,
        opened_journal(Path(directory) / "ledger.db", RUN) as journal,
    ):
        slabs, engine = SlabPair(owner.directory), FakeEngine()
        filled = slabs.fill(slabs.idle(None), NumberSource(0))
        journal.begin("rehearsal", None, journal.next_epoch(None), filled.slab.path, "recompute")
        engine.apply(filled.slab, "recompute")
        assert not engine.verify(filled.slab).mismatches
        engine.submit([1])
        engine.step()
        engine.close()
        slabs.close()


__all__ = ["PARTIES", "REPLICAS", "Faults", "Home", "Job", "Strike", "coordinator", "owner", "replica", "trainer"]
