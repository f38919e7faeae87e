"""Holds the pictures of a step's prompts by reference while the step waits, and names them by their digests once
posted."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from numpy.typing import NDArray

from omni_rl.counting import counted
from omni_rl.errors import RecordError
from omni_rl.ledger.schema import RecordLimits

if TYPE_CHECKING:
    from PIL.Image import Image

MOST = RecordLimits().media_per_record
"""The most media that one answer's record may have."""
ONE_BYTE = ("1", "L", "P")
"""The modes whose pixels PIL holds in one byte each; it holds those of all others in four at most."""

Keep = Callable[["Image"], str]
"""Has a picture uploaded, now or later, and returns the digest of what is uploaded."""
Say = Callable[[str, str], None]
"""Logs each kind of trouble, its first argument, once."""


class StepPictures:
    """The pictures of one step's prompts. Those that there is room for are held until their digests are known."""

    def __init__(self, each: Sequence[Sequence[Any] | None], token: int | None, room: int) -> None:
        """Take the pictures over. Nothing is copied, and nothing is computed of their pixels.

        Args:
            each: The PIL images of each answer's prompt, in their order there; None for a prompt without. Several
                answers may share one object.
            token: The id of the placeholder that stands for a picture in a prompt's ids; None: it is not known.
            room: How many bytes of pixels may be held.
        """
        self.size = 0
        """The bytes of pixels that are held."""
        self._token = token
        # No two objects that live have one id, and all of these live until this returns.
        self._prompts = [[id(picture) for picture in prompt or ()] for prompt in each]
        self._held: dict[int, Image] = {}
        self._digests: dict[int, str] = {}
        self._others = self._over = 0
        for key, picture in {id(picture): picture for prompt in each for picture in prompt or ()}.items():
            if not _is_picture(picture):
                self._others += 1
            elif self.size + (size := _bytes_of(picture)) > room:
                self._over += 1
            else:
                self._held[key] = picture
                self.size += size

    def let_go(self) -> None:
        """Drop every picture."""
        self._held.clear()
        self.size = 0

    def name(self, keep: Keep, say: Say) -> None:
        """Have every picture uploaded under its digest, and drop it. One that cannot be encoded has no digest."""
        if self._over:
            say("room", f"pictures wait that are more than there is room for: {self._over} of a step are left out")
        if self._others:
            say("others", f"pictures that are no PIL images are left out: {self._others} of a step")
        for key, picture in self._held.items():
            try:
                self._digests[key] = keep(picture)
            except Exception as error:  # the boundary to somebody's files: a broken one must not cost the step
                say("broken", f"a picture that cannot be encoded is left out: {type(error).__name__}: {error}")
        self.let_go()

    def add_to(self, records: Sequence[dict[str, Any]], say: Say) -> None:
        """Add an item for each picture to the media of its answer's record, with its place in `prompt_ids`: offset and
        length are 0 where that is not known, and the content is left out where the picture is.

        Raises:
            RecordError: The pictures are those of more answers, or of fewer.
        """
        if len(records) != len(self._prompts):
            raise RecordError(f"pictures: {counted(len(self._prompts), 'row')} for {counted(len(records), 'answer')}")
        for record, prompt in zip(records, self._prompts, strict=True):
            if not prompt:
                continue
            places = self._places(record, len(prompt), say)
            items = [*(record.get("media") or ()), *map(self._item, prompt, places)]
            if len(items) > MOST:
                say("most", f"the first {MOST} media of a prompt are sent, and {len(items) - MOST} are left out")
            record["media"] = items[:MOST]

    def _item(self, key: int, place: tuple[int, int]) -> dict[str, Any]:
        return {"modality": "image", "offset": place[0], "length": place[1], "content": self._digests.get(key)}

    def _places(self, record: Mapping[str, Any], count: int, say: Say) -> list[tuple[int, int]]:
        ids = record.get("prompt_ids")
        if self._token is None or ids is None:
            return [(0, 0)] * count
        if (places := places_of(np.asarray(ids), self._token, count)) is None:
            what = counted(count, "picture")
            say("places", f"where a prompt has its {what} is left out: its placeholders do not say it")
            return [(0, 0)] * count
        return places


def places_of(ids: NDArray[Any], token: int, count: int) -> list[tuple[int, int]] | None:
    """Return offset and length of each of `count` pictures in a prompt's ids: a run of the placeholder each, or, where
    ids are not expanded and placeholders stand side by side, one placeholder each. None where neither fits."""
    at = np.flatnonzero(ids == token)
    runs = np.split(at, np.flatnonzero(np.diff(at) != 1) + 1) if len(at) else []
    if len(runs) == count:
        return [(int(run[0]), len(run)) for run in runs]
    return [(int(place), 1) for place in at] if len(at) == count else None


def _is_picture(value: object) -> "TypeGuard[Image]":
    """Return whether a value is a PIL image; a process that has one has imported PIL."""
    module = sys.modules.get("PIL.Image")
    return module is not None and isinstance(value, module.Image)


def _bytes_of(picture: "Image") -> int:
    """Return about how many bytes PIL holds of a picture's pixels."""
    return picture.width * picture.height * (1 if picture.mode in ONE_BYTE else 4)
