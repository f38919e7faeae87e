"""Released TRL with its engine behind a server, watched: the server's own word of dtype, logprobs, weights counts."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl import torchvision_schemas
from omni_rl.client import Client
from tests.services.live import live
from tests.watch.test_trl import assert_clean, steps_of
from tests.watch.trl_process import TrlRun, trl_nursery
from tests.watch.trl_server import VllmServer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("trl-server")) as address:
        yield address


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision_schemas.install()
    from tests.watch.trl_models import write_qwen

    return write_qwen(tmp_path_factory.mktemp("qwen"))


@pytest.fixture(scope="module")
def served(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """The directory that the server loads its weights from, and its address."""
    directory = tmp_path_factory.mktemp("served") / "qwen"
    shutil.copytree(original, directory)
    server = VllmServer(directory, directory.parent / "server.log")
    try:
        server.wait()
        yield directory, server.url
    finally:
        server.end()


@pytest.fixture(scope="module")
def nursery() -> Iterator[str]:
    with trl_nursery("tests.watch.trl_run") as address:
        yield address


@pytest.mark.parametrize(("fault", "processes"), [(None, 1), ("stale", 1), (None, 2)])
def test_a_run_with_a_server_is_judged_as_one_without(
    fault: str | None,
    processes: int,
    url: str,
    original: Path,
    served: tuple[Path, str],
    nursery: str,
    tmp_path: Path,
) -> None:
    directory, server = served
    run = TrlRun(
        tmp_path / f"server-{fault}-{processes}",
        original,
        url,
        processes=processes,
        nursery=nursery,
        fault=fault,
        at=2,
        server={"url": server, "directory": str(directory)},
        settings={"max_steps": 4, "per_device_train_batch_size": 16 // processes},
    )
    try:
        run.wait()
    finally:
        run.end()
    steps = steps_of(url, run)
    assert len(steps) == 4
    assert_clean(steps[: 2 if fault else 4], 2 if fault else 4)
    assert {step.verdict.samples for step in steps} == {16}
    if fault:
        assert steps[2].verdict.cause == "stale_weights"
    with Client(url) as client:
        kept = client.sample(run.name, 1, 1, "0/0").record
    assert (kept["rollout_dtype"], kept["version_spans"][0]["version"]) == ("float32", "step-1")
