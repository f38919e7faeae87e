"""Training copies of the policies, in plain PyTorch."""

from omni_rl import runtime

runtime.prepare()
