"""Settings: the order of their sources, and errors that name the setting."""

from pathlib import Path

import pytest

from omni_rl.config import load
from omni_rl.errors import ConfigError


def test_file_then_environment_then_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "settings.toml"
    file.write_text("[demo]\nsteps = 2\nseed = 3\nmax_tokens = 4\n")
    monkeypatch.setenv("OMNI_RL_DEMO__SEED", "5")
    monkeypatch.setenv("OMNI_RL_DEMO__MAX_TOKENS", "6")
    demo = load(file, {"demo.max_tokens": 7, "demo.dtype": None}).demo
    assert (demo.steps, demo.seed, demo.max_tokens, demo.dtype) == (2, 5, 7, "float32")


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"demo.dtype": "float16"}, "demo.dtype"),
        ({"demo.steps": 0}, "demo.steps"),
        ({"demo.stepz": 1}, "demo.stepz"),
        ({"demo.numerics": "batch_invariant"}, "demo: .*bfloat16"),
    ],
)
def test_an_error_names_the_setting(flags: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(None, flags)


def test_a_broken_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "settings.toml"
    with pytest.raises(ConfigError, match="cannot be read"):
        load(file)
    for content in (b"[demo\n", 'model = "gr\xf6\xdfe"'.encode("latin-1")):
        file.write_bytes(content)
        with pytest.raises(ConfigError, match="is not TOML"):
            load(file)
