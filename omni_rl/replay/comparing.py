"""Compares the record with what this machine renders and loads."""

import numpy as np

from omni_rl.errors import ConfigError, PromptError
from omni_rl.kinds import Modality
from omni_rl.media.types import MediaItem, RenderedPrompt
from omni_rl.replay.findings import ItemFound, TensorFound, WeightsFound
from omni_rl.replay.reading import Bundle, RecordedItem
from omni_rl.sync.version import PRINTED, WeightVersion

IF_OTHER: dict[Modality, str] = {
    "image": "a PNG loses nothing, so it is rendered otherwise now: look at the processor's version and settings",
    "audio": "no fault: it was kept as 16-bit WAV, which rounds each sample",
    "video": "no fault: it was kept as MP4, which is lossy, and its frames' numbers are taken from the time stamps",
}


def require_recorded_ids(rendered: RenderedPrompt, bundle: Bundle) -> None:
    """Raise `PromptError`, with the first difference, unless the prompt is rendered to the ids that were recorded."""
    ours, theirs = rendered.ids, bundle.prompt_ids
    if np.array_equal(ours, theirs):
        return
    both = min(len(ours), len(theirs))
    differs = np.flatnonzero(ours[:both] != theirs[:both])
    at = int(differs[0]) if len(differs) else both
    inside = [item for item in rendered.items if item.offset <= at < item.offset + item.length]
    where = f"in {inside[0].modality} {inside[0].index}" if inside else "in the text"
    then, now = (str(ids[at]) if at < len(ids) else "nothing" for ids in (theirs, ours))
    raise PromptError(
        f"prompt {bundle.sample!r}: {len(theirs)} ids were recorded, {len(ours)} are rendered now; they first differ "
        f"at {at}, {where}: recorded {then}, now {now}. Is it the run's own tokenizer, and were no videos pruned?"
    )


def items(rendered: RenderedPrompt, bundle: Bundle) -> tuple[ItemFound, ...]:
    """Return each media item's tensors by their digests, as recorded and as rendered now."""
    return tuple(_item(now, then) for now, then in zip(rendered.items, bundle.media, strict=True))


def weights(bundle: Bundle, checkpoint: str) -> WeightsFound:
    """Return whether a checkpoint with the digest `checkpoint` has the weights that the record was sampled and scored
    with."""
    recorded = tuple(dict.fromkeys(version for version in (*bundle.sampled_under, bundle.scored_with) if version))
    try:
        digests = [WeightVersion.parse(version).digest for version in recorded]
    except ConfigError:  # another framework's own names
        digests = []
    equal = all(digest[:PRINTED] == checkpoint[:PRINTED] for digest in digests) if digests else None
    return WeightsFound(checkpoint, recorded, equal)


def _item(now: MediaItem, then: RecordedItem) -> ItemFound:
    tensors = []
    for name in sorted(now.digests.keys() | then.rendered.keys()):
        recorded, rendered = then.rendered.get(name), now.digests.get(name)
        tensors.append(TensorFound(name, recorded, rendered, None if recorded is None else recorded == rendered))
    other = any(tensor.equal is False for tensor in tensors)
    return ItemFound(now.modality, now.index, tuple(tensors), IF_OTHER[now.modality] if other else "")
