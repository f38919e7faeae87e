"""A whole service of a benchmark's own, as `omni-rl up` makes it: Ray, both policies, the coordinator."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from omni_rl.bench.result import BenchmarkError
from omni_rl.client.blocking import Client
from omni_rl.client.retries import Retries

Say = Callable[[str], None]


@dataclass(frozen=True)
class OwnService:
    """One that is up, in `directory`. `run`: the one whose weights it serves."""

    directory: Path
    url: str
    run: str
    token_file: Path

    def client(self, retries: Retries | None = None) -> Client:
        return Client(self.url, self.token_file.read_text(), retries=retries or Retries())

    @property
    def address(self) -> Mapping[str, str]:
        """By which a job finds its coordinator."""
        return {"OMNI_RL_URL": self.url, "OMNI_RL_TOKEN_FILE": str(self.token_file)}

    def command(self, *arguments: str) -> str:
        """`omni-rl` about this service; what it prints."""
        return _command(*arguments, "--directory", str(self.directory))


@contextmanager
def own_service(say: Say, *options: str) -> Iterator[OwnService]:
    """Nothing of it is there afterwards. `options` of `omni-rl up`."""
    with tempfile.TemporaryDirectory(prefix="omni-rl-bench-") as folder:
        try:
            say("starting a service")
            answer = json.loads(_command("up", "--directory", folder, "--port", "0", "--json", *options))
            require_loopback(answer["url"])
            yield OwnService(Path(folder), answer["url"], answer["run"], Path(answer["token_file"]))
        finally:
            _command("down", "--directory", folder)


def require_loopback(url: str) -> None:
    """Raises `BenchmarkError` for an address that another machine could have: load is for this one alone."""
    host = urlsplit(url).hostname or ""
    try:
        if ip_address(host).is_loopback:
            return
    except ValueError:  # a name, which may be anybody's
        pass
    raise BenchmarkError(f"{url} is not of the loopback network; unset up.host, so that the load stays on this machine")


def _command(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "omni_rl", *arguments], stdout=subprocess.PIPE, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise BenchmarkError(f"omni-rl {' '.join(arguments)} ended with exit code {done.returncode}")
    return done.stdout
