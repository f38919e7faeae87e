"""A failing sample in one file: what it has, and what is said where something is missing."""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from omni_rl.client.bundle import bundle
from omni_rl.consistency.actions import Cause
from omni_rl.errors import ConfigError, NotFoundError, RayUnavailableError
from tests.services.fake_bridge import FakeBridge
from tests.services.live import live
from tests.services.posted import DRIFTED
from tests.services.test_media import picture

PICTURE = picture("PNG")


@pytest.fixture(scope="module")
def bridge() -> FakeBridge:
    found = FakeBridge()
    found.cause = Cause.MEDIA_MISMATCH
    return found


@pytest.fixture(scope="module")
def client(bridge: FakeBridge, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    with live(tmp_path_factory.mktemp("bundle"), bridge) as url, Client(url) as client:
        client.create_run(RunBody(run="digits", model="small", dtype="bfloat16"))
        kept = client.put_media(PICTURE, "image/png").digest
        tensor = {"name": "pixel_values_flat", "rendered": "d1", "engine": "d1", "train": "d2"}
        media = [
            {"modality": "image", "offset": 0, "length": 1, "content": content, "tensors": [tensor]}
            for content in (kept, "0" * 64)
        ]
        client.put_part("digits", 1, 12, 0, [DRIFTED[0], {**DRIFTED[1], "media": media}])
        client.seal("digits", 1, 12)
        yield client


def test_a_bundle_has_the_worst_sample_its_media_and_a_check(client: Client, tmp_path: Path) -> None:
    path = bundle(client, "digits", 1, 12, None, tmp_path / "sample.zip", check=True)
    with zipfile.ZipFile(path) as file:
        sample, check = json.loads(file.read("sample.json")), json.loads(file.read("check.json"))
        (media,) = (name for name in file.namelist() if name.startswith("media/"))
        assert file.read(media) == PICTURE
    assert sample["sample"] == "b"
    assert sample["record"]["media"][0]["tensors"][0]["train"] == "d2"
    assert f"media/{sample['record']['media'][0]['content']}" == media
    assert check["cause"] == "media_mismatch"


def test_what_is_not_there_is_told_and_nothing_is_overwritten(client: Client, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError):
        bundle(client, "digits", 1, 13, None, tmp_path / "none.zip", check=False)
    with pytest.raises(NotFoundError):
        bundle(client, "digits", 1, 12, "nobody", tmp_path / "none.zip", check=False)
    assert not (tmp_path / "none.zip").exists()
    taken = tmp_path / "taken.zip"
    taken.write_text("")
    with pytest.raises(ConfigError, match="name another file"):
        bundle(client, "digits", 1, 12, "a", taken, check=False)


def test_a_folder_that_cannot_be_written_to_is_named_before_anything_is_asked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "missing", tmp_path / "file"):
        with Client("http://127.0.0.1:9") as nobody, pytest.raises(ConfigError, match=str(folder)):
            bundle(nobody, "digits", 1, 12, None, folder / "sample.zip", check=True)


def test_a_check_that_fails_leaves_no_file_in_the_way(
    client: Client, bridge: FakeBridge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(request: object) -> None:
        raise RayUnavailableError("no cluster")

    path = tmp_path / "sample.zip"
    with monkeypatch.context() as patched:
        patched.setattr(bridge, "check", fails)
        with pytest.raises(RayUnavailableError):
            bundle(client, "digits", 1, 12, None, path, check=True)
    assert not path.exists()
    assert bundle(client, "digits", 1, 12, None, path, check=False) == path
