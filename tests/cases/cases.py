"""Faults that real teams reported, as posted steps, and steps where nothing is wrong."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from tests.cases.world import RED, SEEN, Array, Case, Row, World, records


def one(
    name: str, rows: list[Row], severity: set[str], cause: set[str | None] | None = None, dtype: str = "bfloat16"
) -> Case:
    return Case(name, [[rows]], set(severity), set(cause or ()), dtype)


def cases() -> Iterator[Case]:
    w = World(0)
    ids = w.sample(w.engine(w.logits))
    train = w.logprobs(w.logits, ids)
    rollout = w.logprobs(w.engine(w.logits), ids)

    for seed, noise in ((100, 0.006), (101, 0.012), (102, 0.018)):
        c = World(seed, noise=noise)
        i = c.sample(c.engine(c.logits))
        t = c.logprobs(c.logits, i)
        yield one(f"clean, noise {noise}", records(c.logprobs(c.engine(c.logits), i), t, i), {"ok"}, {None})
    small = World(104, answers=40, tokens=32)
    i = small.sample(small.engine(small.logits))
    yield one(
        "clean, 40 answers of 32 tokens",
        records(small.logprobs(small.engine(small.logits), i), small.logprobs(small.logits, i), i),
        {"ok"},
        {None},
    )
    short = World(103, answers=512, tokens=4)
    i = short.sample(short.engine(short.logits))
    t = short.logprobs(short.logits, i)
    yield one(
        "clean, 512 answers of 4 tokens", records(short.logprobs(short.engine(short.logits), i), t, i), {"ok"}, {None}
    )
    mask = np.ones(train.shape, bool)
    x, y = rollout.copy(), train.copy()
    for a in (120, 260, 400):
        mask[:, a : a + 30] = False
    x[~mask], y[~mask] = 0.0, -w.rng.gamma(4, 1.5, int((~mask).sum()))
    yield one("clean, tool tokens masked, logprob 0.0", records(x, y, ids, loss_mask=list(mask)), {"ok"}, {None})
    yield one(
        "clean, 8 of 64 answers empty",
        records([[] if n < 8 else r for n, r in enumerate(rollout)], [[] if n < 8 else r for n, r in enumerate(train)]),
        {"ok"},
        {None},
    )

    x = rollout.copy()
    x[17, 200] = np.nan
    yield one("one NaN of the engine", records(x, train, ids), RED, {"nonfinite_logprobs"})
    x = rollout.copy()
    x[17, 200] = -np.inf
    yield one("one -inf of the engine", records(x, train, ids), RED, {"nonfinite_logprobs"})
    x, y = rollout.copy(), train.copy()
    x[:, -1], y[:, -1] = 0.0, -w.rng.gamma(3, 2, 64)
    yield one("an EOS nobody sampled, logprob 0.0, counts", records(x, y, ids), SEEN, {"loss_mask"})
    yield one(
        "all logprobs of the engine 0.0",
        records(np.zeros_like(rollout), train, ids),
        {"pause", "refused"},
        {"impossible_logprobs"},
    )
    x = rollout.copy()
    x[:, -5:] = 1.0
    yield one("sentinel +1.0 in the last tokens", records(x, train, ids), RED | {"refused"}, {"impossible_logprobs"})
    x = rollout.copy()
    x[3, 100] = 1.0
    yield one("one sentinel +1.0", records(x, train, ids), SEEN | {"refused"}, {"impossible_logprobs"})

    cuts: tuple[tuple[str, dict[str, Any]], ...] = (
        ("top_p 0.95", {"top_p": 0.95}),
        ("top_p 0.9", {"top_p": 0.9}),
        ("top_k 50", {"top_k": 50}),
        ("min_p 0.05", {"min_p": 0.05}),
    )
    for name, cut in cuts:
        z = w.cut(**cut)
        i = w.sample(w.engine(z))
        yield one(
            f"{name}, not said",
            records(w.logprobs(w.engine(z), i), w.logprobs(w.logits, i), i),
            SEEN,
            {"sampling_support"},
        )
    z = w.engine(w.logits) / 0.7
    i = w.sample(z)
    yield one(
        "clean, temperature 0.7 on both sides",
        records(w.logprobs(z, i), w.logprobs(w.logits / 0.7, i), i, temperature=0.7),
        {"ok"},
        {None},
    )
    for temperature in (0.7, 0.85, 1.3):
        z = w.engine(w.logits) / temperature
        i = w.sample(z)
        yield one(
            f"temperature {temperature}, ignored by the trainer",
            records(w.logprobs(z, i), w.logprobs(w.logits, i), i, temperature=temperature),
            SEEN,
            {"logprob_postprocessing"},
        )
    z, i = w.penalised(1.2)
    yield one(
        "repetition penalty 1.2",
        records(w.logprobs(z, i), w.logprobs(w.logits, i), i),
        SEEN,
        {"logprob_postprocessing"},
    )

    yield one("shift by one", records(rollout[:, 1:], train[:, :-1], ids[:, 1:]), RED, {"token_shift"})
    y = train.copy()
    for n in range(20):
        p = w.rng.integers(60, 400)
        y[n, p:-1] = train[n, p + 1 :]
    yield one(
        "retokenised: a shift from mid-answer on, 20 of 64",
        records(rollout, y, ids),
        RED,
        {"token_shift", "prompt_mismatch"},
    )
    order = np.concatenate([8 * g + w.rng.permutation(8) for g in range(8)])
    yield one("rows permuted within groups", records(rollout[order], train, ids), RED, {"sample_pairing"})
    x = rollout.copy()
    for a in (120, 260, 400):
        x[:, a : a + 30] = 0.0
    yield one("tool tokens count, logprob 0.0", records(x, train, ids), RED, {"loss_mask"})

    off = list(np.zeros(train.shape, bool))
    yield one("all masked", records(rollout, train, ids, loss_mask=off), {"unjudged"})
    yield one("no records", [], {"unjudged", "refused"})

    def elsewhere(n: int) -> tuple[Array, Array, Array]:
        """Rollout logprobs, train logprobs and ids where other weights sampled the first `n` answers."""
        z = w.engine(w.logits)
        z[:n] += 0.25 * w.rng.standard_normal(z[:n].shape, dtype=np.float32)
        i = w.sample(z)
        return w.logprobs(z, i), w.logprobs(w.logits, i), i

    span = [[{"version": "r/1/0/aaaa" if n < 3 else "r/1/9/bbbb", "start": 0, "end": 512}] for n in range(64)]
    yield one(
        "3 of 64 sampled by the first weights, and says so",
        records(*elsewhere(3), version_spans=span, train_version="r/1/9/bbbb"),
        SEEN,
        {"stale_weights"},
    )
    span = [
        [{"version": "r/1/8/aaaa", "start": 0, "end": 300}, {"version": "r/1/9/bbbb", "start": 300, "end": 512}]
    ] * 64
    yield one(
        "clean, asynchronous: every answer begun by the version before, and says so",
        records(rollout, train, ids, version_spans=span, train_version="r/1/9/bbbb"),
        {"ok"},
        {None},
    )

    def media(n: int) -> list[dict[str, Any]]:
        engine = "d" * 64 if n < 5 else "c" * 64
        return [
            {
                "modality": "image",
                "offset": 0,
                "length": 4,
                "content": "a" * 64,
                "tensors": [{"name": "pixel_values", "rendered": "c" * 64, "engine": engine, "train": "c" * 64}],
            }
        ]

    rows = records(*elsewhere(5), kind="image")
    for n, row in enumerate(rows):
        row["prompt_tokens"], row["prompt_ids"], row["media"] = 8, [1] * 8, media(n)
    yield one("the engine used other pixels for 5 answers, and says so", rows, SEEN, {"media_mismatch"})

    s = World(3, answers=16, tokens=256)
    i = s.sample(s.engine(s.logits))
    t = s.logprobs(s.logits, i)
    r = s.logprobs(s.engine(s.logits), i)
    y = t.copy()
    y[:3] += s.rng.normal(0, 1.5, (3, 256))
    y = np.minimum(y, 0)
    rows = records(r, y, i)
    for n, row in enumerate(rows):
        engine = s.rng.random((255, 1, 8)).argsort(-1)[..., :2]
        mine = engine.copy()
        if n < 3:
            mine = (mine + 1) % 8
        row |= {"prompt_tokens": 0, "moe_layers": 1, "experts_per_token": 2}
        row["prompt_tokens"] = 1
        row["prompt_ids"] = [1]
        engine = np.concatenate([engine, engine[:1]])
        mine = np.concatenate([mine, mine[:1]])
        row["rollout_experts"] = engine.ravel().tolist()
        row["train_experts"] = mine.ravel().tolist()
        row["margins"] = [0.2] * 256
    yield one("3 of 16 answers 1.5 nats off, every token of theirs routed otherwise, at wide margins", rows, RED)

    steps = []
    g = World(5, answers=32, tokens=256)
    for k in range(6):
        drifted = g.logits + 0.07 * k * g.rng.standard_normal(g.logits.shape).astype(np.float32)
        i = g.sample(g.engine(drifted))
        steps.append([records(g.logprobs(g.engine(drifted), i), g.logprobs(g.logits, i), i)])
    yield Case("the engine's weights never move: clean, then further off at every step", steps, SEEN, {"stale_weights"})

    both = [
        records(rollout[:32], train[:32], ids[:32], prefix="p"),
        records(rollout[32:], train[32:], ids[32:], prefix="p"),
    ]
    yield Case("two ranks that name their answers alike", [both], {"ok"}, {None})
