"""What the commands that come later know of the service that was started in a directory; it is in `state.json`."""

import os
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from omni_rl.errors import ServiceError
from omni_rl.processes import life
from omni_rl.service.directory import write_private
from omni_rl.service.settings import UpSettings

MARK = "OMNI_RL_SERVICE"
"""The environment variable with the service's name, which every process of the service has; `down` finds them by it."""


class Process(BaseModel):
    """A process by its id and the start time that the kernel gave it, so that a later process with the same id is not
    taken for it."""

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
    """The state of a service. `name` is also that of the run whose weights the replicas serve. `settings` are those
    that the service was started with; None for a service of an older version."""

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
        """Return the state, or None if nothing was started in `directory` or it was ended. Raises `ServiceError` for a
        file that is not ours."""
        try:
            return cls.model_validate_json((directory / "state.json").read_text())
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValidationError) as error:
            raise ServiceError(f"{directory / 'state.json'} cannot be used: {error}") from None

    def write(self, directory: Path) -> None:
        write_private(directory / "state.json", self.model_dump_json(indent=1))


def marked(name: str) -> list[int]:
    """Return the id of every process of this user that belongs to the service `name`, except this one."""
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
