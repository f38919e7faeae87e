"""Weights that arrive wrong, full disks: rolled back, named, and mended by nobody's hand."""

import pytest

from tests.chaos.conftest import Scene
from tests.chaos.fake_engine import Faults
from tests.chaos.parties import Job

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("replica", ["r0", "r1"])
@pytest.mark.parametrize(
    ("faults", "named"),
    [
        (Faults(skip_tensor="norm"), "norm: element 0 differs"),
        (Faults(swap_in="embed"), "embed: element 3 differs"),
        (Faults(flip_after_apply=True), "head: element 7 differs"),
    ],
)
def test_what_one_replica_wrote_wrong(scene: Scene, replica: str, faults: Faults, named: str) -> None:
    assert scene.coordinate(Job()) is not None
    scene.fault(replica, faults)
    outcome = scene.coordinate(Job(1))
    assert outcome is not None
    assert outcome["code"] == "sync_rolled_back"
    assert f"replica {replica}: does not hold chaos/1/1/" in outcome["error"]
    assert named in outcome["error"]
    scene.expect_all_serve(0)
    again = scene.coordinate(Job(1))
    assert again is not None
    assert again["result"]["elements_proven"] == again["result"]["elements"] == 336
    scene.expect_all_serve(1)


def test_a_replica_that_cannot_go_back_is_quarantined_and_replaced(scene: Scene) -> None:
    assert scene.coordinate(Job()) is not None
    first = scene.home.pid("r1")
    scene.fault("r1", Faults(flip_after_apply=True, times=2))
    outcome = scene.coordinate(Job(1))
    assert outcome is not None
    assert outcome["code"] == "sync_rolled_back"
    assert "quarantine entered" in scene.log("coordinator")
    assert scene.home.pid("r1") != first
    scene.expect_all_serve(0)


@pytest.mark.parametrize("tensor", ["embed", "head", "norm"])
def test_a_bit_that_flips_in_the_slab(scene: Scene, tensor: str) -> None:
    """After it was sealed: the engines hold exactly what the slab holds, and it is still wrong."""
    assert scene.coordinate(Job()) is not None
    outcome = scene.coordinate(Job(1, damage=tensor))
    assert outcome is not None
    assert outcome["code"] == "sync_rolled_back"
    assert f"{tensor}: wrong checksum" in outcome["error"]
    scene.expect_all_serve(0)


@pytest.mark.parametrize("point", ["prepare", "pause", "commit", "resume", "idle"])
def test_a_full_disk_or_a_database_that_is_gone(scene: Scene, point: str, request: pytest.FixtureRequest) -> None:
    """The journal cannot be written: an error that says so, gates closed if need be, and the next coordinator mends."""
    assert scene.coordinate(Job()) is not None
    server = None if scene.home.ledger.startswith("sqlite") else request.getfixturevalue("postgres")
    try:
        outcome = scene.coordinate(Job(1, ledger_fails_at=point))
    finally:
        if server is not None:
            server.start()
    assert outcome is not None
    decided = point in ("resume", "idle")
    # Before anything is begun, a full disk still says so; of a database that is gone nobody can tell.
    not_begun = "sync_rolled_back" if server is None else "journal_failed"
    expected_code = {"prepare": not_begun, "pause": "sync_undecided", "commit": "sync_undecided"}
    assert outcome.get("code") == expected_code.get(point), outcome
    if not decided:
        assert f"the ledger {scene.home.ledger} cannot be" in outcome["error"].replace("%2F", "/")
    if point in ("pause", "commit"):
        assert {status.standing for status in scene.statuses().values()} == {"proven"}
    assert scene.coordinate(Job()) is not None
    scene.expect_all_serve(1 if decided else 0)
    assert scene.coordinate(Job(2)) is not None
    scene.expect_all_serve(2)


@pytest.mark.parametrize("mode", ["recompute", "drain", "keep"])
def test_modes_for_requests_under_way(scene: Scene, mode: str) -> None:
    assert scene.coordinate(Job()) is not None
    outcome = scene.coordinate(Job(1, mode=mode))  # type: ignore[arg-type]
    assert outcome is not None
    assert outcome["result"]["outcome"] == "committed"
    scene.expect_all_serve(1)


def test_the_same_key_is_the_same_operation_for_the_next_coordinator(scene: Scene) -> None:
    assert scene.coordinate(Job()) is not None
    first = scene.coordinate(Job(1, key="step 7"))
    assert first is not None
    again = scene.coordinate(Job(5, key="step 7"))
    assert again is not None
    assert again["result"] == first["result"]
    scene.expect_all_serve(1)
