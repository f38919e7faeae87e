"""Starting a coordinator: its address, its certificate, its ledger in standby, and what the command line says."""

import asyncio
import gc
import json
import logging
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from omni_rl_services.coordinator import __main__ as command
from omni_rl_services.coordinator import server
from omni_rl_services.coordinator.app import create_app
from omni_rl_services.coordinator.server import access, bind, make_server
from omni_rl_services.coordinator.settings import CoordinatorSettings, MediaSettings, TlsSettings, TokenEntry
from omni_rl_services.coordinator.supervisor import SupervisedBridge

from omni_rl.api.state import Scope
from omni_rl.errors import ConfigError, CoordinatorRunningError, ServiceError
from tests.ledgers import open_ledger
from tests.services.live import live


def settings(directory: Path, **said: Any) -> CoordinatorSettings:
    url = f"sqlite:///{directory / 'ledger.db'}"
    open_ledger(url).close()
    return CoordinatorSettings(
        **{"ledger": url, "media": MediaSettings(directory=directory / "media"), "port": 0, **said}
    )


@pytest.fixture(autouse=True)
def thawed() -> Iterator[None]:
    """What a server freezes for its own life is collected again after it."""
    yield
    gc.unfreeze()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Ends the server that `serve` runs in this thread."""
    made: list[Any] = []
    make = server.make_server

    def making(app: Any) -> Any:
        made.append(make(app))
        return made[-1]

    monkeypatch.setattr(server, "make_server", making)
    return lambda: setattr(made[-1], "should_exit", True)


def test_a_coordinator_says_where_it_is_once_it_answers_there(
    tmp_path: Path, ends: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "address"
    told: list[str] = []

    def started(address: str) -> None:
        told.append(address)
        assert path.read_text() == address
        ends()

    server.serve(settings(tmp_path, address_file=path), on_start=started)
    (address,) = told
    assert address.startswith("http://127.0.0.1:")
    assert [one.name for one in tmp_path.iterdir() if "address" in one.name] == ["address"], "it is replaced whole"


def test_a_coordinator_logs_its_address_and_who_may_do_what(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = server.Server.startup

    async def starting(self: server.Server, sockets: Any = None) -> None:
        await started(self, sockets)
        self.should_exit = True

    monkeypatch.setattr(server.Server, "startup", starting)
    with caplog.at_level(logging.INFO):
        server.serve(settings(tmp_path))
    assert "coordinator at http://127.0.0.1:" in caplog.text
    assert "WITHOUT TOKENS: anyone on this machine may do anything" in caplog.text


def test_a_port_that_is_taken_is_named_before_anything_is_opened(tmp_path: Path) -> None:
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServiceError, match=rf"port {port} of 127\.0\.0\.1 is taken"):
            server.serve(CoordinatorSettings(port=port, ledger=f"sqlite:///{tmp_path / 'none.db'}"))
    assert not (tmp_path / "none.db").exists()
    with bind("127.0.0.1", port):
        pass


def test_an_address_that_is_none_of_this_machines_is_refused() -> None:
    with pytest.raises(ServiceError, match=r"cannot listen at port 0 of 192\.0\.2\.1: Cannot assign requested address"):
        bind("192.0.2.1", 0)


@pytest.mark.parametrize(("host", "begin"), [("127.0.0.1", "http://127.0.0.1:"), ("::1", "http://[::1]:")])
def test_an_address_can_be_asked_as_it_is_told(tmp_path: Path, host: str, begin: str) -> None:
    if host == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    with live(tmp_path, host=host) as address:
        assert address.startswith(begin)
        answer = httpx.get(f"{address}/healthz")
        assert answer.status_code == 200
        assert "server" not in answer.headers
        assert httpx.get(f"{address}/docs").status_code == 404


def test_requests_are_counted_and_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO), live(tmp_path) as address:
        assert httpx.get(f"{address}/healthz", headers={"X-Forwarded-For": "10.0.0.7"}).status_code == 200
        assert 'route="/healthz",status="200"} 1.0' in httpx.get(f"{address}/metrics").text
    assert [one for one in caplog.records if one.name == "uvicorn.access"] == []


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as one:
            one.bind(("::1", 0))
    except OSError:
        return False
    return True


def test_files_that_are_no_certificate_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("none")
    for key in ("cert.pem", "missing.pem"):
        tls = TlsSettings(certificate=tmp_path / "cert.pem", key=tmp_path / key)
        with pytest.raises(ConfigError, match=r"TLS: .*cert\.pem and .* are no certificate and its key"):
            server.serve(CoordinatorSettings(tls=tls, ledger=f"sqlite:///{tmp_path / 'none.db'}"))
    assert not (tmp_path / "none.db").exists()


@pytest.mark.parametrize(
    ("tls", "secure", "scheme", "cookies"),
    [(False, False, "http", False), (False, True, "http", True), (True, False, "https", True)],
)
def test_cookies_go_over_tls_alone_where_there_is_tls(
    tmp_path: Path, tls: bool, secure: bool, scheme: str, cookies: bool
) -> None:
    files = TlsSettings(certificate=tmp_path / "cert.pem", key=tmp_path / "key.pem") if tls else None
    chosen = settings(tmp_path, tls=files, secure_cookies=secure)
    assert chosen.cookies_are_secure is cookies
    app = create_app(chosen)
    made = make_server(app)
    assert made.config.is_ssl is (scheme == "https")
    asyncio.run(closed(app))


async def closed(app: Any) -> None:
    async with app.router.lifespan_context(app):
        pass


def test_it_says_who_may_do_what(tmp_path: Path) -> None:
    entry = TokenEntry(name="ann", scope=Scope.READ, sha256="0" * 64)
    for tokens, says in (((), "WITHOUT TOKENS"), ((entry,), "for those with a token")):
        app = create_app(settings(tmp_path, tokens=tokens))
        assert access(app).startswith(says)
        asyncio.run(closed(app))


def test_a_coordinator_in_standby_goes_on_once_the_ledger_is_free(
    tmp_path: Path, ends: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = settings(tmp_path, standby=True)
    first = open_ledger(chosen.ledger)
    first.take()
    looks: list[float] = []
    waited: list[str] = []

    class Time:
        @staticmethod
        def sleep(seconds: float) -> None:
            looks.append(seconds)
            if len(looks) == 3:
                first.close()

    monkeypatch.setattr(server, "time", Time)
    server.serve(chosen, on_start=lambda address: ends(), on_wait=waited.append)
    assert looks == [0.5] * 3
    (said,) = waited
    assert said.startswith("standby: ")


def test_a_coordinator_that_is_not_in_standby_is_refused_and_leaves_the_port(tmp_path: Path) -> None:
    chosen = settings(tmp_path)
    with open_ledger(chosen.ledger) as first:
        first.take()
        with pytest.raises(CoordinatorRunningError):
            server.serve(chosen)
        with pytest.raises(CoordinatorRunningError):
            create_app(chosen)


def test_whoever_ends_a_standby_leaves_the_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = settings(tmp_path, standby=True)

    class Time:
        @staticmethod
        def sleep(seconds: float) -> None:
            raise KeyboardInterrupt

    monkeypatch.setattr(server, "time", Time)
    with open_ledger(chosen.ledger) as first:
        first.take()
        with pytest.raises(KeyboardInterrupt):
            server.serve(chosen)


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[CoordinatorSettings, Any]]:
    """What the command would serve."""
    found: list[tuple[CoordinatorSettings, Any]] = []
    monkeypatch.setattr(command, "serve", lambda chosen, bridge: found.append((chosen, bridge)))
    return found


def test_the_command_serves_what_its_settings_say(
    tmp_path: Path, served: list[tuple[CoordinatorSettings, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"port": 8411}))
    assert command.main([str(path)]) == 0
    assert command.main([]) == 0
    assert [(chosen.port, bridge) for chosen, bridge in served] == [(8411, None), (8400, None)]


def test_the_command_has_a_bridge_where_its_settings_have_a_cluster(
    tmp_path: Path, served: list[tuple[CoordinatorSettings, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[int] = []
    monkeypatch.setattr(command, "require_devices", lambda cluster, replicas: needed.append(replicas))
    cluster = {"address": "127.0.0.1:6379", "dashboard": "", "run": "r", "model": "m", "ledger": "", "replicas": 2}
    path = tmp_path / "settings.json"
    path.write_text(json.dumps({"cluster": cluster}))
    assert command.main([str(path)]) == 0
    ((_, bridge),) = served
    assert isinstance(bridge, SupervisedBridge)
    assert needed == [2]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "settings.json: "),
        ("[]", "settings.json: "),
        ('{"port": 70000}', "port"),
        ('{"surprise": 1}', "surprise"),
    ],
)
def test_the_command_says_what_is_wrong_with_its_settings(
    tmp_path: Path,
    served: list[tuple[CoordinatorSettings, Any]],
    capsys: pytest.CaptureFixture[str],
    content: str | None,
    says: str,
) -> None:
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    assert command.main([str(path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error [invalid_config]: ")
    assert says in said
    assert served == []


def test_the_command_takes_one_file_at_most(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["a.json", "b.json"]) == 2
    assert "usage: python -m omni_rl_services.coordinator [SETTINGS.json]" in capsys.readouterr().err
