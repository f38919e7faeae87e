"""Breaks well-formed bytes: lengths, counts and offsets first, then any byte."""

import random
import struct

WORDS = (0, 1, 2, 7, 8, 255, 256, 65_535, 2**31 - 1, 2**31, 2**32 - 1)


def mutated(content: bytes, rng: random.Random, within: tuple[int, int] | None = None) -> bytes:
    """Make one to three changes to `content`; with `within`, only from this byte to that one."""
    changed = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        first, last = within or (0, len(changed))
        last = min(last, len(changed))
        if last - first < 16:
            return bytes(changed) + rng.randbytes(8)
        at = rng.randrange(first, last - 8)
        match rng.randrange(8):
            case 0 | 1:
                changed[at] ^= 1 << rng.randrange(8)
            case 2:
                changed[at : at + 4] = struct.pack(rng.choice("<>") + "I", rng.choice(WORDS))
            case 3:  # an aligned word, which lengths and offsets of Arrow are
                aligned = at - at % 4
                changed[aligned : aligned + 4] = struct.pack("<I", rng.choice(WORDS))
            case 4:
                changed[at : at + 8] = struct.pack(rng.choice("<>") + "Q", rng.choice((*WORDS, 2**63 - 1, 2**64 - 1)))
            case 5:
                del changed[at : at + rng.choice((1, 4, 8, 64, len(changed)))]
            case 6:
                changed[at:at] = changed[at : at + rng.choice((1, 4, 8, 64))]
            case _:
                changed[at : at + 4] = rng.randbytes(4)
    return bytes(changed)
