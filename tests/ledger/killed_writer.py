"""A process that posts parts, and says which of them were acknowledged, until it is killed."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

from omni_rl.ledger.database import Database
from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey

PARTS = 10_000
THREADS = 32
RANKS = 4


@cache
def part(number: int) -> tuple[StepKey, int, StepRecords]:
    """Part `number` of all: the same whoever makes it."""
    record = {"sample": f"p{number}", "rollout_logprobs": [-0.5, -float(number)], "train_logprobs": [-0.5, -1.0]}
    return StepKey("run", 0, number // RANKS), number % RANKS, StepRecords.of([record])


def make_parts() -> None:
    """Make all parts, which takes as long as to post them; and load what a ledger on PostgreSQL needs."""
    Database("postgresql+psycopg://").close()
    for number in range(PARTS):
        part(number)


def say_digests() -> None:
    """Write each part's digest, one a line."""
    for number in range(PARTS):
        os.write(1, f"{part(number)[2].digest}\n".encode())


def post_parts(url: str, first: int, last: int) -> None:
    """Post the parts [first, last), many at a time; one line a part, written when its future is done."""
    with Ledger.open(url) as ledger, ThreadPoolExecutor(THREADS) as pool:

        def post(number: int) -> None:
            key, rank, records = part(number)
            stored = ledger.put_part(key, rank, records).result()
            os.write(1, f"{number} {stored}\n".encode())  # in one call: no other thread's line can get in between

        list(pool.map(post, range(first, last)))
