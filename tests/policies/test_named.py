"""Engines that a run has no more do not live on beside those that it has."""

from collections.abc import Iterator

import pytest
import ray

from omni_rl.policies.named import end_others, engines
from omni_rl.policies.settings import namespace_of, rollout_names

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
    assert engines(namespace_of("r")) == ["rollout-0", "rollout-2", "rollout-10"]
    end_others(namespace_of("r"), rollout_names(2))
    while engines(namespace_of("r")) != ["rollout-0"]:
        pass
    assert engines(namespace_of("q")) == ["rollout-5"]
