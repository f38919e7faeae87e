"""The policy that samples: a vLLM engine that is driven step by step, serves versioned weights and scores answers
again."""

from omni_rl import torchvision_schemas

torchvision_schemas.install()
