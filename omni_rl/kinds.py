"""The kinds of media and of prompts, in the order in which they are shown; spelled here and nowhere else.

A new kind of media is one entry here, its field in `omni_rl.media.types.Prompt`, and whatever renders it.
"""

from typing import Final, Literal, get_args

Modality = Literal["image", "audio", "video"]
"""What a media item is."""
Kind = Literal["text", Modality, "mixed"]
"""What a prompt holds: no media, media of one modality, or of several."""
Bucket = Literal["overall", Kind]
"""Whose tokens a figure is of: those of all prompts, or of one kind."""

MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
OVERALL: Final = "overall"
MIXED_STATE: Final = "mixed_state"
"""The bucket of tokens whose state came in part from older weights than sampled them: they are in no other."""
WITH_FLIPS: Final = "with_flips"
"""The bucket of `overall`'s tokens together with those that router flips leave out of it: shown, and not judged."""
