"""What `omni-rl up` and `omni-rl serve` start; imports neither torch nor Ray."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from omni_rl.bridge.settings import BatchSettings, Hosts
from omni_rl.service.webhooks import PagerSettings
from omni_rl.settings import NumericsSettings

ADDRESS = "address"
"""The file in a directory of `omni-rl serve` that has the coordinator's address while it runs."""
SMALL_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "small"


class UpSettings(NumericsSettings, BatchSettings, Hosts):
    """`directory` has everything that outlives a process: state, tokens, ledger, logs. Port 0: any that is free.

    `object_store` is Ray's, in bytes: a step's media tensors, with room. Other hosts join its Ray with `ray start`.
    """

    directory: Path = Path("runs/up")
    model: Path = SMALL_CHECKPOINT
    replicas: int = Field(default=1, ge=1)
    world_size: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    host: str = "127.0.0.1"
    port: int = Field(default=8400, ge=0, le=65535)
    ledger: str | None = None
    """A URL; the default is a file in `directory`."""
    weight_roots: tuple[Path, ...] = ()
    object_store: int = Field(default=256 * 2**20, ge=80 * 2**20)
    ready_seconds: float = Field(default=300.0, gt=0)

    def over(self, before: "UpSettings") -> "UpSettings":
        """What is set here, and else what a service was started with `before`."""
        given = {name: getattr(self, name) for name in self.model_fields_set}
        return before.model_copy(update=given | {name: getattr(self, name) for name in OF_A_CALL})


class ServeSettings(BaseModel):
    """The coordinator and its page alone, for runs that other engines and trainers make. `directory` has everything
    that outlives the process: tokens, ledger, media. Port 0: any that is free.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    directory: Path = Path("runs/serve")
    host: str = "127.0.0.1"
    """This machine alone may reach it, unless another address is named."""
    port: int = Field(default=8400, ge=0, le=65535)
    ledger: str | None = None
    """sqlite:///FILE or postgresql://USER@HOST/DATABASE; the default is a file in `directory`."""
    standby: bool = False
    """Where another coordinator keeps the ledger: wait until it has ended, and then go on in its place."""
    token_file: Path | None = None
    """A file with the owner's token; the default is one that is made in `directory`."""
    tls_certificate: Path | None = None
    """A PEM file; with `tls_key`, the address is an https one."""
    tls_key: Path | None = None
    pager: PagerSettings = PagerSettings()


OF_A_CALL = ("directory", "ready_seconds")
"""Settings that a service does not keep."""
