"""Holds the small Omni checkpoint that ships with the package, and makes it and others like it."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
