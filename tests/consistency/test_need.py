"""The order in which runs are shown: whoever is called sees first what needs a person most."""

from itertools import pairwise

from omni_rl.consistency.limits import Severity
from omni_rl.consistency.need import Need, need_of
from omni_rl.consistency.policy import Drift


def test_what_needs_a_person_more_comes_later_and_says_so() -> None:
    needs = [
        need_of(Drift(), "ended", Severity.OK),
        need_of(Drift(), "live", Severity.OK),
        need_of(Drift(), "live", None),
        need_of(Drift(), "live", Severity.UNJUDGED),
        need_of(Drift(Severity.WARN), "ended", Severity.OK),
        need_of(Drift(Severity.MASK), "live", Severity.OK),
        Need.UNKNOWN,
        need_of(Drift(), "silent", Severity.OK),
        need_of(Drift(Severity.PAUSE), "silent", Severity.OK),
        need_of(Drift(Severity.OK, gate="halted"), "ended", None),
    ]
    assert all(one < other for one, other in pairwise(needs))
    labels = ["ended", "ok", "waiting", "unjudged", "warn", "mask", "unknown", "silent", "pause", "halted"]
    assert [need.label for need in needs] == labels


def test_a_silent_run_is_silent_until_it_was_worse() -> None:
    assert need_of(Drift(Severity.MASK), "silent", Severity.OK) is Need.SILENT
    assert need_of(Drift(Severity.PAUSE), "silent", Severity.OK) is Need.PAUSE
