"""Other members of the kinds of `cases`: a name, the records of one step, and the causes that are right.

Nothing was tuned on `cases` alone: what is right for these has to be right for any step of their kind.
"""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.cases.world import Array, Row, World, records

Other = tuple[str, list[Row], set[str | None]]
CLEAN: set[str | None] = {None}
OPEN: set[str | None] = {None, "unknown"}
POSTPROCESSED: set[str | None] = {"logprob_postprocessing"}
UNNATURAL: set[str | None] = {"impossible_logprobs", "logprob_postprocessing"}
MASKED: set[str | None] = {"loss_mask"}
PAIRED: set[str | None] = {"sample_pairing"}
CUT: set[str | None] = {"sampling_support"}


def bfloat16(values: Array) -> Array:
    """Rounded to bfloat16, as some frameworks keep logprobs."""
    bits = np.asarray(values, np.float32).view(np.uint32) + np.uint32(0x8000)
    found: Array = (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
    return found


def others(seed: int, **shape: Any) -> Iterator[Other]:
    """All of them, of one world."""
    w = World(seed, **shape)
    yield from _values(w)
    yield from _alignment(w)
    yield from _supports(w)
    yield from _policies(w)
    yield from _copies(w)
    yield from _few(w)


def _clean(w: World) -> tuple[Array, Array, Array, Array]:
    """The engine's logits, ids, and both sides' logprobs."""
    engine = w.engine(w.logits)
    ids = w.sample(engine)
    return engine, ids, w.logprobs(engine, ids), w.logprobs(w.logits, ids)


def _values(w: World) -> Iterator[Other]:
    engine, ids, r, t = _clean(w)
    answers, tokens, _ = w.shape
    yield "clean", records(r, t, ids), CLEAN
    yield "clean, the engine's logprobs kept in bfloat16", records(bfloat16(r), t, ids), CLEAN
    yield "clean, both in bfloat16", records(bfloat16(r), bfloat16(t), ids), CLEAN
    x = r.copy()
    x[2, 10:14] = np.nan
    yield "four NaN", records(x, t, ids), {"nonfinite_logprobs"}
    y = t.copy()
    y[2, 10] = np.inf
    yield "infinity of the trainer", records(r, y, ids), {"nonfinite_logprobs"}
    yield "the trainer's all zeros", records(r, np.zeros_like(t), ids), {"impossible_logprobs"}
    yield "negative log likelihoods", records(-r, t, ids), UNNATURAL
    yield "probabilities", records(np.exp(r), t, ids), UNNATURAL
    yield "the trainer's probabilities", records(r, np.exp(t), ids), UNNATURAL
    yield "base 10", records(r / math.log(10), t, ids), POSTPROCESSED
    yield "base 2", records(r / math.log(2), t, ids), POSTPROCESSED
    yield "the trainer in base 10", records(r, t / math.log(10), ids), POSTPROCESSED
    yield "the most likely token's", records(w.logprobs(engine, engine.argmax(-1)), t, ids), POSTPROCESSED
    yield "the trainer's most likely", records(r, w.logprobs(w.logits, w.logits.argmax(-1)), ids), POSTPROCESSED
    for value in (-100.0, -9999.0):
        x = r.copy()
        x[:, -1] = value
        yield f"{value} for the last token", records(x, t, ids), MASKED
    first, length = tokens // 4, tokens // 8
    x, y = r.copy(), t.copy()
    x[:, first : first + length] = 0
    y[:, first : first + length] = -w.rng.gamma(4, 1.5, (answers, length))
    for name, late in (("late", 1), ("early", -1)):
        mask = np.ones(r.shape, bool)
        mask[:, first + late : first + length + late] = False
        yield f"a tool's mask {name} by one", records(x, y, ids, loss_mask=list(mask)), MASKED
    yield "a tool's tokens 0 at the trainer", records(y, np.where(x == 0, 0, t), ids), MASKED


def _alignment(w: World) -> Iterator[Other]:
    _, ids, r, t = _clean(w)
    answers, tokens, _ = w.shape
    for by in (2, -1, -3, 5):
        a, b = (r[:, by:], t[:, :-by]) if by > 0 else (r[:, :by], t[:, -by:])
        yield f"shift by {by}", records(a, b, ids[:, : a.shape[1]]), {"token_shift"}
    y = t.copy()
    for n in range(min(10, answers // 3)):
        at = w.rng.integers(tokens // 8, tokens // 2)
        y[n, at + 2 :] = t[n, at:-2]
    yield "two tokens more from mid-answer on", records(r, y, ids), {"token_shift", "prompt_mismatch"}
    half = answers // 2
    yield "halves of the ranks swapped", records(np.concatenate([r[half:], r[:half]]), t, ids), PAIRED
    x = r.copy()
    x[[0, 1]], x[[5, 7]] = x[[1, 0]], x[[7, 5]]
    yield "two pairs swapped", records(x, t, ids), PAIRED
    yield "reversed", records(r[::-1], t, ids), PAIRED


def _supports(w: World) -> Iterator[Other]:
    engine = w.engine(w.logits)
    cuts: tuple[dict[str, Any], ...] = (
        {"top_p": 0.97},
        {"top_p": 0.8},
        {"top_k": 20},
        {"top_k": 5},
        {"min_p": 0.02},
        {"top_k": 100},
    )
    for cut in cuts:
        z = np.where(np.isfinite(w.cut(**cut)), engine, -np.inf)
        ids = w.sample(z)
        yield str(cut), records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), CUT
    for share, allowed in ((0.5, 0.02), (0.3, 0.5), (0.05, 0.1), (0.02, 0.1)):
        guided = w.rng.random(w.shape[:2]) < share
        allow = w.rng.random(w.shape) < allowed
        allow[..., 0] = True
        allow[~guided] = True
        z = np.where(allow, engine, -np.inf)
        ids = w.sample(z)
        yield f"guided at {share:.0%}", records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), CUT
    banned = np.where(w.rng.random(w.shape[-1]) < 0.1, -np.inf, engine)
    ids = w.sample(banned)
    yield "banned ids", records(w.logprobs(banned, ids), w.logprobs(w.logits, ids), ids), CUT


def _policies(w: World) -> Iterator[Other]:
    engine = w.engine(w.logits)
    for at in (0.6, 0.8, 0.9, 1.1, 1.2):
        z = engine / at
        ids = w.sample(z)
        cold, plain = w.logprobs(w.logits / at, ids), w.logprobs(w.logits, ids)
        yield f"temperature {at}, told", records(w.logprobs(z, ids), plain, ids, temperature=at), POSTPROCESSED
        yield f"temperature {at}, untold", records(w.logprobs(z, ids), plain, ids), POSTPROCESSED
        raw = records(w.logprobs(engine, ids), cold, ids, temperature=at)
        yield f"temperature {at}, the engine's raw", raw, POSTPROCESSED
        yield f"temperature {at} on both", records(w.logprobs(z, ids), cold, ids, temperature=at), CLEAN
    for penalty in (1.02, 1.05, 1.1):
        z, ids = w.penalised(penalty)
        yield f"repetition {penalty}", records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), POSTPROCESSED
    for penalty in (0.1, 0.5):
        z, ids = w.penalised(penalty, presence=True)
        yield f"presence {penalty}", records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), POSTPROCESSED
    for far in (0.1, 0.25, 0.5, 1.0):
        z = w.elsewhere(far)
        ids = w.sample(z)
        yield f"other weights, {far}", records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), OPEN
    z = w.elsewhere(0.25) / 0.9
    ids = w.sample(z)
    yield "other weights, and sharper", records(w.logprobs(z, ids), w.logprobs(w.logits, ids), ids), OPEN
    _, ids, r, t = _clean(w)
    for share in (0.2, 1.0):
        lost = 4 * w.rng.standard_normal(w.shape, dtype=np.float32) * (w.rng.random((*w.shape[:2], 1)) < share)
        yield f"the trainer is lost at {share:.0%}", records(r, w.logprobs(w.logits + lost, ids), ids), OPEN
    y = t.copy()
    y[:3] += w.rng.normal(0, 1.5, (3, w.shape[1]))
    yield "three answers at random", records(r, np.minimum(y, 0), ids), OPEN


def _copies(w: World) -> Iterator[Other]:
    """One side's logprobs are the other's but for what was done to each."""
    _, ids, r, t = _clean(w)
    for factor in (0.5, 2.0, 0.8):
        yield f"the engine's times {factor}", records(factor * r, t, ids), POSTPROCESSED
    yield "the trainer's halved", records(r, t / 2, ids), POSTPROCESSED
    yield "the engine's less 0.5", records(r - 0.5, t, ids), POSTPROCESSED
    for floor in (-2.0, -4.0):
        yield f"the engine's clipped at {floor}", records(np.maximum(r, floor), t, ids), POSTPROCESSED
    yield "the trainer's clipped at -3", records(r, np.maximum(t, -3.0), ids), POSTPROCESSED


def _few(w: World) -> Iterator[Other]:
    """A few answers, or one place of each, are off; and samples of the same prompts that are others."""
    engine, ids, r, t = _clean(w)
    answers, _, count = w.shape
    x = r.copy()
    x[5, 5:-1] = r[5, 6:]
    yield "one answer shifted from its sixth token on", records(x, t, ids), {"token_shift"}
    y = t.copy()
    y[[1, 2]] = y[[2, 1]]
    yield "two answers' scores swapped at the trainer", records(r, y, ids), PAIRED
    x, y = r.copy(), t.copy()
    x[:2, 4:14], y[:2, 4:14] = 0.0, -w.rng.gamma(4, 1.5, (2, 10))
    yield "a tool's tokens of two answers count", records(x, y, ids), MASKED
    altered = ids.copy()
    altered[:, -1] = (ids[:, -1] + 1) % count
    yield "another last id at the trainer", records(r, w.logprobs(w.logits, altered), ids), {"unknown"}
    first, w.gumbel = w.gumbel, w.rng.gumbel(size=w.shape).astype(np.float32)
    yield "another seed's", records(w.logprobs(engine, w.sample(engine)), t, ids), {"unknown"}
    w.gumbel = first
    logits = w.logits.copy()
    logits[: answers // 4, :8] += 1.5 * w.rng.standard_normal((answers // 4, 8, count), dtype=np.float32)
    yield "the first tokens of some answers see others", records(r, w.logprobs(logits, ids), ids), OPEN
