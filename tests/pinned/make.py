"""Makes the pinned artefacts of version 0.1.0, which later versions have to open and to read as they were meant.

Its parts were run at version 0.1.0, on the commit that renamed the coordinator's package to omni_rl_services, and are
not run again: they refuse to overwrite a file. What is missing in `data` they would make with the code of the day, so a
file that got lost comes back from version control. Where a name that is used here moves, it moves here too. How each
file in `data` was made:

- `ledger.zip`: a ledger in SQLite and its media store. `ledger_content.py` put three runs into it through the
  coordinator's API, by HTTP, with a hand-written cluster behind it, and three syncs through the ledger's journal.
- `ledger_postgresql.zip`: the same content, put in the same way into PostgreSQL 15, as `pg_dump --inserts` writes it.
- `ledger_answers.json`: what the coordinator answered to a GET of each path on that ledger, opened again (the answers
  of both databases were equal), and what an export of the run had in its files.
- `weights.zip`: a model directory as `save_pretrained` writes it: bfloat16, released names, the small tokenizer.
- `saved_run.zip`: what a job leaves behind to go on from: its parameters and two states, each a training checkpoint
  after real steps of AdamW. `checkpoint_content.py` made both; `tensors.json` tells dtypes, shapes and digests.
- `help.json`: the `--help` of every command; `status.json`, `doctor.json` and `plan.json`: what those commands printed
  with `--json`; `job_lines.json`: the lines of `omni-rl run` for GRPO and PPO, against a policy that is a table.

The files of a demo were made by hand on the same commit, with the small checkpoint of that commit:

- `report.json`: what `omni-rl demo --steps 1 --serve` left in its directory; `demo --json` prints the same document.
- `text.zip`, `mixed.zip`: bundles of two samples of that demo, by the function behind `omni-rl bundle --no-check`.
- `replay.json`: what `omni-rl replay mixed.zip --model omni_rl/checkpoints/small --json` printed.

    .venv/bin/python -m tests.pinned.make
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omni_rl import __version__
from omni_rl.ledger.ledger import Ledger
from tests.pinned import checkpoint_content, command_outputs, job_lines, ledger_content
from tests.pinned.kept_meaning import lost
from tests.pinned.ledger_answers import answers, exported
from tests.pinned.pinned_files import DATA, packed, unpacked
from tests.postgres import Postgres, find_binaries
from tests.services.live import live

MADE_BY = "0.1.0"
RUNS: Mapping[str, Mapping[int, Sequence[int]]] = {
    "digits": {1: range(7), 2: (4, 5)},
    "words": {1: (0,)},
    "halted": {1: (0,)},
}
"""Steps by run and attempt, as `ledger_content` has them."""


def main() -> None:
    if __version__ != MADE_BY:
        sys.exit(f"the artefacts are those of version {MADE_BY}; this is {__version__}")
    DATA.mkdir(exist_ok=True)
    for make in (_ledgers, _checkpoints, _outputs):
        with tempfile.TemporaryDirectory() as scratch:
            make(Path(scratch))


def _write(name: str, content: Any) -> None:
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True) + "\n"
    with (DATA / name).open("x") as file:
        file.write(text)


def _ledgers(scratch: Path) -> None:
    made, postgres = scratch / "made", scratch / "postgres"
    made.mkdir()
    ledger_content.fill(made, f"sqlite:///{made / 'ledger.db'}")
    for lock in made.glob("*.lock"):
        lock.unlink()
    assert {path.name for path in made.iterdir()} == {"ledger.db", "media"}, "the file holds all there is"
    packed(made, DATA / "ledger.zip")

    binaries = find_binaries()
    assert binaries is not None
    server = Postgres(binaries)
    try:
        url = server.new_database()
        postgres.mkdir()
        ledger_content.fill(postgres, url)
        name = url.split("?")[0].split("/")[-1]
        command = ["pg_dump", "-h", str(server.directory), "-U", "postgres", "--inserts", "--no-owner", name]
        dump = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        plain = [line for line in dump.splitlines(True) if not line.startswith("\\")]  # without words to psql
        (scratch / "dump").mkdir()
        (scratch / "dump" / "ledger.sql").write_text("".join(plain))
        packed(scratch / "dump", DATA / "ledger_postgresql.zip")
        theirs = _answers(postgres, url, scratch / "export")
    finally:
        server.stop()
    ours = unpacked("ledger.zip", scratch / "opened")
    found = _answers(ours, f"sqlite:///{ours / 'ledger.db'}", scratch / "export")
    differences = [*lost(found, theirs), *lost(theirs, found)]
    assert not differences, "\n".join(differences)
    _write("ledger_answers.json", found)
    with live(ours) as address:
        code, text = command_outputs.printed("status", "--json", env={"OMNI_RL_URL": address})
    assert code == 0
    _write("status.json", text)


def _answers(directory: Path, url: str, export: Path) -> dict[str, Any]:
    with Ledger.open(url) as ledger:
        last = ledger.last_event()  # a coordinator that opens it adds that its cluster answers
    with live(directory, ledger=url) as address:
        paths = ["/v1/state", "/v1/runs", "/v1/checks", "/v1/checks/1", "/v1/checks/2", "/v1/checks/3", "/v1/syncs"]
        paths += [f"/v1/syncs/sync-{number}" for number in (1, 2, 3)]
        for run, attempts in RUNS.items():
            paths += [f"/v1/runs/{run}", f"/v1/runs/{run}/limits", f"/v1/runs/{run}/alarms"]
            paths += [f"/v1/runs/{run}/timeline", f"/v1/runs/{run}/timeline?kind=image&points=2"]
            for attempt, steps in attempts.items():
                paths.append(f"/v1/runs/{run}/steps?attempt={attempt}")
                paths += [f"/v1/runs/{run}/attempts/{attempt}/steps/{step}" for step in steps]
        paths.append("/v1/runs/digits/attempts/1/steps/2/samples/r0%2Fimage")
        paths.append("/v1/runs/digits/attempts/1/steps/3/samples/r0%2Fimage")
        paths.append("/v1/runs/digits/attempts/1/steps/0/samples/r1%2Fmixed")
        paths.append("/v1/runs/words/attempts/1/steps/0/samples/only")
        paths.append(f"/v1/events/page?after=0&limit={last}")
        found = answers(address, paths)
    return {"answers": found, "export": exported(url, "digits", export)}


def _checkpoints(scratch: Path) -> None:
    weights, runs = scratch / "weights", scratch / "runs"
    checkpoint_content.write_weights(weights)
    checkpoint_content.write_saved_run(runs)
    packed(weights, DATA / "weights.zip")
    packed(runs, DATA / "saved_run.zip")
    _write("tensors.json", checkpoint_content.digests_of(weights, runs))


def _outputs(scratch: Path) -> None:
    _write("help.json", command_outputs.every_help())
    _write("doctor.json", command_outputs.printed("doctor", "--json")[1])
    code, text = command_outputs.printed("plan", "--json")
    assert code == 0
    _write("plan.json", text)
    _write("job_lines.json", job_lines.lines())


if __name__ == "__main__":
    main()
