"""Describes what the bridge hosts, and where; imports neither torch nor Ray."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from omni_rl.policies.settings import namespace_of, rollout_names
from omni_rl.settings import (
    TRANSFERS,
    DeviceKind,
    NumericsSettings,
    Strategy,
    StrictSettings,
    TransferBackend,
    Transport,
)


class Hosts(BaseModel):
    """Where engines and ranks are."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rollout_resources: dict[str, float] = Field(default_factory=dict)
    """Resources by Ray's names: which nodes an engine may be on, and what it takes of them."""
    trainer_resources: dict[str, float] = Field(default_factory=dict)
    """Resources by Ray's names: which nodes a rank of the trainer may be on, and what it takes of them."""
    trainer_device: DeviceKind = "cpu"
    """cuda gives each rank a device of its node; docs/gpu.md says what of it has been run."""
    strategy: Strategy | None = None
    """How ranks and engines are distributed over nodes, in a placement group of their own; None: as Ray likes."""
    transport: Transport = "slab"
    """With object_store, engines may be on other hosts than the bridge and the trainer's first rank, which share a
    memory. vllm_nccl and vllm_ipc, vLLM's own weight transfer, need CUDA devices and have not been run on any
    (docs/gpu.md)."""

    @property
    def weight_transfer(self) -> TransferBackend | None:
        """The backend of vLLM's own weight transfer that engines are started with, if the transport is one of those."""
        return TRANSFERS.get(self.transport)


class BatchSettings(BaseModel):
    """How much an engine computes at a time, by vLLM's names: sequences, and tokens of an iteration."""

    max_num_seqs: int = Field(default=128, ge=1)
    max_num_batched_tokens: int = Field(default=4096, ge=16)


class ClusterSettings(StrictSettings, NumericsSettings, BatchSettings, Hosts):
    """The policies of one run on one Ray cluster.

    `address` is the head's (host:port), `dashboard` where jobs are submitted. `run` names weights, slabs and the Ray
    namespace of the actors. `numerics` is the trainer's. `ledger` holds the journal of weight syncs. `job_environment`
    is what a job's driver gets. `join`: the bridge's host is not a node of the cluster, and becomes one that offers
    nothing, as long as the bridge lives.
    """

    address: str
    dashboard: str
    run: str
    model: Path
    ledger: str
    replicas: int = Field(default=1, ge=1)
    world_size: int = Field(default=2, ge=1)
    learning_rate: float = Field(default=1e-3, gt=0)
    job_environment: dict[str, str] = Field(default_factory=dict)
    join: bool = False

    @property
    def namespace(self) -> str:
        return namespace_of(self.run)

    @property
    def rollouts(self) -> tuple[str, ...]:
        """The names of the rollout actors."""
        return rollout_names(self.replicas)
