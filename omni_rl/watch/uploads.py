"""Uploads pictures: each once, as PNG, after the records that name it."""

import io
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from blake3 import blake3

from omni_rl.client import Client
from omni_rl.client.posting import REFUSED
from omni_rl.errors import MediaError, MediaStoreError, OmniRLError, UnsupportedMediaTypeError
from omni_rl.watch.pictures import Say

if TYPE_CHECKING:
    from PIL.Image import Image

PNG = "image/png"
PLAIN = ("1", "L", "LA", "I;16", "RGB", "RGBA")
"""The modes that a PNG holds as they are. Pictures of other modes are written as RGB, or as RGBA where they are
transparent somewhere."""
FAST = 1
"""The level of zlib: less than half the time of its usual one, for a tenth more bytes of a photograph."""
KNOWN = 4096
"""How many pictures are remembered as uploaded."""
ATTEMPTS = 3
"""How many failed attempts it takes until a picture is left out: the coordinator answers to everything else then."""


class Waiting(NamedTuple):
    """A PNG to be uploaded. `pixels` is the digest of its picture's pixels, `content` the PNG."""

    pixels: bytes
    content: bytes


class Uploads:
    """The PNGs that wait, of `room` bytes at most: where there are more, the oldest is left out first.

    One thread changes it. Another may ask at any time whether something waits.
    """

    def __init__(self, room: int) -> None:
        self._room = room
        self._waiting: deque[Waiting] = deque()
        self._known: dict[bytes, str] = {}
        self._failed = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def forget(self) -> None:
        """Count no picture as uploaded any more: another coordinator may answer from now on."""
        self._known.clear()

    def keep(self, picture: "Image", say: Say) -> str:
        """Have a picture uploaded, unless one of the same pixels was, and return the digest of its PNG.

        Raises:
            Exception: Whatever PIL raises for a picture that it cannot read or write.
        """
        plain = picture if picture.mode in PLAIN else picture.convert("RGBA" if _is_transparent(picture) else "RGB")
        pixels = blake3(f"{plain.mode} {plain.size}".encode() + plain.tobytes()).digest()
        digest = self._known.pop(pixels, None)
        if digest is None:
            buffer = io.BytesIO()
            plain.save(buffer, "PNG", compress_level=FAST)
            digest = blake3(buffer.getvalue()).hexdigest()
            self._add(Waiting(pixels, buffer.getvalue()), say)
        self._known[pixels] = digest  # as the latest one
        if len(self._known) > KNOWN:
            del self._known[next(iter(self._known))]
        return digest

    def upload(self, client: Client, say: Say) -> None:
        """Upload the picture that has waited longest. One that is refused, or that failed too often, is left out.

        Raises:
            OmniRLError: The upload failed, and must be tried again.
        """
        try:
            client.put_media(self._waiting[0].content, PNG)
        except (*REFUSED, MediaError, MediaStoreError, UnsupportedMediaTypeError) as error:
            say("refused upload", f"a picture was refused, and is left out: {error}")
        except OmniRLError as error:
            self._failed += 1
            if self._failed < ATTEMPTS:
                raise
            say("failed upload", f"a picture could not be uploaded {ATTEMPTS} times, and is left out: {error}")
            self._failed -= 1  # the next one that fails is left out at once
        else:
            self._failed = 0
        self._waiting.popleft()

    def _add(self, one: Waiting, say: Say) -> None:
        self._waiting.append(one)
        while sum(len(each.content) for each in self._waiting) > self._room:
            say("uploads", "pictures wait for a coordinator that does not take them: the oldest is left out")
            self._known.pop(self._waiting.popleft().pixels, None)


def _is_transparent(picture: "Image") -> bool:
    return "transparency" in picture.info or picture.mode in ("PA", "RGBa")
