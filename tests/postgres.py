"""A PostgreSQL server of our own, from Debian's packages, on a socket in a directory that goes with it."""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg


def find_binaries() -> Path | None:
    """Where initdb and pg_ctl are: the newest of Debian's versions, or the path."""
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    found = versions[-1] if versions else shutil.which("initdb")
    return Path(found).resolve().parent if found else None


class Postgres:
    """Started by the constructor, ended and removed by `stop`. It refuses to run as root, so root lends it a user."""

    def __init__(self, binaries: Path) -> None:
        self._binaries = binaries
        self._user = "postgres" if os.getuid() == 0 else pwd.getpwuid(os.getuid()).pw_name
        self.directory = Path(tempfile.mkdtemp(prefix="omni-rl-postgres-"))
        if os.getuid() == 0:
            shutil.chown(self.directory, self._user)
        self._data = self.directory / "data"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self.start()

    def start(self) -> None:
        # A process that is killed loses nothing that the system holds, so tests need not wait for the disk.
        settings = {"listen_addresses": "''", "unix_socket_directories": self.directory, "fsync": "off"}
        options = " ".join(f"-c {name}={value}" for name, value in settings.items())
        self._run("pg_ctl", "-D", str(self._data), "-o", options, "-w", "-l", str(self.directory / "log"), "start")

    def crash(self) -> None:
        """End it as a power cut would, as far as its files go."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def stop(self) -> None:
        self.crash()
        shutil.rmtree(self.directory)

    def new_database(self, template: str = "template1") -> str:
        """The URL of a copy of a database, by default of an empty one."""
        name = f"ledger_{uuid.uuid4().hex[:12]}"
        with psycopg.connect(f"host={self.directory} user=postgres dbname=postgres", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return f"postgresql+psycopg://postgres@/{name}?host={self.directory}"

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", self._user, "--", *command]
        done = subprocess.run(command, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.decode()}")
