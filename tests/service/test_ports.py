"""The ports that a service's processes are told to listen at, seconds before they do."""

import socket
from pathlib import Path

import pytest

from omni_rl.service import ports


def test_a_port_is_not_one_that_a_connection_may_get_meanwhile() -> None:
    least, most = map(int, ports.GIVEN_OUT.read_text().split())
    assert not any(least <= ports.free_port() <= most for _ in range(200))


def test_a_port_at_which_somebody_listens_is_not_chosen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.create_server((ports.LOOPBACK, 0)) as server:
        taken = server.getsockname()[1]
        monkeypatch.setattr(ports, "FIRST", taken)
        monkeypatch.setattr(ports, "GIVEN_OUT", tmp_path / "range")
        ports.GIVEN_OUT.write_text(f"{taken + 1}\t60999\n")
        assert ports.free_port() != taken


def test_where_the_system_gives_all_to_connections_it_gives_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "GIVEN_OUT", tmp_path / "range")
    ports.GIVEN_OUT.write_text("1024\t65535\n")
    assert ports.free_port() >= 1024
