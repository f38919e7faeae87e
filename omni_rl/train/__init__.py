"""The trainer, which holds the policy that learns: its FSDP2 copy, packed scoring, and the optimiser step."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
