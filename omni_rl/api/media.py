"""Defines the media of stored samples."""

from typing import Literal

from omni_rl.api.base import Answer, example


class MediaAnswer(Answer):
    """A media item that is stored. `stored` "redacted": this coordinator does not store media."""

    digest: str
    bytes: int
    stored: Literal["new", "same", "redacted"]

    model_config = example(digest="9f2c…", bytes=20480, stored="new")
