"""What the coordinator is started with; what would be unsafe is refused, and said."""

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
from omni_rl.service.webhooks import PagerSettings
from omni_rl.settings import StrictSettings

MIB = 1 << 20


class TokenEntry(StrictSettings):
    """A token as it is kept: its holder's name, what it may do, and its SHA-256. The token itself is nowhere."""

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    scope: Scope
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Bounds(StrictSettings):
    """How much a client may send or hold. Bytes unless said."""

    body: int = Field(default=MIB, gt=0)
    """Of any request but those below."""
    part: int = Field(default=256 * MIB, gt=0)
    """Of one rank's records as an Arrow stream."""
    json_part: int = Field(default=8 * MIB, gt=0)
    """Of one rank's records as JSON, which is parsed while nothing else runs."""
    update: int = Field(default=32 * MIB, gt=0)
    """Of what an engine or a trainer tells of an update of weights: fingerprints, part by part."""
    media: int = Field(default=32 * MIB, gt=0)
    """Of one media item."""
    pixels: int = Field(default=89_478_485, gt=0)
    """Of one picture, or of one frame (Pillow's own limit)."""
    frames: int = Field(default=4096, gt=0)
    """Of one video."""
    samples: int = Field(default=57_600_000, gt=0)
    """Of one sound: an hour at 16 kHz."""
    memory: int | None = Field(default=None, ge=64 * MIB)
    """That all of this may take together: an eighth for bodies that arrive at once (more have to wait), half for a step
    that is judged (128 a token). None: three quarters of what the process may have, 16 GiB at most."""
    subscribers: int = Field(default=512, gt=0)
    """Open event streams."""


class MediaSettings(StrictSettings):
    """Media of kept samples: where they lie, and for how long; `keep` False keeps them out."""

    directory: Path = Path("runs/media")
    keep: bool = True
    quota: int = Field(default=10 << 30, gt=0)
    days: float | None = Field(default=30.0, gt=0)

    @property
    def rules(self) -> MediaRules:
        return MediaRules(self.keep, self.quota, self.days)


class TlsSettings(StrictSettings):
    """Files in PEM: the certificate with those that vouch for it, and its key."""

    certificate: Path
    key: Path


class WandbSettings(StrictSettings):
    """Send every step's figures and alerts of incidents to Weights & Biases; needs the `wandb` package."""

    project: str
    entity: str | None = None


class TensorboardSettings(StrictSettings):
    """Write every step's figures as TensorBoard's event files; needs `pip install omni-rl[tensorboard]`."""

    directory: Path
    """Where they go, into a directory for each run and attempt."""


class CoordinatorSettings(StrictSettings):
    """Without a token anyone who reaches the port may do anything, so only this machine is let near it."""

    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    address_file: Path | None = None
    """Where the coordinator writes its address once it answers; with port 0 nobody else knows it."""
    ledger: str = "sqlite:///runs/ledger.db"
    """sqlite:///FILE or postgresql+psycopg://USER@HOST/DATABASE."""
    standby: bool = False
    """Where another coordinator keeps the ledger: wait until it has ended, and then go on in its place."""
    media: MediaSettings = MediaSettings()
    tokens: tuple[TokenEntry, ...] = ()
    tokens_file: Path | None = None
    """JSON: a list of token entries; only its owner may read it. It is read again when it changes."""
    allowed_hosts: tuple[str, ...] = ()
    """Names besides its own addresses under which browsers may reach a coordinator without tokens."""
    tls: TlsSettings | None = None
    """None: plain HTTP, for this machine, or behind a proxy that has TLS."""
    secure_cookies: bool = False
    """True behind a proxy with TLS: the session cookie is then sent over TLS alone, as it is with `tls`."""
    weight_roots: tuple[Path, ...] = ()
    """Directories from which a sync may take safetensors; none: only from the trainer and from `publish`."""
    bounds: Bounds = Bounds()
    metrics_runs: int = Field(default=16, ge=1)
    """Runs that `/metrics` has figures of; the one that was silent longest goes first."""
    metrics_threads: int = Field(default=1, ge=1)
    worst_samples: int = Field(default=16, ge=0)
    """Samples of a step that are kept with their tokens."""
    silent_after: float = Field(default=1800.0, gt=0)
    """Seconds without a step after which a run is silent, unless it states its own."""
    settle: int = Field(default=3, ge=1)
    """Calm steps before a severity falls."""
    wandb: WandbSettings | None = None
    tensorboard: TensorboardSettings | None = None
    pager: PagerSettings = PagerSettings()
    cluster: ClusterSettings | None = None
    """The Ray cluster that it keeps; none: it judges what other frameworks post."""

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
        """Those given and those of the file.

        Raises:
            ConfigError: the file cannot be read, is no list of tokens, or others may read it.
        """
        return self.tokens + (load_tokens(self.tokens_file) if self.tokens_file is not None else ())


def load_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """Token entries of a file that only its owner may read."""
    try:
        mode, text = stat.S_IMODE(path.stat().st_mode), path.read_text()
    except OSError as error:
        raise ConfigError(f"tokens file {path} cannot be read: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"tokens file {path} may be read by others; run: chmod 600 {path}")
    try:
        entries = json.loads(text)
    except ValueError:
        raise ConfigError(f"tokens file {path} is not JSON") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigError(f'tokens file {path} must be a list of {{"name", "scope", "sha256"}}')
    if not entries:
        raise ConfigError(f"tokens file {path} holds no token; nobody could use the coordinator")
    return tuple(TokenEntry(**entry) for entry in entries)
