"""Scoring speed and memory, ours against transformers'."""

from omni_rl import runtime

runtime.prepare()
