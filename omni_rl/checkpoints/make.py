"""Makes the small Omni checkpoint: it starts from random weights, trains for a minute, stores the result, and measures
the stored weights."""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoTokenizer

from omni_rl import runtime
from omni_rl.checkpoints.build import random_checkpoint
from omni_rl.checkpoints.examples import Example, PromptExamples, chat_examples
from omni_rl.checkpoints.figures import Figures
from omni_rl.checkpoints.scenes import scenes
from omni_rl.checkpoints.training import Material, TrainingPlan, greedy_accuracy, sampled_accuracy, train
from omni_rl.errors import CheckpointError, ConfigError
from omni_rl.files.saving import saved_directory
from omni_rl.models.nemotron_omni.config import NemotronOmniConfig
from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.tasks.digits import load_digits
from omni_rl.tasks.settings import Split

_DEFAULT = TrainingPlan()


def make_checkpoint(
    out: Path, *, seed: int, force: bool, progress: Callable[[str], None], plan: TrainingPlan = _DEFAULT
) -> Figures:
    """Write the small Omni checkpoint of `seed` and its figures to `out`, in bfloat16, and return the figures. The same
    seed gives the same bytes.

    The checkpoint is made in one thread, so that no sum depends on the machine's number of cores. `progress` is called
    with a line of text now and then.

    Raises:
        ConfigError: `out` is not empty and `force` is not given; or this process lacks the environment in which
            pictures have the engine's bits (`omni_rl.runtime`).
        CheckpointError: held-out sampled accuracy is not within `plan.accepted`, or `out` holds what must not be
            replaced; nothing is written then.
    """
    runtime.require("making a checkpoint")
    if out.exists() and any(out.iterdir()) and not force:
        raise ConfigError(f"{out} is not empty; choose another directory, or give --force to write into it")
    with _one_thread(), tempfile.TemporaryDirectory() as scratch:
        start = random_checkpoint(Path(scratch, "random"), seed)
        trained = Path(scratch, "trained")
        steps = _train(start, trained, plan, seed, progress)
        figures = _measure(trained, seed, plan, steps)
        low, high = plan.accepted
        if not low <= figures.sampled_accuracy <= high:
            raise CheckpointError(
                f"seed {seed} ends with a sampled accuracy of {figures.sampled_accuracy:.3f}, outside {low} to {high}: "
                "learning would have no room; try another seed"
            )
        figures.save(trained)
        with saved_directory(out) as directory:
            for path in trained.iterdir():
                shutil.copyfile(path, directory / path.name)
    return figures


def _train(start: Path, trained: Path, plan: TrainingPlan, seed: int, progress: Callable[[str], None]) -> int:
    model = NemotronOmniForConditionalGeneration.from_pretrained(start, dtype=torch.float32)
    progress(f"{_parameters(model):,} random weights of seed {seed}; preparing the digits")
    tokenizer = AutoTokenizer.from_pretrained(start)
    prepare = PromptExamples(model.config, tokenizer)
    material = Material(
        chats=chat_examples(tokenizer, seed),
        scenes=map(prepare, scenes(seed)),
        digits=_digits(prepare, "train"),
        held_out=_digits(prepare, "held_out"),
    )
    steps = train(model, material, plan, seed, progress)
    model.save_pretrained(trained, dtype=torch.bfloat16)
    tokenizer.save_pretrained(trained)
    return steps


def _measure(directory: Path, seed: int, plan: TrainingPlan, steps: int) -> Figures:
    model = NemotronOmniForConditionalGeneration.from_pretrained(directory, dtype=torch.float32)
    held_out = held_out_examples(directory)
    return Figures(
        command=f"omni-rl make-checkpoint --seed {seed} --out DIR",
        seed=seed,
        pattern=model.config.llm_config.hybrid_override_pattern,
        parameters=_parameters(model),
        dtype="bfloat16",
        vocabulary=model.config.llm_config.vocab_size,
        bytes=sum(path.stat().st_size for path in directory.iterdir()),
        first_steps=plan.first_steps,
        digit_steps=steps,
        held_out=len(held_out),
        sampled_accuracy=round(sampled_accuracy(model, held_out), 6),
        greedy_accuracy=round(greedy_accuracy(model, held_out), 6),
        torch=torch.__version__,
    )


def held_out_examples(directory: Path) -> list[Example]:
    """Return the held-out digits as the checkpoint in `directory` sees them."""
    config = NemotronOmniConfig.from_pretrained(directory)
    return _digits(PromptExamples(config, AutoTokenizer.from_pretrained(directory)), "held_out")


def _digits(prepare: PromptExamples, split: Split) -> list[Example]:
    digits = load_digits(split)
    return [prepare(digits.prompt(index)) for index in range(len(digits))]


def _parameters(model: NemotronOmniForConditionalGeneration) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
