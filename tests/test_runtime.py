"""The environment that our own processes compute in: set where one begins, by no import, and asked for where needed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni_rl import runtime
from omni_rl.errors import ConfigError
from omni_rl.media.renderer import Renderer
from omni_rl.rollout import startup
from omni_rl.rollout.settings import EngineSettings


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A process whose environment nobody has touched."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=variables)


def test_a_process_is_prepared_and_what_was_chosen_stays() -> None:
    code = (
        "import json, os; from omni_rl.runtime import prepare; prepare(); prepare(); print(json.dumps({**os.environ}))"
    )
    found = json.loads(python(code, TORCHDYNAMO_DISABLE="0").stdout)
    wanted = {name: variable.value for name, variable in runtime.ENVIRONMENT.items()}
    assert wanted | {"TORCHDYNAMO_DISABLE": "0"} == {name: found.get(name) for name in wanted}


def test_it_is_too_late_once_torch_is_imported() -> None:
    code = "import sys; sys.modules['torch'] = sys; from omni_rl.runtime import prepare; prepare()"
    done = python(code)
    assert done.returncode != 0
    assert "ConfigError: torch is imported, and VLLM_ENABLE_V1_MULTIPROCESSING" in done.stderr
    complete = {name: variable.value for name, variable in runtime.ENVIRONMENT.items()}
    assert python(code, **complete).returncode == 0


@pytest.mark.parametrize("name", runtime.ENVIRONMENT)
def test_engine_and_renderer_do_not_start_without_it(
    name: str, small_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=f"the engine needs {name}="):
        startup.start(EngineSettings(model=small_checkpoint))
    with pytest.raises(ConfigError, match=f"the renderer needs {name}="):
        Renderer(None)


def test_an_actor_gets_this_processs_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("TORCHDYNAMO_DISABLE", "0")
    assert runtime.variables()["HF_HUB_OFFLINE"] == "1"
    assert runtime.variables()["TORCHDYNAMO_DISABLE"] == "0"
    assert "HF_HUB_OFFLINE" not in os.environ
