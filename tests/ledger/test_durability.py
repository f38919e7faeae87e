"""Acknowledged means durable: under kill -9 of the writer and of the database, and with two writers at once."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from omni_rl.errors import ConflictError, LedgerError
from omni_rl.ledger import writer
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.tables import parts, payloads
from omni_rl.ledger.types import StepKey
from tests.nursery import Forked, started
from tests.postgres import Postgres

from .killed_writer import PARTS, RANKS, part, post_parts, say_digests
from .steps import judged, post, records, sealed

KILLS = 12
LONGEST = 300.0
"""Seconds in which a writer posts all parts, on any machine."""


@pytest.fixture(scope="module")
def nursery() -> Iterator[str]:
    """A nursery whose processes have made every part."""
    with started("tests.ledger.killed_writer:make_parts") as address:
        yield address


@pytest.fixture(scope="module")
def digests(nursery: str, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Each part's digest."""
    log = tmp_path_factory.mktemp("digests") / "log"
    assert Forked(nursery, log, say_digests).wait(LONGEST) == 0, log.read_text()
    return log.read_text().split()


def posted(nursery: str, log: Path, url: str, first: int, last: int, seconds: float | None) -> list[tuple[int, str]]:
    """What a writer acknowledged before it was killed after so many seconds of work (None: it may finish)."""
    writer = Forked(nursery, log, post_parts, url, first, last)
    while b"\n" not in log.read_bytes():
        assert writer.poll(0.01) in (None, 0), log.read_text()
    if seconds is None:
        assert writer.wait(LONGEST) == 0, log.read_text()
    elif writer.poll(seconds) is None:
        writer.kill()
        writer.wait(LONGEST)
    assert writer.poll() in (0, -signal.SIGKILL), log.read_text()
    whole = (line.split() for line in log.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))
    return [(int(number), stored.decode()) for number, stored in whole]


def contents(url: str) -> dict[tuple[int, int], tuple[str, str]]:
    """(step, rank) to the digest that is said and the digest of what is there; twice the same is an error here."""
    found: dict[tuple[int, int], tuple[str, str]] = {}
    keys = (payloads.c.attempt_id, payloads.c.step, payloads.c.rank)
    joined = parts.join(payloads, sa.and_(*(parts.c[key.name] == key for key in keys)))
    query = sa.select(parts.c.step, parts.c.rank, parts.c.digest, payloads.c.records).select_from(joined)
    with Ledger.open(url) as ledger, ledger.database.read() as connection:
        for step, rank, digest, payload in connection.execute(query):
            assert (step, rank) not in found
            found[step, rank] = digest, StepRecords.from_payload(bytes(payload)).digest
    return found


@pytest.mark.slow
def test_no_acknowledged_part_is_lost_or_doubled_by_repeated_kills(
    url: str, nursery: str, digests: list[str], tmp_path: Path
) -> None:
    """10,000 parts; each writer begins where a client would that lost its connection: some way before the last
    acknowledgement, so that what was written and not acknowledged comes again."""
    with Ledger.open(url) as ledger:
        ledger.put_run("run", {}).result()
    chance = random.Random(1)
    acknowledged: dict[int, str] = {}
    kills, first = 0, 0
    while len(acknowledged) < PARTS:
        seconds = None if kills >= KILLS else chance.uniform(0.05, 1.0)
        log = tmp_path / f"{kills}-{first}.log"
        for number, stored in posted(nursery, log, url, first, PARTS, seconds):
            assert not (stored == "new" and acknowledged.get(number)), f"part {number} was stored twice"
            acknowledged.setdefault(number, stored)
        kills += seconds is not None
        missing = next((n for n in range(PARTS) if n not in acknowledged), PARTS)
        first = max(0, missing - 5)
    there = contents(url)
    assert set(acknowledged) == set(range(PARTS))
    assert there == {divmod(number, RANKS): (digest, digest) for number, digest in enumerate(digests)}
    assert len(there) == PARTS
    assert kills > KILLS / 2
    assert Counter(acknowledged.values())["same"] < kills * 40


@pytest.mark.slow
def test_a_crash_of_postgresql_loses_nothing_and_is_recovered_from(postgres: Postgres) -> None:
    """What waits when the server dies gets an error, not a false acknowledgement; the ledger then works again."""
    with Ledger.open(postgres.new_database()) as ledger:
        ledger.put_run("run", {}).result()
        acknowledged = set()
        for round_ in range(3):
            waiting = {}
            for number in range(round_ * 400, round_ * 400 + 400):
                key, rank, made = part(number)
                waiting[number] = ledger.put_part(key, rank, made)
                if number % 400 == 200:
                    postgres.crash()
                    postgres.start()
            for number, future in waiting.items():
                error = future.exception()
                assert error is None or isinstance(error, LedgerError)
                if error is None:
                    acknowledged.add(number)
        there = {(step, p.rank): p.digest for step in range(300) for p in ledger.parts(StepKey("run", 0, step))}
    for number in acknowledged:
        key, rank, made = part(number)
        assert there[key.step, rank] == made.digest
    assert len(acknowledged) > 600


def test_two_writers_of_the_same_parts_agree_on_who_was_first(url: str) -> None:
    """Both post the same 60 parts, and 60 in which they differ: each is stored once, and the loser of a conflict is
    told."""
    outcomes: dict[str, list[str]] = {"a": [], "b": []}
    with Ledger.open(url) as first, Ledger.open(url) as second:
        first.put_run("run", {}).result()

        def write(name: str, ledger: Ledger) -> None:
            for step in range(120):
                made = records(seed=step if step % 2 else hash(name) % 1000 + step, rows=1, tokens=3)
                try:
                    outcomes[name].append(ledger.put_part(StepKey("run", 0, step), 0, made).result())
                except ConflictError:
                    outcomes[name].append("conflict")

        threads = [threading.Thread(target=write, args=pair) for pair in (("a", first), ("b", second))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for step in range(120):
            pair = sorted((outcomes["a"][step], outcomes["b"][step]))
            assert pair == (["new", "same"] if step % 2 else ["conflict", "new"])
            assert len(first.parts(StepKey("run", 0, step))) == 1


def test_two_writers_events_are_seen_in_order_by_a_follower(url: str) -> None:
    """A follower that asks for what came after the last number it saw misses none, whoever wrote it."""
    seen: list[int] = []
    with Ledger.open(url) as first, Ledger.open(url) as second, Ledger.open(url) as follower:
        writes = [ledger.add_event("tick", {"n": n}) for n in range(150) for ledger in (first, second)]
        while len(seen) < 300:
            seen += [event.id for event in follower.events(after=seen[-1] if seen else 0, limit=7)]
            if all(write.done() for write in writes) and follower.last_event() == (seen or [0])[-1]:
                break
            time.sleep(0.001)  # a follower that never rests would keep the interpreter from those that write
        assert len(seen) == 300
        assert sorted(write.result() for write in writes) == seen


def test_a_part_and_a_seal_from_two_writers_leave_no_step_with_a_part_it_was_not_judged_by(url: str) -> None:
    with Ledger.open(url) as first, Ledger.open(url) as second:
        first.put_run("run", {}).result()
        for step in range(20):
            key = StepKey("run", 0, step)
            post(first, key, records(rows=1))
            late = second.put_part(key, 1, records(rows=1, rank=1))
            seal = first.seal(judged(key, records(rows=1)))
            outcome = [type(f.exception()).__name__ if f.exception() else f.result() for f in (late, seal)]
            assert outcome in (["new", "ConflictError"], ["ConflictError", "new"])
            assert len(first.parts(key)) == (2 if outcome[0] == "new" else 1)


def test_readers_do_not_wait_for_a_writer(url: str) -> None:
    """They see what was before."""
    with Ledger.open(url) as ledger:
        ledger.put_run("run", {}).result()
        sealed(ledger, StepKey("run", 0, 1), records())
        entered, leave = threading.Event(), threading.Event()

        def slow(connection: sa.Connection) -> None:
            connection.execute(sa.text("UPDATE runs SET state = '5'"))
            entered.set()
            leave.wait(20)

        writing = ledger.writer.submit(slow)
        assert entered.wait(20)
        assert ledger.run("run").state is None
        assert len(ledger.steps("run", 0)) == 1
        leave.set()
        writing.result()
        assert ledger.run("run").state == 5


def test_a_full_disk_is_said_and_what_fits_later_is_written(tmp_path: Path) -> None:
    """SQLite's page limit stands for the disk's end; nothing that was acknowledged before or after is lost."""
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.put_run("run", {}).result()

        def limit(pages: int) -> None:
            ledger.writer.submit(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").close()).result()

        used = ledger.writer.submit(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one()).result()
        limit(used + 4)
        large = records(rows=30, tokens=500)
        writes = [ledger.put_part(StepKey("run", 0, n), 0, large if n == 1 else records(rows=1)) for n in range(3)]
        assert writes[0].result() == "new"
        with pytest.raises(LedgerError, match="cannot be written: database or disk is full"):
            writes[1].result()
        assert writes[2].result() == "new"
        limit(1_000_000)
        assert ledger.put_part(StepKey("run", 0, 1), 0, large).result() == "new"
        assert [len(ledger.parts(StepKey("run", 0, n))) for n in range(3)] == [1, 1, 1]


def test_a_ledger_that_refuses_a_write_is_not_ready_until_it_takes_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.take()
        ledger.put_run("run", {}).result()

        def limit(pages: int) -> None:
            ledger.writer.submit(lambda c: c.exec_driver_sql(f"PRAGMA max_page_count={pages}").close()).result()

        limit(ledger.writer.submit(lambda c: c.exec_driver_sql("PRAGMA page_count").scalar_one()).result() + 1)
        ledger.ready()
        with pytest.raises(LedgerError, match="disk is full"):
            ledger.put_part(StepKey("run", 0, 1), 0, records(rows=30, tokens=500)).result()
        with pytest.raises(LedgerError, match="disk is full"):
            ledger.ready()
        limit(1_000_000)
        with pytest.raises(LedgerError, match="disk is full"):
            ledger.ready()  # a small write went through, which a full disk takes too
        monkeypatch.setattr(writer, "REFUSED_SECONDS", 0.0)
        ledger.ready()
        assert ledger.writer.refusal is None


def test_a_write_that_is_wrong_itself_leaves_the_ledger_ready(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.take()
        with pytest.raises(LedgerError):
            ledger.writer.submit(lambda c: c.exec_driver_sql("INSERT INTO runs (run) VALUES (NULL)").close()).result()
        ledger.ready()


def test_a_ledger_whose_disk_has_no_room_left_is_not_ready_before_it_refuses_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        ledger.ready()
        monkeypatch.setattr("omni_rl.ledger.ledger.LEAST_FREE", 1 << 62)
        with pytest.raises(LedgerError, match=r"the disk of .*ledger\.db has \d+ bytes left"):
            ledger.ready()
