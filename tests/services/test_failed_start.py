"""What is said of a coordinator whose app does not start."""

from pathlib import Path

import pytest
from omni_rl_services.coordinator.core import Coordinator
from omni_rl_services.coordinator.server import serve
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings

from omni_rl.errors import ServiceError


def test_an_app_that_does_not_start_is_an_error_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(coordinator: Coordinator) -> None:
        raise RuntimeError("no thread can be started")

    monkeypatch.setattr(Coordinator, "open", fails)
    settings = CoordinatorSettings(
        port=0, ledger=f"sqlite:///{tmp_path}/ledger.db", media=MediaSettings(directory=tmp_path / "media")
    )
    with pytest.raises(ServiceError, match="did not start; the lines above say why"):
        serve(settings)
