"""Nemotron Omni, as the trainer, the engine and the syncs ask for it."""

import re

from omni_rl.kinds import MODALITIES
from omni_rl.models.family import Family
from omni_rl.models.nemotron_omni.places import IN_ENGINE, IN_TRAINER
from omni_rl.models.nemotron_omni.released import RELEASED

FAMILY = Family(
    name="Nemotron Omni",
    # The released checkpoints', and that of transformers' native class.
    model_types=("NemotronH_Nano_Omni_Reasoning_V3", "nemotron_h_omni"),
    modalities=MODALITIES,
    training_at="omni_rl.models.nemotron_omni.training:TRAINING",
    serving_at="omni_rl.models.nemotron_omni.engine.serving:SERVING",
    in_engine=IN_ENGINE,
    in_trainer=IN_TRAINER,
    released=RELEASED,
    # As vLLM's processor of the family writes it.
    frame_time=re.compile(r"rame \d+ sampled at (\d{1,6})\.(\d\d) seconds"),
)
