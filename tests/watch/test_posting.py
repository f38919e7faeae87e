"""What a program posts from a thread of its own: what it drops, what it says, and for what it does not wait."""

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from omni_rl.client.posting import MORE, Pace, Poster
from tests.service.test_serve import serving
from tests.watch.conftest import CoordinatorProcess
from tests.watch.test_watcher import until

log = logging.getLogger("omni_rl.tests")
QUICK = Pace(first=0.01, longest=0.02)
FOR_EVER = 600.0
"""Seconds that no test waits."""


def poster(url: str, token: str | None = None, items: int = 8) -> Poster:
    return Poster(url, token, log, items=items, pace=QUICK)


def run(name: str) -> Callable[[Client], object]:
    return lambda client: client.create_run(RunBody(run=name, model="model", dtype="float32"))


@pytest.fixture
def other_server() -> Iterator[str]:
    """A server of something else, which knows no path."""

    class NotFound(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_error(404)

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), NotFound) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.mark.slow
def test_what_waits_is_posted_in_order_once_somebody_answers_and_the_oldest_is_dropped(
    coordinator: CoordinatorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    posting = poster(coordinator.url, items=4)
    for n in range(10):
        posting.put(run(f"run-{n}"))
    assert not posting.flush(0.2)
    until(lambda: "is tried again" in caplog.text)
    coordinator.start()
    assert posting.flush(60)
    coordinator.kill()
    posting.put(run("while-away"))
    assert not posting.flush(0.2)
    coordinator.start()
    assert posting.close(60)
    with Client(coordinator.url) as client:
        found = [one.run for one in reversed(client.runs())]
    assert found == ["run-0", "run-7", "run-8", "run-9", "while-away"]
    assert posting.dropped == 6
    said = [record.getMessage() for record in caplog.records]
    counts = [sum(what in line for line in said) for what in ("is dropped", "is tried again", "answers again")]
    assert counts == [1, 2, 2]


def test_no_rest_of_what_is_dropped_is_lost_while_there_is_room() -> None:
    posting, items = poster("http://127.0.0.1:9", items=4), 3 * MORE // 4
    for n in range(items):
        posting.put(run(f"run-{n}"), rest=lambda: lambda client: None)
    assert posting.dropped == items - 4
    assert posting.waiting == items
    posting.close(0)


@pytest.mark.slow
def test_what_the_coordinator_refuses_is_told_once_and_holds_up_nothing(
    coordinator: CoordinatorProcess, caplog: pytest.LogCaptureFixture
) -> None:
    coordinator.start()
    posting = poster(coordinator.url)
    posting.put(run("mine"))
    for _ in range(3):
        posting.put(lambda client: client.create_run(RunBody(run="mine", model="another", dtype="float32")))
    posting.put(run("next"))
    assert posting.close(60)
    with Client(coordinator.url) as client:
        assert {one.run for one in client.runs()} == {"mine", "next"}
    assert caplog.text.count("refused") == 1


def test_another_server_is_told_and_not_waited_for(other_server: str, caplog: pytest.LogCaptureFixture) -> None:
    posting = poster(other_server)
    posting.put(run("mine"))
    assert not posting.close(FOR_EVER)
    assert "another server answers at 127.0.0.1; is OMNI_RL_URL right?" in caplog.text


def test_an_unknown_host_is_told_and_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    posting = poster("http://no-such-host.invalid:8400")
    posting.put(run("mine"))
    assert not posting.close(FOR_EVER)
    assert "is the host's name in OMNI_RL_URL right?" in caplog.text


def test_a_wrong_token_is_told_and_the_right_one_is_met(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with serving(tmp_path, "--port", "0") as served:
        wrong = poster(served.url, "a token that is not there")
        wrong.put(run("mine"))
        assert not wrong.close(FOR_EVER)
        assert caplog.text.count("nothing can be posted: ") == 1
        assert "OMNI_RL_TOKEN_FILE names the file with it" in caplog.text
        right = poster(served.url, served.token_file.read_text())
        right.put(run("mine"))
        assert right.close(FOR_EVER)


@pytest.mark.slow
def test_https_for_http_is_told_and_the_server_is_asked_once(
    coordinator: CoordinatorProcess, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    coordinator.start()
    wrong, right = poster(coordinator.url.replace("http", "https")), poster(coordinator.url)
    wrong.put(run("mine"))
    assert not wrong.flush(FOR_EVER)
    # While others post, and long after its pace would have had it try again, nothing is heard of it.
    for n in range(30):
        wrong.put(run("mine"))
        right.put(run(f"run-{n}"))
        assert right.flush(FOR_EVER)
    assert not wrong.close(FOR_EVER)
    coordinator.end()
    assert (tmp_path / "coordinator.log").read_text().count("Invalid HTTP request") == 1
    assert "it speaks plain HTTP there: the address begins with http://" in caplog.text


@pytest.mark.slow
def test_http_for_https_is_told_and_a_certificate_nobody_vouches_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*make.split(), "-keyout", "key", "-out", "certificate"], cwd=tmp_path, check=True, capture_output=True
    )
    with serving(tmp_path, "--port", "0", "--tls-certificate", "certificate", "--tls-key", "key") as served:
        for url, told in (
            (served.url.replace("https", "http"), "it speaks https there: the address begins with https://"),
            (served.url, "OMNI_RL_CA_FILE names the certificates that vouch for it"),
        ):
            posting = poster(url)
            posting.put(run("mine"))
            assert not posting.close(FOR_EVER)
            assert told in caplog.text


@pytest.mark.slow
def test_a_process_ends_at_once_where_nothing_can_arrive(coordinator: CoordinatorProcess) -> None:
    coordinator.start()
    lines = (
        "from omni_rl.watch import Watcher",
        "from tests.watch.steps import step_of",
        f"Watcher(url={coordinator.url.replace('http', 'https')!r}, timeout=3600).step(**step_of(0))",
    )
    done = subprocess.run([sys.executable, "-c", "\n".join(lines)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0
    told = [line for line in done.stderr.splitlines() if "omni-rl" in line]
    assert [line.split(":")[1].strip() for line in told] == [
        "nothing can be posted",
        "the run ends with 1 steps that did not arrive",
    ]
