"""Opens sound and video files for decoding: local files or bytes, in formats that cannot point elsewhere."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av

from omni_rl.errors import MediaError

# Demuxers by FFmpeg's names. Playlists (hls, dash, concat) are left out: they make FFmpeg open other addresses.
FORMATS = (
    "aac,ac3,aiff,amr,ape,asf,au,avi,caf,flac,flv,gif,h264,hevc,ivf,mov,mp4,m4a,3gp,3g2,mj2,"
    "matroska,webm,mp3,mpeg,mpegts,mpegvideo,ogg,w64,wav,wv"
)


@contextmanager
def open_container(source: str | Path | bytes) -> Iterator[Any]:
    """Yield an open `av` container; whatever FFmpeg refuses, while opening or decoding, becomes a `MediaError`."""
    if not isinstance(source, bytes) and not os.path.isfile(source):
        raise MediaError(f"no such file: {source} (media are local files or bytes; addresses are never fetched)")
    name = "the bytes given" if isinstance(source, bytes) else str(source)
    try:
        # A Python file object keeps FFmpeg's own protocols out, whatever the name looks like.
        with (
            io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file,
            av.open(file, options={"format_whitelist": FORMATS}) as container,
        ):
            yield container
    except av.error.FFmpegError as error:
        raise MediaError(f"cannot decode {name}: {error}") from error
