"""The settings of `omni-rl up` and `omni-rl serve`. This module imports neither torch nor Ray."""

from pathlib import Path

from omni_rl_services.coordinator.webhooks import PagerSettings
from pydantic import BaseModel, ConfigDict, Field

from omni_rl.bridge.settings import BatchSettings, Hosts
from omni_rl.settings import NumericsSettings

ADDRESS = "address"
"""The file in a directory of `omni-rl serve` that has the coordinator's address while it runs."""
SMALL_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "small"


class UpSettings(NumericsSettings, BatchSettings, Hosts):
    """The service of one machine. `directory` has everything that outlives a process: state, tokens, ledger, logs. With
    port 0, any free port is taken.

    `object_store` is the bytes of Ray's object store, which must hold more than a step's media tensors. Other hosts
    join the service's Ray cluster with `ray start`.
    """

    directory: Path = Path("runs/up")
    model: Path = SMALL_CHECKPOINT
    replicas: int = Field(default=1, ge=1)
    world_size: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    ledger: str | None = None
    """The ledger's URL; the default is a file in `directory`."""
    weight_roots: tuple[Path, ...] = ()
    object_store: int = Field(default=256 * 2**20, ge=80 * 2**20)
    ready_seconds: float = Field(default=300.0, gt=0)

    def over(self, before: "UpSettings") -> "UpSettings":
        """Return the settings that are set here, and for all others those that a service was started with `before`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return before.model_copy(update=given | {name: getattr(self, name) for name in OF_A_CALL})


class ServeSettings(BaseModel):
    """The coordinator and its page alone, for runs that other engines and trainers make. `directory` has everything
    that outlives the process: tokens, ledger, media. With port 0, any free port is taken."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Path("runs/serve")
    host: str = "127.0.0.1"
    """The address to listen at. Only this machine can reach the default."""
    port: int = Field(default=8400, ge=0, le=65535)
    ledger: str | None = None
    """The ledger's URL, sqlite:///FILE or postgresql://USER@HOST/DATABASE; the default is a file in `directory`."""
    standby: bool = False
    """Whether to wait, where another coordinator keeps the ledger, until that one has ended, and then to go on in its
    place."""
    token_file: Path | None = None
    """A file with the owner's token; the default is one that is made in `directory`."""
    tls_certificate: Path | None = None
    """A PEM file with the certificate; with `tls_key`, the coordinator's address is an https one."""
    tls_key: Path | None = None
    pager: PagerSettings = PagerSettings()


OF_A_CALL = ("directory", "ready_seconds")
"""Settings that hold for one call of `omni-rl up` and are not taken from the service that was started before."""
