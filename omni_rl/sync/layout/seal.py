"""Checks whether a layout map is still the one that a fresh load confirmed.

The same map says where to write and where to read back, so an entry that was damaged in between would confirm itself.
"""

from collections.abc import Mapping

import numpy as np
from blake3 import blake3

from omni_rl.media.digests import tensor_digest
from omni_rl.sync.layout.map import LayoutMap


class MapSeal:
    """The digest of each entry of a map, taken when the map was confirmed."""

    def __init__(self, layout: LayoutMap) -> None:
        self._digests = _digests(layout)

    def broken(self, layout: LayoutMap) -> tuple[str, ...]:
        """Return the released tensors, and the parameters with recorded values, whose entries have changed since."""
        now = _digests(layout)
        return tuple(sorted(n for n in self._digests.keys() | now.keys() if self._digests.get(n) != now.get(n)))


def _digests(layout: LayoutMap) -> Mapping[str, str]:
    names = list(layout.specs)
    table = np.array(layout.blocks, np.int64).reshape(len(layout.blocks), -1)
    entries = {name: blake3() for name in names}
    for tensor, row in zip(table[:, 1].tolist(), table, strict=True):
        entries[names[tensor]].update(row.tobytes())
    digests = {name: entry.hexdigest() for name, entry in entries.items()}
    for recorded in layout.recorded:
        parameter = layout.storages[recorded.storage].name
        text = f"{digests.get(parameter, '')} {recorded.kind} {recorded.start} {tensor_digest(recorded.values)}"
        digests[parameter] = blake3(text.encode()).hexdigest()
    return digests
