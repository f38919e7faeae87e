"""Prompts of posted steps out of the media store, which the coordinator keeps open: here it is only read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omni_rl.errors import MediaError
from omni_rl.ledger.media_store import stored
from omni_rl.media.images import load_image
from omni_rl.media.types import Prompt


def picture_prompt(directory: Path, row: Mapping[str, Any]) -> Prompt | None:
    """The prompt of a row whose media are pictures that are all still there. Sounds and videos are kept for the eye and
    the ear, with losses: no prompt is made of them."""
    media = row["media"] or []
    if not row["prompt_text"] or any(item["modality"] != "image" or not item["content"] for item in media):
        return None
    contents = [stored(directory, item["content"]) for item in media]
    try:
        pictures = tuple(load_image(content) for content in contents if content is not None)
    except MediaError:
        return None
    if len(pictures) != len(media):
        return None
    return Prompt(row["sample"], row["prompt_text"], images=pictures)
