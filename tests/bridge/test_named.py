"""Engines that a run has no more do not live on beside those that it has."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from omni_rl.bridge.named import end_others, engines
from omni_rl.bridge.settings import ClusterSettings, namespace_of

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Engine:
    def alive(self) -> None:
        """It is."""


@pytest.fixture(autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_only_the_runs_own_engines_live_on() -> None:
    settings = ClusterSettings(
        address="127.0.0.1:1",
        dashboard="http://127.0.0.1:2",
        run="r",
        model=Path("/m"),
        ledger="sqlite:///l",
        replicas=2,
    )
    made = []
    for name, run in (
        ("rollout-10", "r"),
        ("rollout-0", "r"),
        ("rollout-2", "r"),
        ("trainer", "r"),
        ("rollout-5", "q"),
    ):
        options = {"name": name, "namespace": namespace_of(run), "num_cpus": 0}
        made.append(ray.remote(Engine).options(**options).remote())
    ray.get([engine.alive.remote() for engine in made])
    assert engines(settings.namespace) == ["rollout-0", "rollout-2", "rollout-10"]
    end_others(settings)
    while engines(settings.namespace) != ["rollout-0"]:
        pass
    assert engines(namespace_of("q")) == ["rollout-5"]
