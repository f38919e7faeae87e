"""Seconds and bytes of a step's parts on GPUs: what links allow at best, and what this code was measured to reach."""

import math
from dataclasses import dataclass

from pydantic import Field

from omni_rl.plan.links import Links
from omni_rl.plan.measured import MeasuredConstants, StraightLine
from omni_rl.settings import StrictSettings

MASTER_BYTES = 16
"""Bytes that the trainer holds for a parameter: float32 weight, gradient and the two moments of Adam."""


class PlanSettings(StrictSettings):
    """A model of `total` parameters, of which a token uses `active`, on `gpus` GPUs; `rollout_share` of the hosts
    sample.

    `tensor_parallel` GPUs hold one engine. `tokens` are sampled in a step. `utilisation` is the share of the GPUs'
    arithmetic that scoring reaches: an assumption, not measured.
    """

    total: float = Field(gt=0)
    active: float = Field(gt=0)
    gpus: int = Field(default=8, ge=1)
    rollout_share: float = Field(default=0.5, gt=0, lt=1)
    tensor_parallel: int = Field(default=1, ge=1)
    bytes_per_parameter: int = Field(default=2, ge=1)
    tokens: float = Field(default=4e6, gt=0)
    utilisation: float = Field(default=0.3, gt=0, le=1)


@dataclass(frozen=True)
class Cost:
    """The cost of one part of a step. `limit` is the seconds that the links allow at best; `as_built` the seconds with
    this code's measured rates, where those are lower. `bound` says what the part waits for."""

    part: str
    limit: float
    as_built: float
    bound: str


@dataclass(frozen=True)
class BytesNeeded:
    """The bytes that `what` needs, of which `there` exist (None if that is not known)."""

    what: str
    needed: float
    there: float | None


@dataclass(frozen=True)
class Plan:
    costs: tuple[Cost, ...]
    rooms: tuple[BytesNeeded, ...]

    @property
    def stall(self) -> tuple[float, float]:
        """The seconds without generation in a sync: at best, and as built."""
        still = [cost for cost in self.costs if cost.part in ("apply", "verify")]
        return sum(cost.limit for cost in still), sum(cost.as_built for cost in still)


def plan(settings: PlanSettings, links: Links, measured: MeasuredConstants) -> Plan:
    """Return the cost of a step's parts and the memory that they need. Everything here is arithmetic; docs/scale.md
    explains each line."""
    weights = settings.total * settings.bytes_per_parameter
    hosts = math.ceil(settings.gpus / links.gpus_per_host)
    rollout_hosts = max(1, round(hosts * settings.rollout_share))
    trainer_hosts = max(1, hosts - rollout_hosts)
    trainer_gpus = settings.gpus * (1 - settings.rollout_share) if hosts == 1 else trainer_hosts * links.gpus_per_host
    others = 0 if hosts == 1 else rollout_hosts
    share = weights / settings.tensor_parallel

    # Every shard leaves its GPU at once; those of other hosts reach the slab's host through one port.
    gathered = weights * (trainer_hosts - 1) / trainer_hosts
    out = weights / (trainer_gpus * links.pcie) + gathered / links.network
    flops = 2 * settings.active * settings.tokens
    costs = (
        _cost("prepare: into the slab", out, measured.phases["prepare"], weights, "host memory"),
        # The source sends to each host itself; a chain of hosts would take the time of one.
        Cost(
            "prepare: to other hosts",
            min(1, others) * weights / links.network,
            others * weights / links.network,
            NETWORK,
        ),
        _cost("apply", share / links.pcie, measured.phases["apply"], share, "the engine's copy"),
        _cost("verify", share / links.pcie, measured.phases["verify"], share, "reading back"),
        Cost(
            "scoring",
            flops / (trainer_gpus * links.device_flops),
            flops / (trainer_gpus * links.device_flops * settings.utilisation),
            "arithmetic, at the utilisation given",
        ),
        Cost("check", 0.0, settings.tokens / measured.check_rate, "one core of the coordinator"),
    )
    rooms = (
        BytesNeeded("an engine, a GPU: weights", share, links.device_memory),
        BytesNeeded(
            "the trainer, a GPU: weights, gradient, moments",
            settings.total * MASTER_BYTES / trainer_gpus,
            links.device_memory,
        ),
        BytesNeeded("slabs, in a host's /dev/shm", 2 * weights, None),
    )
    return Plan(costs, rooms)


NETWORK = "the source's port"


def _cost(part: str, limit: float, line: StraightLine, size: float, bound: str) -> Cost:
    reached = line.seconds(size)
    return Cost(part, limit, max(limit, reached), bound if reached > limit else "links")
