"""Tells whether engines and trainer could serve a checkpoint: asked before anything starts, in a second or two."""

from pathlib import Path


def require_servable(model: Path) -> None:
    """Raise `CheckpointError` or `ConfigError` where `model` is no directory of a model that is served here, or where a
    weight of the model is missing, unexpected or misshapen. No weights are read."""
    from omni_rl.models.families import family_of

    family_of(model).training.check_checkpoint(model)
