"""Where a client asks, and as whom: what is taken from the environment, and what is refused before anything is sent."""

from pathlib import Path

import pytest

from omni_rl.client import Client
from omni_rl.client.settings import ClientSettings
from omni_rl.errors import ConfigError

TOKEN = "orl_secret"


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMNI_RL_URL", "OMNI_RL_TOKEN", "OMNI_RL_TOKEN_FILE", "OMNI_RL_CA_FILE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("source", ["argument", "OMNI_RL_TOKEN", "OMNI_RL_TOKEN_FILE"])
def test_a_line_end_is_no_part_of_a_token(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _of(source, f" {TOKEN}\n", tmp_path, monkeypatch).headers == {"Authorization": f"Bearer {TOKEN}"}


@pytest.mark.parametrize("wrong", ["\n", "\x01", "\x7f", "é", "\N{RIGHT DOUBLE QUOTATION MARK}"])
@pytest.mark.parametrize("source", ["argument", "OMNI_RL_TOKEN", "OMNI_RL_TOKEN_FILE"])
def test_what_cannot_be_a_token_is_refused_and_not_shown(
    source: str, wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="printable ASCII") as refused:
        _of(source, f"{TOKEN}{wrong}{TOKEN}", tmp_path, monkeypatch)
    assert "secret" not in str(refused.value)


def test_a_token_file_that_is_no_text_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "token"
    path.write_bytes(b"\xff\xfe" + TOKEN.encode("utf-16-le"))
    monkeypatch.setenv("OMNI_RL_TOKEN_FILE", str(path))
    with pytest.raises(ConfigError, match=f"OMNI_RL_TOKEN_FILE {path}"):
        Client()


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:84o0",
        "http://[::1",
        "http://999.1.1.1",
        "http://127.0.0.1:8400\n",
        "http://xn--/",
        "http://",
        "http://:8400",
        "https:///v1",
    ],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_RL_URL", address)
    with pytest.raises(ConfigError, match="coordinator address"):
        Client()


def _of(source: str, token: str, directory: Path, monkeypatch: pytest.MonkeyPatch) -> ClientSettings:
    """The settings with this token from this source."""
    if source == "argument":
        return ClientSettings.of(None, token)
    if source == "OMNI_RL_TOKEN_FILE":
        path = directory / "token"
        path.write_text(token)
        token = str(path)
    monkeypatch.setenv(source, token)
    return ClientSettings.of(None, None)
