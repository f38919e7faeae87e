"""Compares scoring speed and memory, ours with transformers'."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
