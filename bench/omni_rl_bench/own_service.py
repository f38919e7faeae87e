"""Starts a whole service of a benchmark's own, as `omni-rl up` makes it: Ray, both policies, the coordinator."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries
from omni_rl_bench.result import BenchmarkError

Say = Callable[[str], None]


@dataclass(frozen=True)
class OwnService:
    """A service that is up, in `directory`. `run` is the one whose weights it serves."""

    directory: Path
    url: str
    run: str
    token_file: Path

    def client(self, retries: Retries | None = None, timeout: float = 30.0) -> Client:
        return Client(self.url, self.token_file.read_text(), retries=retries or Retries(), timeout=timeout)

    @property
    def address(self) -> Mapping[str, str]:
        """The environment variables by which a job finds its coordinator."""
        return {"OMNI_RL_URL": self.url, "OMNI_RL_TOKEN_FILE": str(self.token_file)}

    def command(self, *arguments: str, environment: Mapping[str, str] | None = None) -> str:
        """Run `omni-rl` on this service, with more variables in its `environment`; return what it prints."""
        return _command(*arguments, "--directory", str(self.directory), environment=environment)


@contextmanager
def own_folder() -> Iterator[Path]:
    """Yield a folder where a service of a benchmark's own may be; nothing of it is there afterwards."""
    with tempfile.TemporaryDirectory(prefix="omni-rl-bench-") as folder:
        yield Path(folder)


@contextmanager
def own_service(say: Say, *options: str, folder: Path | None = None) -> Iterator[OwnService]:
    """Start a service with `options` of `omni-rl up`. Nothing of it is there afterwards but its files in `folder`, if
    given."""
    with nullcontext(folder) if folder is not None else own_folder() as folder:
        try:
            say("starting a service")
            answer = json.loads(_command("up", "--directory", str(folder), "--port", "0", "--json", *options))
            require_loopback(answer["url"])
            yield OwnService(folder, answer["url"], answer["run"], Path(answer["token_file"]))
        finally:
            _command("down", "--directory", str(folder))


def require_loopback(url: str) -> None:
    """Raise `BenchmarkError` for an address that another machine could have: load is for this machine alone."""
    host = urlsplit(url).hostname or ""
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:  # a name, which may be anybody's
        pass
    raise BenchmarkError(f"{url} is not of the loopback network; unset up.host, so that the load stays on this machine")


def _command(*arguments: str, environment: Mapping[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "omni_rl", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        env={**os.environ, **(environment or {})},
    )
    if done.returncode != 0:
        raise BenchmarkError(f"omni-rl {' '.join(arguments)} ended with exit code {done.returncode}")
    return done.stdout
