"""What of our engine touches a model's parameters, in the worker that holds them.

vLLM mixes the class into its worker (`worker_extension_cls`), and the engine reaches it by `collective_rpc` alone. The
agent sees its calls as it sees those of anyone's extension.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from omni_rl.agent import announced
from omni_rl.consistency.evidence import WrongTensor
from omni_rl.models.families import family_of
from omni_rl.rollout.weights import ServedWeights
from omni_rl.sync.replica import Proof, SlabRef
from omni_rl.sync.version import WeightVersion

EXTENSION = f"{__name__}.WeightsExtension"
"""Its name, as vLLM takes it."""

NOT_OF_THE_TRAINER = 0
"""Update 0 is never announced: weights from elsewhere are compared with none of the trainer's."""


class WeightsExtension:
    """`weights` is there once `serve_weights` was called."""

    if TYPE_CHECKING:
        weights: ServedWeights

        def get_model(self) -> Any: ...

    def serve_weights(self, checkpoint: Path, dtype: str, invariant: bool) -> tuple[str, int, int]:
        """Map the model that was just loaded; returns the weights' digest, and how many parameters and elements they
        have. Raises what `ServedWeights` raises."""
        announced.announce(NOT_OF_THE_TRAINER)
        model = self.get_model()
        if invariant:
            family_of(checkpoint).serving.make_invariant(model)
        self.weights = ServedWeights(model, checkpoint, getattr(torch, dtype))
        return self.weights.digest, self.weights.parameters, self.weights.elements

    def write_slab(self, slab: SlabRef, pushed: bool) -> None:
        """Write a slab's weights, unless a transport writes them. Raises `SlabError`, `LayoutError`: nothing was."""
        sealed = self.weights.read(slab)
        ours = sealed.origin == "trainer"
        announced.announce(WeightVersion.parse(slab.version).number if ours else NOT_OF_THE_TRAINER)
        if not pushed:
            self.weights.write(sealed)

    def prove_slab(self, slab: SlabRef) -> Proof:
        """Every byte that the model holds against a slab; see `ServedWeights.prove`."""
        return self.weights.prove(self.weights.read(slab))

    def wrong_tensors(self, slab: SlabRef, before: SlabRef | None) -> tuple[WrongTensor, ...]:
        """See `ServedWeights.wrong`."""
        return self.weights.wrong(slab, before)
