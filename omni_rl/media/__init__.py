"""The one preprocessing path: a prompt with media is rendered once, for both sides."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
