"""The policy that samples: vLLM, stepped, versioned and rescored."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
