"""Pictures of a step's prompts, from the run's own PIL images to the coordinator's media: places, bytes and bounds."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omni_rl_services.coordinator.settings import Bounds, MediaSettings
from PIL import Image

from omni_rl.client import Client
from omni_rl.errors import NotFoundError
from omni_rl.watch import poster
from omni_rl.watch.pictures import places_of
from omni_rl.watch.uploads import Uploads
from omni_rl.watch.watcher import Watcher
from tests.services.live import live
from tests.watch.conftest import CoordinatorProcess
from tests.watch.proxy import Proxy, proxying
from tests.watch.steps import sealed_steps, step_of
from tests.watch.test_watcher import until, watcher

FOR_EVER = 600.0
"""Seconds that no test waits."""
PAD = 9
"""The placeholder's id."""
ANSWERS, PROMPTS = 16, 4


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with live(tmp_path_factory.mktemp("pictures")) as address:
        yield address


@pytest.fixture
def proxy(url: str) -> Iterator[Proxy]:
    with proxying(url) as found:
        yield found


def picture(seed: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def step_with(pictures: list[Any], ids: list[int], seed: int = 0) -> dict[str, Any]:
    """A step whose four prompts have one picture each, in all of their answers, and the same ids."""
    each = [[pictures[n // (ANSWERS // PROMPTS)]] for n in range(ANSWERS)]
    return {**step_of(seed), "prompt_ids": [ids] * ANSWERS, "pictures": each, "picture_token": PAD}


def records_of(url: str, run: Watcher, step: int = 0) -> dict[str, dict[str, Any]]:
    """The kept samples of a step, by name."""
    with Client(url) as client:
        worst = client.step(run.run, 1, step).verdict.worst
        return {one.sample: client.sample(run.run, 1, step, one.sample).record for one in worst}


def media_of(url: str, digest: str) -> Image.Image:
    with Client(url) as client:
        return Image.open(io.BytesIO(client.media(digest)))


def same(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def test_each_answer_has_its_prompts_picture_at_the_place_of_its_run(url: str, proxy: Proxy) -> None:
    pictures = [picture(n) for n in range(PROMPTS)]
    run = watcher(proxy.url, "places")
    run.step(**step_with(pictures, [1, 2, PAD, PAD, PAD, PAD, 3]))
    assert run.flush(30)
    records = records_of(url, run)
    assert len(records) == ANSWERS
    for sample, record in records.items():
        (item,) = record["media"]
        assert (item["modality"], item["offset"], item["length"]) == ("image", 2, 4)
        assert same(media_of(url, item["content"]), pictures[int(sample.partition("/")[0])])
    # The four answers of a prompt share its picture, which was sent once, and after the step was judged.
    assert len(proxy.uploads()) == len(set(proxy.uploads())) == PROMPTS
    sealed = next(n for n, (_, path) in enumerate(proxy.passed) if path.endswith("/seal"))
    assert all(proxy.passed.index(("PUT", path)) > sealed for path in proxy.uploads())
    run.close()


def test_a_verdict_does_not_wait_for_pictures(proxy: Proxy) -> None:
    proxy.open.clear()
    run = watcher(proxy.url, "verdict-first")
    step = run.step(**step_with([picture(n) for n in range(PROMPTS)], [PAD]))
    assert run.wait(step, FOR_EVER) is not None
    assert not run.flush(0)
    proxy.open.set()
    assert run.flush(30)
    run.close()


def test_equal_pictures_are_sent_once_whichever_objects_they_are(url: str, proxy: Proxy) -> None:
    run = watcher(proxy.url, "once")
    for seed in range(3):
        run.step(**step_with([picture(7) for _ in range(PROMPTS)], [PAD], seed))
    assert run.flush(30)
    assert len(proxy.uploads()) == 1
    digests = {record["media"][0]["content"] for step in range(3) for record in records_of(url, run, step).values()}
    assert proxy.uploads() == [f"/v1/media/{digest}" for digest in digests]
    run.close()


@pytest.mark.parametrize(
    ("ids", "count", "places"),
    [
        ([1, PAD, PAD, 2, PAD, 3], 2, [(1, 2), (4, 1)]),
        ([PAD, PAD, PAD], 1, [(0, 3)]),
        ([1, PAD, PAD, 2], 2, [(1, 1), (2, 1)]),  # not expanded, side by side
        ([1, PAD, PAD, PAD, 2], 2, None),  # expanded, side by side
        ([PAD, 1, PAD, 2, PAD], 2, None),
        ([1, 2, 3], 1, None),
    ],
)
def test_a_picture_is_where_its_placeholders_are(
    ids: list[int], count: int, places: list[tuple[int, int]] | None
) -> None:
    assert places_of(np.array(ids), PAD, count) == places


def test_where_placeholders_do_not_say_the_picture_comes_without_a_place(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    run = watcher(url, "elsewhere")
    for seed in range(2):
        run.step(**step_with([picture(n) for n in range(PROMPTS)], [PAD, 1, PAD], seed))
    assert run.flush(30)
    for record in records_of(url, run).values():
        (item,) = record["media"]
        assert (item["offset"], item["length"]) == (0, 0)
        assert media_of(url, item["content"]).size == (40, 30)
    assert caplog.text.count("its placeholders do not say") == 1
    run.close()


def test_what_is_no_picture_or_a_broken_one_has_a_place_and_no_content(
    url: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = io.BytesIO()
    picture(1, (400, 400)).save(whole, "PNG")
    cut = Image.open(io.BytesIO(whole.getvalue()[:3000]))
    run = watcher(url, "others")
    run.step(**step_with([picture(0), "https://example.org/a.png", cut, picture(3)], [1, PAD]))
    assert run.flush(30)
    found = {sample[0]: record["media"][0] for sample, record in records_of(url, run).items()}
    assert {prompt: item["content"] is not None for prompt, item in found.items()} == {
        "0": True,
        "1": False,
        "2": False,
        "3": True,
    }
    assert {(item["offset"], item["length"]) for item in found.values()} == {(1, 1)}
    assert caplog.text.count("are no PIL images") == 1
    assert caplog.text.count("cannot be encoded") == 1
    assert run.counts.sealed == 1
    run.close()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "F", "I", "I;16"])
def test_pictures_of_every_mode_are_written(mode: str) -> None:
    waits = Uploads(1 << 20)
    given = picture(0).convert("L" if mode in ("F", "I", "I;16") else "RGBA" if mode == "PA" else "RGB").convert(mode)
    waits.keep(given, lambda *_: None)
    written = Image.open(io.BytesIO(waits._waiting[0].content))
    plain = given if mode in ("1", "L", "LA", "I;16", "RGBA") else given.convert("RGBA" if mode == "PA" else "RGB")
    assert same(written, plain)


def test_a_picture_that_the_coordinator_refuses_costs_no_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    small = picture(0, (8, 8))
    with live(tmp_path, bounds=Bounds(pixels=100)) as url:
        run = watcher(url, "refused")
        for seed in range(2):
            run.step(**step_with([small, picture(1), picture(2), picture(3)], [PAD], seed))
        assert run.flush(30)
        assert sealed_steps(url, run) == [0, 1]
        assert run.counts.refused == 0
        for sample, record in records_of(url, run).items():
            digest = record["media"][0]["content"]
            if sample.startswith("0/"):
                assert same(media_of(url, digest), small)
            else:
                with pytest.raises(NotFoundError):
                    media_of(url, digest)
        run.close()
    assert caplog.text.count("a picture was refused") == 1


def test_a_coordinator_that_keeps_no_media_has_the_steps_all_the_same(tmp_path: Path) -> None:
    with live(tmp_path, media=MediaSettings(directory=tmp_path / "none", keep=False)) as url:
        run = watcher(url, "kept-out")
        run.step(**step_with([picture(n) for n in range(PROMPTS)], [PAD]))
        assert run.flush(30)
        assert sealed_steps(url, run) == [0]
        run.close()


def test_uploads_that_never_arrive_are_given_up_and_steps_go_on(
    url: str, proxy: Proxy, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.cut = True
    run = watcher(proxy.url, "cut")
    for seed in range(3):
        run.step(**step_with([picture(10 * seed + n) for n in range(PROMPTS)], [PAD], seed))
    assert run.flush(30)
    assert sealed_steps(url, run) == [0, 1, 2]
    assert caplog.text.count("could not be uploaded 3 times") == 1
    assert len(set(proxy.uploads())) == 3 * PROMPTS
    # Once the way is free again, so are new pictures.
    proxy.cut = False
    new = [picture(100 + n) for n in range(PROMPTS)]
    run.step(**step_with(new, [PAD], 4))
    assert run.flush(30)
    for sample, record in records_of(url, run, 3).items():
        assert same(media_of(url, record["media"][0]["content"]), new[int(sample[0])])
    run.close()


@pytest.mark.slow
def test_pictures_wait_for_a_coordinator_and_no_step_makes_room_for_them(
    coordinator: CoordinatorProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [picture(n) for n in range(PROMPTS)]
    held = 4 * 40 * 30
    monkeypatch.setattr(poster, "PIXELS", 5 * held)
    run = watcher(coordinator.url, "waits")
    for seed in range(4):
        run.step(**step_with(pictures, [PAD], seed))
    until(lambda: "is tried again" in caplog.text)
    coordinator.start()
    assert run.flush(60)
    assert sealed_steps(coordinator.url, run) == [0, 1, 2, 3]
    # The first step has all of its pictures, the second the one that found room beside them.
    came = [
        {
            sample[0]
            for sample, record in records_of(coordinator.url, run, step).items()
            if record["media"][0]["content"]
        }
        for step in range(4)
    ]
    assert came == [{"0", "1", "2", "3"}, {"0"}, set(), set()]
    assert caplog.text.count("more than there is room for") == 1
    # What waited is let go: there is room again.
    run.step(**step_with(pictures, [PAD], 5))
    assert run.flush(60)
    assert all(record["media"][0]["content"] for record in records_of(coordinator.url, run, 4).values())
    run.close()


@pytest.mark.slow
def test_steps_that_are_dropped_let_go_of_their_pictures(
    coordinator: CoordinatorProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    pictures = [picture(n) for n in range(PROMPTS)]
    monkeypatch.setattr(poster, "PIXELS", 3 * PROMPTS * 4 * 40 * 30)
    run = watcher(coordinator.url, "dropped", queue=2)
    for seed in range(6):
        run.step(**step_with(pictures, [PAD], seed))
    coordinator.start()
    assert run.flush(60)
    *_, last = sealed_steps(coordinator.url, run)
    assert (last, run.counts.dropped) == (5, 4)
    assert all(record["media"][0]["content"] for record in records_of(coordinator.url, run, last).values())
    run.close()


def test_steps_that_are_refused_let_go_of_their_pictures(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = [picture(n) for n in range(PROMPTS)]
    monkeypatch.setattr(poster, "PIXELS", 2 * PROMPTS * 4 * 40 * 30)
    run = watcher(url, "refused")
    for seed in range(4):
        run.step(**step_with(pictures, [PAD], seed), rewards=[[1.0, 2.0]] * ANSWERS)
        assert run.flush(30)
    last = run.step(**step_with(pictures, [PAD], 4))
    assert run.flush(30)
    assert run.counts.refused == 4
    assert all(record["media"][0]["content"] for record in records_of(url, run, last).values())
    run.close()


def test_pngs_that_find_no_room_make_the_oldest_go() -> None:
    said: list[str] = []
    waits = Uploads(3 * 4000)
    for seed in range(4):
        waits.keep(picture(seed), lambda kind, what: said.append(what))  # of 3.6 kB each: noise does not shrink
    assert len(waits._waiting) == 3
    assert len(said) == 1
    assert "the oldest is left out" in said[0]


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_pictures_stay_where_they_are_if_so_asked(
    url: str, proxy: Proxy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if how == "variable":
        monkeypatch.setenv("OMNI_RL_PICTURES", "0")
    run = watcher(proxy.url, f"asked-{how}", pictures=how != "argument")
    run.step(**step_with([picture(n) for n in range(PROMPTS)], [PAD]))
    assert run.flush(30)
    assert not proxy.uploads()
    assert all("media" not in record for record in records_of(url, run).values())
    run.close()


def test_a_prompt_of_more_pictures_than_a_record_may_have_is_cut(url: str, caplog: pytest.LogCaptureFixture) -> None:
    run = watcher(url, "many")
    one = picture(0)
    run.step(**step_of(0), prompt_ids=[[PAD, 1] * 300] * ANSWERS, pictures=[[one] * 300] * ANSWERS, picture_token=PAD)
    assert run.flush(30)
    for record in records_of(url, run).values():
        assert [item["offset"] for item in record["media"]] == list(range(0, 512, 2))
    assert "the first 256 media of a prompt are sent, and 44 are left out" in caplog.text
    run.close()


@pytest.mark.parametrize("odd", [[picture(0)] * ANSWERS, [[picture(0)]] * 3, 5])
def test_pictures_that_are_none_of_the_steps_cost_that_step_alone(url: str, odd: Any) -> None:
    run = watcher(url, "odd")
    run.step(**{**step_with([picture(0)] * PROMPTS, [PAD]), "pictures": odd})
    last = run.step(**step_of(1))
    assert run.flush(30)
    assert (run.counts.refused, run.counts.sealed) == (1, 1)
    assert run.wait(last, 0) is not None
    run.close()
