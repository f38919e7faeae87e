"""Post a step of your own trainer, as plain numpy arrays, and learn what to do about it.

    omni-rl serve        # in another terminal; it prints the two variables to set in this one
    python examples/post_numpy.py --steps 5

Your trainer has two logprobs for each token it sampled: the engine's, from when it sampled, and its own, from when it
scored. That is all that is needed. Prompts, ids, media and weight versions can be posted too: `omni_rl.ledger.schema`.
"""

import argparse

import numpy as np

from omni_rl.api.runs import RunBody
from omni_rl.client import Client
from omni_rl.watch.table import step_rows


def sample_and_score(rng: np.random.Generator, answers: int, tokens: int, drift: float) -> tuple[np.ndarray, ...]:
    """Stands for your engine and your trainer: padded [answers, tokens] logprobs of two policies, whose logits differ
    by noise, and by `drift`."""
    trainer = rng.normal(0.0, 3.0, (answers, tokens, 64))
    engine = trainer + rng.normal(0.0, 0.01 + drift, trainer.shape)
    ids = (engine + rng.gumbel(size=engine.shape)).argmax(-1, keepdims=True)
    rollout, train = (
        np.take_along_axis(logits - np.log(np.exp(logits).sum(-1, keepdims=True)), ids, -1)[..., 0]
        for logits in (engine, trainer)
    )
    lengths = rng.integers(tokens // 2, tokens + 1, answers)
    mask = np.arange(tokens) < lengths[:, None]
    return rollout, train, mask


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--url", help="The coordinator.  [default: OMNI_RL_URL, or http://127.0.0.1:8400]")
    options.add_argument("--run", default="my-trainer")
    options.add_argument("--steps", type=int, default=5)
    options.add_argument("--ranks", type=int, default=2)
    options.add_argument("--drift", type=float, default=0.3, help="How far off the last step's weights are.")
    chosen = options.parse_args()
    rng = np.random.default_rng(0)
    with Client(chosen.url) as client:
        client.create_run(RunBody(run=chosen.run, model="mine", dtype="bfloat16", framework="my own"))
        for step in range(chosen.steps):
            drift = chosen.drift if step == chosen.steps - 1 else 0.0
            for rank in range(chosen.ranks):  # in a real run each rank posts its own
                names = [f"{rank}/{number}" for number in range(16)]
                rollout, train, mask = sample_and_score(rng, answers=16, tokens=64, drift=drift)
                records = step_rows(
                    {"rollout_logprobs": rollout, "train_logprobs": train, "mask": mask, "samples": names}
                )
                client.put_part(chosen.run, 1, step, rank, records)
            sealed = client.seal(chosen.run, 1, step, parts=chosen.ranks, training={"reward": float(rng.random())})
            verdict = sealed.verdict
            print(f"step {step}: {verdict.severity:<5} {verdict.tokens} tokens; {verdict.reason}")
            if sealed.weights is not None and verdict.weights is not None:
                mean = np.concatenate(list(sealed.weights.values())).mean()
                print(f"  multiply each token's loss by its weight ({verdict.weights.method}, mean {mean:.3f})")


if __name__ == "__main__":
    main()
