"""One block whose mixer gets one sequence after the other."""

import torch

from omni_rl.models.nemotron_omni.language.block import Block
from omni_rl.models.nemotron_omni.language.layout import PackedLayout
from omni_rl.models.nemotron_omni.language.moe import Routing, RoutingRecord
from omni_rl.models.nemotron_omni.matched.sequences import sequences


class MatchedBlock(Block):
    """A `Block` whose mixer gets single sequences; the mixers that take a layout keep sequences apart themselves."""

    def mix(self, normed: torch.Tensor, layout: PackedLayout, record: RoutingRecord | None) -> torch.Tensor:
        if self.kind == "-":
            return torch.cat([self.mixer(rows) for rows in sequences(normed, layout)])
        if self.kind != "E":
            return super().mix(normed, layout, record)
        replayed = None if record is None else record.replayed(self.number)
        choices = [None] * len(layout.lengths) if replayed is None else sequences(replayed, layout)
        parts = [self.mixer(rows, chosen) for rows, chosen in zip(sequences(normed, layout), choices, strict=True)]
        if record is not None:
            record.layers[self.index] = Routing.joined([routing for _, routing in parts])
        return torch.cat([mixed for mixed, _ in parts])
