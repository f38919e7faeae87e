"""Extends vLLM's worker, which holds the model, by all that touches the model's parameters.

vLLM mixes the class into its worker (`worker_extension_cls`), and the engine reaches it by `collective_rpc` alone. The
agent (`omni_rl.agent`) sees its calls as it sees those of anyone's extension.
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
"""The name of the worker's extension, as vLLM takes it."""

NOT_OF_THE_TRAINER = 0
"""The update number of weights that are not the trainer's. The trainer never announces update 0, so an agent compares
such weights with none of the trainer's."""


class WeightsExtension:
    """The methods that vLLM's worker gains. `weights` is there once `serve_weights` was called."""

    if TYPE_CHECKING:
        weights: ServedWeights

        def get_model(self) -> Any: ...

    def serve_weights(self, checkpoint: Path, dtype: str, invariant: bool) -> tuple[str, int, int]:
        """Map the model that was just loaded, and return its weights' digest, the number of the checkpoint's parameters
        and the number of elements that the engine holds. Raises what `ServedWeights` raises."""
        announced.announce(NOT_OF_THE_TRAINER)
        model = self.get_model()
        if invariant:
            family_of(checkpoint).serving.make_invariant(model)
        self.weights = ServedWeights(model, checkpoint, getattr(torch, dtype))
        return self.weights.digest, self.weights.parameters, self.weights.elements

    def write_slab(self, slab: SlabRef, pushed: bool) -> None:
        """Write a slab's weights into the model, unless a transport writes them (`pushed`). Raises `SlabError` or
        `LayoutError`, with nothing written."""
        sealed = self.weights.read(slab)
        ours = sealed.origin == "trainer"
        announced.announce(WeightVersion.parse(slab.version).number if ours else NOT_OF_THE_TRAINER)
        if not pushed:
            self.weights.write(sealed)

    def prove_slab(self, slab: SlabRef) -> Proof:
        """Compare every byte that the model holds with a slab; see `ServedWeights.prove`."""
        return self.weights.prove(self.weights.read(slab))

    def wrong_tensors(self, slab: SlabRef, before: SlabRef | None) -> tuple[WrongTensor, ...]:
        """Return the tensors that the model does not hold as the slab has them; see `ServedWeights.wrong`."""
        return self.weights.wrong(slab, before)
