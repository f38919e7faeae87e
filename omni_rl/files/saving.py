"""Saves a checkpoint into a directory that may hold an older one, and decides which older files are removed, which
stay, and which make it refuse."""

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
"""The file that makes a directory a training checkpoint; see `omni_rl.train.checkpoint`."""

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
    """Yield a directory to write a checkpoint into, which takes the place of `target` in one step when the block ends;
    see `atomic_directory`.

    Older weights are removed, whatever their files are called, and so are an older tokenizer and older processors if
    new ones were written. Everything else that is in `target` stays. A process that had `target` open, or as its
    working directory, still has the old directory, whose files are gone: this process is moved to the new one, others
    have to enter it anew. Our own readers notice if that happens while they read (`omni_rl.files.reading`). vLLM does
    not: do not save into a directory that an engine is just loading.

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
    """Return whether a file's name matches one of `patterns`, as a shell would match it."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _indexed(index: Path) -> set[str]:
    """Return the weight files that an index names, whatever they are called; an index that cannot be read names none,
    so that it does not stand in a save's way."""
    with contextlib.suppress(CheckpointError):
        return {file for file in read_index(index).values() if file.endswith(".safetensors")}
    return set()
