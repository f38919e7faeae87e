"""kill -9 of every party at every transition, and between the replicas: all old or all new, and no token in between."""

import pytest

from tests.chaos.conftest import Scene
from tests.chaos.fake_engine import Faults
from tests.chaos.parties import PARTIES, Job, Strike

pytestmark = pytest.mark.slow

FORWARD = (
    *("prepare", "pause", "pause:r0", "apply", "apply:r0", "verify", "verify:r0", "commit"),
    *("resume", "resume:r0", "idle"),
)
DECIDED_FROM = FORWARD.index("resume")
BACK = ("rollback", "rollback:r0", "back verify", "back verify:r0", "back resume", "back resume:r0", "back idle")
# So that r0 has done its part of a phase while r1 is still in the middle of it.
SLOW = 0.15


@pytest.mark.parametrize("victim", PARTIES)
@pytest.mark.parametrize("point", FORWARD)
def test_killed_on_the_way_forward(scene: Scene, point: str, victim: str) -> None:
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW))
    outcome = scene.coordinate(Job(1, Strike(point, victim), seconds=0.02))
    decided = FORWARD.index(point) >= DECIDED_FROM
    if victim == "coordinator":
        assert outcome is None
        expected = 1 if decided else 0
    elif decided or victim == "keeper" or (victim == "trainer" and point != "prepare"):
        assert outcome is not None
        expected = 1
    elif victim in ("r0", "r1") and point == "prepare":
        # It was found dead, replaced and brought to the old weights before the new ones were even there.
        assert outcome is not None
        expected = 1
    else:
        assert outcome is not None
        assert outcome["code"] == "sync_rolled_back", outcome
        expected = 0
    scene.restart_the_dead()
    if victim == "coordinator" or victim in ("r0", "r1"):
        assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(expected)
    after = scene.coordinate(Job(2))
    assert after is not None
    assert after["result"]["outcome"] == "committed"
    scene.expect_all_serve(2)


@pytest.mark.parametrize("victim", PARTIES)
@pytest.mark.parametrize("point", BACK)
def test_killed_on_the_way_back(scene: Scene, point: str, victim: str) -> None:
    """The sync fails because r1 skips a tensor; then somebody dies while everything is undone."""
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW, skip_tensor="head"))
    outcome = scene.coordinate(Job(1, Strike(point, victim)))
    if victim != "coordinator":
        assert outcome is not None
        assert outcome["code"] == "sync_rolled_back"
        assert "head: element 0 differs" in outcome["error"]
    scene.restart_the_dead()
    if victim in ("coordinator", "r0", "r1"):
        assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(0)
    after = scene.coordinate(Job(2))
    assert after is not None
    assert after["result"]["outcome"] == "committed"
    scene.expect_all_serve(2)
