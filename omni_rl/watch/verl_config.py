"""What verl's resolved configuration says of a run: what to compare, and what stands in the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_args

from omni_rl.consistency.dtypes import Dtype
from omni_rl.consistency.posted.step import LogprobsOf

DTYPES: Mapping[str, Dtype] = {
    **{name: name for name in get_args(Dtype)},
    "auto": "bfloat16",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
}
"""The names that verl and its engines give to dtypes; `auto` is the checkpoint's, which is bfloat16 for all but few."""


@dataclass(frozen=True)
class VerlRun:
    """A run as its configuration describes it.

    `dtype` is the engine's, `train_dtype` the trainer's; None where the configuration has none. `temperature` is that
    of both logprobs. `obstacle` says what to set where the configuration does not give both logprobs; it is empty
    otherwise.
    """

    name: str
    model: str
    dtype: Dtype
    train_dtype: Dtype | None
    temperature: float
    logprobs_of: LogprobsOf
    filtered: str | None
    obstacle: str

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "VerlRun | None":
        """Return the run that a configuration describes; None for something else than reinforcement learning, such as
        fine-tuning."""
        if "actor_rollout_ref" not in config:
            return None
        parts = config["actor_rollout_ref"]
        rollout, trainer, algorithm = parts["rollout"], config["trainer"], config["algorithm"]
        return cls(
            name=f"{trainer['project_name']}.{trainer['experiment_name']}",
            model=str(parts["model"]["path"]),
            dtype=_dtype(rollout.get("quantization")) or _dtype(rollout["dtype"]) or "bfloat16",
            train_dtype=_train_dtype(parts["actor"]),
            temperature=float(rollout["temperature"]),
            logprobs_of=_logprobs_of(rollout),
            # Groups whose answers all earned the same are dropped before the trainer scores them.
            filtered="reward" if (algorithm.get("filter_groups") or {}).get("enable") else None,
            obstacle=_obstacle(rollout, algorithm),
        )


def _logprobs_of(rollout: Mapping[str, Any]) -> LogprobsOf:
    if rollout["name"] == "vllm":
        # Releases of verl without the setting leave vLLM's default, which knows nothing of the temperature.
        mode = rollout.get("logprobs_mode") or "raw_logprobs"
        return "processed" if mode == "processed_logprobs" else "raw" if mode == "raw_logprobs" else "unknown"
    # Other engines apply the temperature, but not the cuts.
    cut = float(rollout.get("top_p") or 1.0) < 1.0 or int(rollout.get("top_k") or -1) > 0
    return "unknown" if cut else "processed"


def _train_dtype(actor: Mapping[str, Any]) -> Dtype | None:
    """Return the dtype that the strategy's engine computes in; its parameters may be held in another."""
    engine = actor.get(str(actor.get("strategy", "fsdp"))) or actor.get("fsdp_config") or {}
    return _dtype(engine.get("dtype"))


def _dtype(name: Any) -> Dtype | None:
    return DTYPES.get(str(name).removeprefix("torch."))


def _obstacle(rollout: Mapping[str, Any], algorithm: Mapping[str, Any]) -> str:
    if not rollout.get("calculate_log_probs"):
        return "the engine gives no logprobs: set actor_rollout_ref.rollout.calculate_log_probs=True"
    if (algorithm.get("rollout_correction") or {}).get("bypass_mode"):
        return (
            "the trainer scores no answers, it takes over the engine's logprobs: set "
            "algorithm.rollout_correction.bypass_mode=False"
        )
    return ""
