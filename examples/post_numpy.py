"""Post steps of your own trainer, as plain numpy arrays, and learn what to do about them.

    omni-rl serve        # in another terminal; it prints the two variables to set in this one
    python examples/post_numpy.py --steps 5

Your trainer has two logprobs for each token it sampled: the engine's, from when it sampled, and its own, from when it
scored. That is all that is needed. Prompts, ids, media and weight versions can be posted too:
`omni_rl.watch.table.StepValues`.
"""

import argparse

import numpy as np

from omni_rl.watch import Watcher


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
    options.add_argument("--drift", type=float, default=0.3, help="How far off the last step's weights are.")
    chosen = options.parse_args()
    rng = np.random.default_rng(0)
    # On several ranks each makes one, and posts its own answers; the verdicts come back to the first.
    run = Watcher(run=chosen.run, model="mine", dtype="bfloat16", framework="my own", correct="tis", url=chosen.url)
    for step in range(chosen.steps):
        drift = chosen.drift if step == chosen.steps - 1 else 0.0
        rollout, train, mask = sample_and_score(rng, answers=32, tokens=64, drift=drift)
        prompts = np.arange(32) // 8  # eight answers to each prompt
        run.step(
            rollout_logprobs=rollout, train_logprobs=train, mask=mask, groups=prompts, training={"reward": rng.random()}
        )
        # This waits, to print. A trainer goes on, and looks at `run.last`, or logs `run.figures()`.
        verdict = run.wait(step, seconds=30)
        if verdict is None:
            print(f"step {step}: the coordinator does not answer")
            continue
        print(f"step {step}: {verdict.severity:<5} {verdict.tokens} tokens; {verdict.reason}")
        if verdict.severity in ("mask", "pause"):
            weights = run.weights(rollout, train, mask)
            print(f"  multiply each token's loss by its weight (mean {weights[mask].mean():.3f})")


if __name__ == "__main__":
    main()
