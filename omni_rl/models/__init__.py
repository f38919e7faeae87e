"""The training copies of the policies."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
