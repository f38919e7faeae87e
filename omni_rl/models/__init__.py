"""The training copies of the policies."""

from omni_rl import runtime

runtime.prepare()
