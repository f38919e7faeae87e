"""Engine and trainer are compared at the same places, and the training copy has them all."""

import re
from pathlib import Path

from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration
from omni_rl.models.nemotron_omni.places import IN_ENGINE, IN_TRAINER
from omni_rl.models.recording import LOGITS, ModuleSide, places


def test_both_sides_have_the_same_places() -> None:
    assert {*IN_TRAINER.values(), ModuleSide(LOGITS)} == {*IN_ENGINE.values()}


def test_the_training_copy_has_every_place(small_checkpoint: Path) -> None:
    model = NemotronOmniForConditionalGeneration.from_pretrained(small_checkpoint, device="meta")
    names = [name for name, _ in model.named_modules()]
    assert [pattern for pattern in IN_TRAINER if not any(re.fullmatch(pattern, name) for name in names)] == []
    found = places(model, IN_TRAINER)
    mixers = {name for name in found if name.endswith(".mixer")}
    assert mixers == {f"layers.{number}.mixer" for number in range(len(model.language_model.model.layers))}
    assert found["vision_projector"] == (model.vision_projector, "output")
