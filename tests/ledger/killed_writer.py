"""A process that posts parts, and says which of them were acknowledged, until it is killed."""

import os
import sys
from concurrent.futures import ThreadPoolExecutor

from omni_rl.ledger.ledger import Ledger
from omni_rl.ledger.records import StepRecords
from omni_rl.ledger.types import StepKey

THREADS = 32
RANKS = 4


def part(number: int) -> tuple[StepKey, int, StepRecords]:
    """Part `number` of all: the same whoever makes it."""
    record = {"sample": f"p{number}", "rollout_logprobs": [-0.5, -float(number)], "train_logprobs": [-0.5, -1.0]}
    return StepKey("run", 0, number // RANKS), number % RANKS, StepRecords.of([record])


def main(url: str, first: int, last: int) -> None:
    """Post the parts [first, last), many at a time; one line a part, written when its future is done."""
    with Ledger.open(url) as ledger, ThreadPoolExecutor(THREADS) as pool:

        def post(number: int) -> None:
            key, rank, records = part(number)
            stored = ledger.put_part(key, rank, records).result()
            os.write(1, f"{number} {stored}\n".encode())  # in one call: no other thread's line can get in between

        list(pool.map(post, range(first, last)))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
