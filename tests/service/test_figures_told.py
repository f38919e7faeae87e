"""What the commands print of figures that are not numbers, of published weights, and of a run's name."""

from pathlib import Path

import pytest

from omni_rl.consistency.shown import mean_abs, shown
from tests.pinned.command_outputs import printed
from tests.services.fake_bridge import LOST, THEIRS, FakeBridge
from tests.services.live import live

NOT = "not a number"


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, NOT), (float("nan"), NOT), (float("inf"), "infinite"), (float("-inf"), "-infinite"), (2e-6, "2.00e-06")],
)
def test_a_figure_is_told_as_what_it_is(value: float | None, text: str) -> None:
    assert shown(value, ".2e") == text


def test_a_bucket_without_tokens_has_nothing_to_tell() -> None:
    assert mean_abs({"tokens": 0, "logprob_abs_diff_mean": None}) == "no tokens"


def test_check_tells_figures_that_are_not_numbers(tmp_path: Path) -> None:
    with live(tmp_path, FakeBridge(figures=LOST)) as url:
        code, text = printed("check", env={"OMNI_RL_URL": url})
    assert code == 1
    first, *lines = text.splitlines()
    assert first.startswith("pause: overall: logprob_abs_diff_mean is not a number")
    assert [line.split(maxsplit=1) for line in lines[:3]] == [
        ["overall", f"mean |d| {NOT}"],
        ["image", f"mean |d| {NOT}"],
        ["video", "no tokens"],
    ]
    assert f"train_vs_prefill: mean |d| {NOT}" in lines


def test_sync_tells_what_it_served_all_the_same(tmp_path: Path) -> None:
    bridge = FakeBridge(figures=LOST, nonfinite=("layers.3.A_log: 17 NaN of 64 elements",))
    with live(tmp_path, bridge) as url:
        code, text = printed("sync", "--allow-nonfinite", env={"OMNI_RL_URL": url})
    assert (code, bridge.requests[0].allow_nonfinite) == (0, True)
    assert "not finite, as allowed: layers.3.A_log: 17 NaN of 64 elements" in text
    assert f"  overall  mean |d| {NOT}" in text


def test_check_of_published_weights_says_where_agreement_is_measured(tmp_path: Path) -> None:
    with live(tmp_path, FakeBridge(published=True)) as url:
        code, text = printed("check", env={"OMNI_RL_URL": url})
    assert code == 1  # they may agree or not
    proven = "nothing was compared: the engines hold, byte for byte, the weights that were brought to them"
    assert text == f"unjudged: {proven}  {THEIRS}\n"


def test_status_names_the_run_that_publish_takes(tmp_path: Path) -> None:
    with live(tmp_path, FakeBridge()) as url:
        _, text = printed("status", env={"OMNI_RL_URL": url})
    assert text.splitlines()[0] == "cluster    connected to 127.0.0.1:6379, run digits"
