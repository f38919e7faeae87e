"""Saving a checkpoint where one may be already: what goes with the older weights, what stays, what is refused."""

import contextlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path

from omni_rl.errors import CheckpointError
from omni_rl.files.atomic import atomic_directory
from omni_rl.files.weights import CONSOLIDATED, INDEX, read_index

# In a folder of its own: vLLM takes every safetensors file beside config.json for weights.
STATE = "training"
RECORD = f"{STATE}/step.json"
"""What makes a directory a training checkpoint; see `omni_rl.train.checkpoint`."""

# What an older save leaves, and a reader could take for the model's weights in place of the new ones.
_WHOLE_MODEL = ("model*.safetensors", INDEX, "pytorch_model*.bin", "pytorch_model.bin.index.json", CONSOLIDATED)
# Weights of something else, which an engine would read as the model's, or transformers would add to them.
_FOREIGN = ("*.safetensors", "adapter_config.json")
# Files that are read together, the newer spelling before the older one: all of them come from one place.
_FAMILIES = (
    (
        "tokenizer*",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab*",
        "merges.txt",
        "*.tiktoken",
        "chat_template*",
        "additional_chat_templates",
    ),
    ("*processor_config.json", "feature_extractor*"),
)


@contextmanager
def saved_directory(target: Path) -> Iterator[Path]:
    """A directory to write a checkpoint into, which then takes the place of `target` at once; see `atomic_directory`.

    Older weights go, whatever they are called, and so do the older tokenizer and processors if new ones are written.
    Everything else that is in `target` stays. Whoever had `target` open or as the working directory still has the old
    one, whose files are gone: this process is moved, other ones have to enter it anew. Our own readers notice if that
    happens while they read (`omni_rl.files.reading`). vLLM does not: do not save into what an engine is just loading.

    Raises:
        CheckpointError: `target` cannot be replaced, or holds what would be lost or misread; the message names it.
    """
    if (target / RECORD).exists():
        raise CheckpointError(
            f"{target} is a training checkpoint: the state in {STATE}/ would be of other weights than those saved; "
            "choose another directory, or delete that one first"
        )
    older = {*_WHOLE_MODEL, *_indexed(target / INDEX)}
    entries = sorted(path.name for path in target.iterdir()) if target.is_dir() else []
    foreign = [name for name in entries if fits(name, _FOREIGN) and not fits(name, older)]
    if foreign:
        raise CheckpointError(
            f"{target} holds {', '.join(foreign)}, which a reader would take for the saved model's; "
            "move that elsewhere, or choose another directory"
        )

    def keep(name: str, written: frozenset[str]) -> bool:
        return not fits(name, older) and not any(
            fits(name, family) and any(fits(new, family) for new in written) for family in _FAMILIES
        )

    with atomic_directory(target, keep) as directory:
        yield directory


def fits(name: str, patterns: Iterable[str]) -> bool:
    """Whether a file's name is one of `patterns`, or fits one."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _indexed(index: Path) -> set[str]:
    """The weight files that an index names, whatever they are called; a broken one does not stand in a save's way."""
    with contextlib.suppress(CheckpointError):
        return {file for file in read_index(index).values() if file.endswith(".safetensors")}
    return set()
