"""Breaks a live run on purpose, and measures whether it is noticed, named and healed."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
