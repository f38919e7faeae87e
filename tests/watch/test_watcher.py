"""A watched run against a live coordinator: verdicts, numbers, strictness, and what the run feels of trouble."""

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omni_rl.api.steps import Verdict
from omni_rl.client import Client
from omni_rl.client.posting import Pace
from omni_rl.consistency.corrections import Correction, weights
from omni_rl.errors import ConfigError, RunPausedError
from omni_rl.watch.figures import for_coordinator
from omni_rl.watch.place import PostingRank, run_name
from omni_rl.watch.watcher import Watcher
from tests.services.live import live
from tests.watch.conftest import CoordinatorProcess
from tests.watch.steps import sealed_steps, step_of

QUICK = Pace(first=0.01, longest=0.05)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("watch")) as address:
        yield address


def watcher(url: str, run: str, **settings: Any) -> Watcher:
    return Watcher(url=url, run=run, **{"dtype": "float32", "pace": QUICK, "others": 1.0, **settings})


def until(happened: Callable[[], bool]) -> None:
    """Waits for what a thread does when it gets to it."""
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_run_is_judged_step_by_step(url: str) -> None:
    told: list[Verdict] = []
    run = watcher(url, "plain", on_verdict=told.append)
    for seed in range(3):
        assert run.step(**step_of(seed), training={"reward/mean": 0.5, "loss": float("nan")}) == seed
    run.add_training(2, {"grad_norm": 1.25})
    assert run.flush(30)
    assert [(verdict.step, verdict.severity) for verdict in told] == [(0, "ok"), (1, "ok"), (2, "ok")]
    assert run.last == told[-1]
    figures = run.figures()
    assert (figures["omni_rl/severity"], figures["omni_rl/step"]) == (0.0, 2.0)
    assert figures["omni_rl/logprob_abs_diff_mean"] < 1e-5
    assert (run.counts.posted, run.counts.sealed, run.counts.dropped) == (3, 3, 0)
    run.close()
    with Client(url) as client:
        assert client.step("plain", 1, 2).training == {"reward.mean": 0.5, "loss": None, "grad_norm": 1.25}
        assert client.run("plain").activity == "ended"
        assert client.step("plain", 1, 0).verdict.worst[0].sample in {f"{g}/{n}" for g in range(4) for n in range(4)}


UNREADABLE: dict[str, dict[str, Any]] = {
    "missing": {"rollout_logprobs": None},
    "text": {"rollout_logprobs": "abc"},
    "mapping": {"train_logprobs": {"a": 1}},
    "one number": {"train_logprobs": np.float32(-1)},
    "on no device": {"rollout_logprobs": torch.zeros(16, 12, device="meta")},
    "sparse": {"rollout_logprobs": torch.ones(16, 12).to_sparse()},
    "ids that are text": {"ids": [["a"] * 12] * 16},
    "a mask of another shape": {"mask": np.ones((16, 5))},
}


def test_a_step_that_cannot_be_read_is_refused_and_none_waits_behind_it(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = watcher(url, "unreadable")
    for odd in UNREADABLE.values():
        run.step(**{**step_of(0), **odd})
    last = run.step(**step_of(1))
    assert run.flush(30)
    counts = run.counts
    assert (counts.refused, counts.sealed) == (len(UNREADABLE), 1), caplog.text
    assert run.wait(last, 0) is not None
    assert caplog.text.count("was refused") == 1
    run.close()


@pytest.mark.parametrize(("last", "activity"), [("pass", "ended"), ("raise SystemError", "live")])
def test_a_run_is_over_where_its_process_ends_and_not_where_it_dies(url: str, last: str, activity: str) -> None:
    run = f"process-{activity}"
    lines = (
        "from omni_rl.watch import Watcher",
        "from tests.watch.steps import step_of",
        f"Watcher(url={url!r}, run={run!r}, dtype='float32').step(**step_of(0))",
        last,
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, timeout=120, check=False)
    with Client(url) as client:
        assert (client.run(run).step, client.run(run).activity) == (0, activity)


def test_a_resumed_run_is_a_new_attempt_that_goes_on_at_its_own_step(url: str) -> None:
    for attempt, first in ((1, 0), (2, 40)):
        run = watcher(url, "resumed")
        assert [run.step(step=first, **step_of(n)) for n in range(3)] == [first, first + 1, first + 2]
        run.close(30)
        assert sealed_steps(url, run, attempt) == [first, first + 1, first + 2]


def test_an_attempt_that_another_process_has_begun_is_not_mixed_with(url: str) -> None:
    first, second = watcher(url, "both"), watcher(url, "both", attempt=None)
    first.step(**step_of(1))
    second.step(**step_of(2))
    assert first.flush(30)
    assert second.flush(30)
    assert sealed_steps(url, first, 1) == sealed_steps(url, first, 2) == [0]


def test_a_fault_is_logged_when_it_begins_and_named(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "faulty")
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        for seed, drift in enumerate((0.0, 0.5, 0.5, 0.0, 0.0, 0.0)):
            run.step(**step_of(seed, drift=drift))
        assert run.flush(30)
    assert [record.getMessage().split(":")[1] for record in caplog.records] == [" step 1 is pause", " step 5 is ok"]


def test_strict_runs_stop_before_they_learn_from_a_step_that_is_off(url: str) -> None:
    run = watcher(url, "strict", strict=True)
    run.step(**step_of(0))
    with pytest.raises(RunPausedError, match="step 1 of strict: "):
        run.step(**step_of(1, drift=2.0))


def test_every_rank_posts_its_part_and_the_first_one_seals(url: str) -> None:
    ranks = [watcher(url, "ranks", place=PostingRank(rank, 3), attempt=7) for rank in range(3)]
    for n in range(4):
        for rank in (2, 0, 1):
            ranks[rank].step(**step_of(10 * n + rank))
    assert all(run.flush(30) for run in ranks)
    assert sealed_steps(url, ranks[0], 7) == [0, 1, 2, 3]
    with Client(url) as client:
        assert client.step("ranks", 7, 3).verdict.samples == 48
    assert ranks[1].last is None


def test_a_step_is_sealed_without_a_rank_that_never_posts(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "alone", place=PostingRank(0, 2), attempt=1, others=0.2)
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        run.step(**step_of(0))
        run.step(**step_of(1))
        assert run.flush(30)
    assert sealed_steps(url, run) == [0, 1]
    assert [record.getMessage() for record in caplog.records] == [
        "omni-rl: step 0 was sealed without some ranks' parts, which did not come"
    ]


@pytest.mark.slow
def test_ranks_that_could_not_post_while_the_coordinator_was_away_are_waited_for(
    coordinator: CoordinatorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator.start()
    first, second = (
        watcher(coordinator.url, "away", place=PostingRank(rank, 2), attempt=1, others=3.0) for rank in (0, 1)
    )
    first.step(**step_of(0))
    until(lambda: first.counts.posted == 1)
    coordinator.kill()
    time.sleep(3.5)  # longer than the first rank waits for a rank that could post
    coordinator.start()
    until(lambda: "answers again" in caplog.text)
    second.step(**step_of(1))
    assert first.flush(60)
    with Client(coordinator.url) as client:
        assert client.step("away", 1, 0).verdict.samples == 32


def test_a_rank_that_cannot_learn_its_attempt_says_so(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "lost", place=PostingRank(1, 2))
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        run.step(**step_of(0))
        until(lambda: bool(caplog.records))
        assert not run.flush(0.3)
    assert [record.getMessage().split("; ")[1] for record in caplog.records] == [
        "set OMNI_RL_ATTEMPT to one number on all ranks, another at every start"
    ]
    run.close(0)


def test_values_that_do_not_fit_cost_the_step_alone(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "misfits")
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        for n in range(4):
            values = step_of(n)
            run.step(**values | ({"mask": values["mask"][:, :5]} if n in (1, 2) else {}))
        assert run.flush(30)
    assert sealed_steps(url, run) == [0, 3]
    assert run.counts.refused == 2
    assert run.figures()["omni_rl/dropped"] == 2.0
    assert [record.getMessage() for record in caplog.records] == [
        "omni-rl: step 1 was refused: mask has 5 values in row 0, rollout_logprobs 32"
    ]


def test_the_same_run_with_other_settings_is_refused_and_said(url: str, caplog: pytest.LogCaptureFixture) -> None:
    watcher(url, "settings").close()
    first = watcher(url, "settings")
    first.step(**step_of(0))
    assert first.flush(30)
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        other = watcher(url, "settings", dtype="bfloat16")
        other.step(**step_of(1))
        until(lambda: bool(caplog.records))
        assert not other.flush(0.3)
        other.close(0)
    assert "OMNI_RL_RUN" in caplog.text
    assert len([record for record in caplog.records if "nothing can be posted" in record.getMessage()]) == 1


def test_nobody_there_costs_the_run_nothing_and_the_oldest_steps(caplog: pytest.LogCaptureFixture) -> None:
    run = watcher("http://127.0.0.1:9", "nobody", queue=4)
    with caplog.at_level(logging.WARNING, "omni_rl.watch"):
        for n in range(10):
            run.step(**step_of(n))
        until(lambda: any("is tried again" in record.getMessage() for record in caplog.records))
        assert not run.flush(0.2)
        run.close(0)
    assert run.counts.waiting == 4
    assert run.counts.dropped == 6
    assert run.figures() == {"omni_rl/dropped": 6.0}
    said = [record.getMessage() for record in caplog.records]
    assert len([line for line in said if "is tried again" in line]) == 1
    assert len([line for line in said if "is dropped" in line]) == 1


@pytest.mark.slow
def test_a_coordinator_that_is_killed_and_one_that_hangs_are_met_again(coordinator: CoordinatorProcess) -> None:
    run = watcher(coordinator.url, "met-again")
    run.step(**step_of(0))  # nobody is there yet
    coordinator.start()
    for n in range(1, 13):
        run.step(**step_of(n))
        if n % 4 == 0:
            coordinator.kill()
            run.step(step=None, **step_of(100 + n))
            coordinator.start()
    coordinator.pause()
    run.step(**step_of(13))
    assert not run.flush(0.2)
    coordinator.go_on()
    assert run.flush(60)
    assert sealed_steps(coordinator.url, run) == list(range(17))
    assert (run.counts.given, run.counts.sealed, run.counts.dropped, run.counts.refused) == (17, 17, 0, 0)


def test_a_ledger_that_is_lost_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with live(tmp_path / "a") as url:
        run = watcher(url, "begun-anew")
        run.step(**step_of(0))
        assert run.flush(30)
    with live(tmp_path / "b", port=int(url.rsplit(":", 1)[1])):
        run.step(**step_of(1))
        assert run.flush(30)
        assert sealed_steps(url, run) == [1]


def test_a_callback_that_raises_is_told_and_changes_nothing(url: str, caplog: pytest.LogCaptureFixture) -> None:
    def broken(verdict: Verdict) -> None:
        raise KeyError(verdict.step)

    run = watcher(url, "broken-callback", on_verdict=broken)
    run.step(**step_of(0))
    run.step(**step_of(1))
    assert run.flush(30)
    assert run.counts.sealed == 2
    assert "on_verdict failed at step 0" in caplog.text


def test_weights_are_as_the_consistency_room_computes_them(url: str) -> None:
    values = step_of(3, drift=0.5)
    run = watcher(url, "weights", correct="tis")
    rollout, train, mask = (values[name] for name in ("rollout_logprobs", "train_logprobs", "mask"))
    found = run.weights(torch.tensor(rollout), torch.tensor(train).requires_grad_(), torch.tensor(mask))
    assert (found.dtype, found.requires_grad) == (torch.float32, False)
    flat = weights((train - rollout).ravel(), np.arange(17) * 32, mask.ravel(), Correction("tis"))
    np.testing.assert_allclose(found.numpy().ravel(), flat, rtol=1e-6)
    np.testing.assert_array_equal(run.weights(rollout, train, mask), found.numpy())


def test_where_a_process_stands_by_its_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert PostingRank.found() == PostingRank(0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert PostingRank.found() == PostingRank(3, 8)
    monkeypatch.setenv("RANK", "8")
    with pytest.raises(ConfigError, match="RANK=8"):
        PostingRank.found()


def test_names_that_the_coordinator_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_RL_RUN", raising=False)
    assert run_name(None, "outputs/my run (3)") == "outputs-my-run-3"
    assert run_name("mine", "theirs") == "mine"
    monkeypatch.setenv("OMNI_RL_RUN", "said")
    assert run_name(None, "theirs") == "said"
    figures = {"rewards/f/mean": 1, "kl": float("inf"), "note": "text", "/": 2.0}
    assert for_coordinator(figures) == {"rewards.f.mean": 1, "kl": float("inf")}


def test_the_thread_does_not_keep_a_process(url: str) -> None:
    run = watcher(url, "daemon")
    assert all(thread.daemon for thread in threading.enumerate() if thread.name == "omni_rl.watch")
    run.close()
