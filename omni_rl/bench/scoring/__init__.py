"""Scoring speed and memory, ours against transformers'."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
