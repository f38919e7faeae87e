"""What is known of the service that was started in a directory: `state.json`, for the commands that come later."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import ServiceError
from omni_rl.processes import life
from omni_rl.service.directory import write_private
from omni_rl.service.settings import UpSettings

MARK = "OMNI_RL_SERVICE"
"""In the environment of every process of a service: its name, by which `down` knows them."""


class Process(BaseModel):
    """A process by its id and the time the kernel gave it, so that a successor with the same id is not taken for it."""

    model_config = ConfigDict(frozen=True)

    pid: int
    started: str

    @classmethod
    def of(cls, pid: int) -> "Process":
        return cls(pid=pid, started=_started(pid))

    @property
    def lives(self) -> bool:
        return life(self.pid) != "gone" and _started(self.pid) == self.started


class ServiceState(BaseModel):
    """`name` is also the run's, whose weights the replicas serve. `settings`: those it was started with; a service of
    an older version has none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: Literal[1] = 1
    name: str
    ray_address: str
    dashboard: str
    ray_directory: Path
    url: str
    head: Process | None = None
    coordinator: Process | None = None
    settings: UpSettings | None = None

    @classmethod
    def read(cls, directory: Path) -> "ServiceState | None":
        """None if nothing was started there, or it was ended. Raises `ServiceError` for a file that is not ours."""
        try:
            return cls.model_validate_json((directory / "state.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as error:
            raise ServiceError(f"{directory / 'state.json'} cannot be used: {error}") from None

    def write(self, directory: Path) -> None:
        write_private(directory / "state.json", self.model_dump_json(indent=1))


def marked(name: str) -> list[int]:
    """Every process of this user that belongs to the service `name`, without this one."""
    wanted = f"{MARK}={name}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes().split(b"\0")
        except OSError:  # gone meanwhile, or another user's
            continue
        if wanted in variables and life(int(entry.name)) != "gone":
            found.append(int(entry.name))
    return found


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[19]
