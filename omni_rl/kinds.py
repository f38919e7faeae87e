"""The kinds of media and of prompts, in the order in which they are shown; spelled here and nowhere else.

A new kind of media is one entry in `Kind`, its field in `omni_rl.media.types.Prompt`, and its entry in
`omni_rl.media.formats`, which says how it is rendered.
"""

from typing import Final, Literal, get_args

Modality = Literal["image", "audio", "video"]
"""The modality of one item that a model takes in."""
Kind = Literal["text", Modality, "mixed"]
"""The kind of a prompt: it holds no media, media of one kind, or media of several."""

MODALITIES: Final[tuple[Modality, ...]] = get_args(Modality)
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
OVERALL: Final = "overall"
"""The kind that stands for the tokens of all prompts; figures have it beside the prompts' own kinds."""
MIXED_STATE: Final = "mixed_state"
"""The kind of the tokens whose state came in part from older weights than sampled them; no other kind counts them."""
WITH_FLIPS: Final = "with_flips"
"""The kind of the tokens of `overall` together with those that router flips leave out of it; its figures are shown and
not judged."""
