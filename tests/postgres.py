"""A PostgreSQL server of our own, from Debian's packages, on a socket in a directory that goes with it.

A database is three hundred files, of which tests want hundreds: they lie in memory where there is room, and go with
their test.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

import psycopg
from sqlalchemy import make_url

MEMORY = Path("/dev/shm")
ROOM = 1 << 30
"""Bytes in memory that a server and its databases are well below."""
COPIES_FILES = 150000
"""The first version that has to be told to copy a template's files, in place of writing each into the log."""


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
        self.directory = Path(tempfile.mkdtemp(prefix="omni-rl-postgres-", dir=_in_memory()))
        if os.getuid() == 0:
            shutil.chown(self.directory, self._user)
        self._data = self.directory / "data"
        self._run("initdb", "-D", str(self._data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-locale", "-N")
        self.start()

    def start(self) -> None:
        # A process that is killed loses nothing that the system holds, so tests need not wait for the disk.
        settings = {
            "listen_addresses": "''",
            "unix_socket_directories": self.directory,
            "fsync": "off",
            "max_wal_size": "128MB",
        }
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
        with self._connection() as connection:
            strategy = "STRATEGY FILE_COPY" if connection.info.server_version >= COPIES_FILES else ""
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}".encode())
        return f"postgresql+psycopg://postgres@/{name}?host={self.directory}"

    def drop_database(self, url: str) -> None:
        """Delete the database of this URL, whoever is connected to it."""
        with self._connection() as connection:
            connection.execute(f"DROP DATABASE {make_url(url).database} WITH (FORCE)".encode())

    def _connection(self) -> psycopg.Connection:
        return psycopg.connect(f"host={self.directory} user=postgres dbname=postgres", autocommit=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [str(self._binaries / program), *arguments]
        if os.getuid() == 0:
            command = ["runuser", "-u", self._user, "--", *command]
        done = subprocess.run(command, cwd=self.directory, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60)
        if done.returncode:
            raise RuntimeError(f"{program} failed: {done.stdout.decode()}")


def _in_memory() -> Path | None:
    return MEMORY if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > ROOM else None
