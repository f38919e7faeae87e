"""Changes the code of a room at random places and says which changes the room's tests do not notice.

    make mutants ARGS="--rooms ledger sync --count 60 --seed 3"

Cosmic Ray makes the changes, one at a time, in a copy of the tracked files below `.mutants/`. Of the room's tests only
those run that execute a changed line, the quickest first and a minute's at most; one coverage run for each room says
which these are. Run it on a quiet machine: where others make tests slow, fewer of them fit into the minute, and more
changes survive. A call with the same rooms, count, seed and code goes on where the last one stopped; `--again` tries
the survivors once more. What `tools/equal_mutants.json` lists is left out of the rate: those changes alter nothing that
anyone could notice.
"""

import argparse
import fcntl
import json
import random
import sys
from collections import Counter
from contextlib import ExitStack
from pathlib import Path

from cosmic_ray.commands.init import init
from cosmic_ray.mutating import _make_diff, use_mutation
from cosmic_ray.plugins import get_operator
from cosmic_ray.work_db import WorkDB, use_db
from cosmic_ray.work_item import MutationSpec, TestOutcome, WorkerOutcome, WorkItem, WorkResult

from omni_rl_bench.result import Goal, write_result
from tools.covering import Covering, Room, digest_of
from tools.forked import copy_checkout, failure, import_others, run_pytest

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / ".mutants"
EQUAL = ROOT / "tools" / "equal_mutants.json"
ROOMS = {
    "consistency": Room(Path("omni_rl/consistency"), ("tests/consistency",)),
    "sync": Room(Path("omni_rl/sync"), ("tests/sync", "tests/chaos"), ("tests/sync/test_slab_owner_ray.py",)),
    "ledger": Room(Path("omni_rl/ledger"), ("tests/ledger",)),
    "services": Room(Path("services/omni_rl_services/coordinator"), ("tests/services",)),
}
# `|` joins types nearly everywhere here, and a changed annotation ends the import.
LEFT_OUT = ("core/ReplaceBinaryOperator_BitOr",)
# A change with which a test takes more than ten times what it took unchanged, and half a minute, has made it hang.
SLOWER, AT_LEAST_S = 10, 30
ENOUGH = 0.95


def choose(database: WorkDB, tree: Path, rooms: list[str], count: int, seed: int) -> None:
    """Put `count` changes into the session, in random order: as many of every room, each at a place as likely as any
    other, and one of the changes that are possible there."""
    chance, chosen = random.Random(seed), []
    for index, room in enumerate(rooms):
        init(sorted((tree / ROOMS[room].code).rglob("*.py")), database, {})
        places: dict[tuple[str, tuple[int, int]], list[WorkItem]] = {}
        for item in sorted(database.work_items, key=lambda item: _which(item.mutations[0])):
            if not item.mutations[0].operator_name.startswith(LEFT_OUT):
                places.setdefault(_which(item.mutations[0])[:2], []).append(item)
        share = (count + len(rooms) - 1 - index) // len(rooms)
        chosen += [chance.choice(places[place]) for place in chance.sample(list(places), min(share, len(places)))]
        print(f"{room}: {share} of {len(places)} places", flush=True)
    chance.shuffle(chosen)
    database.clear()
    database.add_work_items(chosen)


def attempt(mutation: MutationSpec, tree: Path, covering: Covering) -> WorkResult:
    """Make one change, run the tests that execute it, and undo it."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    with ExitStack() as undone:
        try:
            change = use_mutation(mutation.module_path, operator, mutation.occurrence)
            before, after = undone.enter_context(change)
        except AttributeError:  # for one, its operator for exceptions knows no dotted names
            return WorkResult(WorkerOutcome.NORMAL, "Cosmic Ray cannot make it", TestOutcome.INCOMPETENT, "")
        where = mutation.module_path.relative_to(tree)
        diff = "\n".join(_make_diff(before, after, where)[1:])
        # Python would take the unchanged module's bytecode for the changed one where size and second are the same.
        for cached in (mutation.module_path.parent / "__pycache__").glob(f"{where.stem}.*"):
            cached.unlink()
        try:
            compile(after, str(where), "exec")
        except SyntaxError:
            return WorkResult(WorkerOutcome.NORMAL, "is no Python", TestOutcome.INCOMPETENT, diff)
        outcome, told = TestOutcome.SURVIVED, "no test executes it"
        for tests in covering.tests(where, before, mutation.start_pos[0], mutation.end_pos[0]):
            each = AT_LEAST_S + SLOWER * max(covering.durations[test] for test in tests)
            # What hangs outside of any test, at its end say, meets the limit for all.
            code = run_pytest(tree, ["-x", f"--timeout={each:.0f}", *tests], each + SLOWER * covering.seconds(tests))
            told = "hung" if code is None else failure(tree) if code else f"{len(tests)} tests pass"
            if code != 0:
                outcome = TestOutcome.KILLED
                break
    return WorkResult(worker_outcome=WorkerOutcome.NORMAL, output=told, test_outcome=outcome, diff=diff)


def report(items: list[WorkItem], results: dict[str, WorkResult]) -> dict[str, Counter[str]]:
    """Print every survivor and each room's counts; returns the counts."""
    counts: dict[str, Counter[str]] = {}
    for item in items:
        if (result := results.get(item.job_id)) is None:
            continue
        room, outcome = _room(item), _outcome(result)
        if outcome == "survived" or result.output == "hung":
            print(f"\n{room}, {outcome}, {result.output}:\n{result.diff}")
        counts.setdefault(room, Counter())[outcome] += 1
    counts["all"] = sum(counts.values(), Counter())
    for room, count in counts.items():
        print(f"{room}: {count['killed']} noticed, {count['survived']} not, {count['equal']} equal")
    return counts


def _outcome(result: WorkResult) -> str:
    """Return killed; survived, or equal if the list of equal changes has it; or incompetent, which is not valid
    Python."""
    if result.test_outcome != TestOutcome.SURVIVED:
        return str(result.test_outcome.value)
    lines = result.diff.splitlines()
    sides = ([line[1:].strip() for line in lines[2:] if line.startswith(sign)] for sign in "-+")
    before, after = ("\n".join(side).strip() for side in sides)
    change = {"file": lines[0].removeprefix("--- a/").strip(), "before": before, "after": after}
    known = json.loads(EQUAL.read_text())
    # An entry without a file holds for every file.
    equal = any(all(entry.get(name, value) == value for name, value in change.items()) for entry in known)
    return "equal" if equal else "survived"


def _room(item: WorkItem) -> str:
    path = item.mutations[0].module_path.as_posix()
    return next(name for name, room in ROOMS.items() if f"/{room.code.as_posix()}/" in path)


def _which(mutation: MutationSpec) -> tuple[str, tuple[int, int], str, int]:
    return str(mutation.module_path), mutation.start_pos, mutation.operator_name, mutation.occurrence


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rooms", nargs="+", choices=ROOMS, default=list(ROOMS))
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="try the survivors once more, with the tests as they are")
    parser.add_argument("--out", type=Path, help="write the counts as a benchmark's result")
    options = parser.parse_args()
    tree = PLACE / "tree"
    PLACE.mkdir(exist_ok=True)
    held = (PLACE / "lock").open("w")
    fcntl.flock(held, fcntl.LOCK_EX)  # two calls at once would change the same copy
    copy_checkout(ROOT, tree)
    code = digest_of(tree / ROOMS[room].code for room in options.rooms)
    session = PLACE / f"{'-'.join(options.rooms)}-{options.count}-{options.seed}-{code[:8]}.sqlite"
    known = session.exists()
    import_others()
    with use_db(str(session), WorkDB.Mode.open if known else WorkDB.Mode.create) as database:
        if not known:
            choose(database, tree, options.rooms, options.count, options.seed)
        results, items = dict(database.results), list(database.work_items)
        covering: dict[str, Covering] = {}
        for number, item in enumerate(items, 1):
            done = results.get(item.job_id)
            if done and not (options.again and _outcome(done) == "survived"):
                continue
            name = _room(item)
            if name not in covering:
                covering[name] = Covering.of(ROOMS[name], tree, PLACE / name)
            results[item.job_id] = result = attempt(item.mutations[0], tree, covering[name])
            database.set_result(item.job_id, result)
            print(f"{number}/{len(items)} {name}, {_outcome(result)}, {result.output}", flush=True)
    counts = report(items, results)
    share = counts["all"]["killed"] / max(counts["all"]["killed"] + counts["all"]["survived"], 1)
    if options.out:
        command = f'make mutants ARGS="--rooms {" ".join(options.rooms)} --count {options.count} --seed {options.seed}"'
        goal = Goal("changes of the code that a room's tests notice, share", share, ENOUGH, "higher")
        write_result(options.out, command, [goal], {room: dict(count) for room, count in counts.items()})
    return 0 if share >= ENOUGH else 1


if __name__ == "__main__":
    sys.exit(main())
