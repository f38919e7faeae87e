"""`publish` as docs/pair.md has it: which run the weights go to, and what is said where there is none, or several."""

import os
import re
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch

from omni_rl.client import publish
from omni_rl.errors import ConfigError, SlabError
from omni_rl.sync.digest import shapes
from omni_rl.sync.manifest import arrange
from omni_rl.sync.ownership import SHARED_MEMORY
from omni_rl.sync.slab_owner import SlabOwner
from omni_rl.sync.slabs import SlabPair
from omni_rl.sync.sources import PublishedSource

PAGE = Path(__file__).parents[2] / "docs" / "pair.md"
WEIGHTS = {"norm.weight": torch.tensor([1.0, 2.0]), "steps": torch.arange(3)}


def owner(run: str, base: Path) -> SlabOwner:
    return SlabOwner(run, arrange(shapes(WEIGHTS.items())), base)


@pytest.fixture
def served() -> Iterator[str]:
    """A run with slabs where a service has them: in this host's shared memory."""
    run = f"readme-{os.getpid()}"
    with owner(run, SHARED_MEMORY):
        yield run


def test_the_readmes_snippet_publishes(
    served: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it is written; other runs may be on this host, so the environment names this one."""
    monkeypatch.setenv("OMNI_RL_RUN", served)
    (snippet,) = re.findall(r"```python\n(from omni_rl\.client import publish\n.*?)```", PAGE.read_text(), re.DOTALL)
    exec(snippet, {"state_dict": WEIGHTS})  # what the page says
    version = capsys.readouterr().out.strip()
    assert version.startswith(f"{served}/1/12/")
    with closing(SlabPair(SHARED_MEMORY / f"omni-rl-{served}")) as pair:
        filled = pair.fill(pair.idle(None), PublishedSource(pair.directory / "inbox.weights", version))
        assert (filled.slab.version, filled.origin) == (version, "published")
        assert torch.equal(pair.at(filled.slab.path).tensors()["norm.weight"], WEIGHTS["norm.weight"])


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI_RL_RUN", raising=False)


@pytest.mark.usefixtures("nowhere")
def test_without_a_name_they_go_to_the_one_run_that_lives(tmp_path: Path) -> None:
    owner("dead", tmp_path).close(remove=False)
    with owner("up-1", tmp_path):
        assert publish(WEIGHTS, number=3, directory=tmp_path).version.startswith("up-1/1/3/")


@pytest.mark.usefixtures("nowhere")
def test_of_several_runs_one_has_to_be_named(tmp_path: Path) -> None:
    with owner("up-1", tmp_path), owner("up-2", tmp_path):
        with pytest.raises(ConfigError, match=r"which run\?.*OMNI_RL_RUN.*runs of this host are up-1, up-2"):
            publish(WEIGHTS, number=3, directory=tmp_path)
        assert publish(WEIGHTS, run="up-2", number=3, directory=tmp_path).version.startswith("up-2/1/3/")


@pytest.mark.usefixtures("nowhere")
def test_a_run_that_has_no_slabs_is_refused_with_those_that_have(tmp_path: Path) -> None:
    with owner("up-1", tmp_path), pytest.raises(SlabError, match=r"run 'my-run' has no slabs in .*are up-1$"):
        publish(WEIGHTS, run="my-run", number=12, directory=tmp_path)
    with pytest.raises(ConfigError, match="no run of this host has any; omni-rl up starts one"):
        publish(WEIGHTS, number=12, directory=tmp_path)
