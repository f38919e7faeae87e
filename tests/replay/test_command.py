"""The command's errors, each before anything is started."""

import zipfile
from pathlib import Path

import pytest

from tests.replay.bundles import write
from tests.test_cli import omni_rl

TEXT = {
    "sample": "p/0",
    "kind": "text",
    "prompt_ids": [5],
    "ids": [8],
    "rollout_logprobs": [-1.0],
    "train_logprobs": [-1.5],
    "prompt_text": "What?",
}


@pytest.mark.parametrize(
    ("bundle", "model", "said"),
    [
        ("good.zip", "nowhere", "error [invalid_checkpoint]: nowhere has no config.json"),
        ("empty.zip", "nowhere", "no sample.json"),
        ("absent.zip", "nowhere", "No such file"),
    ],
)
def test_what_cannot_be_replayed_is_refused_at_once(bundle: str, model: str, said: str, tmp_path: Path) -> None:
    write(tmp_path / "good.zip", TEXT, {})
    zipfile.ZipFile(tmp_path / "empty.zip", "w").close()
    done = omni_rl("replay", bundle, "--model", model, cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr
    assert "starting" not in done.stderr
    assert "Traceback" not in done.stderr
