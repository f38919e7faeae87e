"""The coordinator's settings; unsafe ones are refused, with the reason."""

import ipaddress
import json
import stat
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from omni_rl.api.state import Scope
from omni_rl.bridge.settings import ClusterSettings
from omni_rl.errors import ConfigError
from omni_rl.ledger.media_store import MediaRules
from omni_rl.settings import StrictSettings
from omni_rl_services.coordinator.webhooks import PagerSettings

MIB = 1 << 20


class TokenEntry(StrictSettings):
    """A token as it is stored: its holder's name, what it may do, and its SHA-256. The token itself is nowhere."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    scope: Scope
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Bounds(StrictSettings):
    """How much a client may send or hold, in bytes unless another unit is named."""

    body: int = Field(default=MIB, gt=0)
    """The most bytes of a request's body, where no other bound names its kind."""
    part: int = Field(default=256 * MIB, gt=0)
    """The most bytes of one rank's records as an Arrow stream."""
    json_part: int = Field(default=8 * MIB, gt=0)
    """The most bytes of one rank's records as JSON."""
    update: int = Field(default=32 * MIB, gt=0)
    """The most bytes of an engine's or a trainer's report of a weight update: fingerprints, part by part."""
    media: int = Field(default=32 * MIB, gt=0)
    """The most bytes of one media item."""
    pixels: int = Field(default=89_478_485, gt=0)
    """The most pixels of one picture, or of one frame (Pillow's own limit)."""
    frames: int = Field(default=4096, gt=0)
    """The most frames of one video."""
    samples: int = Field(default=57_600_000, gt=0)
    """The most samples of one sound: an hour at 16 kHz."""
    memory: int | None = Field(default=None, ge=64 * MIB)
    """The memory for all of this together: an eighth for bodies that arrive at once (more have to wait), half for a
    step that is judged (128 bytes a token, and 2 for each byte of texts and router choices), a sixteenth for
    fingerprints that later ones are compared with. None: three quarters of what the process may have, at most 16
    GiB."""
    subscribers: int = Field(default=512, gt=0)
    """The most event streams that are open at once."""


class MediaSettings(StrictSettings):
    """Where the media of stored samples lie, and for how long; with `keep` False no media are stored."""

    directory: Path = Path("runs/media")
    keep: bool = True
    quota: int = Field(default=10 << 30, gt=0)
    days: float | None = Field(default=30.0, gt=0)

    @property
    def rules(self) -> MediaRules:
        return MediaRules(self.keep, self.quota, self.days)


class TlsSettings(StrictSettings):
    """PEM files: the certificate, with those that vouch for it, and its key."""

    certificate: Path
    key: Path


class WandbSettings(StrictSettings):
    """Send every step's figures and alerts of incidents to Weights & Biases; needs the `wandb` package."""

    project: str
    entity: str | None = None


class TensorboardSettings(StrictSettings):
    """Write every step's figures as TensorBoard's event files; needs `pip install omni-rl[tensorboard]`."""

    directory: Path
    """The directory for the files, with one directory in it for each run and attempt."""


class CoordinatorSettings(StrictSettings):
    """The coordinator's settings. Without a token anyone who reaches the port may do anything, so a coordinator without
    tokens listens on this machine alone."""

    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    address_file: Path | None = None
    """The file into which the coordinator writes its address once it answers; with port 0 nobody else knows it."""
    ledger: str = "sqlite:///runs/ledger.db"
    """The ledger's URL: sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."""
    standby: bool = False
    """Whether to wait, where another coordinator keeps the ledger, until that one has ended, and then to go on in its
    place."""
    media: MediaSettings = MediaSettings()
    tokens: tuple[TokenEntry, ...] = ()
    tokens_file: Path | None = None
    """A JSON file with a list of token entries; only its owner may read it. It is read again when it changes, and with
    `tokens` it may be absent."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides the coordinator's own addresses under which browsers may reach it without tokens."""
    tls: TlsSettings | None = None
    """The TLS certificate and key. None: plain HTTP, for this machine, or behind a proxy that has TLS."""
    secure_cookies: bool = False
    """True behind a proxy with TLS: the session cookie is then sent over TLS alone, as it is with `tls`."""
    weight_roots: tuple[Path, ...] = ()
    """Directories from which a sync may take safetensors; with none, weights come from the trainer and from `publish`
    alone."""
    bounds: Bounds = Bounds()
    metrics_runs: int = Field(default=16, ge=1)
    """The number of runs that `/metrics` has figures of; the one that has been silent longest is dropped first."""
    metrics_threads: int = Field(default=1, ge=1)
    worst_samples: int = Field(default=16, ge=0)
    """The number of samples of a step that are stored with their tokens."""
    silent_after: float = Field(default=1800.0, gt=0)
    """Seconds without a step after which a run is silent, unless the run states its own."""
    settle: int = Field(default=3, ge=1)
    """The number of calm steps before a severity falls."""
    wandb: WandbSettings | None = None
    tensorboard: TensorboardSettings | None = None
    pager: PagerSettings = PagerSettings()
    cluster: ClusterSettings | None = None
    """The Ray cluster that the coordinator keeps. None: it judges what other frameworks post."""

    @model_validator(mode="after")
    def _safe(self) -> Self:
        if not self.is_loopback and not self.tokens and self.tokens_file is None:
            raise ValueError(
                f"host {self.host} is reachable from other machines, so tokens are needed: make one "
                "with `omni-rl token --directory DIRECTORY` and set tokens_file to DIRECTORY/tokens.json, or bind to "
                "127.0.0.1"
            )
        return self

    @property
    def cookies_are_secure(self) -> bool:
        """Whether the session cookie is sent over TLS alone."""
        return self.secure_cookies or self.tls is not None

    @property
    def is_loopback(self) -> bool:
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def all_tokens(self) -> tuple[TokenEntry, ...]:
        """Return the tokens of the settings and those of the tokens file.

        Raises:
            ConfigError: the file cannot be read, is no list of tokens, or others may read it.
        """
        if self.tokens_file is None:
            return self.tokens
        return self.tokens + load_tokens(self.tokens_file, may_be_absent=bool(self.tokens))


def load_tokens(path: Path, *, may_be_absent: bool = False) -> tuple[TokenEntry, ...]:
    """Return the token entries of a file that only its owner may read. Raises `ConfigError` as `all_tokens` does."""
    try:
        mode, content = stat.S_IMODE(path.stat().st_mode), path.read_bytes()
    except OSError as error:
        if may_be_absent and isinstance(error, FileNotFoundError):
            return ()
        raise ConfigError(f"tokens file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"tokens file {path} may be read by others; run: chmod 600 {path}")
    try:
        entries = json.loads(content)
    except ValueError:
        raise ConfigError(f"tokens file {path} is not JSON") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'tokens file {path} must be a list of {{"name", "scope", "sha256"}}')
    if not entries:
        raise ConfigError(f"tokens file {path} holds no token; nobody could use the coordinator")
    return tuple(TokenEntry(**entry) for entry in entries)
