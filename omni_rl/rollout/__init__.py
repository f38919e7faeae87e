"""The policy that samples: vLLM, stepped, versioned and rescored."""

from omni_rl import runtime

runtime.prepare()
