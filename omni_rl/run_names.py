"""Makes a name that the coordinator takes of whatever somebody calls a run, so that watcher and agent, which are in
different processes, post under the same one."""

import hashlib
import re

LONGEST = 64
"""The most characters of a run's name."""
_FITS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_UNUSABLE = re.compile(r"[^A-Za-z0-9._-]+")


def fitting_run_name(name: str) -> str:
    """Return `name` as it is where the coordinator takes it; else with a dash for each stretch of characters that the
    coordinator does not take. Where letters, digits or an end of over 64 characters are lost so, a digest of `name`
    comes last, so that runs whose names differ in these alone are told apart."""
    if len(name) <= LONGEST and _FITS.fullmatch(name):
        return name
    fitting = _UNUSABLE.sub("-", name).strip("._-")
    lost = "".join(_UNUSABLE.findall(name))
    if fitting and len(fitting) <= LONGEST and not any(letter.isalnum() for letter in lost):
        return fitting
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:8]
    return f"{fitting[: LONGEST - len(digest) - 1].rstrip('._-') or 'run'}-{digest}"
