"""What the pinned ledgers hold, put into an empty one through the coordinator's API and the journal of syncs."""

import io
import math
import time
import wave
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from omni_rl.api.runs import LimitValues, RunBody
from omni_rl.api.syncs import CheckBody
from omni_rl.client import Client
from omni_rl.consistency.actions import Cause
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.sync_journal import LedgerJournal
from omni_rl.sync.result import SyncResult
from omni_rl.sync.states import Phase, SyncEvent
from tests.services.fake_bridge import AGREE, PART, FakeBridge
from tests.services.live import live

BEGAN = 1_795_500_000.0
"""Unix seconds of the first thing that happens; each thing takes ten."""
KINDS = ("text", "image", "audio", "video", "mixed")
TOKENS = 8
LAYERS, EXPERTS = 2, 2
APART = {"sample": "only", "ids": [1, 2], "rollout_logprobs": [-0.5, -0.25], "train_logprobs": [-2.5, -2.25]}


class Clock:
    """Stands in for `time.time`, so that the ledgers of both databases have the same times."""

    def __init__(self) -> None:
        self.now = BEGAN

    def __call__(self) -> float:
        return self.now

    def tick(self) -> None:
        self.now += 10


@contextmanager
def set_clock() -> Iterator[Clock]:
    """`time.time` is the clock's; what asks `monotonic` goes on as ever."""
    real, clock = time.time, Clock()
    time.time = clock
    try:
        yield clock
    finally:
        time.time = real


def fill(directory: Path, url: str) -> None:
    """Three runs: one with two attempts and an incident that ended, one with an alarm that is open, and one whose gate
    was halted; checks, and syncs. Media go to `directory`/media."""
    with set_clock() as clock:
        bridge = FakeBridge()
        with live(directory, bridge, ledger=url) as address, Client(address) as client:
            _runs(client, clock)
            _steps(client, clock)
            clock.tick()
            client.check(CheckBody(legs=True))
            clock.tick()
            bridge.cause, bridge.figures = Cause.KERNEL, PART
            client.check(CheckBody(run="digits", attempt=1, step=2, reference=True, localise=True))
            _halted(client, clock)
            clock.tick()
            client.pause("the node is taken down")
        _syncs(url, clock)


def _runs(client: Client, clock: Clock) -> None:
    limits = {"image": {"token_mult_prob_error": LimitValues(warn=1.04, mask=1.2, pause=1.5)}}
    digits = RunBody(run="digits", model="small", dtype="bfloat16", framework="verl", limits=limits)
    client.create_run(digits)
    clock.tick()
    client.create_run(RunBody(run="words", model="small", dtype="float32"))


def _steps(client: Client, clock: Clock) -> None:
    """Attempt 1: ok, a warning, an incident, a step with a logprob that is not a number, and three calm steps that end
    it. Attempt 2: two steps. Another run: one."""
    media = {kind: client.put_media(content, mime).digest for kind, (content, mime) in _media().items()}
    shifts = [0.001, 0.15, 1.0, math.nan, 0.001, 0.001, 0.001]
    for step, shift in enumerate(shifts):
        clock.tick()
        for rank in range(2 if step == 0 else 1):
            client.put_part("digits", 1, step, rank, _records(step, rank, shift, media))
        client.seal("digits", 1, step, parts=2 if step == 0 else 1, training={"reward": 0.25 + step / 16})
        if step == 2:
            clock.tick()
            client.add_training("digits", 1, step, {"grad_norm": 1.5, "kl": 0.002})
    for step in (4, 5):
        clock.tick()
        client.put_part("digits", 2, step, 0, _records(step + 10, 0, 0.001, media))
        client.seal("digits", 2, step, training={"reward": 0.75})
    clock.tick()
    client.put_part("words", 1, 0, 0, [APART])
    client.seal("words", 1, 0)


def _halted(client: Client, clock: Clock) -> None:
    """A gated run that parts; the cause that is found is one that no sync heals."""
    clock.tick()
    client.create_run(RunBody(run="halted", model="small", dtype="float32", gated=True))
    client.put_part("halted", 1, 0, 0, [APART])
    client.seal("halted", 1, 0)
    while client.run("halted").drift.pursuit != "nothing":
        time.sleep(0.01)


def _records(step: int, rank: int, shift: float, media: dict[str, str]) -> list[dict[str, Any]]:
    """A sample a kind, in the first step of all kinds; the image's train logprobs lie `shift` apart, or three do."""
    rng = np.random.default_rng([step, rank])
    kinds = KINDS if step == 0 else KINDS[:2]
    return [_record(rng, f"r{rank}/{kind}", kind, shift if kind == "image" else 0.0005, media) for kind in kinds]


def _record(rng: np.random.Generator, name: str, kind: str, shift: float, media: dict[str, str]) -> dict[str, Any]:
    prompt = 6
    rollout = np.round(-rng.exponential(1.0, TOKENS), 4)
    choices = rng.integers(0, 8, (prompt + TOKENS - 1) * LAYERS * EXPERTS)
    train = rollout + 0.0005
    apart = slice(None) if shift >= 1 else slice(3, 6)
    train[apart] = rollout[apart] + shift
    named = ("image", "audio") if kind == "mixed" else (kind,)
    items = [
        {
            "modality": modality,
            "offset": 1 + place,
            "length": 1,
            "content": media.get(modality),
            "tensors": [{"name": "pixels", "rendered": "d1", "engine": "d1", "train": "d2" if shift >= 1 else "d1"}],
        }
        for place, modality in enumerate(named)
        if modality != "text"
    ]
    return {
        "sample": name,
        "kind": kind,
        "prompt_tokens": prompt,
        "prompt_ids": rng.integers(0, 700, prompt),
        "ids": rng.integers(0, 700, TOKENS),
        "rollout_logprobs": rollout,
        "train_logprobs": train,
        "loss_mask": [place > 0 for place in range(TOKENS)],
        "temperature": 1.0,
        "reward": 0.5,
        "version_spans": [
            {"version": "digits/1/1/aaaaaaaaaaaaaaaa", "start": 0, "end": 4},
            {"version": "digits/1/2/bbbbbbbbbbbbbbbb", "start": 4, "end": TOKENS},
        ],
        "train_version": "digits/1/2/bbbbbbbbbbbbbbbb",
        "media": items or None,
        "prompt_text": f"a prompt with {kind}: ünïcode",
        "token_texts": [f" token{place}" for place in range(TOKENS)],
        "moe_layers": LAYERS,
        "experts_per_token": EXPERTS,
        "rollout_experts": choices,
        "train_experts": choices,
        "margins": np.full((prompt + TOKENS - 1) * LAYERS, 0.5, np.float32),
    }


def _media() -> dict[str, tuple[bytes, str]]:
    """Bytes and content type by modality; video is left out, as where a store has dropped it."""
    picture, sound = io.BytesIO(), io.BytesIO()
    Image.linear_gradient("L").resize((24, 16)).save(picture, "PNG")
    with wave.open(sound, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(np.arange(400, dtype="<i2").tobytes())
    return {"image": (picture.getvalue(), "image/png"), "audio": (sound.getvalue(), "audio/wav")}


def _syncs(url: str, clock: Clock) -> None:
    """One that was committed, one that was rolled back, and one whose coordinator died once it was decided for."""
    with Ledger.open(url) as ledger, closing(LedgerJournal(ledger, "digits", force=True)) as journal:
        course: tuple[Phase, ...] = (Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.VERIFY, Phase.COMMIT, Phase.RESUME)
        _sync(journal, clock, 1, course)
        journal.decide("sync-1", journal_epoch(1), "commit")
        done = SyncResult(
            sync="sync-1",
            outcome="committed",
            version="digits/1/1/aaaaaaaaaaaaaaaa",
            serving="digits/1/1/aaaaaaaaaaaaaaaa",
            tensors=168,
            bytes=2_961_408,
            elements_proven=1_480_704,
            elements=1_480_704,
            seconds={"prepare": 0.2, "apply": 0.01, "verify": 0.08},
            stall=0.12,
            copy_rate=8e9,
            agreement=AGREE,
            replaced={"rollout-1": "its process ended"},
        )
        journal.finish("sync-1", journal_epoch(1), done.to_json())
        _sync(journal, clock, 2, (Phase.PREPARE, Phase.PAUSE, Phase.APPLY, Phase.ROLLBACK, Phase.VERIFY, Phase.RESUME))
        journal.observe(SyncEvent("sync-2", Phase.APPLY, "failed", "rollout-0", "it did not answer"))
        journal.decide("sync-2", journal_epoch(2), "abort")
        undone = SyncResult(
            sync="sync-2",
            outcome="rolled_back",
            version="digits/1/2/bbbbbbbbbbbbbbbb",
            serving="digits/1/1/aaaaaaaaaaaaaaaa",
            reason="rollout-0 did not answer",
            mismatches=("language_model.lm_head.weight",),
        )
        journal.finish("sync-2", journal_epoch(2), undone.to_json())
        _sync(journal, clock, 3, course[:-1])
        journal.decide("sync-3", journal_epoch(3), "commit")


def _sync(journal: LedgerJournal, clock: Clock, number: int, phases: tuple[Phase, ...]) -> None:
    sync, digest = f"sync-{number}", "abc"[number - 1] * 16
    clock.tick()
    # A coordinator took the run up before each: epochs rise by more than syncs do.
    journal.next_epoch(None)
    epoch = journal.next_epoch(journal_epoch(number) - 1)
    assert epoch == journal_epoch(number)
    journal.begin(sync, f"step-{number}", epoch, f"/dev/shm/slab-{number}", "recompute")
    journal.prepared(sync, epoch, f"digits/1/{number}/{digest}")
    for phase in phases:
        clock.tick()
        journal.observe(SyncEvent(sync, phase, "entered"))


def journal_epoch(number: int) -> int:
    """The fencing epoch of the sync of that number."""
    return 2 * number
