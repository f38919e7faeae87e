"""Makes a name that the coordinator takes of whatever somebody calls a run, so that watcher and agent, which are in
different processes, post under the same one."""

import hashlib
import re

LONGEST = 64
"""The most characters of a run's name."""
_FITS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")


def fitting_run_name(name: str) -> str:
    """Return `name` as it is where the coordinator takes it; else the first 64 characters of it, with a dash for each
    stretch of characters that the coordinator does not take. If nothing but that is left, as of a name in another
    script, return a digest of `name`, which still tells runs apart."""
    if len(name) <= LONGEST and _FITS.fullmatch(name):
        return name
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()
    return _UNUSABLE.sub("-", name).strip("._-")[:LONGEST] or f"run-{digest[:8]}"
