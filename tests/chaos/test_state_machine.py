"""Any sequence of syncs, faults, deaths and crashes: no forbidden transition, no wrong token, nothing left to mend."""

import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from omni_rl.errors import QuarantinedError, SyncRolledBackError
from omni_rl.sync.replica import InFlight
from omni_rl.sync.states import Phase, SyncEvent
from omni_rl.sync.version import WeightVersion
from omni_rl.sync.weight_sync import WeightSync
from tests.chaos.fake_engine import Faults, NumberSource, Token
from tests.chaos.in_process import BrokenSource, LocalRun

pytestmark = pytest.mark.slow

NAMES = st.sampled_from(["r0", "r1"])
MODES: st.SearchStrategy[InFlight] = st.sampled_from(["recompute", "drain", "keep"])
FAULTS = st.builds(
    Faults,
    skip_tensor=st.sampled_from([None, "embed", "norm"]),
    swap_in=st.sampled_from([None, "head"]),
    flip_after_apply=st.booleans(),
    times=st.integers(1, 3),
)
LETTERS = {
    Phase.PREPARE: "p",
    Phase.PAUSE: "s",
    Phase.APPLY: "a",
    Phase.VERIFY: "v",
    Phase.COMMIT: "c",
    Phase.RESUME: "r",
    Phase.ROLLBACK: "b",
    Phase.QUARANTINE: "q",
    Phase.IDLE: "i",
}
# Through; given up before anybody was touched; taken back; and what a coordinator does that finds one left. A crash
# can end each of them anywhere, so these are patterns of their beginnings.
WAYS = ("(p(s(a(v(c(rq?i?)?)?)?)?)?)?", "pi", "ps(a(vc?)?)?b(v(rq?i?)?)?", "rq?i?", "b(v(rq?i?)?)?")


class Cut(BaseException):
    """What everything raises for a coordinator that crashed: it reaches nobody any more."""


@dataclass
class Line:
    """A coordinator's connection to the world."""

    cut: bool = False

    def through(self, thing: Any) -> Any:
        return _Wire(self, thing)


@dataclass
class _Wire:
    line: Line
    thing: Any

    def __getattr__(self, name: str) -> Any:
        if self.line.cut:
            raise Cut
        value = getattr(self.thing, name)
        return self._call(value) if callable(value) else value

    def _call(self, method: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any) -> Any:
            if self.line.cut:
                raise Cut
            return method(*arguments)

        return checked


@dataclass
class Strike:
    """At the `at`-th event of a sync: the coordinator crashes, or a replica dies."""

    at: int
    replica: str | None
    passed: int = field(default=0)


class Syncs(RuleBasedStateMachine):
    ledger: str
    """The URL of the ledger that all examples share; each has a run of its own in it."""

    @initialize()
    def begin(self) -> None:
        self.directory = tempfile.TemporaryDirectory()
        self.run = LocalRun(Path(self.directory.name), opened=False, ledger=self.ledger)
        self.ways: list[str] = []
        self.strike: Strike | None = None
        self.number = 0
        self.possible = {0}
        self.crashed = False
        self._open()

    def _open(self) -> None:
        self.line = Line()
        replicas = [self.line.through(replica) for replica in self.run.replicas.values()]
        self.sync = WeightSync(self.line.through(self.run.journal), self.run.slabs, replicas, observe=self._observe)
        self.ways.append("")
        self.sync.open(NumberSource(0))
        self.crashed = False
        self.possible = {self._committed()}

    def _observe(self, event: SyncEvent) -> None:
        if event.what == "entered":
            if self.ways[-1].endswith("i"):
                self.ways.append("")
            self.ways[-1] += LETTERS[event.phase]
        strike = self.strike
        if strike is not None:
            strike.passed += 1
            if strike.passed == strike.at:
                if strike.replica is None:
                    self.line.cut = True
                    raise Cut
                if not self.run.replicas[strike.replica].dead:
                    self.run.replicas[strike.replica].kill()

    def _committed(self) -> int:
        committed = self.run.journal.committed()
        assert committed is not None
        return WeightVersion.parse(committed.version).number

    def _sync(self, source: Any, mode: InFlight) -> None:
        before = self._committed()
        self.possible = {before, self.number}
        try:
            result = self.sync.sync(source, mode=mode)
            assert WeightVersion.parse(result.serving).number == self.number
        except SyncRolledBackError:
            assert self._committed() == before
        except QuarantinedError:
            pass
        except Cut:
            self.crashed = True
            self.sync.close()
        finally:
            self.strike = None
        if not self.crashed:
            self.possible = {self._committed()}

    @rule(mode=MODES)
    @precondition(lambda self: not self.crashed)
    def new_weights(self, mode: InFlight) -> None:
        self.number += 1
        self._sync(NumberSource(self.number), mode)

    @rule(mode=MODES, name=NAMES, faults=FAULTS)
    @precondition(lambda self: not self.crashed)
    def new_weights_written_wrong(self, mode: InFlight, name: str, faults: Faults) -> None:
        self.number += 1
        if not self.run.replicas[name].dead:
            self.run.replicas[name].engine.faults = faults
        self._sync(NumberSource(self.number), mode)
        if not self.run.replicas[name].dead:
            self.run.replicas[name].engine.faults = Faults()

    @rule(mode=MODES)
    @precondition(lambda self: not self.crashed)
    def weights_that_never_come(self, mode: InFlight) -> None:
        self.number += 1
        self._sync(BrokenSource(), mode)

    @rule(mode=MODES, at=st.integers(1, 24), victim=st.sampled_from([None, "r0", "r1"]), faults=FAULTS)
    @precondition(lambda self: not self.crashed)
    def somebody_dies_in_the_middle(self, mode: InFlight, at: int, victim: str | None, faults: Faults) -> None:
        self.number += 1
        self.strike = Strike(at, victim)
        if not self.run.replicas["r1"].dead:
            self.run.replicas["r1"].engine.faults = faults
        self._sync(NumberSource(self.number), mode)

    @rule(name=NAMES)
    def replica_dies(self, name: str) -> None:
        if not self.run.replicas[name].dead:
            self.run.replicas[name].kill()

    @rule(name=NAMES, barren=st.booleans())
    def room_for_successors(self, name: str, barren: bool) -> None:
        self.run.replicas[name].barren = barren

    @rule(first=st.integers(1, 30), second=st.integers(1, 30))
    def sample(self, first: int, second: int) -> None:
        for replica in self.run.replicas.values():
            if not replica.dead:
                replica.sample(first, second)

    @rule()
    @precondition(lambda self: not self.crashed)
    def coordinator_crashes(self) -> None:
        self.line.cut = True
        self.crashed = True
        self.sync.close()

    @rule()
    @precondition(lambda self: self.crashed)
    def coordinator_returns(self) -> None:
        self.ways.append("")
        try:
            self._open()
        except QuarantinedError:
            self.crashed = False
            self.possible = {self._committed()}

    @invariant()
    def tokens_are_what_they_say(self) -> None:
        for replica in self.run.replicas.values():
            wrong: list[Token] = [token for token in list(replica.tokens) if not token.is_right()]
            assert not wrong

    @invariant()
    def whoever_samples_has_been_proven(self) -> None:
        for replica in self.run.replicas.values():
            if replica.dead:
                continue
            status = replica.service.status
            if replica.service.loop.gate_open:
                assert status.standing == "serving"
                assert status.holds is not None
                assert WeightVersion.parse(status.holds).number in self.possible
                if not self.crashed:
                    assert status.holds == self.sync.version
            else:
                assert status.standing != "serving"

    @invariant()
    def no_phase_is_out_of_order(self) -> None:
        for way in self.ways:
            assert any(re.fullmatch(allowed, way) for allowed in WAYS), way
        self.ways = self.ways[-1:]

    def teardown(self) -> None:
        if not hasattr(self, "run"):
            return
        for replica in self.run.replicas.values():
            replica.barren = False
        if self.crashed:
            self._open()
        else:
            self.sync.repair()
        assert self.run.all_serve(self.sync.version)
        self.sync.close()
        self.run.close()
        self.directory.cleanup()


def test_any_sequence(ledger_url: str) -> None:
    class OnThisLedger(Syncs):
        ledger = ledger_url

    limits = settings(
        max_examples=60, stateful_step_count=15, deadline=None, suppress_health_check=[HealthCheck.too_slow]
    )
    run_state_machine_as_test(OnThisLedger, settings=limits)
