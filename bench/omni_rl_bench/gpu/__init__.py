"""Compares the training copy and the trainer on a CUDA device with the same on that machine's CPU."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
