"""Two jobs never learn into the same weights."""

from collections.abc import Iterator

import pytest
import ray

from omni_rl import actors
from omni_rl.errors import ConfigError
from omni_rl.jobs.claim import claimed

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(autouse=True)
def local_ray() -> Iterator[None]:
    ray.init(address="local", num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    yield
    ray.shutdown()


def test_the_second_is_told_of_the_first_and_may_come_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with claimed("service", "first"), monkeypatch.context() as patch:
        patch.setattr(actors, "EXIT_TIMEOUT", 0.5)
        with pytest.raises(ConfigError, match="learning for run first"), claimed("service", "second"):
            pass
        with claimed("other-service", "second"):
            pass
    with claimed("service", "second"):
        pass
