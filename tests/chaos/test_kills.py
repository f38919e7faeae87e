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
# In a rollback a replica is found first, then written to.
BACK = (
    "rollback",
    "rollback:r0",
    "rollback:r0 again",
    "back verify",
    "back verify:r0",
    "back resume",
    "back resume:r0",
    "back idle",
)
VICTIMS = [*((party, "sqlite") for party in PARTIES), ("coordinator", "postgresql")]
"""Each party, and the database of the journal: the coordinator alone writes to one."""
# So that r0 has done its part of a phase while r1 is still in the middle of it.
SLOW = 0.15


def goes_through(point: str, victim: str) -> bool:
    """Whether the new weights are there in the end."""
    at = FORWARD.index(point)
    if victim == "coordinator":
        return at >= FORWARD.index("resume")  # the decision is on the disk
    if victim == "trainer":
        return at > FORWARD.index("prepare")  # its weights are sealed
    if victim == "owner" or point == "prepare":
        # Slabs are files; and a replica that is found dead at the beginning is replaced before the new weights exist.
        return True
    # A replica counts as soon as it has proven that it holds the new weights; its successor is brought to them.
    proven = {"r0": "verify:r0", "r1": "commit"}[victim]
    return at >= FORWARD.index(proven)


@pytest.mark.parametrize(("victim", "ledger_url"), VICTIMS, indirect=["ledger_url"])
@pytest.mark.parametrize("point", FORWARD)
def test_killed_on_the_way_forward(scene: Scene, point: str, victim: str) -> None:
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW))
    outcome = scene.coordinate(Job(1, Strike(point, victim), seconds=0.02))
    expected = 1 if goes_through(point, victim) else 0
    if victim == "coordinator":
        assert outcome is None
    else:
        assert outcome is not None
        assert outcome.get("code") == (None if expected else "sync_rolled_back"), outcome
    scene.end_faults()
    scene.restart_the_dead()
    if victim == "coordinator" or victim in ("r0", "r1"):
        assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(expected)
    after = scene.coordinate(Job(2))
    assert after is not None
    assert after["result"]["outcome"] == "committed"
    scene.expect_all_serve(2)


@pytest.mark.parametrize(("victim", "ledger_url"), VICTIMS, indirect=["ledger_url"])
@pytest.mark.parametrize("point", BACK)
def test_killed_on_the_way_back(scene: Scene, point: str, victim: str) -> None:
    """The sync fails because r1 skips a tensor; then somebody dies while everything is undone."""
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW, skip_tensor="head"))
    outcome = scene.coordinate(Job(1, Strike(point.removesuffix(" again"), victim, time=1 + point.endswith(" again"))))
    if victim != "coordinator":
        assert outcome is not None
        assert outcome["code"] == "sync_rolled_back"
        assert "head: element 0 differs" in outcome["error"]
    scene.end_faults()
    scene.restart_the_dead()
    if victim in ("coordinator", "r0", "r1"):
        assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(0)
    after = scene.coordinate(Job(2))
    assert after is not None
    assert after["result"]["outcome"] == "committed"
    scene.expect_all_serve(2)


@pytest.mark.parametrize("first", ["apply:r0", "resume"])
@pytest.mark.parametrize("second", ["resume", "resume:r0", "resume:r1", "idle"])
def test_the_successor_is_killed_too(scene: Scene, first: str, second: str) -> None:
    """Once before the decision and once after it; the third coordinator settles what two of them left."""
    assert scene.coordinate(Job()) is not None
    scene.fault("r1", Faults(delay=SLOW))
    assert scene.coordinate(Job(1, Strike(first, "coordinator"))) is None
    point = second if first == "resume" else f"back {second}"
    assert scene.coordinate(Job(strike=Strike(point, "coordinator"))) is None
    assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(1 if first == "resume" else 0)
