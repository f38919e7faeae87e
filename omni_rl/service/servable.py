"""Whether engines and trainer could serve a checkpoint: asked before anything starts, in a second or two."""

from pathlib import Path

from omni_rl.errors import CheckpointError


def require_servable(model: Path) -> None:
    """Raise `CheckpointError` or `ConfigError` where `model` is no directory of a model that is served here, or where a
    weight of it is missing, unexpected or misshapen. No weights are read."""
    if not (model / "config.json").is_file():
        raise CheckpointError(f"{model} is not a checkpoint directory: it has no config.json")
    from omni_rl.models.nemotron_omni.checkpoint import require_weights
    from omni_rl.models.nemotron_omni.model import NemotronOmniForConditionalGeneration

    require_weights(NemotronOmniForConditionalGeneration.from_pretrained(model, device="meta"), model)
