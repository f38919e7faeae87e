"""The small Omni checkpoint that ships with the package, and what makes it and others like it."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
