"""Trains the small checkpoint: on chats and scenes first, then on digits too, until it gets nearly half of the digits
right when it samples at temperature 1. Reinforcement learning then has something left to improve."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import torch

from omni_rl.checkpoints.examples import Example, pack_examples
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

_LEARNING_RATE = 1e-3
_MAX_GRAD_NORM = 1.0
_CHATS, _SCENES, _DIGITS = 4, 12, 32  # examples a step
_SCORED_AT_ONCE = 128  # examples, when nothing is learnt


@dataclass(frozen=True)
class TrainingPlan:
    """How long to train: `first_steps` without digits, then at most `digit_steps` with digits, until the sampled
    accuracy (`sampled_accuracy`, in [0, 1]) on held-out digits reaches `target`.

    A final accuracy outside `accepted` is a failure.
    """

    first_steps: int = 60
    digit_steps: int = 80
    target: float = 0.45  # the step that reaches it adds up to 0.09
    accepted: tuple[float, float] = (0.40, 0.55)


@dataclass(frozen=True)
class Material:
    """What is learnt: endless chats and scenes, the digits to learn and the held-out ones to measure with."""

    chats: Iterator[Example]
    scenes: Iterator[Example]
    digits: Sequence[Example]
    held_out: Sequence[Example]


def train(
    model: NemotronOmniForConditionalGeneration,
    material: Material,
    plan: TrainingPlan,
    seed: int,
    progress: Callable[[str], None],
) -> int:
    """Train `model` in place, and return the number of steps with digits. `seed` fixes which digits each step takes;
    `progress` is called with a line of text now and then."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    order = torch.Generator().manual_seed(seed)
    for step in range(1, plan.first_steps + 1):
        losses = _learn(model, optimizer, _talk(material))
        if step % 10 == 0:
            progress(f"step {step}/{plan.first_steps} without digits: loss {_listed(losses)}")
    for step in range(1, plan.digit_steps + 1):
        chosen = torch.randint(len(material.digits), (_DIGITS,), generator=order).tolist()
        losses = _learn(model, optimizer, [*_talk(material), [material.digits[index] for index in chosen]])
        accuracy = sampled_accuracy(model, material.held_out)
        progress(f"digit step {step}: loss {_listed(losses)}, held-out accuracy {accuracy:.3f} of {plan.target}")
        if accuracy >= plan.target:
            return step
    return plan.digit_steps


def _talk(material: Material) -> list[list[Example]]:
    return [list(islice(material.chats, _CHATS)), list(islice(material.scenes, _SCENES))]


def _listed(losses: torch.Tensor) -> str:
    return " + ".join(f"{loss:.2f}" for loss in losses.tolist())


def _learn(
    model: NemotronOmniForConditionalGeneration, optimizer: torch.optim.Optimizer, groups: list[list[Example]]
) -> torch.Tensor:
    """Take one optimiser step on the sum of the groups' mean token losses, in which the last group's counts twice.
    Return these means, one for each group, in nats."""
    optimizer.zero_grad()
    batch = pack_examples([example for group in groups for example in group])
    logprobs = model.score_packed(batch, record_routing=False).logprobs
    tokens = [sum(len(example.ids) - example.scored_from for example in group) for group in groups]
    losses = torch.stack([-part.mean() for part in torch.split(logprobs, tokens)])
    torch.autograd.backward(losses.sum() + losses[-1])
    torch.nn.utils.clip_grad_norm_(model.parameters(), _MAX_GRAD_NORM)
    optimizer.step()
    return losses.detach()


@torch.no_grad()
def sampled_accuracy(model: NemotronOmniForConditionalGeneration, digits: Sequence[Example]) -> float:
    """Return the expected accuracy at temperature 1: the mean probability of the right digit, among the whole
    vocabulary."""
    questions = [replace(example, ids=example.ids[: example.scored_from + 1]) for example in digits]
    logprobs = [model.score_packed(pack_examples(part), record_routing=False).logprobs for part in _parts(questions)]
    return float(torch.cat(logprobs).double().exp().mean())


@torch.no_grad()
def greedy_accuracy(model: NemotronOmniForConditionalGeneration, digits: Sequence[Example]) -> float:
    """Return the share of the digits that are the most probable token of the whole vocabulary."""
    right = 0
    for part in _parts(digits):
        # All digit prompts have the same length, so back to back they are a batch without padding.
        batch = pack_examples([replace(example, ids=example.ids[: example.scored_from]) for example in part])
        output = model(input_ids=batch.ids.view(len(part), -1), media=batch.media, logits_to_keep=1)
        answers = torch.stack([example.ids[example.scored_from] for example in part])
        right += int((output.logits[:, -1].argmax(-1) == answers).sum())
    return right / len(digits)


def _parts(examples: Sequence[Example]) -> Iterator[Sequence[Example]]:
    return (examples[start : start + _SCORED_AT_ONCE] for start in range(0, len(examples), _SCORED_AT_ONCE))
